"""How well tags agree with the truth.

Letters: I pictures, T tags, B reweightings of the pictures, P pictures that are true.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detmtl.metrics.collected import Collected
from detmtl.metrics.per_picture import as_they_are, mean_of_known
from detmtl.structures.labels import TagLabels
from detmtl.structures.sample import ImageInfo

SHOWN = 0.5
"""A tag of at least this probability counts as shown."""
CHUNK = 64
"""Reweightings that are counted together: their sums stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class TagScores:
    """What the numbers of tags are made of; see `PerPicture`.

    Attributes:
        tag_names: (T,).
        scores: (I, T) float32.
        true: (I, T) bool.
        looked: (I, T) bool, whether the truth is known.
    """

    tag_names: np.ndarray
    scores: np.ndarray
    true: np.ndarray
    looked: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def numbers(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the numbers that `TagMetric.compute` tells, each (B,)."""
        weights = weights.astype(float)
        ap = np.full((len(weights), len(self.tag_names)), np.nan)
        for t, looked in enumerate(self.looked.T):
            rows = np.flatnonzero(looked)
            of_tag = self.scores[rows, t], self.true[rows, t]
            ap[:, t] = average_precision(*of_tag, weights[:, rows])
        true, found = self.true & self.looked, (self.scores >= SHOWN) & self.looked
        wanted = weights @ true
        with np.errstate(invalid="ignore"):
            f1 = 2 * (weights @ (true & found)) / (weights @ found + wanted)
        f1[wanted == 0] = np.nan
        of_tags = {f"AP/{name}": ap[:, t] for t, name in enumerate(self.tag_names.tolist())}
        return {"mAP": mean_of_known(ap), "F1@.5": mean_of_known(f1)} | of_tags


class TagMetric(Collected[np.ndarray]):
    """Mean average precision over the tags, and F1 at probability .5.

    A tag counts in a picture where its truth is known (weight above 0); it is true from a target of
    .5 on. Tags that are true nowhere have no average precision and no part in the means.
    """

    def __init__(self, tag_names: Sequence[str]):
        """Takes the T names."""
        super().__init__()
        self.tag_names = tuple(tag_names)

    def counted(self, found: TagLabels, true: TagLabels, info: ImageInfo) -> np.ndarray:
        """Returns (3, T) float32: score, whether it is true, whether the truth is known."""
        scores, targets = found.targets.cpu().numpy(), true.targets.cpu().numpy()
        looked = true.weights.cpu().numpy() > 0
        return np.stack([scores, targets >= SHOWN, looked]).astype(np.float32)

    def per_picture(self) -> TagScores:
        """Returns what was collected, picture by picture in the order of their sources and ids."""
        pictures = self.in_order()
        table = np.array(pictures, dtype=np.float32).reshape(len(pictures), 3, len(self.tag_names))
        names = np.array(self.tag_names, dtype=str)
        return TagScores(names, table[:, 0], table[:, 1] > 0, table[:, 2] > 0)

    def compute(self) -> dict[str, float]:
        """Returns "mAP", "F1@.5" (mean over tags) and "AP/<tag>"; in [0, 1], or NaN."""
        return as_they_are(self.per_picture())


def average_precision(scores: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (B,) the mean, over the pictures that are true, of the precision among all pictures of at
    least the picture's score; NaN where none is true.

    Args:
        scores: (I,).
        true: (I,) bool.
        weights: (B, I) how often each picture counts.
    """
    out = np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    right = np.flatnonzero(true[order])
    if not len(right):
        return out
    # where the pictures of the same score end, among all and among those that are true
    last = np.searchsorted(-scores[order], -scores[order][right], side="right") - 1
    last_right = np.searchsorted(right, last, side="right") - 1
    for first in range(0, len(weights), CHUNK):
        part = weights[first : first + CHUNK][:, order]
        seen, mine = np.cumsum(part, axis=1)[:, last], part[:, right]
        hits = np.cumsum(mine, axis=1)
        precision = hits[:, last_right] / np.maximum(seen, np.finfo(float).tiny)
        with np.errstate(invalid="ignore"):
            out[first : first + CHUNK] = (mine * precision).sum(axis=1) / hits[:, -1]
    return out
