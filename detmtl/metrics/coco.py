"""The COCO numbers of boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import ImageInfo

Backend = Literal["auto", "pycocotools", "fast"]


class CocoMetric:
    """COCO's 12 numbers, the AP of each class, and the mean F1 at score .5.

    Names: AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR100, AR_small, AR_medium,
    AR_large, AP/<class>, F1@.5; all of them always there, NaN where there is no truth to score
    against.
    """

    def __init__(self, class_names: Sequence[str], backend: Backend = "auto"):
        raise NotImplementedError

    def update(
        self,
        predictions: Sequence[BoxLabels],
        truth: Sequence[BoxLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """Adds pictures, boxes in pixels of the file; a picture without truth (None) is skipped."""
        raise NotImplementedError

    def state(self) -> Any:
        """Returns what was added so far, to be sent to another process."""
        raise NotImplementedError

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was added by the union of `states`; a picture in several counts once."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        raise NotImplementedError


def evaluate_files(
    detections: Path, annotations: Path, backend: Backend = "auto"
) -> dict[str, float]:
    """Scores a COCO results file against a COCO annotation file; names as `CocoMetric`'s.

    Raises:
        InputError: everything that is wrong with either file.
    """
    raise NotImplementedError
