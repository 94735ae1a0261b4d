"""The training loop."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn

from detmtl.balancing.balancer import Balancer
from detmtl.engine.distributed import Process
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import Precision
from detmtl.engine.recorder import Recorder
from detmtl.engine.state import State
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings

Count = Annotated[int, Field(ge=1)]


class TrainSettings(Settings):
    """How long and how to train.

    Attributes:
        steps: updates of the weights.
        accumulate: batches per update.
        precision: number format of the network; "auto" is bfloat16 where the hardware has it.
        channels_last: memory order of pictures and weights that convolutions like best.
        ema: decay of the moving average of the weights that is evaluated and deployed; None: none.
        log_every, evaluate_every, save_every, pictures_every: in steps; None: only after the last one
            (pictures: never).
        best: metric, as `boxes/AP`, whose highest value keeps best.pt; None: the last weights are the
            best.
    """

    steps: Count
    accumulate: Count = 1
    precision: Precision = "auto"
    channels_last: bool = True
    ema: Annotated[float, Field(ge=0, lt=1)] | None = 0.998
    log_every: Count = 20
    evaluate_every: Count | None = None
    save_every: Count | None = 200
    pictures_every: Count | None = 500
    best: str | None = None

    def prepare(
        self,
        model: nn.Module,
        balancer: Balancer,
        optim: OptimSettings,
        process: Process,
        settings: dict,
        classes: list[str],
    ) -> State:
        """Moves model and balancer to the device, gives every rank the same weights, and builds the
        state at step 0."""
        raise NotImplementedError


def train(
    state: State,
    batches: Iterator[Batch],
    settings: TrainSettings,
    optim: OptimSettings,
    evaluate: Callable[[nn.Module], dict[str, float]],
    recorder: Recorder,
    folder: Path,
) -> dict[str, float]:
    """Trains until `settings.steps` updates were made and returns the last evaluation's metrics.

    Args:
        state: at step 0, or loaded from a checkpoint.
        batches: this rank's, from number `state.step * settings.accumulate` on, at least as many as
            are still needed.
        optim: learning rate over time, and the limit of the gradient's norm.
        evaluate: `task/metric` -> value of a model in evaluation mode; called on every rank.
        recorder: see there.
        folder: gets `last.pt` (everything) and `best.pt` (the weights to deploy).

    Raises:
        TrainingDiverged: a loss or a gradient was not finite; weights and files are from before.
    """
    raise NotImplementedError


class TrainingDiverged(RuntimeError):
    """A loss or a gradient was not finite."""
