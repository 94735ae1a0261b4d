"""Which anchors learn which box, and which learn nothing.

Two ways to the same result, bit for bit: `dense` compares all anchors with all boxes, a few boxes at
a time, with tensors of fixed shapes and without waiting for the device; `windowed` looks only where
an anchor can reach the threshold (`detmtl.models.windows`) and is far faster on a CPU. Both gain by
anchors that lie on regular grids.
Letters: B pictures, M boxes of a picture, A anchors of all levels, C classes, N boxes of a batch,
K pairs of a box and an anchor.
Source: the rules are those of torchvision's Matcher (from Ren et al. 2015, arXiv 1506.01497,
section 3.1.2, with RetinaNet's thresholds).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detmtl.models.windows import Grids, reach, windows
from detmtl.structures.boxes import area, intersection, iou, iou_of_pairs
from detmtl.structures.labels import Ignore, PaddedBoxes

Forced = Literal["best", "forcing"]

PAIRS = 1 << 20
"""Pairs of a box and an anchor that are looked at together: bounds the memory near 60 MB."""

BLOCK = 1 << 19
"""Pairs of which a processor's caches hold what is computed."""

PAIRS_ON_GPU = 1 << 25
"""The same where many small steps cost more than memory: by arithmetic near 0.5 GB for a moment."""


@dataclass(frozen=True)
class Rules:
    """When an anchor learns a box.

    Attributes:
        foreground: least IoU of a positive anchor.
        background: anchors below this IoU with every box are negatives; between, they are left out.
        force: whether each box also gets the anchors that overlap it best, however little; such an
            anchor learns the box that it overlaps best itself. A box that no anchor touches gets none
            (in torchvision and mmdet it gets every anchor it doesn't touch).
        forced: "forcing": an anchor that several boxes force, or that overlaps another box more, learns
            the last of those that force it, as in mmdet.
        inside: anchors with at least this share of their area in an `Ignore.REGION` are left out.
        kind: "max_iou", the rules of this module; "atss", those of `detmtl.models.atss`.
        candidates: of "atss", places of each level at which anchors are candidates of a box.
    """

    foreground: float = 0.5
    background: float = 0.4
    force: bool = True
    forced: Forced = "best"
    inside: float = 0.5
    kind: Literal["max_iou", "atss"] = "max_iou"
    candidates: int = 9


@dataclass(frozen=True, eq=False)
class Matches:
    """What each anchor of each picture learns.

    Attributes:
        index: (B, A) int64, the box to learn: that overlaps most, the first of several, unless another
            forces the anchor and `Rules.forced` says so; 0 where not positive.
        positive: (B, A) bool, learns box `index`.
        negative: (B, A) bool, learns that it is background. Neither: learns nothing.
        ignored: (B, A, C) bool, classes of which a negative learns nothing; None: there are none.
    """

    index: Tensor
    positive: Tensor
    negative: Tensor
    ignored: Tensor | None


def match(
    anchors: Tensor,
    labels: PaddedBoxes,
    rules: Rules,
    grids: Grids | None = None,
) -> Matches:
    """Matches the anchors with the boxes of all pictures.

    Only ordinary boxes are matched. Anchors in an `Ignore.REGION` are no negatives. Anchors that
    would not be negatives if an `Ignore.CLASS` box were an ordinary one are no negatives of its class.
    Nothing of this touches positives. Pictures that are not present have neither positives nor
    negatives.

    Args:
        anchors: (A, 4) xyxy, float32, pixels.
        labels: boxes of B pictures in the same pixels.
        rules: thresholds.
        grids: the regular grids that the anchors consist of, in their order; they make it fast.
    """
    if grids is not None and anchors.device.type == "cpu":
        return windowed(anchors, labels, rules, grids)
    return dense(anchors, labels, rules, grids)


def dense(
    anchors: Tensor, labels: PaddedBoxes, rules: Rules, grids: Grids | None = None
) -> Matches:
    """Returns what `match` returns; compares every anchor with every box."""
    b, m, a = *labels.valid.shape, len(anchors)
    device = anchors.device
    ordinary = labels.valid & (labels.ignore == Ignore.NO)
    best = torch.zeros(b, a, device=device)
    index = torch.zeros(b, a, dtype=torch.long, device=device)
    forced = torch.zeros(b, a, dtype=torch.bool, device=device)
    forcing = torch.zeros_like(index)
    num_classes = labels.coverage.shape[1]
    some_class = may_have(labels, Ignore.CLASS)
    of_class = labels.valid & (labels.ignore == Ignore.CLASS)
    counts = ordinary | of_class if some_class else ordinary
    shape = (b, num_classes, a if some_class else 0)
    ignored = torch.zeros(shape, dtype=torch.uint8, device=device)
    for block in _blocks(m, b * a, device):
        overlap = _overlap(labels.boxes[:, block], counts[:, block], anchors, grids)
        if rules.force or some_class:
            top = overlap.amax(2, keepdim=True)
            # 2.0 is no overlap: who is to reach nothing reaches it
            reached = overlap == top.masked_fill_((top <= 0) | (not rules.force), 2.0)
            forces = reached & ordinary[:, block, None] if some_class else reached
            forced |= forces.any(1)
            if rules.forced == "forcing":
                numbers = torch.arange(m, device=device)[block, None]
                forcing = torch.maximum(forcing, (forces * numbers).amax(1))
            if some_class:
                hit = (reached | (overlap >= rules.background)) & of_class[:, block, None]
                classes = labels.classes[:, block, None].expand(-1, -1, a)
                ignored.scatter_reduce_(1, classes, hit.to(torch.uint8), "amax")
                overlap.mul_(ordinary[:, block, None])
        value, which = overlap.max(1)
        index = torch.where(value > best, which + block.start, index)
        best = torch.maximum(best, value)
    if rules.forced == "forcing":
        index = torch.where(forced, forcing, index)
    positive = forced | (best >= rules.foreground)
    negative = (best < rules.background) & ~positive & labels.present[:, None]
    inside = in_regions(anchors, labels, rules.inside)
    of_classes = ignored.mT.bool() if ignored.shape[2] else None
    return matches_of(index * positive, positive, negative, inside, of_classes)


