"""What an audit says at given thresholds: the numbers behind its table, its JSON and its page.

Letters: C classes, D boxes of the teacher, G gold boxes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from detmtl.silver.audit_estimates import Reliability, mean_and_sd, wilson
from detmtl.silver.comparison import Fault

if TYPE_CHECKING:
    from detmtl.silver.audit import Audit

SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, float("inf")))
"""COCO's, by the area of the box in pixels of the picture."""

Calibrate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores (D,) and classes (D,) -> probabilities (D,)."""


@dataclass(frozen=True)
class Share:
    """A share with its uncertainty: `hits` of `count` observations."""

    hits: float
    count: float

    @property
    def value(self) -> float:
        """Returns the share; nan of nothing."""
        return self.hits / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Returns the Wilson 95 % interval."""
        return wilson(self.hits, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} ({low:.2f}-{high:.2f})" if self.count else "-"

    def plain(self) -> dict[str, Any]:
        """Returns it for JSON."""
        value = round(self.value, 5) if self.count else None
        return {**asdict(self), "share": value, "interval": [round(x, 5) for x in self.interval]}


@dataclass(frozen=True)
class Row:
    """Precision and recall of one class, size or range of scores."""

    name: str
    precision: Share
    recall: Share


@dataclass(frozen=True)
class Band:
    """What an ignore band below the threshold would do on gold's pictures.

    Attributes:
        boxes: the teacher's boxes in the band.
        rescued: gold boxes that no label confirms and a box of the band does: without the band they
            would be taught as background.
        missed: gold boxes that no label confirms.
        background: boxes of the band that lie on no object at all: background that teaches nothing.
        other: boxes of the band that gold refutes for another reason (class, place, a double).
    """

    boxes: int
    rescued: int
    missed: int
    background: int
    other: int


