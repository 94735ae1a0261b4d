"""The COCO numbers of boxes, from memory or from files.

Letters: G boxes of truth, D detections, T IoU thresholds, R recalls, K classes, A size ranges,
L limits of detections per picture.

Source: Lin et al. 2014, arXiv 1405.0312; numbers are pycocotools', which computes them or, seven times
faster, faster-coco-eval: equal but for rounding, since pycocotools adds 2e-16 to what it divides by.
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detmtl.data.json_file import garbage_kept
from detmtl.metrics.box_arrays import Boxes, by_category, joined
from detmtl.metrics.coco_files import read_annotations
from detmtl.metrics.coco_results import read_results
from detmtl.metrics.collected import Collected
from detmtl.metrics.f1 import judged
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
PAIRS = 1 << 19
"""Pairs of a picture and a category that are evaluated together: the backends keep a kilobyte of each, also
of one without a box, and LVIS has 20,000 times 1,203. All of COCO's val2017, 5,000 times 80, are
together: in two groups they took a twentieth longer."""


class CocoMetric(Collected[tuple[np.ndarray, np.ndarray]]):
    """COCO's 12 numbers, the AP of each class, the mean F1 at score .5, and each class's best F1.

    Names: those of `NUMBERS`, AP/<class>, F1@.5, F1/<class> and score/<class>: the highest F1 that
    detections from some score on have, and that score; all of them always there, NaN where there is no
    truth to score against. Chosen and measured on the same pictures, the best F1 is a little too high, the
    more so the fewer boxes of truth there are. Truth of either `Ignore` becomes COCO's `iscrowd`. A class
    that nobody looked for in a picture (coverage 0) counts there by its boxes of truth alone: other
    detections of it are neither right nor wrong. The area of a box of truth is width x height (COCO's own
    files have the mask's; `evaluate_files` uses it), which moves only the numbers by size.
    """

    def __init__(self, class_names: Sequence[str], backend: Backend = "auto"):
        super().__init__()
        self.class_names = list(class_names)
        self.backend: Backend = backend

    def counted(
        self, found: BoxLabels, true: BoxLabels, info: ImageInfo
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of truth and of detections, see `rows_of`."""
        rows = rows_of(found, crowd=False)
        return truth_rows(true, rows[:, 0]), rows

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        pictures = self.in_order()
        return score(
            boxes_of([rows for rows, _ in pictures]),
            boxes_of([rows for _, rows in pictures]),
            list(range(len(pictures))),
            dict(enumerate(self.class_names)),
            self.backend,
        )


def evaluate_files(
    detections: Path, annotations: Path, backend: Backend = "auto"
) -> dict[str, float]:
    """Scores a COCO results file, or one that `predict` wrote, against a COCO annotation file.

    Names, and what counts, are as `CocoMetric`'s.

    pycocotools counts a box of truth with annotation id 0 as never found; here ids don't matter.

    Raises:
        InputError: everything that is wrong with either file.
    """
    return score(*boxes_of_files(detections, annotations), backend)


def boxes_of_files(
    detections: Path, annotations: Path
) -> tuple[Boxes, Boxes, Sequence[int], dict[int, str]]:
    """Returns truth, detections, the pictures' ids and the categories' names, as `score` takes them; see
    `evaluate_files`."""
    truth = read_annotations(Path(annotations))
    found = read_results(Path(detections), truth)
    crowds = _everywhere(*truth.unseen(found))
    return joined(truth.boxes, crowds), found, truth.image_ids, truth.names


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
    truth, detections, image_ids, names = numbered(truth, detections, image_ids, names)
    accumulated = _accumulate(truth, detections, len(image_ids), names, backend)
    numbers = numbers_of(accumulated, NUMBERS, list(names.values()))
    found = judged(truth, detections, list(names))
    best = dict(zip(names.values(), found.best(), strict=True))
    return (
        numbers
        | {"F1@.5": found.f1(0.5)}
        | {f"F1/{name}": value for name, (value, _) in best.items()}
        | {f"score/{name}": score for name, (_, score) in best.items()}
    )


def numbered(
    truth: Boxes, detections: Boxes, image_ids: Sequence[int], names: dict[int, str]
) -> tuple[Boxes, Boxes, Sequence[int], dict[int, str]]:
    """Returns `score`'s arguments with ids from 0 on, in the ids' order, by which ties are broken.

    The fast backend takes ids for float64, so that large ones are confused, and F1 multiplies them.
    """
    images, categories = np.array(sorted(image_ids), int), np.array(sorted(names), int)
    truth, detections = (
        replace(
            boxes,
            images=np.searchsorted(images, boxes.images),
            categories=np.searchsorted(categories, boxes.categories),
        )
        for boxes in (truth, detections)
    )
    named = {k: names[c] for k, c in enumerate(categories.tolist())}
    return truth, detections, range(len(images)), named


def truth_rows(true: BoxLabels, found_classes: np.ndarray) -> np.ndarray:
    """Returns the rows of a picture's truth, with a crowd all over it for each class that was found
    and that nobody looked for."""
    unseen = np.flatnonzero(true.coverage.cpu().numpy() == 0)
    everywhere = [[c, *EVERYWHERE, 1, 1] for c in unseen if (found_classes == c).any()]
    return np.concatenate([rows_of(true, crowd=True), np.reshape(everywhere, (-1, 7))])


def _everywhere(images: np.ndarray, categories: np.ndarray) -> Boxes:
    """Returns crowds all over these pictures, each of its category."""
    n = len(images)
    boxes = np.tile(EVERYWHERE, (n, 1))
    return Boxes(
        images, categories, boxes, boxes[:, 2] * boxes[:, 3], np.ones(n), np.ones(n, dtype=bool)
    )


def rows_of(labels: BoxLabels, crowd: bool) -> np.ndarray:
    """Returns (N, 7): class, x, y, width, height, score, crowd."""
    ignored = (labels.ignore != Ignore.NO) if crowd else labels.ignore * 0
    columns = (
        labels.classes[:, None],
        xyxy_to_xywh(labels.boxes.double()),
        labels.scores[:, None],
        ignored[:, None],
    )
    return np.concatenate([c.detach().cpu().double().numpy() for c in columns], axis=1)


def boxes_of(rows_of_pictures: list[np.ndarray]) -> Boxes:
    """Returns the rows of many pictures, whose positions are their ids."""
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
    truth: Boxes, detections: Boxes, num_images: int, names: Mapping[int, str], backend: Backend
) -> dict[str, np.ndarray]:
    """Returns precision (T, R, K, A, L) and recall (T, K, A, L), -1 where there is no truth.

    Ids of pictures and categories count from 0. The numbers of a category follow from the pictures that have
    boxes of it; so a few categories are evaluated at a time, on these pictures alone.
    """
    if num_images * len(names) <= PAIRS:
        return _evaluated(truth, detections, names, backend)
    edges = _edges(truth, detections, num_images, len(names))
    truth, detections = by_category(truth), by_category(detections)
    true, found = (
        np.searchsorted(boxes.categories, edges).tolist() for boxes in (truth, detections)
    )
    parts = [
        _evaluated(
            truth[true[i] : true[i + 1]],
            detections[found[i] : found[i + 1]],
            {c: names[c] for c in range(first, end)},
            backend,
        )
        for i, (first, end) in enumerate(pairwise(edges))
    ]
    axes = {"precision": 2, "recall": 1}
    return {
        what: np.concatenate([part[what] for part in parts], axis) for what, axis in axes.items()
    }


