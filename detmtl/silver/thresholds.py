"""Thresholds of silver labels: a score, or what the audit or the calibration turns into one.

Letters: C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
from pydantic import Field

from detmtl.silver.calibration import Calibration
from detmtl.silver.evidence import Evidence
from detmtl.structures.settings import Settings


class AtPrecision(Settings):
    """A threshold that the audit finds: the lowest score from which gold confirms this share."""

    precision: float = Field(ge=0, le=1)


class AtProbability(Settings):
    """A threshold that the calibration finds: the lowest score of a label that is right this probably."""

    probability: float = Field(ge=0, le=1)


Threshold = float | AtPrecision | AtProbability


def no_scores(named: Mapping[str, Threshold | None]) -> list[str]:
    """Returns what is wrong with thresholds, a sentence each."""
    return [
        f"{name}: {value} is no score; scores lie in [0, 1]"
        for name, value in named.items()
        if isinstance(value, float) and not 0 <= value <= 1
    ]


def unknown_names(where: str, named: Iterable[str], known: Sequence[str]) -> list[str]:
    """Returns a sentence for each name that is no class."""
    problems = []
    for name in named:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" (nearest: '{close[0]}')" if close else ""
            problems.append(f"{where}: '{name}' is no class{hint}")
    return problems


def wants_precision(thresholds: Iterable[Threshold | None]) -> bool:
    """Returns whether one is given as a precision, which an audit alone can resolve."""
    return any(isinstance(t, AtPrecision) for t in thresholds)


def wants_probability(thresholds: Iterable[Threshold | None]) -> bool:
    """Returns whether one is given as a probability."""
    return any(isinstance(t, AtProbability) for t in thresholds)


def unresolved(
    where: str, thresholds: Sequence[Threshold | None], probabilities: bool, calibrated: bool
) -> list[str]:
    """Returns what cannot be had without an audit, a sentence each.

    Args:
        where: the section of the settings.
        thresholds: all of the section.
        probabilities: whether something is asked for in terms of probabilities.
        calibrated: whether scores have to be calibrated for that.
    """
    if wants_precision(thresholds):
        return [
            f"{where}: a threshold is given as a precision, which only an audit against gold can turn into "
            "a score; give gold to audit with, or a score"
        ]
    if probabilities and calibrated:
        return [
            f"{where}: probabilities need an audit against gold; give gold to audit with, or leave them out "
            "(calibration: none takes scores for probabilities)"
        ]
    return []


def scores_of(
    wanted: Sequence[Threshold], calibration: Calibration | None, evidence: Evidence | None
) -> np.ndarray:
    """Returns the score (C,) float32 from which on labels reach what is wanted for each class; infinity
    where none does.

    Args:
        wanted: C thresholds.
        calibration: not None where one is a probability.
        evidence: not None where one is a precision.
    """
    scores, at_precision = [], {}
    for precision in {t.precision for t in wanted if isinstance(t, AtPrecision)}:
        assert evidence is not None
        at_precision[precision] = evidence.thresholds(precision)
    for c, value in enumerate(wanted):
        if isinstance(value, AtPrecision):
            scores.append(at_precision[value.precision][c])
        elif isinstance(value, AtProbability):
            assert calibration is not None
            scores.append(calibration.score_for(value.probability)[c])
        else:
            scores.append(value)
    # As precise as the stored scores: 0.7 is not below 0.7.
    return np.array(scores, dtype=np.float32)
