"""Suppression of overlapping boxes in many pictures at once, for a GPU; compiles under TorchScript.

Suppression goes from the best box down: a box is kept unless one that is kept overlaps it. Of boxes in that
order, who is kept depends on earlier ones alone, so deciding all of them at once, again and again, comes to
rest at the same answer, mostly within ten rounds: the longest chain of boxes of which each suppresses the
next. One at a time, each box would be a step that a GPU waits for.
Letters: B pictures, N boxes of each, best first.
"""

import torch
from torch import Tensor


def kept_of_all(
    boxes: Tensor, classes: Tensor, counts: list[int], limit: float, agnostic: bool, wanted: int
) -> list[Tensor]:
    """Returns for each picture the places of the boxes that are kept, rising, at most `wanted`.

    A prefix that yields enough yields the right ones, so a few boxes are looked at first.

    Args:
        boxes: (B, N, 4) xyxy.
        classes: (B, N).
        counts: of each picture, how many of its N boxes there are; the others come last.
        limit: IoU above which a box suppresses another of its class.
        agnostic: whether it suppresses those of any class.
        wanted: most that are kept.
    """
    most = 0
    for count in counts:
        most = max(most, count)
    first = min(most, 3 * wanted // 2)
    keep = _kept(boxes[:, :first], classes[:, :first], counts, limit, agnostic)
    found = _counted(keep)
    while first < most and _few(found, counts, first, wanted):
        first = min(most, 4 * first)
        keep = _kept(boxes[:, :first], classes[:, :first], counts, limit, agnostic)
        found = _counted(keep)
    # places of what is kept come first when sorted, and how many they are is known already
    places = torch.where(keep, torch.arange(first, device=boxes.device), first).sort(dim=1)[0]
    kept: list[Tensor] = []
    for i in range(len(counts)):
        kept.append(places[i, : min(found[i], wanted)])
    return kept


def _counted(keep: Tensor) -> list[int]:
    """Returns how many are kept in each picture; a device is waited for."""
    counts: list[int] = keep.sum(1).tolist()
    return counts


def _few(found: list[int], counts: list[int], first: int, wanted: int) -> bool:
    """Returns whether a picture has fewer boxes than wanted, and had more than were looked at."""
    for i in range(len(counts)):  # noqa: SIM110 (TorchScript knows no generators)
        if found[i] < wanted and counts[i] > first:
            return True
    return False


def _kept(
    boxes: Tensor, classes: Tensor, counts: list[int], limit: float, agnostic: bool
) -> Tensor:
    """Returns which of the boxes (B, N) are kept; a few pictures at a time."""
    n = boxes.size(1)
    place = torch.arange(n, device=boxes.device)
    rows: list[Tensor] = []
    for count in counts:
        rows.append(place < count)
    valid = torch.stack(rows)
    parts: list[Tensor] = []
    step = max(1, (1 << 26) // max(1, n * n))
    for i in range(0, boxes.size(0), step):
        over = _over(boxes[i : i + step], limit)
        if not agnostic:
            some = classes[i : i + step]
            over = over & (some.unsqueeze(2) == some.unsqueeze(1))
        over = over.tril(-1)
        here = valid[i : i + step]
        keep = here
        while True:
            after = here & ~(over & keep.unsqueeze(1)).any(2)
            if torch.equal(after, keep):
                break
            keep = after
        parts.append(keep)
    return torch.cat(parts)


def _over(boxes: Tensor, limit: float) -> Tensor:
    """Returns (B, N, N) bool, which boxes (B, N, 4) overlap by more than an IoU of `limit`; in float64, as
    one box at a time is suppressed."""
    boxes = boxes.double()
    a, b = boxes.unsqueeze(2), boxes.unsqueeze(1)
    sides = boxes[..., 2:] - boxes[..., :2]
    area = sides[..., 0] * sides[..., 1]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp_(
        min=0
    )
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp_(
        min=0
    )
    inter = width.mul_(height)
    union = (area.unsqueeze(2) + area.unsqueeze(1)).sub_(inter)
    return inter.div_(union) > limit
