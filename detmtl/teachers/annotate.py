"""A teacher labels pictures into a store."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Labels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.teacher import Teacher
from detmtl.teachers.to_record import record_of

READERS = 2
"""Threads that decode pictures ahead of the teacher."""


@dataclass(frozen=True, eq=False)
class _Read:
    """A picture that was read, or the error that came of it."""

    info: ImageInfo
    image: Tensor | None
    fault: InputError | None


def annotate(
    teacher: Teacher,
    sources: Sequence[Source],
    store_path: Path | str,
    floor: float = 0.05,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    root: Path | None = None,
    part_pictures: int = 1000,
    part_seconds: float = 30.0,
    console: Console | None = None,
) -> Store:
    """Labels every picture of `sources` that the store does not hold yet; returns the store.

    Args:
        teacher: writes the labels.
        sources: the pictures; labels that they have are not read.
        store_path: folder of the store, made if it is not there; it may hold other teachers' labels.
        floor: the lowest score of a box that is kept; low, since the choice comes later.
        batch_size: pictures that the teacher sees at once.
        rank, world: this process labels the pictures i with i % world == rank (torchrun); where they are
            those of a group of processes, all of it have to call this.
        root: file names are kept relative to this folder (None: absolute); only used when a selection
            is made without sources.
        part_pictures, part_seconds: a part is written after so many pictures or so much time,
            whichever comes first: the most that a kill can lose.
        console: where rank 0 shows a bar with the time left (None: nowhere).

    Raises:
        InputError: the store has labels of another teacher of that name, or with another floor; it
            cannot be written; the teacher cannot tell two pictures apart, or gives what no label can be; or
            pictures could not be read, and then all others are labelled first, by every process.
    """
    assert 0 <= rank < world and batch_size > 0
    store = Store.create(Path(store_path), teacher.card, floor)
    bar = None if console is None or rank else _bar(console)
    unreadable: list[str] = []
    with bar or nullcontext(), store.writer(rank, part_pictures, part_seconds) as writer:
        todo, hashes = _todo(sources, store, rank, world, bar)
        teacher.expect(
            pair
            for source, own in zip(sources, hashes, strict=True)
            for pair in zip(source.files.paths(), own, strict=True)
        )
        number = None if bar is None else bar.add_task("labelling", total=len(todo))
        reading = _read_ahead(sources, todo, hashes, 4 * batch_size)
        while chunk := list(islice(reading, batch_size)):
            for read in chunk:
                unreadable += [] if read.fault is None else read.fault.problems
            good = [(read.image, read.info) for read in chunk if read.image is not None]
            for found, (_, info) in zip(_asked(teacher, good, floor), good, strict=True):
                writer.add(record_of(found, info, teacher.card, floor, root))
            if bar is not None and number is not None:
                bar.advance(number, len(chunk))
    # no process fails before the others are done: torchrun would end them
    if problems := [problem for of_rank in distributed.gather(unreadable) for problem in of_rank]:
        raise InputError(problems)
    return Store.open(store.path, teacher.card.name)


def _asked(
    teacher: Teacher, pictures: Sequence[tuple[Tensor, ImageInfo]], floor: float
) -> Sequence[Labels]:
    """Returns the labels of each of some pictures, perhaps of none.

    Raises:
        InputError: the teacher gave another number of them, and whose they are is not known.
    """
    if not pictures:
        return []
    labels = teacher.annotate([x for x, _ in pictures], [info for _, info in pictures], floor)
    if len(labels) != len(pictures):
        raise InputError(
            f"teacher '{teacher.card.name}': gave {len(labels)} labels for {len(pictures)} pictures; it has "
            "to give one for each, an empty one where it sees nothing"
        )
    return labels


def _todo(
    sources: Sequence[Source], store: Store, rank: int, world: int, bar: Progress | None
) -> tuple[np.ndarray, list[list[str]]]:
    """Returns source and position (J, 2) of the pictures that are to be labelled, and all hashes.

    Of several files with the same bytes the first is labelled, once.
    """
    hashes = [source.hashes(_reporter(bar, f"hashing {source.name}")) for source in sources]
    flat = [content_hash for own in hashes for content_hash in own]
    if not flat:
        raise InputError("annotate: there are no pictures in " + ", ".join(s.name for s in sources))
    digests = np.frombuffer(bytes.fromhex("".join(flat)), dtype="S32")
    first = np.zeros(len(flat), dtype=bool)
    first[np.unique(digests, return_index=True)[1]] = True
    mine = np.arange(len(flat)) % world == rank
    at = np.flatnonzero(first & mine & ~store.known().mask(flat))
    ends = np.cumsum([len(own) for own in hashes])
    source = np.searchsorted(ends, at, side="right")
    return np.stack([source, at - np.append(0, ends)[source]], axis=1), hashes


def _read_ahead(
    sources: Sequence[Source],
    todo: np.ndarray,
    hashes: Sequence[Sequence[str]],
    ahead: int,
) -> Iterator[_Read]:
    """Yields pictures in order, at most `ahead` of them decoded and waiting."""

    def read(s: int, i: int) -> _Read:
        info = replace(sources[s].info(i), content_hash=hashes[s][i])
        try:
            pixels = sources[s].read(i)
        except InputError as fault:
            return _Read(info, None, fault)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return _Read(info, image, None)

    waiting: deque[Future[_Read]] = deque()
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        try:
            for s, i in todo:
                waiting.append(pool.submit(read, int(s), int(i)))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _reporter(bar: Progress | None, what: str) -> Callable[[int, int], None] | None:
    if bar is None:
        return None
    number = bar.add_task(what, total=None)
    return lambda done, total: bar.update(number, completed=done, total=total)
