"""How far predicted depths are from true ones, where these are known.

All of them compare logarithms: an error of 10 % costs the same near and far.
Letters: B pictures, H and W pixels, h and w positions.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.losses.normalizer import Normalizer, normalizer
from detmtl.structures.depth import PaddedDepth
from detmtl.structures.sample import Batch

DepthLoss = Literal["silog", "l1", "berhu"]


def depth_errors(differences: Tensor, known: Tensor, kind: str, invariance: float = 0.5) -> Tensor:
    """Returns the mean loss of each picture's known positions, (B,); 0 where none is known.

    "silog": mean of d^2 less `invariance` times the square of the mean of d: of an error that a picture's
        depths have in common only the rest counts. Source: Eigen et al. 2014, arXiv 1406.2283,
        equation 4, with lambda = .5 as they train.
    "l1": mean of |d|.
    "berhu": |d| up to c, (d^2 + c^2) / 2c beyond, c being a fifth of the largest |d| in this process's
        batch. Source: Laina et al. 2016, arXiv 1606.00373, equation 2 (there of meters, not of their
        logarithms). c has no gradient: it is where the loss bends, and no part of what is to become small.

    Args:
        differences: (B, h, w), logarithm of the prediction less that of the truth.
        known: (B, h, w) bool.
        kind: which one, a `DepthLoss`; TorchScript knows no `Literal`.
        invariance: in [0, 1]; 1 does not see a common factor of a picture's depths at all.
    """
    d = torch.where(known, differences, 0.0)
    count = known.sum((1, 2)).clamp(min=1)
    if kind == "silog":
        return d.square().sum((1, 2)) / count - invariance * (d.sum((1, 2)) / count).square()
    size = d.abs()
    if kind == "berhu":
        c = (0.2 * size.detach().amax()).clamp(min=1e-6)
        size = torch.where(size <= c, size, (d.square() + c.square()) / (2 * c))
    return size.sum((1, 2)) / count


def depth_losses(
    logs: Tensor,
    labels: PaddedDepth,
    batch: Batch,
    stride: int,
    kind: DepthLoss,
    invariance: float,
    divisor: Normalizer,
) -> Tensor:
    """Returns each picture's part of the normalized loss, (B,) of at least float32.

    The logarithms are brought to one position for each `stride` pixels, bilinearly, and learn the depth
    of the pixel in the middle of each.

    Args:
        logs: (B, 1, h, w), logarithms of meters, of the whole padded pictures.
        labels: of the B pictures; H and W are multiples of `stride`.
        batch: the pictures' sources and weights.
        stride: pixels between the positions of the loss.
        kind, invariance: see `depth_errors`.
        divisor: what the sum of known positions' losses is divided by.
    """
    if logs.dtype in (torch.float16, torch.bfloat16):
        logs = logs.float()
    height, width = (n // stride for n in labels.depth.shape[1:])
    if logs.shape[-2:] != (height, width):
        logs = F.interpolate(logs, size=(height, width), mode="bilinear")
    middle = slice(stride // 2, None, stride)
    depth = labels.depth[:, middle, middle].to(logs.dtype)
    known = depth > 0
    truth = torch.where(known, depth, 1.0).log()
    means = depth_errors(logs[:, 0] - truth, known, kind, invariance)
    count = known.sum((1, 2))
    scale = normalizer(divisor, count, count > 0, replace(batch, grades=labels.grade))
    return means * count * scale
