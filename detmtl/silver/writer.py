"""Adds records to a store."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from detmtl.silver.lock import WriterLock
from detmtl.silver.parts import write_part, writing
from detmtl.silver.records import AnyRecord

PART_BYTES = 2**25
"""A part is written from this size of its lines on, whatever it counts: it is read at once."""


class Writer:
    """Adds records to a store; a context manager that writes what is left, also after an error.

    Several may write at once, in one process or many: none touches another's files.
    """

    def __init__(
        self,
        folder: Path,
        teacher: str,
        encode: Callable[[AnyRecord], bytes],
        rank: int,
        part_pictures: int,
        part_seconds: float,
    ):
        """Takes the folder of the parts, which is there, what its parts say of the teacher, how its
        records become lines, and how often a part is written.

        Raises:
            InputError: the folder cannot be written to.
        """
        self._folder, self._teacher, self._encode = folder, teacher, encode
        self._part_pictures, self._part_seconds = part_pictures, part_seconds
        self._lines: list[bytes] = []
        self._bytes = 0
        self._since = 0.0
        self._number = 0
        with writing(folder):
            self._lock = WriterLock(folder, rank)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, record: AnyRecord) -> None:
        """Takes a record; it is safe once its part is written.

        Raises:
            InputError: as in `flush`.
        """
        if not self._lines:
            self._since = time.monotonic()
        line = self._encode(record)
        self._lines.append(line)
        self._bytes += len(line)
        if (
            len(self._lines) >= self._part_pictures
            or self._bytes >= PART_BYTES
            or time.monotonic() - self._since >= self._part_seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Writes the waiting records as a part that survives a kill or a power cut.

        Raises:
            InputError: it cannot be written: a full disk, no permission. The records wait on.
        """
        if not self._lines:
            return
        stem = f"part-{self._lock.name}_{self._number:06d}"
        self._number += 1  # before: interrupted and called again, it touches no part that is there
        with writing(self._folder):
            write_part(self._folder, stem, self._lines, self._teacher)
        self._lines.clear()
        self._bytes = 0

    def close(self) -> None:
        """Writes what is left and gives up the writer's name."""
        try:
            self.flush()
        finally:
            self._lock.release()
