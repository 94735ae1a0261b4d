"""Loss terms that remember which picture gave how much."""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossTerms(dict[str, Tensor]):
    """Scalar terms by name, as `Task.loss` returns them, with each picture's part of their sum.

    A task whose terms are sums over pictures returns this rather than a plain dict; then the run tells
    which source gave how much of the loss, at no cost: nothing is computed twice or waited for.

    Attributes:
        by_picture: (B,) detached; sums up to the sum of the terms.
    """

    by_picture: Tensor

    @classmethod
    def of(cls, terms: Mapping[str, Tensor]) -> "LossTerms":
        """Sums up terms that are given by picture (B,)."""
        made = cls({name: term.sum() for name, term in terms.items()})
        made.by_picture = torch.stack([term.detach() for term in terms.values()]).sum(0)
        return made
