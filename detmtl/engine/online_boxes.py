"""Mode online's boxes: those of the averaged model, chosen as those of a store are.

Letters: C classes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.source import Source
from detmtl.engine.online_kind import ONLINE, Kind
from detmtl.silver.audit import Audit, audit
from detmtl.silver.audit_gates import LEAST_PICTURES
from detmtl.silver.calibration import require_package
from detmtl.silver.comparison import Fault
from detmtl.silver.ensemble import row_type
from detmtl.silver.mapping import suppress
from detmtl.silver.overlay import OverlaySettings, overlay_boxes
from detmtl.silver.policy import Policy, SelectionSettings, resolve, unresolvable
from detmtl.silver.selection import choose, labels_of
from detmtl.silver.store import Record, Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore, Labels
from detmtl.structures.sample import ImageInfo


@dataclass(frozen=True)
class _Teacher:
    """As much of a store as a policy asks for.

    Attributes:
        floor: lowest score of the model's boxes.
        path: what errors call it.
    """

    floor: float
    path: Path = ONLINE


_OF_A_POOL = {
    "ignore_budget": "raise ignore_from, or set it null",
    "max_empty": "a smaller share in mix.shares draws fewer of such pictures",
}
"""Settings that count over all pictures of a pool -> what to do instead."""


def unusable(
    settings: SelectionSettings, classes: Sequence[str], floor: float, audited: bool, where: str
) -> list[str]:
    """Returns what keeps a policy from choosing among the boxes of pictures that come one by one, a
    sentence each.

    Args:
        settings: the policy.
        classes: names of the model's classes.
        floor: lowest score that the model's boxes have.
        audited: whether the model is audited.
        where: the settings, for the sentences.
    """
    problems = [
        f"{where}.{name}: counts over all pictures of a pool, and pictures that are labelled as they come "
        f"are never all there; leave it out: {instead}"
        for name, instead in _OF_A_POOL.items()
        if getattr(settings, name) is not None
    ]
    return problems + unresolvable(_Teacher(floor), classes, settings, audited, where=where)


@dataclass(frozen=True, eq=False)
class BoxChoice:
    """A selection's policy, resolved for the model as it is now.

    Attributes:
        policy: limits, calibration, coverage.
        known: (C,) bool, of which classes boxes are taken.
    """

    policy: Policy
    known: np.ndarray

    @classmethod
    def of(
        cls,
        settings: SelectionSettings,
        classes: LabelSpace,
        audit: Audit | None,
        floor: float,
        known: np.ndarray | None = None,
    ) -> "BoxChoice":
        """Resolves settings as the selection of a store does.

        Args:
            settings: the policy.
            classes: the model's.
            audit: of the model; None: thresholds are scores, and coverage is given or 1.
            floor: lowest score that the model's boxes have.
            known: (C,) bool, of which classes the model has learned; None: of all.

        Raises:
            InputError: as `Policy.of`.
            TooLittleEvidence: the audit does not tell what scores are worth.
        """
        teacher = _Teacher(floor)
        known = np.ones(len(classes), dtype=bool) if known is None else known
        if audit is not None and not known.all():
            known = known | _confirmed(audit, resolve(teacher, classes, settings, audit).lower)
            audit = audit.limited_to(known)  # what it makes of the others says nothing of these
        return cls(Policy.of(teacher, classes, known, settings, audit), known)

    def __call__(self, found: Labels, info: ImageInfo) -> BoxLabels | None:
        """Returns the labels that are made of the model's boxes of one picture, best first; None where
        there are too many of them to be believed (`max_density`): nobody looked, then."""
        assert isinstance(found, BoxLabels)
        boxes, scores = found.boxes.numpy(), found.scores.numpy()
        classes, overlap = found.classes.numpy(), self.policy.settings.nms
        order = np.argsort(-scores, kind="stable")
        if overlap is not None:
            order = suppress(boxes, scores, classes, overlap)
        rows = np.zeros(len(order), dtype=row_type(1))
        rows["box"], rows["class"], rows["score"] = boxes[order], classes[order], scores[order]
        rows = rows[self.known[rows["class"]]]
        rows, ignored, dense = choose(rows, self.policy)
        return None if len(dense) else labels_of(rows, ignored, self.policy)


def _confirmed(audit: Audit, lower: np.ndarray) -> np.ndarray:
    """Returns (C,) bool, of which classes gold confirms boxes whose score is at least `lower` (C,) in as many
    pictures as it takes to rule out luck."""
    boxes = audit.boxes
    found = (boxes["fault"] == Fault.NONE) & (boxes["score"] >= lower[boxes["class"]])
    places = np.unique(boxes[found][["class", "picture"]])
    return np.bincount(places["class"], minlength=len(lower)) >= LEAST_PICTURES


class OnlineBoxes(Kind):
    """Boxes.

    Args:
        task: name of the detection task.
        classes: the label space.
        floor: lowest score that the task gives.
        select: the policy.
        overlay: what becomes of the model's boxes beside those that a picture has.
        known: names of the classes of which the model has learned; None: of all.
    """

    written = "boxes"

    def __init__(
        self,
        task: str,
        classes: LabelSpace,
        floor: float,
        select: SelectionSettings,
        overlay: OverlaySettings,
        known: Collection[str] | None = None,
    ):
        super().__init__(task, classes.names, floor, known)
        self.select, self.overlay, self._space = select, overlay, LabelSpace.of(classes.names)

    def judged(self, gold: Source) -> np.ndarray:
        """Returns (I,) bool, in which pictures people looked for a class."""
        if gold.annotations is None or gold.grade != Grade.GOLD:
            return np.zeros(len(gold), dtype=bool)
        coverage = np.broadcast_to(gold.coverage, (len(gold), len(gold.classes)))
        return np.asarray(coverage.any(axis=1))

    def refuse(self, chosen: Source, gold: Source) -> None:
        """Raises InputError where a package is missing, and where no picture has a box."""
        if self.select.needs_probability():
            require_package(self.select.calibration.method)
        assert chosen.annotations is not None
        if not (chosen.annotations.ignore == Ignore.NO).any():
            raise InputError(
                f"online.audit: {len(chosen)} of {len(gold)} pictures of source '{gold.name}' are looked at, "
                "and none of them has a box; raise online.audit_pictures, or set online.audit_every: null"
            )

    def record(self, found: Labels, picture: Mapping[str, Any]) -> Record:
        """Returns the boxes."""
        assert isinstance(found, BoxLabels)
        return Record(
            boxes=found.boxes.numpy(),
            classes=found.classes.numpy().astype(np.int32),
            scores=found.scores.numpy(),
            **picture,
        )

    def audit(self, store: Store, gold: Source) -> Audit:
        """Returns the boxes against gold's."""
        return audit(store, gold, self._space, self.select.nms)

    def choice(self, audit: Audit | None) -> BoxChoice:
        """Returns what makes labels of boxes."""
        return BoxChoice.of(self.select, self._space, audit, self.floor, self.known)

    def onto(self, known: Labels | None, found: Labels) -> Labels:
        """Returns the model's boxes laid under those that people drew."""
        if known is None:
            return found
        assert isinstance(known, BoxLabels) and isinstance(found, BoxLabels)
        return overlay_boxes(known, found, self.overlay)
