"""Two sources of labels on the same pictures become one: gold for the classes that people looked for,
silver for the rest.

Letters: I pictures, N boxes (of the result, of the upper or of the lower source), P pairs, C classes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from detmtl.data.coco import read_labels
from detmtl.data.coco_rows import read_said
from detmtl.data.coco_writer import CocoImage, write_coco, written_details
from detmtl.data.details import FlatDetails
from detmtl.data.flat import Annotations, FileNames
from detmtl.data.source import Source
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.settings import Settings

VERSION = 1
"""Part of every file's key: raise it when the same labels give another file."""

_COLUMNS = ("boxes", "classes", "scores", "weights", "ignore", "grade")
"""What labels say of each box, but for details."""
_PAIRS = 1 << 20
"""Pairs of boxes that are compared together."""


class OverlaySettings(Settings):
    """What becomes of silver boxes on pictures that have gold labels for some classes.

    Attributes:
        double: IoU from which a silver box is the same object as a gold box of its class, and goes; this
            matters for classes that gold has boxes of without having looked everywhere.
        conflict: IoU from which a silver box claims the object that a gold box of another class is;
            None: silver may claim it.
        conflicts: what such a box becomes. "ignore": it is neither label nor background, which is safe
            for names that do not exclude each other (a toy is a car), and costs little where they do,
            since the anchors that learn the gold box learn that it is nothing else. "drop": it is
            background, as far as silver covers its class.
    """

    double: float = Field(default=0.5, gt=0, le=1)
    conflict: float | None = Field(default=0.7, gt=0, le=1)
    conflicts: Literal["ignore", "drop"] = "ignore"


@dataclass(frozen=True, eq=False)
class Overlay:
    """Labels of two sources as one.

    Attributes:
        source: the upper source's pictures with both sources' labels, the upper's first.
        rows: (N,) int64, the row of the lower source that each box has been, -1: it is the upper's.
        counts: what became of the lower's boxes on these pictures: "added", "covered" (the upper source
            has looked for the class everywhere in the picture), "doubles" and "conflicts".
    """

    source: Source
    rows: np.ndarray
    counts: Mapping[str, int]


def overlay(upper: Source, lower: Source, settings: OverlaySettings) -> Overlay:
    """Lays labels over others of the same pictures, picture by picture and class by class.

    Where the upper source's coverage of a class is 1 its labels stand alone. Elsewhere the lower's boxes
    are added but for doubles and conflicts, and coverage is the higher of the two: what one
    misses the other is likely to miss as well, so that more would claim too much. Every box keeps its
    grade, score and weights, and the upper's their details, of which the lower's boxes have none; the
    result is of grade SILVER if one of the two sources is.

    Several lower sources, such as teachers that know different classes, are laid one under the
    other, the most trusted first; coverage is then their union.

    Args:
        upper: labelled; its pictures are the result's.
        lower: labelled, without details; has some or all of the same pictures, by path.
        settings: what is a double, and what happens to conflicts.
    """
    a, b = upper.annotations, lower.annotations
    assert a is not None and b is not None and upper.classes == lower.classes
    place = {path: i for i, path in enumerate(lower.files.paths())}
    at = np.array([place.get(path, -1) for path in upper.files.paths()], dtype=np.int64)
    above = np.broadcast_to(upper.coverage, (len(upper), len(upper.classes)))
    below = np.broadcast_to(lower.coverage, (len(lower), len(lower.classes)))
    rows, image = rows_on(b, at)
    open_to = above[image, b.classes[rows]] < 1
    covered = int((~open_to).sum())
    rows, image = rows[open_to], image[open_to]
    kept, ignore, counts = _settled(a, b, rows, image, settings)
    annotations, origin = _merged(a, b, rows[kept], image[kept], ignore[kept])
    coverage = np.where(at[:, None] >= 0, np.maximum(above, below[at]), above).astype(np.float32)
    grade = max(upper.grade, lower.grade) if (at >= 0).any() else upper.grade
    source = replace(upper, annotations=annotations, coverage=coverage, grade=grade)
    return Overlay(source, origin, {"covered": covered, **counts})


