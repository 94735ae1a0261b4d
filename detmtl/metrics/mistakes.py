"""What costs a detector its AP: how many mistakes it makes of each kind, what AP50 would gain without them.

Letters: D detections and G boxes of truth of one picture, C classes.

Source: Bolya et al. 2020 (TIDE), arXiv 2008.08115, sections 2.2 and 2.3. The figures are those of its
authors' program, tidecv, but for detections on crowds, which are no mistakes here; for a class all of whose
boxes are missed, which would have an AP of 1 if they were not; and for the 100 best detections, which are
those of a picture and class, as COCO counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from detmtl.metrics.box_arrays import Boxes
from detmtl.metrics.matches import MOST, RIGHT, THRESHOLDS, WRONG, precision_of_class
from detmtl.metrics.per_picture import mean_of_known

KINDS = {
    "place": "right class, IoU of .1 to .5",
    "class": "right place, another class",
    "both": "another class, IoU of .1 to .5",
    "double": "a box that a better detection found",
    "background": "nothing there, IoU below .1",
    "missed": "a box of truth that no detection is about",
}
"""Kind of mistake -> what it is, told of a detection, and the last of a box of truth."""

FOREGROUND, BACKGROUND = float(THRESHOLDS[0]), 0.1
"""IoU from which on a detection is right, and up to which there is nothing."""


@dataclass(frozen=True)
class Mistakes:
    """What was counted.

    Attributes:
        counts: kind -> how many.
        lost: kind -> by how much AP50 would rise if all of this kind were put right and no others: a wrong
            place or class corrected, unless a better detection is about the same box; any other detection,
            and a missed box, left out. NaN where there is no truth.
    """

    counts: dict[str, int]
    lost: dict[str, float]


def mistakes(truth: Boxes, detections: Boxes, num_classes: int) -> Mistakes:
    """Returns the mistakes of detections.

    Args:
        truth, detections: their images are positions, their categories 0..C-1.
        num_classes: C.
    """
    wanted = np.bincount(truth.categories[~truth.crowd], minlength=num_classes)
    missed = np.zeros(num_classes, dtype=np.int64)
    rows, kinds, corrected = [], [], []
    for of_picture, of_truth in _pictures(truth, detections):
        found = _judged(truth[of_truth], detections[of_picture])
        rows.append(of_picture[found.counted])
        kinds.append(found.kinds[found.counted])
        corrected.append(found.corrected[found.counted])
        np.add.at(missed, truth.categories[of_truth[found.missed]], 1)
    row, kind, other = (
        np.concatenate([np.zeros(0, dtype=np.int64), *parts]) for parts in (rows, kinds, corrected)
    )
    table = _Table(detections.categories[row], detections.scores[row], detections.images[row])
    right = kind == _RIGHT
    before = table.ap50(table.classes, right, wanted, wanted)
    counts, lost = {}, {}
    for number, name in enumerate(KINDS):
        mine = kind == number
        counts[name] = int(missed.sum() if name == "missed" else mine.sum())
        if name == "missed":
            after = table.ap50(table.classes, right, wanted - missed, wanted)
        else:
            mended = mine & (other >= 0)
            classes = np.where(mended, other, table.classes)
            kept = ~mine | mended
            after = table.ap50(classes, right | mended, wanted, wanted, kept)
        lost[name] = after - before
    return Mistakes(counts, lost)


_RIGHT = len(KINDS)
"""Of a detection: no kind of mistake."""
_PLACE, _CLASS, _BOTH, _DOUBLE, _BACKGROUND = range(len(KINDS) - 1)


@dataclass(frozen=True, eq=False)
class _Judged:
    """What is said of one picture.

    Attributes:
        kinds: (D,) a position in `KINDS`, or `_RIGHT`.
        corrected: (D,) the class that it would have if it were put right, as a right detection; -1: it would
            be left out.
        counted: (D,) bool; the others lie on a crowd.
        missed: (G,) bool.
    """

    kinds: np.ndarray
    corrected: np.ndarray
    counted: np.ndarray
    missed: np.ndarray


def _judged(truth: Boxes, found: Boxes) -> _Judged:
    """Returns what truth says of a picture's detections, which come by falling score."""
    solid = ~truth.crowd
    overlaps = _ious(found, truth, crowd=False) * solid
    same = found.categories[:, None] == truth.categories
    own, others = overlaps * same, overlaps * ~same
    owner = _matched(own)
    right = owner >= 0
    used = np.zeros(len(solid), dtype=bool)
    used[owner[right]] = True
    on_crowd = (_ious(found, truth, crowd=True) * (same & truth.crowd) >= FOREGROUND).any(1)
    if not len(solid):
        none = np.full(len(right), -1)
        return _Judged(np.full(len(right), _BACKGROUND), none, ~on_crowd, solid)
    nearest, most = own.argmax(1), own.max(1)
    place = (most >= BACKGROUND) & (most <= FOREGROUND)
    kinds = np.select(
        [
            right,
            place,
            others.max(1) >= FOREGROUND,
            (own * used).max(1) >= FOREGROUND,
            overlaps.max(1) <= BACKGROUND,
        ],
        [_RIGHT, _PLACE, _CLASS, _DOUBLE, _BACKGROUND],
        _BOTH,
    )
    counted = right | ~on_crowd
    about = np.where(kinds == _PLACE, nearest, others.argmax(1))
    mendable = counted & ((kinds == _PLACE) | (kinds == _CLASS)) & ~used[about]
    at = np.flatnonzero(mendable)
    boxes, first = np.unique(about[at], return_index=True)  # the best detection about each box
    corrected = np.full(len(right), -1)
    corrected[at[first]] = truth.categories[boxes]
    missed = solid & ~used
    missed[boxes] = False
    return _Judged(kinds, corrected, counted, missed)


