"""Which boxes become labels and how much they count: the settings, and what they come to.

Letters: N boxes, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from detmtl.silver.audit import Audit
from detmtl.silver.calibration import (
    Calibration,
    CalibrationSettings,
    NamedCalibration,
    TooLittleEvidence,
    fit_calibration,
)
from detmtl.silver.evidence import Evidence
from detmtl.silver.fusion import FusionSettings
from detmtl.silver.thresholds import (
    AtProbability,
    Threshold,
    no_scores,
    scores_of,
    unknown_names,
    unresolved,
    wants_precision,
    wants_probability,
)
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings

Weight = float | Literal["probability"]


class SelectionSettings(Settings):
    """Which of a teacher's boxes become labels, and how much they count.

    A threshold that is a number is a score of the one teacher; of several teachers, who have no common
    score, it is a probability.
    """

    threshold: Threshold = 0.5
    """Boxes of at least this score are labels."""
    per_class: dict[str, Threshold] = {}
    """Class name -> its own threshold."""
    ignore_from: float | AtProbability | None = 0.3
    """Boxes from this score up to the threshold have no loss of their class; None: no such band.
    Where a class's threshold is lower than this, it has no band."""
    ignore_budget: PositiveFloat | None = None
    """The most ignored boxes of a class in all pictures, per object of it that gold's density lets expect;
    where there are more, the class's band starts at a higher score. None: no bound, and none of a class
    that gold was not searched for."""
    calibration: NamedCalibration = CalibrationSettings()
    """How scores become probabilities, where something asks for them; a method's name will do."""
    fusion: FusionSettings = FusionSettings()
    """How boxes of several teachers become one."""
    soft_targets: bool = False
    """Whether a label's probability is its target in the class loss; otherwise the target is 1."""
    class_weight: Weight = 1.0
    """Of the class loss of each label: a number >= 0, or the label's `probability`."""
    box_weight: Weight = 1.0
    """Of the box loss of each label: a number >= 0, or the label's `probability`. That is one of IoU >= 0.5:
    where boxes are off by a habit of the teacher's (the audit shows it), a low number is what helps."""
    nms: float | None = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class and teacher that overlap more than this (IoU), the better stays; None:
    all."""
    max_boxes: PositiveInt = 300
    """The most boxes of one picture, the best of them, ignored ones included."""
    max_density: PositiveFloat | None = None
    """Pictures with more labels than this many times gold's mean are left out: in such a picture the
    teacher saw things, or it is a crowd, in which it missed as many. Of each class the mean is over the
    pictures that were searched for it; labels of a class that gold was not searched for do not count.
    None: no bound."""
    max_empty: float | None = Field(default=None, ge=0)
    """The most pictures without a label, per picture with one; which of them stay is decided by their
    content hashes. A pool that was not collected for these classes is mostly empty, and what a batch
    spends on such pictures it cannot spend on objects. None: no bound; mode online takes none."""
    coverage: float | None = Field(default=None, ge=0, le=1)
    """Of the classes that the teacher knows; None: their audited recall, 1 without an audit. A class of
    which no score is enough to be labelled or ignored has 0: its absence says nothing."""

    @model_validator(mode="after")
    def _scores(self) -> "SelectionSettings":
        named = {"threshold": self.threshold, "ignore_from": self.ignore_from, **self.per_class}
        if problems := no_scores(named):
            raise ValueError("\n".join(problems))
        for name in ("class_weight", "box_weight"):
            value = getattr(self, name)
            if isinstance(value, float) and value < 0:
                raise ValueError(f"{name}: {value} is below 0; give a number >= 0 or `probability`")
        if isinstance(self.threshold, float) and isinstance(self.ignore_from, float):
            low, high = self.ignore_from, self.threshold
        elif isinstance(self.threshold, AtProbability) and isinstance(
            self.ignore_from, AtProbability
        ):
            low, high = self.ignore_from.probability, self.threshold.probability
        else:
            return self
        if high < low:
            raise ValueError(
                f"ignore_from is {low}, above the threshold {high}; give a lower one, or null for no "
                "ignore band"
            )
        return self

    def thresholds(self) -> list[Threshold]:
        """Returns every threshold that is set."""
        return [self.threshold, *self.per_class.values()]

    def needs_audit(self) -> bool:
        """Returns whether something is asked for that only an audit against gold can tell."""
        calibrated = self.calibration.method != "none" and self.needs_probability()
        return (
            calibrated
            or self.max_density is not None
            or self.ignore_budget is not None
            or wants_precision(self.thresholds())
        )

    def needs_probability(self) -> bool:
        """Returns whether something is asked for in terms of the probability that a box is right."""
        return (
            self.soft_targets
            or "probability" in (self.class_weight, self.box_weight)
            or wants_probability([*self.thresholds(), self.ignore_from])
        )


class Labelled(Protocol):
    """What a policy must know of the labels that it is for: a store's, or those of several fused."""

    @property
    def path(self) -> Path: ...
    @property
    def floor(self) -> float: ...