def overlay_boxes(upper: BoxLabels, lower: BoxLabels, settings: OverlaySettings) -> BoxLabels:
    """Lays boxes over others of one picture, as `overlay` does with those of many.

    Args:
        upper: labels of the picture.
        lower: others of the same classes, in the same pixels, without details.
        settings: see `overlay`.
    """
    assert lower.details is None, "the lower boxes have no details"
    a, b = _flat(upper), _flat(lower)
    rows = np.flatnonzero((upper.coverage[lower.classes] < 1).numpy())
    kept, ignore, _ = _settled(a, b, rows, np.zeros(len(rows), dtype=np.int64), settings)
    added = lower[torch.from_numpy(rows[kept])]
    added = replace(added, ignore=torch.from_numpy(ignore[kept]))
    both = {n: torch.cat([getattr(upper, n), getattr(added, n)]) for n in _COLUMNS}
    details = None if upper.details is None else upper.details.with_unknown(added.boxes)
    coverage = torch.maximum(upper.coverage, lower.coverage)
    return BoxLabels(**both, coverage=coverage, details=details)


def _flat(labels: BoxLabels) -> Annotations:
    """Returns the boxes of one picture, without details."""
    columns = {name: getattr(labels, name).numpy() for name in _COLUMNS}
    return Annotations.of(1, np.zeros(len(labels), dtype=np.int64), **columns)


