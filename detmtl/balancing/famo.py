"""Weights by which the logarithms of all losses fall alike, from the losses alone.

Source: Liu et al. 2023 (FAMO), arXiv 2306.03792, algorithm 1. Deviations: progress is measured from one
batch to the next, where the paper looks at one batch before and after the update, which costs a
second forward pass; batches differ, so a single measure is noise, and the small rate averages many. Only
tasks that speak in both batches are compared.
Letters: T tasks.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detmtl.balancing.balancer import Balancer, Terms, push
from detmtl.balancing.losses import SMALLEST, BalancerSettings, Losses


class FamoSettings(BalancerSettings):
    """Softmax weights of the losses' logarithms.

    Attributes:
        rate: step of the weights' logits; 0.025 as published.
        decay: pulls the logits back to 0; 0.001 as published.
    """

    kind: Literal["famo"]
    rate: Annotated[float, Field(gt=0)] = 0.025
    decay: Annotated[float, Field(ge=0)] = 0.001

    def build(self, tasks: Sequence[str]) -> "Famo":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task, or a whole task.
        """
        self.refuse_task_weights("famo")
        return Famo(self.losses(tasks), self.rate, self.decay)


class Famo(Balancer):
    """Weights c z / L, z being a softmax and c such that they add up to the number of tasks."""

    logits: Tensor
    before: Tensor
    spoke: Tensor

    def __init__(self, losses: Losses, rate: float, decay: float):
        """Takes what turns terms into losses, and what `FamoSettings` explains."""
        super().__init__()
        self.losses = losses
        self.rate, self.decay = rate, decay
        num_tasks = len(losses.tasks)
        self.register_buffer("logits", torch.zeros(num_tasks))
        self.register_buffer("before", torch.zeros(num_tasks))  # logarithms of the last losses
        self.register_buffer("spoke", torch.zeros(num_tasks, dtype=torch.bool))

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`."""
        losses = self.losses(terms)
        self._take_in(losses.raw.clamp(min=SMALLEST).log(), losses.speaks & losses.raw.isfinite())
        chosen = self._softmax(losses.speaks)
        parts = chosen / losses.values.clamp(min=SMALLEST) * losses.speaks
        weights = parts * losses.speaks.sum() / parts.sum().clamp(min=torch.finfo().tiny)
        return push(losses.sum(weights), losses.raw, scaler, share)

    def _softmax(self, among: Tensor) -> Tensor:
        """Returns softmax weights (T,) over the tasks `among` (T,), 0 for the others."""
        exponents = torch.exp(self.logits - self.logits.amax()) * among
        return exponents / exponents.sum().clamp(min=torch.finfo().tiny)

    @torch.no_grad()
    def _take_in(self, now: Tensor, speaks: Tensor) -> None:
        both = speaks & self.spoke
        progress = torch.where(both, self.before - now, 0.0)
        chosen = self._softmax(both)
        slope = chosen * (progress - (chosen * progress).sum())
        self.logits.sub_(self.rate * torch.where(both, slope + self.decay * self.logits, 0.0))
        self.before.copy_(torch.where(speaks, now, self.before))
        self.spoke.copy_(speaks)