def _edges(truth: Boxes, detections: Boxes, num_images: int, num_categories: int) -> list[int]:
    """Returns where the groups of categories begin that are evaluated together, and where the last ends: at
    least one category each, and otherwise `PAIRS` pairs of a category and a picture at most."""
    both = [boxes.categories * num_images + boxes.images for boxes in (truth, detections)]
    pairs = np.unique(np.concatenate(both))
    starts = np.searchsorted(pairs, np.arange(num_categories + 1) * num_images).tolist()
    shown = np.zeros(num_images, dtype=bool)
    edges = [0]
    for c, (start, end) in enumerate(pairwise(starts)):
        own = pairs[start:end] - c * num_images
        shown[own] = True
        if c > edges[-1] and (c + 1 - edges[-1]) * np.count_nonzero(shown) > PAIRS:
            edges.append(c)
            shown[:] = False
            shown[own] = True
    return [*edges, num_categories]


def _evaluated(
    truth: Boxes, detections: Boxes, names: Mapping[int, str], backend: Backend
) -> dict[str, np.ndarray]:
    """Returns what `_accumulate` does of some categories and the pictures that have boxes of them."""
    coco, coco_eval = _classes(backend)
    images = np.union1d(truth.images, detections.images).tolist()
    sides = []
    with redirect_stdout(io.StringIO()), garbage_kept():  # pycocotools prints
        for boxes in (truth, detections):
            side = coco()
            side.dataset = {
                "images": [{"id": i} for i in images],
                "categories": [{"id": c, "name": name} for c, name in names.items()],
                "annotations": annotations_of(boxes),
            }
            side.createIndex()
            sides.append(side)
        evaluation = coco_eval(*sides, iouType="bbox")
        if images:
            evaluation.evaluate()
        return precision_and_recall(evaluation)


def annotations_of(boxes: Boxes) -> list[dict[str, Any]]:
    """Returns the boxes as COCO annotation objects."""
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


def precision_and_recall(evaluation: Any) -> dict[str, np.ndarray]:
    """Returns precision (T, R, K, A, L) and recall (T, K, A, L), -1 where there is no truth.

    Args:
        evaluation: of either backend; where it has pictures and categories, it has evaluated them.
    """
    params = evaluation.params
    if not len(params.imgIds) or not len(params.catIds):
        shape = (len(params.catIds), len(params.areaRng), len(params.maxDets))
        precision = -np.ones((len(params.iouThrs), len(params.recThrs), *shape))
        return {"precision": precision, "recall": -np.ones((len(params.iouThrs), *shape))}
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation.accumulate()
    return {what: np.asarray(evaluation.eval[what]) for what in ("precision", "recall")}


def numbers_of(
    accumulated: Mapping[str, np.ndarray],
    numbers: Mapping[str, tuple[str, float | None, int, int]],
    class_names: Sequence[str],
) -> dict[str, float]:
    """Returns the numbers, which are told as in `NUMBERS`, by name, and AP/<class>.

    Args:
        accumulated: see `precision_and_recall`.
        numbers: AP among them.
        class_names: (K,).
    """
    found = {name: mean_of(accumulated, *what) for name, what in numbers.items()}
    for k, name in enumerate(class_names):
        alone = {"precision": accumulated["precision"][:, :, k : k + 1]}
        found[f"AP/{name}"] = mean_of(alone, *numbers["AP"])
    return found


def mean_of(
    accumulated: Mapping[str, np.ndarray], what: str, threshold: float | None, size: int, limit: int
) -> float:
    """Returns the mean as pycocotools' `summarize` takes it, NaN for its -1."""
    values = accumulated[what]
    if threshold is not None:
        values = values[round((threshold - 0.5) / 0.05)][None]
    values = values[..., size, limit]
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else float("nan")
