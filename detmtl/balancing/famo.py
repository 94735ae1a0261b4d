"""Weights by which the logarithms of all losses fall alike, from the losses alone.

Source: Liu et al. 2023 (FAMO), arXiv 2306.03792, algorithm 1, with Adam on the logits as in the authors'
code: a softmax's slope is small, and plain steps of their rate would move nothing. Deviations: progress
is measured from the batches of one update to those of the next, where the paper looks at one batch before
and after the update, which costs a second forward pass; batches differ, so a single measure is noise, and
Adam's moments average many. Only tasks that speak in both are compared.
Letters: T tasks.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detmtl.balancing.balancer import Balancer, Terms, push
from detmtl.balancing.losses import SMALLEST, BalancerSettings, Losses

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam, as usual."""


class FamoSettings(BalancerSettings):
    """Softmax weights of the losses' logarithms.

    Attributes:
        rate: step of the weights' logits, which Adam takes; 0.025 as published.
        decay: pulls the logits back to 0, as part of their gradient; 0.001 as published.
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
    mean: Tensor
    square: Tensor
    steps: Tensor
    sums: Tensor
    heard: Tensor

    def __init__(self, losses: Losses, rate: float, decay: float):
        """Takes what turns terms into losses, and what `FamoSettings` explains."""
        super().__init__()
        self.losses = losses
        self.rate, self.decay = rate, decay
        num_tasks = len(losses.tasks)
        self.register_buffer("logits", torch.zeros(num_tasks))
        self.register_buffer("before", torch.zeros(num_tasks))  # logarithms of the last losses
        # Logarithms of this update's losses so far, and the shares of the batches that they are of. No
        # checkpoint needs them: there is none within an update.
        self._begun = 0.0
        for name in ("sums", "heard"):
            self.register_buffer(name, torch.zeros(num_tasks), persistent=False)
        for name in ("mean", "square", "steps"):  # Adam's moments, and how many made them
            self.register_buffer(name, torch.zeros(num_tasks))
        self.register_buffer("spoke", torch.zeros(num_tasks, dtype=torch.bool))

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`."""
        losses = self.losses(terms)
        finite = losses.speaks & losses.raw.isfinite()
        self._take_in(losses.raw.clamp(min=SMALLEST).log(), finite, share)
        chosen = self._softmax(losses.speaks)
        parts = chosen / losses.values.clamp(min=SMALLEST) * losses.speaks
        weights = parts * losses.speaks.sum() / parts.sum().clamp(min=torch.finfo().tiny)
        return push(losses.sum(weights), losses.raw, scaler, share)

    def _softmax(self, among: Tensor) -> Tensor:
        """Returns softmax weights (T,) over the tasks `among` (T,), 0 for the others."""
        exponents = torch.exp(self.logits - self.logits.amax()) * among
        return exponents / exponents.sum().clamp(min=torch.finfo().tiny)

    @torch.no_grad()
    def _take_in(self, now: Tensor, speaks: Tensor, share: float) -> None:
        """Gathers the logarithms `now` (T,) of a batch that is a `share` of an update, and takes a step with
        the last one: between batches of one update nothing has changed."""
        self.sums.add_(torch.where(speaks, share * now, 0.0))
        self.heard.add_(share * speaks)
        self._begun += share
        if self._begun < 1 - 1e-6:
            return
        mean, speaks = self.sums / self.heard.clamp(min=SMALLEST), self.heard > 0
        self._compare(mean, speaks)
        self._begun = 0.0
        self.sums.zero_()
        self.heard.zero_()

    def _compare(self, now: Tensor, speaks: Tensor) -> None:
        """Takes a step by the progress from the last update's losses to those of this one."""
        both = speaks & self.spoke
        both = both & (both.sum() > 1)  # one alone lags behind nobody
        progress = torch.where(both, self.before - now, 0.0)
        chosen = self._softmax(both)
        slope = chosen * (progress - (chosen * progress).sum())
        self._step(slope + self.decay * self.logits, both)
        self.before.copy_(torch.where(speaks, now, self.before))
        self.spoke.copy_(speaks)

    def _step(self, gradient: Tensor, moved: Tensor) -> None:
        """Takes a step of Adam with the logits that are `moved` (T,), each having its own moments."""
        first, second = BETAS
        self.steps.add_(moved)
        self.mean.copy_(torch.where(moved, self.mean.lerp(gradient, 1 - first), self.mean))
        self.square.copy_(
            torch.where(moved, self.square.lerp(gradient.square(), 1 - second), self.square)
        )
        mean = self.mean / (1 - first**self.steps)
        size = (self.square / (1 - second**self.steps)).sqrt() + EPS
        self.logits.sub_(torch.where(moved, self.rate * mean / size, 0.0))