def rows_on(b: Annotations, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows (N,) of the pictures at `at` (I,), -1: none, and for each its place in `at`."""
    lengths = np.where(at >= 0, np.diff(b.offsets)[at], 0)
    image = np.repeat(np.arange(len(at)), lengths)
    starts = np.where(at >= 0, b.offsets[at], 0)
    within = np.arange(len(image)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[image] + within, image


def _settled(
    a: Annotations, b: Annotations, rows: np.ndarray, image: np.ndarray, settings: OverlaySettings
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Returns which of the rows (N,) of b, on pictures (N,) that a has not searched for their classes,
    are added to a's (N,) bool; their `ignore` (N,); and counts as in `Overlay`."""
    double, conflict = _clashes(a, b, rows, image, settings)
    ignore = b.ignore[rows].copy()
    if settings.conflicts == "ignore":
        ignore[conflict & (ignore == Ignore.NO)] = Ignore.CLASS
        kept = ~double
    else:
        kept = ~(double | conflict)
    counts = {
        "added": int(kept.sum()),
        "doubles": int(double.sum()),
        "conflicts": int((conflict & ~double).sum()),
    }
    return kept, ignore, counts


def _clashes(
    a: Annotations, b: Annotations, rows: np.ndarray, image: np.ndarray, settings: OverlaySettings
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of the rows (N,) of b, on pictures (N,), are doubles of a's boxes, and which
    claim an object that a calls otherwise. What a itself doubts settles nothing."""
    double, conflict = np.zeros((2, len(rows)), dtype=bool)
    for mine, theirs, overlaps in pairs_of(b, a, rows, image):
        overlaps = np.where(a.ignore[theirs] == Ignore.CLASS, 0, overlaps)
        same = b.classes[rows[mine]] == a.classes[theirs]
        double[mine[same & (overlaps >= settings.double)]] = True
        if settings.conflict is not None:
            conflict[mine[~same & (overlaps >= settings.conflict)]] = True
    return double, conflict


def pairs_of(
    a: Annotations, b: Annotations, rows: np.ndarray, image: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields, in blocks, the pairs of rows (N,) of a with all of b's on the same picture: place in `rows`
    (P,), row of b (P,), IoU (P,).

    Args:
        image: (N,), position of each row's picture in b.
    """
    lengths = np.diff(b.offsets)[image]
    ends = np.cumsum(lengths)
    first = 0
    while first < len(rows):  # as many rows as make up a block of pairs, at least one
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
        here = lengths[first:last]
        mine = np.repeat(np.arange(first, last), here)
        start = np.repeat(ends[first:last] - here, here)
        theirs = b.offsets[image[mine]] + np.arange(done, done + len(mine)) - start
        yield mine, theirs, _iou(a.boxes[rows[mine]], b.boxes[theirs])
        first = last


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the IoU (P,) of each box of a (P, 4) xyxy with the one of b in the same row."""
    both = shared(a, b)
    return both / (area(a) + area(b) - both)


def shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the area (P,) that each box of a (P, 4) xyxy shares with the one of b in the same row."""
    width, height = (
        np.minimum(a[:, k + 2], b[:, k + 2], dtype=np.float64) - np.maximum(a[:, k], b[:, k])
        for k in (0, 1)
    )
    return width.clip(min=0) * height.clip(min=0)


def area(boxes: np.ndarray) -> np.ndarray:
    """Returns the area (P,) of boxes (P, 4) xyxy."""
    x1, y1, x2, y2 = boxes.T.astype(np.float64)
    return (x2 - x1) * (y2 - y1)


def _merged(
    a: Annotations, b: Annotations, rows: np.ndarray, image: np.ndarray, ignore: np.ndarray
) -> tuple[Annotations, np.ndarray]:
    """Returns all boxes of a and after them, picture by picture, the rows of b with another
    `ignore`; and the row of b that each has been, -1: it is a's."""
    images = np.concatenate([a.image_index(), image])
    columns = {
        name: np.concatenate([getattr(a, name), getattr(b, name)[rows]])
        for name in ("boxes", "classes", "scores", "weights", "grade")
    }
    columns["ignore"] = np.concatenate([a.ignore, ignore])
    assert b.details is None, "the lower source's boxes have no details"
    details = None if a.details is None else _with_unknown(a.details, b.boxes[rows])
    origin = np.concatenate([np.full(len(a), -1), rows])[np.argsort(images, kind="stable")]
    num_images = len(a.offsets) - 1
    return Annotations.of(num_images, images, **columns, details=details), origin


def _with_unknown(details: FlatDetails, boxes: np.ndarray) -> FlatDetails:
    """Returns details with those of further boxes (N, 4), of which nothing is known, at their end."""
    sides = boxes[:, 2:] - boxes[:, :2]
    more = {"areas": sides.prod(axis=1)}  # as of a file that does not state it
    for name, unknown in (("attributes", -1), ("keypoints", 0)):
        own = getattr(details, name)
        if own is not None:
            more[name] = np.full((len(boxes), *own.shape[1:]), unknown, own.dtype)
    if details.shapes is not None:
        more["shapes"] = np.full(len(boxes), details.shapes[-1])
    there = details.arrays()
    added = {n: np.concatenate([there[n], new]) for n, new in more.items() if n in there}
    return replace(details, **added)


def with_gold(pool: Source, selection: Path, settings: OverlaySettings) -> Path:
    """Returns the COCO file of a pool's own gold labels with a selection of silver under them; of a
    pool without labels the selection itself. The file stands beside the selection and is written
    once.

    Its annotations have `attributes.grade`, silver ones also what the selection said of them
    (teacher, score); its pictures have the coverage that gold and silver have together.

    Args:
        pool: the pictures; in the selection's label space.
        selection: `instances.json` of these pictures, with absolute file names.
        settings: see `overlay`.
    """
    if pool.annotations is None:
        return selection
    path = selection.with_name(f"with_gold_{_key(pool, settings)}.json")
    if path.is_file():
        return path
    silver = read_labels(selection, list(pool.classes))
    result = overlay(pool, silver, settings)
    own, said = read_said(selection)
    assert silver.annotations is not None and len(said) == len(silver.annotations)
    info = {
        **own,
        "description": f"gold of source '{pool.name}', and for the rest "
        f"{own.get('description', 'silver')}",
        "grade": "silver",
        "overlay": {"settings": settings.model_dump(mode="json"), "silver": result.counts},
    }
    absolute = FileNames.of("/", list(pool.files.paths()))
    result = replace(result, source=replace(result.source, files=absolute))
    write_coco(path, images_of(result, said), pool.classes, info, written_details(pool))
    return path


def _key(pool: Source, settings: OverlaySettings) -> str:
    a = pool.annotations
    assert a is not None
    facts = [VERSION, settings.model_dump(mode="json"), list(pool.files.paths())]
    digest = hashlib.sha256(json.dumps(facts).encode())
    arrays = [pool.ids, pool.sizes, pool.coverage, *a.arrays().values()]
    if a.details is not None:
        digest.update(json.dumps([a.details.attribute_names, a.details.keypoint_names]).encode())
        arrays += a.details.arrays().values()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def images_of(result: Overlay, said: Sequence[Mapping[str, Any]]) -> Iterator[CocoImage]:
    """Returns the pictures for `write_coco`, `said` being the attributes of the lower source's rows."""
    source = result.source
    assert source.annotations is not None
    for i in range(len(source)):
        info, labels = source.info(i), source.boxes(i)
        assert labels is not None
        rows = result.rows[source.annotations.rows(i)].tolist()
        own = [
            {"grade": Grade(int(g)).name.lower()} if r < 0 else said[r]
            for r, g in zip(rows, labels.grade, strict=True)
        ]
        yield CocoImage(source.files.name(i), info.height, info.width, info.id, labels, own)
