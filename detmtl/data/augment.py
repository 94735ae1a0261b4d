"""Random changes of pictures and labels, named in YAML: the only file that knows albumentations."""

from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from detmtl.data.fit import InputSettings
from detmtl.structures.labels import Labels
from detmtl.structures.settings import Settings


class AugmentSettings(Settings):
    """What is done to a training picture, in order, and which boxes outlive it."""

    steps: list[dict[str, dict[str, Any] | None]] = [{"HorizontalFlip": {"p": 0.5}}]
    """Each a transform of albumentations and its arguments: `- HorizontalFlip: {p: 0.5}`. Nested:
    `- OneOf: {p: 0.5, transforms: [{Blur: {}}, {GaussNoise: {}}]}`."""
    min_visibility: float = Field(0.1, ge=0, le=1)
    min_side: float = Field(1.0, ge=0)

    def build(self, size: InputSettings) -> "Augment":
        """Returns the augmentation for pictures of `size`.

        Raises:
            InputError: an unknown step or arguments that albumentations refuses.
        """
        return Augment(self.steps, size.short, size.long, self.min_visibility, self.min_side)


class Augment:
    """Fits a picture, changes it at random and keeps its labels right."""

    def __init__(
        self,
        steps: list[dict[str, dict[str, Any] | None]],
        short: int,
        long: int,
        min_visibility: float = 0.1,
        min_side: float = 1.0,
    ):
        raise NotImplementedError

    def __call__(
        self, image: np.ndarray, labels: dict[str, Labels], seed: int
    ) -> tuple[Tensor, dict[str, Labels]]:
        """Returns image (3, h, w) uint8 and labels in its pixels, from image (H, W, 3) uint8 RGB.

        The result is a pure function of the three arguments.
        """
        raise NotImplementedError
