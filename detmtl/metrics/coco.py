"""The COCO numbers of boxes, from memory or from files.

Letters: G boxes of truth, D detections, T IoU thresholds, R recalls, K classes, A size ranges,
L limits of detections per picture.

Source: Lin et al. 2014, arXiv 1405.0312; numbers are pycocotools', which computes them or, seven times
faster and equal, faster-coco-eval.
"""

import importlib.util
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detmtl.metrics.coco_files import read_annotations, read_results
from detmtl.structures.boxes import xyxy_to_xywh
from detmtl.structures.errors import missing_package
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import ImageInfo

Backend = Literal["auto", "pycocotools", "fast"]

# name: (precision or recall, IoU threshold or all, size range, index of the limit 1, 10, 100)
NUMBERS: dict[str, tuple[str, float | None, int, int]] = {
    "AP": ("precision", None, 0, 2),
    "AP50": ("precision", 0.5, 0, 2),
    "AP75": ("precision", 0.75, 0, 2),
    "AP_small": ("precision", None, 1, 2),
    "AP_medium": ("precision", None, 2, 2),
    "AP_large": ("precision", None, 3, 2),
    "AR1": ("recall", None, 0, 0),
    "AR10": ("recall", None, 0, 1),
    "AR100": ("recall", None, 0, 2),
    "AR_small": ("recall", None, 1, 2),
    "AR_medium": ("recall", None, 2, 2),
    "AR_large": ("recall", None, 3, 2),
}
EVERYWHERE = np.array([-1e6, -1e6, 3e6, 3e6])
"""A box (xywh) around any picture."""


