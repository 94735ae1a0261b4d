"""Two maps of one picture, compared.

Letters: C classes.
"""

import numpy as np

from detmtl.structures.labels import OTHER, UNKNOWN, MapLabels


def confusion(truth: MapLabels, found: MapLabels, unknown_counts: bool = True) -> np.ndarray:
    """Returns (C + 1, C + 1) int64: pixels by true class (rows) and found class (columns).

    The last row and column are `OTHER`. Not counted are pixels whose truth is unknown, and found classes
    on true `OTHER` that nobody looked for there (coverage below 1): they may be right.

    Args:
        truth: of the picture.
        found: of the same picture.
        unknown_counts: whether what `found` leaves unknown counts as `OTHER` or not at all.
    """
    rows, columns = truth.classes.cpu().numpy(), found.classes.cpu().numpy()
    if rows.shape != columns.shape:
        raise ValueError(f"maps of {rows.shape} and {columns.shape} pixels cannot be compared")
    num_classes = len(truth.coverage)
    index = np.arange(256)
    index[OTHER] = index[UNKNOWN] = num_classes
    known = rows != UNKNOWN
    if not unknown_counts:
        known &= columns != UNKNOWN
    codes = index[rows[known]] * (num_classes + 1) + index[columns[known]]
    counts = np.bincount(codes, minlength=(num_classes + 1) ** 2)
    counts = counts.reshape(num_classes + 1, num_classes + 1)
    counts[num_classes, :num_classes] *= (truth.coverage.cpu().numpy() >= 1).astype(np.int64)
    return counts
