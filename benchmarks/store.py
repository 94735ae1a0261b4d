"""Does a store stay fast and small as it grows?

    python benchmarks/store.py --results benchmarks/results/store_<hardware>_<yyyymm>.md

A new process continues the store for each step, as after a kill; other processes open and read it.
Seconds of the processor are given beside those of the clock: other work on the machine adds to the
latter only.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.silver.card import TeacherCard
from detmtl.silver.record import Record
from detmtl.silver.store import Store

CARD = TeacherCard(
    name="t", weights_sha256="0" * 64, classes=tuple(map(str, range(80))), preprocessing="none"
)


def examples(count: int, boxes: int) -> list[Record]:
    """Returns records of `boxes` boxes on average, as of a detector with 80 classes."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        n = rng.poisson(boxes)
        corner = rng.uniform(0, 400, (n, 2))
        box = np.concatenate([corner, corner + rng.uniform(5, 200, (n, 2))], axis=1)
        scores = -np.sort(-rng.beta(1, 3, n))
        classes = rng.integers(0, 80, n)
        made.append(Record("", 480, 640, box.astype(np.float32), classes, scores.astype("f4")))
    return made


class Clock:
    """Seconds since it was made or read, of the clock and of the processor."""

    def __init__(self):
        self.read()

    def read(self) -> tuple[float, float]:
        """Returns both, and starts again."""
        now = time.perf_counter(), time.process_time()
        since = getattr(self, "_last", now)
        self._last = now
        return now[0] - since[0], now[1] - since[1]


def peak() -> float:
    """Returns the most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def append(path: Path, first: int, count: int, boxes: int) -> dict[str, Any]:
    """Continues the store with pictures `first` to `first + count` - 1."""
    made = examples(500, boxes)
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(first, first + count)]
    clock = Clock()
    store = Store.create(path, CARD, 0.05)
    assert not store.known().mask(hashes).any() and len(store) == first
    opened = clock.read()
    with store.writer() as writer:
        for n, content_hash in enumerate(hashes):
            name = f"train2017/{first + n:012d}.jpg"
            writer.add(replace(made[n % len(made)], content_hash=content_hash, file=name))
    return {"open": opened, "append": clock.read(), "peak": peak()}


def read(path: Path) -> dict[str, Any]:
    """Opens a store and reads it in several ways."""
    start, clock = peak(), Clock()
    store = Store.open(path)
    pictures = len(store)
    found: dict[str, Any] = {"pictures": pictures, "start": start}
    found["open"] = (*clock.read(), peak())
    assert len(Store.open(path)) == pictures
    found["open again in the same process"] = (*clock.read(), peak())
    ways: dict[str, Callable[[], object]] = {
        "digest": store.digest,
        "all pictures' names and sizes": lambda: deque(store.heads(), 0),
        "all records": lambda: deque(store.records(), 0),
    }
    for name, way in ways.items():
        way()
        found[name] = (*clock.read(), peak())
    return found


def alone(*words: object) -> dict[str, Any]:
    """Runs a step in a process of its own, and returns what it found."""
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def report(grown: list[dict[str, Any]], final: dict[str, Any], step: int, size: int) -> list[str]:
    """Returns the tables."""
    lines = [
        f"{final['pictures']} pictures, {size / 2**20:.0f} MiB on disk; each step of {step} is appended "
        "by a new process that opens the store first. Seconds: clock (processor); MiB: peak of the process.",
        "",
        "| pictures before | opening s | appending s | microseconds a picture | MiB |",
        "|---|---|---|---|---|",
    ]
    for i, g in enumerate(grown):
        (o, oc), (a, ac) = g["open"], g["append"]
        each = f"{ac / step * 1e6:.0f} | {g['peak']:.0f}"
        lines.append(f"| {i * step} | {o:.2f} ({oc:.2f}) | {a:.1f} ({ac:.1f}) | {each} |")
    lines += [
        "",
        f"Of the whole store, in one process, which needs {final['start']:.0f} MiB before:",
        "",
        "| what | s | MiB till then |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {values[0]:.2f} ({values[1]:.2f}) | {values[2]:.0f} |"
        for name, values in final.items()
        if isinstance(values, list)
    ]
    return lines


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--step", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--append", nargs=2, metavar=("STORE", "FIRST"), help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.append:
        path, first = Path(args.append[0]), int(args.append[1])
        print(json.dumps(append(path, first, args.step, args.boxes)))
        return
    if args.read:
        print(json.dumps(read(args.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        sizes = ("--step", args.step, "--boxes", args.boxes)
        steps = range(0, args.records, args.step)
        grown = [alone("--append", path, first, *sizes) for first in steps]
        final = alone("--read", path)
        size = sum(file.stat().st_size for file in path.rglob("*"))
    from provenance import provenance  # imports torch, which the measured processes do not

    title = f"# A store that grows to {args.records} pictures of {args.boxes} boxes"
    text = "\n".join([title, "", provenance(), "", *report(grown, final, args.step, size), ""])
    print(text)
    if args.results:
        args.results.write_text(text)


if __name__ == "__main__":
    main()
