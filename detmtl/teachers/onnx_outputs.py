"""What the outputs of known families of detectors mean.

Letters: B pictures, N candidate boxes, S places for classes (see slots.py), H and W pixels of the
network's input.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from detmtl.structures.errors import InputError

Shape = Sequence[int | str | None]
"""Of an output; what is not fixed is a name or None."""


class Format(ABC):
    """What comes out of a detector.

    Attributes:
        outputs: names of the outputs that are read.
        needs: in words, the output that is expected, for errors.
    """

    outputs: tuple[str, ...]
    needs: str

    @abstractmethod
    def accepts(self, *shapes: Shape) -> bool:
        """Returns whether outputs of these shapes are this format's, as far as they are fixed."""

    @abstractmethod
    def decode(self, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes (B, N, 4) xyxy in pixels of the input, and scores (B, N, S)."""


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (np.tanh(0.5 * x) + 1)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Returns exp(x) as shares of their sum along an axis."""
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def matches(shape: Shape, wanted: Shape) -> bool:
    """Returns whether a shape (B, ...) may be `wanted`, given without B; None fits everything."""
    return len(shape) == len(wanted) + 1 and all(
        not isinstance(n, int) or w is None or n == w
        for n, w in zip(shape[1:], wanted, strict=True)
    )


def the_first(shapes: Mapping[str, Shape], name: str | None, setting: str) -> tuple[str, ...]:
    """Returns the name of the output that is read: the one named, or the first.

    Raises:
        InputError: there is none of that name.
    """
    if name is not None and name not in shapes:
        raise InputError(
            f"{setting}: the network has no output '{name}'; it has {', '.join(shapes)}"
        )
    return (name or next(iter(shapes)),)


class Yolox(Format):
    """YOLOX without its decoding in the graph: offsets to the cells of three grids.

    Source: Ge et al. 2021, arXiv 2107.08430; Megvii-BaseDetection/YOLOX, demo/ONNXRuntime.

    Args:
        outputs: name of the output.
        size: H, W.
        strides: of the grids, in the order of the output's rows.
        num_slots: S.
    """

    def __init__(
        self,
        outputs: tuple[str, ...],
        size: tuple[int, int],
        strides: tuple[int, ...],
        num_slots: int,
    ):
        self.outputs = outputs
        cells, steps = [], []
        for stride in strides:
            y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
            cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
            steps.append(np.full((x.size, 1), stride))
        self._cells = np.concatenate(cells).astype(np.float32)
        self._steps = np.concatenate(steps).astype(np.float32)
        self._shape = (len(self._cells), 5 + num_slots)
        self.needs = f"(batch, {self._shape[0]}, {self._shape[1]})"

    def accepts(self, *shapes: Shape) -> bool:
        return matches(shapes[0], self._shape)

    def decode(self, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = outputs[0]
        centers = (output[..., :2] + self._cells) * self._steps
        half = np.exp(np.minimum(output[..., 2:4], 20)) * self._steps / 2
        boxes = np.concatenate([centers - half, centers + half], axis=-1)
        return boxes, output[..., 4:5] * output[..., 5:]


class FastestDet(Format):
    """FastestDet: one grid of cells.

    Source: dog-qiuqiu/FastestDet, example/onnx-runtime.

    Args:
        outputs: name of the output.
        size: H, W.
        stride: of the grid.
        num_slots: S.
    """

    def __init__(
        self, outputs: tuple[str, ...], size: tuple[int, int], stride: int, num_slots: int
    ):
        self.outputs = outputs
        self._shape = (5 + num_slots, size[0] // stride, size[1] // stride)
        self._cells = np.mgrid[: self._shape[1], : self._shape[2]][::-1].astype(np.float32)
        self._grid = np.array([self._shape[2], self._shape[1]], dtype=np.float32)[:, None, None]
        self._sides = np.tile(np.array(size[::-1], dtype=np.float32), 2)
        self.needs = f"(batch, {self._shape[0]}, {self._shape[1]}, {self._shape[2]})"

    def accepts(self, *shapes: Shape) -> bool:
        return matches(shapes[0], self._shape)

    def decode(self, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = outputs[0]
        centers = (np.tanh(output[:, 1:3]) + self._cells) / self._grid
        half = sigmoid(output[:, 3:5]) / 2
        boxes = np.concatenate([centers - half, centers + half], axis=1)
        scores = output[:, :1].clip(0) ** 0.6 * output[:, 5:].clip(0) ** 0.4
        num_cells = self._shape[1] * self._shape[2]
        boxes = boxes.reshape(-1, 4, num_cells).transpose(0, 2, 1)
        scores = scores.reshape(len(output), -1, num_cells).transpose(0, 2, 1)
        return boxes * self._sides, scores
