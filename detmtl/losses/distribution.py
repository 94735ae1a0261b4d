"""Loss of distances that are predicted as distributions over bins.

Letters: n bins, thus n + 1 places 0 .. n between which a distance may lie.
"""

import torch
from torch import Tensor

NEAR_END = 1e-2
"""Bins that a distance keeps from the last place, so that there is always a place after it."""


def distribution_focal(logits: Tensor, distances: Tensor, near_end: float = NEAR_END) -> Tensor:
    """Returns the distribution focal loss (...) of each distance.

    The cross entropy with the two places beside the distance, weighted so that a distribution on these
    two alone has the distance as its mean. Distances beyond the ends are taken to the ends.

    Source: Li et al. 2020, arXiv 2006.04388, equation 6.

    Args:
        logits: (..., n + 1), before the softmax over the places.
        distances: (...) in bins.
        near_end: see `NEAR_END`, which TorchScript knows only as a default.
    """
    distances = distances.to(logits.dtype).clamp(0, logits.shape[-1] - 1 - near_end)
    left = distances.detach().floor()
    share = distances - left
    place = left.long().unsqueeze(-1)
    log_p = torch.log_softmax(logits, dim=-1)
    beside = torch.cat([log_p.gather(-1, place), log_p.gather(-1, place + 1)], dim=-1)
    return -(beside[..., 0] * (1 - share) + beside[..., 1] * share)
