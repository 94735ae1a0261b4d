"""Weights by how uncertain each task is, learned with the network.

Source: Kendall et al. 2018, arXiv 1705.07115, equation 10. Deviations: one form, exp(-s) L + s / 2 with
s the logarithm of the variance, for every loss (theirs halves the first summand for regression), so
that every weight starts at 1; a silent task's s has no gradient, so that only what the optimizer remembers
moves it; the settings' weight of a task multiplies both summands: of the loss alone, s would take it back.
Letters: T tasks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detmtl.balancing.balancer import Balancer, Terms, push
from detmtl.balancing.losses import BalancerSettings, Losses


class UncertaintySettings(BalancerSettings):
    """A learned variance for each task; it is trained by the run's optimizer, without weight decay."""

    kind: Literal["uncertainty"]

    def build(self, tasks: Sequence[str]) -> "Uncertainty":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task.
        """
        return Uncertainty(self.losses(tasks))


class Uncertainty(Balancer):
    """Weights exp(-s) with a price s / 2 that keeps them from vanishing.

    Attributes:
        log_variances: (T,), the s of each task.
    """

    def __init__(self, losses: Losses):
        """Takes what turns terms into losses."""
        super().__init__()
        self.losses = losses
        self.log_variances = nn.Parameter(torch.zeros(len(losses.tasks)))

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`."""
        losses = self.losses(terms)
        total = losses.sum(torch.exp(-self.log_variances))
        # in full in every process: gradients are averaged
        price = (0.5 * self.log_variances * self.losses.of_tasks * losses.speaks).sum()
        if total is None:
            if losses.alone:
                return push(None, losses.raw, scaler, share)
            total = price * 0
        push(total + price, losses.raw, scaler, share)
        return total.detach()
