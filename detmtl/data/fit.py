"""The one way in which a picture is brought to the network's size.

Training, evaluation and the exported model all call `fit`, so that they see the same pixels. All
functions compile under TorchScript. Letters: H, W pixels before, h, w pixels after, N boxes.
"""

from typing import Tuple  # noqa: UP035 (TorchScript reads typing's generics on every version)

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from detmtl.structures.settings import Settings


class InputSettings(Settings):
    """The size of the network's picture.

    A picture is scaled, up or down and keeping its ratio, until its shorter side is `short` or its
    longer side is `long`, whichever comes first. Padding, at the right and the bottom, comes later.
    """

    short: int = Field(default=480, ge=32, le=8192)
    """Pixels of the shorter side, at most."""
    long: int = Field(default=640, ge=32, le=8192)
    """Pixels of the longer side, at most."""

    @model_validator(mode="after")
    def _ordered(self) -> "InputSettings":
        if self.long < self.short:
            raise ValueError(
                f"long is {self.long}, less than short, {self.short}; long must be at least short"
            )
        return self


def fit_size(height: int, width: int, short: int, long: int) -> Tuple[int, int]:  # noqa: UP006
    """Returns the size (h, w) to which `fit` brings a picture of height x width pixels.

    In whole numbers, rounding halves up, so that every language and machine finds the same. Unlike
    torchvision's GeneralizedRCNNTransform, which rounds down in floating point, the side that decides
    comes out exactly as asked.
    """
    smaller, larger = min(height, width), max(height, width)
    wanted, given = short, smaller
    if short * larger > long * smaller:
        wanted, given = long, larger
    h = (2 * height * wanted + given) // (2 * given)
    w = (2 * width * wanted + given) // (2 * given)
    return max(h, 1), max(w, 1)


def fit(image: Tensor, short: int, long: int) -> Tensor:
    """Returns image (3, H, W) uint8 scaled to `fit_size`, (3, h, w) uint8.

    Bilinear with antialiasing. A picture that has the size already is returned as it is. On a GPU,
    which has no kernel for uint8, the arithmetic is in float32 and may differ by one level.
    """
    height, width = fit_size(image.shape[1], image.shape[2], short, long)
    return resize(image, height, width)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Returns image (3, H, W) uint8 scaled to (3, height, width) uint8, as `fit` does."""
    if image.shape[1] == height and image.shape[2] == width:
        return image
    # this way round the strides of a picture decoded as (H, W, 3) are known as channels last: faster
    batch = image.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    if not image.is_cuda:
        return F.interpolate(batch, size=[height, width], mode="bilinear", antialias=True)[0]
    scaled = F.interpolate(batch.float(), size=[height, width], mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def scale_boxes(
    boxes: Tensor,
    before: Tuple[int, int],  # noqa: UP006
    after: Tuple[int, int],  # noqa: UP006
) -> Tensor:
    """Returns boxes (N, 4) xyxy of a picture of size `before` (height, width) at size `after`.

    Height and width are scaled each by its own factor: rounding makes them differ slightly.
    """
    y = after[0] / before[0]
    x = after[1] / before[1]
    return boxes * torch.tensor([x, y, x, y], dtype=boxes.dtype, device=boxes.device)
