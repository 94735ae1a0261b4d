"""Several teachers' boxes of one object become one.

Letters: N boxes, M fused boxes, T teachers, C classes.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat

from detmtl.structures.errors import missing_package
from detmtl.structures.settings import Settings


class FusionSettings(Settings):
    """How boxes of several teachers become one label."""

    method: Literal["weighted", "nms", "soft_nms"] = "weighted"
    """`weighted`: boxes that overlap become their mean, weighted by score (weighted boxes fusion);
    `nms`: the best of them stays; `soft_nms`: all stay, with lower scores the more better boxes
    overlap them."""
    overlap: float = Field(default=0.65, gt=0, lt=1)
    """IoU above which boxes of one class are of one object (not for `soft_nms`). The paper has 0.55; 0.65
    gave the best AP of 0.55, 0.6, 0.65 and 0.7 on the training pictures of coco128."""
    score: Literal["average", "teachers", "absent", "maximum"] = "average"
    """Of a `weighted` box: the mean score of its boxes times
    `average`: boxes per teacher that knows the class, at most 1 (the paper's);
    `teachers`: the share of the teachers that knows the class and has a box among them;
    `absent`: counting a score of 0 for each teacher that knows the class and has none;
    `maximum`: the highest score instead of the mean."""
    sigma: PositiveFloat = 0.5
    """Of `soft_nms`: scores fall by exp(-IoU^2 / sigma). 0.5 is the paper's."""
    weights: dict[str, PositiveFloat] | None = None
    """Teacher -> weight of its scores in a `weighted` box, 1 where it is not named; None: the mean
    probability of the teacher's boxes that gold confirms, which is high where it tells right from wrong."""


@dataclass(frozen=True, eq=False)
class Fused:
    """Fused boxes, by picture and falling score.

    Attributes:
        boxes: (M, 4) float64 xyxy.
        scores: (M,) float64 in [0, 1].
        classes, pictures: (M,) int64.
        member: (N,) int64, which fused box each given box is part of; in `nms` those that went are
            part of the one that took them away.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    pictures: np.ndarray
    member: np.ndarray


def require_numba() -> None:
    """Refuses to go on without numba.

    Raises:
        InputError: says how to install it.
    """
    if importlib.util.find_spec("numba") is None:
        raise missing_package("numba", "fusion", "fusing the boxes of several teachers")


def fuse(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    teachers: np.ndarray,
    pictures: np.ndarray,
    known: np.ndarray,
    settings: FusionSettings,
    weights: np.ndarray | None = None,
) -> Fused:
    """Fuses the boxes of each class in each of many pictures; the order of rows of equal score counts.

    A teacher that does not know a class abstains: it counts in no mean of that class.

    Args:
        boxes: (N, 4) xyxy. scores: (N,) in [0, 1]; calibrated, or else the loudest teacher wins.
        classes: (N,) int in 0..C-1. teachers: (N,) int in 0..T-1. pictures: (N,) int.
        known: (T, C) bool.
        settings: how.
        weights: (T,) of the teachers' scores; None: 1.

    Raises:
        InputError: numba is missing.

    Source: weighted boxes fusion: Solovyev et al. 2019, arXiv 1910.13302, section 3; soft-NMS: Bodla
        et al. 2017, arXiv 1704.04503, equation 3. Abstaining is ours.
    """
    require_numba()
    from detmtl.silver import fusion_loops

    weights = np.ones(len(known)) if weights is None else weights
    weighted = settings.method == "weighted"
    worth = scores * weights[teachers] if weighted else np.asarray(scores, dtype=np.float64)
    order = np.lexsort((-worth, classes, pictures))
    new = np.diff(pictures[order]) != 0
    new |= np.diff(classes[order]) != 0
    ends = np.append(np.flatnonzero(new) + 1, len(order))
    sides, falling = np.ascontiguousarray(boxes[order], dtype=np.float64), worth[order]
    if weighted:
        founder, sides = fusion_loops.weighted(
            sides, np.maximum(falling, 1e-12), ends, settings.overlap
        )
    else:
        soft = settings.method == "soft_nms"
        limit, sigma = (2.0, settings.sigma) if soft else (settings.overlap, 0.0)
        falling, founder = fusion_loops.suppressed(sides, falling, ends, limit, sigma)
    heads = np.flatnonzero(founder == np.arange(len(founder)))
    cluster = np.empty(len(founder), dtype=np.int64)
    cluster[heads] = np.arange(len(heads))
    member = np.empty_like(cluster)
    member[order] = cluster[founder]
    value = falling[heads]
    if weighted:
        value = _scores(member, worth, teachers, classes[order[heads]], known, weights, settings)
    at = order[heads]
    by_score = np.lexsort((-value, pictures[at]))
    rank = np.empty_like(by_score)
    rank[by_score] = np.arange(len(by_score))
    return Fused(
        sides[heads][by_score],
        value[by_score].clip(0, 1),
        classes[at][by_score],
        pictures[at][by_score],
        rank[member],
    )


def _scores(
    member: np.ndarray,
    worth: np.ndarray,
    teachers: np.ndarray,
    classes: np.ndarray,
    known: np.ndarray,
    weights: np.ndarray,
    settings: FusionSettings,
) -> np.ndarray:
    """Returns the scores (M,) of clusters of `classes` (M,); `worth` (N,): score times weight."""
    m = len(classes)
    size = np.bincount(member, minlength=m)
    total = np.bincount(member, worth, minlength=m)
    voters = known.sum(axis=0)[classes]
    voices = (known * weights[:, None]).sum(axis=0)[classes]
    if settings.score == "maximum":
        highest = np.zeros(m)
        np.maximum.at(highest, member, worth)
        return highest / (known * weights[:, None]).max(axis=0)[classes]
    if settings.score == "average":
        return total / size * np.minimum(voters, size) / voices
    there = np.zeros((m, len(known)), dtype=bool)
    there[member, teachers] = True
    present, own = there @ weights, np.bincount(member, weights[teachers], minlength=m)
    if settings.score == "teachers":
        return total / own * present / voices
    return total / (own + voices - present)
