"""Fixed weights: the strong baseline."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detmtl.balancing.balancer import Balancer, Terms, push
from detmtl.balancing.losses import BalancerSettings, Losses, Scale


class FixedSettings(BalancerSettings):
    """The weighted sum of all terms.

    Attributes:
        scale: none by default: what the tasks' own settings say is what counts.
    """

    kind: Literal["fixed"] = "fixed"
    scale: Scale = "none"

    def build(self, tasks: Sequence[str]) -> "Fixed":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task.
        """
        return Fixed(self.losses(tasks))


class Fixed(Balancer):
    """The sum of the losses."""

    def __init__(self, losses: Losses):
        """Takes what turns terms into losses."""
        super().__init__()
        self.losses = losses

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`.

        Raises:
            InputError: a weight names a term that its task does not have.
        """
        if self.losses.scale is None:  # other processes' losses need not be known
            given = self.losses.unscaled(terms)
            total = torch.stack(given).sum() if given else None
        else:
            losses = self.losses(terms)
            total = losses.sum(torch.ones_like(losses.values))
        return push(total, self.losses.nothing, scaler, share)
