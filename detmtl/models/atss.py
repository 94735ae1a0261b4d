"""Which anchors learn which box, by a threshold that each box finds for itself (ATSS).

The anchors at the k places of each level that are nearest to a box's center are its candidates; of these
it takes those that overlap it by at least mean plus standard deviation of all its candidates' IoU, and
whose center is in the box. So small and large boxes get about as many anchors each, whatever shapes the
anchors have; one square anchor a place is enough.

Places lie on a grid: the k nearest of a point have a column and a row of which at most k are nearer, so
that nobody compares a box with all anchors. Shapes depend on the number of boxes alone, and nothing
waits for the device.
Letters: B pictures, M boxes of a picture, A anchors of all levels, C classes, N boxes of a batch,
P candidates of a box, K places of a level.
Source: Zhang et al. 2020, arXiv 1912.02424, algorithm 1. There a level gives k places with one anchor
each; with several, all anchors of a place are candidates, as in the authors' code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detmtl.models.matching import Matches, Rules, in_regions, matches_of, may_have
from detmtl.models.windows import Grid
from detmtl.structures.boxes import iou_of_pairs
from detmtl.structures.labels import Ignore, PaddedBoxes

PAIRS = 1 << 19
"""Pairs of a box and a candidate that are looked at together: bounds the memory near 60 MB."""

PAIRS_ON_GPU = 1 << 24
"""The same where many small steps cost more than memory: by arithmetic near 2 GB for a moment."""

INSIDE = 0.01
"""Pixels by which an anchor's center lies in its box at least, as in the authors' code."""


def match_atss(
    anchors: Tensor, labels: PaddedBoxes, rules: Rules, grids: Sequence[Grid]
) -> Matches:
    """Matches the anchors with the boxes of all pictures.

    An anchor that several boxes take learns the one that it overlaps most, the first of equals. All
    other anchors are negatives, but: those in an `Ignore.REGION` are none, and those that an
    `Ignore.CLASS` box would take if it were an ordinary one are none of its class. Pictures that are not
    present have neither positives nor negatives.

    Args:
        anchors: (A, 4) xyxy, float32, pixels.
        labels: boxes of B pictures in the same pixels.
        rules: `candidates` is k; with `force` (ours), a box to which the rule gives no anchor, such as
            a tiny one between the places, takes the candidates that overlap it best.
        grids: the regular grids that the anchors consist of, in their order.
    """
    b, m, a = *labels.valid.shape, len(anchors)
    num_classes = labels.coverage.shape[1]
    boxes, classes = labels.boxes.reshape(-1, 4), labels.classes.reshape(-1)
    ordinary = (labels.valid & (labels.ignore == Ignore.NO)).view(-1)
    doubtful = (labels.valid & (labels.ignore == Ignore.CLASS)).view(-1)
    rows = torch.arange(b * m, device=anchors.device)  # box j of picture i is row i * m + j
    if not anchors.is_cuda:
        rows = rows[ordinary | doubtful]
    some_doubtful = may_have(labels, Ignore.CLASS)
    keys = torch.zeros(b * a, dtype=torch.long, device=anchors.device)
    ignored = torch.zeros(
        b * a * num_classes if some_doubtful else 0, dtype=torch.uint8, device=anchors.device
    )
    levels = _levels(grids)
    most = sum(rules.candidates * len(level) for level in levels)
    pairs = PAIRS_ON_GPU if anchors.is_cuda else PAIRS
    for block in rows.split(max(1, pairs // most)) if len(rows) else ():
        anchor, overlap, taken = _candidates(boxes[block], anchors, levels, rules)
        place = torch.div(block, m, rounding_mode="floor")[:, None] * a + anchor
        # Bits of a positive float grow with it; below them, earlier boxes have the larger number.
        key = (overlap.view(torch.int32).long() << 32) | (m - block % m)[:, None]
        key = key * (taken & ordinary[block, None])
        keys.scatter_reduce_(0, place.view(-1), key.view(-1), "amax")
        if some_doubtful:
            hit = (taken & doubtful[block, None]).to(torch.uint8)
            logit = place * num_classes + classes[block, None]
            ignored.scatter_reduce_(0, logit.view(-1), hit.view(-1), "amax")
    positive = (keys > 0).view(b, a)
    index = (m - (keys & 0xFFFFFFFF)).view(b, a) * positive
    negative = ~positive & labels.present[:, None]
    inside = in_regions(anchors, labels, rules.inside)
    silenced = ignored.view(b, a, num_classes).bool() if some_doubtful else None
    return matches_of(index, positive, negative, inside, silenced)


def _candidates(
    boxes: Tensor, anchors: Tensor, levels: Sequence[Sequence[Grid]], rules: Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the candidates of boxes (N, 4), each (N, P): which anchor, its IoU, whether it is taken."""
    places = []
    for level in levels:
        place = nearest(boxes, level[0], _center(level), rules.candidates)
        first = place * level[0].step + level[0].first
        each = torch.arange(len(level), device=boxes.device)
        places.append((first[..., None] + each).flatten(1))
    anchor = torch.cat(places, dim=1)
    theirs = anchors[anchor]
    overlap = iou_of_pairs(boxes[:, None], theirs)
    threshold = overlap.double().mean(1)
    if overlap.shape[1] > 1:
        threshold = threshold + overlap.double().std(1)
    center = (theirs[..., :2] + theirs[..., 2:]) / 2
    margin = torch.cat([center - boxes[:, None, :2], boxes[:, None, 2:] - center], dim=-1)
    taken = (overlap >= threshold[:, None]) & (margin.amin(-1) > INSIDE) & (overlap > 0)
    if rules.force:
        best = (overlap == overlap.amax(1, keepdim=True)) & (overlap > 0)
        taken = taken | (best & ~taken.any(1, keepdim=True))
    return anchor, overlap, taken


