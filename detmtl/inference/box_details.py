"""What was found of boxes beyond place and class, in COCO's words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from detmtl.data.outlines import pasted
from detmtl.structures.details import merged, value_groups
from detmtl.structures.labels import BoxLabels, Labels

SHOWN = 0.1
"""Least confidence of a keypoint that is written as seen; below, as hidden."""


def with_details(found: Mapping[str, Labels]) -> dict[str, Labels]:
    """Returns task name -> labels, where tasks that describe the boxes of another are merged into it."""
    out: dict[str, Labels] = {}
    described = {n: x for n, x in found.items() if isinstance(x, BoxLabels) and x.details}
    for name, labels in found.items():
        if name in described:
            continue
        if isinstance(labels, BoxLabels):
            for other in described.values():
                if torch.equal(other.boxes, labels.boxes):
                    labels = replace(labels, details=merged(labels.details, other.details))
        out[name] = labels
    return out


def described(labels: BoxLabels, height: int, width: int) -> list[dict[str, Any]]:
    """Returns the further keys of each box's COCO annotation: attributes, segmentation, keypoints.

    Args:
        labels: of a picture.
        height, width: of the picture.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(len(labels))]
    details = labels.details
    if details is None:
        return rows
    if details.attributes is not None:
        groups = value_groups(details.attribute_names)
        for row, values in zip(rows, details.attributes.tolist(), strict=True):
            pairs = zip(groups.items(), values, strict=True)
            row["attributes"] = {name: of[v] for (name, of), v in pairs if v >= 0}
    if details.masks is not None:
        shapes = pasted(details.masks, labels.boxes, height, width)
        for row, shape in zip(rows, shapes, strict=True):
            row["segmentation"] = {"size": [height, width], "counts": shape["counts"].decode()}
    if details.keypoints is not None:
        for row, points in zip(rows, details.keypoints, strict=True):
            mine = [k for k in range(len(points)) if float(points[k, 2]) > 0]
            if mine:
                own = points[mine].tolist()
                values = [[round(x, 2), round(y, 2), 2 if p >= SHOWN else 1] for x, y, p in own]
                row["keypoints"] = [v for point in values for v in point]
                row["num_keypoints"] = len(mine)
                row["keypoint_scores"] = [round(p, 4) for _, _, p in own]
    return rows


def keypoints_by_class(names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Returns class -> the further keys of its COCO category, of names `class/keypoint`."""
    return {owner: {"keypoints": points} for owner, points in value_groups(names).items()}
