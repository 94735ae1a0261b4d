"""COCO's numbers of masks and of keypoints.

Letters: N boxes, K keypoints, C classes, S side of a mask, H and W pixels.
Source: Lin et al. 2014, arXiv 1405.0312; both by pycocotools.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detmtl.data.outlines import encoded, pasted
from detmtl.metrics.coco import NUMBERS, mean_of, numbers_of, precision_and_recall
from detmtl.metrics.collected import TwoSided
from detmtl.metrics.shape_counts import ShapeCounts
from detmtl.structures.boxes import area, xyxy_to_xywh
from detmtl.structures.details import NO_MASK
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import ImageInfo

_coco: Any = coco_mask  # its stubs know less than it does
_KEYPOINT_NUMBERS = {n: (*NUMBERS[n][:3], 0) for n in ("AP", "AP50", "AP75")}  # there is one limit
_Row = dict[str, Any]
_Sides = tuple[list[_Row], list[_Row]]
"""Truth and detections of a picture."""
_Sum = tuple[float, int]


class _Judging(TwoSided[_Sides, _Sum]):
    """Keeps what pycocotools found of the pictures, which takes long, until there are others."""

    def __init__(self, kind: str, sigmas: Sequence[float] = ()):
        """Takes which IoU pycocotools asks for, and the sigmas of keypoints."""
        super().__init__()
        self._kind = kind
        self._sigmas = np.array(sigmas)
        self._last: tuple[list[tuple[str, int]], Any] | None = None

    def update(
        self, predictions: Sequence[Any], truth: Sequence[Any], infos: Sequence[ImageInfo]
    ) -> None:
        super().update(predictions, truth, infos)
        self._last = None

    def merge(self, states: Sequence[Any]) -> None:
        super().merge(states)
        self._last = None

    def _kept(self) -> dict[str, int]:
        """Returns the classes that count -> their index."""
        raise NotImplementedError

    def _judge(self, pictures: Mapping[tuple[str, int], _Sides]) -> Any:
        """Returns what `_judged` does of these pictures: all that were added, and perhaps empty ones."""
        if self._last is None or self._last[0] != sorted(pictures):
            judge = _judged(pictures, self._kept(), self._kind, self._sigmas)
            self._last = sorted(pictures), judge
        return self._last[1]


class MaskMetric(_Judging):
    """COCO's 12 numbers of masks, the AP of each class, and the mean IoU of masks on the boxes of truth.

    Names: those of `NUMBERS`, AP/<class>, on_truth/IoU; all of them always there, NaN where there is no
    truth. Truth of either `Ignore` becomes COCO's `iscrowd`, and so does a box that nobody drew,
    filled whole: nothing found there is wrong. A class that nobody looked for in a picture is a
    crowd all over it.
    """

    def __init__(self, class_names: Sequence[str]):
        super().__init__("segm")
        self.class_names = list(class_names)

    def _kept(self) -> dict[str, int]:
        return {name: c for c, name in enumerate(self.class_names)}

    def counted(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> _Sides:
        """Returns COCO's objects of either side."""
        rows = _rows(found, _encoded(found, info))
        for row in rows:
            row["area"] = float(_coco.area(row["segmentation"]))
        return _mask_truth(true, rows, info), rows

    def described(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> _Sum:
        """Returns the sum of the masks' IoU, and of how many boxes."""
        pairs = zip(_encoded(found, info), _encoded(true, info), true.ignore.tolist(), strict=True)
        ious = [
            float(_coco.iou([a], [b], [0])[0, 0])
            for a, b, ignore in pairs
            if a is not None and b is not None and ignore == Ignore.NO
        ]
        return sum(ious), len(ious)

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        accumulated = precision_and_recall(self._judge(self._pictures))
        numbers = numbers_of(accumulated, NUMBERS, self.class_names)
        return numbers | {"on_truth/IoU": _mean_of(self._on_truth)}

    def per_picture(self) -> ShapeCounts:
        """Returns what was collected, picture by picture in the order of their sources and ids."""
        pictures, on_truth = _together(self._pictures, self._on_truth)
        judge = self._judge(pictures)
        sizes = ("", "small", "medium", "large")
        return ShapeCounts.of(judge.evalImgs, self.class_names, sizes, sizes[1:], on_truth, "IoU")


class KeypointMetric(_Judging):
    """COCO's keypoint AP, that of each class, and the mean object keypoint similarity on boxes of truth.

    Names: AP, AP50, AP75, AR, AP/<class>, on_truth/OKS; all of them always there, NaN where there is no
    truth. Only boxes of which a keypoint is known count as truth; others are ignored. COCO divides by
    the object's area: where a file does not say it, the box's counts. A crowd, or a box to be
    ignored, cannot be right or wrong. A class that nobody looked for in a picture is a crowd all
    over it.
    """

    def __init__(self, class_names: Sequence[str], names: Sequence[str], sigmas: Sequence[float]):
        """Takes the classes of the boxes, the K keypoints as `class/keypoint`, and their sigmas."""
        super().__init__("keypoints", sigmas)
        owners = {name.partition("/")[0] for name in names}
        self.class_names = list(class_names)
        self._with_points = [c for c in class_names if c in owners]

    def counted(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> _Sides:
        """Returns COCO's objects of either side."""
        rows = _with_keypoints(found, _rows(found, None))
        wanted = _with_keypoints(true, _rows(true, None))
        wanted += [
            row | {"keypoints": [], "num_keypoints": 0} for row in _everywhere(true, rows, info)
        ]
        return wanted, rows

    def described(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> _Sum | None:
        """Returns the sum of the similarities, and of how many boxes; None where a side has no keypoints."""
        if true.details is None or found.details is None:
            return None
        if true.details.keypoints is None or found.details.keypoints is None:
            return None
        similar = similarities(
            found.details.keypoints.double().cpu().numpy(),
            true.details.keypoints.double().cpu().numpy(),
            _areas(true),
            self._sigmas,
        )[true.ignore.cpu().numpy() == Ignore.NO]
        known = similar[~np.isnan(similar)]
        return float(known.sum()), len(known)

    def compute(self) -> dict[str, float]:
        """Returns name -> value in [0, 1] or NaN."""
        accumulated = precision_and_recall(self._judge(self._pictures))
        numbers = numbers_of(accumulated, _KEYPOINT_NUMBERS, list(self._kept()))
        numbers["AR"] = mean_of(accumulated, "recall", None, 0, 0)
        return numbers | {"on_truth/OKS": _mean_of(self._on_truth)}

    def per_picture(self) -> ShapeCounts:
        """Returns what was collected, picture by picture in the order of their sources and ids."""
        pictures, on_truth = _together(self._pictures, self._on_truth)
        judge = self._judge(pictures)
        sizes = ("", "medium", "large")
        return ShapeCounts.of(judge.evalImgs, [*self._kept()], sizes, (), on_truth, "OKS")

    def _kept(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.class_names) if c in self._with_points}


def similarities(
    found: np.ndarray, true: np.ndarray, areas: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """Returns the object keypoint similarity (N,) in [0, 1] of each box with its truth; NaN where no keypoint
    is known.

    Args:
        found, true: (N, K, 3). areas: (N,) square pixels. sigmas: (K,).
    """
    square = ((found[..., :2] - true[..., :2]) ** 2).sum(axis=-1)
    scaled = square / (2 * (2 * sigmas) ** 2 * (areas[:, None] + np.spacing(1)))
    known = true[..., 2] > 0
    count = known.sum(axis=1)
    total = (np.exp(-scaled) * known).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rows(labels: BoxLabels, shapes: Sequence[Any] | None) -> list[_Row]:
    """Returns COCO's objects of the boxes, with their shapes."""
    columns = (
        labels.classes.tolist(),
        xyxy_to_xywh(labels.boxes.double()).tolist(),
        labels.scores.tolist(),
        _areas(labels).tolist(),
        (labels.ignore != Ignore.NO).int().tolist(),
        [None] * len(labels) if shapes is None else shapes,
    )
    keys = ("category_id", "bbox", "score", "area", "iscrowd", "segmentation")
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _areas(labels: BoxLabels) -> np.ndarray:
    stated = None if labels.details is None else labels.details.areas
    return (area(labels.boxes) if stated is None else stated).double().cpu().numpy()


def _encoded(labels: BoxLabels, info: ImageInfo) -> list[_Row | None]:
    """Returns each box's shape as a run-length encoding of the file's picture; None where there is none."""
    details = labels.details
    if details is not None and details.outlines is not None:
        return encoded(details.outlines, info.height, info.width)
    if details is not None and details.masks is not None:
        shapes = pasted(details.masks, labels.boxes, info.height, info.width)
        unknown = (details.masks[:, 0, 0] == NO_MASK).tolist()
        return [None if no else shape for shape, no in zip(shapes, unknown, strict=True)]
    return [None] * len(labels)


def _mask_truth(true: BoxLabels, found: Sequence[_Row], info: ImageInfo) -> list[_Row]:
    rows = _rows(true, _encoded(true, info))
    for row in rows:
        if row["segmentation"] is None:
            row["segmentation"] = _block(row["bbox"], info)
            row["iscrowd"] = 1
    rows += [
        row | {"segmentation": _block(row["bbox"], info)} for row in _everywhere(true, found, info)
    ]
    return rows


def _everywhere(true: BoxLabels, found: Sequence[_Row], info: ImageInfo) -> list[_Row]:
    """Returns a crowd all over the picture for each class that was found there though nobody had looked
    for it."""
    seen = {row["category_id"] for row in found}
    whole = [0.0, 0.0, float(info.width), float(info.height)]
    return [
        {"category_id": c, "bbox": whole, "score": 1.0, "iscrowd": 1, "area": 1.0}
        for c in (true.coverage == 0).nonzero()[:, 0].tolist()
        if c in seen
    ]


def _block(box_xywh: Sequence[float], info: ImageInfo) -> Any:
    x, y, w, h = box_xywh
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    return _coco.merge(_coco.frPyObjects([ring], info.height, info.width))


def _with_keypoints(labels: BoxLabels, rows: list[_Row]) -> list[_Row]:
    keypoints = None if labels.details is None else labels.details.keypoints
    for i, row in enumerate(rows):
        points = np.zeros((0, 3)) if keypoints is None else keypoints[i].double().cpu().numpy()
        row["keypoints"] = points.ravel().tolist()
        row["num_keypoints"] = int((points[:, 2] > 0).sum())
    return rows


def _together(
    pictures: Mapping[tuple[str, int], _Sides], on_truth: Mapping[tuple[str, int], _Sum]
) -> tuple[dict[tuple[str, int], _Sides], np.ndarray]:
    """Returns the pictures of both, and (I, 2) what was summed on their boxes of truth, in their order."""
    keys = sorted({*pictures, *on_truth})
    sums = [on_truth.get(key, (0.0, 0)) for key in keys]
    return {key: pictures.get(key, ([], [])) for key in keys}, np.array(sums).reshape(-1, 2)


def _judged(
    pictures: Mapping[tuple[str, int], _Sides],
    named: Mapping[str, int],
    kind: str,
    sigmas: np.ndarray,
) -> Any:
    """Returns pycocotools' evaluation of all pictures, with its `evalImgs` where there is something to judge.

    Args:
        pictures: truth and detections of each.
        named: class name -> index.
        kind: `segm` or `keypoints`.
        sigmas: of keypoints.
    """
    sides = []
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        for side in (0, 1):
            rows = [
                {**row, "image_id": i}
                for i, key in enumerate(sorted(pictures))
                for row in pictures[key][side]
                if row["category_id"] in named.values()
            ]
            coco: Any = COCO()
            coco.dataset = {
                # shapes are encoded already: sizes are asked for and not used
                "images": [{"id": i, "height": 0, "width": 0} for i in range(len(pictures))],
                "categories": [{"id": c, "name": name} for name, c in named.items()],
                # ids from 1: 0 is how COCO's matching says that nothing was matched
                "annotations": [{**row, "id": n} for n, row in enumerate(rows, start=1)],
            }
            coco.createIndex()
            sides.append(coco)
        judge: Any = COCOeval  # its stubs want a literal
        evaluation = judge(*sides, iouType=kind)
        if len(sigmas):
            evaluation.params.kpt_oks_sigmas = sigmas
        if pictures and named:
            evaluation.evaluate()
    return evaluation


def _mean_of(sums: Mapping[Any, _Sum]) -> float:
    total, count = np.sum([(0.0, 0), *sums.values()], axis=0)
    return float(total / count) if count else float("nan")
