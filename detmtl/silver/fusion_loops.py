"""Fusing boxes one after the other, compiled.

What a box does depends on those before it, in every method, so that nothing is gained by numpy's
arrays: numba compiles these loops. Only `detmtl.silver.fusion` imports this module, when it is asked
to fuse, since numba is an optional package.

Letters: N boxes, group by group and within a group by falling score; G groups.
"""

import numba
import numpy as np


@numba.njit(cache=True)
def overlap_of(a, b):  # pragma: no cover
    """Returns the IoU of two boxes (4,) xyxy; 0 where they do not meet."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


# numpy's errors: of two boxes without area the overlap is nan, which is above none
@numba.njit(cache=True, error_model="numpy")
def weighted(boxes, scores, ends, overlap):  # pragma: no cover
    """Returns for each box the first box of its cluster (N,) int64, and (N, 4) in the rows of those
    first boxes the fused box: the mean of the members, weighted by score.

    Args:
        boxes: (N, 4) float64 xyxy.
        scores: (N,) float64 > 0.
        ends: (G,) int64, row after each group's last.
        overlap: IoU with the fused box so far, above which a box joins; it joins where it is highest.
    """
    n = len(boxes)
    first, fused, weight = np.empty(n, np.int64), boxes.copy(), scores.copy()
    clusters = np.empty(n, np.int64)
    # the fused boxes of a group's clusters side by side, and a loop that only computes: the compiler makes
    # vectors of it, which a look at each overlap, or boxes in rows of 4, would not allow
    left, top, right, bottom = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    area, overlaps = np.empty(n), np.empty(n)
    start = 0
    for end in ends:
        count = 0
        for j in range(start, end):
            x1, y1, x2, y2 = boxes[j, 0], boxes[j, 1], boxes[j, 2], boxes[j, 3]
            own = (x2 - x1) * (y2 - y1)
            for c in range(count):
                width = max(min(x2, right[c]) - max(x1, left[c]), 0.0)
                height = max(min(y2, bottom[c]) - max(y1, top[c]), 0.0)
                inter = width * height
                overlaps[c] = inter / (own + area[c] - inter)
            best, most = -1, overlap
            for c in range(count):
                if overlaps[c] > most:
                    best, most = c, overlaps[c]
            if best < 0:
                first[j] = clusters[count] = j
                left[count], top[count], right[count], bottom[count] = x1, y1, x2, y2
                area[count] = own
                count += 1
                continue
            row = first[j] = clusters[best]
            weight[row] += scores[j]
            share = scores[j] / weight[row]
            for side in range(4):
                fused[row, side] += share * (boxes[j, side] - fused[row, side])
            left[best], top[best] = fused[row, 0], fused[row, 1]
            right[best], bottom[best] = fused[row, 2], fused[row, 3]
            area[best] = (right[best] - left[best]) * (bottom[best] - top[best])
        start = end
    return first, fused


@numba.njit(cache=True)
def suppressed(boxes, scores, ends, overlap, sigma):  # pragma: no cover
    """Returns the scores (N,) that are left, and (N,) int64 for each box the one that took it away,
    itself where none did.

    The best box of a group stays, lowers those that it overlaps, and so on with what is left.

    Args:
        boxes, scores, ends: as for `weighted`.
        overlap: IoU above which a box goes; 1 or more: none does.
        sigma: scores fall by exp(-IoU^2 / sigma); 0: they do not.
    """
    left, by = scores.copy(), np.arange(len(boxes))
    done = np.zeros(len(boxes), np.bool_)
    start = 0
    for end in ends:
        for _ in range(start, end):
            best = -1
            for j in range(start, end):
                if not done[j] and (best < 0 or left[j] > left[best]):
                    best = j
            if best < 0:
                break
            done[best] = True
            for j in range(start, end):
                if done[j]:
                    continue
                value = overlap_of(boxes[best], boxes[j])
                if value > overlap:
                    done[j], left[j], by[j] = True, 0.0, best
                elif sigma > 0 and value > 0:
                    left[j] *= np.exp(-value * value / sigma)
        start = end
    return left, by
