"""What a batch's terms come to for each task: one loss, brought to scale.

Letters: T tasks.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detmtl.balancing.gradients import Terms, sum_of
from detmtl.structures.errors import InputError
from detmtl.structures.processes import mean_over_processes, world_size
from detmtl.structures.settings import Settings

Weight = Annotated[float, Field(ge=0)]
Scale = Literal["none", "initial", "running"]

FIRST = 20
"""Losses of a task whose mean stands for the start of the training: one alone is a matter of luck."""

DECAY = 0.99
"""Of the running mean: about the last hundred losses count."""

SMALLEST = 1e-6
"""A loss is never divided by less."""


class BalancerSettings(Settings):
    """What all methods have in common; a method adds `kind` and `build`.

    Attributes:
        weights: `task/term` -> weight of one term, or `task` -> weight of all terms of a task; the two
            multiply. What is not named has weight 1. They count before the method, after the scale;
            uncertainty and gradnorm, which would learn a task's weight away, put it on top.
        scale: what each task's loss is divided by first, so that no task counts more for its unit
            alone: `initial`, the mean of its first 20 losses; `running`, its running mean, which
            makes every loss about 1 for good; `none`.
    """

    weights: dict[str, Weight] = {}
    scale: Scale = "initial"

    def losses(self, tasks: Sequence[str]) -> "Losses":
        """Returns what turns terms into one loss for each task.

        Raises:
            InputError: a weight names no task.
        """
        if problems := self.misnamed(tasks):
            raise InputError(problems)
        return Losses(tasks, self.weights, self.scale)

    def misnamed(
        self, tasks: Collection[str], terms: Mapping[str, Collection[str]] | None = None
    ) -> list[str]:
        """Returns a sentence for each weight that names no task, or no term of its task.

        Args:
            tasks: names of all of them.
            terms: task -> names of its loss terms, where they are known.
        """
        problems = []
        for name in self.weights:
            task, slash, term = name.partition("/")
            known = (terms or {}).get(task)
            if task not in tasks:
                problems.append(
                    f"balancing.weights: '{name}' names no task; the tasks are {', '.join(tasks)}, "
                    "and a weight is named task or task/term"
                )
            elif slash and known is not None and term not in known:
                problems.append(_no_term(name, known))
        return problems

    def refuse_task_weights(self, kind: str) -> None:
        """Refuses weights of whole tasks for a method that a constant factor of a loss cannot move.

        Raises:
            InputError: there are some.
        """
        if named := [name for name in self.weights if "/" not in name]:
            raise InputError(
                f"balancing.weights: '{named[0]}' would change nothing: {kind} looks at relative changes "
                "of each task's loss alone; weight terms, as task/term, or take another kind"
            )


@dataclass(frozen=True, eq=False)
class TaskLosses:
    """The losses of T tasks in one batch.

    Attributes:
        attached: of each task its loss in this process, in scale and with its graph; None: silent here.
        speaks: (T,) bool: which tasks have a loss in any process. One that is exactly 0 is none: nothing
            could be learned, though there were labels, and no ratio or logarithm of it means anything.
        raw: (T,) the losses over all processes, before they are brought to scale; 0 for silent tasks.
        values: (T,) the same in scale.
        alone: whether there is no other process.
    """

    attached: list[Tensor | None]
    speaks: Tensor
    raw: Tensor
    values: Tensor
    alone: bool

    def sum(self, weights: Tensor) -> Tensor | None:
        """Returns this process's sum of losses times `weights` (T,), None where nothing speaks."""
        parts = [weights[i] * loss for i, loss in enumerate(self.attached) if loss is not None]
        return torch.stack(parts).sum() if parts else None


