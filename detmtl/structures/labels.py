"""Labels: truth, teacher's output and prediction are one type.

Letters: N boxes of one picture, C classes, B pictures of a batch, M the most boxes of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor


class Grade(IntEnum):
    """Who wrote a label."""

    GOLD = 0
    """A person."""
    SILVER = 1
    """A pretrained model."""


class Ignore(IntEnum):
    """Which losses a box takes away instead of giving one."""

    NO = 0
    """An ordinary box: positive anchors, class and box loss."""
    CLASS = 1
    """Perhaps an object of its class (silver in the ignore band): anchors on it, by IoU, have no
    loss of that class, unless they are positive for another box; other classes are untouched."""
    REGION = 2
    """A crowd or a difficult object: anchors inside it, by intersection over anchor area, have no
    class loss at all, unless they are positive for another box."""


@dataclass(frozen=True, eq=False)
class BoxLabels:
    """The boxes of one picture, as truth, as prediction or as what a teacher wrote.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels of the current picture.
        classes: (N,) int64 in 0..C-1.
        scores: (N,) float32 in [0, 1]; 1 for gold, calibrated probability for silver, confidence
            for predictions. The target of the class loss.
        weights: (N, 2) float32 >= 0, for class loss and box loss.
        ignore: (N,) uint8, an `Ignore`.
        grade: (N,) uint8, a `Grade`.
        coverage: (C,) float32 in [0, 1]: how far absence of a box of that class means that nothing is
            there. 1: somebody looked everywhere; 0: nobody looked; between: a teacher of that recall.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    weights: Tensor
    ignore: Tensor
    grade: Tensor
    coverage: Tensor

    @classmethod
    def of(
        cls,
        boxes: Tensor,
        classes: Tensor,
        num_classes: int,
        scores: Tensor | None = None,
        weights: Tensor | None = None,
        ignore: Tensor | None = None,
        grade: Grade | Tensor = Grade.GOLD,
        coverage: Tensor | None = None,
    ) -> "BoxLabels":
        """Builds labels from boxes (N, 4) and classes (N,); the rest defaults to plain gold:
        scores and weights 1, nothing ignored, every class covered."""
        n, device = len(boxes), boxes.device
        if not isinstance(grade, Tensor):
            grade = torch.full((n,), int(grade), dtype=torch.uint8, device=device)
        return cls(
            boxes=boxes.reshape(n, 4).float(),
            classes=classes.long(),
            scores=torch.ones(n, device=device) if scores is None else scores.float(),
            weights=torch.ones(n, 2, device=device) if weights is None else weights.float(),
            ignore=torch.zeros(n, dtype=torch.uint8, device=device)
            if ignore is None
            else ignore.to(torch.uint8),
            grade=grade.to(torch.uint8),
            coverage=torch.ones(num_classes, device=device)
            if coverage is None
            else coverage.float(),
        )

    @classmethod
    def empty(cls, num_classes: int, coverage: Tensor | None = None) -> "BoxLabels":
        """Returns labels of a picture in which nothing was found."""
        return cls.of(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), num_classes, coverage=coverage
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, keep: Tensor) -> "BoxLabels":
        """Returns the boxes at `keep`, a bool mask (N,) or indices; coverage is the picture's and stays."""
        per_box = {
            f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "coverage"
        }
        return replace(self, **per_box)

    def with_boxes(self, boxes: Tensor) -> "BoxLabels":
        """Returns the same labels at other boxes (N, 4)."""
        return replace(self, boxes=boxes)


OTHER = 254
"""In a map: none of the covered classes."""
UNKNOWN = 255
"""In a map: nobody knows."""


@dataclass(frozen=True, eq=False)
class MapLabels:
    """A class for each pixel of one picture.

    Attributes:
        classes: (H, W) uint8 in 0..C-1, `OTHER` or `UNKNOWN`.
        weights: (H, W) float32 >= 0, a teacher's confidence; None: 1 everywhere.
        coverage: (C,) float32 in [0, 1], see `BoxLabels`.
        grade: a `Grade`.
    """

    classes: Tensor
    weights: Tensor | None
    coverage: Tensor
    grade: int = int(Grade.GOLD)


Labels = BoxLabels | MapLabels
"""What a task's labels of one picture may be; later tasks join the union here."""


@dataclass(frozen=True, eq=False)
class PaddedBoxes:
    """`BoxLabels` of B pictures in tensors of one shape.

    Attributes:
        boxes (B, M, 4), classes (B, M) int64, scores (B, M), weights (B, M, 2), ignore (B, M) uint8,
            grade (B, M) uint8: as in `BoxLabels`; zeros where not `valid`.
        valid: (B, M) bool, which rows are boxes.
        coverage: (B, C); zeros where not `present`.
        present: (B,) bool, which pictures have labels for the task at all. Not present means that
            nobody looked: no loss, no part in any normalizer.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    weights: Tensor
    ignore: Tensor
    grade: Tensor
    valid: Tensor
    coverage: Tensor
    present: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PaddedBoxes":
        """Returns a copy on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
        }
        return replace(self, **moved)

    def pin_memory(self) -> "PaddedBoxes":
        """Returns a copy in page-locked memory, for copies to a GPU that overlap with its work."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


def pad_boxes(labels: Sequence[BoxLabels | None]) -> PaddedBoxes:
    """Pads the labels of B pictures, at least one of them not None, to the largest count M >= 1.

    None stands for a picture that has no labels for the task.
    """
    known = [x for x in labels if x is not None]
    most = max(1, max(len(x) for x in known))
    num_pictures, num_classes = len(labels), len(known[0].coverage)
    out = PaddedBoxes(
        boxes=torch.zeros(num_pictures, most, 4),
        classes=torch.zeros(num_pictures, most, dtype=torch.long),
        scores=torch.zeros(num_pictures, most),
        weights=torch.zeros(num_pictures, most, 2),
        ignore=torch.zeros(num_pictures, most, dtype=torch.uint8),
        grade=torch.zeros(num_pictures, most, dtype=torch.uint8),
        valid=torch.zeros(num_pictures, most, dtype=torch.bool),
        coverage=torch.zeros(num_pictures, num_classes),
        present=torch.tensor([x is not None for x in labels]),
    )
    for i, x in enumerate(labels):
        if x is None:
            continue
        for name in ("boxes", "classes", "scores", "weights", "ignore", "grade"):
            getattr(out, name)[i, : len(x)] = getattr(x, name)
        out.valid[i, : len(x)] = True
        out.coverage[i] = x.coverage
    return out
