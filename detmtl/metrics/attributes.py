"""How often attributes of boxes are told right.

Letters: N boxes found, G boxes of truth, A attributes, I pictures, B reweightings of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detmtl.metrics.collected import TwoSided
from detmtl.metrics.per_picture import as_they_are, mean_of_known
from detmtl.structures.boxes import iou
from detmtl.structures.details import value_groups
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import ImageInfo

_MATCHING = 0.5
"""Least IoU of a box found with the box of truth that it stands for."""


@dataclass(frozen=True, eq=False)
class AttributeCounts:
    """What the numbers of attributes are made of; see `PerPicture`.

    Attributes:
        attributes: (A,) names.
        found, on_truth: (I, A + 1, 2) int64, right and counted: of each attribute, and of boxes that
            were found.
    """

    attributes: np.ndarray
    found: np.ndarray
    on_truth: np.ndarray

    def __len__(self) -> int:
        return len(self.found)

    def numbers(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the numbers that `AttributeMetric.compute` tells, each (B,)."""
        found, on_truth = (self._shares(c, weights) for c in (self.found, self.on_truth))
        boxes = found.pop("found")
        del on_truth["found"]
        return {**found, "found": boxes, **{f"on_truth/{n}": v for n, v in on_truth.items()}}

    def _shares(self, counts: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        right, counted = np.moveaxis(np.tensordot(weights.astype(float), counts, 1), 2, 0)
        with np.errstate(invalid="ignore"):
            shares = right / counted
        named = {f"accuracy/{a}": shares[:, n] for n, a in enumerate(self.attributes.tolist())}
        return {"accuracy": mean_of_known(shares[:, :-1]), **named, "found": shares[:, -1]}


class AttributeMetric(TwoSided[np.ndarray, np.ndarray]):
    """The accuracy of each attribute, of boxes found and of the right boxes.

    Names: `accuracy`, the mean over attributes, and `accuracy/<attribute>`, over the boxes of truth that
    were found; `found`, their share; `on_truth/accuracy` and `on_truth/accuracy/<attribute>`, where the
    task looked at the boxes of truth themselves. All of them always there, NaN where nothing counts.

    Boxes found take, best first, the free box of truth with the highest IoU, of at least .5, of
    whatever class: what is asked is what the object looks like. Values that nobody knows, and boxes
    to be ignored, do not count.
    """

    def __init__(self, names: Sequence[str]):
        """Takes the names of all values, as `attribute/value`."""
        super().__init__()
        self.attributes = list(value_groups(names))

    def counted(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> np.ndarray:
        """Returns (A + 1, 2) int64, see `AttributeCounts`."""
        return self._counts(found, true, matched(found, true))

    def described(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> np.ndarray:
        """Returns (A + 1, 2) int64, see `AttributeCounts`."""
        return self._counts(found, true, np.arange(len(true)))

    def _counts(self, found: BoxLabels, true: BoxLabels, rows: np.ndarray) -> np.ndarray:
        """Returns (A + 1, 2) right and counted: of each attribute, and of boxes that were found.

        Args:
            rows: (G,) row of `found` for each box of truth; -1: none.
        """
        out = np.zeros((len(self.attributes) + 1, 2), dtype=np.int64)
        if true.details is None or true.details.attributes is None:
            return out
        wanted = true.details.attributes.cpu().numpy()
        asked = (true.ignore.cpu().numpy() == Ignore.NO) & (wanted >= 0).any(axis=1)
        out[-1] = (asked & (rows >= 0)).sum(), asked.sum()
        if found.details is None or found.details.attributes is None:
            return out
        told = found.details.attributes.cpu().numpy()
        counted = (wanted >= 0) & (asked & (rows >= 0))[:, None]
        right = np.zeros_like(counted)
        right[rows >= 0] = told[rows[rows >= 0]] == wanted[rows >= 0]
        out[:-1, 0] = (right & counted).sum(axis=0)
        out[:-1, 1] = counted.sum(axis=0)
        return out

    def per_picture(self) -> AttributeCounts:
        """Returns what was collected, picture by picture in the order of their sources and ids."""
        none = np.zeros((len(self.attributes) + 1, 2), dtype=np.int64)
        keys = sorted({*self._pictures, *self._on_truth})
        found, on_truth = (
            np.array([of.get(key, none) for key in keys], dtype=np.int64).reshape(
                len(keys), *none.shape
            )
            for of in (self._pictures, self._on_truth)
        )
        return AttributeCounts(np.array(self.attributes, dtype=str), found, on_truth)

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        return as_they_are(self.per_picture())


def matched(found: BoxLabels, true: BoxLabels) -> np.ndarray:
    """Returns for each box of truth (G,) the row of `found` that stands for it; -1: none."""
    rows = np.full(len(true), -1)
    if not len(found) or not len(true):
        return rows
    ious = iou(found.boxes.double(), true.boxes.double()).cpu().numpy()
    order = torch.argsort(found.scores, descending=True, stable=True).tolist()
    free = true.ignore.cpu().numpy() == Ignore.NO
    for n in order:
        best = int(np.argmax(np.where(free, ious[n], -1)))
        if free[best] and ious[n, best] >= _MATCHING:
            rows[best], free[best] = n, False
    return rows
