"""Pictures of the built-in scenes with their truth."""

from dataclasses import dataclass

import cv2
import numpy as np

from detmtl.data.scene_backdrop import FAR, Setting, draw_backdrop, grain, light_of, weather_over
from detmtl.data.scene_layout import Domain, Placed, draw_camera, draw_setting, populate
from detmtl.data.scene_mesh import Camera, Light
from detmtl.data.scene_paint import Rng


@dataclass(frozen=True)
class Thing:
    """An object in a picture.

    Attributes:
        id: its value in the instance map.
        label: class index.
        color: name of its color.
        crowd: whether it is a dense group.
        silhouette: pixels it would cover without occluders and frame.
        marks: where its keypoints are, in the picture or outside, by name.
    """

    id: int
    label: int
    color: str
    crowd: bool
    silhouette: float
    marks: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Scene:
    """A picture with its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        instances: (H, W) uint8, id of the thing seen; 0 and ids that no thing has are background.
        depth: (H, W) uint16 millimeters, 65535 at 65.535 m or farther. An object is as deep as its
            middle everywhere.
        things: the objects, farthest first.
        tags: its place, time and weather.
        quality: JPEG quality that it shall be written with.
    """

    image: np.ndarray
    instances: np.ndarray
    depth: np.ndarray
    things: list[Thing]
    tags: list[str]
    quality: int

    def semantic(self) -> np.ndarray:
        """Returns class index + 1 for each pixel, (H, W) uint8, 0 for background."""
        table = np.zeros(256, np.uint8)
        for thing in self.things:
            table[thing.id] = thing.label + 1
        return table[self.instances]


def draw_scene(domain: Domain, height: int, width: int, rng: Rng) -> Scene:
    """Draws one picture of a domain."""
    setting = draw_setting(domain, rng)
    camera = draw_camera(domain, setting, height, width, rng)
    light = light_of(setting, rng)
    placed = populate(setting, camera, height, width, rng)
    placed.sort(key=lambda p: -p.depth)
    image, depth = draw_backdrop(setting, camera, light, height, width, rng)
    _cast(image, placed, setting, camera, light)
    canvas, things = _paint(image, placed, camera, light, rng)
    instances = np.ascontiguousarray(canvas[::2, ::2, 3])
    depths = np.array([FAR] + [p.depth for p in placed], np.float32)
    depth = np.where(instances > 0, depths[instances], depth)
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)[..., :3]
    image = _finish(
        image.astype(np.float32), depth, instances, placed, domain, setting, camera, light, rng
    )
    return Scene(
        image=image,
        instances=instances,
        depth=np.clip(depth * 1000, 0, 65535).astype(np.uint16),
        things=things,
        tags=[setting.place, setting.time, setting.weather],
        quality=int(rng.integers(60, 96) if domain is Domain.HOME else rng.integers(45, 92)),
    )


