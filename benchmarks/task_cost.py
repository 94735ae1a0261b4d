"""What each added task costs: time per step and memory of sets of a config's tasks.

    python benchmarks/task_cost.py --threads 1 --results benchmarks/results/NAME.md

Time: one process, a model for each set, blocks of steps in turn (A B C A B C). Memory: a process for each
set, by how much it grows at most from before the model is made (on a GPU the device's peak).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from abab import peak_memory
from provenance import provenance
from task_sets import Trainer, prepared

from detmtl.config import RunSettings


def sets_of(tasks: list[str]) -> list[tuple[str, ...]]:
    """Returns each task alone, then the first with one more each time, then the first with each other."""
    growing = [tuple(tasks[:n]) for n in range(2, len(tasks) + 1)]
    pairs = [(tasks[0], t) for t in tasks[1:]]
    return list(dict.fromkeys([*((t,) for t in tasks), *growing, *pairs]))


def only(settings: RunSettings, tasks: tuple[str, ...]) -> RunSettings:
    """Returns settings with these tasks alone."""
    return settings.model_copy(update={"tasks": {t: settings.tasks[t] for t in tasks}})


def peak(tasks: tuple[str, ...], args: argparse.Namespace) -> float:
    """Returns by how many bytes a process grows at most that makes some steps."""
    command = [sys.executable, __file__, "--peak", json.dumps(tasks), "--config", args.config]
    command += ["--threads", str(args.threads), *(w for s in args.set for w in ("--set", s))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_peak(tasks: tuple[str, ...], args: argparse.Namespace) -> float:
    """Returns by how much this process grows at most in some steps of these tasks."""
    with tempfile.TemporaryDirectory() as folder:
        settings, batches = prepared(args.config, args.set, Path(folder))

    def train() -> None:
        trainer = Trainer.of(only(settings, tasks), batches)
        for _ in range(4):
            trainer.step()

    grown = peak_memory(train)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else grown


def main() -> None:
    """Measures in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="scenes_tasks.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="of a block")
    parser.add_argument("--peak", help="for the processes that this one starts")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(measure_peak(tuple(json.loads(args.peak)), args))
        return
    with tempfile.TemporaryDirectory() as folder:
        settings, batches = prepared(args.config, args.set, Path(folder))
    sets = sets_of(list(settings.tasks))
    trainers = {tasks: Trainer.of(only(settings, tasks), batches) for tasks in sets}
    seconds: dict[tuple[str, ...], list[float]] = {tasks: [] for tasks in sets}
    for trainer in trainers.values():
        trainer.step()
    for _ in range(args.rounds):
        for tasks, trainer in trainers.items():
            seconds[tasks] += [trainer.step() for _ in range(args.steps)]
    del trainers
    first = statistics.median(seconds[sets[0]])
    rows = [
        f"| {' + '.join(tasks)} | {1e3 * statistics.median(v):.0f} | {statistics.median(v) / first:.2f} | "
        f"{peak(tasks, args) / 2**20:.0f} |"
        for tasks, v in seconds.items()
    ]
    text = "\n".join(
        [
            f"# What each task costs, {args.threads} threads",
            "",
            provenance(),
            "",
            f"{args.config}; {len(batches)} batches of {settings.data.batch_size} pictures, again and again, "
            f"without loading them; medians (processor time) of {args.rounds * args.steps} steps in blocks "
            f"of {args.steps}, the sets in turn. Memory: by how much a process grows at most, model "
            "included.",
            "",
            f"| tasks | median ms of a step | times {sets[0][0]} alone | memory (MB) |",
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
