"""What a teacher's boxes of one picture become, without a store between.

Letters: C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detmtl.silver.audit import Audit
from detmtl.silver.mapping import ClassMap
from detmtl.silver.record import Record
from detmtl.silver.selection import AtPrecision, SelectionSettings, _chosen
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore


@dataclass(frozen=True, eq=False)
class Choice:
    """Which of a teacher's boxes become labels, resolved.

    Attributes:
        settings: the policy.
        limits: (C,) float32, score from which on a box is a label; infinity: none is.
        coverage: (C,) float32.
    """

    settings: SelectionSettings
    limits: np.ndarray
    coverage: Tensor

    @classmethod
    def of(
        cls, settings: SelectionSettings, classes: LabelSpace, audit: Audit | None, floor: float
    ) -> "Choice":
        """Resolves thresholds and coverage as the selection of a store does.

        Args:
            settings: the policy.
            classes: the model's.
            audit: of the teacher; None: thresholds are scores, and coverage is given or 1.
            floor: lowest score that the model's boxes have.

        Raises:
            InputError: a precision without an audit, an unknown class, a score below the floor.
        """
        problems = [
            f"online.select.per_class: '{name}' is no class; they are {', '.join(classes.names)}"
            for name in settings.per_class
            if name not in classes.names
        ]
        if settings.needs_audit() and audit is None:
            problems.append(
                "online: a threshold is given as a precision, which only an audit can turn into a score; "
                "set online.audit_every, or give a score"
            )
        scores = (settings.threshold, settings.ignore_from, *settings.per_class.values())
        problems += [
            f"online.select: the score {score} is below {floor}, the lowest that the model gives; set "
            "test.score_threshold of its task at most as high"
            for score in scores
            if isinstance(score, float) and score < floor
        ]
        if problems:
            raise InputError(problems)
        thresholds = {}
        for name in classes.names:
            wanted = settings.per_class.get(name, settings.threshold)
            if isinstance(wanted, AtPrecision):
                assert audit is not None
                wanted = audit.threshold_for(wanted.precision)[name]
            thresholds[name] = float(wanted)
        recall = dict.fromkeys(classes.names, 1.0)
        if settings.coverage is not None:
            recall = dict.fromkeys(classes.names, settings.coverage)
        elif audit is not None:  # boxes of the ignore band take their negative loss away
            band = float("inf") if settings.ignore_from is None else settings.ignore_from
            recall = audit.recall_at({name: min(t, band) for name, t in thresholds.items()})
        return cls(
            settings,
            np.array(list(thresholds.values()), dtype=np.float32),
            torch.tensor(list(recall.values()), dtype=torch.float32),
        )

    def __call__(self, found: BoxLabels) -> BoxLabels:
        """Returns the labels that are made of a teacher's boxes of one picture, best first."""
        num_classes = len(self.limits)
        record = Record(
            content_hash="",
            height=0,
            width=0,
            boxes=found.boxes.numpy(),
            classes=found.classes.numpy().astype(np.int32),
            scores=found.scores.numpy(),
        )
        same = ClassMap(np.arange(num_classes), np.ones(num_classes, dtype=bool), self.settings.nms)
        rows = _chosen(same(record), self.limits, self.settings)
        scores, ignore = _column(rows, "score"), _column(rows, "ignore")
        hard = (ignore == Ignore.NO) & (not self.settings.soft_targets)
        weights = torch.tensor([self.settings.class_weight, self.settings.box_weight])
        return BoxLabels.of(
            _column(rows, "box"),
            _column(rows, "class"),
            num_classes,
            scores=torch.where(hard, torch.ones_like(scores), scores),
            weights=weights.expand(len(rows), 2),
            ignore=ignore,
            grade=Grade.SILVER,
            coverage=self.coverage,
        )


def _column(rows: np.ndarray, name: str) -> Tensor:
    return torch.from_numpy(rows[name].copy())  # a copy: columns lie in each other's way
