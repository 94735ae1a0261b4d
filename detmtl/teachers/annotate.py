"""A teacher labels pictures into a store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from detmtl.data.source import Source
from detmtl.silver.store import Store
from detmtl.teachers.teacher import Teacher


def annotate(
    teacher: Teacher,
    sources: Sequence[Source],
    store_path: Path,
    floor: float = 0.05,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
    root: Path | None = None,
    faults: Literal["error", "skip"] = "error",
    part_pictures: int = 1000,
    part_seconds: float = 30.0,
    readers: int = 2,
    console: Console | None = None,
) -> Store:
    """Labels every picture of `sources` that the store does not hold yet; returns the store.

    Args:
        teacher: writes the labels.
        sources: the pictures; labels that they have are not read.
        store_path: folder of the store, made if it is not there.
        floor: the lowest score that is kept; low, since the choice comes later.
        batch_size: pictures that the teacher sees at once.
        rank, world: this process labels the pictures i with i % world == rank (torchrun).
        progress: whether to show a bar with the time left.
        root: file names are kept relative to this folder (None: the base name); only used when a
            selection is made without sources.
        faults: what happens at the end where pictures could not be read: an error that names
            them, or a warning. Every other picture is labelled in either case.
        part_pictures, part_seconds: a part is written after so many pictures or so much time,
            whichever comes first: the most that a kill can lose.
        readers: threads that decode pictures ahead of the teacher.
        console: where the bar goes.

    Raises:
        InputError: the store belongs to another teacher or another floor, or pictures could not
            be read.
    """
    raise NotImplementedError
