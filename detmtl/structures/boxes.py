"""Arithmetic on boxes.

Boxes are plain tensors (..., 4) in `xyxy`: absolute pixels, x1 <= x2, y1 <= y2, the pixel grid's
origin at the top left corner of the top left pixel. Any other format carries a suffix (`boxes_xywh`).
Letters: N, M boxes.
"""

import torch
from torch import Tensor


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Returns boxes (..., 4) as left, top, width, height (COCO's format)."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Returns areas (...) in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Returns pairwise intersection areas (..., N, M) of a (..., N, 4) and b (..., M, 4)."""
    b = b.mT.contiguous().mT  # a corner's numbers side by side: a quarter of the time
    return _shared(a, b, 0) * _shared(a, b, 1)


def _shared(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Returns how far boxes overlap (..., N, M) in x (axis 0) or y (1)."""
    low = torch.maximum(a[..., :, None, axis], b[..., None, :, axis])
    high = torch.minimum(a[..., :, None, axis + 2], b[..., None, :, axis + 2])
    return high.sub_(low).clamp_(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Returns pairwise intersection over union (..., N, M) in [0, 1]; 0 where both are empty."""
    inter = intersection(a, b)
    union = (area(a)[..., :, None] + area(b)[..., None, :]).sub_(inter)
    return inter / union.clamp_(min=torch.finfo(inter.dtype).tiny)


def iou_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Returns the IoU (...) of each box (..., 4) of `a` with that of `b` at its place, by the operations of
    `iou`, so that ties stay ties."""
    left_top = torch.maximum(a[..., :2], b[..., :2])
    side = (torch.minimum(a[..., 2:], b[..., 2:]) - left_top).clamp_(min=0)
    inter = side[..., 0] * side[..., 1]
    union = area(a) + area(b) - inter
    return inter / union.clamp(min=torch.finfo(inter.dtype).tiny)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Returns boxes (..., 4) cut at the edges of a picture of height x width pixels."""
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)
