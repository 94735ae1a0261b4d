"""What a difference between two arms says, with what certainty.

Two things are left to chance: the seed of a training, and the pictures that happen to be in the test
set. An arm is called better only if neither alone nor both together could have made the difference; where
pictures cannot be resampled, seeds decide, and the verdict says so.

Letters: S seeds, B resamples of the pictures, K comparisons.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from detmtl.report.told import told_p

LEVEL = 0.05
"""Of all intervals (95 %) and of verdicts."""

Word = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; NaN where there is nothing to estimate it from.

    Attributes:
        mean: of the values.
        low, high: ends of the interval.
        p: two-sided probability of a mean at least as far from 0 if the true one were 0.
        count: values, or resamples.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int

    @property
    def known(self) -> bool:
        """Returns whether there is an interval."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Verdict:
    """What may be said of an arm against a baseline.

    Attributes:
        word: see `verdict`.
        reason: a sentence.
        p: the probability by which it is judged, see `joint_p`, before and
        corrected: after Holm's correction.
    """

    word: Word
    reason: str
    p: float
    corrected: float


def over_seeds(values: Sequence[float] | np.ndarray) -> Estimate:
    """Returns mean and Student's t interval of the S values of an arm, or of paired differences.

    One value has no interval. Values that are all equal have one of no width, and p is 0, or 1 if
    they are 0.

    Source: Student 1908, The probable error of a mean.
    """
    from scipy.stats import t as student  # slow to import, and of no use to other verbs

    values = np.asarray(values, dtype=float)
    values, nan = values[~np.isnan(values)], float("nan")
    n = len(values)
    if n < 2:
        return Estimate(float(values.mean()) if n else nan, nan, nan, nan, n)
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(n))
    half = float(student.ppf(1 - LEVEL / 2, n - 1)) * error
    p = float(mean == 0) if error == 0 else float(2 * student.sf(abs(mean) / error, n - 1))
    return Estimate(mean, mean - half, mean + half, p, n)


def ratio(parts: np.ndarray, wholes: np.ndarray) -> Estimate:
    """Returns the mean of S parts as a share of the mean of their wholes, with an interval over seeds: every
    share r of which Student's t does not tell that the mean of part - r whole is not 0.

    Args:
        parts, wholes: (S,), in pairs; the wholes' own interval is known and does not hold 0.

    Source: Fieller 1954, Some problems in interval estimation; percentiles of so few resampled seeds would
    be far too narrow.
    """
    from scipy.stats import t as student  # slow to import, and of no use to other verbs

    n, (part, whole) = len(parts), (float(parts.mean()), float(wholes.mean()))
    squared = float(student.ppf(1 - LEVEL / 2, n - 1)) ** 2 / n
    (pp, pw), (_, ww) = squared * np.cov(parts, wholes)
    # the ends solve a r^2 - 2 b r + c = 0
    a, b, c = whole**2 - ww, part * whole - pw, part**2 - pp
    half = math.sqrt(max(0.0, b * b - a * c))
    return Estimate(part / whole, (b - half) / a, (b + half) / a, math.nan, n)


def over_pictures(mean: float, resampled: np.ndarray | None) -> Estimate:
    """Returns the percentile interval of B resampled means (of all seeds, on the same pictures).

    p is twice the share of resamples on the other side of 0, each counted once more than seen.

    Args:
        mean: on the pictures as they are.
        resampled: (B,), or None where nothing per picture is kept.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, 13.3.
    """
    nan = float("nan")
    if resampled is None:
        return Estimate(mean, nan, nan, nan, 0)
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Estimate(mean, nan, nan, nan, 0)
    low, high = np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2])
    beyond = 1 + min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
    p = min(1.0, 2 * beyond / (len(resampled) + 1))
    return Estimate(mean, float(low), float(high), p, len(resampled))


def over_both(seeds: Estimate, pictures: Estimate) -> Estimate:
    """Returns an estimate over seeds with an interval that holds what pictures add: the distances of the ends
    from the mean are added as squares. As it is where there is no interval over pictures.

    Source: Zou and Donner 2008, Construction of confidence limits about effect measures.
    """
    if not pictures.known:
        return seeds
    below = math.hypot(seeds.mean - seeds.low, max(0.0, seeds.mean - pictures.low))
    above = math.hypot(seeds.high - seeds.mean, max(0.0, pictures.high - seeds.mean))
    return replace(seeds, low=seeds.mean - below, high=seeds.mean + above)


