"""Losses of box regression, one number per box.

Letters: N boxes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.structures.boxes import area


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns the sum of absolute differences (...) of deltas (..., 4)."""
    return (prediction - target).abs().sum(-1)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1 / 9) -> Tensor:
    """Returns the smooth L1 loss (...) of deltas (..., 4), summed over the four.

    Source: Girshick 2015 (Fast R-CNN), arXiv 1504.08083, equation 3; beta as in detectron2.

    Args:
        prediction: (..., 4).
        target: (..., 4).
        beta: difference at which the square turns into a straight line; 0 gives `l1`.
    """
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).sum(-1)


EPSILON = 1e-7
"""Square pixels added to divisors, as torchvision does: keeps boxes without area finite."""


def paired_iou(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns the IoU (...) in [0, 1] of boxes (..., 4) xyxy with x1 <= x2 and y1 <= y2."""
    return _overlap(prediction, target)[0]


def giou(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns 1 - generalized IoU (...), in [0, 2], of boxes (..., 4) xyxy.

    Source: Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1.

    Args:
        prediction: (..., 4) xyxy with x1 <= x2 and y1 <= y2.
        target: (..., 4) xyxy, likewise.
    """
    iou, union = _overlap(prediction, target)
    hull = _hull(prediction, target)
    hull_area = hull[..., 0] * hull[..., 1]
    return 1 - iou + (hull_area - union) / (hull_area + _epsilon())


def diou(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns 1 - IoU + the squared distance of the centers in units of the hull's diagonal (...), in
    [0, 2], of boxes (..., 4) xyxy.

    Unlike GIoU it pulls the centers together even where one box lies in the other.

    Source: Zheng et al. 2020, arXiv 1911.08287, equation 7.

    Args:
        prediction: (..., 4) xyxy with x1 <= x2 and y1 <= y2.
        target: (..., 4) xyxy, likewise.
    """
    iou, _ = _overlap(prediction, target)
    diagonal = _hull(prediction, target).square().sum(-1)
    twice_apart = prediction[..., :2] + prediction[..., 2:] - target[..., :2] - target[..., 2:]
    return 1 - iou + twice_apart.square().sum(-1) / 4 / (diagonal + _epsilon())


def ciou(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns the complete IoU loss (...) of boxes (..., 4) xyxy: `diou` and a term for their shapes.

    Source: Zheng et al. 2020, arXiv 1911.08287, equations 8 to 11. The weight of the term for the
    shapes has no gradient, as in the authors' code and in torchvision.

    Args:
        prediction: (..., 4) xyxy with x1 <= x2 and y1 <= y2.
        target: (..., 4) xyxy, likewise.
    """
    shape = shape_distance(prediction, target)
    with torch.no_grad():
        weight = shape / (1 - paired_iou(prediction, target) + shape + _epsilon())
    return diou(prediction, target) + weight * shape


def shape_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns how far the boxes' ratios of width to height differ (...), in [0, 1]; see `ciou`."""
    angles = []
    for boxes in (prediction, target):
        sides = boxes[..., 2:] - boxes[..., :2]
        angles.append(torch.atan2(sides[..., 0], sides[..., 1].clamp(min=_epsilon())))
    return 4 / math.pi**2 * (angles[1] - angles[0]).square()


def _epsilon(value: float = EPSILON) -> float:
    """Returns `EPSILON`, which TorchScript knows only as a default."""
    return value


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns IoU and union (...) of boxes (..., 4)."""
    inner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inner = inner.clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    union = area(a) + area(b) - intersection
    return intersection / (union + _epsilon()), union


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """Returns width and height (..., 2) of the smallest box around both boxes (..., 4)."""
    return torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
