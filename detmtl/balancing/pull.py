"""Each task's backward pass by itself: gradients on the trunk apart, those of the heads added up.

Letters: T tasks, P elements of the trunk's parameters together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detmtl.balancing.gradients import gradients_of, write_row
from detmtl.balancing.losses import TaskLosses
from detmtl.structures.processes import in_any_process, mean_over_processes


class Pull:
    """The trunk's gradients of one batch.

    A task's pass goes through its own head and the trunk, so all passes together cost that of the sum,
    plus the trunk's for each further task. The same gradients would come from a cut at the
    features (`benchmarks/cut.py`).

    Attributes:
        rows: (T, P) over all processes, without the scaler's factor; zeros for silent tasks.
    """

    def __init__(
        self,
        losses: TaskLosses,
        shared: Sequence[nn.Parameter],
        own: Sequence[nn.Parameter],
        weights: Tensor,
        scaler: torch.amp.GradScaler | None,
        share: float,
    ):
        """Goes through the passes and adds the heads' gradients to their `.grad`.

        Args:
            losses: of the batch.
            shared, own: see `Balancer.attach`.
            weights: (T,) of each task's gradient on `own`.
            scaler, share: see `Balancer.backward`.
        """
        assert shared, "a method on gradients is told of the parameters by `attach` first"
        self._shared = shared
        one = losses.raw.new_ones(())
        self._unit = one if scaler is None else scaler.scale(one)
        self._share = share
        self._reached = [False] * len(shared)
        rows = shared[0].new_zeros(len(losses.attached), sum(p.numel() for p in shared))
        speaking = [
            (i, loss)
            for i, loss in enumerate(losses.attached)
            if loss is not None and loss.requires_grad
        ]
        for k, (i, loss) in enumerate(speaking):
            again = k < len(speaking) - 1
            found = gradients_of(loss * self._unit, [*shared, *own], keep_graph=again)
            write_row(rows[i], found[: len(shared)], shared)
            for n, gradient in enumerate(found[: len(shared)]):
                self._reached[n] |= gradient is not None
            for p, gradient in zip(own, found[len(shared) :], strict=True):
                if gradient is not None:
                    _add(p, gradient * (weights[i] * share))
        self.rows = mean_over_processes(rows if scaler is None else rows / self._unit)

    def give(self, weights: Tensor) -> None:
        """Adds the rows, weighted by (T,), to the `.grad` of the trunk's parameters.

        Parameters that no task reaches in any process are left without a gradient, as after a plain
        backward.
        """
        reached = in_any_process(self._reached, self.rows.device)
        total = (weights.to(self.rows.dtype) * self._unit * self._share) @ self.rows
        parts = total.split([p.numel() for p in self._shared])
        for p, part, there in zip(self._shared, parts, reached, strict=True):
            if there:
                _add(p, part.view(p.shape))


@torch.no_grad()
def _add(p: nn.Parameter, gradient: Tensor) -> None:
    if p.grad is None:
        p.grad = torch.empty_like(p).copy_(gradient)  # in the parameter's memory order
    else:
        p.grad.add_(gradient)
