"""How the losses of several tasks become one update of the shared weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detmtl.balancing.gradients import Terms

__all__ = ["Balancer", "Terms", "push"]


class Balancer(nn.Module, ABC):
    """Turns loss terms into gradients; the only place of the program that calls backward.

    What a method remembers between steps lives in buffers or parameters, so that it travels in
    checkpoints and moves with the device. In a run of several processes every one calls `backward` for
    every batch, silent or not: methods that look at losses or gradients look at those of all
    processes, so that all weigh alike.
    """

    def attach(self, shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter]) -> None:
        """Tells which parameters will be trained, before the first `backward`.

        Methods that look at losses alone need not know.

        Args:
            shared: the trunk's, on which the tasks may pull in different directions.
            own: all others, the heads'.
        """

    def weighted(self, terms: Terms) -> Terms:
        """Returns the terms with the settings' weights and in scale, before what the method itself makes
        of them. Changes nothing; for whoever looks at the tasks' gradients."""
        losses = getattr(self, "losses", None)
        return terms if losses is None else losses.weighted(terms)

    @abstractmethod
    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """Adds gradients to the parameters' `.grad` and returns the weighted sum of the terms.

        Args:
            terms: unweighted terms, scalars still attached to the graph. Nothing at all (no task has
                labels in the batch) is legal and leaves every gradient as it is.
            scaler: scales the loss before backward, for float16.
            share: factor of this batch's gradient when one update is made of several batches.

        Returns:
            A detached scalar float32, without `share` and without the scaler's factor.
        """


def push(
    total: Tensor | None, like: Tensor, scaler: torch.amp.GradScaler | None, share: float
) -> Tensor:
    """Adds the gradient of a weighted sum of terms to all `.grad`, and returns the sum, detached.

    Args:
        total: None, and one without a graph, leave every gradient as it is.
        like: of the device and type of the 0 that is returned for None.
        scaler, share: see `Balancer.backward`.
    """
    if total is None:
        return like.new_zeros(())
    if total.requires_grad:
        scaled = total * share
        (scaled if scaler is None else scaler.scale(scaled)).backward()
    return total.detach()
