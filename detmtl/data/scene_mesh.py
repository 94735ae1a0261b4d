"""Small three-dimensional models and how they become pixels.

A model stands on y = 0 in meters: x forward, y up, z to its right. World and camera share the
orientation (right-handed; the camera looks along -z from height h; depth is -z). Everything is drawn
by painter's order into a canvas (H, W, 4) uint8 whose last channel is the id of the thing seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi, sin

import cv2
import numpy as np

from detmtl.data.scene_paint import Color

_SHIFT = 3  # fractional bits of pixel coordinates
_FACE, _DECAL, _BLOB, _LIMB, _LOOP = range(5)


@dataclass(frozen=True)
class Camera:
    """Pinhole camera: focal length and principal point in pixels, height above ground in meters."""

    focal: float
    center: float
    horizon: float
    height: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Returns pixels (P, 2) of world points (P, 3) in front of the camera."""
        scale = self.focal / -points[:, 2]
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = self.center + scale * points[:, 0]
        pixels[:, 1] = self.horizon + scale * (self.height - points[:, 1])
        return pixels

    def scaled(self, factor: float) -> "Camera":
        """Returns the same camera with `factor` times as many pixels a side."""
        f = factor
        return Camera(self.focal * f, self.center * f, self.horizon * f, self.height)


@dataclass(frozen=True)
class Light:
    """A far light and the light from everywhere.

    Attributes:
        direction: unit vector towards the light, y > 0.
        sun, ambient: (3,) factors on a color that faces the light, and on every color.
        shadow: 0 (none) to 1 (black).
        softness: blur of cast shadows relative to the picture's height.
        lamps: whether windows and lamps are lit.
    """

    direction: np.ndarray
    sun: np.ndarray
    ambient: np.ndarray
    shadow: float
    softness: float
    lamps: bool


