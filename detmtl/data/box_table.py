"""The boxes of several pictures as rows of one table, which steps of augmentation change, and back.

A step that mirrors the picture into its margin copies boxes: a row may come several times.
One table, since arithmetic on a picture's few boxes takes less time than the call that asks for it.
Letters: N boxes of all pictures, n boxes of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from detmtl.structures.labels import BoxLabels, Ignore

ROW, VISIBLE = 4, 5
"""Columns behind the four corners: which of the N boxes it is, and how much of it is still to be seen."""

ROUNDING = 1e-3
"""Pixels by which a side may come out too short through arithmetic on shares of the picture."""

Known = Mapping[str, BoxLabels]
"""The boxes of a picture, of each task that has some."""


def rows_of(pictures: Sequence[Known], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Returns each picture's boxes (n, 6) float64: corners in [0, 1], which of all N, visible share 1.

    Args:
        pictures: labels.
        sizes: height and width in whose pixels they are.
    """
    counts = [sum(map(len, known.values())) for known in pictures]
    table = np.ones((sum(counts), VISIBLE + 1))
    corners = [np.zeros((0, 4)), *(x.boxes.numpy() for known in pictures for x in known.values())]
    table[:, :4] = np.concatenate(corners) * np.repeat(_across(1 / np.array(sizes)), counts, axis=0)
    table[:, :4] = np.minimum(np.maximum(table[:, :4], 0), 1)
    table[:, ROW] = np.arange(len(table))
    return [table[first:last] for first, last in pairwise(_starts(counts))]


def clipped(data: np.ndarray, shape: Any) -> np.ndarray:
    """Returns boxes clipped at the picture's edges, with how much of each is left multiplied up.

    Runs after every step, in place of albumentations' own filter, which looks at one step's loss alone
    and, once no box is left, gives an array without the extra columns.
    """
    if not data.size:
        return np.zeros((0, VISIBLE + 1))
    data = data.astype(np.float64)
    whole = (data[:, 2] - data[:, 0]) * (data[:, 3] - data[:, 1])
    corners = data[:, :4]
    if corners.min() >= 0 and corners.max() <= 1 and whole.min() > 0:
        return data  # nothing of any box is outside
    corners[:] = corners.clip(0, 1)
    left = (data[:, 2] - data[:, 0]) * (data[:, 3] - data[:, 1])
    data, whole, left = data[left > 0], whole[left > 0], left[left > 0]
    data[:, VISIBLE] *= left / whole
    return data


def labels_of(
    rows: Sequence[np.ndarray],
    pictures: Sequence[Known],
    sizes: Sequence[tuple[int, int]],
    min_visibility: float,
    min_side: float,
) -> list[dict[str, BoxLabels]]:
    """Returns each picture's labels at the boxes that are left; see `Augment`.

    Args:
        rows: from `rows_of`, changed by steps.
        pictures: labels as `rows_of` had them.
        sizes: height and width of each picture now.
        min_visibility: share in [0, 1] below which an ordinary box becomes a region.
        min_side: pixels below which a box is left out.
    """
    table = np.concatenate(rows)
    table = table[np.argsort(table[:, ROW], kind="stable")]  # within pictures: they stay neighbors
    scales = np.repeat(_across(np.array(sizes)), [len(x) for x in rows], axis=0)
    corners = (table[:, :4] * scales).astype(np.float32)
    side = (corners[:, 2:] - corners[:, :2]).min(axis=1)
    keep = (side > 0) & (side >= min_side - ROUNDING)
    index = table[keep, ROW].round().astype(np.int64)
    hidden, corners = table[keep, VISIBLE] < min_visibility, corners[keep]
    starts = _starts([len(x) for known in pictures for x in known.values()])
    places = np.searchsorted(index, starts).tolist()
    mine = zip(starts, pairwise(places), strict=False)
    once = bool((index[1:] > index[:-1]).all())  # no step has copied a box

    def left(known: BoxLabels) -> BoxLabels:
        first, (a, b) = next(mine)
        # mostly all are there, in order: nothing is to be gathered
        whole = once and b - a == len(known)
        kept = known if whole else known[torch.from_numpy(index[a:b] - first)]
        ignore = kept.ignore
        if hidden[a:b].any():
            fragment = torch.from_numpy(hidden[a:b]) & (ignore == Ignore.NO)
            ignore = ignore.masked_fill(fragment, int(Ignore.REGION))
        return replace(kept, boxes=torch.from_numpy(corners[a:b]), ignore=ignore)

    return [{name: left(x) for name, x in known.items()} for known in pictures]


def _across(sizes: np.ndarray) -> np.ndarray:
    """Returns heights and widths (..., 2) as what goes with the corners x, y, x, y (..., 4)."""
    return sizes[..., [1, 0, 1, 0]]


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]
