"""Metrics whose counting a test can hold up or spoil, and a training that kills itself."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import CPU, NAMES, batch_of, batches, prepared, recorder

from detmtl.engine.evaluator import collect
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings, train
from detmtl.metrics.coco import CocoMetric

OPTIM = OptimSettings(lr=0.02, warmup=2)
PATIENCE = 60.0


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.005)


class Gated(CocoMetric):
    """Counts when the file `gate` is there, and then notes its process's number in a file beside it."""

    def __init__(self, gate: Path):
        super().__init__(NAMES)
        self.gate = gate

    def compute(self):
        self.gate.with_name("asked").write_text(str(os.getpid()))
        wait_for(self.gate)
        values = super().compute()
        self.gate.with_name("counted").write_text(str(os.getpid()))
        return values


class Bad:
    """Cannot be counted: that raises, or ends the process."""

    def __init__(self, error: type[Exception] | None):
        self.error = error

    def state(self):
        return None

    def merge(self, states):
        pass

    def compute(self):
        if self.error is None:
            os._exit(3)
        raise self.error("a package is missing")


class Odd(Exception):
    """Cannot be sent to another process: it is made with one argument and keeps two."""

    def __init__(self, words: str, *more: int):
        super().__init__(words, 1)
        assert not more

    def __str__(self) -> str:
        return self.args[0]


def settings(**changes) -> TrainSettings:
    given = {
        "steps": 12, "precision": "fp32", "ema": 0.9, "log_every": 1, "save_every": 4,
        "evaluate_every": 4, "best": "boxes/AP", "score_in_background": True,
    }  # fmt: skip
    return TrainSettings(**{**given, **changes})


def gated(gate: Path):
    """Returns what evaluates with a `Gated` metric."""

    def evaluate(model):
        metric = Gated(gate)
        model.tasks["boxes"].metric = lambda: metric
        found = collect(model, [batch_of(1000), batch_of(1001)], CPU, "fp32")
        del model.tasks["boxes"].metric
        return found

    return evaluate


def run(folder, chosen, evaluate, state=None, source=None):
    state = prepared(chosen, OPTIM) if state is None else state
    source = batches(state.step * chosen.accumulate) if source is None else source
    with recorder(folder, chosen.steps, state.step, state.unscored) as told:
        metrics = train(state, source, chosen, OPTIM, evaluate, told, folder)
    return state, metrics


def run_and_be_killed(folder: Path, moment: str) -> None:
    """Trains until after the evaluation of step 4 and the file of that step, and is killed there.

    Args:
        moment: "out": the score is not there yet; "in": it is recorded.
    """
    torch.set_num_threads(1)

    def until_killed():
        for i, batch in enumerate(batches()):
            if i == 5:  # step 5 is made
                wait_for(folder / "asked")
                if moment == "out":
                    os.kill(os.getpid(), signal.SIGKILL)
                (folder / "gate").touch()
                wait_for(folder / "counted")
                time.sleep(0.3)  # for the answer to come through
            if i == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    run(folder, settings(), gated(folder / "gate"), source=until_killed())
