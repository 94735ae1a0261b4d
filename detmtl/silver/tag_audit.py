"""What an audit of tags found: what the teacher says of each tag of each gold picture, and what gold says.

Letters: K pictures, T tags.
"""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from detmtl.silver.evidence import Evidence
from detmtl.silver.parts import atomic_write

SCHEMA = 2
"""Part of the gold hash: raise it when the same labels are judged otherwise."""
LEAST = 10
"""Fewer judged words, or pictures that show a tag, than this say nothing of a teacher; a tag judged in fewer
pictures is judged by all tags together."""


@dataclass(frozen=True, eq=False)
class TagAudit:
    """How a teacher's tags agree with gold's; of no threshold yet.

    Attributes:
        tags: the T names.
        known: (T,) bool, which tags the teacher knows.
        missing: gold pictures that the store does not have.
        places: (K,) int64, the positions in gold of the pictures that were compared.
        said: (K, T) float32, the teacher's score of each tag, the highest of its members; NaN where it
            says nothing.
        whole: (K, T) bool, whether the teacher speaks of all of the tag's members.
        truth: (K, T) int8: gold shows the tag (1), does not (0), or nobody could tell (-1).
        gold_hash: of gold's pictures and tags, and of who is judged by them in which classes.
        store_digest: of the labels that were judged.
    """

    tags: tuple[str, ...]
    known: np.ndarray
    missing: int
    places: np.ndarray
    said: np.ndarray
    whole: np.ndarray
    truth: np.ndarray
    gold_hash: str
    store_digest: str

    @property
    def pictures(self) -> int:
        """The number of gold pictures that were compared, K."""
        return len(self.places)

    @cached_property
    def evidence(self) -> Evidence:
        """By tag, what the teacher says of it in pictures that gold can judge; a hit is a tag that the
        picture shows."""
        return Evidence.of(_Sorted(self.said, self._judged, self.truth == 1))

    @cached_property
    def opposite(self) -> Evidence:
        """By tag, where the teacher can deny it; a hit is a tag that the picture does not show, and the
        score is the negative one."""
        return Evidence.of(_Sorted(-self.said, self._judged & self.whole, self.truth == 0))

    @property
    def shown(self) -> int:
        """How often gold shows a tag that the teacher knows."""
        return int((self.truth[:, self.known] == 1).sum())

    @property
    def tells_nothing(self) -> bool:
        """Whether gold cannot tell what the teacher's scores are worth, though nothing speaks against the
        teacher: gold judges hardly any of them, or hardly shows its tags, and never where it has a score."""
        hits = self.evidence.pooled()[1]
        return len(hits) < LEAST or bool(not hits.any() and self.shown < LEAST)

    @property
    def found(self) -> str:
        """What there is to judge the teacher by, in words."""
        names = ", ".join(n for n, known in zip(self.tags, self.known, strict=True) if known)
        judged = len(self.evidence.pooled()[0])
        return f"gold judges {judged} of its scores, and shows {self.shown} times one of its tags ({names})"

    @property
    def _judged(self) -> np.ndarray:
        return ~np.isnan(self.said) & (self.truth >= 0)

    def limited_to(self, known: np.ndarray) -> "TagAudit":
        """Returns it as of a teacher that knows the tags `known` (T,) bool alone."""
        said = np.where(known, self.said, np.float32("nan"))
        return replace(self, known=self.known & known, said=said, whole=self.whole & known)

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        return hashlib.sha256(self._json()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self._json())

    def _json(self) -> bytes:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
        # NaN is no JSON.
        plain["said"] = [[s if s == s else None for s in row] for row in plain["said"]]
        return json.dumps({"schema": SCHEMA, **plain}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class _Sorted:
    """Judged labels (K, T) by tag and falling score."""

    said: np.ndarray
    judged: np.ndarray
    right: np.ndarray

    @property
    def scores(self) -> list[np.ndarray]:
        return [self.said[rows, t] for t, rows in enumerate(self._order())]

    @property
    def hits(self) -> list[np.ndarray]:
        return [self.right[rows, t] for t, rows in enumerate(self._order())]

    def _order(self) -> list[np.ndarray]:
        rows = [np.flatnonzero(self.judged[:, t]) for t in range(self.said.shape[1])]
        return [r[np.argsort(-self.said[r, t], kind="stable")] for t, r in enumerate(rows)]