def _overlap(boxes: Tensor, counts: Tensor, anchors: Tensor, grids: Grids | None) -> Tensor:
    """Returns the IoU (B, m, A) of boxes (B, m, 4) and anchors; 0 of boxes that do not count (B, m).

    On a grid an overlap is a width, which the column decides, times a height, which the row decides: the
    same products as `iou` forms, with a third of the reading and writing.
    """
    if grids is None:
        return iou(boxes, anchors).mul_(counts[..., None])
    overlap = boxes.new_empty(*boxes.shape[:2], len(anchors))
    first = 0
    while first < len(grids):
        grid = grids[first]
        shape = (grid.rows, grid.columns, grid.step)
        level = slice(grid.first, grid.first + grid.rows * grid.columns * grid.step)
        places = anchors[level].view(*shape, 4)
        width = _shared(boxes, places[0], 0)
        height = _shared(boxes, places[:, 0], 1) * counts[..., None, None]
        there = overlap[..., level].view(*boxes.shape[:2], *shape)
        torch.mul(height[..., None, :], width[..., None, :, :], out=there)
        first += grid.step  # one grid for each anchor of a place
    tiny = torch.finfo(overlap.dtype).tiny
    union = (area(boxes)[..., None] + area(anchors).clamp(min=tiny)).sub_(overlap)
    return overlap.div_(union)


def _shared(boxes: Tensor, lines: Tensor, axis: int) -> Tensor:
    """Returns how far (B, m, N, k) boxes (B, m, 4) and anchors (N, k, 4) overlap in x (axis 0) or y (1)."""
    low = torch.maximum(boxes[..., None, None, axis], lines[..., axis])
    return (torch.minimum(boxes[..., None, None, axis + 2], lines[..., axis + 2]) - low).clamp_(
        min=0
    )


def windowed(anchors: Tensor, labels: PaddedBoxes, rules: Rules, grids: Grids) -> Matches:
    """Returns what `match` returns; looks only at the anchors that can matter to a box.

    Numbers of pairs depend on the data: on a GPU each would be waited for.
    """
    b, m, a = *labels.valid.shape, len(anchors)
    num_classes = labels.coverage.shape[1]
    matched = labels.valid & (labels.ignore != Ignore.REGION)
    rows = matched.reshape(-1).nonzero()[:, 0]  # box j of picture i is row i * m + j
    boxes, classes = labels.boxes.reshape(-1, 4), labels.classes.reshape(-1)
    ordinary = (labels.ignore == Ignore.NO).reshape(-1)
    keys = torch.zeros(b * a, dtype=torch.long)
    forced = torch.zeros(b * a, dtype=torch.bool)
    forcing = torch.zeros(b * a if rules.forced == "forcing" else 0, dtype=torch.long)
    ignored = (
        torch.zeros(b * a, num_classes, dtype=torch.bool)
        if may_have(labels, Ignore.CLASS)
        else None
    )
    seen = min(rules.background, rules.foreground)  # every overlap from here on is in the windows
    for block in rows.split(1000):
        least = reach(boxes[block], grids)
        which, anchor = windows(boxes[block], least.clamp(max=seen), grids)
        overlap = iou_of_pairs(boxes[block][which], anchors[anchor])
        top = torch.zeros(len(block)).scatter_reduce_(0, which, overlap, "amax")
        row = block[which]
        place = torch.div(row, m, rounding_mode="floor") * a + anchor
        reached = (overlap == top[which]) & (overlap > 0) & rules.force
        if ignored is not None:
            counts = ordinary[row]
            hit = ~counts & (reached | (overlap >= rules.background))
            ignored[place[hit], classes[row[hit]]] = True
            overlap, row, place, reached = (x[counts] for x in (overlap, row, place, reached))
        # Bits of a positive float grow with it; below them, earlier boxes have the larger number.
        key = (overlap.view(torch.int32).long() << 32) | (m - row % m)
        keys.scatter_reduce_(0, place, key, "amax")
        forced[place[reached]] = True
        if rules.forced == "forcing":
            forcing.scatter_reduce_(0, place[reached], row[reached] % m, "amax")
    touched = keys.nonzero()[:, 0]  # few of all anchors
    keys, forced = keys[touched], forced[touched]
    best = (keys >> 32).to(torch.int32).view(torch.float32)
    index = m - (keys & 0xFFFFFFFF)
    if rules.forced == "forcing":
        index = torch.where(forced, forcing[touched], index)
    else:
        low = forced & (best < seen)
        best[low], index[low] = _best_of_all(touched[low], anchors, labels)
    learns = forced | (best >= rules.foreground)
    positive, learned = torch.zeros(b * a, dtype=torch.bool), torch.zeros(b * a, dtype=torch.long)
    positive[touched[learns]], learned[touched[learns]] = True, index[learns]
    negative = labels.present[:, None].repeat(1, a)
    negative.view(-1)[touched[learns | (best >= rules.background)]] = False
    return matches_of(
        learned.view(b, a),
        positive.view(b, a),
        negative,
        in_regions(anchors, labels, rules.inside),
        None if ignored is None else ignored.view(b, a, num_classes),
    )


