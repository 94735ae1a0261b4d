"""A cut between the trunk and the heads: the heads' gradients meet before they go down the trunk.

Letters: B pictures, C channels, H and W positions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Cut:
    """Features that the heads compute on, cut off from the trunk that made them.

    The backward passes of the heads end at `leaves`, one head at a time if need be; `backward` then goes
    through the trunk once with what they left there. That is exact and costs what one backward pass
    costs. What is left at the leaves is no measure of conflict, though: see `detmtl.balancing.gradients`.

    Attributes:
        leaves: the features by name, each (B, C, H, W), as leaves of a new graph.
    """

    def __init__(self, features: Mapping[str, Tensor]):
        """Takes the trunk's features, as `MultiTask.features` gives them."""
        self._features = dict(features)
        self.leaves = {
            name: x.detach().requires_grad_(x.requires_grad) for name, x in features.items()
        }

    def backward(self) -> None:
        """Adds to the trunk's parameters the gradient of all losses whose backward pass was done."""
        pairs = [
            (self._features[name], leaf.grad)
            for name, leaf in self.leaves.items()
            if leaf.grad is not None
        ]
        if pairs:
            features, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(features, gradients)
