"""Suppression of overlapping boxes in many pictures at once, for a GPU; compiles under TorchScript.

Suppression goes from the best box down: a box is kept unless one that is kept overlaps it. Of boxes in that
order, who is kept depends on earlier ones alone, so deciding all of them at once, again and again, comes to
rest at the same answer: after k rounds the first k boxes at least are right. A row of boxes of which each
overlaps the next only needs a round for each; boxes around objects need few. One at a time, each box would be
a step that a GPU waits for.
Letters: B pictures, N boxes of each, best first.
"""

import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision.nms)
from torch import Tensor


def kept_of_all(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    limit: float,
    agnostic: bool,
    wanted: int,
    pairs: int = 1 << 26,
) -> list[Tensor]:
    """Returns for each picture the places of the boxes that are kept, rising, at most `wanted`.

    A prefix that yields enough yields the right ones, so a few boxes are looked at first, and more of those
    pictures only that had too few.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: (B, N), falling; below 0 there is no box.
        classes: (B, N).
        limit: IoU above which a box suppresses another of its class.
        agnostic: whether it suppresses those of any class.
        wanted: most that are kept.
        pairs: of boxes that are compared at once, which bounds the memory: by arithmetic 24 bytes each,
            1.6 GB. Where those of one picture are more, its boxes are suppressed one by one.
    """
    counts = _counted(scores >= 0)
    most = 0
    kept: list[Tensor] = []
    todo: list[int] = []
    for i in range(len(counts)):
        most = max(most, counts[i])
        kept.append(torch.empty(0, dtype=torch.long, device=boxes.device))
        todo.append(i)
    if most == 0:
        return kept
    first = min(most, 3 * wanted // 2)
    while len(todo) > 0:
        if first * first > pairs:
            for i in todo:
                n = counts[i]
                its = boxes[i, :n].double() if agnostic else apart(boxes[i, :n], classes[i, :n])
                kept[i] = torch.ops.torchvision.nms(its, scores[i, :n].double(), limit)[:wanted]
            break
        rows = torch.tensor(todo, device=boxes.device)
        valid = scores[rows, :first] >= 0
        keep = _kept(boxes[rows, :first], valid, classes[rows, :first], limit, agnostic, pairs)
        found = _counted(keep)
        # places of what is kept come first when sorted, and how many they are is known already
        places = torch.where(keep, torch.arange(first, device=boxes.device), first).sort(dim=1)[0]
        left: list[int] = []
        for k in range(len(todo)):
            i = todo[k]
            if found[k] >= wanted or counts[i] <= first:
                kept[i] = places[k, : min(found[k], wanted)]
            else:
                left.append(i)
        todo = left
        first = min(most, 4 * first)
    return kept


def apart(boxes: Tensor, classes: Tensor) -> Tensor:
    """Returns boxes (N, 4) in float64, those of each class (N,) shifted to where no other class has any: in
    half precision that would overflow, in float32 move corners by some hundredths of a pixel."""
    boxes = boxes.double()
    if boxes.size(0) == 0:
        return boxes
    return boxes + (classes.double() * (boxes.max() + 1.0)).unsqueeze(1)


def _counted(keep: Tensor) -> list[int]:
    """Returns how many are True in each row of (B, N); a device is waited for."""
    counts: list[int] = keep.sum(1).tolist()
    return counts


def _kept(
    boxes: Tensor, valid: Tensor, classes: Tensor, limit: float, agnostic: bool, pairs: int
) -> Tensor:
    """Returns which of the boxes (B, N) are kept; as many pictures at a time as `pairs` allows."""
    parts: list[Tensor] = []
    step = max(1, pairs // max(1, boxes.size(1) * boxes.size(1)))
    for i in range(0, boxes.size(0), step):
        over = _over(boxes[i : i + step], limit).tril_(-1)
        if not agnostic:
            some = classes[i : i + step]
            over &= some.unsqueeze(2) == some.unsqueeze(1)
        here = valid[i : i + step]
        keep = here
        while True:  # two rounds for each look, which waits for the device
            before = here & ~(over & keep.unsqueeze(1)).any(2)
            keep = here & ~(over & before.unsqueeze(1)).any(2)
            if torch.equal(before, keep):
                break
        parts.append(keep)
    return torch.cat(parts)


def _over(boxes: Tensor, limit: float) -> Tensor:
    """Returns (B, N, N) bool, which boxes (B, N, 4) overlap by more than an IoU of `limit`; in float64, as
    when one box at a time is suppressed."""
    boxes = boxes.detach().double()
    a, b = boxes.unsqueeze(2), boxes.unsqueeze(1)
    sides = boxes[..., 2:] - boxes[..., :2]
    area = sides[..., 0] * sides[..., 1]
    inter = torch.minimum(a[..., 2], b[..., 2])
    inter = inter.sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3])
    inter = inter.mul_(height.sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0))
    union = torch.add(area.unsqueeze(2), area.unsqueeze(1), out=height).sub_(inter)
    return inter.div_(union) > limit
