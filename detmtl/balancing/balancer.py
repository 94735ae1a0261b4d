"""How the losses of several tasks become one update of the shared weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Terms = Mapping[str, Mapping[str, Tensor]]
"""Task name -> term name -> unweighted scalar loss; a task that nothing was labelled for has no terms."""


class Balancer(nn.Module, ABC):
    """Turns loss terms into gradients; the only place of the program that calls backward.

    What a method remembers between steps lives in buffers or parameters, so that it travels in
    checkpoints and moves with the device.
    """

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
