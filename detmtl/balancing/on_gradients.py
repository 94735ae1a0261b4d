"""What the methods share that look at each task's gradient on the trunk.

Letters: T tasks.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detmtl.balancing.balancer import Balancer, Terms
from detmtl.balancing.gradients import gram
from detmtl.balancing.losses import Losses, TaskLosses
from detmtl.balancing.pull import Pull


class OnGradients(Balancer):
    """A method that is told of the parameters, and lets the tasks' passes be made one by one."""

    def __init__(self, losses: Losses):
        """Takes what turns terms into losses."""
        super().__init__()
        self.losses = losses
        self._parameters_of: tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]] = ((), ())

    def attach(self, shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter]) -> None:
        """See `Balancer.attach`."""
        self._parameters_of = tuple(shared), tuple(own)

    def pull(
        self,
        losses: TaskLosses,
        weights: Tensor,
        scaler: torch.amp.GradScaler | None,
        share: float,
    ) -> Pull:
        """Goes through the passes; the heads' gradients are weighted by `weights` (T,)."""
        return Pull(losses, *self._parameters_of, weights, scaler, share)


class OnInnerProducts(OnGradients):
    """A method that weighs the tasks by the inner products of their gradients."""

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`; the heads get their own gradients, unweighted."""
        losses = self.losses(terms)
        ones = torch.ones_like(losses.raw)
        pull = self.pull(losses, ones, scaler, share)
        with torch.no_grad():
            pull.give(self.weigh(gram(pull.rows)))
            total = losses.sum(ones)
            return losses.raw.new_zeros(()) if total is None else total

    @abstractmethod
    def weigh(self, inner: Tensor) -> Tensor:
        """Returns the weights (T,) on the trunk, for inner products (T, T); called once a batch."""
