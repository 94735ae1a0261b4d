"""A teacher that looks at several views of each picture: mirrored, smaller and in tiles.

Letters: H and W pixels of a picture, N boxes, V views, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from detmtl.silver.mapping import suppress
from detmtl.structures.boxes import clip
from detmtl.structures.errors import InputError
from detmtl.structures.labels import UNKNOWN, BoxLabels, Grade, Labels, MapLabels
from detmtl.structures.sample import ImageInfo
from detmtl.structures.settings import Settings
from detmtl.teachers.teacher import Teacher, as_silver

GRAY = 114
SHARED = 0.25
"""The least part of a tile's side that its neighbor shows too."""


class TtaSettings(Settings):
    """Which views of a picture a teacher sees, and how its answers become one.

    Teachers bring every picture to the size of their network. So a scale below 1 puts the picture
    into a larger gray one, and a scale above 1 cuts it into overlapping tiles, which show small
    objects larger: 2 x 2 tiles at 1.5, 3 x 3 at 2. Time grows with the number of views.
    """

    flip: bool = True
    """Whether each view is seen mirrored too."""
    scales: tuple[float, ...] = (1.0,)
    """How large the picture is in its views, each in [0.25, 4]."""
    overlap: float = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays."""

    @field_validator("scales")
    @classmethod
    def _sensible(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or len(set(scales)) < len(scales) or min(scales) < 0.25 or max(scales) > 4:
            raise ValueError("needs different numbers in [0.25, 4], at least one, such as [1, 1.5]")
        return scales


@dataclass(frozen=True)
class View:
    """A window on a picture; what of it lies outside of the picture is gray.

    Attributes:
        left, top, right, bottom: of the window, in pixels of the picture.
        flip: whether it is mirrored.
    """

    left: int
    top: int
    right: int
    bottom: int
    flip: bool

    def of(self, image: Tensor) -> Tensor:
        """Returns what the view shows of image (3, H, W)."""
        height, width = image.shape[-2:]
        x, y = (
            (max(self.left, 0), min(self.right, width)),
            (max(self.top, 0), min(self.bottom, height)),
        )
        seen = image[:, y[0] : y[1], x[0] : x[1]]
        if seen.shape[-2:] != (self.bottom - self.top, self.right - self.left):
            canvas = image.new_full((3, self.bottom - self.top, self.right - self.left), GRAY)
            canvas[:, y[0] - self.top : y[1] - self.top, x[0] - self.left : x[1] - self.left] = seen
            seen = canvas
        return seen.flip(-1) if self.flip else seen

    def whole_boxes(self, labels: BoxLabels, height: int, width: int) -> BoxLabels:
        """Returns boxes of the view in the picture, without those that an edge of a tile cuts."""
        boxes, side = labels.boxes, self.right - self.left
        if self.flip:
            boxes = torch.stack(
                [side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], dim=1
            )
        boxes = boxes + torch.tensor([self.left, self.top] * 2)
        near_x, near_y = max(2, 0.01 * side), max(2, 0.01 * (self.bottom - self.top))
        cut = torch.zeros(len(boxes), dtype=torch.bool)
        if self.left > 0:
            cut |= boxes[:, 0] < self.left + near_x
        if self.top > 0:
            cut |= boxes[:, 1] < self.top + near_y
        if self.right < width:
            cut |= boxes[:, 2] > self.right - near_x
        if self.bottom < height:
            cut |= boxes[:, 3] > self.bottom - near_y
        return labels.with_boxes(clip(boxes, height, width))[~cut]

    def in_picture(self, values: Tensor, height: int, width: int, missing: float) -> Tensor:
        """Returns a map of the view as a map (H, W) of the picture, `missing` where it shows nothing."""
        values = values.flip(-1) if self.flip else values
        out = values.new_full((height, width), missing)
        x, y = (
            (max(self.left, 0), min(self.right, width)),
            (max(self.top, 0), min(self.bottom, height)),
        )
        out[y[0] : y[1], x[0] : x[1]] = values[
            y[0] - self.top : y[1] - self.top, x[0] - self.left : x[1] - self.left
        ]
        return out


def views(height: int, width: int, settings: TtaSettings) -> list[View]:
    """Returns the views of a picture of height x width pixels, each once."""
    found = []
    for scale in settings.scales:
        ys, xs = _spans(height, scale), _spans(width, scale)
        for (top, bottom), (left, right) in product(ys, xs):
            for flip in (False, True) if settings.flip else (False,):
                found.append(View(left, top, right, bottom, flip))
    return list(dict.fromkeys(found))


def _spans(side: int, scale: float) -> list[tuple[int, int]]:
    """Returns first pixel and end of the windows along one side."""
    length = max(1, ceil(side / scale))
    if scale <= 1:
        first = -((length - side) // 2)
        return [(first, first + length)]
    count = ceil((scale - SHARED) / (1 - SHARED))
    firsts = np.linspace(0, side - length, count).round().astype(int).tolist()
    return [(first, first + length) for first in dict.fromkeys(firsts)]


class TtaTeacher(Teacher):
    """Another teacher, asked for several views of each picture.

    The views' boxes go through one suppression per class; a map is a vote of the views, weighted by
    their confidence, and its confidence is the winner's share of what the votes could be.

    Args:
        teacher: the one that is asked.
        settings: which views.
        name: of this teacher; None: the other's with `-tta`.
    """

    def __init__(self, teacher: Teacher, settings: TtaSettings, name: str | None = None):
        if teacher.card.task == "tags":
            raise InputError("teacher.tta: serves boxes and maps, and this teacher writes tags")
        inner = teacher.card
        self._teacher, self._settings = teacher, settings
        self.card = inner.model_copy(
            update={
                "name": name or f"{inner.name}-tta",
                "preprocessing": f"{inner.preprocessing}; views of '{inner.name}': "
                f"{settings.model_dump(mode='json')}",
            }
        )

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> Sequence[Labels]:
        """Returns the labels of each picture, see `Teacher.annotate`."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        seen = [views(*size, self._settings) for size in sizes]
        todo = [(i, view) for i, of_one in enumerate(seen) for view in of_one]
        found: list[list[Labels]] = [[] for _ in images]
        for first in range(0, len(todo), max(1, len(images))):
            chunk = todo[first : first + len(images)]
            answers = self._teacher.annotate(
                [view.of(images[i]) for i, view in chunk],
                [
                    replace(infos[i], height=view.bottom - view.top, width=view.right - view.left)
                    for i, view in chunk
                ],
                floor if self.card.task == "boxes" else 0,
            )
            for (i, _), labels in zip(chunk, answers, strict=True):
                found[i].append(labels)
        return [
            self._merged(labels, of_one, size, floor)
            for labels, of_one, size in zip(found, seen, sizes, strict=True)
        ]

    def _merged(
        self, labels: Sequence[Labels], seen: Sequence[View], size: tuple[int, int], floor: float
    ) -> Labels:
        if self.card.task == "maps":
            maps = [one for one in labels if isinstance(one, MapLabels)]
            return _vote(maps, seen, size, floor)
        boxes = [
            view.whole_boxes(one, *size)
            for one, view in zip(labels, seen, strict=True)
            if isinstance(one, BoxLabels)
        ]
        together = BoxLabels.of(
            torch.cat([one.boxes for one in boxes]),
            torch.cat([one.classes for one in boxes]),
            len(self.card.classes),
            scores=torch.cat([one.scores for one in boxes]),
        )
        together = as_silver(together, floor)
        keep = suppress(
            together.boxes.numpy(),
            together.scores.numpy(),
            together.classes.numpy(),
            self._settings.overlap,
        )
        return together[torch.from_numpy(keep)]


