"""What a teacher's boxes of one picture become, without a store between.

Letters: C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.silver.audit import Audit
from detmtl.silver.ensemble import row_type
from detmtl.silver.mapping import suppress
from detmtl.silver.policy import Policy, SelectionSettings
from detmtl.silver.selection import choose, labels_of
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels


@dataclass(frozen=True)
class _Teacher:
    """As much of a store as a policy asks for.

    Attributes:
        floor: lowest score of the model's boxes.
        path: what errors call it.
    """

    floor: float
    path: Path = Path("the online teacher")


@dataclass(frozen=True, eq=False)
class Choice:
    """A selection's policy, resolved for the model as it is now.

    Attributes:
        policy: limits, calibration, coverage.
    """

    policy: Policy

    @classmethod
    def of(
        cls, settings: SelectionSettings, classes: LabelSpace, audit: Audit | None, floor: float
    ) -> "Choice":
        """Resolves settings as the selection of a store does.

        Args:
            settings: the policy.
            classes: the model's.
            audit: of the model; None: thresholds are scores, and coverage is given or 1.
            floor: lowest score that the model's boxes have.

        Raises:
            InputError: as `Policy.of`, or a budget of ignored boxes is asked for.
        """
        if settings.ignore_budget is not None:
            raise InputError(
                "online.select.ignore_budget: is counted over all pictures of a store, and pictures that "
                "are labelled as they come are never all there; leave it out and raise ignore_from"
            )
        known = np.ones(len(classes), dtype=bool)
        return cls(Policy.of(_Teacher(floor), classes, known, settings, audit))

    def __call__(self, found: BoxLabels) -> BoxLabels | None:
        """Returns the labels that are made of the model's boxes of one picture, best first; None where
        there are too many of them to be believed (`max_density`): nobody looked, then."""
        boxes, scores = found.boxes.numpy(), found.scores.numpy()
        classes, overlap = found.classes.numpy(), self.policy.settings.nms
        order = np.argsort(-scores, kind="stable")
        if overlap is not None:
            order = suppress(boxes, scores, classes, overlap)
        rows = np.zeros(len(order), dtype=row_type(1))
        rows["box"], rows["class"], rows["score"] = boxes[order], classes[order], scores[order]
        rows, ignored, dense = choose(rows, self.policy)
        return None if len(dense) else labels_of(rows, ignored, self.policy)
