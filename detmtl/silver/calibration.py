"""What a teacher's score is worth: the probability that gold confirms a label of that score.

A missed box has no score, so calibration says nothing of it: that is what recall and coverage are for.

Letters: N labels, C classes, D_c the audited labels of class c, K knots of a curve.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from detmtl.silver.evidence import FOLDS, Evidence, Judged
from detmtl.structures.errors import InputError, missing_package
from detmtl.structures.settings import Settings

Method = Literal["none", "temperature", "platt", "isotonic"]
Curve = Callable[[np.ndarray], np.ndarray]

METHODS: tuple[Method, ...] = ("none", "temperature", "platt", "isotonic")
"""From the stiffest to the most flexible; of equally good ones `auto` takes the first."""
LEAST = 10
"""Fewer judged labels than this say nothing of a score's worth."""
_KNOTS = np.linspace(0, 1, 401)
"""Scores at which curves are kept; between them they are straight."""
_EDGE = 1e-6
"""Scores this near to 0 and 1 have no finite logit."""


class TooLittleEvidence(InputError):
    """Gold judges too few labels, or confirms none, to say what scores are worth."""


class CalibrationSettings(Settings):
    """How scores become probabilities."""

    method: Literal["auto", "none", "temperature", "platt", "isotonic"] = "auto"
    """`temperature` scales the score's logit, `platt` scales and shifts it, `isotonic` is any rising
    curve, `none` takes the score for the probability; `auto` is the one of them with the lowest
    log loss on labels that it was not fitted to."""
    shrink: float = Field(default=50, ge=0)
    """A class with n audited labels follows its own curve by n / (n + shrink), all classes' curve by the
    rest. 50: on coco128, two teachers with 80 and with 3 classes, the log loss of boxes held out was
    within 0.003 of the best of 0, 5, 10, 20, 50, 100 and no class of its own, and 0 was the worst."""


