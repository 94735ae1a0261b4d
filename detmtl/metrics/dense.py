"""How well maps agree with the truth, from one confusion matrix.

Letters: C classes; P pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detmtl.structures.confusion import confusion
from detmtl.structures.labels import MapLabels
from detmtl.structures.sample import ImageInfo


class MapMetric:
    """Intersection over union, and pixel accuracy.

    Classes without a true pixel have no number and no part in any mean, whatever was found: which
    classes are averaged depends on the truth alone, so that two models are compared on the same ones.
    """

    def __init__(
        self, class_names: Sequence[str], subsets: Mapping[str, Sequence[str]] | None = None
    ):
        """Takes the C class names, and name -> class names of subsets that get a mean of their own."""
        self.class_names = tuple(class_names)
        self.subsets = {k: tuple(v) for k, v in (subsets or {}).items()}
        # of each picture the cells that are not 0, and their counts: few of (C + 1) ** 2
        self._pictures: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def update(
        self,
        predictions: Sequence[MapLabels],
        truth: Sequence[MapLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """See `detmtl.tasks.task.Metric.update`."""
        for found, known, info in zip(predictions, truth, infos, strict=True):
            if known is not None:
                counts = confusion(known, found).ravel()
                cells = np.flatnonzero(counts)
                self._pictures[info.source, info.id] = (cells, counts[cells])

    def state(self) -> Any:
        """Returns what was collected."""
        return self._pictures

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was collected by the union of `states`."""
        self._pictures = {key: counts for state in states for key, counts in state.items()}

    def compute(self) -> dict[str, float]:
        """Returns "mIoU", "accuracy" (share of the pixels of known class), "mIoU/<subset>", and
        "IoU/<class>"; in [0, 1], or NaN where there is no truth."""
        size = len(self.class_names) + 1
        counts = np.zeros(size * size, np.int64)
        for cells, pixels in self._pictures.values():
            counts[cells] += pixels
        counts = counts.reshape(size, size)
        iou = dict(zip(self.class_names, _iou(counts).tolist(), strict=True))
        pixels = counts[:-1].sum()
        values = {
            "mIoU": _mean(list(iou.values())),
            "accuracy": float(np.trace(counts[:-1]) / pixels) if pixels else float("nan"),
        }
        values |= {
            f"mIoU/{name}": _mean([iou[c] for c in classes])
            for name, classes in self.subsets.items()
        }
        return values | {f"IoU/{name}": value for name, value in iou.items()}


def _iou(counts: np.ndarray) -> np.ndarray:
    both = np.diag(counts)[:-1]
    true, found = counts.sum(1)[:-1], counts.sum(0)[:-1]
    return np.where(true > 0, both / np.maximum(1, true + found - both), np.nan)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if v == v]
    return float(np.mean(known)) if known else float("nan")
