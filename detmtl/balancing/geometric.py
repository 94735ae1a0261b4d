"""The geometric mean of the losses: every task's relative progress counts alike.

Source: Chennupati et al. 2019, arXiv 1904.08492, equation 2. Deviations: the mean is of the tasks that
speak in a batch, and it is multiplied by their number: the gradient is then as large as that of the sum
where all losses are alike.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detmtl.balancing.balancer import Balancer, Terms, push
from detmtl.balancing.losses import SMALLEST, BalancerSettings, Losses


class GeometricSettings(BalancerSettings):
    """The geometric mean of the losses."""

    kind: Literal["geometric"]

    def build(self, tasks: Sequence[str]) -> "Geometric":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task, or a whole task.
        """
        self.refuse_task_weights("geometric")
        return Geometric(self.losses(tasks))


class Geometric(Balancer):
    """Each loss weighs the mean of all by itself: the gradient of n (L1 ... Ln) ** (1 / n)."""

    def __init__(self, losses: Losses):
        """Takes what turns terms into losses."""
        super().__init__()
        self.losses = losses

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`."""
        losses = self.losses(terms)
        values = losses.values.clamp(min=SMALLEST)
        speaking = losses.speaks.sum().clamp(min=1)
        mean = torch.exp((values.log() * losses.speaks).sum() / speaking)
        return push(losses.sum(mean / values * losses.speaks), losses.raw, scaler, share)
