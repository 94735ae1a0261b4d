"""What stands where in a picture of the built-in scenes."""

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

from detmtl.data.scene_objects import COLORS, SCENE_CLASSES

TAGS = (
    "street", "park", "plaza", "waterfront", "hall",
    "day", "dusk", "night",
    "clear", "overcast", "rain", "fog", "snow",
    "crowd", "empty",
)  # fmt: skip


class Domain(Enum):
    """Where and when pictures are taken."""

    HOME = "home"
    AWAY = "away"


@dataclass(frozen=True)
class Thing:
    """An object in a picture: its id in the instance map, class index, color name, whether it is a
    dense group, and the pixels that its silhouette would have without occluders and frame."""

    id: int
    label: int
    color: str
    crowd: bool
    silhouette: float


@dataclass(frozen=True)
class Scene:
    """A picture with its truth: image (H, W, 3) uint8 RGB, instances (H, W) uint8 (0: no object),
    depth (H, W) uint16 millimeters, things, tags, JPEG quality."""

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


def draw_scene(domain: Domain, height: int, width: int, rng: np.random.Generator) -> Scene:
    """Draws one picture."""
    image = np.full((height, width, 3), 128, np.uint8)
    instances = np.zeros((height, width), np.uint8)
    things = []
    for k in range(int(rng.integers(0, 8))):
        label = int(rng.integers(len(SCENE_CLASSES)))
        color = list(COLORS)[int(rng.integers(len(COLORS)))]
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(6, 40)), int(rng.integers(6, 40)))
        cv2.ellipse(image, center, axes, 0, 0, 360, COLORS[color], -1)
        cv2.ellipse(instances, center, axes, 0, 0, 360, k + 1, -1)
        things.append(Thing(k + 1, label, color, k == 7, np.pi * axes[0] * axes[1]))
    depth = np.full((height, width), 65535, np.uint16)
    return Scene(image, instances, depth, things, ["street"], 85)
