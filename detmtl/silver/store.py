"""Raw labels of a teacher on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.silver.card import TeacherCard


@dataclass(frozen=True, eq=False)
class Record:
    """What a teacher saw in one picture; no boxes means that it looked and saw nothing.

    Attributes:
        content_hash: sha256 of the picture's file, 64 hex digits: the key.
        height, width: pixels of the picture as a person sees it.
        boxes: (N, 4) float32 xyxy, pixels, rounded to 1/100.
        classes: (N,) int32, the teacher's.
        scores: (N,) float32 in [0, 1], falling, rounded to 1e-5.
        file: a name for people; no part of the record's identity.
    """

    content_hash: str
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    file: str = ""


class Known:
    """The content hashes of labelled pictures, 32 bytes each."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __contains__(self, content_hash: str) -> bool:
        raise NotImplementedError

    def mask(self, content_hashes: Sequence[str]) -> np.ndarray:
        """Returns (I,) bool: which of the hashes (64 hex digits each) are known."""
        raise NotImplementedError


class Writer:
    """Adds records to a store; a context manager that writes what is left on a clean exit."""

    def __enter__(self) -> "Writer":
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    def add(self, record: Record) -> None:
        """Takes a record; it is safe once its part is written."""
        raise NotImplementedError

    def flush(self) -> None:
        """Writes the waiting records as a part that survives a kill or a power cut."""
        raise NotImplementedError


class Store:
    """A folder of one teacher's raw labels.

    Attributes:
        path: the folder.
        card: the teacher.
        floor: the lowest score that was kept.
    """

    path: Path
    card: TeacherCard
    floor: float

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Opens a store for reading.

        Raises:
            InputError: there is none, or a finished part does not have the bytes it was written with.
        """
        raise NotImplementedError

    @classmethod
    def create(cls, path: Path, card: TeacherCard, floor: float) -> "Store":
        """Makes a store, or continues one; torn parts of writers that are gone are thrown away.

        Raises:
            InputError: the store there is another teacher's or has another floor.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Returns the number of labelled pictures."""
        raise NotImplementedError

    def known(self) -> Known:
        """Returns the content hashes of labelled pictures."""
        raise NotImplementedError

    def writer(self, rank: int = 0, part_pictures: int = 1000, part_seconds: float = 30.0) -> Writer:
        """Returns a writer; several may write at once, in one process or many."""
        raise NotImplementedError

    def records(self) -> Iterator[Record]:
        """Yields each picture's record once, a part at a time in memory, in no promised order."""
        raise NotImplementedError

    def digest(self) -> str:
        """Returns a hash of card, floor and labels; the same however the parts were cut or ordered."""
        raise NotImplementedError
