"""What a run's metrics count of each picture, in one file beside its scores."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.metrics.attributes import AttributeCounts, AttributeMetric
from detmtl.metrics.coco_details import KeypointMetric, MaskMetric
from detmtl.metrics.dense import MapCounts, MapMetric
from detmtl.metrics.depth import DepthMetric, DepthSums
from detmtl.metrics.per_picture import PerPicture
from detmtl.metrics.shape_counts import ShapeCounts
from detmtl.metrics.tags import TagMetric, TagScores
from detmtl.structures.whole import whole

MOST_BYTES = 2**28
"""Of one metric, in memory: 256 MiB are 140,000 maps of 80 classes. What needs more is not kept."""
_KINDS: dict[type, tuple[str, type]] = {
    MapMetric: ("maps", MapCounts),
    TagMetric: ("tags", TagScores),
    DepthMetric: ("depth", DepthSums),
    AttributeMetric: ("attributes", AttributeCounts),
    MaskMetric: ("masks", ShapeCounts),
    KeypointMetric: ("keypoints", ShapeCounts),
}
"""Boxes are not among them: their matches follow from a run's detections."""


def write_pictures(path: Path, metrics: Mapping[str, Any]) -> None:
    """Writes what the metrics have counted of each picture, whole or not at all; no file if it is nothing.

    Of metrics from outside of detmtl nothing is written, nor of those derived from detmtl's: they may
    count in another way.

    Args:
        path: of the file.
        metrics: task name -> metric that has seen all pictures.
    """
    arrays: dict[str, np.ndarray] = {}
    for task, metric in metrics.items():
        if type(metric) not in _KINDS:
            continue
        counted = metric.per_picture()
        mine = {f.name: getattr(counted, f.name) for f in fields(counted)}
        if len(counted) and sum(array.nbytes for array in mine.values()) <= MOST_BYTES:
            arrays[f"{task}/kind"] = np.array(_KINDS[type(metric)][0])
            arrays |= {f"{task}/{name}": array for name, array in mine.items()}
    if not arrays:
        path.unlink(missing_ok=True)
        return
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_pictures(path: Path) -> dict[str, PerPicture]:
    """Returns task name -> what `write_pictures` wrote of it; {} where there is no file."""
    if not path.is_file():
        return {}
    of_tasks: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as kept:
        for name in kept.files:
            task, field = name.rsplit("/", 1)
            of_tasks.setdefault(task, {})[field] = kept[name]
    kinds = dict(_KINDS.values())
    return {task: kinds[str(of.pop("kind"))](**of) for task, of in of_tasks.items()}