def _matched(own: np.ndarray) -> np.ndarray:
    """Returns for each detection (D,), best first, the box of truth of its class that it takes, the free one
    that it overlaps most, of equal ones the last; -1: none. `own`: (D, G) IoU, 0 of other classes."""
    owner = np.full(len(own), -1)
    free = np.ones(own.shape[1])
    for d in np.flatnonzero((own >= FOREGROUND).any(1)):
        able = own[d] * free
        best = len(able) - 1 - int(able[::-1].argmax())
        if able[best] >= FOREGROUND:
            owner[d], free[best] = best, 0
    return owner


def _ious(found: Boxes, truth: Boxes, crowd: bool) -> np.ndarray:
    """Returns (D, G) overlaps: of a `crowd` the share of the detection that lies in it."""
    shape = (len(found.scores), len(truth.scores))
    if 0 in shape:
        return np.zeros(shape)
    flags = np.full(shape[1], int(crowd), dtype=np.uint8)
    return np.asarray(coco_mask.iou(found.boxes_xywh, truth.boxes_xywh, flags))


def _pictures(truth: Boxes, detections: Boxes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each picture the rows of its detections, by falling score and of a class `MOST` at most, and
    of its truth."""
    falling = np.lexsort((-detections.scores, detections.images))
    true = np.argsort(truth.images, kind="stable")
    images = np.union1d(detections.images, truth.images)
    starts = np.searchsorted(detections.images[falling], images)
    ends = np.searchsorted(detections.images[falling], images, side="right")
    first = np.searchsorted(truth.images[true], images)
    last = np.searchsorted(truth.images[true], images, side="right")
    for a, b, c, d in zip(starts, ends, first, last, strict=True):
        rows = falling[a:b]
        classes = detections.categories[rows]
        order = np.argsort(classes, kind="stable")
        begin = np.searchsorted(classes[order], classes[order])
        rank = np.empty(len(rows), dtype=np.int64)
        rank[order] = np.arange(len(rows)) - begin
        yield rows[rank < MOST], true[c:d]


@dataclass(frozen=True, eq=False)
class _Table:
    """Detections of all pictures, (D,) each."""

    classes: np.ndarray
    scores: np.ndarray
    images: np.ndarray

    def ap50(
        self,
        classes: np.ndarray,
        right: np.ndarray,
        wanted: np.ndarray,
        had: np.ndarray,
        kept: np.ndarray | None = None,
    ) -> float:
        """Returns the mean AP over the classes that have truth.

        Args:
            classes: (D,) of the detections, as they are or put right.
            right: (D,) bool.
            wanted: (C,) boxes of truth that are to be found.
            had: (C,) as they were: a class that had some and has none left has an AP of 1.
            kept: (D,) bool; the others are left out.
        """
        rows = np.arange(len(classes)) if kept is None else np.flatnonzero(kept)
        order = rows[np.lexsort((self.images[rows], -self.scores[rows], classes[rows]))]
        starts = np.searchsorted(classes[order], np.arange(len(wanted) + 1))
        values = np.full(len(wanted), np.nan)
        for c in np.flatnonzero(had):
            outcomes = np.where(right[order[starts[c] : starts[c + 1]]], RIGHT, WRONG)[None]
            ones = np.ones((1, outcomes.shape[1]))
            values[c] = precision_of_class(ones, outcomes, wanted[c : c + 1].astype(float))[0, 0]
            if not wanted[c]:
                values[c] = 1.0
        return float(mean_of_known(values[None])[0])
