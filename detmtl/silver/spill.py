"""Rows of any number, sorted by picture, in bounded memory.

Stores keep pictures in no order, each its own, and a selection is written picture by picture: what
does not fit a buffer is sorted, put into a file and merged when it is read.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

BUFFER = 64 << 20
"""Bytes held in memory."""


class Spill:
    """Collects rows of a structured dtype that has a field `picture`.

    Args:
        dtype: of the rows.
        folder: holds the file, which nobody else sees and which is gone when the spill is.
        buffer: bytes held in memory.
    """

    def __init__(self, dtype: np.dtype, folder: Path, buffer: int = BUFFER):
        self._dtype, self._folder, self._most = dtype, folder, buffer
        self._held = (
            bytearray()
        )  # one buffer: a million small arrays would cost many times the memory
        self._runs: list[np.ndarray] = []
        self._file = None

    def add(self, rows: np.ndarray) -> None:
        """Adds rows, of any pictures in any order."""
        self._held += rows.tobytes()
        if len(self._held) > self._most:
            self._write()

    def blocks(self, pictures: int, step: int = 256) -> Iterator[tuple[range, np.ndarray]]:
        """Yields ranges of `step` pictures and their rows by picture; rows of one picture in the order in
        which they came. May be called again."""
        runs = [*self._runs, self._sorted()]
        edges = np.append(np.arange(0, pictures, step), pictures)
        # Once for all blocks: a search copies the column, which is a field of the rows.
        places = [np.searchsorted(run["picture"], edges) for run in runs]
        for block, (first, end) in enumerate(pairwise(edges.tolist())):
            parts = [
                run[place[block] : place[block + 1]]
                for run, place in zip(runs, places, strict=True)
            ]
            rows = np.concatenate(parts)
            yield range(first, end), rows[np.argsort(rows["picture"], kind="stable")]

    def _sorted(self) -> np.ndarray:
        rows = np.frombuffer(bytes(self._held), dtype=self._dtype)
        return rows[np.argsort(rows["picture"], kind="stable")]

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        rows = self._sorted()
        start = self._file.seek(0, 2)
        self._file.write(rows.tobytes())
        self._file.flush()
        run = np.memmap(self._file, self._dtype, mode="r", offset=start, shape=rows.shape)
        self._runs.append(run)
        self._held = bytearray()

    def close(self) -> None:
        """Gives the file back."""
        self._runs.clear()
        if self._file is not None:
            self._file.close()
