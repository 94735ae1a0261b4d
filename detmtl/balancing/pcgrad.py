"""Gradients that point against each other lose what points against the other.

Each task's gradient is projected, one after the other in random order, on what is orthogonal to every
gradient that it conflicts with; the results are added up. Since projections are linear combinations,
all of it happens on the inner products of the gradients.
Source: Yu et al. 2020 (PCGrad), arXiv 2001.06782, algorithm 1. Deviation: the order is drawn by a
fixed formula from the number of the batch, so that a run resumes and all processes agree.
Letters: T tasks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detmtl.balancing.losses import BalancerSettings, Losses
from detmtl.balancing.on_gradients import OnInnerProducts


class PcGradSettings(BalancerSettings):
    """Projection of conflicting gradients on the trunk; the heads get their own."""

    kind: Literal["pcgrad"]

    def build(self, tasks: Sequence[str]) -> "PcGrad":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task.
        """
        return PcGrad(self.losses(tasks))


class PcGrad(OnInnerProducts):
    """The sum of the projected gradients."""

    batches: Tensor

    def __init__(self, losses: Losses):
        """Takes what turns terms into losses."""
        super().__init__(losses)
        self.register_buffer("batches", torch.zeros((), dtype=torch.float64))

    def weigh(self, inner: Tensor) -> Tensor:
        """See `OnInnerProducts.weigh`."""
        weights = projected(inner, orders(self.batches, len(inner)))
        self.batches.add_(1)
        return weights


def projected(inner: Tensor, order: Tensor) -> Tensor:
    """Returns the weights (T,) that make the sum of the projected gradients out of the gradients.

    Args:
        inner: (T, T) inner products of the gradients.
        order: (T, T) int64; row i are the tasks, in the order in which gradient i is compared with them.
    """
    tasks = torch.arange(len(inner), device=inner.device)
    # row i: what gradient i has become, in terms of the given ones
    parts = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    for others in order.T:
        along = (parts * inner[others]).sum(1)
        length = inner.diagonal()[others].clamp(min=torch.finfo(inner.dtype).tiny)
        conflict = (along < 0) & (others != tasks)
        parts[tasks, others] -= torch.where(conflict, along / length, 0.0)
    return parts.sum(0)


def orders(number: Tensor, num_tasks: int) -> Tensor:
    """Returns a permutation of the T tasks for each of them, (T, T) int64, on the device of `number`.

    A generator's state on the device could be neither kept in a checkpoint nor shared without waiting.
    The fractions of a fast sine are as good as random for so few numbers.
    """
    count = num_tasks * num_tasks
    places = torch.arange(count, dtype=torch.float64, device=number.device)
    noise = torch.frac(torch.sin((number * count + places + 1) * 12.9898) * 43758.5453)
    return noise.view(num_tasks, num_tasks).argsort(1)