class Resolved(NamedTuple):
    """`limits`, `lower` and `calibration` of a `Policy`."""

    limits: np.ndarray
    lower: np.ndarray
    calibration: Calibration | None


@dataclass(frozen=True, eq=False)
class Policy:
    """Settings, resolved for the labels of one teacher, or the fused ones of several.

    Attributes:
        settings: what it was made of.
        limits: (C,) float32, the score from which on a box is a label; infinity: none is.
        lower: (C,) float32, the score from which on a box is at least ignored; at most `limits`.
        calibration: turns scores into probabilities; None: nothing asks for them.
        coverage: class name -> how far the absence of a box means that nothing is there.
        expected: (C,) objects of each known class per picture, as gold has them; NaN where gold was not
            searched for the class, or the teacher does not know it. None without an audit.
    """

    settings: SelectionSettings
    limits: np.ndarray
    lower: np.ndarray
    calibration: Calibration | None
    coverage: Mapping[str, float]
    expected: np.ndarray | None

    @classmethod
    def of(
        cls,
        labels: Labelled,
        classes: LabelSpace,
        known: np.ndarray,
        settings: SelectionSettings,
        audit: Audit | None,
        several: bool = False,
        resolved: "Resolved | None" = None,
    ) -> "Policy":
        """Resolves settings.

        Args:
            labels: what is chosen from.
            classes: the C classes.
            known: (C,) bool, which of them somebody looked for.
            settings: the policy.
            audit: of these labels.
            several: whether they are fused labels of several teachers.
            resolved: what `resolve` made of all that; None: it is asked.

        Raises:
            InputError: an unknown class name, something that needs an audit without one, a score below
                the floor, too little gold to calibrate, or no gold box to tell recall or density.
        """
        found = resolved or resolve(labels, classes, settings, audit, several)
        return cls(
            settings,
            *found,
            coverage_of(classes, known, settings, audit, found.lower),
            None if audit is None else np.where(known, audit.density, np.nan),
        )

    def probabilities(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Returns the probabilities (N,) float64; the scores where nothing asks for probabilities."""
        if self.calibration is None:
            return np.asarray(scores, dtype=np.float64)
        return self.calibration(scores, classes)

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns weights (N, 2) float32 of the labels' class and box loss."""
        columns = [
            probabilities if w == "probability" else np.full(len(probabilities), w)
            for w in (self.settings.class_weight, self.settings.box_weight)
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    def targets(self, probabilities: np.ndarray, ignored: np.ndarray) -> np.ndarray:
        """Returns the targets (N,) float32 of the class loss; of boxes that are `ignored` (N,) bool,
        which have none, the probability."""
        hard = ~ignored & (not self.settings.soft_targets)
        return np.where(hard, 1.0, probabilities).astype(np.float32)


def resolve(
    labels: Labelled,
    classes: LabelSpace,
    settings: SelectionSettings,
    audit: Audit | None,
    several: bool = False,
) -> Resolved:
    """Returns the scores that settings come to; arguments as of `Policy.of`.

    Raises:
        InputError: as `Policy.of`, but for what gold without a box cannot tell.
    """
    if problems := unresolvable(labels, classes.names, settings, audit is not None, several):
        raise InputError(problems)
    wanted = {n: settings.per_class.get(n, settings.threshold) for n in classes.names}
    band = settings.ignore_from
    calibration = None
    if settings.needs_probability() or _on_probabilities(settings, several):
        method = settings.calibration
        assert audit is not None or method.method == "none"
        calibration = (
            Calibration.none(len(classes))
            if audit is None
            else fit_calibration(audit, method, f"selection from {labels.path}")
        )
    if _on_probabilities(settings, several):
        wanted = {n: _as_probability(t) for n, t in wanted.items()}
        band = _as_probability(band)
    evidence = None if audit is None else Evidence.of(audit)
    limits = scores_of(list(wanted.values()), calibration, evidence)
    lower = limits
    if band is not None:
        lower = np.minimum(limits, scores_of([band] * len(classes), calibration, evidence))
    return Resolved(limits, lower, calibration)


def unresolvable(
    labels: Labelled,
    classes: Sequence[str],
    settings: SelectionSettings,
    audited: bool,
    several: bool = False,
    where: str = "selection",
) -> list[str]:
    """Returns why settings can come to no policy, a sentence each; all that can be told beforehand.

    Args:
        labels: what is chosen from.
        classes: names of the C classes.
        settings: the policy.
        audited: whether there is an audit of these labels.
        several: whether they are fused labels of several teachers.
        where: what the sentences call the settings.
    """
    problems = unknown_names(f"{where}.per_class", settings.per_class, classes)
    if not audited:
        calibrated = settings.calibration.method != "none"
        probabilities = several or settings.needs_probability()
        problems += unresolved(where, settings.thresholds(), probabilities, calibrated)
        problems += [
            f"{where}.{name}: needs an audit against gold; give gold to audit with, or leave it out"
            for name in ("ignore_budget", "max_density")
            if getattr(settings, name) is not None
        ]
    if not several:
        scores = {
            f"{where}.threshold": settings.threshold,
            f"{where}.ignore_from": settings.ignore_from,
            **{f"{where}.per_class.{n}": t for n, t in settings.per_class.items()},
        }
        problems += [
            f"{name}: {value} is below {labels.floor}, the lowest score that {labels.path} keeps"
            for name, value in scores.items()
            if isinstance(value, float) and value < labels.floor
        ]
    return problems


def _check_gold(gives: np.ndarray, settings: SelectionSettings, audit: Audit) -> None:
    """Refuses what gold cannot tell without a box of the classes `gives` (C,) bool, the labelled ones."""
    if not gives.any() or audit.gold_boxes[gives].any():
        return
    nothing = f"none of gold's {audit.pictures} pictures has a box of a class that is labelled"
    problems = []
    if settings.coverage is None:
        problems.append(
            f"selection.coverage: {nothing}, which leaves no recall to take it from; give gold that has "
            "some, or set coverage"
        )
    if settings.max_density is not None:
        problems.append(
            f"selection.max_density: {nothing}, which leaves no mean to compare with; give gold that has "
            "some, or leave max_density out"
        )
    if problems:
        raise TooLittleEvidence(problems)


def _on_probabilities(settings: SelectionSettings, several: bool) -> bool:
    """Returns whether numbers are probabilities: several teachers have no common score."""
    return several and settings.calibration.method != "none"


def _as_probability(value: Any) -> Any:
    return AtProbability(probability=value) if isinstance(value, float) else value


def coverage_of(
    classes: LabelSpace,
    known: np.ndarray,
    settings: SelectionSettings,
    audit: Audit | None,
    lower: np.ndarray,
) -> dict[str, float]:
    """Returns how far the absence of a box means that nothing is there, by class name.

    Boxes of the ignore band take their negative loss away, so the recall counts from the band's
    lower end.

    Args:
        classes: the C classes.
        known: (C,) bool, which of them somebody looked for.
        settings: the policy.
        audit: of the labels.
        lower: (C,), see `Policy`.

    Raises:
        InputError: gold has no box that could tell recall or density.
    """
    # Where no score is enough, every object would become background.
    says = known & np.isfinite(lower)
    if audit is not None:
        _check_gold(says, settings, audit)
    if settings.coverage is not None:
        recall = dict.fromkeys(classes.names, settings.coverage)
    elif audit is not None:
        recall = audit.recall_at(dict(zip(classes.names, lower.tolist(), strict=True)))
    else:
        recall = dict.fromkeys(classes.names, 1.0)
    return {
        name: round(recall[name], 6) if on else 0.0
        for name, on in zip(classes.names, says, strict=True)
    }
