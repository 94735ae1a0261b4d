"""Each task's gradient on parameters that several tasks share.

Conflict between tasks shows on parameters. On the features of a pyramid it does not: there the gradients
of two tasks are nearly orthogonal whatever happens, and features that come from one another (P7 from
P6, P3 from P4) would count twice.
Letters: T tasks, P elements of all shared parameters together.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Terms = Mapping[str, Mapping[str, Tensor]]
"""Task name -> term name -> unweighted scalar loss; a task that nothing was labelled for has no terms."""


def task_gradients(terms: Terms, parameters: Sequence[Tensor], keep_graph: bool = True) -> Tensor:
    """Returns the gradient of each task's summed terms on `parameters`, (T, P), a row for each task.

    A task without terms, and one that reaches none of the parameters, has a row of zeros. Nobody's
    `.grad` is touched. The rows are those of this process; their mean over the
    processes is that of the run, if every process asks for the same tasks. Costs one backward pass for
    each task that speaks.

    Args:
        terms: still attached to their graph.
        parameters: at least one, of one type and on one device, in the order of the columns.
        keep_graph: whether a backward pass is still to come.
    """
    losses = [sum_of(of_task) for of_task in terms.values()]
    speaking = [i for i, loss in enumerate(losses) if loss is not None and loss.requires_grad]
    rows = parameters[0].new_zeros(len(losses), sum(p.numel() for p in parameters))
    for i in speaking:
        loss = losses[i]
        assert loss is not None
        again = keep_graph or i != speaking[-1]
        write_row(rows[i], gradients_of(loss, parameters, again), parameters)
    return rows


def sum_of(terms: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the sum of a task's terms, None where it has none."""
    return torch.stack(list(terms.values())).sum() if terms else None


def gradients_of(
    loss: Tensor, parameters: Sequence[Tensor], keep_graph: bool
) -> Sequence[Tensor | None]:
    """Returns the gradient of a scalar on each parameter, None where it does not reach it."""
    return torch.autograd.grad(loss, parameters, retain_graph=keep_graph, allow_unused=True)


@torch.no_grad()
def write_row(
    row: Tensor, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> None:
    """Writes the gradient on each parameter into its part of `row` (P,), zeros staying for None.

    Memory order of a gradient (channels last) does not matter: elements come in their logical order.
    """
    parts = row.split([p.numel() for p in parameters])
    for part, gradient, p in zip(parts, gradients, parameters, strict=True):
        if gradient is not None:
            part.view(p.shape).copy_(gradient)


def gram(rows: Tensor) -> Tensor:
    """Returns the inner products (T, T) of gradients (T, P)."""
    return rows @ rows.T
