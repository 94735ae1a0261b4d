"""Losses over some steps: their means, and whether one was not finite."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detmtl.engine import distributed
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

        Waits for the device; every rank has to call it.

        Raises:
            TrainingDiverged: on every rank, if something was not finite on any.
        """
        values = torch.stack(self._values).tolist() if self._values else []
        told = self._complaint(values)
        sums: dict[str, tuple[float, int]] = {}
        for (_, name), value in zip(self._names, values, strict=True):
            if name == "gradient_norm" and not math.isfinite(value):
                name, value = "skipped", 1.0  # counted below, not averaged
            total, count = sums.get(name, (0.0, 0))
            sums[name] = total + value, count + 1
        self._values, self._names, self._infos = [], [], []
        everyones = distributed.gather((told, sums))
        complaints = [t for t, _ in everyones if t]
        if complaints:
            raise TrainingDiverged("\n".join(complaints))
        means: dict[str, float] = {}
        for name in dict.fromkeys(n for _, s in everyones for n in s):
            pairs = [s[name] for _, s in everyones if name in s]
            total, count = (sum(column) for column in zip(*pairs, strict=True))
            means[name] = total / len(pairs) if name == "skipped" else total / count
        return means

    def _note(self, batch: int, name: str, value: Tensor) -> None:
        self._names.append((batch, name))
        self._values.append(value.detach().float())

    def _complaint(self, values: list[float]) -> str | None:
        """Returns what to tell of the first batch with a value that is not finite."""
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
        of_rank = f", rank {distributed.rank()}" if distributed.world_size() > 1 else ""
        lines = [f"step {step}{of_rank}: the loss or its gradient is not finite."]
        lines += [f"  {name} = {value:.6g}" for name, value in told.items()]
        lines += ["Pictures of this batch:"]
        lines += [f"  {i.path} (id {i.id} of source {i.source})" for i in infos]
        lines += [
            "The update was skipped and no checkpoint holds it. Look at the labels of these pictures "
            "(detmtl check), lower optim.lr, or try train.precision: fp32."
        ]
        return "\n".join(lines)
