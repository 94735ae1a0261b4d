"""How pictures go into a network of a known family, and what its outputs mean.

Letters: B pictures, N candidate boxes, K classes, H and W pixels of the network's input.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, PositiveInt

from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings


class Format(ABC):
    """What goes into a network and what comes out.

    Attributes:
        needs: in words, the output that is expected, for errors.
    """

    needs: str

    @abstractmethod
    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Returns a picture (h, w, 3) uint8 RGB as the network's input (3, H, W) float32."""

    @abstractmethod
    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an output of this shape is one of this family's."""

    @abstractmethod
    def decode(self, output: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes (B, N, 4) xyxy in pixels of the pictures, and scores (B, N, K).

        Args:
            output: the network's.
            sizes: (B, 2), height and width of each picture.
        """


class Yolox(Format):
    """YOLOX without its decoding in the graph: offsets to the cells of three grids.

    Source: Ge et al. 2021, arXiv 2107.08430; Megvii-BaseDetection/YOLOX, demo/ONNXRuntime.

    Args:
        size: H, W.
        strides: of the grids, in the order of the output's rows.
        num_classes: K.
    """

    def __init__(self, size: tuple[int, int], strides: tuple[int, ...], num_classes: int):
        self._size = size
        cells, steps = [], []
        for stride in strides:
            y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
            cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
            steps.append(np.full((x.size, 1), stride))
        self._cells = np.concatenate(cells).astype(np.float32)
        self._steps = np.concatenate(steps).astype(np.float32)
        self._shape = (len(self._cells), 5 + num_classes)
        self.needs = f"(batch, {self._shape[0]}, {self._shape[1]})"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Scales by one factor, into the top left corner; the rest is 114; BGR, 0..255."""
        scale = float(self._scales(np.array([image.shape[:2]]))[0])
        height, width = (max(1, int(n * scale)) for n in image.shape[:2])
        canvas = np.full((*self._size, 3), 114, dtype=np.uint8)
        canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return canvas[..., ::-1].transpose(2, 0, 1).astype(np.float32)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return shape[1:] == self._shape

    def decode(self, output: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centers = (output[..., :2] + self._cells) * self._steps
        half = np.exp(np.minimum(output[..., 2:4], 20)) * self._steps / 2
        boxes = np.concatenate([centers - half, centers + half], axis=-1)
        scales = self._scales(sizes)[:, None, None]
        return boxes / scales, output[..., 4:5] * output[..., 5:]

    def _scales(self, sizes: np.ndarray) -> np.ndarray:
        return (np.asarray(self._size) / sizes).min(axis=1).astype(np.float32)


class FastestDet(Format):
    """FastestDet: one grid of cells.

    Source: dog-qiuqiu/FastestDet, example/onnx-runtime.

    Args:
        size: H, W.
        stride: of the grid.
        num_classes: K.
    """

    def __init__(self, size: tuple[int, int], stride: int, num_classes: int):
        self._size = size
        self._shape = (5 + num_classes, size[0] // stride, size[1] // stride)
        self._cells = np.mgrid[: self._shape[1], : self._shape[2]][::-1].astype(np.float32)
        self._grid = np.array([self._shape[2], self._shape[1]], dtype=np.float32)[:, None, None]
        self.needs = f"(batch, {self._shape[0]}, {self._shape[1]}, {self._shape[2]})"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Scales both sides to the network's; BGR, 0..1."""
        height, width = self._size
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return scaled[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return shape[1:] == self._shape

    def decode(self, output: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centers = (self._cells + np.tanh(output[:, 1:3])) / self._grid
        half = 1 / (1 + np.exp(-output[:, 3:5])) / 2
        boxes = np.concatenate([centers - half, centers + half], axis=1)
        scores = output[:, :1].clip(0) ** 0.6 * output[:, 5:].clip(0) ** 0.4
        num_cells = self._shape[1] * self._shape[2]
        boxes = boxes.reshape(-1, 4, num_cells).transpose(0, 2, 1)
        scores = scores.reshape(len(output), -1, num_cells).transpose(0, 2, 1)
        sides = np.tile(sizes[:, ::-1], 2).astype(np.float32)[:, None, :]
        return boxes * sides, scores


class AdapterSettings(Settings):
    """The base of the families; a family adds `kind`, and builds its `Format`."""

    nms: float = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays."""
    best_class: bool = True
    """Whether a candidate box has only its best class, or every class that reaches the floor."""
    max_boxes: PositiveInt = 300
    """The most boxes of a picture."""

    words: ClassVar[str]
    """How pictures go in, for the teacher's card."""

    def build(self, size: tuple[int, int], num_classes: int) -> Format:
        """Returns the format of a network of input size (H, W) and K classes."""
        raise NotImplementedError


class YoloxAdapter(AdapterSettings):
    """YOLOX without its decoding in the graph."""

    kind: Literal["yolox"] = "yolox"
    strides: tuple[PositiveInt, ...] = (8, 16, 32)
    words: ClassVar[str] = "bgr 0..255, one scale, top left, padded with 114"

    def build(self, size: tuple[int, int], num_classes: int) -> Format:
        _require_multiple(size, max(self.strides), "yolox")
        return Yolox(size, self.strides, num_classes)


class FastestDetAdapter(AdapterSettings):
    """FastestDet."""

    kind: Literal["fastestdet"] = "fastestdet"
    nms: float = Field(default=0.45, gt=0, le=1)
    stride: PositiveInt = 16
    words: ClassVar[str] = "bgr 0..1, both sides scaled"

    def build(self, size: tuple[int, int], num_classes: int) -> Format:
        _require_multiple(size, self.stride, "fastestdet")
        return FastestDet(size, self.stride, num_classes)


AnyAdapter = Annotated[YoloxAdapter | FastestDetAdapter, Field(discriminator="kind")]


def _require_multiple(size: tuple[int, int], stride: int, kind: str) -> None:
    if size[0] % stride or size[1] % stride:
        raise InputError(
            f"teacher.adapter: {kind} needs an input whose sides are multiples of the stride {stride}, "
            f"the network's is {size[0]} x {size[1]}"
        )
