"""Where the time of a training step goes, stage by stage, with the operators that take most of each.

    python benchmarks/step_profile.py
    python benchmarks/step_profile.py --network resnet50 --side 512 --results benchmarks/results/NAME.md
    python benchmarks/step_profile.py --device cuda --results benchmarks/results/NAME.md

torch.profiler over the calls of `detmtl.engine.trainer.train`, with ranges that this script puts around
modules and functions; the package itself has none. Every operator counts once, by its own time without
those that it calls. One of the backward pass belongs to the stage whose operator made its node of the
graph: the profiler gives both the same sequence number. What no operator does (Python, the autograd
engine) is told as such, and the stages of a CPU add up to the step.

Default: a small network on a CPU. On a GPU: R50 with a pyramid, 16 pictures of 800 px. There a stage's
time is that of its kernels, and the device stands idle for the rest of the step.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from networks import LR, batch_of, ours
from provenance import provenance
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine import trainer
from detmtl.engine.distributed import Process
from detmtl.engine.memory import keep_freed_memory
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import Computing
from detmtl.engine.state import State
from detmtl.engine.trainer import TrainSettings
from detmtl.engine.watch import LossWatch
from detmtl.structures.sample import Batch
from detmtl.tasks.detection_loss import DetectionLoss

CLASSES = 91
RANGE = "stage: "
NODE = "autograd::engine::evaluate_function: "
REST = "(no operator: Python, autograd engine)"
SHOWN = 3


def in_range(owner: Any, name: str, stage: str) -> None:
    """Puts a range around every call of `owner.name`."""
    call = getattr(owner, name)

    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(RANGE + stage):
            return call(*args, **kwargs)

    setattr(owner, name, ranged)


def step_of(
    state: State, batch: Batch, settings: TrainSettings, clip: float | None
) -> Callable[[], None]:
    """Returns one step of the training as `trainer.train` makes it, its stages in ranges."""
    model: Any = state.model
    device = state.device
    computing = Computing(settings.precision, device)
    watch = LossWatch()
    in_range(model.normalize, "forward", "normalize")
    in_range(model.backbone, "forward", "backbone")
    for part in ("merged", "levels"):
        in_range(model.fpn, part, "FPN")
    in_range(model.tasks["boxes"], "forward", "head")
    in_range(model.tasks["boxes"], "loss", "losses")
    in_range(DetectionLoss, "_match", "matching")

    def step() -> None:
        with record_function(RANGE + "data to device"):
            here = batch.to(device)
        with record_function(RANGE + "forward, rest"), computing():
            outputs = model(here.images)
        terms = {name: task.loss(outputs[name], here) for name, task in state.tasks.items()}
        with record_function(RANGE + "backward, rest"):
            total = state.balancer.backward(terms, state.scaler)
        with record_function(RANGE + "loss watch"):
            watch.add(state.step + 1, terms, total, here.infos)
        with record_function(RANGE + "clip and optimizer"):
            watch.add_gradient_norm(trainer._update(state, clip))
        state.step += 1
        with record_function(RANGE + "EMA"):
            assert state.ema is not None
            state.ema.update(state.model, state.step)
        with record_function(RANGE + "waiting"):
            watch.check()

    return step


def stages(events: Any) -> dict[str, dict[str, list[float]]]:
    """Returns stage -> operator -> its own microseconds of the CPU and of the device."""
    here = [e for e in events if e.device_type == DeviceType.CPU]
    makers: dict[int, Any] = {}
    for e in sorted(here, key=lambda e: e.time_range.start):
        # of several that report a number the last one made the node; others only read the counter
        if e.sequence_nr >= 0 and _ancestor(e, NODE) is None:
            makers[e.sequence_nr] = e
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for e in here:
        stage = _stage(e, makers)
        name = REST if e.name.startswith((RANGE, NODE)) else e.name
        found[stage][name][0] += e.self_cpu_time_total
        found[stage][name][1] += e.self_device_time_total
    return {stage: dict(of) for stage, of in found.items()}


def _stage(event: Any, makers: Mapping[int, Any]) -> str:
    node = _ancestor(event, NODE)
    if node is None:
        around = _ancestor(event, RANGE)
        return "step, rest" if around is None else around.name.removeprefix(RANGE)
    maker = makers.get(node.sequence_nr)
    around = None if maker is None else _ancestor(maker, RANGE)
    if around is None:
        accumulates = "AccumulateGrad" in node.name
        return "gradients into parameters" if accumulates else "backward, rest"
    stage = around.name.removeprefix(RANGE)
    return stage if stage.startswith("backward") else f"backward of {stage}"


def _ancestor(event: Any, prefix: str) -> Any:
    """Returns the event itself or the next one around it whose name begins so; None: there is none."""
    while event is not None and not event.name.startswith(prefix):
        event = event.cpu_parent
    return event


def table(
    found: Mapping[str, Mapping[str, list[float]]], steps: int, wall: float, gpu: bool
) -> str:
    """Returns the lines of the stages, the longest first.

    Args:
        found: of `stages`.
        steps: that were profiled.
        wall: seconds of one.
        gpu: whether the device's time counts.
    """

    def ms(of: list[float], which: int) -> float:
        return of[which] / 1e3 / steps

    main = int(gpu)
    sums = {s: [sum(x[i] for x in of.values()) for i in (0, 1)] for s, of in found.items()}
    lines = [
        "| stage | ms | share | ms of the CPU | operators with most of it |",
        "|---|---|---|---|---|",
    ]
    for stage in sorted(sums, key=lambda s: -sums[s][main]):
        top = sorted(found[stage].items(), key=lambda item: -item[1][main])[:SHOWN]
        told = ", ".join(f"{n} {ms(of, main):.1f}" for n, of in top if ms(of, main) >= 0.05)
        lines.append(
            f"| {stage} | {ms(sums[stage], main):.1f} | {ms(sums[stage], main) / wall / 10:.1f} % | "
            f"{ms(sums[stage], 0):.1f} | {told} |"
        )
    busy = sum(ms(of, main) for of in sums.values())
    rest = "the device stands idle" if gpu else "outside of what the profiler saw"
    left = wall * 1e3 - busy
    lines.append(f"| {rest} | {left:.1f} | {left / wall / 10:.1f} % | | |")
    lines.append(f"| step | {wall * 1e3:.1f} | 100 % | | |")
    return "\n".join(lines)


def prepared(model: nn.Module, settings: TrainSettings, optim: OptimSettings, device: str) -> State:
    """Returns the state at step 0."""
    balancer = FixedSettings().build(["boxes"])
    balancer.attach(model.shared_parameters(), model.own_parameters())  # type: ignore[operator]
    names = [f"c{i}" for i in range(CLASSES)]
    process = Process(0, 1, torch.device(device))
    return settings.prepare(model, balancer, optim, process, {}, names)


def main() -> None:
    """Profiles some steps and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--network", help="a timm name")
    parser.add_argument("--side", type=int)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    gpu = args.device == "cuda"
    network = args.network or ("resnet50" if gpu else "resnet18")
    side, pictures = args.side or (800 if gpu else 256), args.pictures or (16 if gpu else 2)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    settings = TrainSettings(steps=1000, precision=args.precision)
    optim = OptimSettings(name="sgd", lr=LR)
    state = prepared(ours(CLASSES, network), settings, optim, args.device)
    batch = batch_of(pictures, args.boxes, side, side, CLASSES)
    batch = batch.pin_memory() if gpu else batch  # as a loader hands it over
    step = step_of(state, batch, settings, optim.clip)
    synchronize = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(5 if gpu else 1):
        step()
    synchronize()
    start = time.perf_counter()
    for _ in range(args.steps):
        step()
    synchronize()
    plain = (time.perf_counter() - start) / args.steps
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as seen:
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        synchronize()
        wall = (time.perf_counter() - start) / args.steps
    text = "\n".join(
        [
            "# Where the time of a training step goes",
            "",
            provenance(),
            f"- threads: {torch.get_num_threads()}",
            "",
            f"{network} with a pyramid, batch norm and the first two stages frozen, {CLASSES} classes; "
            f"{pictures} pictures of {side} px with {args.boxes} boxes; {args.precision}, channels_last, "
            f"SGD, EMA; mean of {args.steps} steps. A step takes {plain * 1e3:.0f} ms without the profiler "
            f"and {wall * 1e3:.0f} ms with it.",
            "",
            "A row's time is its operators' own; 'rest' is what lies between the stages; backward rows "
            "belong to the stage whose operators made the graph. `waiting` reads the losses, which on a "
            "CPU are there already.",
            "",
            table(stages(seen.events()), args.steps, wall, gpu),
            "",
        ]
    )  # fmt: skip
    print(text)
    if args.results:
        args.results.write_text(text)


if __name__ == "__main__":
    main()