def _vote(
    maps: Sequence[MapLabels], seen: Sequence[View], size: tuple[int, int], floor: float
) -> MapLabels:
    """Returns the map (H, W) of V views, and as its weights the winner's share."""
    classes, weights, shown = [], [], torch.zeros(size)
    for one, view in zip(maps, seen, strict=True):
        weight = torch.ones(one.classes.shape) if one.weights is None else one.weights
        weight = torch.where(one.classes == UNKNOWN, 0.0, weight)
        classes.append(view.in_picture(one.classes, *size, UNKNOWN))
        weights.append(view.in_picture(weight, *size, 0))
        shown += view.in_picture(torch.ones(one.classes.shape), *size, 0)
    best, winner = torch.zeros(size), torch.full(size, UNKNOWN, dtype=torch.uint8)
    for candidate in classes:  # each view's class is a candidate: V x V maps, not K of them
        votes = torch.zeros(size)
        for other, weight in zip(classes, weights, strict=True):
            votes += torch.where(other == candidate, weight, 0.0)
        better = votes > best
        best, winner = torch.where(better, votes, best), torch.where(better, candidate, winner)
    share = (best / shown.clamp(min=1)).clamp(max=1)
    winner = torch.where(share < floor, UNKNOWN, winner)
    return MapLabels(winner, share, maps[0].coverage, int(Grade.SILVER))