@dataclass
class Mesh:
    """A model under construction: points, and primitives on them in parts.

    Parts are painted from far to near; within a part, faces from far to near, then decals in the
    order in which they were added.
    """

    points: list[tuple[float, float, float]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    items: list[tuple[float, ...]] = field(default_factory=list)
    glows: list[tuple[int, float, Color]] = field(default_factory=list)
    marks: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    texture: float = 0.0
    _part: int = 0

    def part(self) -> None:
        """Starts a new part."""
        self._part += 1

    def _add(
        self,
        kind: int,
        points: Sequence[tuple[float, float, float]],
        color: Color,
        size: float = 0.0,
        glow: float = 0.0,
    ) -> None:
        self.items.append((kind, len(self.points), len(points), *color, size, glow))
        self.points.extend(points)
        self.parts.extend([self._part] * len(points))

    def face(self, points: Sequence[tuple[float, float, float]], color: Color) -> None:
        """Adds a flat polygon, seen from the side on which it is counterclockwise."""
        self._add(_FACE, points, color)

    def sheet(self, points: Sequence[tuple[float, float, float]], color: Color) -> None:
        """Adds a flat polygon that is seen from both sides."""
        self._add(_FACE, points, color)
        self._add(_FACE, points[::-1], color)

    def decal(
        self, points: Sequence[tuple[float, float, float]], color: Color, glow: float = 0.0
    ) -> None:
        """Adds a flat polygon painted over the part's faces; `glow` is its own light at night."""
        self._add(_DECAL, points, color, glow=glow)

    def prism(
        self,
        profile: Sequence[tuple[float, float]],
        z0: float,
        z1: float,
        color: Color,
        edges: dict[int, Color] | None = None,
    ) -> None:
        """Adds the prism over a counterclockwise profile (x, y) between z0 < z1; `edges` gives the
        face at an edge of the profile its own color."""
        n = len(profile)
        self.face([(x, y, z1) for x, y in profile], color)
        self.face([(x, y, z0) for x, y in reversed(profile)], color)
        for i in range(n):
            (x, y), (p, q) = profile[i], profile[(i + 1) % n]
            shade = edges.get(i, color) if edges else color
            self.face([(x, y, z1), (x, y, z0), (p, q, z0), (p, q, z1)], shade)

    def box(
        self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, color: Color
    ) -> None:
        """Adds a block."""
        self.prism([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], z0, z1, color)

    def sides(
        self,
        profile: Sequence[tuple[float, float]],
        half: float,
        color: Color,
        glow: float = 0.0,
    ) -> None:
        """Adds a decal (x, y) on both sides z = +-half of a part."""
        self.decal([(x, y, half) for x, y in profile], color, glow)
        self.decal([(x, y, -half) for x, y in reversed(profile)], color, glow)

    def end(
        self, x: float, y0: float, y1: float, z0: float, z1: float, color: Color, glow: float = 0.0
    ) -> None:
        """Adds an upright rectangle as a decal at x, seen from ahead if x > 0 and else from behind."""
        points = [(x, y0, z1), (x, y0, z0), (x, y1, z0), (x, y1, z1)]
        self.decal(points if x > 0 else points[::-1], color, glow)

    def column(
        self,
        x: float,
        z: float,
        r0: float,
        r1: float,
        y0: float,
        y1: float,
        color: Color,
        n: int = 8,
    ) -> None:
        """Adds an upright frustum of radius r0 at y0 and r1 at y1."""
        ring = [(cos(2 * pi * k / n), -sin(2 * pi * k / n)) for k in range(n)]
        low = [(x + r0 * c, y0, z + r0 * s) for c, s in ring]
        high = [(x + r1 * c, y1, z + r1 * s) for c, s in ring]
        for k in range(n):
            j = (k + 1) % n
            self.face([low[k], low[j], high[j], high[k]], color)
        if r1 > 0:
            self.face(high, color)

    def blob(
        self, x: float, y: float, z: float, rx: float, ry: float, rz: float, color: Color
    ) -> None:
        """Adds an ellipsoid with axes along the model's."""
        tips = [(x + rx, y, z), (x - rx, y, z), (x, y + ry, z), (x, y - ry, z)]
        self._add(_BLOB, [(x, y, z), *tips, (x, y, z + rz), (x, y, z - rz)], color, ry)

    def limb(
        self,
        start: tuple[float, float, float],
        stop: tuple[float, float, float],
        radius: float,
        color: Color,
    ) -> None:
        """Adds a round bar."""
        self._add(_LIMB, [start, stop], color, radius)

    def hoop(self, x: float, y: float, z: float, radius: float, bar: float, color: Color) -> None:
        """Adds a ring in the plane of z, of a bar with radius `bar`."""
        turns = [2 * pi * k / 16 for k in range(16)]
        ring = [(x + radius * cos(t), y + radius * sin(t), z) for t in turns]
        self._add(_LOOP, ring, color, bar)

    def disc(self, x: float, y: float, half: float, radius: float, color: Color) -> None:
        """Adds a round decal on both sides z = +-half."""
        turns = [2 * pi * k / 12 for k in range(12)]
        self.sides([(x + radius * cos(t), y + radius * sin(t)) for t in turns], half, color)

    def glow(self, x: float, y: float, z: float, radius: float, color: Color) -> None:
        """Adds a source of light, seen at night."""
        self.glows.append((len(self.points), radius, color))
        self.points.append((x, y, z))
        self.parts.append(self._part)

    def mark(self, name: str, x: float, y: float, z: float) -> None:
        """Names a point of the model, a keypoint; nothing is drawn."""
        self.marks[name] = (x, y, z)


@dataclass(frozen=True)
class Measures:
    """A model's height, length along x and largest distance from its vertical axis, meters."""

    tall: float
    long: float
    radius: float

    @classmethod
    def of(cls, mesh: Mesh) -> "Measures":
        """Returns the measures of a model."""
        p = np.array(mesh.points)
        low, high = p.min(0).tolist(), p.max(0).tolist()
        radius = float((p[:, 0] ** 2 + p[:, 2] ** 2).max()) ** 0.5
        return cls(high[1], high[0] - low[0], radius)


class Posed:
    """A model in the world.

    Args:
        mesh: the model.
        x: to the right of the camera, meters.
        depth: from the camera, meters.
        yaw: turn about the vertical, radians; 0: seen from its side, heading right.
        lift: height above the ground, meters.
    """

    def __init__(self, mesh: Mesh, x: float, depth: float, yaw: float, lift: float = 0.0):
        self.mesh = mesh
        self.depth, self.x, self.yaw, self.lift = depth, x, yaw, lift
        self.world = self._placed(np.array(mesh.points))

    def _placed(self, p: np.ndarray) -> np.ndarray:
        """Returns points (P, 3) of the model in the world."""
        c, s = cos(self.yaw), sin(self.yaw)
        world = np.empty_like(p)
        world[:, 0] = p[:, 0] * c + p[:, 2] * s + self.x
        world[:, 1] = p[:, 1] + self.lift
        world[:, 2] = p[:, 2] * c - p[:, 0] * s - self.depth
        return world

    def marks(self, camera: Camera) -> dict[str, tuple[float, float]]:
        """Returns where the model's keypoints are in the picture, x and y by name."""
        if not self.mesh.marks:
            return {}
        pixels = camera.project(self._placed(np.array(list(self.mesh.marks.values()))))
        places = [(float(x), float(y)) for x, y in pixels]
        return dict(zip(self.mesh.marks, places, strict=True))

    def in_front(self) -> bool:
        """Whether all of it is before the camera, where it can be projected."""
        return bool(self.world[:, 2].max() < -0.35)

    def extent(self, camera: Camera) -> tuple[float, float, float, float]:
        """Returns the bounding box xyxy of its points in pixels, the frame ignored."""
        p = camera.project(self.world)
        (x0, y0), (x1, y1) = p.min(0), p.max(0)
        return float(x0), float(y0), float(x1), float(y1)

    def cast(self, mask: np.ndarray, camera: Camera, light: Light) -> None:
        """Paints its shadow on the ground into mask (H, W) uint8."""
        p = self.world
        reach = np.clip(p[:, 1:2], 0, None) / light.direction[1]
        ground = p - reach * light.direction
        ground[:, 1] = 0
        pixels = camera.project(np.minimum(ground, [1e9, 0, -0.3]))
        pixels = np.clip(pixels, -2000, 4000).astype(np.int32)
        parts = np.array(self.mesh.parts)
        cuts = np.flatnonzero(np.diff(parts)) + 1
        for hull in np.split(pixels, cuts):
            if len(hull) > 1:
                cv2.fillConvexPoly(mask, cv2.convexHull(hull), 255)

    def draw(self, canvas: np.ndarray, camera: Camera, light: Light, id: int) -> None:
        """Paints it into canvas (H, W, 4) uint8 under `id`."""
        world = self.world
        table = np.array(self.mesh.items)
        kinds, first, count = table[:, :3].astype(np.int64).T
        seen, shade = self._lit(kinds, first, count, camera, light)
        if light.lamps:
            shade = np.maximum(shade, table[:, 7:8])
        colors = (table[:, 3:6] * shade).clip(0, 255).astype(np.uint8).tolist()
        pixels = camera.project(world)
        fixed = np.rint(pixels * (1 << _SHIFT)).clip(-80000, 80000).astype(np.int32)
        scale = (camera.focal / -world[first, 2]).tolist()
        toward = (float(light.direction[0]), -float(light.direction[1]))
        plain = table[:, [0, 1, 2]].astype(np.int64).tolist()
        sizes = table[:, 6].tolist()
        for k in self._order(kinds, first, count, seen):
            kind, start, n = plain[k]
            ink = (*colors[k], id)
            if kind <= _DECAL:
                cv2.fillPoly(canvas, [fixed[start : start + n]], ink, cv2.LINE_8, _SHIFT)
            elif kind == _BLOB:
                _blob(canvas, pixels[start : start + n], ink, toward)
            else:
                thick = max(1, round(2 * sizes[k] * scale[k]))
                run = fixed[start : start + n]
                cv2.polylines(canvas, [run], kind == _LOOP, ink, thick, cv2.LINE_8, _SHIFT)
                if thick > 3 and kind == _LIMB:
                    bright = (*(min(255, int(c * 1.16) + 3) for c in ink[:3]), id)
                    shift = np.int32(thick * 0.22 * (1 << _SHIFT) * np.sign(toward[0]))
                    line = [run + np.array([shift, 0], np.int32)]
                    cv2.polylines(canvas, line, False, bright, thick // 2, cv2.LINE_8, _SHIFT)

    def _lit(
        self, kinds: np.ndarray, first: np.ndarray, count: np.ndarray, camera: Camera, light: Light
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns whether each item faces the camera (n,) and its light (n, 3)."""
        world = self.world
        p0 = world[first]
        a = world[first + np.minimum(1, count - 1)] - p0
        b = world[first + np.minimum(2, count - 1)] - p0
        normal = a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]
        normal /= np.sqrt((normal * normal).sum(1, keepdims=True)) + 1e-9
        flat = kinds <= _DECAL
        seen = ~flat | ((normal * ([0.0, camera.height, 0.0] - p0)).sum(1) > 0)
        facing = np.where(flat, np.maximum(normal @ light.direction, 0), 0.55)
        sky = np.where(flat, 0.85 + 0.15 * normal[:, 1], 0.9)
        return seen, sky[:, None] * light.ambient + facing[:, None] * light.sun

    def _order(
        self, kinds: np.ndarray, first: np.ndarray, count: np.ndarray, seen: np.ndarray
    ) -> list[int]:
        """Returns the items that face the camera, farthest first."""
        parts = np.array(self.mesh.parts)
        near = self.world[:, 2]
        sums = np.bincount(parts, near)
        part_near = (sums / np.maximum(1, np.bincount(parts)))[parts[first]]
        total = np.concatenate([[0.0], np.cumsum(near)])
        item_near = (total[first + count] - total[first]) / count
        item_near = np.where(kinds == _DECAL, 1e9, item_near)
        order = np.lexsort((np.arange(len(kinds)), item_near, part_near))
        return order[seen[order]].tolist()


def _blob(
    canvas: np.ndarray, pixels: np.ndarray, ink: tuple[int, ...], toward: tuple[float, float]
) -> None:
    """Paints an ellipsoid with a bright side; pixels: its center and six tips."""
    points = pixels.tolist()
    x, y = points[0]
    rx = max(abs(points[k][0] - x) for k in (1, 2, 5, 6))
    ry = max(abs(points[3][1] - y), abs(points[4][1] - y))
    one = 1 << _SHIFT
    tones = [(1.0, 0.74), (0.8, 1.0), (0.45, 1.2)] if rx > 3 else [(1.0, 0.95)]
    for share, tone in tones:
        u = (x + rx * (1 - share) * 0.75 * toward[0]) * one
        v = (y + ry * (1 - share) * 0.75 * toward[1]) * one
        if abs(u) > 80000 or abs(v) > 80000:
            return
        axes = (max(1, int(rx * share * one)), max(1, int(ry * share * one)))
        color = (*(min(255, int(c * tone)) for c in ink[:3]), ink[3])
        cv2.ellipse(canvas, (int(u), int(v)), axes, 0, 0, 360, color, -1, cv2.LINE_8, _SHIFT)
