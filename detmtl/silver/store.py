"""Raw labels of teachers on disk.

    <store>/store.json                    that it is a store, and its schema
    <store>/raw/<teacher>/teacher.json    the teacher's card and floor; written once
    <store>/raw/<teacher>/part-*.jsonl.gz one line per picture, empty ones too
    <store>/raw/<teacher>/part-*.ok       checksums and keys; exists only for a part that is whole

No file is ever changed, so that any number of processes and machines can write without waiting for
each other (`parts`), and nobody clears away what another may still be writing (`lock`). What a
record is, the teacher's task says (`records`).
"""

import hashlib
import json
import warnings
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from detmtl.silver.card import TeacherCard
from detmtl.silver.known import Known
from detmtl.silver.lock import discard_leftovers
from detmtl.silver.parts import REPAIR, Part, finished_parts, ok_of, read_part, writing
from detmtl.silver.record import Record
from detmtl.silver.record_line import Head, content_hash_of, head_of, line_sum
from detmtl.silver.records import FORMATS, AnyRecord
from detmtl.silver.store_head import (
    SCHEMA,
    begin,
    check_schema,
    has_parts,
    mark_of,
    read_card,
    refuse_strangers,
    require_same,
)
from detmtl.silver.writer import Writer
from detmtl.structures.errors import InputError

__all__ = ["Known", "Record", "Store", "Writer"]

R = TypeVar("R", bound=AnyRecord)


