"""Raw labels of a teacher on disk.

    <store>/store.json                    schema, tasks, floor and the teacher's card
    <store>/raw/<teacher>/part-*.jsonl.gz one line per picture, empty ones too
    <store>/raw/<teacher>/part-*.ok       sha256 and counts; exists only for a part that is whole

A part is written beside its place, synced and renamed; only then its .ok is, in the same way. So a
part with an .ok has all its bytes, whatever was killed when, and anything else is thrown away by
the next `Store.create`. Writers have names of their own and hold a lock while they live: none
touches another's files.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from detmtl.silver.card import TeacherCard
from detmtl.silver.parts import (
    Part,
    Writer,
    atomic_write,
    discard_leftovers,
    finished_parts,
    read_part,
)
from detmtl.silver.record import Record, content_hash_of, decode, line_sum
from detmtl.structures.errors import InputError

__all__ = ["Known", "Record", "Store", "Writer"]

SCHEMA = 1
HASH_BYTES = 32


class Known:
    """The content hashes of labelled pictures: a sorted array of 32 bytes each."""

    def __init__(self, digests: bytes):
        """Takes the hashes one after the other, 32 bytes each, in any order, repeats allowed."""
        # Comparing fixed-width S32 pads with zeros, which is exact; only reading an item would strip.
        self._sorted = np.unique(np.frombuffer(digests, dtype=f"S{HASH_BYTES}"))

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, content_hash: str) -> bool:
        return bool(self.mask([content_hash])[0])

    def position(self, content_hashes: Sequence[str]) -> np.ndarray:
        """Returns (I,) int64: each hash's place in the sorted order, -1 where it is not known."""
        if not len(self) or not len(content_hashes):
            return np.full(len(content_hashes), -1, dtype=np.int64)
        asked = np.frombuffer(bytes.fromhex("".join(content_hashes)), dtype=f"S{HASH_BYTES}")
        assert len(asked) == len(content_hashes), "a content hash has 64 hex digits"
        at = np.minimum(np.searchsorted(self._sorted, asked), len(self) - 1)
        return np.where(self._sorted[at] == asked, at, -1)

    def mask(self, content_hashes: Sequence[str]) -> np.ndarray:
        """Returns (I,) bool: which of the hashes (64 hex digits each) are known."""
        return self.position(content_hashes) >= 0


