"""Silver measured against gold.

Letters: C classes, D_c the teacher's boxes of class c.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from detmtl.data.source import Source
from detmtl.silver.comparison import IOU, Comparison
from detmtl.silver.held_out import overlap, refuse_overlap
from detmtl.silver.mapping import ClassMap
from detmtl.silver.parts import atomic_write
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

__all__ = ["Audit", "audit", "overlap", "refuse_overlap", "wilson"]

LEAST = 10
"""A class with fewer boxes is judged by all classes together: a share of so few says nothing."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Which of a teacher's boxes gold confirms, in the label space's classes.

    Attributes:
        classes: the C class names.
        known: (C,) bool, which classes the teacher looks for.
        pictures: gold pictures that were compared.
        missing: gold pictures that the store does not have.
        gold_boxes: (C,) int64, gold boxes that count (no crowds), in pictures where somebody looked.
        confusion: (C, C) int64, gold boxes by their class and by the class of the teacher's best box on
            them, whatever its class (score at least 0.3).
        scores: C arrays (D_c,) float32, falling: the teacher's boxes that could be judged.
        hits: C arrays (D_c,) bool: which of them gold confirms.
        gold_hash: of gold's pictures and labels.
        store_digest: of the labels that were judged.
    """

    classes: tuple[str, ...]
    known: np.ndarray
    pictures: int
    missing: int
    gold_boxes: np.ndarray
    confusion: np.ndarray
    scores: tuple[np.ndarray, ...]
    hits: tuple[np.ndarray, ...]
    gold_hash: str
    store_digest: str

    def counts_at(self, thresholds: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Returns per class (C,) int64 the boxes at or above its threshold, and the confirmed ones."""
        boxes, confirmed = [], []
        for name, scores, hits in zip(self.classes, self.scores, self.hits, strict=True):
            n = int(np.count_nonzero(scores >= thresholds[name]))
            boxes.append(n)
            confirmed.append(int(np.count_nonzero(hits[:n])))
        return np.array(boxes, dtype=np.int64), np.array(confirmed, dtype=np.int64)

    def recall_at(self, thresholds: float | Mapping[str, float]) -> dict[str, float]:
        """Returns class name -> share of gold boxes that the teacher finds at or above the threshold.

        Classes with fewer than 10 gold boxes have the recall over all classes; classes that the
        teacher does not know have 0.
        """
        _, confirmed = self.counts_at(self._per_class(thresholds))
        # Only what the teacher looks for says something about how well it looks.
        pooled = confirmed[self.known].sum() / max(1, self.gold_boxes[self.known].sum())
        own = confirmed / np.maximum(1, self.gold_boxes)
        recall = np.where(self.known, np.where(self.gold_boxes >= LEAST, own, pooled), 0)
        return dict(zip(self.classes, recall.tolist(), strict=True))

    def threshold_for(self, precision: float) -> dict[str, float]:
        """Returns class name -> the lowest threshold whose precision is at least `precision`.

        Infinity where none is. Classes with fewer than 10 boxes of the teacher's have the threshold
        over all classes.
        """
        pooled = _lowest(np.concatenate(self.scores), np.concatenate(self.hits), precision)
        return {
            name: _lowest(scores, hits, precision) if len(scores) >= LEAST else pooled
            for name, scores, hits in zip(self.classes, self.scores, self.hits, strict=True)
        }

    def table(self, thresholds: float | Mapping[str, float] = 0.5) -> Table:
        """Returns precision and recall per class with 95 % intervals, and boxes per picture."""
        per_class = self._per_class(thresholds)
        boxes, confirmed = self.counts_at(per_class)
        left_out = f", {self.missing} more are not labelled" if self.missing else ""
        table = Table(title=f"Silver against gold: {self.pictures} pictures{left_out}")
        for column in (
            "class",
            "score from",
            "precision",
            "recall",
            "gold/picture",
            "silver/picture",
        ):
            table.add_column(column, justify="left" if column == "class" else "right")
        rows = [
            (
                name,
                f"{per_class[name]:.2f}",
                int(boxes[c]),
                int(confirmed[c]),
                int(self.gold_boxes[c]),
            )
            for c, name in enumerate(self.classes)
            if boxes[c] or self.gold_boxes[c]
        ]
        rows.append(("all", "", int(boxes.sum()), int(confirmed.sum()), int(self.gold_boxes.sum())))
        for name, threshold, n, k, gold in rows:
            density = [f"{count / self.pictures:.2f}" for count in (gold, n)]
            table.add_row(name, threshold, _share(k, n), _share(k, gold), *density)
        return table

    def problems(self) -> list[str]:
        """Returns reasons not to trust these labels, a sentence each; [] where there are none."""
        gold, found = int(self.gold_boxes.sum()), int(self.confusion.sum())
        boxes, confirmed = self.counts_at(self._per_class(0.5))
        if gold < LEAST:
            return [
                f"audit: gold has {gold} boxes that count; at least {LEAST} are needed to judge"
            ]
        problems = []
        judged = sum(map(len, self.scores))
        if judged >= LEAST and found < 0.05 * gold:
            problems.append(
                f"audit: the teacher's boxes lie on {found} of {gold} gold boxes only; they may be in "
                "another format (xywh for xyxy, fractions for pixels) or of resized pictures"
            )
        for c, row in enumerate(self.confusion):
            other = int(row.argmax())
            if row.sum() >= LEAST and other != c and row[other] > 0.5 * row.sum():
                problems.append(
                    f"audit: {row[other]} of {row.sum()} gold boxes of '{self.classes[c]}' are called "
                    f"'{self.classes[other]}' by the teacher; its classes may be in another order"
                )
        if boxes.sum() > 3 * gold and confirmed.sum() < 0.3 * boxes.sum():
            problems.append(
                f"audit: the teacher has {boxes.sum() / self.pictures:.1f} boxes a picture at score 0.5, "
                f"gold {gold / self.pictures:.1f}, and gold confirms {confirmed.sum()} of {boxes.sum()}; "
                "raise the threshold, or choose it by precision"
            )
        return problems

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        return hashlib.sha256(self._json()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes audit.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self._json())

    @classmethod
    def load(cls, path: Path) -> "Audit":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing or is no audit.
        """
        try:
            fields = json.loads(path.read_bytes())
            return cls(
                classes=tuple(fields["classes"]),
                known=np.array(fields["known"], dtype=bool),
                pictures=fields["pictures"],
                missing=fields["missing"],
                gold_boxes=np.array(fields["gold_boxes"], dtype=np.int64),
                confusion=np.array(fields["confusion"], dtype=np.int64),
                scores=tuple(np.array(s, dtype=np.float32) for s in fields["scores"]),
                hits=tuple(np.array(h, dtype=bool) for h in fields["hits"]),
                gold_hash=fields["gold_hash"],
                store_digest=fields["store_digest"],
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise InputError(f"{path}: not readable as an audit ({problem}); audit again") from None

    def _json(self) -> bytes:
        fields = {
            "classes": self.classes,
            "known": self.known.tolist(),
            "pictures": self.pictures,
            "missing": self.missing,
            "gold_boxes": self.gold_boxes.tolist(),
            "confusion": self.confusion.tolist(),
            "scores": [np.round(s.astype(np.float64), 5).tolist() for s in self.scores],
            "hits": [h.astype(int).tolist() for h in self.hits],
            "gold_hash": self.gold_hash,
            "store_digest": self.store_digest,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    def _per_class(self, thresholds: float | Mapping[str, float]) -> Mapping[str, float]:
        if isinstance(thresholds, Mapping):
            return thresholds
        return dict.fromkeys(self.classes, float(thresholds))


def audit(store: Store, gold: Source, classes: LabelSpace, nms: float | None = 0.6) -> Audit:
    """Compares a store with gold boxes; kept as `audit/<gold hash>/audit.json` in the store.

    Args:
        store: has labels of gold's pictures.
        gold: labels by people.
        classes: what the teacher's classes mean; gold's are the same label space's.
        nms: as in the selection that the audit is for.

    Raises:
        InputError: none of gold's pictures is in the store, gold has no labels, or the classes do not
            fit.
    """
    if gold.annotations is None:
        raise InputError(f"source '{gold.name}': has no labels to audit against")
    assert tuple(gold.classes) == classes.names, "gold is in the label space's classes"
    mapping = ClassMap.of(store.card, classes, nms)
    hashes = gold.hashes()
    gold_hash = _gold_hash(gold, hashes, classes, nms)
    path = store.path / "audit" / gold_hash / "audit.json"
    if path.is_file():
        kept = Audit.load(path)
        if kept.store_digest == store.digest():
            return kept
    pictures = {content_hash: i for i, content_hash in enumerate(hashes)}
    comparison = Comparison(len(classes))
    for record in store.records():
        if record.content_hash in pictures:
            labels = gold.boxes(pictures[record.content_hash])
            assert labels is not None
            comparison.add(mapping(record), labels)
    if not comparison.pictures:
        raise InputError(
            f"{store.path}: has none of the {len(gold)} pictures of source '{gold.name}'; let the teacher "
            "annotate them into this store first"
        )
    scores, hits = comparison.judged()
    result = Audit(
        classes=classes.names,
        known=mapping.known,
        pictures=comparison.pictures,
        missing=len(pictures) - comparison.pictures,
        gold_boxes=comparison.gold_boxes,
        confusion=comparison.confusion,
        scores=scores,
        hits=hits,
        gold_hash=gold_hash,
        store_digest=store.digest(),
    )
    result.save(path)
    return result


def _lowest(scores: np.ndarray, hits: np.ndarray, precision: float) -> float:
    """Returns the lowest score from which on at least `precision` of the boxes are hits."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    share = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    last_of_tie = np.append(scores[1:] < scores[:-1], True)[: len(scores)]
    good = np.flatnonzero((share >= precision) & last_of_tie)
    return float(scores[good[-1]]) if len(good) else float("inf")


def _share(hits: int, count: int) -> str:
    if not count:
        return "-"
    low, high = wilson(hits, count)
    return f"{hits / count:.2f} ({low:.2f}-{high:.2f})"


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the interval of a share, hits of count, at z standard deviations.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if count == 0:
        return 0.0, 1.0
    p = hits / count
    middle = p + z**2 / (2 * count)
    spread = z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, float((middle - spread) / scale)), min(1.0, float((middle + spread) / scale))


def _gold_hash(gold: Source, hashes: Sequence[str], classes: LabelSpace, nms: float | None) -> str:
    assert gold.annotations is not None
    digest = hashlib.sha256(json.dumps([list(hashes), classes.digest(), nms, IOU]).encode())
    a = gold.annotations
    for array in (a.offsets, a.boxes, a.classes, a.ignore, gold.coverage):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
