"""Weights by which every task pulls at the trunk as hard as its progress allows.

Source: Chen et al. 2018 (GradNorm), arXiv 1711.02257, algorithm 1 and equations 1 and 2. Deviations: the
norm is that on all of the trunk's parameters, which tasks at other places than the last layer reach, too;
a step of the weights is measured in units of the tasks' mean norm, so that it does not depend on
the unit of the losses; the loss at the start is the mean of the first 20; silent tasks keep their weight;
the settings' weight of a task comes on top: norms are balanced as without it, else it would be taken back.
Letters: T tasks.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detmtl.balancing.balancer import Terms
from detmtl.balancing.losses import BalancerSettings, Losses, MeanLoss
from detmtl.balancing.on_gradients import OnGradients

LEAST = 0.01
"""Of a weight: one that reached 0 could never come back."""


class GradNormSettings(BalancerSettings):
    """Weights that equalize the norms of the tasks' gradients.

    Attributes:
        alpha: how much more a task that lags behind may pull; 1.5 as published, 0: all alike.
        rate: step of the weights; 0.025 as published.
    """

    kind: Literal["gradnorm"]
    alpha: Annotated[float, Field(ge=0)] = 1.5
    rate: Annotated[float, Field(gt=0)] = 0.025

    def build(self, tasks: Sequence[str]) -> "GradNorm":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task.
        """
        return GradNorm(self.losses(tasks), self.alpha, self.rate)


class GradNorm(OnGradients):
    """Weights that follow their own little descent.

    Attributes:
        weights: (T,), of the tasks, beside those of the settings; they add up to T.
    """

    weights: Tensor

    def __init__(self, losses: Losses, alpha: float, rate: float):
        """Takes what turns terms into losses, and what `GradNormSettings` explains."""
        super().__init__(losses)
        self.alpha, self.rate = alpha, rate
        self.register_buffer("weights", torch.ones(len(losses.tasks)))
        self.start = MeanLoss(len(losses.tasks), "initial")

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`."""
        losses = self.losses(terms)
        weights = self.weights.clone()
        pull = self.pull(losses, weights, scaler, share)
        pull.give(weights)
        with torch.no_grad():
            started = self.start(losses.raw, losses.speaks)
            # 0 / 0 of a task that the settings switch off is no number: its weight stays
            norms = pull.rows.norm(dim=1).to(weights.dtype) / self.losses.of_tasks
            self._step(norms, losses.raw / started, losses.speaks, self.rate * share)
            total = losses.sum(weights)
            return losses.raw.new_zeros(()) if total is None else total.detach()

    def _step(self, norms: Tensor, left: Tensor, speaks: Tensor, rate: float) -> None:
        """Moves the weights.

        Args:
            norms: (T,) of the gradients, before any weight of a task.
            left: (T,) share of the first loss that is left.
            speaks: (T,) bool.
            rate: of the step.
        """
        among = speaks & norms.isfinite() & left.isfinite() & (norms > 0)
        count = among.sum().clamp(min=1)

        def mean(x: Tensor) -> Tensor:
            return torch.where(among, x, 0.0).sum() / count

        pulls = self.weights * norms
        lag = left / mean(left).clamp(min=torch.finfo().tiny)
        aim = mean(pulls) * lag**self.alpha
        slope = torch.sign(pulls - aim) * norms / mean(norms).clamp(min=torch.finfo().tiny)
        moved = torch.where(among, (self.weights - rate * slope).clamp(min=LEAST), self.weights)
        # their sum stays what it was
        whole, now = mean(self.weights), mean(moved)
        ratio = whole / now.clamp(min=torch.finfo().tiny)
        self.weights.copy_(torch.where(among, moved * ratio, self.weights))
