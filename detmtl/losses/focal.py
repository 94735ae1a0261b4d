"""Focal loss: elementwise for any target, and in one pass for a whole detection head.

Source: Lin et al. 2017, arXiv 1708.02002, equation 5. Soft targets as in the quality focal loss,
Li et al. 2020, arXiv 2006.04388, equation 5, with the focal loss's alpha interpolated between the
classes' values, so that targets 0 and 1 give the focal loss exactly.
Letters: B pictures, C classes, R rows (anchors of a level), L levels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Elements = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits, targets) of positives, all (K,) -> their losses and the losses' derivatives by the logit."""

CACHED = 1 << 18
"""Elements worked on at once on a CPU: several float32 buffers of them stay in its last cache, and Python's
part of the work is small beside theirs."""


def sigmoid_focal(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Returns the focal loss of each element, shape as `logits`, at least float32.

    Args:
        logits: before the sigmoid.
        targets: in [0, 1], broadcasts against `logits`.
        alpha: weight of targets 1; targets 0 get 1 - alpha, those between in proportion.
        gamma: exponent of |target - probability|, >= 0.
    """
    logits = logits.to(_work_type(logits.dtype))
    targets = targets.to(logits.dtype).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    distance = (torch.sigmoid(logits) - targets).abs()
    return (alpha * targets + (1 - alpha) * (1 - targets)) * distance**gamma * entropy


@dataclass(frozen=True, eq=False)
class FocalTargets:
    """What the logits of one level shall become; float tensors of the type the loss works in.

    Attributes:
        off: (B, R) bool, rows without any loss.
        holes: (B, R, C) bool, further elements without loss, none of them in `own`; None: none.
        weights: (B, C) >= 0, weight of the negatives of a class in a picture.
        own: (K,) int64, positions in the flattened (B, R, C) of the positives; rows of them are not
            off. May hold positions that are no positives, see `own_on`; no position twice.
        own_on: (K,) bool, which of `own` are positives. Thus K needs no counting.
        own_targets: (K,) targets of the positives, in [0, 1].
        own_weights: (K,) weights of the positives, >= 0; their class's entry in `weights` and their
            row's in `holes` don't count.
        every: whether `own` has one position of each row, in their order.
    """

    off: Tensor
    holes: Tensor | None
    weights: Tensor
    own: Tensor
    own_on: Tensor
    own_targets: Tensor
    own_weights: Tensor
    every: bool = False


def focal_sums(
    levels: Sequence[Tensor], targets: Sequence[FocalTargets], alpha: float, gamma: float
) -> Tensor:
    """Returns the weighted sums of each picture's focal losses, (B,) of at least float32.

    Loss and gradient are computed together, level by level; what is kept for the backward pass is
    the gradient alone, in the logits' type (float32 for float16, whose range is too small). A second
    derivative does not exist. An element of weight 0 has a gradient of exactly 0.

    Args:
        levels: logits (B, R, C) of each level, any strides.
        targets: of each level.
        alpha: see `sigmoid_focal`.
        gamma: see `sigmoid_focal`.
    """
    return one_pass(
        levels, targets, 1 - alpha, gamma, partial(focal_elements, alpha=alpha, gamma=gamma)
    )


def one_pass(
    levels: Sequence[Tensor],
    targets: Sequence[FocalTargets],
    negative: float,
    gamma: float,
    elements: Elements,
) -> Tensor:
    """Returns the sums (B,) of `focal_sums` for any loss whose negatives are the focal loss's.

    Args:
        levels: logits (B, R, C) of each level, any strides.
        targets: of each level.
        negative: weight of p ** gamma * -log(1 - p), the loss of a negative.
        gamma: the exponent.
        elements: the loss of the positives.
    """
    return _FocalSum.apply(negative, gamma, elements, targets, *levels)  # pyright: ignore[reportReturnType]


class _FocalSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        negative: float,
        gamma: float,
        elements: Elements,
        targets: Sequence[FocalTargets],
        *levels: Tensor,
    ) -> Tensor:
        terms, gradients = [], []
        for logits, target in zip(levels, targets, strict=True):
            term, gradient = _level(logits, target, negative, gamma, elements)
            terms.append(term)
            keep = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            gradients.append(gradient.to(keep))
        ctx.save_for_backward(*gradients)
        ctx.types = [logits.dtype for logits in levels]
        return torch.stack(terms).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if outer[0].device.type == "cpu" and (outer[0] == 1).all():  # saves a pass; asking is free
            gradients = [g.to(t) for g, t in zip(ctx.saved_tensors, ctx.types, strict=True)]
            return None, None, None, None, *gradients
        scaled = [
            torch.mul(gradient, outer[0][:, None, None]).to(kind)
            for gradient, kind in zip(ctx.saved_tensors, ctx.types, strict=True)
        ]
        return None, None, None, None, *scaled


def _level(
    logits: Tensor, target: FocalTargets, negative: float, gamma: float, elements: Elements
) -> tuple[Tensor, Tensor]:
    """Returns the sum of each picture (B,) and the gradient (B, R, C) of one level.

    An element without loss gets the logit -inf, whose negative loss and gradient are 0.
    """
    work = logits.to(_work_type(logits.dtype), copy=True, memory_format=torch.contiguous_format)
    flat = work.view(-1)
    own_logits = flat[target.own]
    if work.is_cuda:
        work.masked_fill_(target.off[..., None], -torch.inf)
    else:  # few rows are off: ten times faster than a mask
        off = target.off.reshape(-1).nonzero()[:, 0]
        work.view(-1, work.shape[-1]).index_fill_(0, off, -torch.inf)
    if target.holes is not None:
        work.masked_fill_(target.holes, -torch.inf)
    flat[target.own] = flat[target.own].masked_fill(target.own_on, -torch.inf)
    total = _negatives(work, negative * target.weights.to(work.dtype), gamma)
    loss, slope = elements(own_logits, target.own_targets)
    weights = target.own_weights * target.own_on
    flat[target.own] = torch.where(target.own_on, slope * weights, flat[target.own])
    if target.every:  # no atomic additions, whose order is a matter of chance
        return total + (loss * weights).view(len(total), -1).sum(1), work
    size = max(1, logits.shape[1] * logits.shape[2])
    picture = torch.div(target.own, size, rounding_mode="floor")
    return total.index_add_(0, picture, loss * weights), work


@contextmanager
def compiled_negatives() -> Iterator[None]:
    """Has torch compile what the losses of this module do with negatives, while it lasts: one pass over
    the logits. The same up to rounding."""
    token = _pass.set(torch.compile(_negatives_of, dynamic=True))
    try:
        yield
    finally:
        _pass.reset(token)


def _negatives(work: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Returns each picture's sum of p ** gamma * softplus(x) * weights (B,), and puts its gradient in
    place of x.

    On a CPU in blocks that stay in its cache.

    Args:
        work: (B, R, C) logits x, contiguous; p is their sigmoid.
        weights: (B, C).
        gamma: the exponent.
    """
    pictures, rows, classes = work.shape
    if rows == 0:
        return work.new_zeros(pictures)
    if (
        work.is_cuda
    ):  # weights as large as the logits would be most of a gigabyte at 16 large pictures
        return _pass.get()(work.view(pictures, -1), weights, gamma)
    step = max(1, CACHED // (pictures * classes))
    spread = weights[:, None].expand(-1, min(step, rows), -1).flatten(1)
    sums = [
        _pass.get()(x, spread[:, : x.shape[1]], gamma)
        for x in work.view(pictures, -1).split(step * classes, dim=1)
    ]
    return torch.stack(sums).sum(0)


def _negatives_of(x: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Does what `_negatives` says with logits x (B, N) and weights (B, W), which repeat along N; W divides N.

    softplus(x) is written as log(1 + exp(x)); for that, logits above 80 count as 80.
    """
    p, entropy = sigmoid_and_softplus(x.clamp(max=80.0))
    factor = p * p if gamma == 2 else p**gamma
    factor.unflatten(1, (-1, weights.shape[1])).mul_(weights[:, None])
    # not bmm, which is ten times slower for one row and one column
    total = torch.linalg.vecdot(factor, entropy)
    entropy.addcmul_(entropy, p, value=-1)  # softplus(x) * (1 - p)
    slope = p.add_(entropy, alpha=gamma)
    if torch.compiler.is_compiling():  # which knows no `out`; it makes one pass of all this anyway
        x.copy_(slope * factor)
    else:
        torch.mul(slope, factor, out=x)
    return total


_pass = ContextVar("_pass", default=_negatives_of)
"""What does it: that function, or it compiled."""


def sigmoid_and_softplus(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns p = sigmoid(x) and log(1 + exp(x)) of each element of x <= 80, to its type's precision.

    On a CPU without `torch.log1p`, whose loop takes eight times as long as that of `torch.log`: what
    rounding takes from u = 1 + exp(x) is given back to first order, since log(u + c) = log(u) + c / u but
    for terms below the precision.
    """
    e = torch.exp(x)
    if x.is_cuda:
        return e / (e + 1), torch.log1p(e)
    u = e + 1
    entropy = u.log().addcdiv_((u - 1).sub_(e), u, value=-1)
    return e.div_(u), entropy


def focal_elements(x: Tensor, targets: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Returns `sigmoid_focal` of each element and its derivative by the logit x, all (K,)."""
    p = torch.sigmoid(x)
    entropy = F.binary_cross_entropy_with_logits(x, targets, reduction="none")
    difference = p - targets
    distance = difference.abs()
    factor = (alpha * targets + (1 - alpha) * (1 - targets)) * distance**gamma
    slope = factor * difference
    if gamma > 0:
        # d distance / dx = sign * p * (1 - p); written with distance ** (gamma - 1), which is
        # infinite at distance 0 only where gamma < 1.
        tiny = torch.finfo(x.dtype).tiny
        inner = factor / distance.clamp(min=tiny) * difference.sign()
        slope = slope + gamma * inner * p * (1 - p) * entropy
    return factor * entropy, slope


def _work_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
