"""What a teacher gave for one picture, checked, as the record that is kept: later nobody looks at it.

Letters: N boxes, H and W pixels, T tags of one picture, C classes of the teacher.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.silver.map_record import MapRecord
from detmtl.silver.record import Record
from detmtl.silver.records import AnyRecord
from detmtl.silver.tag_record import TagRecord
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, BoxLabels, Labels, MapLabels, TagLabels
from detmtl.structures.sample import ImageInfo


def record_of(
    labels: Labels,
    info: ImageInfo,
    card: TeacherCard,
    floor: float,
    root: Path | None,
) -> AnyRecord:
    """Returns the record of a teacher's labels.

    Args:
        labels: what the teacher gave; its classes are the card's.
        info: of the picture, with its content hash.
        card: of the teacher; its task says of which kind the labels are.
        floor: boxes of a lower score are not kept.
        root: the file's name is kept relative to it; None: as it is.

    Raises:
        InputError: the labels are of another kind, or what no label can be.
    """
    who = f"teacher '{card.name}', picture {info.path}"
    expected, convert = _KINDS[card.task]
    if not isinstance(labels, expected):
        raise InputError(
            f"{who}: gave {type(labels).__name__}, but its card says that it writes {card.task}"
        )
    picture = {
        "content_hash": info.content_hash,
        "height": info.height,
        "width": info.width,
        "file": info.path if root is None else os.path.relpath(info.path, root),
    }
    return convert(labels, picture, len(card.classes), floor, who)


def _box_record(
    labels: BoxLabels, picture: Mapping[str, Any], num_classes: int, floor: float, who: str
) -> Record:
    boxes = _array(labels.boxes).astype(np.float64)
    scores, classes = _array(labels.scores), _array(labels.classes)
    if not np.isfinite(boxes).all():
        raise InputError(f"{who}: gave a box that is not finite")
    _check_scores(scores, who)
    _check_classes(classes, num_classes, who)
    boxes = np.round(boxes.clip(0, [picture["width"], picture["height"]] * 2), 2)
    order = np.argsort(-scores, kind="stable")
    # What lies outside of the picture has no side left after clipping.
    real = (boxes[order, 2:] > boxes[order, :2]).all(axis=1) & (scores[order] >= floor)
    rows = order[real]
    return Record(boxes=boxes[rows], classes=classes[rows], scores=scores[rows], **picture)


def _map_record(
    labels: MapLabels, picture: Mapping[str, Any], num_classes: int, floor: float, who: str
) -> MapRecord:
    size = (picture["height"], picture["width"])
    classes = _array(labels.classes)
    if classes.shape != size or classes.dtype != np.uint8:
        raise InputError(
            f"{who}: gave a map {classes.shape} of {classes.dtype}; the picture is {size}, classes are uint8"
        )
    _check_classes(classes[(classes != OTHER) & (classes != UNKNOWN)], num_classes, who)
    if labels.weights is None:
        return MapRecord(classes=classes, **picture)
    confidence = _array(labels.weights)
    if confidence.shape != size:
        raise InputError(f"{who}: gave confidences {confidence.shape}; the picture is {size}")
    _check_scores(confidence, who)
    return MapRecord(
        classes=classes, confidence=np.round(confidence * 255).astype(np.uint8), **picture
    )


def _tag_record(
    labels: TagLabels, picture: Mapping[str, Any], num_classes: int, floor: float, who: str
) -> TagRecord:
    scores, weights = _array(labels.targets), _array(labels.weights)
    if scores.shape != (num_classes,) or weights.shape != (num_classes,):
        raise InputError(
            f"{who}: gave {scores.size} scores and {weights.size} weights, but has {num_classes} classes"
        )
    known = weights > 0
    _check_scores(scores[known], who)
    return TagRecord(scores=np.where(known, scores, np.nan).astype(np.float32), **picture)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _check_scores(scores: np.ndarray, who: str) -> None:
    if not np.isfinite(scores).all():
        raise InputError(f"{who}: gave a score that is not finite")
    wrong = scores[(scores < 0) | (scores > 1)]
    if wrong.size:
        raise InputError(f"{who}: gave the score {wrong.flat[0]}; scores lie in [0, 1]")


def _check_classes(classes: np.ndarray, num_classes: int, who: str) -> None:
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if wrong.size:
        raise InputError(f"{who}: gave the class {wrong.flat[0]}, but has {num_classes} classes")


_KINDS: Mapping[str, tuple[type, Callable[..., AnyRecord]]] = {
    "boxes": (BoxLabels, _box_record),
    "maps": (MapLabels, _map_record),
    "tags": (TagLabels, _tag_record),
}
"""By the task on a teacher's card."""