@dataclass(eq=False)
class Store:
    """A folder of one teacher's raw labels, as it was when it was opened.

    Attributes:
        path: the folder.
        card: the teacher.
        floor: the lowest score that was kept.
    """

    path: Path
    card: TeacherCard
    floor: float
    _parts: tuple[Part, ...] = ()
    _known: Known | None = None

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Opens a store for reading.

        Raises:
            InputError: there is none, or a finished part does not have the bytes it was written with.
        """
        path = Path(path)
        card, floor = _read_header(path)
        parts, damaged = finished_parts(path / "raw" / card.name)
        if damaged:
            raise InputError(
                [
                    f"{part}: {problem}; annotate with the same teacher into the same store labels the "
                    "pictures of this part again"
                    for part, problem in damaged
                ]
            )
        return cls(path, card, floor, tuple(parts))

    @classmethod
    def create(cls, path: Path | str, card: TeacherCard, floor: float) -> "Store":
        """Makes a store, or continues one; torn parts of writers that are gone are thrown away.

        Raises:
            InputError: the store there is another teacher's or has another floor.
        """
        path = Path(path)
        folder = path / "raw" / card.name
        if not (path / "store.json").exists():
            _write_header(path, card, floor)
        # Read also after writing: another process may have been the first.
        found, found_floor = _read_header(path)
        _require_same(path, found, found_floor, card, floor)
        folder.mkdir(parents=True, exist_ok=True)
        discard_leftovers(folder)
        parts, damaged = finished_parts(folder)
        for part, problem in damaged:
            warnings.warn(f"{part}: {problem}; its pictures will be labelled again", stacklevel=2)
            part.with_name(part.name.removesuffix(".jsonl.gz") + ".ok").unlink(missing_ok=True)
            part.unlink(missing_ok=True)
        return cls(path, card, floor, tuple(parts))

    def __len__(self) -> int:
        """Returns the number of labelled pictures."""
        return len(self.known())

    def known(self) -> Known:
        """Returns the content hashes of labelled pictures."""
        if self._known is None:
            digests = bytearray()
            for part in self._parts:
                for line in read_part(part):
                    digests += bytes.fromhex(content_hash_of(line))
            self._known = Known(bytes(digests))
        return self._known

    def writer(
        self, rank: int = 0, part_pictures: int = 1000, part_seconds: float = 30.0
    ) -> Writer:
        """Returns a writer; several may write at once, in one process or many.

        A part is written after `part_pictures` records or `part_seconds`, whichever comes first.
        """
        return Writer(self.path / "raw" / self.card.name, rank, part_pictures, part_seconds)

    def records(self) -> Iterator[Record]:
        """Yields each picture's record once, a part at a time in memory, in no promised order."""
        return (decode(line) for line in self._lines())

    def digest(self) -> str:
        """Returns a hash of card, floor and labels; the same however the parts were cut or ordered."""
        if sum(p.pictures for p in self._parts) == len(self):
            total = sum(p.sum for p in self._parts)
        else:
            total = sum(line_sum(line) for line in self._lines())
        text = json.dumps(
            [SCHEMA, self.card.identity(), self.floor, len(self), f"{total % 2**256:x}"],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _lines(self) -> Iterator[bytes]:
        """Yields each picture's line once: two writers may have labelled one picture."""
        known = self.known()
        seen = np.zeros(len(known), dtype=bool)
        for part in self._parts:
            lines = read_part(part)
            at = known.position([content_hash_of(line) for line in lines])
            for line, place in zip(lines, at, strict=True):
                if not seen[place]:
                    seen[place] = True
                    yield line


def _write_header(path: Path, card: TeacherCard, floor: float) -> None:
    path.mkdir(parents=True, exist_ok=True)
    header = {
        "schema": SCHEMA,
        "tasks": ["boxes"],
        "floor": floor,
        "teacher": card.model_dump(mode="json"),
    }
    atomic_write(path / "store.json", json.dumps(header, indent=1).encode(), replace=False)


def _read_header(path: Path) -> tuple[TeacherCard, float]:
    file = path / "store.json"
    try:
        header = json.loads(file.read_bytes())
        schema, floor = header["schema"], float(header["floor"])
        card = TeacherCard.model_validate(header["teacher"]) if schema == SCHEMA else None
    except FileNotFoundError:
        found = "the folder is not there" if not path.is_dir() else "it has no store.json"
        raise InputError(f"{path}: {found}; a store of silver labels is made by annotate") from None
    except (ValueError, KeyError, TypeError, ValidationError) as problem:
        raise InputError(
            f"{file}: not readable as the head of a store ({type(problem).__name__}: {problem}); "
            "restore it, or label into a new folder"
        ) from None
    if card is None:
        raise InputError(f"{file}: schema {schema!r}; this version reads schema {SCHEMA}")
    return card, floor


def _require_same(
    path: Path, found: TeacherCard, found_floor: float, card: TeacherCard, floor: float
) -> None:
    problems = []
    theirs, ours = found.identity(), card.identity()
    for key in ours:
        if ours[key] != theirs[key]:
            problems.append(
                f"{path}: the store's teacher has {key} {_short(theirs[key])}, this one {_short(ours[key])}; "
                "a store holds labels of one teacher: give another folder"
            )
    if found_floor != floor:
        problems.append(
            f"{path}: the store keeps boxes from a score of {found_floor}, asked for is {floor}; "
            "use the same floor or another folder"
        )
    if problems:
        raise InputError(problems)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
