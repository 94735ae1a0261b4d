"""Flat arrays: many lists of different lengths as one array and offsets, mapped from files.

A million Python objects would be copied into every worker of a data loader, because counting their
references writes to their pages. Flat arrays are not: forked workers share them, spawned ones map
the same files (a mapped array is pickled as its file name).
Letters: I pictures, N boxes of all pictures, C classes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Flat:
    """A base whose array fields that are mapped from files are pickled as the files' names."""

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: _shrink(getattr(self, f.name)) for f in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, _grow(value))


@dataclass(frozen=True)
class _Mapped:
    path: str


def _shrink(value: Any) -> Any:
    whole = (
        isinstance(value, np.memmap) and value.filename and not isinstance(value.base, np.memmap)
    )
    return _Mapped(str(value.filename)) if whole else value


def _grow(value: Any) -> Any:
    return np.load(value.path, mmap_mode="r") if isinstance(value, _Mapped) else value


@dataclass(frozen=True, eq=False)
class FileNames(Flat):
    """I file names below one folder; `names[i]` is an absolute path.

    Attributes:
        folder: absolute path that all names are relative to.
        text: (bytes,) uint8, the UTF-8 names one after the other.
        offsets: (I+1,) int64, where each begins.
    """

    folder: str
    text: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, folder: str | os.PathLike[str], names: Iterable[str]) -> "FileNames":
        """Packs names relative to `folder` (absolute ones stay as they are)."""
        encoded = [os.fsencode(name) for name in names]
        return cls(
            os.path.abspath(folder),
            np.frombuffer(b"".join(encoded), dtype=np.uint8),
            _offsets(np.fromiter((len(e) for e in encoded), dtype=np.int64, count=len(encoded))),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        return os.path.join(self.folder, self.name(i))

    def name(self, i: int) -> str:
        """Returns the name relative to `folder`."""
        i = range(len(self))[i]
        return os.fsdecode(self.text[self.offsets[i] : self.offsets[i + 1]].tobytes())

    def paths(self) -> Iterator[str]:
        """Yields all absolute paths, in less time than one by one."""
        text, offsets = self.text.tobytes(), self.offsets.tolist()
        for start, end in pairwise(offsets):
            yield os.path.join(self.folder, os.fsdecode(text[start:end]))

    def take(self, indices: np.ndarray) -> "FileNames":
        """Returns the names at `indices`."""
        rows, offsets = gather(self.offsets, indices)
        return FileNames(self.folder, self.text[rows], offsets)


@dataclass(frozen=True, eq=False)
class Annotations(Flat):
    """The boxes of all pictures; picture i has the rows offsets[i] to offsets[i+1].

    Attributes:
        offsets: (I+1,) int64.
        boxes: (N, 4) float32 xyxy, pixels of the file's picture.
        classes: (N,) int32 in 0..C-1.
        scores: (N,) float32 in [0, 1].
        weights: (N, 2) float32, for class and box loss.
        ignore: (N,) uint8, an `Ignore`.
        grade: (N,) uint8, a `Grade`.
        details: a `detmtl.data.details.FlatDetails` of the N boxes; None: nobody looked for any.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    ignore: np.ndarray
    grade: np.ndarray
    details: Any = None

    @classmethod
    def of(
        cls,
        num_images: int,
        image: np.ndarray,
        boxes: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        ignore: np.ndarray | None = None,
        grade: np.ndarray | int = 0,
        details: Any = None,
    ) -> "Annotations":
        """Sorts N boxes in any order by `image` (N,), the position of their picture; boxes of one
        picture keep their order. What is not given is plain gold."""
        order = np.argsort(image, kind="stable")
        n = len(order)
        return cls(
            offsets=_offsets(np.bincount(image, minlength=num_images)),
            boxes=boxes.reshape(n, 4)[order].astype(np.float32),
            classes=classes[order].astype(np.int32),
            scores=np.ones(n, np.float32) if scores is None else scores[order].astype(np.float32),
            weights=np.ones((n, 2), np.float32)
            if weights is None
            else weights[order].astype(np.float32),
            ignore=np.zeros(n, np.uint8) if ignore is None else ignore[order].astype(np.uint8),
            grade=np.broadcast_to(np.asarray(grade, np.uint8), (n,))[order],
            details=None if details is None else details.take(order),
        )

    def __len__(self) -> int:
        """Returns the number of boxes N."""
        return len(self.boxes)

    def rows(self, i: int) -> slice:
        """Returns where the boxes of picture i lie."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def image_index(self) -> np.ndarray:
        """Returns for each box (N,) the position of its picture."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, indices: np.ndarray) -> "Annotations":
        """Returns the boxes of the pictures at `indices`."""
        rows, offsets = gather(self.offsets, indices)
        per_box = {name: x[rows] for name, x in self.arrays().items() if name != "offsets"}
        details = None if self.details is None else self.details.take(rows)
        return Annotations(offsets=offsets, **per_box, details=details)

    def where(self, keep: np.ndarray) -> "Annotations":
        """Returns the boxes that `keep` (N,) bool marks, of the same pictures."""
        rows = np.flatnonzero(keep)
        counts = np.bincount(self.image_index()[rows], minlength=len(self.offsets) - 1)
        per_box = {name: x[rows] for name, x in self.arrays().items() if name != "offsets"}
        details = None if self.details is None else self.details.take(rows)
        return Annotations(offsets=_offsets(counts), **per_box, details=details)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name, without those of the details."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "details"}


def gather(offsets: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flat rows of the lists at `indices`, and the offsets of the lists picked."""
    indices = np.asarray(indices, dtype=np.int64)
    starts, lengths = offsets[indices], offsets[indices + 1] - offsets[indices]
    picked = _offsets(lengths)
    rows = np.arange(picked[-1]) + np.repeat(starts - picked[:-1], lengths)
    return rows, picked


def _offsets(lengths: np.ndarray) -> np.ndarray:
    out = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays and JSON facts as `folder`, all or nothing; a folder that is there is kept."""
    with draft_of(folder) as draft:
        try:
            for name, array in arrays.items():
                np.save(draft / f"{name}.npy", np.ascontiguousarray(array))
            (draft / "facts.json").write_text(json.dumps(dict(facts)))
            draft.rename(folder)
        except OSError:
            if not (folder / "facts.json").is_file():  # otherwise another process was faster
                raise


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder`, to be filled and then renamed to it; at the end it is gone if it
    was not renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # Nobody else may look into a folder of mkdtemp; into one of mkdir may whoever the user lets.
        draft = own / folder.name
        draft.mkdir()
        yield draft
    finally:
        shutil.rmtree(own, ignore_errors=True)


def load_arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns what `save_arrays` wrote, the arrays mapped read-only; None if it is not there."""
    if not (folder / "facts.json").is_file():
        return None
    arrays = {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy"))}
    return arrays, json.loads((folder / "facts.json").read_text())
