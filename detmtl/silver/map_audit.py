"""What an audit of maps found.

Letters: C classes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from detmtl.silver.parts import atomic_write
from detmtl.structures.confusion import confusion
from detmtl.structures.errors import InputError
from detmtl.structures.labels import MapLabels

LEAST_PICTURES = 5
"""A class of fewer gold pictures is judged by all classes together."""

SPREAD = 1.96
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True, eq=False)
class MapAudit:
    """How a teacher's pixels agree with gold's, in the label space's classes.

    Attributes:
        classes: the C class names.
        known: (C,) bool, which classes the teacher knows.
        gives: (C,) bool, which classes it can give: those that it knows, and that of what is unmapped.
        pictures: gold pictures that were compared.
        missing: gold pictures that the store does not have.
        pixels: (C + 1, C + 1) int64, true class (rows) by the teacher's; the last row and column are
            none of the classes that were looked for. Pixels that either left unknown do not count.
        squares: (C, 3): sums over pictures of a * a, a * n and n * n, where n is a picture's pixels of
            the teacher's class and a those that gold confirms.
        shown: (C,) int64, gold pictures that show the class.
        given: (C,) int64, pictures to which the teacher gives the class.
        gold_hash: of gold's pictures and maps.
        store_digest: of the labels that were judged.
    """

    classes: tuple[str, ...]
    known: np.ndarray
    gives: np.ndarray
    pictures: int
    missing: int
    pixels: np.ndarray
    squares: np.ndarray
    shown: np.ndarray
    given: np.ndarray
    gold_hash: str
    store_digest: str

    def precision(self) -> np.ndarray:
        """Returns (C,): the share of the teacher's pixels of a class that gold confirms.

        Of a class given to fewer than 5 pictures that of all classes together; 0 of one it cannot
        give.
        """
        confirmed, given = np.diag(self.pixels)[:-1], self.pixels.sum(0)[:-1]
        return _shares(confirmed, given, self.given, self.gives)

    def found(self) -> np.ndarray:
        """Returns (C,): the share of gold's pixels of a class that the teacher gives to any class, and
        does not take for background.

        Of a class shown in fewer than 5 pictures that of all known classes together; 0 of one it does
        not know.
        """
        true = self.pixels.sum(1)[:-1]
        return _shares(true - self.pixels[:-1, -1], true, self.shown, self.known)

    def interval(self) -> np.ndarray:
        """Returns (C,): half the width of a 95 % interval of each class's own precision; NaN for fewer
        than 2 pictures.

        Pixels of one picture are not independent, so it is the pictures that vary: the variance of a
        ratio of sums.
        Source: Cochran 1977, Sampling techniques, section 6.3.
        """
        confirmed, given = np.diag(self.pixels)[:-1], self.pixels.sum(0)[:-1]
        p = confirmed / np.maximum(1, given)
        aa, an, nn = self.squares.T
        residual = np.maximum(0, aa - 2 * p * an + p**2 * nn)
        many = self.given >= 2
        scale = self.given / np.maximum(1, self.given - 1)
        half = SPREAD * np.sqrt(scale * residual) / np.maximum(1, given)
        return np.where(many, half, np.nan)

    def table(self) -> Table:
        """Returns precision and recall of each class that either shows."""
        left_out = f", {self.missing} more are not labelled" if self.missing else ""
        table = Table(title=f"Silver maps against gold: {self.pictures} pictures{left_out}")
        columns = (
            "class",
            "known",
            "precision",
            "recall",
            "not background",
            "gold px",
            "silver px",
        )
        for column in columns:
            table.add_column(column, justify="left" if column == "class" else "right")
        true, given = self.pixels.sum(1), self.pixels.sum(0)
        all_pixels, half, found = max(1, self.pixels.sum()), self.interval(), self.found()
        for c, name in enumerate(self.classes):
            if not (true[c] or given[c]):
                continue
            hits = self.pixels[c, c]
            spread = f" ± {half[c]:.2f}" if half[c] == half[c] else ""
            table.add_row(
                name,
                "yes" if self.known[c] else "no",
                f"{hits / given[c]:.2f}{spread}" if given[c] else "-",
                f"{hits / true[c]:.2f}" if true[c] else "-",
                f"{found[c]:.2f}" if self.known[c] else "-",
                f"{true[c] / all_pixels:.2%}",
                f"{given[c] / all_pixels:.2%}",
            )
        return table

    def problems(self) -> list[str]:
        """Returns reasons not to trust these maps, a sentence each; [] where there are none."""
        true = self.pixels[:-1].sum(1)
        if not true[self.known].sum():
            return [
                "audit: gold shows none of the classes that the teacher knows; it cannot be judged"
            ]
        problems = []
        given = self.pixels[:-1, :-1][self.known].sum()
        if given < 0.05 * true[self.known].sum():
            problems.append(
                f"audit: the teacher gives a class to {given / true[self.known].sum():.1%} of the pixels "
                "that are of its classes; its maps may be of resized or other pictures, or all background"
            )
        for c in np.flatnonzero(self.known & (self.shown >= LEAST_PICTURES)).tolist():
            row = self.pixels[c, :-1]
            other = int(row.argmax())
            if other != c and row[other] > 0.5 * row.sum() and row.sum() > 0.1 * true[c]:
                problems.append(
                    f"audit: {row[other] / row.sum():.0%} of the pixels of '{self.classes[c]}' are called "
                    f"'{self.classes[other]}' by the teacher; its classes may be in another order"
                )
        return problems

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        return hashlib.sha256(self._json()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self._json())

    @classmethod
    def load(cls, path: Path) -> "MapAudit":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is no audit of maps.
        """
        try:
            fields = json.loads(path.read_bytes())
            arrays: dict[str, Any] = {
                name: np.array(fields.pop(name), dtype=kind)
                for name, kind in (
                    ("known", bool),
                    ("gives", bool),
                    ("pixels", np.int64),
                    ("squares", np.float64),
                    ("shown", np.int64),
                    ("given", np.int64),
                )
            }
            return cls(classes=tuple(fields.pop("classes")), **fields, **arrays)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise InputError(f"{path}: not readable as an audit ({problem}); audit again") from None

    def _json(self) -> bytes:
        fields = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }
        return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


