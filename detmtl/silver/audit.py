"""Silver measured against gold.

Letters: C classes, D boxes of the teacher, D_c those of class c, G gold boxes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from detmtl.data.source import Source
from detmtl.silver.audit_columns import columns_of, rows_of
from detmtl.silver.audit_estimates import RECALL_PRIOR, toward
from detmtl.silver.audit_gates import problems
from detmtl.silver.audit_measures import Measures
from detmtl.silver.audit_readings import PICTURES, Readings, orientation
from detmtl.silver.audit_table import class_table
from detmtl.silver.comparison import GOLD, IOU, JUDGED, Comparison, Fault
from detmtl.silver.mapping import ClassMap
from detmtl.silver.parts import atomic_write
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore

SCHEMA = 6
"""Of audit.json, and part of the gold hash: raise it when the same labels are judged otherwise."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Which of a teacher's boxes gold confirms, in the label space's classes.

    Attributes:
        classes: the C class names.
        known: (C,) bool, which classes the teacher looks for.
        pictures: gold pictures that were compared.
        searched: (C,) int64, in how many of them somebody looked for a class.
        missing: gold pictures that the store does not have.
        boxes: (D,) of `JUDGED`: the teacher's boxes that could be judged, by class and falling score.
        gold: (G,) of `GOLD`: gold boxes that count (no crowds), in pictures where somebody looked for
            their class; by class.
        readings: gold boxes that lie under a box of the teacher, by how boxes are read, see `Readings`.
        wrong_size: pictures (id in gold, height and width in the store, height and width in gold)
            whose size the store has otherwise.
        gold_hash: of gold's pictures and labels, and of who is judged by them in which classes.
        store_digest: of the labels that were judged.
    """

    classes: tuple[str, ...]
    known: np.ndarray
    pictures: int
    searched: np.ndarray
    missing: int
    boxes: np.ndarray
    gold: np.ndarray
    readings: Mapping[str, Mapping[str, int]]
    wrong_size: tuple[tuple[int, int, int, int, int], ...]
    gold_hash: str
    store_digest: str

    @property
    def scores(self) -> tuple[np.ndarray, ...]:
        """C arrays (D_c,) float32, falling: the teacher's boxes that could be judged."""
        return tuple(np.split(self.boxes["score"], self._cuts))

    @property
    def hits(self) -> tuple[np.ndarray, ...]:
        """C arrays (D_c,) bool: which of them gold confirms."""
        return tuple(np.split(self.boxes["fault"] == Fault.NONE, self._cuts))

    @cached_property
    def gold_boxes(self) -> np.ndarray:
        """(C,) int64, gold boxes that count."""
        return np.bincount(self.gold["class"], minlength=len(self.classes))

    @property
    def density(self) -> np.ndarray:
        """(C,) gold boxes that count per picture in which somebody looked for their class; NaN of a class
        that nobody looked for."""
        return self.gold_boxes / np.where(self.searched > 0, self.searched, np.nan)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(C, C) int64, gold boxes by their class and by the class of the teacher's best-scored box on
        them (IoU at least 0.5), whatever its score, of the classes that somebody looked for there."""
        matrix = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        called = self.gold[self.gold["called"] >= 0]
        np.add.at(matrix, (called["class"], called["called"]), 1)
        return matrix

    @property
    def _cuts(self) -> np.ndarray:
        return np.searchsorted(self.boxes["class"], np.arange(1, len(self.classes)))

    def limited_to(self, known: np.ndarray) -> "Audit":
        """Returns it as of a teacher that looks for the classes `known` (C,) bool alone."""
        return replace(self, known=self.known & known, boxes=self.boxes[known[self.boxes["class"]]])

    def limits(self, thresholds: float | Mapping[str, float]) -> np.ndarray:
        """Returns thresholds by class (C,), as precise as the scores: 0.7 is not below 0.7."""
        if not isinstance(thresholds, Mapping):
            return np.full(len(self.classes), thresholds, dtype=np.float32)
        return np.array([thresholds[name] for name in self.classes], dtype=np.float32)

    def measures(self, thresholds: float | Mapping[str, float] = 0.5) -> Measures:
        """Returns everything that can be said at thresholds."""
        return Measures(self, thresholds)

    def recall_at(self, thresholds: float | Mapping[str, float]) -> dict[str, float]:
        """Returns class name -> share of gold boxes that the teacher finds at or above the threshold.

        A class's own recall is drawn toward that over all classes, which counts as ten gold boxes: with
        few gold boxes it is the better guess, with many it does not matter. A class without gold, also
        one that nobody looked for, has that over all classes: without any, nothing would tell its labels
        from background. Classes that the teacher does not know, or whose threshold is infinity, have 0.
        """
        measures = self.measures(thresholds)
        found = self.gold["class"][measures.found]
        confirmed = np.bincount(found, minlength=len(self.classes))
        # Only what the teacher looks for says something about how well it looks.
        looks = self.known & np.isfinite(measures.limits)
        pooled = confirmed[looks].sum() / max(1, self.gold_boxes[looks].sum())
        recall = toward(confirmed, self.gold_boxes, pooled, RECALL_PRIOR)
        return dict(zip(self.classes, np.where(looks, recall, 0).tolist(), strict=True))

    def table(self, thresholds: float | Mapping[str, float] = 0.5) -> Table:
        """Returns precision and recall per class with 95 % intervals, and boxes per picture."""
        return class_table(self.measures(thresholds))

    def problems(self, thresholds: float | Mapping[str, float] = 0.5) -> list[str]:
        """Returns reasons not to trust these labels, a sentence each; [] where there are none."""
        return problems(self, thresholds)

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        digest = hashlib.sha256(json.dumps(self._head(), sort_keys=True).encode())
        digest.update(self.boxes.tobytes())
        digest.update(self.gold.tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes audit.json: main numbers at score 0.5 for readers, then every judged box."""
        fields = {
            **self._head(),
            "gold_boxes": self.gold_boxes.tolist(),
            "confusion": self.confusion.tolist(),
            "summary_at_0.5": self.measures(0.5).summary(),
            "boxes": columns_of(self.boxes),
            "gold": columns_of(self.gold),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
        atomic_write(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> "Audit":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing or is no audit.
        """
        try:
            fields = json.loads(path.read_bytes())
            if fields["schema"] != SCHEMA:
                raise ValueError(f"schema {fields['schema']}, this version reads {SCHEMA}")
            return cls(
                classes=tuple(fields["classes"]),
                known=np.array(fields["known"], dtype=bool),
                pictures=fields["pictures"],
                searched=np.array(fields["searched"], dtype=np.int64),
                missing=fields["missing"],
                boxes=rows_of(fields["boxes"], JUDGED),
                gold=rows_of(fields["gold"], GOLD),
                readings=fields["readings"],
                wrong_size=tuple(tuple(row) for row in fields["wrong_size"]),
                gold_hash=fields["gold_hash"],
                store_digest=fields["store_digest"],
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise InputError(f"{path}: not readable as an audit ({problem}); audit again") from None

    def _head(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "classes": self.classes,
            "known": self.known.tolist(),
            "pictures": self.pictures,
            "searched": self.searched.tolist(),
            "missing": self.missing,
            "readings": self.readings,
            "wrong_size": self.wrong_size,
            "gold_hash": self.gold_hash,
            "store_digest": self.store_digest,
        }


def audit(store: Store, gold: Source, classes: LabelSpace, nms: float | None = 0.6) -> Audit:
    """Compares a store with gold boxes; kept as `audit/<gold hash>/audit.json` in the store.

    Memory grows with gold, not with the store.

    Args:
        store: has labels of gold's pictures.
        gold: labels by people.
        classes: what the teacher's classes mean; gold's are the same label space's.
        nms: as in the selection that the audit is for.

    Raises:
        InputError: none of gold's pictures is in the store, gold has no labels or those of a model, or
            the classes do not fit.
    """
    if gold.annotations is None:
        raise InputError(f"source '{gold.name}': has no labels to audit against")
    if gold.grade is not Grade.GOLD:
        raise InputError(
            f"source '{gold.name}': a model wrote its labels, or some of them (grade silver, by its file or "
            "its settings); a teacher is audited against people's: give these, or what `import` makes of "
            "silver that people corrected"
        )
    assert tuple(gold.classes) == classes.names, "gold is in the label space's classes"
    mapping = ClassMap.of(store.card, classes, nms)
    hashes = gold.hashes()
    gold_hash = _gold_hash(gold, hashes, classes, nms, store.card.name)
    path = audit_folder(store.path, gold_hash) / "audit.json"
    if path.is_file():
        kept = Audit.load(path)
        if kept.store_digest == store.digest():
            return kept
    pictures = {content_hash: i for i, content_hash in enumerate(hashes)}
    comparison, readings, wrong_size = Comparison(len(classes)), Readings(), []
    looked_at = set(np.linspace(0, len(gold) - 1, min(len(gold), PICTURES)).astype(int).tolist())
    for record in store.records_of(pictures):
        i = pictures[record.content_hash]
        labels = gold.boxes(i)
        assert labels is not None
        mapped = mapping(record)
        comparison.add(mapped, labels, i)
        height, width = (int(n) for n in gold.sizes[i])
        if (record.height, record.width) != (height, width):
            wrong_size.append((int(gold.ids[i]), record.height, record.width, height, width))
        if i in looked_at:
            boxes = _looked_for(labels, mapping.known)
            readings.add(mapped.boxes, boxes, height, width, orientation(gold.path(i)))
    if not comparison.pictures:
        raise InputError(
            f"{store.path}: has none of the {len(gold)} pictures of source '{gold.name}'; let the teacher "
            "annotate them into this store first"
        )
    result = Audit(
        classes=classes.names,
        known=mapping.known,
        pictures=comparison.pictures,
        searched=comparison.searched,
        missing=len(pictures) - comparison.pictures,
        boxes=comparison.judged(),
        gold=comparison.gold(),
        readings=readings.counts(),
        wrong_size=tuple(sorted(wrong_size)),
        gold_hash=gold_hash,
        store_digest=store.digest(),
    )
    result.save(path)
    return result


def audit_folder(store: Path, gold_hash: str) -> Path:
    """Returns where the audit of the store in a folder against gold of that hash is kept."""
    return store / "audit" / gold_hash


def _looked_for(labels: BoxLabels, known: np.ndarray) -> np.ndarray:
    """Returns gold boxes (G, 4) that the teacher could have found."""
    classes = labels.classes.numpy()
    counts = known[classes] & (labels.coverage.numpy()[classes] > 0)
    return labels.boxes.numpy()[counts & (labels.ignore.numpy() == Ignore.NO)]


def _gold_hash(
    gold: Source, hashes: Sequence[str], classes: LabelSpace, nms: float | None, teacher: str
) -> str:
    assert gold.annotations is not None
    facts = [SCHEMA, list(hashes), classes.digest(), nms, IOU, teacher]
    digest = hashlib.sha256(json.dumps(facts).encode())
    a = gold.annotations
    for array in (a.offsets, a.boxes, a.classes, a.ignore, gold.coverage, gold.sizes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
