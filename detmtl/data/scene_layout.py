"""What stands where in a picture of the built-in scenes, when, and seen from where."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import cos, hypot, pi, sin

import numpy as np

from detmtl.data.scene_backdrop import (
    FAR,
    Setting,
)
from detmtl.data.scene_clutter import CLUTTER
from detmtl.data.scene_mesh import Camera, Measures, Mesh, Posed
from detmtl.data.scene_objects import BUILDERS, SCENE_CLASSES, held_umbrella, person
from detmtl.data.scene_paint import COLORS, Color, Rng

Builder = Callable[[Rng, Color], Mesh]
TAGS = (
    "street", "park", "plaza", "waterfront", "hall",
    "day", "dusk", "night",
    "clear", "overcast", "rain", "fog", "snow",
    "crowd", "empty",
)  # fmt: skip

_LIKELY: dict[str, dict[str, float]] = {
    "street": {"car": 5, "van": 3.5, "bus": 3.5, "truck": 3.5, "person": 4, "bicycle": 2.5, "motorcycle": 2.5,
               "dog": 1.2, "tree": 2, "lamp": 2, "bench": 0.7, "umbrella": 0.6, "house": 2.5, "horse": 0.4},
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


@dataclass
class Placed:
    """What is drawn under one id: one model, or the models of a group, farthest first."""

    models: list[Posed]
    depth: float
    x: float
    radius: float
    label: int = -1  # no class
    color: str = ""
    crowd: bool = False


def draw_setting(domain: Domain, rng: Rng) -> Setting:
    """Returns a place, a time and a weather that are common in a domain."""
    home = domain is Domain.HOME
    place = str(rng.choice(list(_LIKELY), p=[0.42, 0.2, 0.17, 0.14, 0.07]))
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


def draw_camera(domain: Domain, setting: Setting, height: int, width: int, rng: Rng) -> Camera:
    """Returns a camera as they are in a domain."""
    home = domain is Domain.HOME
    focal = width * (rng.uniform(0.95, 1.25) if home else rng.uniform(0.75, 1.05))
    horizon = height * (rng.uniform(0.32, 0.5) if home else rng.uniform(0.2, 0.4))
    above = rng.uniform(1.4, 2.2) if home else rng.uniform(2.0, 3.4)
    return Camera(focal, width * rng.uniform(0.45, 0.55), horizon, above)


def populate(setting: Setting, camera: Camera, height: int, width: int, rng: Rng) -> list[Placed]:
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
        self.placed: list[Placed] = []
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
        for _ in range(9):
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
        self, name: str, builder: Builder, last: Placed, lift: float, shift: float
    ) -> None:
        color = _ALL[int(self.rng.integers(len(_ALL)))]
        mesh = builder(self.rng, self._tone(name, color))
        yaw = last.models[0].yaw
        posed = Posed(mesh, last.x + shift * cos(yaw), last.depth - 0.04, yaw, lift)
        if posed.in_front():
            label = SCENE_CLASSES.index(name)
            self.placed.append(Placed([posed], posed.depth, last.x, 0.1, label, color))

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
        self.placed.append(Placed(models, depth, x, wide + 0.4, label, "", crowd=True))

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
        self.placed.append(Placed([posed], depth, x, radius, label, color))
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
