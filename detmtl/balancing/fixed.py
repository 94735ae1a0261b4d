"""Fixed weights: the strong baseline."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detmtl.balancing.balancer import Balancer, Terms
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings

Weight = Annotated[float, Field(ge=0)]


class FixedSettings(Settings):
    """A weight for each term.

    Attributes:
        weights: `task/term` -> weight of one term, or `task` -> weight of all terms of a task; the two
            multiply. What is not named has weight 1.
    """

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, Weight] = {}

    def build(self, tasks: list[str]) -> "Fixed":
        """Builds the balancer for the tasks of these names.

        Raises:
            InputError: a weight names no task.
        """
        problems = [
            f"balancing.weights: '{name}' names no task; the tasks are {', '.join(tasks)}, "
            "and a weight is named task or task/term"
            for name in self.weights
            if name.split("/")[0] not in tasks
        ]
        if problems:
            raise InputError(problems)
        return Fixed(self.weights)


class Fixed(Balancer):
    """The weighted sum of all terms."""

    _nothing: Tensor

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.weights = dict(weights)
        self.register_buffer("_nothing", torch.zeros(()), persistent=False)
        self._unseen = {name for name in weights if "/" in name}

    def backward(
        self, terms: Terms, scaler: torch.amp.GradScaler | None = None, share: float = 1.0
    ) -> Tensor:
        """See `Balancer.backward`.

        Raises:
            InputError: a weight names a term that its task does not have.
        """
        if self._unseen:
            self._check_names(terms)
        weighted = [term for of_task in self.weighted(terms).values() for term in of_task.values()]
        if not weighted:
            return self._nothing.clone()
        total = torch.stack(weighted).sum()
        if total.requires_grad:
            scaled = total * share
            (scaled if scaler is None else scaler.scale(scaled)).backward()
        return total.detach()

    def weighted(self, terms: Terms) -> Terms:
        """Returns the terms times their weights."""
        return {
            task: {
                name: self.weights.get(task, 1.0) * self.weights.get(f"{task}/{name}", 1.0) * term
                for name, term in of_task.items()
            }
            for task, of_task in terms.items()
        }

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
                known = ", ".join(f"{task}/{t}" for t in of_task)
                problems.append(
                    f"balancing.weights: '{name}' names no loss term; there are {known}"
                )
        if problems:
            raise InputError(problems)