def nearest(boxes: Tensor, grid: Grid, center: tuple[float, float], k: int) -> Tensor:
    """Returns the places (N, K) int64 of a level that are nearest to the boxes' centers, the nearest
    first, of equally near ones that with the lower number; K is k, or all places if there are fewer.

    Args:
        boxes: (N, 4) xyxy.
        grid: its rows, columns and strides count.
        center: x and y of the first place.
        k: how many.
    """
    middle = (boxes[:, :2].double() + boxes[:, 2:].double()) / 2
    column, x = _nearest_lines(middle[:, 0], center[0], grid.stride_x, grid.columns, k)
    row, y = _nearest_lines(middle[:, 1], center[1], grid.stride_y, grid.rows, k)
    # With i columns and j rows before them, (i + 1) * (j + 1) places are at least as near.
    number = torch.cat(
        [row[:, j : j + 1] * grid.columns + column[:, : k // (j + 1)] for j in range(row.shape[1])],
        dim=1,
    )
    distance = torch.cat(
        [y[:, j : j + 1] + x[:, : k // (j + 1)] for j in range(row.shape[1])], dim=1
    )
    number, order = number.sort(dim=1)
    order = distance.gather(1, order).argsort(dim=1, stable=True)
    return number.gather(1, order)[:, : min(k, grid.rows * grid.columns)]


def _nearest_lines(
    points: Tensor, first: float, stride: float, count: int, k: int
) -> tuple[Tensor, Tensor]:
    """Returns the up to k columns (or rows) nearest to points (N,), nearest first, the lower of equals
    first, and their squared distances in pixels: both (N, min(k, count))."""
    k = min(k, count)
    at = (points - first) / stride
    start = (at - k / 2).ceil().clamp(0, count - k)
    lines = start[:, None] + torch.arange(k, device=points.device)
    distance = (lines - at[:, None]).abs()
    distance, order = distance.sort(dim=1, stable=True)
    return lines.gather(1, order).long(), (distance * stride).square()


def _levels(grids: Sequence[Grid]) -> list[list[Grid]]:
    """Returns the grids level by level: those of one level start at consecutive anchors."""
    levels: list[list[Grid]] = []
    for grid in grids:
        if levels and len(levels[-1]) < grid.step:
            levels[-1].append(grid)
        else:
            levels.append([grid])
    return levels


def _center(level: Sequence[Grid]) -> tuple[float, float]:
    """Returns x and y of a level's first place: the mean of its anchors' centers."""
    x = [(grid.corner[0] + grid.corner[2]) / 2 for grid in level]
    y = [(grid.corner[1] + grid.corner[3]) / 2 for grid in level]
    return sum(x) / len(x), sum(y) / len(y)
