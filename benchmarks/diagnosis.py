"""What looking at gradients costs: training steps with and without, in turn, in one process.

    python benchmarks/diagnosis.py --threads 1 --results benchmarks/results/NAME.md

Blocks of steps without a look and blocks in which every step looks, A B A B; the difference of the
medians is the cost of one look, and divided by 50 steps that of looking every 50 steps.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from provenance import provenance
from task_sets import Trainer, prepared

from detmtl.engine.diagnosis import Diagnosis, DiagnosisSettings

EVERY = 50


def main() -> None:
    """Measures in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="scenes_tasks.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="of a block")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings, batches = prepared(args.config, args.set, Path(folder))
    trainer = Trainer.of(settings, batches)
    cases: dict[str, Diagnosis | None] = {"no look": None}
    for layers in (settings.diagnosis.layers, None):
        name = "all parameters" if layers is None else f"the {layers} largest weights of a stage"
        looks = DiagnosisSettings(every=1, layers=layers)
        cases[name] = Diagnosis(looks, trainer.model.stages())
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        trainer.step(case)  # the first of each is not counted
    for _ in range(args.rounds):
        for name, case in cases.items():
            seconds[name] += [trainer.step(case) for _ in range(args.steps)]
    plain = statistics.median(seconds["no look"])
    rows = [
        f"| {name} | {statistics.median(v) * 1e3:.0f} | {(statistics.median(v) / plain - 1):+.2f} | "
        f"{100 * (statistics.median(v) / plain - 1) / EVERY:.2f} % |"
        for name, v in seconds.items()
    ]
    text = "\n".join(
        [
            f"# What looking at gradients costs, {args.threads} threads",
            "",
            provenance(),
            "",
            f"{args.config}, tasks {', '.join(settings.tasks)}; {len(batches)} batches of "
            f"{settings.data.batch_size} pictures, again and again, without loading them; medians (processor "
            f"time) of {args.rounds * args.steps} steps each, in blocks of {args.steps}, in turn.",
            "",
            f"| look | median ms of a step | look, in steps | cost at every {EVERY} steps |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if args.results:
        args.results.write_text(text)


if __name__ == "__main__":
    main()
