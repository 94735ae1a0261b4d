"""The weightings of the package torchjd, on the inner products of the tasks' gradients.

Each maps the inner products (T, T) of gradients on the trunk's parameters to weights (T,); the heads get
their own gradients. They wait for the device once in each batch, since their solvers run on the CPU.
Left out are those that remember earlier batches outside of a checkpoint (Nash-MTL, GradVac): a run that
is resumed would not be the same.
Source: Quinton and Rey 2024 (torchjd, UPGrad), arXiv 2406.16232; see each method's own paper.
Letters: T tasks.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from detmtl.balancing.losses import BalancerSettings, Losses
from detmtl.balancing.on_gradients import OnInnerProducts
from detmtl.structures.errors import InputError, missing_package

Method = Literal["upgrad", "dualproj", "mgda", "cagrad", "imtl_g", "aligned_mtl"]

_WEIGHTINGS = {
    "upgrad": "UPGradWeighting",
    "dualproj": "DualProjWeighting",
    "mgda": "MGDAWeighting",
    "cagrad": "CAGradWeighting",
    "imtl_g": "IMTLGWeighting",
    "aligned_mtl": "AlignedMTLWeighting",
}


class TorchJdSettings(BalancerSettings):
    """A weighting of torchjd.

    Attributes:
        method: upgrad (each gradient projected so that it harms no task; the authors' advice), dualproj (the
            mean projected so), mgda (the shortest combination), cagrad (the mean, turned towards the
            task that gains least), imtl_g (equal projections), aligned_mtl (gradients made
            orthogonal and of one length).
        c: of cagrad: how far the mean may be turned, 0 not at all; 0.4 is published for most data.
    """

    kind: Literal["torchjd"]
    method: Method = "upgrad"
    c: Annotated[float, Field(ge=0)] = 0.4

    def build(self, tasks: Sequence[str]) -> "TorchJd":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task, or torchjd or its solvers are not installed.
        """
        arguments = {"c": self.c} if self.method == "cagrad" else {}
        return TorchJd(self.losses(tasks), _weighting(self.method, arguments))


def _weighting(method: Method, arguments: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    purpose = f"balancing.method: {method}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of solvers that are not installed and not used
            from torchjd import aggregation
    except ImportError:
        raise missing_package("torchjd", "torchjd", purpose) from None
    kind = getattr(aggregation, _WEIGHTINGS[method], None)
    if kind is None:
        raise InputError(
            f"{purpose}: this version of torchjd has no {_WEIGHTINGS[method]}; "
            "pip install 'detmtl[torchjd]' brings the one that is known to"
        )
    try:
        return kind(**arguments)
    except ImportError:
        raise missing_package("torchjd with its solvers", "torchjd", purpose) from None


class TorchJd(OnInnerProducts):
    """A weighting of torchjd, its weights multiplied by the number of tasks that speak: theirs make a
    mean, that of the other methods here is a sum."""

    def __init__(self, losses: Losses, weighting: Callable[[Tensor], Tensor]):
        """Takes what turns terms into losses, and inner products (T, T) into weights (T,)."""
        super().__init__(losses)
        self._weighting = (weighting,)  # no part of this module: it has no state

    def weigh(self, inner: Tensor) -> Tensor:
        """Returns the weights (T,) of gradients with these inner products (T, T).

        Gradients of 0 have no part. Where one is not finite all weigh 1: no solver could say more, and
        the training loop will stop.
        """
        given = inner.double().cpu()
        weights = torch.ones(len(given), dtype=given.dtype)
        there = given.diagonal().nonzero()[:, 0]
        if len(there) > 1 and bool(given.isfinite().all()):
            some = given[there][:, there]
            found = self._weighting[0](some / some.diagonal().mean())
            weights[there] = len(there) * found.to(weights)
        return weights.to(inner)
