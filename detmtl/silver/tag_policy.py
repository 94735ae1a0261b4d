"""Which of a teacher's tags become labels: the settings, and what they come to.

Letters: K pictures, T tags, M classes of the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import model_validator

from detmtl.data.tags import TagClasses
from detmtl.silver.calibration import (
    Calibration,
    CalibrationSettings,
    NamedCalibration,
    fit_calibration,
)
from detmtl.silver.card import TeacherCard
from detmtl.silver.tag_audit import TagAudit
from detmtl.silver.thresholds import (
    AtProbability,
    Threshold,
    no_scores,
    scores_of,
    unknown_names,
    unresolved,
    wants_probability,
)
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings


class TagRecord(Protocol):
    """What a store holds of one picture: see `detmtl.silver.tag_record`."""

    content_hash: str
    scores: np.ndarray


class TagSelection(Settings):
    """Which of a teacher's tags become labels, and how much they count.

    A score from `shown_from` on means that the picture shows the tag, one below `absent_below` that it
    does not; between, and where the teacher says nothing, the tag is unknown. A threshold may be given
    as the share of such labels that gold has to confirm ({precision: 0.9}), or as the
    probability by which each has to be right ({probability: 0.9}); for `absent_below` right means that
    the picture does not show the tag.
    """

    shown_from: Threshold = 0.6
    absent_below: Threshold = 0.2
    per_tag: dict[str, tuple[Threshold, Threshold]] = {}
    """Tag -> its own absent_below and shown_from, in this order."""
    calibration: NamedCalibration = CalibrationSettings()
    """How scores become probabilities, where something asks for them; a method's name will do."""
    soft_targets: bool = False
    """Whether a label's target is the probability that the picture shows the tag, rather than 0 or 1."""
    weight: Literal["audit", "one"] = "audit"
    """Of a label in the loss: the share of such labels that gold confirms, 1 without an audit; or 1."""

    @model_validator(mode="after")
    def _ordered(self) -> "TagSelection":
        pairs = {"absent_below": (self.absent_below, self.shown_from), **self.per_tag}
        problems = []
        for name, (low, high) in pairs.items():
            problems += no_scores({f"{name} (absent)": low, f"{name} (shown)": high})
            if isinstance(low, float) and isinstance(high, float) and low > high:
                problems.append(
                    f"{name}: absent_below is {low} and shown_from {high}; the first is not the higher one"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def pairs(self, tags: Sequence[str]) -> list[tuple[Threshold, Threshold]]:
        """Returns absent_below and shown_from of each of the T tags."""
        return [self.per_tag.get(name, (self.absent_below, self.shown_from)) for name in tags]

    def needs_probability(self, tags: Sequence[str]) -> bool:
        """Returns whether something is asked for in terms of the probability of a tag."""
        return self.soft_targets or wants_probability(t for p in self.pairs(tags) for t in p)


def unresolvable_tags(
    settings: TagSelection, tags: Sequence[str], audited: bool, where: str = "select_tags"
) -> list[str]:
    """Returns what keeps settings from being resolved, a sentence each; see `unresolvable_maps`."""
    problems = unknown_names(f"{where}.per_tag", settings.per_tag, tags)
    if not audited:
        every = [t for pair in settings.pairs(tags) for t in pair]
        calibrated = settings.calibration.method != "none"
        problems += unresolved(where, every, settings.needs_probability(tags), calibrated)
    return problems


@dataclass(frozen=True, eq=False)
class TagMeaning:
    """What a teacher's classes mean.

    Attributes:
        members: (T, M) bool, which classes mean which tag.
    """

    members: np.ndarray

    @classmethod
    def of(cls, card: TeacherCard, classes: TagClasses) -> "TagMeaning":
        """Builds it for a teacher.

        Raises:
            InputError: a class of the teacher is unmapped.
        """
        space = classes.label_space()
        found = np.array(space.class_of(card.classes, f"teacher '{card.name}'"))
        found[np.isin(card.classes, card.unsearched)] = -1
        return cls(found[None] == np.arange(len(space))[:, None])

    @property
    def known(self) -> np.ndarray:
        """(T,) bool, which tags the teacher knows."""
        return np.asarray(self.members.any(axis=1))

    def __call__(self, record: TagRecord) -> tuple[np.ndarray, np.ndarray]:
        """Returns (T,) float32 the highest score of each tag's members, NaN where the teacher says nothing
        of any, and (T,) bool whether it speaks of all of them."""
        own = np.where(self.members, record.scores, -np.inf)
        best = np.where(np.isnan(own), -np.inf, own).max(1, initial=-np.inf)
        said = np.where(np.isfinite(best), best, np.nan).astype(np.float32)
        return said, ~np.isnan(own).any(1) & self.known


@dataclass(frozen=True, eq=False)
class TagPolicy:
    """Settings, resolved for the tags of one teacher.

    Attributes:
        settings: what it was made of.
        low: (T,) float32, the score below which a tag is absent; -infinity: it never is.
        high: (T,) float32, the score from which on it is shown; infinity: it never is. At least `low`.
        calibration: turns scores into the probability that the tag is shown; None: nothing asks for it.
    """

    settings: TagSelection
    low: np.ndarray
    high: np.ndarray
    calibration: Calibration | None

    @classmethod
    def of(
        cls, path: Path, tags: Sequence[str], settings: TagSelection, audit: TagAudit | None
    ) -> "TagPolicy":
        """Resolves settings.

        Args:
            path: of the store, for errors.
            tags: the T names.
            settings: the policy.
            audit: of the store's tags.

        Raises:
            InputError: an unknown tag, something that needs an audit without one, or too little gold to
                calibrate.
        """
        if problems := unresolvable_tags(settings, tags, audit is not None):
            raise InputError(problems)
        pairs, calibration = settings.pairs(tags), None
        if settings.needs_probability(tags):
            method = settings.calibration
            calibration = (
                Calibration.none(len(tags))
                if audit is None
                else fit_calibration(audit.evidence, method, f"select_tags from {path}")
            )
        evidence = None if audit is None else audit.evidence
        high = scores_of([shown for _, shown in pairs], calibration, evidence)
        low = _lows([absent for absent, _ in pairs], calibration, audit)
        return cls(settings, np.minimum(low, high), high, calibration)

    def words(self, said: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Returns 0 absent, 1 unknown, 2 shown, of scores (..., T) and whether they are of the whole tag."""
        return np.where(said >= self.high, 2, np.where(whole & (said < self.low), 0, 1))

    def targets(self, said: np.ndarray) -> np.ndarray:
        """Returns the probabilities (T,) of scores (T,); NaN stays."""
        assert self.calibration is not None
        found = self.calibration(np.nan_to_num(said), np.arange(len(said)))
        return np.where(np.isnan(said), np.nan, found)


def _lows(
    wanted: Sequence[Threshold], calibration: Calibration | None, audit: TagAudit | None
) -> np.ndarray:
    """Returns (T,) float32 the score below which a tag is absent as surely as wanted; -infinity where it
    never is."""
    sure = scores_of(
        wanted,
        None if calibration is None else calibration.opposite(),
        None if audit is None else audit.opposite,
    )
    # The evidence has negative scores, the calibration's opposite has 1 - score.
    last = np.array(
        [1 - s if isinstance(t, AtProbability) else -s for t, s in zip(wanted, sure, strict=True)],
        dtype=np.float32,
    )
    below = np.where(np.isfinite(last), np.nextafter(last, np.float32(np.inf)), last)
    given = np.array([isinstance(t, float) for t in wanted])
    return np.where(given, sure, below)
