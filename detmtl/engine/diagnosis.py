"""Do the tasks of a run pull the layers that they share in different directions? Sampled while it trains.

Every so many steps each task's gradient on weights of the trunk is taken, before the balancer's own
backward pass and without touching it: with and without, a run ends with the same weights, bit for bit.
Of these gradients norms and cosines are kept, stage by stage. In a run of several processes they are those
of the mean gradient over all processes, which is what the update is made of.
Letters: T tasks, S stages, P elements of the weights that are looked at.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from detmtl.balancing.gradients import Terms, gram, task_gradients
from detmtl.structures.processes import mean_over_processes
from detmtl.structures.settings import Settings

Count = Annotated[int, Field(ge=1)]
FILE = "diagnosis.jsonl"
TRUNK = "trunk"
"""Name of all stages together."""

Record = dict[str, Any]
"""A line of diagnosis.jsonl: {"step", "norm": {stage: {task: number}}, "cosine": {stage: {"a/b": number}}}.

A task that nothing was labelled for is left out; one that does not reach a stage has norm 0 there and no
cosine. What is not finite is null."""


class DiagnosisSettings(Settings):
    """How often gradients are looked at, and on which weights.

    Attributes:
        every: in steps; None: never. 50 costs less than 2 % of the time, see benchmarks/diagnosis.py.
        layers: so many weight tensors of each stage are looked at, the largest ones, of equals in the
            pyramid the outputs of the finest levels, where tasks mostly meet; None: all parameters.
            Either way a gradient passes through the whole trunk.
    """

    every: Count | None = None
    layers: Count | None = 2


class Diagnosis:
    """Takes each task's gradient on the trunk and keeps what they have to do with each other.

    Nothing waits for the device before `read`.
    """

    def __init__(self, settings: DiagnosisSettings, stages: Mapping[str, Sequence[nn.Parameter]]):
        """Starts empty.

        Args:
            settings: see `DiagnosisSettings`; `every` is not None.
            stages: name -> parameters that train, in order; see `MultiTask.stages`.
        """
        assert settings.every is not None
        self.every = settings.every
        chosen = {name: largest(of, settings.layers) for name, of in stages.items()}
        self._stages = {name: of for name, of in chosen.items() if of}
        self._pending: list[tuple[int, list[str], Tensor, Tensor]] = []

    def due(self, step: int) -> bool:
        """Returns whether update number `step` (1, 2, ...) is looked at."""
        return bool(self._stages) and step % self.every == 0

    def look(self, step: int, terms: Terms, scaler: torch.amp.GradScaler | None = None) -> None:
        """Notes the gradients of one batch; every process has to call it, with the same tasks.

        Args:
            terms: of each task, weighted as they count, still attached to the graph, which stays whole.
            scaler: for float16, in which small gradients would vanish.
        """
        if not terms:
            return
        parameters = [p for of in self._stages.values() for p in of]
        spoke = torch.tensor([float(bool(of)) for of in terms.values()])
        spoke = mean_over_processes(spoke.to(parameters[0].device, non_blocking=True))
        scale = spoke.new_ones(())
        if scaler is not None:
            scale = scaler.scale(scale)
            terms = {t: {k: scaler.scale(v) for k, v in of.items()} for t, of in terms.items()}
        rows = mean_over_processes(task_gradients(terms, parameters)) / scale
        sizes = [sum(p.numel() for p in of) for of in self._stages.values()]
        inner = torch.stack([gram(part) for part in rows.split(sizes, dim=1)])
        self._pending.append((step, list(terms), inner, spoke))

    def read(self) -> list[Record]:
        """Returns a record of each look since the last call; waits for the device."""
        pending, self._pending = self._pending, []
        return [
            record(
                step, tasks, dict(zip(self._stages, inner.tolist(), strict=True)), spoke.tolist()
            )
            for step, tasks, inner, spoke in pending
        ]


def largest(parameters: Sequence[nn.Parameter], count: int | None) -> list[nn.Parameter]:
    """Returns the `count` largest weights (vectors are none), in their order; None: all parameters."""
    if count is None:
        return list(parameters)
    order = sorted(
        (i for i, p in enumerate(parameters) if p.ndim > 1),
        key=lambda i: (-parameters[i].numel(), -i),
    )
    return [parameters[i] for i in sorted(order[:count])]


def record(
    step: int,
    tasks: Sequence[str],
    inner: Mapping[str, Sequence[Sequence[float]]],
    spoke: Sequence[float],
) -> Record:
    """Returns a line of diagnosis.jsonl.

    Args:
        step: number of the update.
        tasks: the T names.
        inner: stage -> inner products (T, T) of the tasks' gradients.
        spoke: (T,) above 0 where the task had labels.
    """
    of = [i for i in range(len(tasks)) if spoke[i] > 0]
    # not fsum, which refuses inf - inf; float16 overflows now and then
    whole = [
        [sum(g[i][j] for g in inner.values()) for j in range(len(tasks))] for i in range(len(tasks))
    ]
    norm: dict[str, dict[str, float | None]] = {}
    cosine: dict[str, dict[str, float | None]] = {}
    for stage, g in {**inner, TRUNK: whole}.items():
        norm[stage] = {tasks[i]: _finite(math.sqrt(g[i][i])) for i in of}
        cosine[stage] = {
            f"{tasks[i]}/{tasks[j]}": _finite(g[i][j] / math.sqrt(g[i][i]) / math.sqrt(g[j][j]))
            for i, j in combinations(of, 2)
            if g[i][i] != 0 and g[j][j] != 0
        }
    return {"step": step, "norm": norm, "cosine": cosine}


def scalars(of: Record) -> dict[str, float]:
    """Returns a record's numbers by name for TensorBoard: `gradient_norm/c4/boxes`,
    `gradient_cosine/c4/boxes/map`."""
    return {
        f"gradient_{kind}/{stage}/{name}": value
        for kind in ("norm", "cosine")
        for stage, values in of[kind].items()
        for name, value in values.items()
        if value is not None
    }


def read_records(path: Path) -> list[Record]:
    """Returns the lines of a diagnosis.jsonl, [] where there is none; a torn last one is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def means(records: Iterable[Record], kind: str) -> dict[str, dict[str, tuple[float, int]]]:
    """Returns stage -> name -> (mean, how many) of the records' `norm` or `cosine`."""
    sums: dict[str, dict[str, tuple[float, int]]] = {}
    for each in records:
        for stage, values in each[kind].items():
            of_stage = sums.setdefault(stage, {})
            for name, value in values.items():
                if value is not None:
                    total, count = of_stage.get(name, (0.0, 0))
                    of_stage[name] = total + value, count + 1
    return {s: {n: (t / c, c) for n, (t, c) in of.items()} for s, of in sums.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
