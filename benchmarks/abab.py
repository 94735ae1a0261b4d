"""Timing of several ways to do the same, in turn, and the table of what came out beside the goal.

Ways are timed A B C A B C ..., mostly in one process, so that a machine whose speed drifts slows all of them;
a ratio is the median of the rounds' ratios.
"""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

Way = Callable[[], object]

KEEPING = "freed memory kept"
BESIDE = (
    f"; torchvision as it comes, in a process of its own, and with {KEEPING}, as `detmtl train`, "
    "`evaluate` and `predict`, and detmtl here, have it (`detmtl/engine/memory.py`)."
)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: was measured.
        peer, ours: how much, with the unit.
        ratio: how many times better ours is.
        goal: what the ratio should reach; None: there is no goal.
        note: what else is to be said.
    """

    what: str
    peer: str
    ours: str
    ratio: float
    goal: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.goal is None:
            goal = "-"
        else:
            goal = f"{self.goal:g} {'reached' if self.ratio >= self.goal else 'missed'}"
        return (
            f"| {self.what} | {self.peer} | {self.ours} | {self.ratio:.3g} | {goal} | {self.note} |"
        )


def in_turn(
    ways: Mapping[str, Way],
    rounds: int,
    warmup: int = 1,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the seconds of each way in each round.

    Args:
        ways: name -> what to time.
        rounds: in which each way comes once.
        warmup: rounds before, not kept.
        synchronize: waits for the device; called before each look at the clock.
        clock: `time.process_time` for what runs in one thread, on a machine with other work.
    """
    wait = synchronize or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + rounds):
        for name, way in ways.items():
            gc.collect()  # else one way pays for what another left
            wait()
            start = clock()
            way()
            wait()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


@contextmanager
def elsewhere(make: Callable[..., Way], *arguments: Any) -> Iterator[Way]:
    """Gives the way that `make(*arguments)` makes, gone in a process of its own.

    There memory is handled as it is by default, whatever this process has told its allocator
    (`detmtl.engine.memory`). Both wait while the other one works.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    threads = torch.get_num_threads()
    process = context.Process(target=_go_when_told, args=(there, threads, make, arguments))
    process.start()
    there.close()  # so that the other end of a process that dies is noticed

    def go() -> None:
        try:
            here.send(None)
            here.recv()
        except (EOFError, OSError) as error:
            process.join(10)
            who = getattr(make, "__name__", make)
            raise SystemExit(
                f"the process of {who}{arguments} ended with status {process.exitcode}; -9 mostly means that "
                "there is not enough memory"
            ) from error

    try:
        yield go
    finally:
        here.close()
        process.join(60)
        process.terminate()


def _go_when_told(
    pipe: Connection, threads: int, make: Callable[..., Way], arguments: Sequence[Any]
) -> None:
    torch.set_num_threads(threads)
    way = make(*arguments)
    gc.collect()
    gc.freeze()  # a collection, which falls into the time of the next way, then has little to look at
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        way()
        pipe.send(None)
        gc.collect()  # not in its own time


def ratio(seconds: Mapping[str, Sequence[float]], peer: str, ours: str) -> float:
    """Returns how many times as long `peer` takes as `ours`: the median over the rounds."""
    return statistics.median(p / o for p, o in zip(seconds[peer], seconds[ours], strict=True))


def faster(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Returns which of `names` has the least median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def ms(values: Sequence[float]) -> str:
    """Returns the median of seconds, in milliseconds, with its unit."""
    value = statistics.median(values) * 1e3
    return f"{value:.0f} ms" if value >= 20 else f"{value:.2g} ms"


def row(
    what: str,
    seconds: Mapping[str, Sequence[float]],
    peer: str,
    ours: str,
    goal: float | None = None,
    note: str = "",
) -> Row:
    """Returns the line that compares two ways."""
    return Row(
        what,
        f"{peer}: {ms(seconds[peer])}",
        f"{ours}: {ms(seconds[ours])}",
        ratio(seconds, peer, ours),
        goal,
        note,
    )


def report(title: str, about: str, rows: Sequence[Row], results: Path | None = None) -> None:
    """Prints the table, and writes it to `results` where that is given."""
    text = "\n".join(
        [
            f"# {title}",
            "",
            provenance(),
            f"- threads: {torch.get_num_threads()}",
            "",
            about,
            "",
            "| what | peer | detmtl | ratio | goal | remarks |",
            "|---|---|---|---|---|---|",
            *map(str, rows),
            "",
        ]
    )
    print(text)
    if results:
        results.write_text(text)


def peak_memory(way: Way) -> int:
    """Returns by how many bytes the memory of this process grew at most while `way` ran.

    Linux only; meant for a process that did nothing like it before.
    """
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use now
    way()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell how much memory a process has")
