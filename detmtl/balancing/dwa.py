"""Weights by how fast each loss has been falling: what falls slowly counts more.

Source: Liu et al. 2019 (dynamic weight average), arXiv 1803.10704, equation 7. Deviations: windows of
steps take the place of epochs; a task that was silent throughout a window keeps its rate.
Letters: T tasks.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detmtl.balancing.balancer import Balancer, Terms, push
from detmtl.balancing.losses import SMALLEST, BalancerSettings, Losses


class DwaSettings(BalancerSettings):
    """Softmax over the rates at which the losses change.

    Attributes:
        temperature: 2 as published; higher means more alike.
        window: batches over which a loss is averaged; two windows make a rate.
    """

    kind: Literal["dwa"]
    temperature: Annotated[float, Field(gt=0)] = 2.0
    window: Annotated[int, Field(ge=1)] = 50

    def build(self, tasks: Sequence[str]) -> "Dwa":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task.
        """
        return Dwa(self.losses(tasks), self.temperature, self.window)


class Dwa(Balancer):
    """Weights T softmax(rate / temperature), the rate being the last window's loss by that before."""

    batches: Tensor
    sums: Tensor
    counts: Tensor
    last: Tensor
    before: Tensor

    def __init__(self, losses: Losses, temperature: float, window: int):
        """Takes what turns terms into losses, and what `DwaSettings` explains."""
        super().__init__()
        self.losses = losses
        self.temperature, self.window = temperature, window
        self.register_buffer("batches", torch.zeros(()))
        for name in ("sums", "counts", "last", "before"):  # means of a window; 0: none yet
            self.register_buffer(name, torch.zeros(len(losses.tasks)))

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`."""
        losses = self.losses(terms)
        weights = self.weights()
        self._take_in(losses.raw, losses.speaks)
        return push(losses.sum(weights), losses.raw, scaler, share)

    def weights(self) -> Tensor:
        """Returns the tasks' weights (T,), which add up to T."""
        rate = torch.where(self.before > 0, self.last / self.before.clamp(min=SMALLEST), 1.0)
        return len(rate) * torch.softmax(rate / self.temperature, 0)

    @torch.no_grad()
    def _take_in(self, raw: Tensor, speaks: Tensor) -> None:
        take = speaks & raw.isfinite()
        self.sums.add_(torch.where(take, raw, 0.0))
        self.counts.add_(take)
        self.batches.add_(1)
        over = self.batches >= self.window
        heard = over & (self.counts > 0)
        self.before.copy_(torch.where(heard, self.last, self.before))
        self.last.copy_(torch.where(heard, self.sums / self.counts.clamp(min=1), self.last))
        for buffer in (self.sums, self.counts, self.batches):
            buffer.masked_fill_(over, 0)
