"""The training loop."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detmtl.balancing.balancer import Balancer
from detmtl.engine import distributed
from detmtl.engine.compiled import (
    CompileMode,
    check_compiler,
    compiled_steps,
    keep_gradients,
    network_of,
    replays,
)
from detmtl.engine.diagnosis import Diagnosis
from detmtl.engine.distributed import Process
from detmtl.engine.optim import OptimSettings, set_lr
from detmtl.engine.precision import Computing, Precision, check_winograd, dtype_of
from detmtl.engine.recorder import Recorder
from detmtl.engine.scores import Scores, Where
from detmtl.engine.shares import LossShares
from detmtl.engine.state import Ema, State, random_kept
from detmtl.engine.stopwatch import Stopwatch
from detmtl.engine.watch import LossWatch, TrainingDiverged
from detmtl.structures.labels import Labels
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.task import Metric, decode_all, terms_of

__all__ = ["TrainSettings", "TrainingDiverged", "train"]

Count = Annotated[int, Field(ge=1)]
LOWEST_SCALE = 2.0**-10
"""Of a float16 loss; below it gradients overflow whatever the scale."""


class TrainSettings(Settings):
    """How long and how to train.

    Attributes:
        steps: updates of the weights.
        accumulate: batches per update.
        precision: of the network: fp32; bf16; fp16; winograd: float32 on a CPU with wide convolutions of
            3 x 3 by Winograd's algorithm, 3e-6 off in norm and much faster (not compiled); auto: bf16 where
            the hardware has it, else winograd on x86 CPUs, else fp32.
        compile: mode of torch.compile for the network's forward and backward passes in training; None: it
            is not compiled. Evaluation, the averaged weights and all files are as without. The first step
            takes minutes; then each combination of tasks that have labels in a batch is compiled when it
            first comes, and once more where a side of the pictures changes for the first time.
            `reduce-overhead` and `max-autotune`, which also tries kernels, replay CUDA graphs on a GPU:
            recorded for every size, each with memory of its own, so that they are for few sizes. What focal
            loss and its kin do with negatives is compiled as well; other losses, the heads of tasks about
            boxes, which look at boxes, and the balancer stay eager. The same up to rounding, but for
            dropout, which draws other numbers.
        ema: decay of the moving average of the weights that is evaluated and deployed; None: none.
        log_every, evaluate_every, save_every, pictures_every: in steps; None: only after the last one
            (pictures: never).
        score_in_background: whether training goes on while the predictions of an evaluation are scored,
            in a process of its own; "auto": if the first score took longer than a second. What comes
            of it is the same.
        best: metric, as `boxes/AP`, whose highest value keeps best.pt (of an error, as `depth/RMSE`, the
            lowest); None: the last weights are the best.
    """

    steps: Count
    accumulate: Count = 1
    precision: Precision = "auto"
    compile: CompileMode | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] | None = 0.998
    log_every: Count = 20
    evaluate_every: Count | None = None
    save_every: Count | None = 200
    pictures_every: Count | None = 500
    score_in_background: Where = "auto"
    best: str | None = None

    @model_validator(mode="after")
    def _compiled_or_winograd(self) -> "TrainSettings":
        if self.precision == "winograd" and self.compile is not None:
            raise ValueError(
                "precision: winograd is for networks that are not compiled; set precision: fp32 or "
                "compile: null"
            )
        return self

    def check(self, device: torch.device) -> None:
        """Finds out, in some seconds if it shall be compiled, whether a network can run as it shall.

        Raises:
            InputError: torch cannot compile for `device` on this machine, or `device` does not know the
                precision.
        """
        if self.precision == "winograd":
            check_winograd(device, "train.precision")
        if self.compile is not None:
            check_compiler(device)

    def prepare(
        self,
        model: nn.Module,
        balancer: Balancer,
        optim: OptimSettings,
        process: Process,
        settings: dict[str, Any],
        classes: list[str],
        searched: dict[str, list[str]] | None = None,
    ) -> State:
        """Returns the state at step 0: model and balancer on the device, every rank with rank 0's
        weights.

        Args:
            settings, classes, searched: told in checkpoints, see `State`; plain values (None, bool, int,
                float, str, list, dict).

        Raises:
            InputError: see `check`.
        """
        self.check(process.device)
        model.to(process.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        balancer.to(process.device)
        distributed.same_weights(model)
        distributed.same_weights(balancer)
        half = dtype_of(self.precision, process.device) == torch.float16
        return State(
            model=model,
            optimizer=optim.build(model, balancer),
            balancer=balancer,
            device=process.device,
            ema=None if self.ema is None else Ema(model, self.ema),
            scaler=torch.amp.GradScaler(process.device.type) if half else None,
            settings=settings,
            classes=list(classes),
            searched=searched or {},
        )


def train(
    state: State,
    batches: Iterator[Batch],
    settings: TrainSettings,
    optim: OptimSettings,
    evaluate: Callable[[nn.Module], Mapping[str, Metric]],
    recorder: Recorder,
    folder: Path,
    sources: Sequence[str] = (),
    diagnosis: Diagnosis | None = None,
    more_scalars: Callable[[], Mapping[str, float]] = dict,
) -> dict[str, float]:
    """Trains until `settings.steps` updates are made.

    Args:
        state: at step 0, or loaded from a checkpoint.
        batches: this rank's, from number `state.step * settings.accumulate` on, at least as many as
            are still needed.
        optim: learning rate over time, and the limit of the gradient's norm.
        evaluate: returns task name -> metric that has seen a model's predictions of this rank's part of
            the pictures; called on every rank.
        recorder: gets what a person looks at: losses, scores, pictures.
        folder: gets `last.pt` (everything) and `best.pt` (the weights to deploy).
        sources: names of the mix's sources, whose shares of the loss are recorded.
        diagnosis: looks at the tasks' gradients now and then; None: nobody does.
        more_scalars: returns values that are recorded beside the losses.

    Returns:
        The metrics after the last step; {} if no step was left to make.

    Raises:
        TrainingDiverged: a loss or a gradient was not finite; weights and files are from before.
    """
    device, steps = state.device, settings.steps
    weights = _weights(state)
    clock, watch = Stopwatch(device), LossWatch(skips=state.scaler is not None)
    shares = LossShares(sources, device)
    passes = _Passes(state, settings, clock, watch, shares, diagnosis)
    pictures = 0
    state.model.train()
    if state.step < steps:
        # a loader that starts its workers draws from the generators that are then restored
        batches = itertools.chain([next(batches)], batches)
    state.restore_random()

    with (
        compiled_steps(settings.compile),
        Scores(state, recorder, folder, settings.best, settings.score_in_background) as scores,
    ):
        if state.unscored:
            scores.begin(_predictions(state, evaluate), last=state.step >= steps)
            clock.restart()
        while state.step < steps:
            set_lr(state.optimizer, optim.factor(state.step, steps))
            drawing, drawn = _due(state.step + 1, settings.pictures_every), None
            for part in range(settings.accumulate):
                batch = next(batches).to(device)
                clock.lap("data")
                outputs = passes.backward(batch, part, drawing)
                if outputs is not None:
                    drawn = batch, outputs
                pictures += len(batch)
            distributed.average_gradients(weights)
            watch.add_gradient_norm(_update(state, optim.clip))
            state.step += 1
            if state.ema is not None:
                state.ema.update(state.model, state.step)
            clock.lap("backward")

            step, last = state.step, state.step == steps
            evaluating = last or _due(step, settings.evaluate_every)
            saving = last or _due(step, settings.save_every)
            came = False
            if evaluating or saving or _due(step, settings.log_every):
                values = watch.check()  # the only wait for the device
                told = _told(values, state, clock.read(), sum(distributed.gather(pictures)))
                recorder.scalars(step, {**told, **shares.read(), **more_scalars()})
                recorder.advance(step, values.get("loss"))
                if diagnosis is not None:
                    recorder.gradients(diagnosis.read())
                    if last:
                        recorder.gradients_heat_map(step)
                pictures = 0
                came = scores.poll()
            if drawn is not None:
                recorder.pictures(step, "train", drawn[0], _decoded(state, drawn[1], drawn[0]))
                drawn = None
            if evaluating or saving:
                _average_buffers(state)  # a file holds rank 0's
            if evaluating:
                scores.begin(_predictions(state, evaluate), last)
            if saving:
                scores.before_saving()
                state.save(folder / "last.pt")
            if evaluating or saving or drawing or came:
                clock.restart()
    return scores.metrics


class _Passes:
    """Turns batches into gradients, while watch, shares and diagnosis look on."""

    def __init__(
        self,
        state: State,
        settings: TrainSettings,
        clock: Stopwatch,
        watch: LossWatch,
        shares: LossShares,
        diagnosis: Diagnosis | None,
    ):
        self.state, self.clock, self.watch = state, clock, watch
        self.shares, self.diagnosis = shares, diagnosis
        self.parts = settings.accumulate
        self.computing = Computing(
            settings.precision, state.device, compiled=settings.compile is not None
        )
        self.network = network_of(state.model, settings.compile)
        self.replays = replays(settings.compile)

    def backward(self, batch: Batch, part: int, kept: bool) -> dict[str, list[Tensor]] | None:
        """Adds the gradients of a step's batch number `part` to those of the weights.

        All that is left of the graph ends here: what some balancers keep of it would lie beside that of
        the next forward pass.

        Returns:
            What the network said, if it shall be `kept`.
        """
        state, step = self.state, self.state.step + 1
        with self.computing():
            outputs = self.network(batch)
        terms = {n: terms_of(n, task, outputs[n], batch) for n, task in state.tasks.items()}
        self.clock.lap("forward")
        if self.diagnosis is not None and part == 0 and self.diagnosis.due(step):
            self.diagnosis.look(step, state.balancer.weighted(terms), state.scaler)
            self.clock.lap("diagnosis")
        total = state.balancer.backward(terms, state.scaler, 1 / self.parts)
        if self.replays and part + 1 < self.parts:
            keep_gradients(_weights(state))
        self.watch.add(step, terms, total, batch.infos)
        self.shares.add(terms, batch.groups)
        self.clock.lap("backward")
        if not kept:
            return None
        return {name: [x.detach() for x in of_task] for name, of_task in outputs.items()}


def _weights(state: State) -> list[nn.Parameter]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]


def _predictions(
    state: State, evaluate: Callable[[nn.Module], Mapping[str, Metric]]
) -> Mapping[str, Metric]:
    with random_kept():
        metrics = evaluate(state.averaged)
    state.model.train()
    return metrics


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _update(state: State, clip: float | None) -> Tensor:
    """Steps the optimizer and returns the norm of the network's gradient before clipping.

    What a balancer learns is in other units and has no part in it. A gradient that is not finite
    changes nothing; the device decides that by itself.
    """
    of_network = [
        p
        for group in state.optimizer.param_groups
        for p in group["params"]
        if group["name"] != "other" and p.grad is not None
    ]
    gradients = [p.grad for p in of_network if p.grad is not None]
    if not gradients:  # nothing in the batch was labelled for any task
        return torch.zeros((), device=state.device)
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(of_network, clip, norm)
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        # torch's fused optimizers read this attribute, by which GradScaler tells them to skip
        state.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        state.optimizer.step()
        del state.optimizer.found_inf  # type: ignore[attr-defined]
    state.optimizer.zero_grad(set_to_none=True)
    return norm


def _told(
    losses: Mapping[str, float], state: State, seconds: Mapping[str, float], pictures: int
) -> dict[str, float]:
    """Returns what is recorded of the last steps.

    Raises:
        TrainingDiverged: float16 cannot hold the gradients.
    """
    told = {f"train/{name}": value for name, value in losses.items()}
    told |= {f"lr/{group['name']}": group["lr"] for group in state.optimizer.param_groups}
    told |= {f"time/{part}": value for part, value in seconds.items()}
    told["pictures_per_second"] = pictures / max(sum(seconds.values()), 1e-9)
    if state.scaler is not None:
        told["train/scale"] = state.scaler.get_scale()
        if told["train/scale"] < LOWEST_SCALE:
            raise TrainingDiverged(
                f"step {state.step}: gradients overflow float16 at any scale of the loss; set "
                "train.precision to bf16 or fp32, or lower optim.lr"
            )
    return told


@torch.no_grad()
def _decoded(
    state: State, outputs: Mapping[str, list[Tensor]], batch: Batch
) -> dict[str, Sequence[Labels]]:
    return decode_all(state.tasks, outputs, batch.sizes)


def _average_buffers(state: State) -> None:
    distributed.average_buffers(state.model)
    if state.ema is not None:
        distributed.average_buffers(state.ema.module)
