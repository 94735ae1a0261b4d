"""How well tags agree with the truth.

Letters: I pictures, T tags.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detmtl.structures.labels import TagLabels
from detmtl.structures.sample import ImageInfo

SHOWN = 0.5
"""A tag of at least this probability counts as shown."""


class TagMetric:
    """Mean average precision over the tags, and F1 at probability .5.

    A tag counts in a picture where its truth is known (weight above 0); it is true from a target of
    .5 on. Tags that are true nowhere have no average precision and no part in the means.
    """

    def __init__(self, tag_names: Sequence[str]):
        """Takes the T names."""
        self.tag_names = tuple(tag_names)
        self._pictures: dict[tuple[str, int], np.ndarray] = {}

    def update(
        self,
        predictions: Sequence[TagLabels],
        truth: Sequence[TagLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """See `detmtl.tasks.task.Metric.update`."""
        for found, known, info in zip(predictions, truth, infos, strict=True):
            if known is not None:
                scores, targets = found.targets.cpu().numpy(), known.targets.cpu().numpy()
                looked = known.weights.cpu().numpy() > 0
                self._pictures[info.source, info.id] = np.stack(
                    [scores, targets >= SHOWN, looked]
                ).astype(np.float32)

    def state(self) -> Any:
        """Returns what was collected."""
        return self._pictures

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was collected by the union of `states`."""
        self._pictures = {key: rows for state in states for key, rows in state.items()}

    def compute(self) -> dict[str, float]:
        """Returns "mAP", "F1@.5" (mean over tags) and "AP/<tag>"; in [0, 1], or NaN."""
        pictures = [self._pictures[key] for key in sorted(self._pictures)]
        table = np.stack(pictures) if pictures else np.zeros((0, 3, len(self.tag_names)))
        ap, f1 = [], []
        for t in range(len(self.tag_names)):
            scores, true, looked = table[:, 0, t], table[:, 1, t] > 0, table[:, 2, t] > 0
            ap.append(average_precision(scores[looked], true[looked]))
            f1.append(_f1(scores[looked] >= SHOWN, true[looked]))
        named = dict(zip(self.tag_names, ap, strict=True))
        return {"mAP": _mean(ap), "F1@.5": _mean(f1)} | {f"AP/{n}": v for n, v in named.items()}


def average_precision(scores: np.ndarray, true: np.ndarray) -> float:
    """Returns the mean, over the pictures that are true, of the precision among all pictures of at
    least the picture's score; NaN where none is true.

    Args:
        scores: (I,).
        true: (I,) bool.
    """
    if not true.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], true[order]
    last_of_tie = np.append(scores[1:] < scores[:-1], True)
    ends = np.flatnonzero(last_of_tie)
    hits = np.cumsum(true)[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])


def _f1(found: np.ndarray, true: np.ndarray) -> float:
    if not true.any():
        return float("nan")
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if v == v]
    return float(np.mean(known)) if known else float("nan")
