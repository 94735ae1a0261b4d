"""Losses over some steps: their means, and whether one was not finite."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detmtl.engine import distributed
from detmtl.structures.processes import world_size
from detmtl.structures.sample import ImageInfo


class TrainingDiverged(RuntimeError):
    """A loss or a gradient was not finite; the message names the pictures and every term."""


class LossWatch:
    """Keeps the terms of each batch on the device until `check` reads them all in one transfer."""

    def __init__(self, skips: bool = False):
        """Starts empty.

        Args:
            skips: whether a gradient that is not finite is a matter of course, as under a float16
                scaler, which then lowers its scale.
        """
        self._skips = skips
        self._values: list[Tensor] = []
        self._names: list[tuple[int, str]] = []
        self._infos: list[tuple[int, Sequence[ImageInfo]]] = []

    def add(
        self,
        step: int,
        terms: Mapping[str, Mapping[str, Tensor]],
        total: Tensor,
        infos: Sequence[ImageInfo],
    ) -> None:
        """Notes the terms of one batch, and the loss made of them."""
        named = {f"{task}/{k}": v for task, of_task in terms.items() for k, v in of_task.items()}
        for name, value in {**named, "loss": total}.items():
            self._note(len(self._infos), name, value)
        self._infos.append((step, infos))

    def add_gradient_norm(self, norm: Tensor) -> None:
        """Notes the norm of the update that the last batch completed."""
        self._note(len(self._infos) - 1, "gradient_norm", norm)

    def check(self) -> dict[str, float]:
        """Returns the mean of each term since the last check, over all ranks, and starts anew.

        Of a batch a term is its mean over the ranks, 0 of one that was silent: that is its part of the loss,
        since what ranks divide by is everyone's. Batches in which all were silent do not count.
        Waits for the device; every rank has to call it.

        Raises:
            TrainingDiverged: on every rank, if something was not finite on any.
        """
        values = torch.stack(self._values).tolist() if self._values else []
        told = self._complaint(values)
        mine: dict[str, dict[int, float]] = {}
        for (batch, name), value in zip(self._names, values, strict=True):
            if name == "gradient_norm" and not math.isfinite(value):
                name, value = "skipped", 1.0  # counted below, not averaged
            mine.setdefault(name, {})[batch] = value
        self._values, self._names, self._infos = [], [], []
        everyones = distributed.gather((told, mine))
        complaints = [t for t, _ in everyones if t]
        if complaints:
            # a gradient that is not finite is everyone's, after the exchange: who has such a loss began
            began = [text for own, text in complaints if own]
            raise TrainingDiverged("\n".join(began or [text for _, text in complaints]))
        means: dict[str, float] = {}
        for name in dict.fromkeys(n for _, of_rank in everyones for n in of_rank):
            spoken = [of_rank[name] for _, of_rank in everyones if name in of_rank]
            total = sum(sum(values.values()) for values in spoken) / len(everyones)
            batches = len({batch for values in spoken for batch in values})
            means[name] = total if name == "skipped" else total / batches
        return means

    def _note(self, batch: int, name: str, value: Tensor) -> None:
        self._names.append((batch, name))
        self._values.append(value.detach().float())

    def _complaint(self, values: list[float]) -> tuple[bool, str] | None:
        """Returns what to tell of the first batch with a value that is not finite, and whether one of its
        losses is such a value, not its gradient alone."""
        bad = [
            batch
            for (batch, name), value in zip(self._names, values, strict=True)
            if not math.isfinite(value) and not (self._skips and name == "gradient_norm")
        ]
        if not bad:
            return None
        first = min(bad)
        step, infos = self._infos[first]
        told = {
            name: value
            for (batch, name), value in zip(self._names, values, strict=True)
            if batch == first
        }
        of_rank = f", rank {distributed.rank()}" if world_size() > 1 else ""
        lines = [f"step {step}{of_rank}: the loss or its gradient is not finite."]
        lines += [f"  {name} = {value:.6g}" for name, value in told.items()]
        lines += ["Pictures of this batch:"]
        lines += [f"  {i.path} (id {i.id} of source {i.source})" for i in infos]
        lines += [
            "The update was skipped and no checkpoint holds it. Look at the labels of these pictures "
            "(detmtl check), lower optim.lr, or try train.precision: fp32."
        ]
        own = any(
            not math.isfinite(value) for name, value in told.items() if name != "gradient_norm"
        )
        return own, "\n".join(lines)
