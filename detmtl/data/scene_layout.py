"""What stands where in a picture of the built-in scenes, and the picture with its truth."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import cos, hypot, pi, sin

import cv2
import numpy as np

from detmtl.data.scene_backdrop import (
    FAR,
    Setting,
    draw_backdrop,
    grain,
    light_of,
    weather_over,
)
from detmtl.data.scene_mesh import Camera, Color, Light, Measures, Mesh, Posed
from detmtl.data.scene_objects import (
    BUILDERS,
    CLUTTER,
    COLORS,
    SCENE_CLASSES,
    held_umbrella,
    person,
)

Rng = np.random.Generator
Builder = Callable[[Rng, Color], Mesh]
TAGS = (
    "street", "park", "plaza", "waterfront", "hall",
    "day", "dusk", "night",
    "clear", "overcast", "rain", "fog", "snow",
    "crowd", "empty",
)  # fmt: skip

_LIKELY: dict[str, dict[str, float]] = {
    "street": {"car": 5, "van": 3, "bus": 2, "truck": 3, "person": 4, "bicycle": 2.5, "motorcycle": 2.5,
               "dog": 1.2, "tree": 2, "lamp": 2, "bench": 1, "umbrella": 0.6, "house": 2, "horse": 0.4},
    "park": {"person": 4, "dog": 3, "horse": 2.5, "tree": 4, "bench": 3, "lamp": 1.5, "bicycle": 2,
             "ball": 2.5, "umbrella": 1, "house": 1, "truck": 0.4, "motorcycle": 0.5},
    "plaza": {"person": 5, "bench": 2.5, "lamp": 2, "umbrella": 2.5, "bicycle": 2.5, "dog": 2, "ball": 2,
              "van": 1.2, "motorcycle": 1.8, "tree": 1.5, "car": 1, "truck": 0.7, "horse": 0.7},
    "waterfront": {"boat": 9, "person": 4, "umbrella": 2.5, "ball": 2.5, "dog": 2, "tree": 1, "bench": 1.5,
                   "horse": 1.2, "bicycle": 1, "lamp": 0.8},
    "hall": {"person": 4, "ball": 3, "bench": 2.5, "umbrella": 2, "bicycle": 2, "motorcycle": 2.5, "dog": 2,
             "car": 1.2, "horse": 0.8, "boat": 0.8, "van": 0.5},
}  # fmt: skip
_ALL = tuple(COLORS)
_PAINTS: dict[str, tuple[str, ...]] = {
    "dog": ("black", "white", "gray", "brown", "orange", "yellow"),
    "horse": ("black", "white", "gray", "brown", "orange"),
    "tree": ("green", "green", "green", "green", "yellow"),
    "bench": ("brown", "brown", "gray", "green", "white", "red", "blue"),
    "lamp": ("black", "black", "gray", "green", "white"),
    "house": ("white", "yellow", "red", "brown", "gray", "pink", "blue", "orange"),
    "car": ("black", "white", "gray", "gray", "red", "blue", "green", "yellow", "orange", "brown"),
    "van": ("white", "white", "gray", "black", "red", "blue", "yellow", "green"),
}
_AUTUMN = ("orange", "yellow", "red", "brown", "green")
_TRAFFIC = frozenset({"car", "van", "bus", "truck", "motorcycle", "bicycle"})
_NEVER_TURNED = frozenset({"lamp", "ball", "tree", "umbrella"})


class Domain(Enum):
    """Where and when pictures are taken."""

    HOME = "home"
    AWAY = "away"


@dataclass(frozen=True)
class Thing:
    """An object in a picture.

    Attributes:
        id: its value in the instance map.
        label: class index.
        color: name of its color.
        crowd: whether it is a dense group.
        silhouette: pixels it would cover without occluders and frame.
    """

    id: int
    label: int
    color: str
    crowd: bool
    silhouette: float


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


@dataclass
class _Placed:
    """What is drawn under one id: one model, or the models of a group, farthest first."""

    models: list[Posed]
    depth: float
    x: float
    radius: float
    label: int = -1  # no class
    color: str = ""
    crowd: bool = False


def draw_scene(domain: Domain, height: int, width: int, rng: Rng) -> Scene:
    """Draws one picture of a domain."""
    setting = _setting(domain, rng)
    camera = _camera(domain, setting, height, width, rng)
    light = light_of(setting, rng)
    placed = _populate(setting, camera, height, width, rng)
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


def _setting(domain: Domain, rng: Rng) -> Setting:
    home = domain is Domain.HOME
    place = str(rng.choice(list(_LIKELY), p=[0.34, 0.22, 0.17, 0.17, 0.1]))
    time = str(
        rng.choice(["day", "dusk", "night"], p=[0.95, 0.05, 0] if home else [0.45, 0.28, 0.27])
    )
    odds = [0.65, 0.35, 0, 0, 0] if home else [0.2, 0.2, 0.22, 0.18, 0.2]
    weather = str(rng.choice(["clear", "overcast", "rain", "fog", "snow"], p=odds))
    crossing = rng.random() < 0.45
    turn = rng.uniform(1.25, 1.9) if crossing else rng.uniform(-0.5, 0.5)
    half = rng.uniform(2.8, 4.2)
    wall = FAR
    if place == "hall":
        wall, weather = rng.uniform(9, 18), "clear"
    elif place in ("plaza", "street") and rng.random() < 0.4:
        wall = rng.uniform(22, 38)
    return Setting(
        place=place,
        time=time,
        weather=weather,
        autumn=not home and rng.random() < 0.6,
        turn=turn,
        offset=-rng.uniform(9, 18) if crossing else rng.uniform(-5, 5),
        half=half,
        shore=rng.uniform(7, 16) if place == "waterfront" else FAR,
        wall=wall,
    )


def _camera(domain: Domain, setting: Setting, height: int, width: int, rng: Rng) -> Camera:
    home = domain is Domain.HOME
    focal = width * (rng.uniform(0.95, 1.25) if home else rng.uniform(0.75, 1.05))
    horizon = height * (rng.uniform(0.32, 0.5) if home else rng.uniform(0.2, 0.4))
    above = rng.uniform(1.4, 2.2) if home else rng.uniform(2.0, 3.4)
    return Camera(focal, width * rng.uniform(0.45, 0.55), horizon, above)


# --- who stands where -----------------------------------------------------------------------------


def _populate(setting: Setting, camera: Camera, height: int, width: int, rng: Rng) -> list[_Placed]:
    """Places objects, a group now and then, and things of no class."""
    site = _Site(setting, camera, height, width, rng)
    if rng.random() < 0.055:
        count = 0
    else:
        count = int(rng.integers(1, 7) if rng.random() < 0.4 else rng.integers(6, 17))
        if rng.random() < 0.1:
            site.add_group()
    likely = _LIKELY[setting.place]
    odds = np.array(list(likely.values())) / sum(likely.values())
    for name in rng.choice(list(likely), count, p=odds):
        site.add_object(str(name))
    for _ in range(int(rng.integers(0, 6))):
        site.add_clutter()
    return site.placed


class _Site:
    """The ground of one picture while things are put on it."""

    def __init__(self, setting: Setting, camera: Camera, height: int, width: int, rng: Rng):
        self.setting, self.camera, self.rng = setting, camera, rng
        self.height, self.width = height, width
        self.placed: list[_Placed] = []
        self.nearest = camera.focal * camera.height / (height * 1.04 - camera.horizon)

    def add_object(self, name: str) -> None:
        """Places an object of a class, and perhaps its rider or what it holds."""
        rng = self.rng
        paints = _PAINTS.get(name, _ALL)
        if name == "tree" and self.setting.autumn:
            paints = _AUTUMN
        color = paints[int(rng.integers(len(paints)))]
        mesh = BUILDERS[name](rng, self._tone(name, color))
        measures = Measures.of(mesh)
        for _ in range(6):
            x, depth = self._spot(name, measures)
            if self._place(name, color, mesh, measures.radius, x, depth):
                break
        else:
            return
        last = self.placed[-1]
        if name in ("bicycle", "motorcycle", "horse") and rng.random() < 0.3:
            lift = 0.72 if name == "horse" else 0.08
            self._companion("person", person, last, lift, rng.uniform(-0.12, 0.05))
        elif name == "person" and rng.random() < 0.07:
            self._companion("umbrella", held_umbrella, last, 1.2, rng.uniform(-0.2, 0.2))

    def _companion(
        self, name: str, builder: Builder, last: _Placed, lift: float, shift: float
    ) -> None:
        color = _ALL[int(self.rng.integers(len(_ALL)))]
        mesh = builder(self.rng, self._tone(name, color))
        yaw = last.models[0].yaw
        posed = Posed(mesh, last.x + shift * cos(yaw), last.depth - 0.04, yaw, lift)
        if posed.in_front():
            label = SCENE_CLASSES.index(name)
            self.placed.append(_Placed([posed], posed.depth, last.x, 0.1, label, color))

    def add_group(self) -> None:
        """Places a dense group of people."""
        rng = self.rng
        limit = min(self.setting.shore, self.setting.wall) - 3.5
        depth = self.camera.focal * 1.7 / (rng.uniform(13, 40) * self.height / 256)
        depth = float(np.clip(depth, self.nearest + 3, max(limit, self.nearest + 3)))
        x = self._across(depth, 0.8)
        wide, deep = rng.uniform(1.5, 3.2), rng.uniform(0.8, 1.6)
        models = []
        for _ in range(int(rng.integers(14, 30))):
            mesh = person(rng, self._tone("person", _ALL[int(rng.integers(len(_ALL)))]))
            spot = depth + rng.uniform(-deep, deep)
            models.append(Posed(mesh, x + rng.uniform(-wide, wide), spot, rng.uniform(-pi, pi)))
        models.sort(key=lambda m: -m.depth)
        label = SCENE_CLASSES.index("person")
        self.placed.append(_Placed(models, depth, x, wide + 0.4, label, "", crowd=True))

    def add_clutter(self) -> None:
        """Places something that is no class."""
        mesh = CLUTTER[int(self.rng.integers(len(CLUTTER)))](self.rng)
        measures = Measures.of(mesh)
        for _ in range(3):
            x, depth = self._spot("", measures)
            if self._place("", "", mesh, measures.radius, x, depth):
                return

    def _place(
        self, name: str, color: str, mesh: Mesh, radius: float, x: float, depth: float
    ) -> bool:
        """Puts a model there unless something else is, or it would hardly be in the picture."""
        for other in self.placed:
            if hypot(other.x - x, other.depth - depth) < 0.75 * (radius + other.radius):
                return False
        posed = Posed(mesh, x, depth, self._yaw(name))
        if not posed.in_front():
            return False
        x0, y0, x1, y1 = posed.extent(self.camera)
        inside = (min(x1, self.width) - max(x0, 0)) * (min(y1, self.height) - max(y0, 0))
        if x1 < 2 or x0 > self.width - 2 or inside < 0.3 * (x1 - x0) * (y1 - y0):
            return False
        if inside > (0.4 if name else 0.07) * self.width * self.height:
            return False
        label = SCENE_CLASSES.index(name) if name else -1
        self.placed.append(_Placed([posed], depth, x, radius, label, color))
        return True

    def _spot(self, name: str, measures: Measures) -> tuple[float, float]:
        """Returns where to try: x and depth, such that all sizes in the picture are common."""
        rng, setting = self.rng, self.setting
        tall, long = measures.tall, measures.long
        pixels = np.exp(rng.uniform(np.log(13), np.log(175))) * self.height / 256
        depth = self.camera.focal * max(tall, 0.55 * long) / pixels
        near, far = self.nearest, min(60.0, setting.shore - 0.8, setting.wall - 1.2)
        if name == "boat" and setting.shore < FAR:
            near, far = setting.shore + 2.5, 60.0
        near = max(near, 0.6 * long + 1.2)
        depth = float(np.clip(depth, near, max(far, near))) * rng.uniform(0.97, 1.05)
        if setting.place == "street" and name in _TRAFFIC and rng.random() < 0.85:
            return self._on_road(depth)
        beside = [p for p in self.placed if p.label >= 0 and near <= p.depth <= far]
        if beside and rng.random() < 0.35 and tall < 3:
            other = beside[int(rng.integers(len(beside)))]
            gap = other.radius + 0.5 * long
            turn = rng.uniform(-pi, pi)
            return other.x + gap * cos(turn), max(near, other.depth + gap * sin(turn))
        return self._across(depth, 0.95), depth

    def _across(self, depth: float, share: float) -> float:
        column = self.width * (0.5 + self.rng.uniform(-0.5, 0.5) * share)
        return (column - self.camera.center) / self.camera.focal * depth

    def _on_road(self, depth: float) -> tuple[float, float]:
        s = self.setting
        side = -1.0 if self.rng.random() < 0.5 else 1.0
        lane = s.offset + side * s.half * self.rng.uniform(0.4, 0.62)
        if abs(cos(s.turn)) > 0.5:
            along = (depth + lane * sin(s.turn)) / cos(s.turn)
        else:
            along = (self._across(abs(lane), 1.0) - lane * cos(s.turn)) / sin(s.turn)
        x = lane * cos(s.turn) + along * sin(s.turn)
        return x, max(0.5, along * cos(s.turn) - lane * sin(s.turn))

    def _yaw(self, name: str) -> float:
        rng = self.rng
        if name in _NEVER_TURNED:
            return rng.uniform(-pi, pi)
        if self.setting.place == "street" and name in _TRAFFIC and rng.random() < 0.9:
            back = pi if rng.random() < 0.5 else 0.0
            return pi / 2 - self.setting.turn + back + rng.normal(0, 0.06)
        if name in ("bench", "house"):
            return rng.uniform(-0.9, 0.9)
        return rng.uniform(-pi, pi)

    def _tone(self, name: str, color: str) -> Color:
        r, g, b = COLORS[color]
        by = self.rng.uniform(0.82, 1.1) * (0.72 if name == "tree" else 1.0)
        jitter = self.rng.uniform(-10, 10, 3)
        return (
            float(np.clip(r * by + jitter[0], 8, 250)),
            float(np.clip(g * by + jitter[1], 8, 250)),
            float(np.clip(b * by + jitter[2], 8, 250)),
        )


# --- pixels ---------------------------------------------------------------------------------------


def _cast(
    image: np.ndarray, placed: list[_Placed], setting: Setting, camera: Camera, light: Light
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
    image: np.ndarray, placed: list[_Placed], camera: Camera, light: Light, rng: Rng
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
            things.append(Thing(id, group.label, group.color, group.crowd, full))
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
    image: np.ndarray, instances: np.ndarray, placed: list[_Placed], camera: Camera
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
    placed: list[_Placed],
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
