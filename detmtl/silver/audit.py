"""Silver measured against gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from detmtl.data.source import Source
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace


@dataclass(frozen=True, eq=False)
class Audit:
    """Which of a teacher's boxes gold confirms, in the label space's classes.

    Attributes:
        classes: the C class names.
        known: (C,) bool, which classes the teacher looks for.
        pictures: gold pictures that were compared.
        gold_boxes: (C,) int64, gold boxes that count (no crowds), in pictures where somebody looked.
        scores: C arrays (D_c,) float32, falling: the teacher's boxes that could be judged.
        hits: C arrays (D_c,) bool: which of them gold confirms.
        gold_hash: of gold's pictures and labels.
    """

    classes: tuple[str, ...]
    known: np.ndarray
    pictures: int
    gold_boxes: np.ndarray
    scores: tuple[np.ndarray, ...]
    hits: tuple[np.ndarray, ...]
    gold_hash: str

    def recall_at(self, thresholds: float | Mapping[str, float]) -> dict[str, float]:
        """Returns class name -> share of gold boxes that the teacher finds at or above the threshold.

        Classes with too little gold have the recall over all classes; classes that the teacher
        does not know have 0.
        """
        raise NotImplementedError

    def threshold_for(self, precision: float) -> dict[str, float]:
        """Returns class name -> the lowest threshold whose precision is at least `precision`.

        Infinity where none is. Classes with too few boxes have the threshold over all classes.
        """
        raise NotImplementedError

    def table(self, threshold: float = 0.5) -> Table:
        """Returns precision and recall per class with 95 % intervals, and boxes per picture."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        """Returns reasons not to trust these labels, a sentence each; [] where there are none."""
        raise NotImplementedError

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Writes audit.json."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path) -> "Audit":
        """Reads what `save` wrote."""
        raise NotImplementedError


def audit(store: Store, gold: Source, classes: LabelSpace, nms: float | None = 0.6) -> Audit:
    """Compares a store with gold boxes; kept as `audit/<gold hash>/audit.json` in the store.

    Raises:
        InputError: none of gold's pictures is in the store, or gold has no labels.
    """
    raise NotImplementedError


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the interval of a share, hits of count, at z standard deviations."""
    raise NotImplementedError


def overlap(a: Sequence[Source], b: Sequence[Source]) -> list[tuple[str, str]]:
    """Returns pairs of files, one of `a` and one of `b`, that are the same picture byte by byte."""
    raise NotImplementedError


def refuse_overlap(training: Sequence[Source], held_out: Sequence[Source]) -> None:
    """Refuses training pictures that are also among those that measure the result.

    Raises:
        InputError: names the pairs.
    """
    raise NotImplementedError
