"""What may be known of a box beyond its place and class: attributes, a mask, keypoints.

Every kind travels in the same way: as a field of `Details`, whose rows are those of the boxes. A kind
that is None nobody looked for; a row that is unknown gives no loss.

Masks have two forms. Truth comes as `Outlines`, exact at any size and as small as a polygon: points
go through augmentation like keypoints. At the end they become small pictures relative to each box,
of one size, which stack and go to a device; predictions have that form from the start. So 5,000 boxes
take 16 MB and never 5,000 pictures.

Letters: N boxes, A attributes, T values of all attributes, K keypoints, P points of outlines, R rings,
S side of a mask, B pictures, M the most boxes of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detmtl.structures.tensors import Tensors

MASK_SIDE = 56
"""Side of the masks that a network learns from: twice that of the mask head's output."""
NO_MASK = 255
"""Every pixel of the mask of a box whose shape nobody drew."""


@dataclass(frozen=True, eq=False)
class Outlines(Tensors):
    """The shapes of N boxes, each as rings of points; a box without rings nobody drew.

    A point is inside of a shape if the rings' winding number around it is not 0: parts run one way
    round, holes in them the other.

    Attributes:
        points: (P, 2) float32 x, y in pixels of the current picture, origin at its top left corner.
        rings: (R+1,) int64, where in `points` each ring begins.
        boxes: (N+1,) int64, where in `rings` each box's begin.
    """

    points: Tensor
    rings: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.boxes) - 1

    def __getitem__(self, keep: Tensor) -> "Outlines":
        """Returns the shapes at `keep`, a bool mask (N,) or indices."""
        if keep.dtype == torch.bool:
            keep = keep.nonzero()[:, 0]
        picked, boxes = _gathered(self.boxes, keep)
        points, rings = _gathered(self.rings, picked)
        return Outlines(self.points[points], rings, boxes)

    def with_undrawn(self, count: int) -> "Outlines":
        """Returns the shapes followed by those of `count` boxes that nobody drew."""
        return replace(self, boxes=torch.cat([self.boxes, self.boxes[-1:].expand(count)]))

    def drawn(self) -> Tensor:
        """Returns (N,) bool: which boxes have a shape."""
        return self.boxes[1:] > self.boxes[:-1]


@dataclass(frozen=True, eq=False)
class Details(Tensors):
    """What is known of N boxes beyond place and class; a kind that nobody looked for is None.

    Attributes:
        attributes: (N, A) int64, the value of each attribute, counted from 0; -1 unknown.
        attribute_scores: (N, T) float32 in [0, 1], of predictions: the probability of every value.
        keypoints: (N, K, 3) float32 x, y in pixels of the current picture, and of truth COCO's
            visibility: 0 unknown, 1 hidden, 2 seen; of predictions a confidence in [0, 1].
        areas: (N,) float32 square pixels of the objects themselves, as COCO's files say them.
        outlines: shapes of the boxes.
        masks: (N, S, S), the picture of each shape within its box, row by row from its top left
            corner: of truth uint8, 1 inside, 0 outside, `NO_MASK` unknown; of predictions float32
            probabilities.
        attribute_names: the T values as `attribute/value`. keypoint_names: the K as `class/keypoint`.
    """

    attributes: Tensor | None = None
    attribute_scores: Tensor | None = None
    keypoints: Tensor | None = None
    areas: Tensor | None = None
    outlines: Outlines | None = None
    masks: Tensor | None = None
    attribute_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()

    def __getitem__(self, keep: Tensor) -> "Details":
        """Returns the rows at `keep`, a bool mask (N,) or indices."""
        rows = {name: x[keep] for name, x in vars(self).items() if isinstance(x, Tensor | Outlines)}
        return replace(self, **rows)

    def scaled(self, x: float, y: float) -> "Details":
        """Returns the details of a picture that is scaled by x horizontally and y vertically."""
        changed: dict[str, Any] = {}
        if self.keypoints is not None:
            changed["keypoints"] = self.keypoints * self.keypoints.new_tensor([x, y, 1])
        if self.outlines is not None:
            points = self.outlines.points
            changed["outlines"] = replace(self.outlines, points=points * points.new_tensor([x, y]))
        if self.areas is not None:
            changed["areas"] = self.areas * (x * y)
        return replace(self, **changed)

    def with_unknown(self, boxes: Tensor) -> "Details":
        """Returns the details, of truth and with outlines for masks, followed by those of further boxes
        (M, 4) xyxy, of which nothing is known but their areas."""
        assert self.attribute_scores is None and self.masks is None
        changed: dict[str, Any] = {}
        for name, unknown in (("attributes", -1), ("keypoints", 0)):
            own = getattr(self, name)
            if own is not None:
                more = own.new_full((len(boxes), *own.shape[1:]), unknown)
                changed[name] = torch.cat([own, more])
        if self.areas is not None:
            changed["areas"] = torch.cat([self.areas, (boxes[:, 2:] - boxes[:, :2]).prod(1)])
        if self.outlines is not None:
            changed["outlines"] = self.outlines.with_undrawn(len(boxes))
        return replace(self, **changed)


