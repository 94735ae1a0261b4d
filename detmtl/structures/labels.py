"""Labels: truth, teacher's output and prediction are one type.

Letters: N boxes of one picture, C classes, T tags, H and W pixels, B pictures of a batch, M the most
boxes of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.structures.depth import DepthLabels, PaddedDepth, pad_depth
from detmtl.structures.details import Details, PaddedDetails, pad_details
from detmtl.structures.tensors import Tensors

OTHER = 254
"""Of a pixel: none of the classes that its map covers; it may be any of the others."""
UNKNOWN = 255
"""Of a pixel: nobody looked, or nobody could tell."""


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
class BoxLabels(Tensors):
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
        details: attributes, masks and keypoints of the N boxes; None: nobody looked for any.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    weights: Tensor
    ignore: Tensor
    grade: Tensor
    coverage: Tensor
    details: Details | None = None

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
        return self.boxes.shape[0]  # len() of a tensor takes several times as long

    def __getitem__(self, keep: Tensor) -> "BoxLabels":
        """Returns the boxes at `keep`, a bool mask (N,) or indices; coverage is the picture's and stays."""
        per_box = {
            f.name: getattr(self, f.name)[keep]
            for f in fields(self)
            if f.name != "coverage" and getattr(self, f.name) is not None
        }
        return replace(self, **per_box)

    def with_boxes(self, boxes: Tensor) -> "BoxLabels":
        """Returns the same labels at other boxes (N, 4)."""
        return replace(self, boxes=boxes)

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> "BoxLabels":
        """Returns the labels of a picture of size `before` (height, width) at size `after`."""
        y, x = after[0] / before[0], after[1] / before[1]
        boxes = self.boxes * self.boxes.new_tensor([x, y, x, y])
        details = None if self.details is None else self.details.scaled(x, y)
        return replace(self, boxes=boxes, details=details)


@dataclass(frozen=True, eq=False)
class MapLabels(Tensors):
    """A class for each pixel of one picture, as truth, as prediction or as what a teacher wrote.

    Attributes:
        classes: (H, W) uint8 in 0..C-1, or `OTHER`, or `UNKNOWN`.
        weights: (H, W) float32 >= 0, of each pixel's loss; of a prediction its confidence in [0, 1];
            None: 1 everywhere.
        coverage: (C,) float32 in [0, 1]: how far `OTHER` means that the pixel is not of that class.
            1: somebody who knows the class looked; 0: nobody looked for it, so that an `OTHER` pixel
            may well be of it; between: a teacher of that recall.
        grade: a `Grade`.
    """

    classes: Tensor
    weights: Tensor | None
    coverage: Tensor
    grade: int = Grade.GOLD

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> "MapLabels":
        """Returns the labels at size `after` (height, width); every pixel takes its nearest one's."""
        if before == after:
            return self
        weights = None if self.weights is None else _nearest(self.weights, after)
        return replace(self, classes=_nearest(self.classes, after), weights=weights)


@dataclass(frozen=True, eq=False)
class TagLabels(Tensors):
    """What one picture as a whole shows, as truth, as prediction or as what a teacher wrote.

    Attributes:
        targets: (T,) float32 in [0, 1]: 1 shown, 0 not; of silver and of predictions a probability.
        weights: (T,) float32 >= 0, of each tag's loss; 0: unknown.
        grade: a `Grade`.
    """

    targets: Tensor
    weights: Tensor
    grade: int = Grade.GOLD

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> "TagLabels":
        """Returns the labels themselves: tags have no place."""
        return self


Labels = BoxLabels | MapLabels | TagLabels | DepthLabels
"""What a task's labels of one picture may be."""


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None, None], size=list(size), mode="nearest-exact")[0, 0]


