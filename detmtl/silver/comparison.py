"""A teacher's boxes judged by gold, one picture at a time.

Letters: C classes, D_c the teacher's boxes of class c, D boxes of one picture, G gold boxes of one.
"""

import numpy as np
import torch

from detmtl.silver.record import Record
from detmtl.structures.boxes import area, intersection, iou
from detmtl.structures.labels import BoxLabels, Ignore

IOU = 0.5
"""From this overlap on a gold box confirms one of the teacher's."""


class Comparison:
    """Collects what gold says of the teacher's boxes, picture by picture.

    Attributes:
        pictures: how many were compared.
        gold_boxes: (C,) int64, gold boxes that count.
        confusion: (C, C) int64, gold boxes by their class and by the class of the teacher's best box.
    """

    def __init__(self, num_classes: int):
        self.pictures = 0
        self.gold_boxes = np.zeros(num_classes, dtype=np.int64)
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._judged: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, record: Record, gold: BoxLabels) -> None:
        """Judges a record in the label space's classes by the picture's gold boxes."""
        self.pictures += 1
        looked = (gold.coverage > 0).numpy()
        gold = gold[torch.from_numpy(looked)[gold.classes]]
        real = (gold.ignore == Ignore.NO).numpy()
        classes = gold.classes.numpy()
        self.gold_boxes += np.bincount(classes[real], minlength=len(looked))
        found = torch.from_numpy(record.boxes)
        overlap = iou(found, gold.boxes).numpy()
        inside = intersection(found, gold.boxes) / area(found).clamp(min=1e-6)[:, None]
        overlap = np.where(real, overlap, inside.numpy())
        verdict = _judge(overlap, record.classes, classes, real)
        judged = (verdict >= 0) & looked[record.classes]
        self._judged.append((record.classes[judged], record.scores[judged], verdict[judged] == 1))
        if len(record.scores) and real.any():
            sure = np.where(record.scores[:, None] >= 0.3, overlap[:, real], 0)
            best, on = sure.argmax(axis=0), sure.max(axis=0) >= IOU
            np.add.at(self.confusion, (classes[real][on], record.classes[best[on]]), 1)

    def judged(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Returns per class the scores (D_c,), falling, of the boxes that were judged, and (D_c,) bool
        which of them gold confirms."""
        of, scores, hits = (np.concatenate(parts) for parts in zip(*self._judged, strict=True))
        # Ties by verdict, so that the result does not depend on the order of the pictures.
        order = np.lexsort((~hits, -scores, of))
        cuts = np.searchsorted(of[order], np.arange(1, len(self.gold_boxes)))
        return tuple(np.split(scores[order], cuts)), tuple(np.split(hits[order], cuts))


def _judge(
    overlap: np.ndarray, classes: np.ndarray, gold_classes: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """Returns (D,) int: 1 confirmed, 0 refuted, -1 not to be judged (on a crowd).

    Greedy by falling score as pycocotools does it: each box takes the free gold box of its class that
    it overlaps most; a crowd is never used up.

    Args:
        overlap: (D, G), IoU, or for crowds intersection over the teacher's box; D by falling score.
        classes: (D,). gold_classes: (G,). real: (G,) bool, no crowd.
    """
    verdict = np.zeros(len(classes), dtype=np.int64)
    if not len(gold_classes):
        return verdict
    free = real.copy()
    overlap = np.where(classes[:, None] == gold_classes, overlap, 0)
    for d, row in enumerate(overlap):
        at = int(np.where(free, row, 0).argmax())
        if free[at] and row[at] >= IOU:
            verdict[d], free[at] = 1, False
        elif np.where(real, 0, row).max() >= IOU:
            verdict[d] = -1
    return verdict
