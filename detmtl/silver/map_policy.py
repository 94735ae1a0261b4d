"""Which pixels of a teacher's maps become labels: the settings, and what they come to.

Letters: C classes, H and W pixels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from pydantic import Field, model_validator

from detmtl.data.maps import MapClasses
from detmtl.silver.calibration import (
    Calibration,
    CalibrationSettings,
    NamedCalibration,
    fit_calibration,
)
from detmtl.silver.card import TeacherCard
from detmtl.silver.map_audit import MapAudit
from detmtl.silver.map_measures import levels_of
from detmtl.silver.thresholds import (
    Threshold,
    no_scores,
    scores_of,
    unknown_names,
    unresolved,
    wants_probability,
)
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN
from detmtl.structures.settings import Settings


class MapRecord(Protocol):
    """What a store holds of one picture: see `detmtl.silver.map_record`."""

    @property
    def content_hash(self) -> str: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def classes(self) -> np.ndarray: ...
    @property
    def confidence(self) -> np.ndarray | None: ...


class MapSelection(Settings):
    """Which of a teacher's pixels become labels, and how much they count.

    A threshold that is a number is the teacher's confidence.
    """

    background: list[str] = ["background"]
    """Classes of the teacher that mean none of its others, or more than ours: a dining table of Pascal VOC
    has the food on it. Their pixels may be of any class that it does not know."""
    confidence: Threshold = 0.0
    """Pixels of a class of which the teacher is less sure are unknown. A number holds for background pixels
    too; how far those can be trusted where precision or probability is asked for is `coverage`."""
    per_class: dict[str, Threshold] = {}
    """Class name -> its own confidence."""
    calibration: NamedCalibration = CalibrationSettings()
    """How confidences become probabilities, where one is asked for; a method's name will do. The pixels
    that a picture has of a class count as a few observations, since they resemble each other."""
    border: int = Field(default=0, ge=0)
    """Pixels (of the picture's file) no farther than this from an edge between labels are unknown: teachers
    of low resolution misplace edges."""
    least_precision: float = Field(default=0.0, ge=0, le=1)
    """Classes of which gold confirms less than this share of the pixels give no labels: their pixels
    are unknown."""
    weight: Literal["precision", "one"] = "precision"
    """Of a class's pixels in the loss: the share that gold confirms, 1 without an audit; or 1."""
    coverage: float | None = Field(default=None, ge=0, le=1)
    """How far a background pixel is not of a class that the teacher knows; None: the audited share of
    the class's pixels that it does not take for background, 1 without an audit."""

    @model_validator(mode="after")
    def _scores(self) -> "MapSelection":
        if problems := no_scores({"confidence": self.confidence, **self.per_class}):
            raise ValueError("\n".join(problems))
        return self

    def thresholds(self) -> list[Threshold]:
        """Returns every threshold that is set."""
        return [self.confidence, *self.per_class.values()]


def unresolvable_maps(
    settings: MapSelection, names: Sequence[str], audited: bool, where: str = "select_maps"
) -> list[str]:
    """Returns what keeps settings from being resolved, a sentence each.

    Args:
        settings: the policy.
        names: of the classes.
        audited: whether gold maps judge the teacher.
        where: the settings, for the sentences.
    """
    problems = unknown_names(f"{where}.per_class", settings.per_class, names)
    if not audited:
        thresholds, calibrated = settings.thresholds(), settings.calibration.method != "none"
        problems += unresolved(where, thresholds, wants_probability(thresholds), calibrated)
        if settings.least_precision:
            problems.append(f"{where}.least_precision: needs an audit; give gold maps")
    return problems


@dataclass(frozen=True, eq=False)
class Meaning:
    """What a teacher's pixel values mean in the label space.

    Attributes:
        lookup: (256,) uint8: a class, `OTHER` or `UNKNOWN` for each class of the teacher.
        known: (C,) bool, which classes the teacher knows.
        gives: (C,) bool, which classes it can give: those, and that of what is unmapped.
        border: see `MapSelection`.
    """

    lookup: np.ndarray
    known: np.ndarray
    gives: np.ndarray
    border: int

    @classmethod
    def of(cls, card: TeacherCard, classes: MapClasses, settings: MapSelection) -> "Meaning":
        """Builds it for a teacher.

        Raises:
            InputError: a class of the teacher is unmapped, or none is mapped.
        """
        own = [name for name in card.classes if name not in settings.background]
        codes = dict(zip(own, classes.codes(own, f"teacher '{card.name}'"), strict=True))
        lookup = np.full(256, UNKNOWN, np.uint8)
        codes |= dict.fromkeys(card.unsearched, UNKNOWN)
        lookup[: len(card.classes)] = [codes.get(name, OTHER) for name in card.classes]
        lookup[OTHER] = OTHER
        space = classes.label_space()
        gives = np.isin(np.arange(len(space)), list(codes.values()))
        known = space.known(name for name in own if name not in card.unsearched)
        return cls(lookup, np.array(known), gives, settings.border)

    def __call__(self, record: MapRecord) -> np.ndarray:
        """Returns the classes (H, W) uint8 of a picture, of whatever confidence."""
        classes = self.lookup[record.classes]
        if self.border:
            classes = np.where(_near_edges(classes, self.border), np.uint8(UNKNOWN), classes)
        return classes


@dataclass(frozen=True, eq=False)
class MapPolicy:
    """Settings, resolved for the maps of one teacher.

    Attributes:
        settings: what it was made of.
        meaning: of the teacher's classes.
        limits: (C + 1,) float32, the confidence from which on a pixel is a label, the last one of
            pixels that are none of the classes; infinity: none is.
    """

    settings: MapSelection
    meaning: Meaning
    limits: np.ndarray

    @classmethod
    def of(
        cls,
        path: Path,
        meaning: Meaning,
        names: Sequence[str],
        settings: MapSelection,
        audit: MapAudit | None,
    ) -> "MapPolicy":
        """Resolves settings.

        Args:
            path: of the store, for errors.
            meaning: of its teacher's classes.
            names: of the C classes.
            settings: the policy.
            audit: of these maps.

        Raises:
            InputError: an unknown class name, something that needs an audit without one, or too little
                gold to calibrate.
        """
        if problems := unresolvable_maps(settings, names, audit is not None):
            raise InputError(problems)
        evidence = None if audit is None else audit.evidence
        calibration = None
        if wants_probability(settings.thresholds()):
            method = settings.calibration
            calibration = (
                Calibration.none(len(names))
                if evidence is None
                else fit_calibration(evidence, method, f"select_maps from {path}")
            )
        wanted = [settings.per_class.get(name, settings.confidence) for name in names]
        rest = settings.confidence if isinstance(settings.confidence, float) else 0.0
        limits = np.append(scores_of(wanted, calibration, evidence), np.float32(rest))
        return cls(settings, meaning, limits.astype(np.float32))

    def digest(self) -> str:
        """Returns a hash of what decides which pixels are labels."""
        meaning = self.meaning
        digest = hashlib.sha256(json.dumps([meaning.border, self.limits.tolist()]).encode())
        for array in (meaning.lookup, meaning.known, meaning.gives):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def __call__(self, record: MapRecord) -> np.ndarray:
        """Returns the classes (H, W) uint8 of a picture, what is not sure enough unknown.

        Raises:
            InputError: a confidence is asked for that the teacher did not give.
        """
        classes = self.meaning(record)
        if record.confidence is None and any(
            isinstance(t, float) and t > 0 for t in self.settings.thresholds()
        ):
            raise InputError(
                "select_maps.confidence: the teacher gave hard maps, without confidence; set it to 0"
            )
        least = np.zeros(256)
        least[: len(self.limits) - 1] = levels_of(self.limits[:-1])
        least[OTHER] = levels_of(self.limits[-1:])[0]
        sure = confidence_of(record) >= least[classes]
        return np.where(sure, classes, np.uint8(UNKNOWN))


def confidence_of(record: MapRecord) -> np.ndarray:
    """Returns how sure the teacher is of each pixel, (H, W) uint8; of hard maps, for certain."""
    if record.confidence is None:
        return np.full(record.classes.shape, 255, np.uint8)
    return record.confidence


def _near_edges(classes: np.ndarray, distance: int) -> np.ndarray:
    """Returns (H, W) bool: within `distance` pixels, in rows or columns, of another label."""
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return cv2.dilate(classes, kernel) != cv2.erode(classes, kernel)
