"""A store of maps for tests, as much of it as audit and selection look at."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from silver_stand_ins import HEIGHT, WIDTH

from detmtl.silver.card import TeacherCard

TEACHER = ("background", "person", "car", "sofa")


@dataclass
class Record:
    content_hash: str
    height: int
    width: int
    classes: np.ndarray
    confidence: np.ndarray | None = None
    file: str = ""


@dataclass
class FakeStore:
    path: Path
    card: TeacherCard
    rows: list
    reads: int = 0

    def records(self):
        self.reads += 1
        return iter(self.rows)

    def records_of(self, hashes):
        return (record for record in self.records() if record.content_hash in hashes)

    def digest(self):
        rows = [(r.content_hash, r.classes.tolist(), r.confidence is None) for r in self.rows]
        return hashlib.sha256(repr([self.card.identity(), rows]).encode()).hexdigest()[:16]


def store_of_maps(path, source, maps, confidence=None, classes=TEACHER) -> FakeStore:
    """Returns a store that has `maps` (H, W) of the first pictures of a source."""
    card = TeacherCard(
        name="t", weights_sha256="0" * 64, classes=classes, preprocessing="none", task="maps"
    )
    hashes = source.hashes()
    rows = [
        Record(hashes[i], HEIGHT, WIDTH, np.array(m, np.uint8), confidence)
        for i, m in enumerate(maps)
    ]
    return FakeStore(path, card, rows)


def halves(left: int, right: int) -> np.ndarray:
    """Returns a map with one value in its left half and one in its right."""
    values = np.full((HEIGHT, WIDTH), left, np.uint8)
    values[:, WIDTH // 2 :] = right
    return values