@dataclass(frozen=True)
class Boxes:
    """Truth or detections of many pictures.

    Attributes:
        images: (N,) int64 picture ids.
        categories: (N,) int64 category ids.
        boxes_xywh: (N, 4) float64 pixels.
        areas: (N,) float64 square pixels, by which truth is small, medium or large.
        scores: (N,) float64; 1 for truth.
        crowd: (N,) bool; detections on such a box count neither as right nor as wrong.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray


class CocoMetric:
    """COCO's 12 numbers, the AP of each class, and the mean F1 at score .5.

    Names: those of `NUMBERS`, AP/<class>, F1@.5; all of them always there, NaN where there is no truth
    to score against. Truth of either `Ignore` becomes COCO's `iscrowd`. A class that nobody looked
    for in a picture (coverage 0) counts there by its boxes of truth alone: other detections of it are
    neither right nor wrong. The area of a box of truth is width x height (COCO's own files
    have the mask's; `evaluate_files` uses it), which moves only the numbers by size.
    """

    def __init__(self, class_names: Sequence[str], backend: Backend = "auto"):
        self.class_names = list(class_names)
        self.backend: Backend = backend
        self._pictures: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def update(
        self,
        predictions: Sequence[BoxLabels],
        truth: Sequence[BoxLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """Adds pictures, boxes in pixels of the file; a picture without truth (None) is skipped."""
        for predicted, true, info in zip(predictions, truth, infos, strict=True):
            if true is None:
                continue
            found = _rows(predicted, crowd=False)
            unseen = np.flatnonzero(true.coverage.cpu().numpy() == 0)
            everywhere = [[c, *EVERYWHERE, 1, 1] for c in unseen if (found[:, 0] == c).any()]
            rows = np.concatenate([_rows(true, crowd=True), np.reshape(everywhere, (-1, 7))])
            self._pictures[info.source, info.id] = rows, found

    def state(self) -> Any:
        """Returns what was added so far, to be sent to another process."""
        return self._pictures

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was added by the union of `states`; a picture in several counts once."""
        self._pictures = {key: rows for state in states for key, rows in state.items()}

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        pictures = [self._pictures[key] for key in sorted(self._pictures)]
        return score(
            _boxes([rows for rows, _ in pictures]),
            _boxes([rows for _, rows in pictures]),
            list(range(len(pictures))),
            dict(enumerate(self.class_names)),
            self.backend,
        )


def evaluate_files(
    detections: Path, annotations: Path, backend: Backend = "auto"
) -> dict[str, float]:
    """Scores a COCO results file against a COCO annotation file; names as `CocoMetric`'s.

    pycocotools counts a box of truth with annotation id 0 as never found; here ids don't matter.

    Raises:
        InputError: everything that is wrong with either file.
    """
    truth, image_ids, names = read_annotations(Path(annotations))
    found = read_results(Path(detections), image_ids, names)
    return score(Boxes(**truth), Boxes(**found), image_ids, names, backend)


def score(
    truth: Boxes,
    detections: Boxes,
    image_ids: Sequence[int],
    names: dict[int, str],
    backend: Backend = "auto",
) -> dict[str, float]:
    """Returns all numbers for the categories of `names`, id -> name.

    Raises:
        InputError: the backend is not installed.
    """
    accumulated = _accumulate(truth, detections, image_ids, names, backend)
    numbers = {name: _mean(accumulated, *what) for name, what in NUMBERS.items()}
    precision = accumulated["precision"]
    for k, category in enumerate(sorted(names)):
        alone = {"precision": precision[:, :, k : k + 1]}
        numbers[f"AP/{names[category]}"] = _mean(alone, *NUMBERS["AP"])
    numbers["F1@.5"] = f1(truth, detections, list(names))
    return numbers


def f1(
    truth: Boxes,
    detections: Boxes,
    categories: Sequence[int],
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> float:
    """Returns the mean over categories with truth of F1 = 2 TP / (2 TP + FP + FN), or NaN.

    Detections of at least `score_threshold` take, best first, the box of truth of their category with
    the highest IoU that is free; on a crowd box they do not count.
    """
    kept = np.flatnonzero(detections.scores >= score_threshold)
    kept = kept[np.argsort(-detections.scores[kept], kind="stable")]
    found = _grouped(detections, kept)
    true = _grouped(truth, np.arange(len(truth.images)))
    right, wrong = dict.fromkeys(categories, 0), dict.fromkeys(categories, 0)
    for key, rows in found.items():
        mine = true.get(key, np.zeros(0, dtype=np.int64))
        tp, fp = _matched(
            detections.boxes_xywh[rows], truth.boxes_xywh[mine], truth.crowd[mine], iou_threshold
        )
        right[key[1]] += tp
        wrong[key[1]] += fp
    values = []
    for c in categories:
        wanted = int(np.sum((truth.categories == c) & ~truth.crowd))
        if wanted:
            values.append(2 * right[c] / (right[c] + wrong[c] + wanted))
    return float(np.mean(values)) if values else float("nan")


def _rows(labels: BoxLabels, crowd: bool) -> np.ndarray:
    """Returns (N, 7): class, x, y, width, height, score, crowd."""
    ignored = (labels.ignore != Ignore.NO) if crowd else labels.ignore * 0
    columns = (
        labels.classes[:, None],
        xyxy_to_xywh(labels.boxes.double()),
        labels.scores[:, None],
        ignored[:, None],
    )
    return np.concatenate([c.detach().cpu().double().numpy() for c in columns], axis=1)


def _boxes(rows_of_pictures: list[np.ndarray]) -> Boxes:
    rows = np.concatenate([np.zeros((0, 7)), *rows_of_pictures])
    images = np.repeat(np.arange(len(rows_of_pictures)), [len(r) for r in rows_of_pictures])
    return Boxes(
        images=images.astype(np.int64),
        categories=rows[:, 0].astype(np.int64),
        boxes_xywh=rows[:, 1:5],
        areas=rows[:, 3] * rows[:, 4],
        scores=rows[:, 5],
        crowd=rows[:, 6] > 0,
    )


def _accumulate(
    truth: Boxes,
    detections: Boxes,
    image_ids: Sequence[int],
    names: dict[int, str],
    backend: Backend,
) -> dict[str, np.ndarray]:
    """Returns precision (T, R, K, A, L) and recall (T, K, A, L), -1 where there is no truth."""
    coco, coco_eval = _classes(backend)
    sides = []
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        for boxes in (truth, detections):
            side = coco()
            side.dataset = {
                "images": [{"id": int(i)} for i in image_ids],
                "categories": [{"id": int(c), "name": name} for c, name in names.items()],
                "annotations": _annotations(boxes),
            }
            side.createIndex()
            sides.append(side)
        evaluation = coco_eval(*sides, iouType="bbox")
        if not len(image_ids):
            return _nothing(len(names))
        evaluation.evaluate()
        evaluation.accumulate()
    return {what: np.asarray(evaluation.eval[what]) for what in ("precision", "recall")}


def _annotations(boxes: Boxes) -> list[dict[str, Any]]:
    columns = zip(
        boxes.images.tolist(),
        boxes.categories.tolist(),
        boxes.boxes_xywh.tolist(),
        boxes.areas.tolist(),
        boxes.scores.tolist(),
        boxes.crowd.astype(int).tolist(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", "score", "iscrowd")
    # ids from 1: 0 is how COCO's matching says that nothing was matched
    return [dict(zip(keys, row, strict=True), id=i) for i, row in enumerate(columns, start=1)]


def _nothing(num_classes: int) -> dict[str, np.ndarray]:
    return {
        "precision": -np.ones((10, 101, num_classes, 4, 3)),
        "recall": -np.ones((10, num_classes, 4, 3)),
    }


def _classes(backend: Backend) -> tuple[Any, Any]:
    """Returns the classes that hold and that score boxes."""
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if backend == "fast" and not installed:
        raise missing_package("faster-coco-eval", "fast", "the fast COCO backend")
    if backend == "fast" or (backend == "auto" and installed):
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _mean(
    accumulated: dict[str, np.ndarray], what: str, threshold: float | None, size: int, limit: int
) -> float:
    """Returns the mean as pycocotools' `summarize` takes it, NaN for its -1."""
    values = accumulated[what]
    if threshold is not None:
        values = values[round((threshold - 0.5) / 0.05)][None]
    values = values[..., size, limit]
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else float("nan")


def _grouped(boxes: Boxes, rows: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Returns (image, category) -> those of `rows`, in their order."""
    if not len(rows):
        return {}
    keys = np.stack([boxes.images[rows], boxes.categories[rows]], axis=1)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
    firsts = np.concatenate([[0], starts])
    return {
        (int(keys[first, 0]), int(keys[first, 1])): group
        for first, group in zip(firsts, np.split(rows, starts), strict=True)
    }


def _matched(
    found: np.ndarray, true: np.ndarray, crowd: np.ndarray, threshold: float
) -> tuple[int, int]:
    """Returns how many of found (D, 4), best first, are right and wrong, given true (G, 4), xywh."""
    if not len(true):
        return 0, len(found)
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(
        found[:, None, :2] + found[:, None, 2:], true[None, :, :2] + true[None, :, 2:]
    )
    inter = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = np.prod(found[:, None, 2:], axis=-1)
    union = np.where(crowd, area, area + np.prod(true[None, :, 2:], axis=-1) - inter)
    ious = inter / np.maximum(union, 1e-12)
    free = ~crowd
    right = wrong = 0
    for row in ious:
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= threshold:
            free[best] = False
            right += 1
        elif not np.any(crowd & (row >= threshold)):
            wrong += 1
    return right, wrong
