"""A teacher's boxes judged by gold, one picture at a time.

Letters: C classes, D boxes of the teacher (of one picture, or of all), G gold boxes likewise.
"""

from enum import IntEnum

import numpy as np
import torch

from detmtl.silver.record import SCORE_DIGITS, Record
from detmtl.structures.boxes import area, intersection, iou
from detmtl.structures.labels import BoxLabels, Ignore

IOU = 0.5
"""From this overlap on a gold box confirms one of the teacher's."""
NEAR = 0.1
"""From this overlap on a refuted box is about an object, and not about the background."""


class Fault(IntEnum):
    """Why gold refutes a box.

    Source: Bolya et al. 2020, TIDE, arXiv 2008.08115, without its kind "class and place wrong",
    which is counted as background.
    """

    NONE = 0
    """Gold confirms it."""
    TWICE = 1
    """An object of its class that a better box has already found."""
    CLASS = 2
    """An object of another class."""
    PLACE = 3
    """An object of its class, overlapped too little (IoU from 0.1 to 0.5)."""
    NOTHING = 4
    """Background."""


SHIFTED = (Fault.NONE, Fault.PLACE)
"""Boxes that mean one gold box, and so lie beside it by some shift."""

JUDGED = np.dtype(
    [
        ("picture", "i4"),  # its position in gold
        ("class", "i4"),
        ("score", "f4"),
        ("fault", "u1"),  # a `Fault`
        ("box", "f4", 4),  # xyxy, pixels
        ("shift", "f4", 4),  # see `shifts`; nan but for `SHIFTED`
    ]
)
"""One of the teacher's boxes that could be judged."""

GOLD = np.dtype(
    [
        ("picture", "i4"),
        ("class", "i4"),
        ("box", "f4", 4),
        ("score", "f4"),  # of the teacher's box that it confirms; -1: missed
        # Class of the teacher's best-scored box on it, of all that somebody looked for there; -1: none
        ("called", "i4"),
    ]
)
"""One gold box that counts."""


class Comparison:
    """Collects what gold says of the teacher's boxes, picture by picture."""

    def __init__(self, num_classes: int):
        self.pictures = 0
        self.searched = np.zeros(num_classes, dtype=np.int64)
        """(C,), in how many of them somebody looked for a class."""
        self._judged: list[np.ndarray] = []
        self._gold: list[np.ndarray] = []

    def add(self, record: Record, gold: BoxLabels, picture: int) -> None:
        """Judges a record in the label space's classes by the gold boxes of picture `picture`."""
        self.pictures += 1
        looked = (gold.coverage > 0).numpy()
        self.searched += looked
        gold = gold[torch.from_numpy(looked)[gold.classes]]
        real = (gold.ignore == Ignore.NO).numpy()
        classes = gold.classes.numpy()
        found = torch.from_numpy(record.boxes)
        overlap = iou(found, gold.boxes).numpy()
        inside = (intersection(found, gold.boxes) / area(found).clamp(min=1e-6)[:, None]).numpy()
        on_crowd = ((inside >= IOU) & ~real & (record.classes[:, None] == classes)).any(axis=1)
        overlap, classes, boxes = overlap[:, real], classes[real], gold.boxes.numpy()[real]
        fault, match = _judge(overlap, record.classes, classes)

        judged = looked[record.classes] & ((fault == Fault.NONE) | ~on_crowd)
        rows = np.zeros(int(judged.sum()), dtype=JUDGED)
        rows["picture"], rows["class"] = picture, record.classes[judged]
        scores = _rounded(record.scores, SCORE_DIGITS)
        rows["score"], rows["fault"] = scores[judged], fault[judged]
        rows["box"] = _rounded(record.boxes[judged], 2)
        rows["shift"] = np.nan
        placed = np.isin(rows["fault"], SHIFTED)
        rows["shift"][placed] = _rounded(
            shifts(record.boxes[judged][placed], boxes[match[judged][placed]]), 4
        )
        self._judged.append(rows)

        own = np.zeros(len(boxes), dtype=GOLD)
        own["picture"], own["class"], own["box"] = picture, classes, _rounded(boxes, 2)
        own["score"], own["called"] = -1, -1
        confirmed = fault == Fault.NONE
        own["score"][match[confirmed]] = scores[confirmed]
        # A box of another class may be right too, where nobody looked for that one.
        on = (overlap >= IOU) & looked[record.classes][:, None]
        if len(on):
            seen = on.any(axis=0)
            own["called"][seen] = record.classes[on.argmax(axis=0)[seen]]  # the first is the best
        self._gold.append(own)

    def judged(self) -> np.ndarray:
        """Returns (D,) of `JUDGED`, by class and falling score."""
        rows = np.concatenate([np.zeros(0, JUDGED), *self._judged])
        # Ties by verdict, so that no result depends on the order of the pictures.
        keys = (rows["picture"], rows["fault"], -rows["score"], rows["class"])
        return rows[np.lexsort(keys)]

    def gold(self) -> np.ndarray:
        """Returns (G,) of `GOLD`, by class and picture."""
        rows = np.concatenate([np.zeros(0, GOLD), *self._gold])
        return rows[np.lexsort((rows["picture"], rows["class"]))]


def shifts(boxes: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Returns (N, 4): how far boxes (N, 4) are from gold ones (N, 4), both xyxy.

    Right and down of the center as shares of gold's width and height; logarithms of the ratios of
    width and height, above 0 where the box is larger than gold's.
    """
    size, wanted = boxes[:, 2:] - boxes[:, :2], np.maximum(gold[:, 2:] - gold[:, :2], 1e-3)
    center = (boxes[:, 2:] + boxes[:, :2] - gold[:, 2:] - gold[:, :2]) / 2
    ratio = np.log(np.maximum(size, 1e-3) / wanted)
    return np.concatenate([center / wanted, ratio], axis=1)


def _judge(
    overlap: np.ndarray, classes: np.ndarray, gold_classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (D,) the `Fault` of each box, and (D,) int64 the gold box that it means, -1 for none.

    Greedy by falling score as pycocotools does it: each box takes the free gold box of its class that
    it overlaps most.

    Args:
        overlap: (D, G), IoU; D by falling score.
        classes: (D,). gold_classes: (G,).
    """
    fault = np.full(len(classes), Fault.NOTHING, dtype=np.uint8)
    match = np.full(len(classes), -1, dtype=np.int64)
    if not len(gold_classes):
        return fault, match
    same = classes[:, None] == gold_classes
    own = np.where(same, overlap, 0)
    best = own.max(axis=1)
    fault[best >= NEAR] = Fault.PLACE
    fault[np.where(same, 0, overlap).max(axis=1) >= IOU] = Fault.CLASS
    fault[best >= IOU] = Fault.TWICE
    match[fault == Fault.PLACE] = own.argmax(axis=1)[fault == Fault.PLACE]
    free = np.ones(len(gold_classes), dtype=bool)
    for d in np.flatnonzero(best >= IOU):  # few: only those that lie on an object of their class
        open_to_it = np.where(free, own[d], 0)
        at = int(open_to_it.argmax())
        if open_to_it[at] >= IOU:
            fault[d], match[d], free[at] = Fault.NONE, at, False
    return fault, match


def _rounded(values: np.ndarray, digits: int) -> np.ndarray:
    """Returns float32 values that are the same after they were written and read."""
    return np.round(values.astype(np.float64), digits).astype(np.float32)