class Tally:
    """Counts pixels picture by picture.

    Attributes:
        pictures: that were counted.
    """

    def __init__(self, num_classes: int):
        self.pictures = 0
        self._pixels = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self._squares = np.zeros((num_classes, 3))
        self._shown = np.zeros(num_classes, np.int64)
        self._given = np.zeros(num_classes, np.int64)

    def add(self, truth: MapLabels, found: MapLabels) -> None:
        """Counts a picture. What the teacher left unknown does not count."""
        counts = confusion(truth, found, unknown_counts=False)
        hits, given = np.diag(counts)[:-1].astype(float), counts.sum(0)[:-1].astype(float)
        self._pixels += counts
        self._squares += np.stack([hits * hits, hits * given, given * given], axis=1)
        self._shown += counts.sum(1)[:-1] > 0
        self._given += given > 0
        self.pictures += 1

    def audit(
        self,
        classes: Sequence[str],
        known: np.ndarray,
        gives: np.ndarray,
        gold_pictures: int,
        gold_hash: str,
        store_digest: str,
    ) -> MapAudit:
        """Returns what was counted."""
        return MapAudit(
            classes=tuple(classes),
            known=known,
            gives=gives,
            pictures=self.pictures,
            missing=gold_pictures - self.pictures,
            pixels=self._pixels,
            squares=self._squares,
            shown=self._shown,
            given=self._given,
            gold_hash=gold_hash,
            store_digest=store_digest,
        )


def _shares(
    parts: np.ndarray, wholes: np.ndarray, pictures: np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """Returns (C,) parts of wholes: of all judged classes together where there are few pictures, and 0
    of classes that are not judged."""
    pooled = parts[judged].sum() / max(1, wholes[judged].sum())
    own = parts / np.maximum(1, wholes)
    return np.where(judged, np.where(pictures >= LEAST_PICTURES, own, pooled), 0)
