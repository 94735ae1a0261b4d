"""The scores of a training's evaluations: counted here or in a process of its own, and what follows
from them, the record and `best.pt`.

Predictions are made by the training itself. Counting them (matching boxes, accumulating precision)
needs a processor and neither the network nor the device, so training goes on meanwhile. What comes of
it is the same as with waiting, to the bit and to the order of lines in `metrics.jsonl`, because nothing
is written that tells of a later step before the score is there:

- `best.pt` holds the weights that were scored: a copy of them waits with the score.
- `last.pt` of the very step that is being scored says so (`State.unscored`), and a run that goes on from
  it makes the evaluation again. One of a later step waits for the score.
- At most one evaluation is out: the next one waits for it, and so does the end of the run.
"""

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from detmtl.engine import distributed
from detmtl.engine.background import Background, ProcessEnded, packed
from detmtl.engine.evaluator import gathered, merged, numbers
from detmtl.engine.recorder import Recorder
from detmtl.engine.state import State
from detmtl.metrics.direction import lower_is_better
from detmtl.structures.errors import InputError
from detmtl.tasks.task import Metric

Where = bool | Literal["auto"]
WORTH = 1.0
"""Seconds of counting from which on "auto" uses another process, which takes about as long to start."""


class Scores:
    """Takes the evaluations of one run. Every rank calls the same methods in the same order; rank 0
    counts. Use as a context manager.

    Attributes:
        metrics: `task/metric` -> value of the last score that came in.
    """

    def __init__(
        self,
        state: State,
        recorder: Recorder,
        folder: Path,
        best: str | None = None,
        background: Where = "auto",
    ):
        """Begins without a process.

        Args:
            state: that is trained.
            recorder: gets the values.
            folder: gets `best.pt`.
            best: the metric that decides which weights are the best; None: the last ones are.
            background: whether scores are counted in another process; "auto": from the second on, if
                counting took longer than `WORTH`, and if the metrics can be sent there.
        """
        self.metrics: dict[str, float] = {}
        self._state, self._recorder, self._folder = state, recorder, folder
        self._best, self._where = best, background
        self._beside = background is True
        self._process = Background()
        self._out: tuple[int, dict[str, Tensor] | None] | None = None

    def __enter__(self) -> "Scores":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the process. A run that failed still gets the score that is out, as one that waits for its
        scores would have; one that was interrupted does not."""
        try:
            if self._out is not None and kind is not None and issubclass(kind, Exception):
                (step, weights), self._out = self._out, None
                if distributed.rank() == 0:  # the other ranks may be gone
                    with suppress(Exception):  # the first error is the one to tell
                        self._take(step, self._arrived(), False, weights)
        finally:
            self._process.__exit__()

    def begin(self, metrics: Mapping[str, Metric], last: bool = False) -> None:
        """Scores the weights as they are now; waits for the score before.

        Args:
            metrics: of each task, with this rank's predictions.
            last: no step follows: waits for this score too.

        Raises:
            InputError: there is no metric `best`, or the metrics cannot be sent to another process.
        """
        self.settle()
        states = gathered(metrics)
        step = self._state.step
        if last or not self._beside:
            values, self._beside = distributed.on_first(
                lambda: self._counted(merged(metrics, states))
            )
            self._take(step, values, last)
            return
        distributed.on_first(lambda: self._process.start(_job(merged(metrics, states))))
        weights = None
        if self._best is not None and distributed.rank() == 0:
            there = self._state.averaged.state_dict()
            weights = {name: value.to("cpu", copy=True) for name, value in there.items()}
        self._out = step, weights
        self._recorder.hold()

    def poll(self) -> bool:
        """Takes the score that is out if it has come in, and returns whether it has."""
        if self._out is None or not distributed.from_first(self._process.done()):
            return False
        self.settle()
        return True

    def settle(self) -> None:
        """Waits for the score that is out, if one is.

        Raises:
            InputError: see `begin`.
            RuntimeError: the process is gone.
        """
        if self._out is None:
            return
        (step, weights), self._out = self._out, None
        self._take(step, distributed.on_first(self._arrived), False, weights)

    def before_saving(self) -> None:
        """Makes `last.pt` true: all scores of earlier steps are in, and it tells if its own is out."""
        if self._out is not None and self._out[0] != self._state.step:
            self.settle()
        self._state.unscored = self._out is not None

    def _counted(self, metrics: Mapping[str, Metric]) -> tuple[dict[str, float], bool]:
        """Returns the values, and whether the next ones should be counted in another process."""
        start = time.perf_counter()
        values = numbers(metrics)
        beside = self._beside
        if self._where == "auto" and not beside and time.perf_counter() - start > WORTH:
            try:
                packed(numbers, dict(metrics))
                beside = True
            except TypeError:  # a metric from outside need not be made for it
                beside = False
        return values, beside

    def _arrived(self) -> dict[str, float]:
        try:
            return self._process.result()
        except ProcessEnded as error:
            raise RuntimeError(
                f"the process that scores an evaluation {error}; if the machine was out of memory, set "
                "train.score_in_background to false"
            ) from error

    def _take(
        self,
        step: int,
        values: dict[str, float],
        last: bool,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.metrics = values
        self._recorder.scores(step, values, self._best)
        if self._is_best(values, last):
            self._state.save_weights(self._folder / "best.pt", step, weights)

    def _is_best(self, values: Mapping[str, float], last: bool) -> bool:
        """Returns whether the weights are the best so far, and notes their value.

        Raises:
            InputError: no metric has that name.
        """
        name, state = self._best, self._state
        if name is None:
            return last
        if name not in values:
            raise InputError(
                f"train.best: '{name}' is no metric of this run; there are {', '.join(values)}"
            )
        value = values[name]
        if math.isnan(value):  # no truth to score against: better any best.pt than none
            if last and state.best is None and distributed.rank() == 0:
                warnings.warn(
                    f"train.best: {name} never had a value, for want of truth to score against; the last "
                    "weights are the best",
                    stacklevel=2,
                )
            return last and state.best is None
        sign = -1 if lower_is_better(name) else 1
        if state.best is not None and sign * value <= sign * state.best:
            return False
        state.best = value
        return True


def check_best(best: str, tasks: Mapping[str, Any]) -> None:
    """Refuses a metric that a task does not have before a run is trained for it. Our own metrics tell all
    their names before they have seen anything; those of others need not.

    Args:
        best: task/metric.
        tasks: name -> task.

    Raises:
        InputError: names those that there are.
    """
    task = best.split("/")[0]
    metric = tasks[task].metric()
    if not type(metric).__module__.startswith("detmtl."):
        return
    there = numbers({task: metric})
    if best not in there:
        raise InputError(
            f"train.best: '{best}' is no metric of this run; there are {', '.join(there)}"
        )


def _job(metrics: Mapping[str, Metric]) -> bytes:
    try:
        return packed(numbers, dict(metrics))
    except TypeError as error:
        raise InputError(
            f"train.score_in_background: the metrics of {', '.join(metrics)} cannot be sent to another "
            f"process ({error}); define them in a module of their own, or set false"
        ) from error