@dataclass(frozen=True, eq=False)
class PaddedMaps(Tensors):
    """`MapLabels` of B pictures in tensors of one shape.

    Attributes:
        classes: (B, H, W) uint8; `UNKNOWN` in the padding and where not `present`.
        weights: (B, H, W) float32, 0 in the padding; None: 1 everywhere in every picture.
        coverage: (B, C); zeros where not `present`.
        grade: (B,) uint8.
        present: (B,) bool, which pictures have labels for the task at all.
        some: whether there may be a pixel to learn from: found out while the labels are on the CPU, since
            asking a GPU means waiting for it.
        some_other: whether there may be an `OTHER` pixel to learn from, in the same way.
    """

    classes: Tensor
    weights: Tensor | None
    coverage: Tensor
    grade: Tensor
    present: Tensor
    some: bool = True
    some_other: bool = True

    def unpadded(self, sizes: Sequence[Sequence[int]]) -> list[MapLabels | None]:
        """Returns the labels of each picture of true `sizes` (B, 2); None where nobody looked."""
        pictures: list[MapLabels | None] = []
        for i, (present, (h, w)) in enumerate(zip(self.present.tolist(), sizes, strict=True)):
            weights = None if self.weights is None else self.weights[i, :h, :w]
            known = MapLabels(
                self.classes[i, :h, :w], weights, self.coverage[i], int(self.grade[i])
            )
            pictures.append(known if present else None)
        return pictures


@dataclass(frozen=True, eq=False)
class PaddedTags(Tensors):
    """`TagLabels` of B pictures.

    Attributes:
        targets: (B, T). weights: (B, T); zeros where not `present`.
        grade: (B,) uint8.
        present: (B,) bool, which pictures have labels for the task at all.
        some: whether any tag is known, see `PaddedMaps`.
    """

    targets: Tensor
    weights: Tensor
    grade: Tensor
    present: Tensor
    some: bool = True

    def unpadded(self, sizes: Sequence[Sequence[int]]) -> list[TagLabels | None]:
        """Returns the labels of each picture; None where nobody looked."""
        return [
            TagLabels(self.targets[i], self.weights[i], int(self.grade[i])) if present else None
            for i, present in enumerate(self.present.tolist())
        ]


_PER_BOX = ("boxes", "classes", "scores", "weights", "ignore", "grade")