@dataclass(eq=False)
class Store:
    """One teacher's raw labels in a store folder, as they were when it was opened.

    Attributes:
        path: the store's folder, which may hold labels of other teachers too.
        card: the teacher.
        floor: the lowest score that was kept.
    """

    path: Path
    card: TeacherCard
    floor: float
    _parts: tuple[Part, ...] = field(default=(), repr=False)

    @classmethod
    def teachers(cls, path: Path | str) -> list[str]:
        """Returns the names of the teachers whose labels a store folder holds.

        Raises:
            InputError: there is no store.
        """
        path = Path(path)
        check_schema(path)
        folders = (path / "raw").iterdir() if (path / "raw").is_dir() else ()
        return sorted(f.name for f in folders if (f / "teacher.json").exists() or has_parts(f))

    @classmethod
    def open(cls, path: Path | str, teacher: str | None = None) -> "Store":
        """Opens a teacher's labels for reading; nothing is written.

        Args:
            path: the store's folder.
            teacher: the name on the teacher's card; None: the only one there is.

        Raises:
            InputError: there is no store or no such teacher in it, which one is not said, or a part does
                not have the bytes that it was written with.
        """
        path, names = Path(path), cls.teachers(path)
        if not names:
            raise InputError(f"{path}: holds no teacher's labels yet; annotate writes them")
        if teacher is None and len(names) > 1:
            raise InputError(
                f"{path}: holds labels of {', '.join(names)}; say whose are meant (--teacher NAME, or "
                "several names for their fused labels)"
            )
        name = names[0] if teacher is None else teacher
        if name not in names:
            raise InputError(
                f"{path}: holds no labels of a teacher '{name}', but of {', '.join(names)}"
            )
        folder = path / "raw" / name
        card, floor = read_card(folder)
        parts, damaged = finished_parts(folder)
        refuse_strangers(folder, parts, mark_of(card, floor))
        if damaged:
            raise InputError([f"{part}: {problem}; {REPAIR}" for part, problem in damaged])
        return cls(path, card, floor, tuple(parts))

    @classmethod
    def create(cls, path: Path | str, card: TeacherCard, floor: float) -> "Store":
        """Makes a teacher's place in a store, or continues one.

        What writers that are gone left unfinished is deleted. Damaged parts are named in a warning and
        deleted, so that their pictures are labelled again.

        Raises:
            InputError: the labels there are another teacher's of that name or have another floor, the
                name is no folder's name, or nothing can be written.
        """
        path = Path(path)
        if not card.name.strip(".") or any(c in '/\\:*?"<>|' or c < " " for c in card.name):
            raise InputError(
                f"teacher '{card.name}': the name cannot name a folder; give another (teacher.name)"
            )
        folder = path / "raw" / card.name
        with writing(path):
            begin(path, folder, card, floor)
            # Read also after writing: another process may have been the first.
            require_same(path, *read_card(folder), card, floor)
            discard_leftovers(folder)
            parts, damaged = finished_parts(folder)
            refuse_strangers(folder, parts, mark_of(card, floor))
            for part, problem in damaged:
                warnings.warn(
                    f"{part}: {problem}; its pictures will be labelled again", stacklevel=2
                )
                ok_of(part).unlink(missing_ok=True)
                part.unlink(missing_ok=True)
        return cls(path, card, floor, tuple(parts))

    def __len__(self) -> int:
        """Returns the number of labelled pictures."""
        return len(self.known())

    def known(self) -> Known:
        """Returns the content hashes of labelled pictures."""
        return self._known

    def writer(
        self, rank: int = 0, part_pictures: int = 1000, part_seconds: float = 30.0
    ) -> Writer:
        """Returns a writer; several may write at once, in one process or many.

        A part is written after `part_pictures` records or `part_seconds`, whichever comes first.

        Raises:
            InputError: nothing can be written there.
        """
        return Writer(
            self.path / "raw" / self.card.name,
            mark_of(self.card, self.floor),
            FORMATS[self.card.task].encode,
            rank,
            part_pictures,
            part_seconds,
        )

    @overload
    def records(self) -> Iterator[Any]: ...

    @overload
    def records(self, kind: type[R]) -> Iterator[R]: ...

    def records(self, kind: type[AnyRecord] | None = None) -> Iterator[AnyRecord]:
        """Yields each picture's record once, a part at a time in memory, in no promised order.

        Args:
            kind: what the caller can work with; None: whatever the teacher's task is.

        Raises:
            InputError: the teacher's labels are of another kind.
        """
        own = FORMATS[self.card.task]
        if kind is not None and kind is not own.type:
            wanted = next(task for task, f in FORMATS.items() if f.type is kind)
            raise InputError(
                f"{self.path}: teacher '{self.card.name}' writes {self.card.task}; {wanted} are needed here"
            )
        return (own.decode(line) for line in self._lines())

    def lines_of(self, hashes: Container[str]) -> Iterator[bytes]:
        """Yields the lines of the labelled pictures of those content hashes; others are not parsed."""
        return (line for line in self._lines() if content_hash_of(line) in hashes)

    def records_of(self, hashes: Container[str]) -> Iterator[Any]:
        """Yields the records of the labelled pictures of those content hashes."""
        return map(FORMATS[self.card.task].decode, self.lines_of(hashes))

    def heads(self) -> Iterator[Head]:
        """Yields what is known of each picture, in the order of `records`, without its labels."""
        return (head_of(line) for line in self._lines())

    def canonical(self, at_once: int = 100_000) -> Iterator[bytes]:
        """Yields each picture's line by content hash: what two equal stores have in common, however
        their parts were cut.

        Args:
            at_once: lines in memory; all parts are read once for so many.
        """
        for first in range(0, len(self), at_once):
            lines: dict[int, bytes] = {}
            for part, fresh, places in self._counted():
                wanted = fresh & (places >= first) & (places < first + at_once)
                if wanted.any():
                    lines |= zip(places[wanted].tolist(), _lines(part, wanted), strict=True)
            yield from (lines[place] for place in sorted(lines))

    def digest(self) -> str:
        """Returns a hash of card, floor and labels; the same however the parts were cut or ordered."""
        return self._digest

    @cached_property
    def _known(self) -> Known:
        return Known(b"".join(part.keys for part in self._parts))

    @cached_property
    def _digest(self) -> str:
        total = 0
        for part, fresh, _ in self._counted():
            total += part.sum if fresh.all() else sum(map(line_sum, _lines(part, fresh)))
        text = json.dumps(
            [SCHEMA, self.card.identity(), self.floor, len(self), f"{total % 2**256:x}"],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _lines(self) -> Iterator[bytes]:
        """Yields each picture's line once."""
        for part, fresh, _ in self._counted():
            if fresh.any():
                yield from _lines(part, fresh)

    def _counted(self) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """Yields each part, which of its lines count (two writers may have labelled one picture: the
        first line does), and the lines' places in the order of content hashes."""
        known = self.known()
        seen = np.zeros(len(known), dtype=bool)
        for part in self._parts:
            places = known.places(part.keys)
            fresh = np.zeros(len(places), dtype=bool)
            fresh[np.unique(places, return_index=True)[1]] = True
            fresh &= ~seen[places]
            seen[places] = True
            yield part, fresh, places


def _lines(part: Part, wanted: np.ndarray) -> Iterator[bytes]:
    return compress(read_part(part), wanted.tolist())