def holm(p: Sequence[float]) -> list[float]:
    """Returns K probabilities corrected for being K: compared with a level, they keep the chance of any
    false finding among them below it. NaN stays, and does not count.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    values = np.asarray(p, dtype=float)
    corrected = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return corrected.tolist()


def level_left(corrected: Sequence[float]) -> float:
    """Returns the level at which Holm's correction tells one more of K differences, the others as they are.

    Args:
        corrected: probabilities as `holm` returns them.
    """
    known = [p for p in corrected if not math.isnan(p)]
    untold = sum(p > LEVEL for p in known)
    return LEVEL / max(1, untold)


def resamples_for(comparisons: int) -> int:
    """Returns how many resamples K comparisons need at least: with fewer, no difference however large could
    be found, since `over_pictures` never gives less than 2 / (B + 1) and `holm` multiplies that by K."""
    return math.ceil(2 * comparisons / LEVEL)


def joint_p(seeds: Estimate, pictures: Estimate) -> float:
    """Returns the probability by which a difference is judged: the largest of those over seeds, over pictures
    and over both, so that neither source of chance nor their sum explains it (NaN without several seeds;
    seeds alone where nothing per picture is kept).

    Source: Berger 1982, Multiparameter hypothesis testing and acceptance sampling (intersection-union).
    """
    if math.isnan(seeds.p) or not pictures.known:
        return seeds.p
    return max(seeds.p, pictures.p, _summed_p(seeds, pictures))


def _summed_p(seeds: Estimate, pictures: Estimate) -> float:
    """Returns the two-sided probability of a mean at least as far from 0 if the true one were 0 and it
    varied with the seeds and the pictures alike: each alone is only a part of its error.

    The error over pictures is that of the interval's end toward 0, as if from a normal distribution.
    Source: Satterthwaite 1946, An approximate distribution of estimates of variance components.
    """
    from scipy.stats import norm  # slow to import, and of no use to other verbs
    from scipy.stats import t as student

    mean, free = seeds.mean, seeds.count - 1
    of_seeds = (seeds.high - mean) / float(student.ppf(1 - LEVEL / 2, free))
    toward = mean - pictures.low if mean > 0 else pictures.high - mean
    of_pictures = max(0.0, toward) / float(norm.ppf(1 - LEVEL / 2))
    error = math.hypot(of_seeds, of_pictures)
    if error == 0:
        return seeds.p
    freedom = free * (error / of_seeds) ** 4 if of_seeds > 0 else math.inf
    return float(2 * student.sf(abs(mean) / error, freedom))


def verdicts(pairs: Sequence[tuple[Estimate, Estimate]]) -> list[Verdict]:
    """Returns what may be said of each of K differences, (over seeds, over pictures), judged together."""
    raw = [joint_p(seeds, pictures) for seeds, pictures in pairs]
    known = sum(not math.isnan(p) for p in raw)
    return [
        _verdict(seeds, pictures, p, corrected, known)
        for (seeds, pictures), p, corrected in zip(pairs, raw, holm(raw), strict=True)
    ]


def seeds_alone(told: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader must know where verdicts are over seeds alone: a sentence, or nothing.

    Args:
        told: comparisons as plain values: `metric`, and the estimates over `seeds` and `pictures`.
    """
    metrics = [
        c["metric"]
        for c in told
        if not math.isnan(c["seeds"]["p"]) and math.isnan(c["pictures"]["low"])
    ]
    if not metrics:
        return []
    return [
        f"{', '.join(dict.fromkeys(metrics))}: verdicts are over seeds alone, and say nothing of other test "
        "pictures. Not every run keeps of each picture what such a metric is counted from: it is none "
        "that detmtl resamples, or a run was made before it did (without its folder in runs it is made "
        "anew)."
    ]


def _verdict(
    seeds: Estimate, pictures: Estimate, p: float, corrected: float, comparisons: int
) -> Verdict:
    """Better or worse: the corrected probability is at most .05; otherwise the reason it is not."""
    if seeds.count == 0:
        return Verdict("cannot tell", "no seed is finished in both arms", p, corrected)
    if math.isnan(seeds.p):
        reason = "one seed: how much another one would differ is not known"
        return Verdict("cannot tell", reason, p, corrected)
    if corrected <= LEVEL:
        word: Word = "better" if seeds.mean > 0 else "worse"
        who = "neither seeds nor pictures" if pictures.known else "seeds do not"
        reason = f"{who} explain it: corrected p = {told_p(corrected)}"
        if not pictures.known:
            reason += "; pictures, which were not resampled, may"
        return Verdict(word, reason, p, corrected)
    holding = [
        what
        for what, e in (("seeds", seeds), ("pictures", pictures))
        if e.known and e.low <= 0 <= e.high
    ]
    if holding:
        reason = f"the interval{'s' * (len(holding) > 1)} over {' and '.join(holding)} "
        reason += "hold 0" if len(holding) > 1 else "holds 0"
    else:
        arms = f"{comparisons} comparisons" if comparisons > 1 else "one comparison"
        alone = p <= LEVEL or max(seeds.p, pictures.p) > LEVEL
        reason = "" if alone else "seeds and pictures together may explain it: "
        reason += f"p = {told_p(p)} alone, {told_p(corrected)} corrected for {arms}"
    return Verdict("cannot tell", reason, p, corrected)
