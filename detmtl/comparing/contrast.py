"""Sums and differences of arms, over the seeds that all of them have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detmtl.comparing.scores import RunScores
from detmtl.comparing.statistics import Estimate, over_both, over_pictures, over_seeds, ratio
from detmtl.metrics.direction import lower_is_better

Runs = Mapping[str, Mapping[int, RunScores]]
"""Arm -> seed -> a finished run."""


@dataclass(frozen=True)
class Difference:
    """Arms times their factors in one metric, over the seeds that all of them have.

    Attributes:
        values: seed -> difference.
        seeds: over seeds.
        pictures: over resampled pictures, all seeds on the same ones.
    """

    values: Mapping[int, float]
    seeds: Estimate
    pictures: Estimate


def contrast(runs: Runs, parts: Mapping[str, float], metric: str) -> Difference:
    """Returns the sum of arms times their factors in a metric.

    {"a": 1, "b": -1} is a's difference to b; {"a": 1, "b": -1, "c": -1, "d": 1} is how much that
    difference exceeds c's to d.
    """
    seeds = common_seeds(runs, parts, metric)
    values = {
        s: math.fsum(factor * runs[arm][s].metrics[metric] for arm, factor in parts.items())
        for s in seeds
    }
    over = over_seeds(list(values.values()))
    resampled = None
    if seeds and all(metric in runs[arm][s].resampled for arm in parts for s in seeds):
        each = [[f * runs[arm][s].resampled[metric] for arm, f in parts.items()] for s in seeds]
        resampled = np.array(each).sum(axis=1).mean(axis=0)
    return Difference(values, over, over_pictures(over.mean, resampled))


def common_seeds(runs: Runs, arms: Mapping[str, float] | Sequence[str], metric: str) -> list[int]:
    """Returns the seeds in which all the arms have a number in the metric."""
    per_arm = [
        {
            s
            for s, run in runs.get(arm, {}).items()
            if not math.isnan(run.metrics.get(metric, math.nan))
        }
        for arm in arms
    ]
    return sorted(set.intersection(*per_arm)) if per_arm else []


def relative(runs: Runs, parts: Mapping[str, float], metric: str, baseline: str) -> Estimate:
    """Returns a contrast as a share of the baseline's mean, over seeds; unknown where that is 0."""
    values = contrast(runs, parts, metric).values
    whole = [runs[baseline][s].metrics[metric] for s in values]
    mean = abs(float(np.mean(whole))) if whole else 0.0
    return over_seeds([v / mean for v in values.values()] if mean > 0 else [])


def share(runs: Runs, way: tuple[str, str, str], metric: str) -> Estimate:
    """Returns (arm - floor) / (top - floor) of the means over seeds; unknown where the top is not surely
    better than the floor.

    Its interval is over seeds and, where something is kept of each picture, over pictures: neither these nor
    both together explain what lies outside.

    Args:
        way: arm, floor and top.
    """
    nan = float("nan")
    seeds = common_seeds(runs, way, metric)
    arm, floor, top = (np.array([runs[a][s].metrics[metric] for s in seeds]) for a in way)
    whole = over_seeds(floor - top if lower_is_better(metric) else top - floor)
    if not whole.low > 0:  # nor is it where one seed has no interval
        return Estimate(nan, nan, nan, nan, len(seeds))
    found = ratio(arm - floor, top - floor)
    each = [[runs[a][s].resampled.get(metric) for s in seeds] for a in way]
    if any(values is None for of in each for values in of):
        return found
    a, f, t = np.array(each, dtype=float).mean(axis=1)
    return over_both(found, over_pictures(found.mean, (a - f) / np.where(t == f, nan, t - f)))
