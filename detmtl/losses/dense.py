"""The loss of a class per pixel, for every kind of label.

| pixel | loss |
|---|---|
| a class | -log p of the class, weighted |
| `OTHER`, none of the covered classes | -log of the sum of p over all classes, each times 1 - coverage |
| `OTHER` where every class is covered fully | none: there is nothing that it could be |
| `UNKNOWN` | none |
| picture not looked at, or without any pixel that has a loss | none, and no part in the normalizer |

A class of coverage 0 takes its full share of `OTHER`: the merged probability of all that the teacher,
or the people, did not look for. A class of coverage r between was looked for by somebody who misses
1 - r of it: that much of its probability is what makes them say `OTHER`.
Source: marginal cross entropy, Shi et al. 2021, arXiv 2007.03868, and Cermelli et al. 2020, arXiv
2002.00718, equation 5 (there the merged classes are those of earlier steps). The factors 1 - coverage
are ours; they are one column of the forward correction of Patrini et al. 2017, arXiv 1609.03683.
Letters: B pictures, C classes, H and W pixels, h and w positions.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.losses.normalizer import Normalizer, normalizer
from detmtl.structures.labels import OTHER, PaddedMaps
from detmtl.structures.sample import Batch


def marginal_cross_entropy(
    logits: Tensor,
    classes: Tensor,
    coverage: Tensor,
    some_other: bool = True,
    none_of_them: int = OTHER,
) -> tuple[Tensor, Tensor]:
    """Returns the loss of each position, 0 where there is none, and where there is one.

    Args:
        logits: (B, C, h, w), at least float32.
        classes: (B, h, w) uint8, in 0..C-1 or `OTHER` or `UNKNOWN`.
        coverage: (B, C) in [0, 1].
        some_other: whether an `OTHER` pixel may have a loss: without, its merged probability is spared.
        none_of_them: `OTHER`, which TorchScript knows only as a default.

    Returns:
        (B, h, w) of the logits' type, and (B, h, w) bool.
    """
    total = logits.logsumexp(1)
    ordinary, other = classes < none_of_them, classes == none_of_them
    index = torch.where(ordinary, classes, 0).long()[:, None]
    losses = (total - logits.gather(1, index)[:, 0]) * ordinary
    if not some_other:
        return losses, ordinary
    left = (1 - coverage).to(logits.dtype)
    possible = (left > 0).any(1)
    # -inf in every class would have no gradient; such pictures are masked below.
    shares = torch.where(possible[:, None], left, torch.ones_like(left)).log()
    merged = total - (logits + shares[..., None, None]).logsumexp(1)
    other = other & possible[:, None, None]
    return torch.where(other, merged, losses), ordinary | other


def semantic_losses(
    logits: Tensor, labels: PaddedMaps, batch: Batch, stride: int, kind: Normalizer
) -> Tensor:
    """Returns each picture's part of the normalized loss, (B,) of at least float32.

    The logits are brought to one position for each `stride` pixels, bilinearly, and learn the class
    of the pixel in the middle of each.

    Args:
        logits: (B, C, h, w), of the whole padded pictures.
        labels: of the B pictures; H and W are multiples of `stride`.
        batch: the pictures' sources and weights.
        stride: pixels between the positions of the loss.
        kind: what the sum is divided by; positions with a loss count, whatever their weight.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    height, width = (n // stride for n in labels.classes.shape[1:])
    if logits.shape[-2:] != (height, width):
        logits = F.interpolate(logits, size=(height, width), mode="bilinear")
    middle = slice(stride // 2, None, stride)
    classes = labels.classes[:, middle, middle]
    losses, known = marginal_cross_entropy(logits, classes, labels.coverage, labels.some_other)
    if labels.weights is not None:
        losses = losses * labels.weights[:, middle, middle]
    # Who wrote the map counts here, not who wrote the picture's other labels.
    count = known.sum((1, 2))
    scale = normalizer(kind, count, count > 0, replace(batch, grades=labels.grade))
    return losses.sum((1, 2)) * scale
