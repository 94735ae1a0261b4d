"""Outputs of segmenters.

Letters: B pictures, S places for classes (see slots.py), h and w pixels of the output.
"""

from typing import Literal

import numpy as np

from detmtl.structures.errors import InputError
from detmtl.teachers.onnx_outputs import Shape, matches, sigmoid, softmax


class MapFormat:
    """Class ids (B, h, w), (B, 1, h, w) or (B, h, w, 1), or scores (B, S, h, w) or (B, h, w, S).

    Of several classes, ids may be floats that are whole, as converted networks write them. Of a single one
    they are integers, and floats are scores: those of a picture without the class may be 0 throughout.

    Args:
        output: its name.
        num_slots: S.
        activation: what makes probabilities of scores.
        channels_last: where S stands; None: told by the shape.
        adds_rest: whether probabilities are of each class by itself, and what no class has is none of
            them: one place more in what `decode` returns.

    Attributes:
        outputs: names of the outputs that are read.
        needs: in words, the output that is expected, for errors.
    """

    def __init__(
        self,
        output: str,
        num_slots: int,
        activation: Literal["softmax", "sigmoid", "none"],
        channels_last: bool | None,
        adds_rest: bool,
    ):
        self.outputs, self.adds_rest = (output,), adds_rest
        self._num_slots, self._activation, self._last = num_slots, activation, channels_last
        self.needs = (
            f"class ids (batch, h, w), (batch, 1, h, w) or (batch, h, w, 1), or scores "
            f"(batch, {num_slots}, h, w) or (batch, h, w, {num_slots})"
        )

    def accepts(self, *shapes: Shape) -> bool:
        """Returns whether an output of this shape is one of these, as far as it is fixed."""
        return any(
            matches(shapes[0], wanted)
            for wanted in (
                (None, None),
                (1, None, None),
                (None, None, 1),
                (self._num_slots, None, None),
                (None, None, self._num_slots),
            )
        )

    def decode(self, output: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns class ids (B, h, w) int64 and True, or probabilities (B, S or S + 1, h, w) and
        False.

        Raises:
            InputError: it is neither, or a softmax of one class is wanted.
        """
        whole = output.dtype.kind in "iu" or (self._num_slots > 1 and _whole(output))
        if output.ndim == 4 and 1 in (output.shape[1], output.shape[3]) and whole:
            output = output.squeeze(1 if output.shape[1] == 1 else 3)
        if output.ndim == 3 and whole:
            return output.astype(np.int64), True
        if output.ndim == 3 and self._num_slots == 1:
            output = output[:, None]
        if output.ndim == 3 or self._num_slots not in (output.shape[1], output.shape[3]):
            raise InputError(
                f"teacher.adapter.output: {output.shape} of {output.dtype} is neither class ids nor "
                f"scores of each class, of which teacher.classes names {self._num_slots}"
            )
        if self._scores_last(output.shape):
            output = output.transpose(0, 3, 1, 2)
        output = output.astype(np.float32)
        if self._activation == "softmax":
            if self._num_slots == 1:
                raise InputError(
                    "teacher.adapter.scores: is softmax, which makes 1 of the score of a single class "
                    "everywhere; set sigmoid, or none where the network gives probabilities"
                )
            output = softmax(output, axis=1)
        elif self._activation == "sigmoid":
            output = sigmoid(output)
        if self.adds_rest:
            output = np.concatenate([output, 1 - output.max(axis=1, keepdims=True)], axis=1)
        return output, False

    def _scores_last(self, shape: tuple[int, ...]) -> bool:
        if self._last is not None:
            return self._last
        first, last = shape[1] == self._num_slots, shape[3] == self._num_slots
        if first and last:
            raise InputError(
                f"teacher.adapter.channels: the output {shape} does not tell where the classes are; set "
                "first or last"
            )
        return last


def _whole(output: np.ndarray) -> bool:
    """Returns whether all numbers (floats) are whole."""
    return bool((output == np.rint(output)).all())
