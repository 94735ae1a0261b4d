"""How pictures go into a network that somebody else trained.

Letters: B pictures, N boxes, h and w pixels of a picture, H and W pixels of the network's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field, PositiveFloat

from detmtl.data.fit import resize
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings

Resize = Literal["letterbox", "corner", "stretch"]

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class PixelValues(Settings):
    """What becomes of a pixel: (value x scale - mean) / std, in the order of the channels."""

    scale: PositiveFloat = 1 / 255
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1, 1, 1)


PIXELS = {
    "raw": PixelValues(scale=1),
    "unit": PixelValues(),
    "imagenet": PixelValues(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""Values by name: 0..255, 0..1, and torchvision's for ImageNet (in RGB)."""

Pixels = Literal["raw", "unit", "imagenet"] | PixelValues


class PictureSettings(Settings):
    """How a picture becomes the network's input; the base of all adapters."""

    resize: Resize = "letterbox"
    """letterbox: one scale, in the middle, the rest `pad`; corner: the same at the top left; stretch:
    each side to the network's."""
    color: Literal["rgb", "bgr"] = "rgb"
    """The order of the channels."""
    pixels: Pixels | None = None
    """raw (0..255), unit (0..1), imagenet, or {scale, mean, std}; None: what is usual in the family,
    and raw for a network that takes bytes."""
    pad: int = Field(default=114, ge=0, le=255)
    """The value around a picture that does not fill the input, before `pixels`."""
    antialias: bool = False
    """Whether scaling down averages (as Pillow does) or takes samples (as OpenCV does)."""


@dataclass(frozen=True)
class NetworkInput:
    """The one input of an ONNX network.

    Attributes:
        name: of the input.
        size: H, W.
        channels_last: whether it is (B, H, W, 3) instead of (B, 3, H, W).
        dtype: float32, float16 or uint8.
        batch: B where the network fixes it.
    """

    name: str
    size: tuple[int, int]
    channels_last: bool
    dtype: type[np.generic]
    batch: int | None


def network_input(session: Any, given: tuple[int, int] | None, file: Path) -> NetworkInput:
    """Returns what a network of onnxruntime takes.

    Args:
        session: of onnxruntime.
        given: H, W as the user says; needed where the network does not fix them.
        file: for errors.

    Raises:
        InputError: it takes no pictures, or its size is not known.
    """
    inputs = session.get_inputs()
    shape = inputs[0].shape
    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    first = (len(shape) == 4 and not last and shape[1] in (3, "3")) or _unnamed(shape)
    if len(inputs) != 1 or not (first or last) or inputs[0].type not in _TYPES:
        raise InputError(
            f"{file}: a teacher's network takes one input (batch, 3, height, width) or (batch, height, "
            f"width, 3) of float, float16 or uint8; this one takes "
            f"{[(i.name, i.shape, i.type) for i in inputs]}"
        )
    sides = shape[1:3] if last else shape[2:]
    fixed = [n for n in sides if isinstance(n, int)]
    if len(fixed) < 2 and given is None:
        raise InputError(
            f"{file}: its input has no fixed size {shape}; give teacher.size: [height, width]"
        )
    if given is not None and any(
        isinstance(n, int) and n != g for n, g in zip(sides, given, strict=True)
    ):
        raise InputError(f"{file}: teacher.size is {list(given)}, but its input is {shape}")
    batch = shape[0] if isinstance(shape[0], int) else None
    size = given or (fixed[0], fixed[1])
    return NetworkInput(inputs[0].name, size, last, _TYPES[inputs[0].type], batch)


def _unnamed(shape: Sequence[Any]) -> bool:
    """Returns whether nothing but the number of dimensions is fixed; then channels come first."""
    return len(shape) == 4 and not any(isinstance(n, int) for n in shape[1:])


class Preparation:
    """Brings pictures to the network's size, and boxes back to the pictures'.

    Args:
        into: what the network takes.
        settings: how a picture goes into it.
        usual: the family's pixel values.

    Raises:
        InputError: the network takes bytes, and `pixels` asks for something else.
    """

    def __init__(self, into: NetworkInput, settings: PictureSettings, usual: Pixels):
        self.size = into.size
        self._into, self._settings = into, settings
        raw = into.dtype == np.uint8
        pixels = settings.pixels or ("raw" if raw else usual)
        self.values = pixels if isinstance(pixels, PixelValues) else PIXELS[pixels]
        if raw and self.values != PIXELS["raw"]:
            raise InputError(
                "teacher.adapter.pixels: the network takes bytes (uint8), which are not scaled; set raw, "
                "or leave it out"
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns a picture (h, w, 3) uint8 RGB as the network wants it, without the batch."""
        top, left, height, width = self.frame(image.shape[0], image.shape[1])
        scaled = self._scaled(image, height, width)
        if scaled.shape[:2] != self.size:
            canvas = np.full((*self.size, 3), self._settings.pad, dtype=np.uint8)
            canvas[top : top + height, left : left + width] = scaled
            scaled = canvas
        if self._settings.color == "bgr":
            scaled = scaled[..., ::-1]
        if self._into.dtype != np.uint8:
            v = self.values
            scaled = scaled.astype(np.float32)
            if v != PIXELS["raw"]:
                mean, std = (np.array(row, dtype=np.float32) for row in (v.mean, v.std))
                scaled = (scaled * np.float32(v.scale) - mean) / std
        if not self._into.channels_last:
            scaled = scaled.transpose(2, 0, 1)
        return np.ascontiguousarray(scaled, dtype=self._into.dtype)

    def _scaled(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if self._settings.antialias:
            picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            return resize(picture, height, width).permute(1, 2, 0).numpy()
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def frame(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns where a picture of that size lies in the input: top, left, height, width."""
        if self._settings.resize == "stretch":
            return 0, 0, *self.size
        scale = min(self.size[0] / height, self.size[1] / width)
        h, w = (
            max(1, min(limit, int(side * scale + (self._settings.resize == "letterbox") / 2)))
            for side, limit in zip((height, width), self.size, strict=True)
        )
        if self._settings.resize == "corner":
            return 0, 0, h, w
        return (self.size[0] - h) // 2, (self.size[1] - w) // 2, h, w

    def in_pictures(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Returns boxes (B, N, 4) xyxy of the input in pixels of pictures of sizes (B, 2)."""
        frames = np.array([self.frame(int(h), int(w)) for h, w in sizes], dtype=np.float32)
        corner, sides = frames[:, 1::-1], frames[:, :1:-1]
        factor = sizes[:, ::-1].astype(np.float32) / sides
        return (boxes - np.tile(corner, 2)[:, None]) * np.tile(factor, 2)[:, None]
