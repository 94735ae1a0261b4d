"""How often attributes of boxes are told right.

Letters: N boxes found, G boxes of truth, A attributes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detmtl.metrics.two_sided import TwoSided
from detmtl.structures.boxes import iou
from detmtl.structures.details import value_groups
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import ImageInfo

_MATCHING = 0.5
"""Least IoU of a box found with the box of truth that it stands for."""


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

    def update(
        self,
        predictions: Sequence[BoxLabels],
        truth: Sequence[BoxLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """Adds pictures, boxes in pixels of the file; a picture without truth (None) is skipped."""
        for found, true, info in zip(predictions, truth, infos, strict=True):
            if true is not None:
                rows = matched(found, true)
                self._pictures[info.source, info.id] = self._counts(found, true, rows)

    def update_on_truth(
        self,
        predictions: Sequence[BoxLabels | None],
        truth: Sequence[BoxLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """Adds pictures whose boxes of truth the task has looked at, in the order of the truth."""
        for found, true, info in zip(predictions, truth, infos, strict=True):
            if found is not None and true is not None:
                rows = np.arange(len(true))
                self._on_truth[info.source, info.id] = self._counts(found, true, rows)

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

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        found, of_boxes = self._shares(self._pictures)
        on_truth, _ = self._shares(self._on_truth)
        numbers = {f"on_truth/{name}": value for name, value in on_truth.items()}
        return {**found, "found": of_boxes, **numbers}

    def _shares(self, counts: Mapping[Any, np.ndarray]) -> tuple[dict[str, float], float]:
        empty = np.zeros((len(self.attributes) + 1, 2), dtype=np.int64)
        right, counted = np.sum([empty, *counts.values()], axis=0).T
        shares = [r / n if n else float("nan") for r, n in zip(right, counted, strict=True)]
        known = [share for share in shares[:-1] if share == share]
        mean = float(np.mean(known)) if known else float("nan")
        named = zip(self.attributes, shares[:-1], strict=True)
        return {"accuracy": mean} | {f"accuracy/{a}": float(s) for a, s in named}, float(shares[-1])


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
