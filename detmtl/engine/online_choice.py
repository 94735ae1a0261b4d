"""What a teacher's boxes of one picture become, without a store between.

Letters: C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.silver.audit import Audit
from detmtl.silver.ensemble import row_type
from detmtl.silver.mapping import suppress
from detmtl.silver.policy import Policy, SelectionSettings, unresolvable
from detmtl.silver.selection import choose, labels_of
from detmtl.structures.classes import LabelSpace
from detmtl.structures.labels import BoxLabels, Labels


@dataclass(frozen=True)
class _Teacher:
    """As much of a store as a policy asks for.

    Attributes:
        floor: lowest score of the model's boxes.
        path: what errors call it.
    """

    floor: float
    path: Path = Path("the online teacher")


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
            InputError: as `Policy.of`.
            TooLittleEvidence: the audit does not tell what scores are worth.
        """
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


def boxes_of(found: Mapping[str, Sequence[Labels]]) -> list[BoxLabels]:
    """Returns the boxes of each picture among predictions, by task, that the online teacher gives: those of
    the first task that finds any."""
    return next(
        list(of)  # pyright: ignore[reportReturnType]
        for of in found.values()
        if isinstance(of[0], BoxLabels)
    )