@dataclass(frozen=True, eq=False)
class PaddedBoxes(Tensors):
    """`BoxLabels` of B pictures in tensors of one shape.

    Attributes:
        boxes (B, M, 4), classes (B, M) int64, scores (B, M), weights (B, M, 2), ignore (B, M) uint8,
            grade (B, M) uint8: as in `BoxLabels`; zeros where not `valid`.
        valid: (B, M) bool, which rows are boxes.
        coverage: (B, C); zeros where not `present`.
        present: (B,) bool, in which pictures somebody looked for a class, or there is an ordinary box. Not
            present means that nobody looked: no loss, no part in any normalizer.
        details: of the boxes, where one of the batch has some.
        some: whether any picture is present, see `PaddedMaps`.
        some_class, some_region: whether a box may be an `Ignore.CLASS` or an `Ignore.REGION`: found out
            while the labels are on the CPU, since asking a GPU means waiting for it.
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
    details: PaddedDetails | None = None
    some: bool = True
    some_class: bool = True
    some_region: bool = True

    def unpadded(self, sizes: Sequence[Sequence[int]]) -> list[BoxLabels | None]:
        """Returns the labels of each picture; None where nobody looked."""
        pictures: list[BoxLabels | None] = []
        for i, present in enumerate(self.present.tolist()):
            rows = self.valid[i]
            per_box = {name: getattr(self, name)[i][rows] for name in _PER_BOX}
            details = None if self.details is None else self.details.unpadded(i, rows)
            known = BoxLabels(**per_box, coverage=self.coverage[i], details=details)
            pictures.append(known if present else None)
        return pictures


Padded = PaddedBoxes | PaddedMaps | PaddedTags | PaddedDepth
"""The labels of a batch for one task."""


def pad(labels: Sequence[Labels | None], height: int, width: int) -> Padded:
    """Pads the labels of B pictures for one task, at least one of them not None.

    None stands for a picture that has no labels for the task.

    Args:
        labels: all of one type.
        height, width: of the padded pictures.
    """
    kinds = {type(x) for x in labels if x is not None}
    assert len(kinds) == 1, "one key of labels holds one type of labels"
    kind = kinds.pop()
    if kind is BoxLabels:
        return pad_boxes([x for x in labels if x is None or isinstance(x, BoxLabels)])
    if kind is MapLabels:
        maps = [x for x in labels if x is None or isinstance(x, MapLabels)]
        return pad_maps(maps, height, width)
    if kind is DepthLabels:
        depths = [x for x in labels if x is None or isinstance(x, DepthLabels)]
        return pad_depth(depths, height, width)
    return pad_tags([x for x in labels if x is None or isinstance(x, TagLabels)])


def pad_boxes(labels: Sequence[BoxLabels | None]) -> PaddedBoxes:
    """Pads the labels of B pictures, at least one of them not None, to the largest count M >= 1.

    None stands for a picture that has no labels for the task; one with coverage 0 of every class and without
    an ordinary box is the same.
    """
    known = [x for x in labels if x is not None]
    counts = np.array([0 if x is None else len(x) for x in labels])
    most = max(1, int(counts.max()))

    # numpy: torch takes several times as long for many small copies
    def padded(name: str) -> np.ndarray:
        first = getattr(known[0], name).numpy()
        out = np.zeros((len(labels), most, *first.shape[1:]), first.dtype)
        for row, x in zip(out, labels, strict=True):
            if x is not None:
                row[: len(x)] = getattr(x, name).numpy()
        return out

    per_box = {name: padded(name) for name in _PER_BOX}
    valid = np.arange(most) < counts[:, None]
    ordinary = valid & (per_box["ignore"] == Ignore.NO)
    details = None
    if any(x.details is not None for x in known):
        details = pad_details(
            [None if x is None else x.details for x in labels], most, torch.from_numpy(ordinary)
        )
    coverage = np.zeros((len(labels), len(known[0].coverage)), np.float32)
    for row, x in zip(coverage, labels, strict=True):
        if x is not None:
            row[:] = x.coverage.numpy()
    present = ordinary.any(1) | (coverage > 0).any(1)
    return PaddedBoxes(
        **{name: torch.from_numpy(x) for name, x in per_box.items()},
        valid=torch.from_numpy(valid),
        coverage=torch.from_numpy(coverage),
        present=torch.from_numpy(present),
        details=details,
        some=bool(present.any()),
        some_class=bool((per_box["ignore"] == Ignore.CLASS).any()),
        some_region=bool((per_box["ignore"] == Ignore.REGION).any()),
    )


def pad_maps(labels: Sequence[MapLabels | None], height: int, width: int) -> PaddedMaps:
    """Pads the maps of B pictures, at least one of them not None, with `UNKNOWN`."""
    known = [x for x in labels if x is not None]
    shape, num_classes = (len(labels), height, width), len(known[0].coverage)
    weighted = any(x.weights is not None for x in known)
    some_other = any(_other_teaches(x) for x in known)
    out = PaddedMaps(
        classes=torch.full(shape, UNKNOWN, dtype=torch.uint8),
        weights=torch.zeros(shape) if weighted else None,
        coverage=torch.zeros(len(labels), num_classes),
        grade=torch.tensor([0 if x is None else int(x.grade) for x in labels], dtype=torch.uint8),
        present=torch.tensor([x is not None for x in labels]),
        some=some_other or any(bool((x.classes < OTHER).any()) for x in known),
        some_other=some_other,
    )
    for i, x in enumerate(labels):
        if x is None:
            continue
        h, w = x.classes.shape
        out.classes[i, :h, :w] = x.classes
        if out.weights is not None:
            out.weights[i, :h, :w] = 1 if x.weights is None else x.weights
        out.coverage[i] = x.coverage
    return out


def _other_teaches(labels: MapLabels) -> bool:
    """Returns whether a pixel is `OTHER` where a class is left that it could be."""
    return bool((labels.coverage < 1).any()) and bool((labels.classes == OTHER).any())


def pad_tags(labels: Sequence[TagLabels | None]) -> PaddedTags:
    """Stacks the tags of B pictures, at least one of them not None."""
    nothing = torch.zeros_like(next(x for x in labels if x is not None).targets)
    weights = torch.stack([nothing if x is None else x.weights for x in labels])
    return PaddedTags(
        targets=torch.stack([nothing if x is None else x.targets for x in labels]),
        weights=weights,
        grade=torch.tensor([0 if x is None else int(x.grade) for x in labels], dtype=torch.uint8),
        present=torch.tensor([x is not None for x in labels]),
        some=bool((weights > 0).any()),
    )