def _by_name(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


NamedCalibration = Annotated[CalibrationSettings, BeforeValidator(_by_name)]
"""As settings take it: a method's name stands for it with the other defaults."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The probability that a label is right, by its score and class; never falls as the score rises.

    Attributes:
        method: what was fitted.
        curves: (C, K) float64 in [0, 1], rising in each row: probability at K even scores of [0, 1].
    """

    method: Method
    curves: np.ndarray

    @classmethod
    def none(cls, num_classes: int) -> "Calibration":
        """Returns the calibration that takes scores for probabilities."""
        return cls("none", np.tile(_KNOTS, (num_classes, 1)))

    def __call__(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Returns probabilities (N,) float64 in [0, 1] of scores (N,) in [0, 1] of classes (N,) int."""
        at = np.asarray(scores, dtype=np.float64).clip(0, 1) * (len(_KNOTS) - 1)
        left = np.minimum(at.astype(np.int64), len(_KNOTS) - 2)
        low, high = self.curves[classes, left], self.curves[classes, left + 1]
        return (low + (at - left) * (high - low)).clip(low, high)

    def score_for(self, probability: float) -> np.ndarray:
        """Returns (C,) float64: the lowest score of that probability or more; infinity where none is."""
        return np.array([_crossing(curve, probability) for curve in self.curves])

    def opposite(self) -> "Calibration":
        """Returns the probability that a label is wrong, by 1 - score."""
        return Calibration(self.method, 1 - self.curves[:, ::-1])

    def digest(self) -> str:
        """Returns a hash of the curves."""
        text = json.dumps([self.method, np.round(self.curves, 9).tolist()])
        return sha256(text.encode()).hexdigest()[:16]


def fit_calibration(
    audit: Judged, settings: CalibrationSettings | None = None, where: str = "calibration"
) -> Calibration:
    """Returns what an audit says a teacher's scores are worth.

    Each class's curve is mixed with that of all classes, in logits and by the number of the class's
    labels: a class of few would otherwise get whatever those few happen to be.

    Args:
        audit: the teacher's labels judged by gold.
        settings: how; None: the defaults.
        where: the teacher, for errors.

    Raises:
        InputError: scikit-learn is missing.
        TooLittleEvidence: gold judges too few labels, or confirms none.
    """
    settings, evidence = settings or CalibrationSettings(), Evidence.of(audit)
    method = settings.method
    if method == "none":
        return Calibration.none(len(evidence.scores))
    _require(method, evidence, where)
    if method == "auto":
        method = _best(evidence, settings.shrink)
    return Calibration(method, _fit(method, evidence, settings.shrink))


def cross_fitted(
    audit: Judged, settings: CalibrationSettings | None = None, where: str = "calibration"
) -> list[np.ndarray]:
    """Returns per class the probabilities (D_c,) of the audited labels, each from curves that were fitted
    without it. What the same labels say of them is no flattery.

    Raises:
        InputError: as `fit_calibration`.
    """
    settings, evidence = settings or CalibrationSettings(), Evidence.of(audit)
    if settings.method != "none":
        _require(settings.method, evidence, where)
    return _cross_fitted(settings.method, evidence, settings.shrink)


def log_loss(
    probabilities: np.ndarray, hits: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Returns the mean negative log-likelihood of hits (N,) bool under probabilities (N,), weighted by
    `weights` (N,)."""
    p = np.asarray(probabilities, dtype=np.float64).clip(_EDGE, 1 - _EDGE)
    return float(np.average(-np.where(hits, np.log(p), np.log1p(-p)), weights=weights))


def require_package(method: str) -> None:
    """Refuses a method whose package is missing.

    Raises:
        InputError: scikit-learn is missing.
    """
    if method in ("auto", "isotonic") and importlib.util.find_spec("sklearn") is None:
        raise missing_package("scikit-learn", "calibration", f"calibration by method {method}")


def _require(method: str, evidence: Evidence, where: str) -> None:
    require_package(method)
    _, hits, weights = evidence.pooled()
    count = weights.sum()
    if count < LEAST:
        raise TooLittleEvidence(
            f"{where}: gold judges {count:.0f} of the teacher's labels, and {LEAST} are needed to calibrate "
            "its scores; give more gold, or set calibration: none"
        )
    if not hits.any():
        raise TooLittleEvidence(
            f"{where}: gold confirms none of {count:.0f} labels of the teacher; compare classes, places and "
            "pictures before its scores are calibrated"
        )


def _best(evidence: Evidence, shrink: float) -> Method:
    _, truth, weights = evidence.pooled()
    if not len(truth):
        return METHODS[0]
    losses = {
        m: log_loss(np.concatenate(_cross_fitted(m, evidence, shrink)), truth, weights)
        for m in METHODS
    }
    return min(METHODS, key=lambda m: round(losses[m], 9))


def _cross_fitted(
    method: Method | Literal["auto"], evidence: Evidence, shrink: float
) -> list[np.ndarray]:
    """As `cross_fitted`; `auto` chooses anew in every fold."""
    if method == "none":
        return [s.astype(np.float64) for s in evidence.scores]
    found = [np.zeros(len(s)) for s in evidence.scores]
    for k in range(FOLDS):
        rest = evidence.without(k)
        chosen: Method = _best(rest, shrink) if method == "auto" else method
        fitted = Calibration(chosen, _fit(chosen, rest, shrink))
        for c, (s, f) in enumerate(zip(evidence.scores, evidence.folds, strict=True)):
            out = f == k
            found[c][out] = fitted(s[out], np.full(int(out.sum()), c))
    return found


def _fit(method: Method, evidence: Evidence, shrink: float) -> np.ndarray:
    """Returns the curves (C, K)."""
    if method == "none":
        return Calibration.none(len(evidence.scores)).curves
    common = _logit(_curve(method, *evidence.pooled()))
    curves = np.empty((len(evidence.scores), len(_KNOTS)))
    of_classes = zip(evidence.scores, evidence.hits, evidence.weights, strict=True)
    for c, (s, h, w) in enumerate(of_classes):
        own = w.sum() / (w.sum() + shrink) if len(s) else 0.0
        mixed = common if own == 0 else own * _logit(_curve(method, s, h, w)) + (1 - own) * common
        curves[c] = 1 / (1 + np.exp(-mixed))
    return np.maximum.accumulate(curves, axis=1)  # against rounding alone


def _curve(method: Method, scores: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the rising curve (K,) of one set of labels, never nearer to 0 or 1 than they can tell."""
    if not len(scores):
        return np.full(len(_KNOTS), 0.5)
    if method == "isotonic":
        fitted = _isotonic(scores, hits, weights)
    else:
        fitted = _logistic(method, scores, hits, weights)
    # As many hits in a row as there are labels leave this much doubt (Laplace's rule of succession).
    doubt = 1 / (weights.sum() + 2)
    return fitted.clip(doubt, 1 - doubt)


def _isotonic(scores: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Source: Zadrozny and Elkan 2002, Transforming classifier scores into accurate probabilities."""
    from sklearn.isotonic import IsotonicRegression

    rising = IsotonicRegression(out_of_bounds="clip")
    rising.fit(scores.astype(np.float64), hits, sample_weight=weights)
    return rising.predict(_KNOTS)


def _logistic(
    method: Method, scores: np.ndarray, hits: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Scaled logits, shifted too for `platt`; a scale below 0 would make good scores bad: 0 then.

    Source: Platt 1999 (with its targets, which keep the scale finite where scores part hits from
    misses); temperature: Guo et al. 2017, arXiv 1706.04599.
    """
    right = weights[hits].sum()
    wrong = weights.sum() - right
    target = np.where(hits, (right + 1) / (right + 2), 1 / (wrong + 2))
    x = _logit(scores.astype(np.float64))
    columns = np.stack([x, np.ones_like(x)], axis=1)[:, : 2 if method == "platt" else 1]
    found = _newton(columns, target, weights)
    if found[0] < 0:
        found = np.array([0.0, float(_logit(np.average(target, weights=weights)))])[: len(found)]
    knots = np.stack([_logit(_KNOTS), np.ones_like(_KNOTS)], axis=1)[:, : len(found)]
    return _sigmoid(knots @ found)


def _newton(columns: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the coefficients of the logistic regression of targets (N,) in (0, 1), of weights (N,), on
    columns (N, 1 or 2), by Newton's steps, halved where one would lead uphill.

    scikit-learn's takes twenty times as long for so few numbers, and hundreds of curves are fitted.
    """

    def loss(b: np.ndarray) -> float:
        z = columns @ b
        return float((weights * (np.logaddexp(0, z) - target * z)).sum())

    found = np.eye(1, columns.shape[1])[0]  # the score as it is
    least = loss(found)
    for _ in range(50):
        p = _sigmoid(columns @ found)
        curvature = (columns * (weights * p * (1 - p))[:, None]).T @ columns
        step = np.linalg.solve(
            curvature + 1e-6 * np.eye(len(found)), columns.T @ (weights * (target - p))
        )
        while (value := loss(found + step)) > least and np.abs(step).max() > 1e-9:
            step = step / 2
        found, gain, least = found + step, least - value, value
        if gain < 1e-10 * weights.sum():
            break
    return found


def _logit(p: np.ndarray | float) -> np.ndarray:
    p = np.clip(p, _EDGE, 1 - _EDGE)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of a very low logit: the probability is 0
        return 1 / (1 + np.exp(-x))


def _crossing(curve: np.ndarray, probability: float) -> float:
    if curve[-1] < probability:
        return float("inf")
    k = int(np.searchsorted(curve, probability))
    if k == 0:
        return float(_KNOTS[0])
    low, high = curve[k - 1], curve[k]
    return float(_KNOTS[k - 1] + (probability - low) / (high - low) * (_KNOTS[k] - _KNOTS[k - 1]))
