"""The boxes on which heads that look at boxes learn: people's, a little displaced.

Letters: B pictures, M the most boxes of a picture, R boxes chosen, m of each picture.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detmtl.structures.labels import PaddedBoxes


@dataclass(frozen=True, eq=False)
class Rois:
    """Boxes to look at.

    Attributes:
        boxes: (R, 4) xyxy, pixels of the network's picture.
        picture, row: (R,) int64, which label of `PaddedBoxes` each stands for.
        on: (R,) bool; the others are padding.
    """

    boxes: Tensor
    picture: Tensor
    row: Tensor
    on: Tensor


def chosen(
    labels: PaddedBoxes, known: Tensor, most: int, jitter: float, seeds: Tensor | None = None
) -> Rois:
    """Returns up to `most` boxes of each picture, displaced and scaled at random.

    A detector's boxes are never quite right; who learned on exact ones alone trusts them too much.
    Chance is a function of the boxes' coordinates and of the seed with which the picture was augmented, so
    that nothing has to be remembered for a run that is resumed, every device and process draws the same,
    and a picture that comes again gives other boxes, elsewhere. Nothing is waited for on a GPU, where
    padding is kept.

    Args:
        labels: of the batch.
        known: (B, M) bool, the boxes that can be learned from.
        most: of a picture.
        jitter: the largest shift in shares of a box's sides, and of the logarithm of each side.
        seeds: (B,) int64, see `Batch.seeds`; None: coordinates alone decide.
    """
    chance = hashed(labels.boxes, 5, None if seeds is None else seeds[:, None])
    b, m = known.shape
    if m > most:
        keys = torch.where(known, chance[..., 0], 2.0)
        row = keys.argsort(dim=1, stable=True)[:, :most]
    else:
        row = torch.arange(m, device=known.device).expand(b, m)
    picture = torch.arange(b, device=known.device)[:, None].expand_as(row)
    picture, row = picture.reshape(-1), row.reshape(-1)
    on = known[picture, row]
    if not on.is_cuda:
        keep = on.nonzero()[:, 0]
        picture, row, on = picture[keep], row[keep], on[keep]
    boxes = labels.boxes[picture, row]
    # Padding, which has no sides, becomes a box of one pixel: finite, and weighted 0.
    side = torch.where(on[:, None], boxes[:, 2:] - boxes[:, :2], 1.0)
    shake = (2 * chance[picture, row, 1:] - 1) * jitter
    center = boxes[:, :2] + side / 2 + shake[:, :2] * side
    half = side * torch.exp(shake[:, 2:]) / 2
    return Rois(torch.cat([center - half, center + half], dim=1), picture, row, on)


def hashed(boxes: Tensor, count: int, seeds: Tensor | None = None) -> Tensor:
    """Returns (..., count) float32 in [0, 1) that follow from the bits of boxes (..., 4) float32, evenly
    spread and the same on every device.

    Args:
        boxes: to draw numbers for.
        count: of numbers for each box.
        seeds: int64 that broadcast to (...), of which the lower half counts: others draw anew. None: 0.
    """
    bits = boxes.float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    state = bits[..., 0] if seeds is None else bits[..., 0] ^ (seeds & 0xFFFFFFFF)
    for k in range(1, 4):
        state = _mixed(state * 31 + bits[..., k])
    ways = torch.arange(1, count + 1, device=boxes.device) * 0x9E3779B9
    drawn = _mixed(_mixed(state[..., None] + ways))
    return (drawn >> 8).float() / (1 << 24)


def _mixed(x: Tensor) -> Tensor:
    """Returns the lower 32 bits of x, int64 >= 0, stirred."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
