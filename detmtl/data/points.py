"""Points that belong to boxes, keypoints and outlines alike, on their way through augmentation.

They travel as shares of the picture's sides, so that resizing is nothing to them. Three probes of our
own go before them and tell whether the picture came out mirrored: then left and right keypoints
change places.
Letters: P points, N boxes, K keypoints.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from detmtl.data.details import mirror_partners
from detmtl.structures.details import Details
from detmtl.structures.labels import BoxLabels

_PROBES = np.array([[0.35, 0.35], [0.65, 0.35], [0.35, 0.65]])


def shares_of(labels: Mapping[str, BoxLabels], height: int, width: int) -> np.ndarray | None:
    """Returns all points (P, 2) float64 x, y of labels in a picture of height x width as shares of its
    sides, behind the probes; None if there are none."""
    parts = [part for known in labels.values() for part in _points(known.details)]
    if not parts:
        return None
    return np.concatenate([_PROBES, torch.cat(parts).double().numpy() / (width, height)])


def with_shares(
    labels: Mapping[str, BoxLabels], shares: np.ndarray | None, height: int, width: int
) -> Mapping[str, BoxLabels]:
    """Returns the labels with their points at `shares` (from `shares_of`, moved by steps) of a picture
    of height x width; keypoints outside of it are unknown, and areas are."""
    if shares is None:
        return labels
    a, b, c = shares[:3]
    mirrored = bool((b - a)[0] * (c - a)[1] < (b - a)[1] * (c - a)[0])
    points = torch.from_numpy((shares[3:] * (width, height)).astype(np.float32))
    out, first = {}, 0
    for name, known in labels.items():
        last = first + sum(len(part) for part in _points(known.details))
        details = known.details
        if details is not None:
            details = _moved(details, points[first:last], mirrored, height, width)
        out[name], first = replace(known, details=details), last
    return out


def _points(details: Details | None) -> list[Tensor]:
    """Returns the points of outlines and of the keypoints that are known, each (P, 2)."""
    parts = []
    if details is not None and details.outlines is not None:
        parts.append(details.outlines.points)
    if details is not None and details.keypoints is not None:
        parts.append(details.keypoints[details.keypoints[..., 2] > 0][:, :2])
    return parts


def _moved(details: Details, points: Tensor, mirrored: bool, height: int, width: int) -> Details:
    count = 0
    if details.outlines is not None:
        count = len(details.outlines.points)
        details = replace(details, outlines=replace(details.outlines, points=points[:count]))
    if details.keypoints is not None:
        known = details.keypoints[..., 2] > 0
        keypoints = details.keypoints.clone()
        keypoints[known] = torch.cat([points[count:], keypoints[known][:, 2:]], dim=1)
        x, y = keypoints[..., 0], keypoints[..., 1]
        inside = known & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        keypoints *= inside[..., None]
        if mirrored:
            keypoints = keypoints[:, _partners(details.keypoint_names)]
        details = replace(details, keypoints=keypoints)
    return replace(details, areas=None)


@lru_cache
def _partners(names: tuple[str, ...]) -> list[int]:
    return mirror_partners(names)
