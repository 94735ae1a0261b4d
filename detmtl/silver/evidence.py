"""Labels of a teacher that gold has judged, class by class: what thresholds and calibration rest on.

A label is a box, a tag of a picture, or the pixels of a class that a map has at one confidence.
Letters: C classes, D_c judged labels of class c.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from detmtl.silver.audit_estimates import Curve

FOLDS = 5
"""Parts by which curves are judged on labels that they were not fitted to."""


class Judged(Protocol):
    """Whatever has judged labels: an audit of boxes, or `Evidence` itself."""

    @property
    def scores(self) -> Sequence[np.ndarray]: ...
    @property
    def hits(self) -> Sequence[np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """Judged labels; each attribute is C arrays, one of (D_c,) for each class.

    Attributes:
        scores: in [0, 1] (of `opposite`, see there), falling.
        hits: bool, whether gold confirms the label.
        weights: how many independent observations it stands for.
        folds: int in 0..FOLDS - 1; what is not independent is in one fold.
    """

    scores: Sequence[np.ndarray]
    hits: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    folds: Sequence[np.ndarray]

    @classmethod
    def of(cls, judged: Judged) -> "Evidence":
        """Returns evidence of labels that are independent of each other, scores falling; of evidence
        itself."""
        if isinstance(judged, Evidence):
            return judged
        starts = np.cumsum([0, *map(len, judged.scores)])[:-1]
        # Every fifth label of a class by falling score: folds alike in class and score, without chance.
        folds = [
            (np.arange(len(s)) + a) % FOLDS for s, a in zip(judged.scores, starts, strict=True)
        ]
        ones = [np.ones(len(s)) for s in judged.scores]
        return cls(list(judged.scores), list(judged.hits), ones, folds)

    def without(self, fold: int) -> "Evidence":
        """Returns it without one fold."""
        rest = [f != fold for f in self.folds]
        parts = (self.scores, self.hits, self.weights, self.folds)
        kept = [[x[r] for x, r in zip(part, rest, strict=True)] for part in parts]
        return Evidence(*kept)

    def pooled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns scores, hits and weights of all classes together."""
        return np.concatenate(self.scores), np.concatenate(self.hits), np.concatenate(self.weights)

    def thresholds(self, precision: float) -> np.ndarray:
        """Returns (C,) the lowest score from which on gold confirms at least that share of a class's
        labels; infinity where there is none.

        A class's own precision is drawn toward that over all classes, see `Curve`.
        """
        curve = Curve(*self.pooled())
        return np.array(
            [
                curve.threshold(s, h, precision, w)
                for s, h, w in zip(self.scores, self.hits, self.weights, strict=True)
            ]
        )