class Measures:
    """An audit at thresholds."""

    def __init__(self, audit: "Audit", thresholds: float | Mapping[str, float]):
        """Takes one threshold, or one for each class."""
        self.audit = audit
        self.limits = limits = audit.limits(thresholds)
        """(C,) float32; infinity: no box of the class is a label."""
        boxes, gold = audit.boxes, audit.gold
        self.kept = boxes["score"] >= limits[boxes["class"]]
        """(D,) bool: boxes at or above their class's threshold."""
        self.found = gold["score"] >= limits[gold["class"]]
        """(G,) bool: gold boxes that one of them finds."""
        self._hit = boxes["fault"] == Fault.NONE
        self._area = _areas(boxes["box"]), _areas(gold["box"])

    def row(self, name: str, c: int | None = None, size: int | None = None) -> Row:
        """Returns precision and recall of class `c` and the size of that index; None: of all.

        A box has the size that the teacher gives it, a gold box the one that gold gives it.
        """
        which, of = self._where(c, size)
        kept = which & self.kept
        precision = Share(int((kept & self._hit).sum()), int(kept.sum()))
        return Row(name, precision, Share(int((of & self.found).sum()), int(of.sum())))

    def classes(self) -> list[int]:
        """Returns the classes of which there is something to say."""
        there = np.bincount(self.audit.boxes["class"][self.kept], minlength=len(self.limits))
        return np.flatnonzero((there > 0) | (self.audit.gold_boxes > 0)).tolist()

    def by_score(self) -> list[Row]:
        """Returns precision within, and recall from the lower end of, each tenth of the scores."""
        rows = []
        scores, gold = self.audit.boxes["score"], self.audit.gold["score"][self._where(None)[1]]
        for low in np.arange(10) / 10:
            inside = (scores >= low) & ((scores < low + 0.1) | (low > 0.85))
            precision = Share(int((inside & self._hit).sum()), int(inside.sum()))
            recall = Share(int((gold >= max(low, 1e-9)).sum()), len(gold))
            rows.append(Row(f"{low:.1f} to {low + 0.1:.1f}", precision, recall))
        return rows

    def faults(self, c: int | None = None) -> dict[str, int]:
        """Returns how many boxes at or above the threshold are wrong in which way."""
        which = self._where(c)[0] & self.kept
        counts = np.bincount(self.audit.boxes["fault"][which], minlength=len(Fault))
        return {fault.name.lower(): int(counts[fault]) for fault in Fault if fault}

    @cached_property
    def densities(self) -> np.ndarray:
        """(2, C) gold boxes and labels of each class per picture in which somebody looked for it; NaN of a
        class that nobody looked for.

        Whatever says how many boxes a picture has says this, of several classes the sum: how many there
        are of a class in a picture in which nobody looked for it, nobody knows.
        """
        kept = np.bincount(self.audit.boxes["class"][self.kept], minlength=len(self.limits))
        searched = np.where(self.audit.searched > 0, self.audit.searched, np.nan)
        return np.stack([self.audit.density, kept / searched])

    @property
    def density(self) -> np.ndarray:
        """(2,) gold boxes and labels of the classes that the teacher knows, per picture; NaN where nobody
        looked for any."""
        both = (self.audit.searched > 0) & self.audit.known
        return self.densities.sum(axis=1, where=both, initial=0) / (1.0 if both.any() else np.nan)

    def per_picture(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (pictures,) numbers of gold boxes and of silver boxes, picture by picture, of the classes
        that the teacher knows and somebody looked for in it. Their mean is no density where those are not
        all: see `densities`."""
        gold = self.audit.gold["picture"][self._where(None)[1]]
        seen = [gold, self.audit.boxes["picture"][self.kept]]
        order = np.unique(np.concatenate(seen))
        counts = [np.bincount(np.searchsorted(order, at), minlength=len(order)) for at in seen]
        empty = np.zeros(max(0, self.audit.pictures - len(order)), dtype=np.int64)
        gold, silver = (np.concatenate([n, empty]) for n in counts)
        return gold, silver

    def probabilities(self, calibrate: Calibrate) -> np.ndarray:
        """Returns (D,) what a calibration makes of the scores of `audit.boxes`, in their order."""
        boxes = self.audit.boxes
        made = calibrate(boxes["score"].astype(np.float64), boxes["class"].astype(np.int64))
        return np.asarray(made, dtype=np.float64)

    def reliability(
        self, c: int | None = None, probabilities: np.ndarray | None = None
    ) -> Reliability:
        """Returns how sure the teacher is, against how often it is right, over all of its boxes.

        Args:
            c: the class; None: all.
            probabilities: (D,) of `audit.boxes`, instead of the scores.
        """
        which = self._where(c)[0]
        sure = self.audit.boxes["score"] if probabilities is None else probabilities
        return Reliability.of(sure[which].astype(np.float64), self._hit[which])

    def localization(self, c: int | None = None, fault: Fault = Fault.NONE) -> dict[str, Any]:
        """Returns mean and standard deviation of what `shifts` measures, of confirmed boxes at or above
        the threshold (or of misplaced ones), and how many there are."""
        which = self._where(c)[0] & self.kept & (self.audit.boxes["fault"] == fault)
        shift = self.audit.boxes["shift"][which]
        names = ("right", "down", "log_width", "log_height")
        return {"boxes": int(which.sum())} | {
            name: mean_and_sd(shift[:, k]) for k, name in enumerate(names)
        }

    def band(self, ignore_from: float | Mapping[str, float], c: int | None = None) -> Band:
        """Returns what an ignore band from `ignore_from`, a score or one for each class, up to the
        threshold would do."""
        which, of = self._where(c)
        lower = self.audit.limits(ignore_from)
        boxes, gold = self.audit.boxes, self.audit.gold
        inside = which & ~self.kept & (boxes["score"] >= lower[boxes["class"]])
        missed = of & ~self.found
        nothing = int((inside & (boxes["fault"] == Fault.NOTHING)).sum())
        return Band(
            boxes=int(inside.sum()),
            rescued=int((missed & (gold["score"] >= lower[gold["class"]])).sum()),
            missed=int(missed.sum()),
            background=nothing,
            other=int((inside & ~self._hit).sum()) - nothing,
        )

    def refuted(self, most: int) -> np.ndarray:
        """Returns the `most` surest of the boxes (of `JUDGED`) that gold refutes."""
        rows = self.audit.boxes[self.kept & ~self._hit & (self.audit.boxes["fault"] != Fault.TWICE)]
        return rows[np.argsort(-rows["score"], kind="stable")[:most]]

    def missed(self, most: int) -> np.ndarray:
        """Returns the `most` largest gold boxes (of `GOLD`) that no label finds."""
        known = self.audit.known[self.audit.gold["class"]]
        rows = self.audit.gold[~self.found & known]
        return rows[np.argsort(-_areas(rows["box"]), kind="stable")[:most]]

    def summary(self) -> dict[str, Any]:
        """Returns the main numbers as plain values for JSON."""
        gold, silver = self.density.tolist()
        return {
            "gold_per_picture": _finite(gold),
            "silver_per_picture": _finite(silver),
            "all": self._about(None),
            "per_class": {self.audit.classes[c]: self._about(c) for c in self.classes()},
        }

    def _about(self, c: int | None) -> dict[str, Any]:
        row = self.row("", c)
        sizes = [self.row(name, c, i) for i, (name, _, _) in enumerate(SIZES)]
        return {
            "threshold": None if c is None else _finite(float(self.limits[c])),
            "precision": row.precision.plain(),
            "recall": row.recall.plain(),
            "faults": self.faults(c),
            "calibration_error": _finite(self.reliability(c).error()),
            "localization": {
                key: value if isinstance(value, int) else [_finite(x) for x in value]
                for key, value in self.localization(c).items()
            },
            "sizes": {
                r.name: {"precision": r.precision.plain(), "recall": r.recall.plain()}
                for r in sizes
            },
        }

    def _where(self, c: int | None, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns (D,) and (G,) bool: the boxes of a class and size; None: of the classes that the teacher
        knows, since of others it misses nothing."""
        masks = []
        for rows, areas in zip((self.audit.boxes, self.audit.gold), self._area, strict=True):
            mask = self.audit.known[rows["class"]] if c is None else rows["class"] == c
            if size is not None:
                mask = mask & (areas >= SIZES[size][1]) & (areas < SIZES[size][2])
            masks.append(mask)
        return masks[0], masks[1]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)


def _finite(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
