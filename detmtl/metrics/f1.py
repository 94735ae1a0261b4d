"""F1 of boxes at one IoU, for all pictures at once: at a score, and at the score where it is best.

Letters: G boxes of truth, D detections, P pairs of a detection and a box of truth of its picture and
category, C categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detmtl.metrics.box_arrays import Boxes


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections that are right or wrong, whatever score they shall have: each takes, best first, the box of
    truth of its picture and category with the highest IoU that is free. So those of a higher score are
    judged as if there were no others.

    Attributes:
        categories: (D,) positions among the C categories; detections on a crowd are not there.
        scores: (D,).
        right: (D,) bool.
        wanted: (C,) boxes of truth.
    """

    categories: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    wanted: np.ndarray

    def f1(self, score: float) -> float:
        """Returns the mean over categories with truth of F1 = 2 TP / (2 TP + FP + FN), detections of at
        least that score counted; NaN without truth."""
        kept, there = self.scores >= score, self.wanted > 0
        tp = np.bincount(self.categories[kept & self.right], minlength=len(there))
        found = np.bincount(self.categories[kept], minlength=len(there))
        values = 2 * tp[there] / (found + self.wanted)[there]
        return float(np.mean(values)) if there.any() else float("nan")

    def best(self) -> list[tuple[float, float]]:
        """Returns of each category the highest F1 that detections from some score on have, and that score,
        the highest of several; NaN without truth, and a score of NaN where no detection is right."""
        order = np.lexsort((-self.scores, self.categories))
        counts = np.bincount(self.categories, minlength=len(self.wanted))
        found, end = [], 0
        for count, wanted in zip(counts.tolist(), self.wanted.tolist(), strict=True):
            own = order[end : end + count]
            end += count
            scores, tp = self.scores[own], np.cumsum(self.right[own])
            # detections of one score come or go together
            last = np.append(scores[1:] < scores[:-1], True)[: len(own)]
            values = np.where(last, 2 * tp / np.maximum(1, np.arange(1, len(own) + 1) + wanted), 0)
            if not wanted or not values.any():
                found.append((0.0 if wanted else float("nan"), float("nan")))
            else:
                at = int(values.argmax())
                found.append((float(values[at]), float(scores[at])))
        return found


def judged(
    truth: Boxes, detections: Boxes, categories: Sequence[int], iou_threshold: float = 0.5
) -> Judged:
    """Judges detections.

    Pictures are told by their positions, or by other ids that 64 bits hold times the number of categories.
    """
    ids = np.unique(np.asarray(categories, dtype=np.int64))
    by_score = np.argsort(-detections.scores, kind="stable")
    found, order = _grouped(detections, by_score, ids)
    rows_found = by_score[order]
    of_truth, rows = _grouped(truth, np.arange(len(truth.images)), ids)
    right, wrong = _right_and_wrong(
        detections.boxes_xywh[rows_found],
        found,
        truth.boxes_xywh[rows],
        of_truth,
        truth.crowd[rows],
        iou_threshold,
    )
    counted = right | wrong
    return Judged(
        (found % len(ids))[counted] if len(ids) else found[counted],
        detections.scores[rows_found][counted],
        right[counted],
        np.bincount((of_truth % max(1, len(ids)))[~truth.crowd[rows]], minlength=len(ids)),
    )


def _grouped(boxes: Boxes, rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of picture and category of `rows`, rising, and the order that makes them so;
    a number's rest by the number of categories is the category's position in `ids`."""
    keys = boxes.images[rows] * len(ids) + np.searchsorted(ids, boxes.categories[rows])
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _right_and_wrong(
    found: np.ndarray,
    of_found: np.ndarray,
    true: np.ndarray,
    of_true: np.ndarray,
    crowd: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which detections are right and which wrong, each (D,) bool.

    The best detections of all groups choose at once, then the second ones, and so on.

    Args:
        found: (D, 4) xywh, by group, best first.
        of_found: (D,) rising group numbers.
        true: (G, 4) xywh, by group.
        of_true: (G,) rising group numbers.
        crowd: (G,) bool.
        threshold: least IoU.
    """
    first, last = (np.searchsorted(of_true, of_found, side) for side in ("left", "right"))
    right, counts = np.zeros(len(found), dtype=bool), last - first
    wrong = counts == 0
    rank = np.arange(len(found)) - np.searchsorted(of_found, of_found)
    free = ~crowd
    for place in range(int(rank.max(initial=-1)) + 1):
        mine = np.flatnonzero((rank == place) & (counts > 0))
        if not len(mine):
            continue
        starts = np.cumsum(counts[mine]) - counts[mine]
        which = np.repeat(np.arange(len(mine)), counts[mine])
        other = np.arange(len(which)) - starts[which] + first[mine][which]
        ious = _iou(found[mine[which]], true[other], crowd[other])
        open_ious = np.where(free[other], ious, -1)
        best = np.maximum.reduceat(open_ious, starts)
        at = np.where(open_ious == best[which], other, len(true))  # of equal ones the first
        at = np.minimum.reduceat(at, starts)
        hit = best >= threshold
        free[at[hit]] = False
        right[mine] = hit
        uncounted = np.logical_or.reduceat(crowd[other] & (ious >= threshold), starts)
        wrong[mine] = ~hit & ~uncounted
    return right, wrong


def _iou(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Returns the IoU (P,) of pairs of boxes (P, 4) xywh; with a crowd, the share of the detection."""
    low = np.maximum(found[:, :2], true[:, :2])
    high = np.minimum(found[:, :2] + found[:, 2:], true[:, :2] + true[:, 2:])
    sides = np.clip(high - low, 0, None)
    inter = sides[:, 0] * sides[:, 1]
    area = found[:, 2] * found[:, 3]
    union = np.where(crowd, area, area + true[:, 2] * true[:, 3] - inter)
    return inter / np.maximum(union, 1e-12)
