"""Outputs of detectors that a user declares: one tensor (YOLO-style) or two (DETR-style).

Letters: B pictures, N candidate boxes, F numbers of a candidate, S places for classes (see slots.py),
H and W pixels of the network's input.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from detmtl.structures.errors import InputError
from detmtl.teachers.onnx_outputs import Format, Shape, matches, sigmoid, softmax

BoxCode = Literal["cxcywh", "xywh", "xyxy"]
Unit = Literal["pixels", "fractions"]


class BoxReader:
    """Boxes as a network writes them.

    Args:
        code: center and size, left top and size, or two corners.
        unit: pixels of the input, or fractions of its sides.
        size: H, W.
    """

    def __init__(self, code: BoxCode, unit: Unit, size: tuple[int, int]):
        self._code = code
        self._sides = np.array([*size[::-1], *size[::-1]], np.float32) if unit == "fractions" else 1

    def __call__(self, boxes: np.ndarray) -> np.ndarray:
        """Returns boxes (B, N, 4) as xyxy in pixels of the input."""
        first, second = boxes[..., :2], boxes[..., 2:]
        if self._code == "cxcywh":
            first, second = first - second / 2, first + second / 2
        elif self._code == "xywh":
            second = first + second
        return np.concatenate([first, second], axis=-1) * self._sides


class Yolo(Format):
    """One tensor (B, N, F) or (B, F, N) of box, perhaps objectness, and scores, as YOLOv5 to v11
    export it; or (B, N, 6) of box, score and class, already suppressed, as YOLOv10 does.

    Args:
        outputs: name of the output.
        boxes: how boxes are written.
        num_slots: S.
        objectness: whether a candidate's scores are to be multiplied by its fifth number.
        through_sigmoid: whether scores (and objectness) are logits.
        suppressed: whether rows are box, score and class.
        columns: whether candidates are columns, (B, F, N); None: told by the shape.
    """

    def __init__(
        self,
        outputs: tuple[str, ...],
        boxes: BoxReader,
        num_slots: int,
        objectness: bool,
        through_sigmoid: bool,
        suppressed: bool,
        columns: bool | None,
    ):
        self.outputs = outputs
        self._boxes, self._num_slots = boxes, num_slots
        self._objectness, self._sigmoid = objectness, through_sigmoid
        self._suppressed, self._columns = suppressed, columns
        self._numbers = 6 if suppressed else 4 + objectness + num_slots
        rows, cols = f"(batch, N, {self._numbers})", f"(batch, {self._numbers}, N)"
        self.needs = {None: f"{rows} or {cols}", False: rows, True: cols}[columns]

    def accepts(self, *shapes: Shape) -> bool:
        rows = matches(shapes[0], (None, self._numbers))
        columns = matches(shapes[0], (self._numbers, None))
        return {None: rows or columns, False: rows, True: columns}[self._columns]

    def decode(self, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = outputs[0]
        columns = self._columns
        if columns is None:
            columns = output.shape[2] != self._numbers
            if output.shape[1] == output.shape[2]:
                raise InputError(
                    f"teacher.adapter.layout: the output {output.shape} does not tell rows from columns; "
                    "set rows or columns"
                )
        if columns:
            output = output.transpose(0, 2, 1)
        boxes, scores = self._boxes(output[..., :4]), output[..., 4:]
        if self._suppressed:
            return boxes, self._of_class(scores)
        if self._sigmoid:
            scores = sigmoid(scores)
        if self._objectness:
            scores = scores[..., :1] * scores[..., 1:]
        return boxes, scores

    def _of_class(self, rows: np.ndarray) -> np.ndarray:
        """Returns score and class (B, N, 2) as scores (B, N, S)."""
        score, place = rows[..., :1], np.rint(rows[..., 1:]).astype(np.int64)
        wrong = ((place < 0) | (place >= self._num_slots)) & (score > 0)
        if wrong.any():
            raise InputError(
                f"teacher.classes: the network gave the class {int(place[wrong][0])}, but "
                f"{self._num_slots} are named"
            )
        return np.where(np.arange(self._num_slots) == place, score, 0)


class Detr(Format):
    """Two tensors, scores (B, N, S) or (B, N, S + 1) and boxes (B, N, 4), as DETR's family has them.

    Source: Carion et al. 2020, arXiv 2005.12872.

    Args:
        outputs: names of scores and boxes.
        boxes: how boxes are written.
        num_slots: S.
        activation: what makes scores of the first tensor.
        background: where a place beside the S stands that means no object.
    """

    def __init__(
        self,
        outputs: tuple[str, ...],
        boxes: BoxReader,
        num_slots: int,
        activation: Literal["softmax", "sigmoid", "none"],
        background: Literal["first", "last", "none"],
    ):
        self.outputs = outputs
        self._boxes, self._activation, self._background = boxes, activation, background
        self._width = num_slots + (background != "none")
        self.needs = f"scores (batch, N, {self._width}) and boxes (batch, N, 4)"

    def accepts(self, *shapes: Shape) -> bool:
        return matches(shapes[0], (None, self._width)) and matches(shapes[1], (None, 4))

    def decode(self, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = outputs[0]
        if self._activation == "softmax":
            scores = softmax(scores, axis=-1)
        elif self._activation == "sigmoid":
            scores = sigmoid(scores)
        if self._background == "first":
            scores = scores[..., 1:]
        elif self._background == "last":
            scores = scores[..., :-1]
        return self._boxes(outputs[1]), scores


def scores_and_boxes(
    shapes: Mapping[str, Shape], scores: str | None, boxes: str | None, width: int
) -> tuple[str, str]:
    """Returns the names of the outputs with scores (B, N, `width`) and boxes (B, N, 4).

    Args:
        shapes: of all outputs.
        scores, boxes: their names as the user says; None: told by the shapes.
        width: scores of a candidate.

    Raises:
        InputError: a name is unknown, or the shapes do not tell.
    """
    found = []
    for setting, name, wanted in (("scores_output", scores, width), ("boxes_output", boxes, 4)):
        fits = [n for n, shape in shapes.items() if matches(shape, (None, wanted))]
        if name is None and len(fits) == 1:
            name = fits[0]
        if name not in shapes:
            about = ", ".join(f"{n} {list(shape)}" for n, shape in shapes.items())
            which = f"there is no output '{name}'" if name else f"{len(fits)} outputs may be meant"
            raise InputError(
                f"teacher.adapter.{setting}: {which}, of the shape (batch, N, {wanted}); the network has "
                f"{about}; name one, or correct teacher.classes and teacher.adapter"
            )
        found.append(name)
    return found[0], found[1]
