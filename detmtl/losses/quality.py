"""Class losses whose target says how well the box fits, not only what is in it.

The target of a positive is q in [0, 1]: the IoU of its predicted box with its label's, times the
label's score. For gold (score 1) that is the papers' target; for silver, whose score is the probability
p that there is such an object at all, p * IoU is the IoU to be expected, with 0 where there is none. So
the network's score stays what it is for gold, an expected overlap, and boxes rank by it.
Letters: B pictures, C classes, R rows (anchors of a level), L levels, K positives.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.losses.focal import FocalTargets, focal_elements, one_pass, sigmoid_focal


def quality_focal(logits: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """Returns |target - p| ** beta times the cross entropy of each element, shape as `logits`.

    It is twice the focal loss of soft targets with alpha .5, the same weight for all targets.

    Source: Li et al. 2020, arXiv 2006.04388, equation 5.

    Args:
        logits: before the sigmoid, which gives p.
        targets: q in [0, 1], broadcasts against `logits`; 0 for negatives.
        beta: exponent, >= 0.
    """
    return 2 * sigmoid_focal(logits, targets, alpha=0.5, gamma=beta)


def varifocal(
    logits: Tensor, targets: Tensor, negative: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Returns the varifocal loss of each element, shape as `logits`, at least float32.

    Positives are not weakened where they are learned already, but weighted by their target: what fits
    well counts more.

    Source: Zhang et al. 2021, arXiv 2008.13367, equation 2. As in the authors' code an element of target
    0 is a negative, a positive whose box does not overlap its label's included.

    Args:
        logits: before the sigmoid, which gives p.
        targets: q in [0, 1], broadcasts against `logits`; 0 for negatives.
        negative: weight of p ** gamma times the cross entropy where the target is 0; the paper's alpha.
        gamma: exponent, >= 0.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    targets = targets.to(logits.dtype).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = torch.where(targets > 0, targets, negative * torch.sigmoid(logits) ** gamma)
    return weights * entropy


def quality_focal_sums(
    levels: Sequence[Tensor], targets: Sequence[FocalTargets], beta: float
) -> Tensor:
    """Returns each picture's weighted sum of `quality_focal` (B,); see `focal.focal_sums`."""
    return one_pass(levels, targets, 1.0, beta, partial(_quality_focal_elements, beta=beta))


def varifocal_sums(
    levels: Sequence[Tensor], targets: Sequence[FocalTargets], negative: float, gamma: float
) -> Tensor:
    """Returns each picture's weighted sum of `varifocal` (B,); see `focal.focal_sums`."""
    elements = partial(_varifocal_elements, negative=negative, gamma=gamma)
    return one_pass(levels, targets, negative, gamma, elements)


def _quality_focal_elements(x: Tensor, targets: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    loss, slope = focal_elements(x, targets, alpha=0.5, gamma=beta)
    return 2 * loss, 2 * slope


def _varifocal_elements(
    x: Tensor, targets: Tensor, negative: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Returns `varifocal` of each element and its derivative by the logit x, all (K,)."""
    p = torch.sigmoid(x)
    entropy = F.binary_cross_entropy_with_logits(x, targets, reduction="none")
    factor = negative * p**gamma
    slope = factor * (p + gamma * (1 - p) * entropy)
    fits = targets > 0
    return (
        torch.where(fits, targets, factor) * entropy,
        torch.where(fits, targets * (p - targets), slope),
    )
