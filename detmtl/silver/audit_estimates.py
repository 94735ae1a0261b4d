"""Shares, thresholds and calibration errors estimated from few judged boxes.

Letters: C classes, D boxes, T thresholds, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECALL_PRIOR = 10
"""The recall over all classes counts as much as so many gold boxes of the class itself.

Measured on coco128 with two detectors, 8 to 128 gold pictures, error of the recall on the others
(mean over classes): 0, that is every class for itself, .14 to .29; 5 and 10 the least, .13 to .28; 40
up to .02 more. A switch from all to own at 10 boxes, as it was before, had up to .03 more than 10.
"""
PRECISION_PRIOR = 20
"""The precision over all classes at a score counts as much as so many boxes of the class itself.

Measured on coco128 (three classes, 8 to 64 gold pictures, wanted precision .7 to .9): thresholds of each
class for itself vary by .06 to .18 between draws of the gold pictures and miss the precision on the
others by .08 to .15; with 20 by .04 to .15, and .07 to .12. More gains little there, and costs where
classes differ.
"""


def wilson(hits: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Returns the interval of a share, hits of count observations, at z standard deviations.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if count == 0:
        return 0.0, 1.0
    p = hits / count
    middle = p + z**2 / (2 * count)
    spread = z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    # The share itself lies in the interval, also where rounding says otherwise (0 or all of them).
    low, high = float((middle - spread) / scale), float((middle + spread) / scale)
    return max(0.0, min(low, p)), min(1.0, max(high, p))


def toward(hits: np.ndarray, counts: np.ndarray, pooled: np.ndarray, prior: float) -> np.ndarray:
    """Returns shares hits / counts drawn toward `pooled`, which counts as `prior` observations.

    The mean of a beta distribution: continuous in the counts, `pooled` where there are none and the
    class's own share where there are many.
    """
    return (hits + prior * pooled) / (counts + prior)


class Curve:
    """The precision from each score on, over all classes."""

    def __init__(self, scores: np.ndarray, hits: np.ndarray, weights: np.ndarray | None = None):
        """Takes the scores (D,), hits (D,) and weights (D,) of all classes, in any order; None: 1 each."""
        order = np.argsort(-scores, kind="stable")
        self._candidates = np.unique(scores)
        weights = np.ones(len(scores)) if weights is None else weights
        counts, confirmed = _from(scores[order], hits[order], weights[order], self._candidates)
        self._precision = confirmed / np.where(counts > 0, counts, 1)

    def threshold(
        self,
        scores: np.ndarray,
        hits: np.ndarray,
        precision: float,
        weights: np.ndarray | None = None,
    ) -> float:
        """Returns the lowest score from which on a class has at least `precision`; infinity where none.

        The class's own precision from each score on is drawn toward that over all classes.

        Args:
            scores, hits: (D_c,) of the class, falling.
            precision: in [0, 1].
            weights: (D_c,); None: 1 each.
        """
        weights = np.ones(len(scores)) if weights is None else weights
        counts, confirmed = _from(scores, hits, weights, self._candidates)
        share = toward(confirmed, counts, self._precision, PRECISION_PRIOR)
        good = np.flatnonzero(share >= precision - 1e-12)  # 9 of 10 is .9, whatever arithmetic says
        return float(self._candidates[good[0]]) if len(good) else float("inf")


def _from(
    scores: np.ndarray, hits: np.ndarray, weights: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (T,) the weight of the falling scores that are at least `at`, and that of the hits."""
    ends = np.searchsorted(-scores, -at, side="right")
    return np.append(0, np.cumsum(weights))[ends], np.append(0, np.cumsum(weights * hits))[ends]


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often labels are right, against how sure the teacher is of them.

    Attributes:
        counts: (B,), labels by their score, in B bins of equal width from 0 to 1.
        score: (B,) their mean score; nan where there are none.
        share: (B,) the share of them that gold confirms; nan where there are none.
        observations: (B,), as many independent ones as `counts` are worth.
    """

    counts: np.ndarray
    score: np.ndarray
    share: np.ndarray
    observations: np.ndarray

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        hits: np.ndarray,
        bins: int = 10,
        counts: np.ndarray | None = None,
        observations: np.ndarray | None = None,
    ) -> "Reliability":
        """Sorts labels into bins.

        Args:
            scores: (D,) in [0, 1].
            hits: (D,) bool.
            bins: B.
            counts: (D,), how many labels each row stands for; None: one.
            observations: (D,), how many independent ones those are worth; None: as many.
        """
        at = np.minimum((scores * bins).astype(np.int64), bins - 1)
        own = np.ones(len(at), dtype=np.int64) if counts is None else counts
        number = np.bincount(at, weights=own, minlength=bins)
        some = np.where(number > 0, number, np.nan)
        worth = number
        if observations is not None:
            worth = np.bincount(at, weights=observations, minlength=bins)
        return cls(
            number if counts is not None else number.astype(np.int64),
            np.bincount(at, weights=own * scores, minlength=bins) / some,
            np.bincount(at, weights=own * hits, minlength=bins) / some,
            worth,
        )

    def error(self) -> float:
        """Returns the expected calibration error in [0, 1]; nan without labels.

        Source: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning,
        equation 3; applied to the precision of labels (of boxes at IoU 0.5).
        """
        return self._mean(np.abs(self.score - self.share))

    def noise(self) -> float:
        """Returns the error that perfectly calibrated scores would have on average with so few labels.

        The mean absolute deviation of a binomial share, by its normal limit.
        """
        some = np.where(self.observations > 0, self.observations, np.nan)
        spread = np.sqrt(self.score * (1 - self.score) / some)
        return self._mean(np.sqrt(2 / np.pi) * spread)

    def _mean(self, values: np.ndarray) -> float:
        if not self.counts.sum():
            return float("nan")
        return float(np.nansum(self.counts * values) / self.counts.sum())


def mean_and_sd(values: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation; nan for what needs more values."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan")
