"""Several views of a picture, mirrored, smaller and in tiles, and how what they show becomes one.

Letters: H and W pixels of a picture, N boxes, V views, F boxes that a tile's edge cuts, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil

import numpy as np
import torch
from pydantic import Field, field_validator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from detmtl.silver.mapping import suppress
from detmtl.structures.boxes import area, clip
from detmtl.structures.depth import DepthLabels
from detmtl.structures.labels import UNKNOWN, BoxLabels, Grade, MapLabels
from detmtl.structures.settings import Settings

GRAY = 114
SHARED = 0.25
"""The least part of a tile's side that its neighbor shows too."""
AGREEMENT = 0.6
"""IoU, in what two tiles both show, from which two boxes that their edges cut are of one object."""
PAIRS = 1 << 20
"""Pairs of cut boxes that are compared at once: bounds the memory near 100 MB."""


class SeveralViews(Settings):
    """Which views of a picture a model sees.

    Models bring every picture to the size of their network. So a scale below 1 puts the picture
    into a larger gray one, and a scale above 1 cuts it into overlapping tiles, which show small
    objects larger: 2 x 2 tiles at 1.5, 3 x 3 at 2. Time grows with the number of views.
    """

    flip: bool = True
    """Whether each view is seen mirrored too."""
    scales: tuple[float, ...] = (1.0,)
    """How large the picture is in its views, each in [0.25, 4]."""

    @field_validator("scales")
    @classmethod
    def _sensible(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or len(set(scales)) < len(scales) or min(scales) < 0.25 or max(scales) > 4:
            raise ValueError("needs different numbers in [0.25, 4], at least one, such as [1, 1.5]")
        return scales


class TtaSettings(SeveralViews):
    """Views of a teacher, and how its answers become one."""

    overlap: float = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays."""


class ViewSettings(SeveralViews):
    """Views for prediction: beside those at several scales, tiles of a given size for large pictures.

    How the model's answers become one is the model's own `test`, see `ViewsPredictor`.

    Tiles are seen beside the scales' views, by default the whole picture, in which the objects are found
    that are larger than a tile. An object that the edges of tiles cut everywhere is put together from its
    parts, where the tiles agree on what they both show.
    """

    flip: bool = False
    """Whether each view is seen mirrored too."""
    tile: int | None = Field(default=None, ge=32)
    """Pixels of a tile's sides; about the network's size shows objects at their own. None: no tiles."""
    tile_overlap: float = Field(default=0.2, ge=0.05, le=0.75)
    """The least part of a tile's side that its neighbor shows too: objects up to so many pixels are whole
    in some tile. With less than .05 neighbors had too little in common to tell whose parts are one object."""

    @property
    def plain(self) -> bool:
        """Whether the picture alone is seen, as without any of this."""
        return not self.flip and self.scales == (1.0,) and self.tile is None


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
        left, top, right, bottom = self.inside(height, width)
        seen = image[:, top:bottom, left:right]
        if seen.shape[-2:] != (self.bottom - self.top, self.right - self.left):
            canvas = image.new_full((3, self.bottom - self.top, self.right - self.left), GRAY)
            canvas[:, top - self.top : bottom - self.top, left - self.left : right - self.left] = (
                seen
            )
            seen = canvas
        return seen.flip(-1) if self.flip else seen

    def shows_all(self, height: int, width: int) -> bool:
        """Returns whether the whole picture is in it: whether it is no tile."""
        return max(self.left, self.top) <= 0 and self.right >= width and self.bottom >= height

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.right, self.bottom

    def placed(self, labels: BoxLabels, height: int, width: int) -> tuple[BoxLabels, Tensor]:
        """Returns boxes of the view in the picture, and which of their sides (N, 4) a tile's edge cuts."""
        boxes, side = labels.boxes, self.right - self.left
        if self.flip:
            boxes = torch.stack(
                [side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], dim=1
            )
        boxes = boxes + torch.tensor([self.left, self.top] * 2)
        near = _near(torch.tensor([side, self.bottom - self.top] * 2))
        inner = [self.left > 0, self.top > 0, self.right < width, self.bottom < height]
        gap = (boxes - torch.tensor(self.window)) * torch.tensor([1, 1, -1, -1])
        cut = (gap < near) & torch.tensor(inner)
        return labels.with_boxes(clip(boxes, height, width)), cut

    def inside(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the part of the window that lies in the picture."""
        return max(self.left, 0), max(self.top, 0), min(self.right, width), min(self.bottom, height)

    def part(self, values: Tensor, window: tuple[int, int, int, int]) -> Tensor:
        """Returns what a map of the view says of a window on the picture that the view shows all of."""
        left, top, right, bottom = window
        if self.flip:
            first = self.right - right
            return values[top - self.top : bottom - self.top, first : first + right - left].flip(-1)
        return values[top - self.top : bottom - self.top, left - self.left : right - self.left]


def views(height: int, width: int, settings: SeveralViews) -> list[View]:
    """Returns the views of a picture of height x width pixels, each once."""
    found = []
    grids = [(_spans(height, scale), _spans(width, scale)) for scale in settings.scales]
    if isinstance(settings, ViewSettings) and settings.tile is not None:
        tile, overlap = settings.tile, settings.tile_overlap
        grids.append((_tiles(height, tile, overlap), _tiles(width, tile, overlap)))
    for ys, xs in grids:
        for (top, bottom), (left, right) in product(ys, xs):
            for flip in (False, True) if settings.flip else (False,):
                found.append(View(left, top, right, bottom, flip))
    return list(dict.fromkeys(found))


def _tiles(side: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """Returns first pixel and end of the tiles along one side, evenly spread."""
    if side <= tile:
        return [(0, side)]
    count = ceil((side - overlap * tile) / (tile * (1 - overlap)) - 1e-9)
    firsts = np.linspace(0, side - tile, max(2, count)).round().astype(int).tolist()
    return [(first, first + tile) for first in dict.fromkeys(firsts)]


def _spans(side: int, scale: float) -> list[tuple[int, int]]:
    """Returns first pixel and end of the windows along one side."""
    length = max(1, ceil(side / scale))
    if scale <= 1:
        first = -((length - side) // 2)
        return [(first, first + length)]
    count = ceil((scale - SHARED) / (1 - SHARED))
    firsts = np.linspace(0, side - length, count).round().astype(int).tolist()
    return [(first, first + length) for first in dict.fromkeys(firsts)]


def merged(
    labels: Sequence[BoxLabels],
    seen: Sequence[View],
    size: tuple[int, int],
    overlap: float,
    join: bool = False,
    class_agnostic: bool = False,
    most: int | None = None,
) -> BoxLabels:
    """Returns the boxes of V views in the picture (height, width), by falling score.

    Boxes that an edge of a tile cuts are left to the views that show them whole.

    Args:
        labels: of each view, in its pixels, at least one.
        seen: the views.
        size: of the picture.
        overlap: of two boxes that overlap more than this (IoU) the better stays.
        join: whether boxes that tiles cut are put together first, see `joined`.
        class_agnostic: whether boxes of other classes count as well.
        most: how many boxes stay; None: all.
    """
    placed = [view.placed(one, *size) for one, view in zip(labels, seen, strict=True)]
    whole = [boxes[~cut.any(1)] for boxes, cut in placed]
    if join:
        whole.append(
            joined(
                [boxes[cut.any(1)] for boxes, cut in placed],
                [cut[cut.any(1)] for _, cut in placed],
                seen,
            )
        )
    together = BoxLabels.of(
        torch.cat([one.boxes for one in whole]),
        torch.cat([one.classes for one in whole]),
        len(labels[0].coverage),
        torch.cat([one.scores for one in whole]),
        grade=Grade.SILVER,
        coverage=labels[0].coverage,
    )
    # clipping leaves boxes without a side of what lies outside of the picture
    together = together[(together.boxes[:, 2:] > together.boxes[:, :2]).all(1)]
    classes = together.classes * 0 if class_agnostic else together.classes
    keep = suppress(together.boxes.numpy(), together.scores.numpy(), classes.numpy(), overlap)
    return together[torch.from_numpy(keep[:most])]


def joined(parts: Sequence[BoxLabels], cut: Sequence[Tensor], seen: Sequence[View]) -> BoxLabels:
    """Returns a box for each group of cut boxes of one class that belong together.

    Two belong together if they are almost the same box in what both of their tiles show. A group's box
    reaches around all of its parts and has the best one's score. A group of which a side is cut in the
    part that reaches farthest is left out, unless another part ends there uncut: nobody saw where its object
    ends.

    Args:
        parts: the cut boxes of each of V views, in pixels of the picture.
        cut: which of their sides (F, 4) are cut.
        seen: the views.
    """
    counts = torch.tensor([len(one) for one in parts])
    view = torch.repeat_interleave(torch.arange(len(parts)), counts)
    windows = torch.tensor([one.window for one in seen], dtype=torch.float32)[view]
    boxes, scores, classes = (
        torch.cat([getattr(one, name) for one in parts]) for name in ("boxes", "scores", "classes")
    )
    edges = []
    for rows in torch.arange(len(boxes)).split(max(1, PAIRS // max(1, len(boxes)))):
        shared = _cut(windows[rows, None], windows)
        a, b = _cut(boxes[rows, None], shared), _cut(boxes[None], shared)
        inner = area(_cut(a, b))
        union = area(a) + area(b) - inner
        same = (inner >= AGREEMENT * union) & (union > 0) & (classes[rows, None] == classes)
        first, second = same.nonzero(as_tuple=True)
        edges.append(torch.stack([rows[first], second]))
    pairs = torch.cat(edges, dim=1).numpy() if edges else np.zeros((2, 0), dtype=np.int64)
    matrix = coo_array((np.ones(pairs.shape[1]), pairs), shape=(len(boxes), len(boxes)))
    number, group = connected_components(matrix, directed=False)
    group = torch.from_numpy(group).long()
    corners = torch.cat([-boxes[:, :2], boxes[:, 2:]], dim=1)
    hulls = corners.new_full((number, 4), -torch.inf)
    hulls.scatter_reduce_(0, group[:, None].expand(-1, 4), corners, "amax")
    best = scores.new_zeros(number).scatter_reduce_(0, group, scores, "amax")
    its_class = classes.new_zeros(number).scatter_reduce_(0, group, classes, "amax")
    cuts = torch.cat(list(cut))
    sides = (windows[:, 2:] - windows[:, :2]).repeat(1, 2)
    ends = ~cuts & (corners >= hulls[group] - _near(sides))
    closed = torch.zeros(number, 4, dtype=torch.uint8)
    closed.scatter_reduce_(0, group[:, None].expand(-1, 4), ends.to(torch.uint8), "amax")
    open_side = (corners == hulls[group]) & cuts & (closed[group] == 0)
    left_open = torch.zeros(number, dtype=torch.uint8)
    left_open.scatter_reduce_(0, group, open_side.any(1).to(torch.uint8), "amax")
    boxes = torch.cat([-hulls[:, :2], hulls[:, 2:]], dim=1)
    found = BoxLabels.of(boxes, its_class, len(parts[0].coverage), best)
    return found[left_open == 0]


def _near(sides: Tensor) -> Tensor:
    """Returns within how many pixels of the edge of a tile with such sides a box counts as cut."""
    return (0.01 * sides).clamp(min=2)


def _cut(a: Tensor, b: Tensor) -> Tensor:
    """Returns the intersections (..., 4) of boxes; where there is none, a box without area."""
    left_top = torch.maximum(a[..., :2], b[..., :2])
    return torch.cat([left_top, torch.maximum(left_top, torch.minimum(a[..., 2:], b[..., 2:]))], -1)


def vote(
    maps: Sequence[MapLabels], seen: Sequence[View], size: tuple[int, int], floor: float
) -> MapLabels:
    """Returns the map (H, W) of V views, and as its weights the winner's share.

    Piece by piece of the picture, each with the views that show it: of many tiles few show one place.
    """
    winner, share = torch.full(size, UNKNOWN, dtype=torch.uint8), torch.zeros(size)
    for window, there in _pieces(seen, size):
        classes, weights = [], []
        for i in there:
            of_view = seen[i].part(maps[i].classes, window)
            weight = maps[i].weights
            sure = torch.ones(of_view.shape) if weight is None else seen[i].part(weight, window)
            classes.append(of_view)
            weights.append(torch.where(of_view == UNKNOWN, 0.0, sure))
        best, won = torch.zeros(classes[0].shape), torch.full_like(classes[0], UNKNOWN)
        for candidate in classes:  # each view's class is a candidate: not each of K classes
            votes = torch.zeros_like(best)
            for other, weight in zip(classes, weights, strict=True):
                votes += torch.where(other == candidate, weight, 0.0)
            better = votes > best
            best, won = torch.where(better, votes, best), torch.where(better, candidate, won)
        left, top, right, bottom = window
        winner[top:bottom, left:right] = won
        share[top:bottom, left:right] = (best / len(there)).clamp(max=1)
    winner = torch.where(share < floor, UNKNOWN, winner)
    return MapLabels(winner, share, maps[0].coverage, int(Grade.SILVER))


def _pieces(
    seen: Sequence[View], size: tuple[int, int]
) -> Iterator[tuple[tuple[int, int, int, int], list[int]]]:
    """Yields the windows into which the edges of V views cut a picture, and the views that show each,
    without those that none shows."""
    inside = [view.inside(*size) for view in seen]
    for top, bottom in pairwise(sorted({y for window in inside for y in window[1::2]})):
        row = [i for i, window in enumerate(inside) if window[1] <= top and bottom <= window[3]]
        for left, right in pairwise(sorted({x for i in row for x in inside[i][::2]})):
            there = [i for i in row if inside[i][0] <= left and right <= inside[i][2]]
            if there:
                yield (left, top, right, bottom), there


def mean_depth(
    depths: Sequence[DepthLabels], seen: Sequence[View], size: tuple[int, int]
) -> DepthLabels:
    """Returns the depth (H, W) of V views: of each pixel the geometric mean of those that know it, since
    depths are off by factors; 0 where none does."""
    logs, known = torch.zeros(size), torch.zeros(size)
    for one, view in zip(depths, seen, strict=True):
        left, top, right, bottom = inside = view.inside(*size)
        depth = view.part(one.depth, inside)
        logs[top:bottom, left:right] += torch.where(depth > 0, depth, 1.0).log()
        known[top:bottom, left:right] += depth > 0
    depth = torch.where(known > 0, (logs / known.clamp(min=1)).exp(), 0.0)
    return DepthLabels(depth, int(Grade.SILVER))
