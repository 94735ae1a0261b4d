"""Which of several teachers have a say in their fused labels, and how much.

Letters: T teachers.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from detmtl.silver.audit import Audit
from detmtl.silver.audit_gates import tells_nothing
from detmtl.silver.calibration import Calibration, CalibrationSettings
from detmtl.silver.fusion import FusionSettings
from detmtl.silver.mapping import ClassMap
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError


def judged_by(
    names: Sequence[str],
    audits: Sequence[Audit | None] | None,
    calibration: CalibrationSettings,
) -> Sequence[Audit | None]:
    """Returns each teacher's audit, by which its scores are calibrated; None where they are not.

    Raises:
        InputError: they are to be calibrated, and an audit is missing.
    """
    if calibration.method == "none":
        return [None] * len(names)
    audits = audits or [None] * len(names)
    without = [name for name, a in zip(names, audits, strict=True) if a is None]
    if without:
        raise InputError(
            "teachers: the scores of several teachers are compared only after calibration, which needs an "
            f"audit of each against gold, and {', '.join(without)} has none; give gold, or set "
            "calibration: none"
        )
    return audits


def with_a_say(
    names: Sequence[str],
    maps: Sequence[ClassMap],
    audits: Sequence[Audit | None],
    classes: LabelSpace,
) -> list[ClassMap]:
    """Returns the maps, without any class for teachers of which gold tells nothing; warns of these.

    Raises:
        InputError: gold tells nothing of any teacher.
    """
    mute = [a is not None and tells_nothing(a) for a in audits]
    told = [
        f"teacher '{name}' abstains: gold confirms {sum(int(h.sum()) for h in a.hits)} of the "
        f"{len(a.boxes)} boxes that it could judge, and has {int(a.gold_boxes[a.known].sum())} objects of "
        f"{', '.join(n for n, k in zip(classes.names, a.known, strict=True) if k)}; that does not tell "
        "what its scores are worth: give the audit gold of these classes, or set calibration: none"
        for name, a, silent in zip(names, audits, mute, strict=True)
        if silent and a is not None
    ]
    if all(mute):
        raise InputError(told)
    for sentence in told:
        warnings.warn(sentence, stacklevel=3)
    return [m.abstaining() if silent else m for m, silent in zip(maps, mute, strict=True)]


def weights_of(
    names: Sequence[str],
    maps: Sequence[ClassMap],
    fusion: FusionSettings,
    calibrations: Sequence[Calibration],
    audits: Sequence[Audit | None],
) -> np.ndarray:
    """Returns the teachers' weights (T,), the highest of which is 1; of one that abstains 0."""
    weights = np.ones(len(names))
    if fusion.weights is not None:
        weights = np.array([fusion.weights.get(name, 1.0) for name in names])
    else:
        for t, judged in enumerate(audits):
            if judged is not None:
                scores, hits = np.concatenate(judged.scores), np.concatenate(judged.hits)
                classes = np.repeat(np.arange(len(judged.scores)), [len(s) for s in judged.scores])
                right = calibrations[t](scores[hits], classes[hits])
                weights[t] = right.mean() if len(right) else 0.0
    mute = np.array([not m.known.any() for m in maps])
    weights[mute & ~mute.all()] = 0
    return weights / weights.max()