def merged(first: Details | None, second: Details | None) -> Details | None:
    """Returns what either says of the same boxes; where both say something, the second."""
    if first is None or second is None:
        return first or second
    said = {name: x for name, x in vars(second).items() if x is not None and not _nothing(x)}
    return replace(first, **said)


def _nothing(x: Any) -> bool:
    return isinstance(x, tuple) and not x


def value_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns attribute -> its values, of the T names `attribute/value`, in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        attribute, _, value = name.partition("/")
        groups.setdefault(attribute, []).append(value)
    return groups


def likeliest(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns (N, A) int64: of each attribute the value with the highest of scores (N, T), the values
    of the A attributes being `sizes` many."""
    return torch.stack([part.argmax(1) for part in scores.split(list(sizes), dim=1)], dim=1)


KINDS = ("attributes", "masks", "keypoints")
"""Kinds of details that a task can tell."""


def details_of(kind: str, found: Tensor, names: Sequence[str]) -> Details:
    """Returns what a task of a kind found, as its exported form gives it, as details of N boxes.

    Args:
        kind: of `KINDS`.
        found: probabilities (N, T) of attributes, (N, S, S) of masks, or keypoints (N, K, 3).
        names: of attributes or of keypoints, see `Details`.
    """
    if kind == "attributes":
        sizes = [len(values) for values in value_groups(names).values()]
        best = likeliest(found, sizes)
        return Details(attributes=best, attribute_scores=found, attribute_names=tuple(names))
    if kind == "masks":
        return Details(masks=found)
    assert kind == "keypoints", kind
    return Details(keypoints=found, keypoint_names=tuple(names))


@dataclass(frozen=True, eq=False)
class PaddedDetails(Tensors):
    """`Details` of B pictures in tensors of one shape; a kind that no box of the batch has is None.

    Attributes:
        attributes: (B, M, A) int64; -1 unknown, in the padding too.
        keypoints: (B, M, K, 3); zeros in the padding.
        masks: (B, M, S, S) uint8; `NO_MASK` in the padding.
        learned: the kinds of which some box that counts has something to learn from: found out while the
            labels are on the CPU, since asking a GPU means waiting for it.
        attribute_names, keypoint_names: see `Details`.
    """

    attributes: Tensor | None = None
    keypoints: Tensor | None = None
    masks: Tensor | None = None
    learned: tuple[str, ...] = KINDS
    attribute_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()

    def known(self, kind: str) -> Tensor | None:
        """Returns (B, M) bool: of which boxes something of a kind is known; None if of none."""
        x = getattr(self, kind)
        if x is None:
            return None
        if kind == "attributes":
            return (x >= 0).any(-1)
        return (x[..., 2] > 0).any(-1) if kind == "keypoints" else x[:, :, 0, 0] != NO_MASK

    def unpadded(self, picture: int, rows: Tensor) -> Details:
        """Returns the details of a picture's boxes, its rows (M,) bool."""
        of_kinds = {kind: getattr(self, kind) for kind in KINDS}
        return Details(
            **{k: x[picture][rows] for k, x in of_kinds.items() if x is not None},
            attribute_names=self.attribute_names,
            keypoint_names=self.keypoint_names,
        )


def pad_details(
    details: Sequence[Details | None], most: int, counts: Tensor | None = None
) -> PaddedDetails | None:
    """Pads the details of B pictures to `most` boxes; None where no box of any has some.

    Outlines have to have become masks before: see `detmtl.data.outlines`.

    Args:
        details: of the pictures.
        most: M.
        counts: (B, M) bool, the boxes that are learned from; None: all.
    """
    given = [d for d in details if d is not None]
    assert all(d.masks is not None or d.outlines is None for d in given), "outlines, not masks"
    out = PaddedDetails(
        attributes=_padded([d and d.attributes for d in details], most, -1),
        keypoints=_padded([d and d.keypoints for d in details], most, 0),
        masks=_padded([d and d.masks for d in details], most, NO_MASK),
        attribute_names=next((d.attribute_names for d in given if d.attribute_names), ()),
        keypoint_names=next((d.keypoint_names for d in given if d.keypoint_names), ()),
    )
    known = {kind: of for kind in KINDS if (of := out.known(kind)) is not None and bool(of.any())}
    if not known:
        return None
    learned = tuple(k for k, of in known.items() if counts is None or bool((of & counts).any()))
    return replace(out, learned=learned, **{k: None for k in KINDS if k not in known})


def _padded(rows: Sequence[Tensor | None], most: int, unknown: int) -> Tensor | None:
    known = [x for x in rows if x is not None]
    if not known:
        return None
    shape = (len(rows), most, *known[0].shape[1:])
    out = torch.full(shape, unknown, dtype=known[0].dtype)
    for i, x in enumerate(rows):
        if x is not None:
            out[i, : len(x)] = x
    return out


def _gathered(offsets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rows of the lists at `indices`, and the offsets of the lists picked."""
    starts, lengths = offsets[indices], offsets[indices + 1] - offsets[indices]
    picked = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    rows = torch.arange(int(picked[-1]), device=offsets.device)
    return rows + torch.repeat_interleave(starts - picked[:-1], lengths), picked