def _best_of_all(todo: Tensor, anchors: Tensor, labels: PaddedBoxes) -> tuple[Tensor, Tensor]:
    """Returns for anchors `todo` (K,), numbered through all pictures and rising, the best IoU with an
    ordinary box of their picture, and which box that is; each overlaps one.

    A forced anchor below the thresholds is in the windows of the boxes that force it, not in those of a box
    that overlaps it more and has better anchors elsewhere. Such anchors are few but for tiny boxes, and
    those that follow each other lie in the same rows, where not all boxes are.
    """
    b, m = labels.valid.shape
    ordinary = labels.valid & (labels.ignore == Ignore.NO)
    counts = torch.bincount(torch.div(todo, len(anchors), rounding_mode="floor"), minlength=b)
    best, index = torch.zeros(len(todo)), torch.zeros(len(todo), dtype=torch.long)
    for i, mine in enumerate(torch.arange(len(todo)).split(counts.tolist())):
        boxes = labels.boxes[i]
        for some in mine.split(max(1, BLOCK // max(1, m))) if len(mine) else ():
            own = anchors[todo[some] - i * len(anchors)]
            beside = (boxes[:, 1] < own[:, 3].max()) & (boxes[:, 3] > own[:, 1].min())
            near = (beside & ordinary[i]).nonzero()[:, 0]
            best[some], which = iou(own, boxes[near]).max(1)
            index[some] = near[which]
    return best, index


def matches_of(
    index: Tensor, positive: Tensor, negative: Tensor, inside: Tensor | None, ignored: Tensor | None
) -> Matches:
    """Returns the matches, anchors `inside` of regions taken from the negatives, and what is `ignored`
    cut down to these."""
    if inside is not None:
        negative = negative & ~inside
    if ignored is not None:
        ignored = ignored & negative[..., None]
    return Matches(index, positive, negative, ignored)


def in_regions(anchors: Tensor, labels: PaddedBoxes, least: float) -> Tensor | None:
    """Returns (B, A) bool, whether at least the share `least` of an anchor (A, 4) is in one of its
    picture's regions; None: there are no regions. A few boxes at a time."""
    if not may_have(labels, Ignore.REGION):
        return None
    b, m, a = *labels.valid.shape, len(anchors)
    inside = torch.zeros(b, a, dtype=torch.bool, device=anchors.device)
    regions, areas = labels.valid & (labels.ignore == Ignore.REGION), area(anchors)
    for block in _blocks(m, b * a, anchors.device):
        inside |= _inside(labels.boxes[:, block], regions[:, block], anchors, areas, least)
    return inside


def _inside(boxes: Tensor, regions: Tensor, anchors: Tensor, areas: Tensor, least: float) -> Tensor:
    """Returns (B, A) bool, whether at least the share `least` of an anchor is in one of the boxes
    (B, m, 4) that are `regions` (B, m)."""
    share = intersection(boxes, anchors) >= least * areas
    return (share & regions[..., None]).any(1)


def _blocks(boxes: int, pairs: int, device: torch.device) -> list[slice]:
    """Returns the parts in which boxes are looked at, each of which makes so many pairs."""
    most = PAIRS_ON_GPU if device.type == "cuda" else PAIRS
    step = max(1, most // max(1, pairs))
    return [slice(i, i + step) for i in range(0, boxes, step)]


def may_have(labels: PaddedBoxes, kind: Ignore) -> bool:
    """Returns whether a box is of this kind, `CLASS` or `REGION`; on a GPU, where asking means waiting,
    whether one may be."""
    if not (labels.some_class if kind == Ignore.CLASS else labels.some_region):
        return False
    return labels.boxes.is_cuda or bool((labels.valid & (labels.ignore == kind)).any())
