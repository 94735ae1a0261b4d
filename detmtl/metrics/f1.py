"""F1 of boxes at one score and one IoU, for all pictures at once.

Letters: G boxes of truth, D detections, P pairs of a detection and a box of truth of its picture and
category, C categories.
"""

from collections.abc import Sequence

import numpy as np

from detmtl.metrics.box_arrays import Boxes


def f1(
    truth: Boxes,
    detections: Boxes,
    categories: Sequence[int],
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> float:
    """Returns the mean over categories with truth of F1 = 2 TP / (2 TP + FP + FN), or NaN.

    Pictures are told by their positions, or by other ids that 64 bits hold times the number of categories.
    Detections of at least `score_threshold` take, best first, the box of truth of their category with
    the highest IoU that is free; on a crowd box they do not count.
    """
    ids = np.unique(np.asarray(categories, dtype=np.int64))
    kept = np.flatnonzero(detections.scores >= score_threshold)
    kept = kept[np.argsort(-detections.scores[kept], kind="stable")]
    found, order = _grouped(detections, kept, ids)
    kept = kept[order]
    of_truth, rows = _grouped(truth, np.arange(len(truth.images)), ids)
    right, wrong = _judged(
        detections.boxes_xywh[kept],
        found,
        truth.boxes_xywh[rows],
        of_truth,
        truth.crowd[rows],
        iou_threshold,
    )
    num, of_found = len(ids), found % len(ids)
    tp = np.bincount(of_found[right], minlength=num)
    fp = np.bincount(of_found[wrong], minlength=num)
    wanted = np.bincount((of_truth % num)[~truth.crowd[rows]], minlength=num)
    there = wanted > 0
    values = 2 * tp[there] / (tp + fp + wanted)[there]
    return float(np.mean(values)) if there.any() else float("nan")


def _grouped(boxes: Boxes, rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of picture and category of `rows`, rising, and the order that makes them so;
    a number's rest by the number of categories is the category's position in `ids`."""
    keys = boxes.images[rows] * len(ids) + np.searchsorted(ids, boxes.categories[rows])
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _judged(
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
