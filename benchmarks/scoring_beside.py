"""How long the training stands still for the score of an evaluation of val2017's size.

    python benchmarks/scoring_beside.py --threads 2 --results benchmarks/results/NAME.md

The real training loop on a small network; an evaluation comes after half of the steps, and its
predictions are there already: 5,000 pictures, 36,781 boxes, 500,000 detections of 80 classes, as in
`benchmarks/scoring.py`. What is measured is the time from the first step to the last one, without the
evaluation after it, and the stop of the loop at the evaluation: the longest of its steps less the
median one. Ways in turn: waiting; counting in a thread of the same process; counting in a process of
its own, which each run starts anew.
"""

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from abab import Row, ms, report
from networks import batch_of
from scoring import CLASSES, synthetic

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine import scores
from detmtl.engine.background import Background, packed
from detmtl.engine.distributed import Process
from detmtl.engine.evaluator import numbers
from detmtl.engine.memory import keep_freed_memory
from detmtl.engine.optim import OptimSettings
from detmtl.engine.recorder import Recorder, read_metrics
from detmtl.engine.trainer import TrainSettings, train
from detmtl.metrics.coco import CocoMetric
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.sample import Batch
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model

NAMES = [str(c) for c in range(CLASSES)]


class InThread(Background):
    """Counts in a thread of this process: for comparison."""

    def start(self, job: bytes) -> None:
        def call():
            function, arguments = pickle.loads(job)
            return function(*arguments), None

        self._here = ThreadPoolExecutor(1)
        self._answer = self._here.submit(call)


def predicted(pictures: int, boxes: int, detections: int) -> CocoMetric:
    """Returns a metric that has seen the synthetic detections."""
    sides = []
    for of in synthetic(pictures, boxes, detections):
        classes = of.categories - 1  # from 1 there
        columns = [classes[:, None], of.boxes_xywh, of.scores[:, None], of.crowd[:, None]]
        cuts = np.searchsorted(of.images, np.arange(1, pictures))
        sides.append(np.split(np.concatenate(columns, axis=1).astype(float), cuts))
    metric = CocoMetric(NAMES)
    metric.merge([{("val", i): pair for i, pair in enumerate(zip(*sides, strict=True))}])
    return metric


def trained(
    folder: Path, background: bool, steps: int, batch: Batch, metric: Callable[[], CocoMetric]
) -> tuple[list[float], float]:
    """Returns the seconds of each step, and the AP of the evaluation after half of them."""
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="resnet10t"), fpn=FPNSettings(channels=64)
    )
    model = build_model(settings, {"boxes": DetectionConfig()}, NAMES)
    balancer, optim = FixedSettings().build(["boxes"]), OptimSettings()
    balancer.attach(model.shared_parameters(), model.own_parameters())
    chosen = TrainSettings(
        steps=steps,
        log_every=1,
        save_every=None,
        pictures_every=None,
        evaluate_every=steps // 2,
        best="boxes/AP",
        score_in_background=background,
    )
    state = chosen.prepare(model, balancer, optim, Process(0, 1, torch.device("cpu")), {}, NAMES)
    marks: list[float] = []

    def batches() -> Iterator[Batch]:
        while True:
            marks.append(time.perf_counter())
            yield batch

    def evaluate(_):
        last = state.step == steps
        marks.extend([time.perf_counter()] if last else [])
        return {"boxes": CocoMetric(NAMES) if last else metric()}

    with Recorder(folder, steps, {"boxes": NAMES}, progress=False) as recorder:
        try:
            train(state, batches(), chosen, optim, evaluate, recorder, folder)
        finally:
            values = {r["step"]: r for r in read_metrics(folder / "metrics.jsonl") if len(r) > 50}
    return np.diff(marks[1:]).tolist(), values[steps // 2]["val/boxes/AP"]


def main() -> None:
    """Times the ways in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=36_781)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    metric = predicted(args.pictures, args.boxes, args.detections)
    start = time.perf_counter()
    job = packed(numbers, {"boxes": metric})
    packing = time.perf_counter() - start
    start = time.perf_counter()
    numbers({"boxes": metric})
    counting = time.perf_counter() - start
    batch = batch_of(2, 20, args.side, args.side, CLASSES)
    ways = {
        "waiting": (False, Background),
        "in a thread": (True, InThread),
        "in a process": (True, Background),
    }
    whole: dict[str, list[float]] = {name: [] for name in ways}
    stop: dict[str, list[float]] = {name: [] for name in ways}
    found = set()
    for turn in range(args.rounds + 1):
        for name, (background, kind) in ways.items():
            scores.Background = kind  # type: ignore[misc]
            with tempfile.TemporaryDirectory() as folder:
                steps = 6 if turn == 0 else args.steps  # the first turn warms up
                few = predicted(10, 50, 10) if turn == 0 else metric
                seconds, ap = trained(Path(folder), background, steps, batch, lambda m=few: m)
            if turn:
                found.add(ap)
                whole[name].append(sum(seconds))
                stop[name].append(max(seconds) - statistics.median(seconds))
    scores.Background = Background  # type: ignore[misc]
    rows = []
    for what, values in (("stop at the evaluation", stop), ("all steps", whole)):
        for name in ("in a thread", "in a process"):
            rows.append(
                Row(
                    what,
                    f"waiting: {ms(values['waiting'])}",
                    f"{name}: {ms(values[name])}",
                    statistics.median(values["waiting"]) / statistics.median(values[name]),
                    None,
                    "rounds: " + ", ".join(f"{w:.1f} / {o:.1f} s" for w, o in zip(
                        values["waiting"], values[name], strict=True)),
                )
            )  # fmt: skip
    rows.append(Row("the AP", "", "same" if len(found) == 1 else "DIFFERS", float(len(found) == 1)))
    report(
        "The stop of a training for the score of an evaluation",
        f"{args.pictures} pictures, {args.boxes} boxes, {args.detections} detections each; counting "
        f"alone takes {counting:.1f} s; what is sent has {len(job) / 1e6:.0f} MB and takes "
        f"{packing * 1e3:.0f} ms to pack. {args.steps} steps of 2 pictures of {args.side} px, "
        f"{args.rounds} rounds in turn. 'peer' is waiting. It has not run on a GPU.",
        rows,
        args.results,
    )


if __name__ == "__main__":
    main()