class Losses(nn.Module):
    """Terms to one loss for each task, brought to scale."""

    def __init__(self, tasks: Sequence[str], weights: dict[str, float], scale: Scale):
        """Takes the names of the T tasks and what `BalancerSettings` explains."""
        super().__init__()
        self.tasks = tuple(tasks)
        self.weights = dict(weights)
        self._unseen = {name for name in weights if "/" in name}
        self.scale = None if scale == "none" else MeanLoss(len(tasks), scale)
        self.register_buffer("nothing", torch.zeros(len(tasks)), persistent=False)
        of_tasks = torch.tensor([self.weights.get(task, 1.0) for task in tasks])
        self.register_buffer("of_tasks", of_tasks, persistent=False)

    nothing: Tensor
    of_tasks: Tensor
    """(T,), the settings' weights of whole tasks."""

    def forward(self, terms: Terms) -> TaskLosses:
        """Returns the tasks' losses. Talks to the other processes, if there are any.

        Raises:
            InputError: a weight names a term that its task does not have.
        """
        given = self._by_task(terms)
        with torch.no_grad():
            # of tensors that are on the device already: making one would wait for it
            local = [
                self.nothing[i] if x is None else x.detach().float() for i, x in enumerate(given)
            ]
            own = torch.stack(local)
            raw, share = mean_over_processes(torch.stack([own, (own != 0).to(own)]))
            speaks = share > 0
            factors = (
                self.of_tasks if self.scale is None else self.of_tasks / self.scale(raw, speaks)
            )
        attached = [None if loss is None else loss * factors[i] for i, loss in enumerate(given)]
        return TaskLosses(attached, speaks, raw, raw * factors, world_size() == 1)

    def unscaled(self, terms: Terms) -> list[Tensor]:
        """Returns the weighted sums of terms of the tasks that speak in this process.

        Raises:
            InputError: a weight names a term that its task does not have.
        """
        pairs = zip(self.tasks, self._by_task(terms), strict=True)
        return [self.weights.get(task, 1.0) * x for task, x in pairs if x is not None]

    def weighted(self, terms: Terms) -> Terms:
        """Returns the terms times their weights and in scale as it stands; takes nothing in."""
        factors = self.of_tasks if self.scale is None else self.of_tasks / self.scale.mean()
        return {
            task: {
                name: factors[i] * self.weights.get(f"{task}/{name}", 1.0) * x
                for name, x in terms.get(task, {}).items()
            }
            for i, task in enumerate(self.tasks)
        }

    def _by_task(self, terms: Terms) -> list[Tensor | None]:
        """Returns each task's sum of weighted terms, without the task's own weight."""
        if self._unseen:
            self._check_names(terms)
        return [
            sum_of(
                {
                    name: self.weights.get(f"{task}/{name}", 1.0) * x
                    for name, x in terms.get(task, {}).items()
                }
            )
            for task in self.tasks
        ]

    def _check_names(self, terms: Terms) -> None:
        """Looks up each weight's term the first time that its task has terms."""
        problems = []
        for name in sorted(self._unseen):
            task, term = name.split("/", 1)
            of_task = terms.get(task)
            if not of_task:
                continue
            self._unseen.discard(name)
            if term not in of_task:
                problems.append(_no_term(name, of_task))
        if problems:
            raise InputError(problems)


def _no_term(name: str, known: Collection[str]) -> str:
    task = name.split("/")[0]
    terms = ", ".join(f"{task}/{term}" for term in known)
    return f"balancing.weights: '{name}' names no loss term; there are {terms}"


class MeanLoss(nn.Module):
    """The mean of each task's first losses, or of its last ones.

    A silent task forgets nothing, and a loss that is not finite is not taken in.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_tasks: int, of: Literal["initial", "running"]):
        """Starts having seen nothing."""
        super().__init__()
        self.of = of
        self.register_buffer("sums", torch.zeros(num_tasks))
        self.register_buffer("counts", torch.zeros(num_tasks))

    @torch.no_grad()
    def forward(self, values: Tensor, speaks: Tensor) -> Tensor:
        """Takes in losses (T,) of the tasks that `speaks` (T,) and returns the means (T,), 1 where there
        was none."""
        take = speaks & values.isfinite()
        if self.of == "initial":
            take, keep = take & (self.counts < FIRST), 1.0
        else:
            keep = DECAY
        self.sums.copy_(torch.where(take, keep * self.sums + values, self.sums))
        self.counts.copy_(torch.where(take, keep * self.counts + 1, self.counts))
        return self.mean()

    def mean(self) -> Tensor:
        """Returns the means (T,) as they stand, 1 where there was none."""
        mean = (self.sums / self.counts.clamp(min=1)).abs().clamp(min=SMALLEST)
        return torch.where(self.counts > 0, mean, torch.ones_like(mean))