def _cast(
    image: np.ndarray, placed: list[Placed], setting: Setting, camera: Camera, light: Light
) -> None:
    """Darkens the ground under and beside things."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for group in placed:
        for model in group.models:
            model.cast(mask, camera, light)
    top = int(max(0, camera.horizon))
    half = cv2.resize(mask[top:], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    blur = max(0.5, light.softness * height * 0.3)
    soft = cv2.resize(cv2.GaussianBlur(half, (0, 0), blur), (width, height - top))
    image[top:] *= (1 - soft.astype(np.float32) * np.float32(light.shadow / 255))[..., None]


def _paint(
    image: np.ndarray, placed: list[Placed], camera: Camera, light: Light, rng: Rng
) -> tuple[np.ndarray, list[Thing]]:
    """Returns the picture at twice the size, (2H, 2W, 4) uint8 with ids last, and what is in it."""
    height, width = image.shape[:2]
    ground = cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_RGB2RGBA)
    ground[..., 3] = 0
    canvas = cv2.resize(ground, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    double = camera.scaled(2.0)
    things = []
    for id, group in enumerate(placed, 1):
        boxes = []
        for model in group.models:
            model.draw(canvas, double, light, id)
            boxes.append(model.extent(camera))
        x0, y0 = np.min([b[:2] for b in boxes], 0)
        x1, y1 = np.max([b[2:] for b in boxes], 0)
        left, right = int(np.clip(x0 - 2, 0, width)), int(np.clip(x1 + 3, 0, width))
        top, bottom = int(np.clip(y0 - 2, 0, height)), int(np.clip(y1 + 3, 0, height))
        region = canvas[2 * top : 2 * bottom, 2 * left : 2 * right]
        if group.models[0].mesh.texture:
            _roughen(region, id, group.models[0].mesh.texture, rng)
        if group.label >= 0 and region.size:
            drawn = cv2.countNonZero((region[::2, ::2, 3] == id).view(np.uint8))
            seen = (min(x1, width) - max(x0, 0)) * (min(y1, height) - max(y0, 0))
            share = np.clip(seen / max(1.0, (x1 - x0) * (y1 - y0)), 0.01, 1)
            full = drawn / float(share)
            marks = {} if group.crowd else group.models[0].marks(camera)
            things.append(Thing(id, group.label, group.color, group.crowd, full, marks))
    return canvas, things


def _roughen(region: np.ndarray, id: int, amount: float, rng: Rng) -> None:
    """Gives what is drawn under an id a grain."""
    h, w = region.shape[:2]
    if not h or not w:
        return
    factor = 1 + amount * np.clip(grain(0.7, (h + 1) // 2, (w + 1) // 2, rng), -2, 2)
    factor = np.repeat(np.repeat(factor, 2, 0), 2, 1)[:h, :w]
    rough = np.clip(region[..., :3] * factor[..., None], 0, 255).astype(np.uint8)
    mask = (region[..., 3] == id).view(np.uint8)
    whole = np.dstack([rough, region[..., 3]])
    cv2.copyTo(whole, mask, region)


def _glow(
    image: np.ndarray, instances: np.ndarray, placed: list[Placed], camera: Camera
) -> np.ndarray:
    """Returns the picture with the light that lit lamps throw around."""
    height, width = image.shape[:2]
    small = np.zeros((height // 4 + 1, width // 4 + 1, 3), np.float32)
    for id, group in enumerate(placed, 1):
        for model in group.models:
            for index, radius, color in model.mesh.glows:
                point = model.world[index : index + 1]
                u, v = camera.project(point)[0]
                if not (0 <= u < width and 0 <= v < height) or instances[int(v), int(u)] != id:
                    continue
                scale = camera.focal / -float(point[0, 2])
                size = max(1, int(radius * scale / 4))
                cv2.circle(small, (int(u / 4), int(v / 4)), size, color, -1)
                foot = camera.project(point * [1, 0, 1])[0]
                spot = (int(4 * radius * scale / 4), max(1, int(0.9 * radius * scale / 4)))
                cv2.ellipse(small, (int(foot[0] / 4), int(foot[1] / 4)), spot, 0, 0, 360,
                            tuple(0.3 * c for c in color), -1)  # fmt: skip
    if not small.any():
        return image
    soft = cv2.GaussianBlur(small, (0, 0), 2.5 * height / 256)
    return image + 0.75 * cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)


def _finish(
    image: np.ndarray,
    depth: np.ndarray,
    instances: np.ndarray,
    placed: list[Placed],
    domain: Domain,
    setting: Setting,
    camera: Camera,
    light: Light,
    rng: Rng,
) -> np.ndarray:
    """Returns what a camera makes of it, (H, W, 3) uint8."""
    image = weather_over(image, depth, setting, rng.uniform(0.7, 1.4), rng)
    if light.lamps:
        image = _glow(image, instances, placed, camera)
    height, width = image.shape[:2]
    home = domain is Domain.HOME
    cast = rng.uniform(0.95, 1.05, 3) if home else rng.uniform(0.91, 1.06, 3)
    gain = rng.uniform(0.88, 1.15) * (1.25 if setting.time == "night" else 1.0)
    contrast = rng.uniform(0.9, 1.12)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None]
    vignette = 1 - np.float32(rng.uniform(0, 0.16)) * (xs**2 + ys**2)
    image += np.float32(118 / contrast - 118)
    image *= np.float32(cast * gain * contrast) * vignette[..., None]
    blur = rng.uniform(0.2, 0.7) if rng.random() < 0.7 else rng.uniform(0.7, 1.3 if home else 1.7)
    if blur > 0.35:
        image = cv2.GaussianBlur(image, (0, 0), blur * height / 256)
    amount = rng.uniform(0.5, 3.5) if home else rng.uniform(2, 8)
    noisy = np.float32(amount) * grain(0.15, height, width, rng)
    tinted = noisy + np.float32(0.6 * amount) * grain(0.25, height, width, rng)
    image += np.dstack([noisy, noisy, tinted])
    return np.clip(image, 0, 255).astype(np.uint8)
