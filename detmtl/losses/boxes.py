"""Losses of box regression, one number per box.

Letters: N boxes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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


def giou(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns 1 - generalized IoU (...), in [0, 2], of boxes (..., 4) xyxy.

    Source: Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1.

    Args:
        prediction: (..., 4) xyxy with x1 <= x2 and y1 <= y2.
        target: (..., 4) xyxy, likewise.
    """
    epsilon = 1e-7  # torchvision's; keeps two boxes without area finite
    inner = torch.minimum(prediction[..., 2:], target[..., 2:]) - torch.maximum(
        prediction[..., :2], target[..., :2]
    )
    hull = torch.maximum(prediction[..., 2:], target[..., 2:]) - torch.minimum(
        prediction[..., :2], target[..., :2]
    )
    inner = inner.clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    hull_area = hull[..., 0] * hull[..., 1]
    union = _area(prediction) + _area(target) - intersection
    return 1 - intersection / (union + epsilon) + (hull_area - union) / (hull_area + epsilon)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
