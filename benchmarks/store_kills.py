"""Kills the writers of a store at random moments; ends it; compares it with an undisturbed one.

    python benchmarks/store_kills.py --kills 200 --writers 2

Writers label the same pictures, each in an order of its own, in parts of one to four pictures, so that
a kill (SIGKILL) often comes in the middle of a part. Each is started again at once, beside the others
that live. At last one writer finishes. Exit status 0: the store has the bytes of the undisturbed one,
after canonical ordering, nothing unfinished is left, and no writer found anything damaged; else 1.
"""

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np

from detmtl.silver.card import TeacherCard
from detmtl.silver.record import Record
from detmtl.silver.store import Store

CARD = TeacherCard(name="t", weights_sha256="0" * 64, classes=("cat", "dog"), preprocessing="none")
FLOOR = 0.05


@cache
def content_hashes(records: int) -> list[str]:
    """Returns the content hashes of pictures 0 to `records` - 1."""
    return [hashlib.sha256(str(n).encode()).hexdigest() for n in range(records)]


def record(n: int, content_hash: str) -> Record:
    """Returns the record of picture `n`: up to nine boxes."""
    rng = np.random.default_rng(n)
    count = n % 10
    corner = rng.uniform(0, 400, (count, 2))
    return Record(
        content_hash,
        480,
        640,
        np.concatenate([corner, corner + rng.uniform(1, 80, (count, 2))], axis=1),
        rng.integers(0, 2, count),
        -np.sort(-rng.uniform(FLOOR, 1, count)),
        f"{n}.jpg",
    )


def label(path: Path, records: int, rank: int, order: np.random.Generator, most: int) -> None:
    """Labels what is not labelled yet, in parts of at most `most` pictures."""
    warnings.simplefilter("error")  # a damaged part
    store = Store.create(path, CARD, FLOOR)
    hashes = content_hashes(records)
    todo = order.permutation(np.flatnonzero(~store.known().mask(hashes)))
    with store.writer(rank, part_pictures=most, part_seconds=1e9) as writer:
        for n in todo:
            writer.add(record(n, hashes[n]))
            if order.random() < 1 / most:
                writer.flush()


@dataclass
class Kills:
    """What the kills did.

    Attributes:
        done: processes that were killed.
        unfinished: kills that left a file unfinished.
    """

    done: int = 0
    unfinished: int = 0


def pace(path: Path) -> float:
    """Returns the seconds in which a writer begins and writes six parts."""
    start = time.perf_counter()
    label(path, 24, 0, np.random.default_rng(0), most=4)
    return time.perf_counter() - start


def disturb(
    path: Path, records: int, wanted: int, writers: int, seed: int, longest: float
) -> Kills:
    """Starts writers and kills them, till `wanted` are dead, each after up to `longest` seconds.

    Raises:
        SystemExit: a writer failed, or finished the store before.
    """
    rng, kills = np.random.default_rng(seed), Kills()
    lives: dict[int, tuple[float, int]] = {}
    content_hashes(records)  # once, for all processes
    opening = 0.0
    while kills.done < wanted:
        for rank in set(range(writers)) - {rank for _, rank in lives.values()}:
            process = _start(path, records, rank, np.random.default_rng([seed, kills.done, rank]))
            lives[process] = (time.monotonic() + rng.uniform(0, longest + 2 * opening), rank)
        process = min(lives, key=lambda p: lives[p][0])
        moment, rank = lives.pop(process)
        time.sleep(max(0.0, moment - time.monotonic()))
        os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != -signal.SIGKILL:
            _end(lives)
            raise SystemExit(
                "a writer failed" if status else "the store was finished first: give more --records"
            )
        kills.done += 1
        kills.unfinished += bool(unfinished(path, f"part-{rank:04d}-*"))
        if kills.done % 10 == 0 and (path / "raw" / CARD.name / "teacher.json").exists():
            # However long opening has become, kills come while something is written.
            start = time.perf_counter()
            Store.open(path)
            opening = time.perf_counter() - start
    _end(lives)
    return kills


def unfinished(path: Path, pattern: str = "*") -> list[str]:
    """Returns files that are no finished part, nor the card."""
    names = {file.name for file in (path / "raw" / CARD.name).glob(pattern)}
    parts = {name.removesuffix(".ok") + ".jsonl.gz" for name in names if name.endswith(".ok")}
    finished = {name for name in names if name.endswith(".ok")} | parts | {"teacher.json"}
    return sorted(names - finished)


def _start(path: Path, records: int, rank: int, order: np.random.Generator) -> int:
    process = os.fork()
    if process:
        return process
    try:
        label(path, records, rank, order, most=4)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _end(lives: dict[int, tuple[float, int]]) -> None:
    for process in lives:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def main() -> int:
    """Disturbs, finishes, compares and says how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, whole = Path(folder) / "killed", Path(folder) / "whole"
        start = time.monotonic()
        longest = pace(Path(folder) / "pace")
        kills = disturb(path, args.records, args.kills, args.writers, args.seed, longest)
        seconds = time.monotonic() - start
        parts = len(list((path / "raw" / CARD.name).glob("*.ok")))
        labelled = len(Store.open(path))
        label(path, args.records, 0, np.random.default_rng(args.seed), most=1000)
        label(whole, args.records, 0, np.random.default_rng(args.seed), most=1000)
        mine, theirs = Store.open(path), Store.open(whole)
        pairs = zip_longest(mine.canonical(), theirs.canonical())
        equal = all(a == b for a, b in pairs) and mine.digest() == theirs.digest()
        left = unfinished(path)
    print(
        f"{kills.done} kills of {args.writers} writer(s) in {seconds:.0f} s, {kills.unfinished} of them "
        f"inside of a part; {labelled} of {args.records} pictures in {parts} parts were kept"
    )
    print(f"unfinished files at the end: {', '.join(left) or 'none'}")
    print(f"verdict: {'EQUAL' if equal else 'NOT EQUAL'} to the undisturbed store, byte for byte")
    return 0 if equal and not left else 1


if __name__ == "__main__":
    sys.exit(main())
