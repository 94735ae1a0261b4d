"""A teacher's boxes in the classes of the label space.

Letters: N boxes of one picture.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torchvision.ops import nms

from detmtl.silver.card import TeacherCard
from detmtl.silver.record import Record
from detmtl.structures.classes import LabelSpace


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Which class of the label space each class of a teacher means.

    Attributes:
        target: (T,) int64, the class, -1 where the teacher's class is dropped.
        known: (C,) bool, which classes the teacher looks for at all.
        overlap: IoU in (0, 1] above which the worse of two boxes of one class goes; None: all stay.
    """

    target: np.ndarray
    known: np.ndarray
    overlap: float | None

    @classmethod
    def of(cls, card: TeacherCard, classes: LabelSpace, overlap: float | None) -> "ClassMap":
        """Builds the map of a teacher.

        Raises:
            InputError: a class of the teacher is unmapped and the label space drops none, or no class is
                mapped.
        """
        where = f"teacher '{card.name}'"
        target = np.asarray(classes.class_of(card.classes, where), dtype=np.int64)
        target[np.isin(card.classes, card.unsearched)] = -1
        return cls(target, np.asarray(classes.known(card.searched), dtype=bool), overlap)

    def abstaining(self) -> "ClassMap":
        """Returns the map of a teacher that has no say: it looks for no class, and its boxes are dropped."""
        return replace(self, target=np.full_like(self.target, -1), known=np.zeros_like(self.known))

    def __call__(self, record: Record) -> Record:
        """Returns the record in the label space's classes, by falling score.

        Several classes of the teacher may mean one class here and then box one object twice: such
        duplicates go.
        """
        classes = self.target[record.classes]
        rows = np.flatnonzero(classes >= 0)
        rows = rows[np.argsort(-record.scores[rows], kind="stable")]
        boxes, scores, classes = record.boxes[rows], record.scores[rows], classes[rows]
        if self.overlap is not None:
            keep = suppress(boxes, scores, classes, self.overlap)
            boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        return replace(record, boxes=boxes, scores=scores, classes=classes.astype(np.int32))


def suppress(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, overlap: float
) -> np.ndarray:
    """Returns the rows (K,) int64, by falling score, that no better box of their class overlaps.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        classes: (N,) int.
        overlap: IoU above which a box goes.
    """
    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    exact = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float64))
    # Classes are laid out side by side so that none meets another; doubles lose no pixel over it.
    shift = (exact.max() - exact.min() + 1) * torch.from_numpy(classes.astype(np.float64))
    order = np.argsort(-scores, kind="stable")
    falling = torch.arange(len(boxes), 0, -1, dtype=torch.float64)  # ties keep their order
    kept = nms((exact + shift[:, None])[torch.from_numpy(order)], falling, overlap)
    return order[kept.numpy()]
