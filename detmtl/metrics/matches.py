"""Detections matched to truth once, and COCO's numbers of any reweighting of the pictures.

A bootstrap over pictures needs the average precision of a thousand resamples. Which detection matches
which box of truth does not depend on them: only how often each picture counts does. So pictures are
matched once, and what is left for a resample is weighted counting, for many resamples at once.

Letters: I pictures, D detections, C classes, T IoU thresholds, A size ranges, B reweightings, P
detections that are right.

Source: the rules are pycocotools' (Lin et al. 2014, arXiv 1405.0312): weights of 1 give its numbers, and
weight w those of a data set that holds the picture w times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from detmtl.metrics.coco import Boxes
from detmtl.metrics.per_picture import mean_of_known
from detmtl.structures.whole import whole

THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)
RECALLS = np.linspace(0.0, 1.0, 101)
SIZES = {"": (0, 1e10), "small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e10)}
"""Range of areas in square pixels, both ends included."""
MOST = 100
"""Detections of one class and picture that count."""
CHUNK = 64
"""Reweightings that are counted together: their sums stay in the processor's cache."""

RIGHT, WRONG, UNCOUNTED = 1, 0, -1


@dataclass(frozen=True, eq=False)
class Matches:
    """What truth says of each detection.

    Attributes:
        class_names: the C classes.
        starts: (C + 1,) where the detections of each class start; they are sorted by class, then by
            falling score.
        images: (D,) position of the picture.
        scores: (D,).
        outcomes: (A, T, D) int8: RIGHT, WRONG, or UNCOUNTED (on a crowd, or of another size).
        truth: (A, I, C) boxes of truth that count.
    """

    class_names: tuple[str, ...]
    starts: np.ndarray
    images: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray
    truth: np.ndarray

    @property
    def num_images(self) -> int:
        return self.truth.shape[1]

    def save(self, path: Path) -> None:
        """Writes a file that `load` reads, whole or not at all."""
        with whole(path) as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                class_names=np.array(self.class_names),
                starts=self.starts,
                images=self.images,
                scores=self.scores,
                outcomes=self.outcomes,
                truth=self.truth,
            )

    @classmethod
    def load(cls, path: Path) -> "Matches":
        """Reads what `save` wrote."""
        with np.load(path) as kept:
            fields = {name: kept[name] for name in kept.files}
        return cls(class_names=tuple(fields.pop("class_names").tolist()), **fields)


def match(truth: Boxes, detections: Boxes, num_images: int, class_names: Sequence[str]) -> Matches:
    """Matches detections to truth at every IoU threshold and size range, as pycocotools does.

    Args:
        truth, detections: their images are positions 0..I-1, their categories 0..C-1.
        num_images: I.
        class_names: the C classes.
    """
    num_classes, areas = len(class_names), np.array(list(SIZES.values()))
    outside = _outside(truth.areas, areas) | truth.crowd
    wanted = np.zeros((len(areas), num_images, num_classes), dtype=np.int64)
    for a, ignored in enumerate(outside):
        np.add.at(wanted[a], (truth.images[~ignored], truth.categories[~ignored]), 1)
    rows, outcomes = [], []
    true_of = dict(_groups(truth, np.arange(len(truth.images)), num_classes))
    falling = np.argsort(-detections.scores, kind="stable")
    for key, mine in _groups(detections, falling, num_classes):
        mine = mine[:MOST]
        true = true_of.get(key, np.zeros(0, dtype=np.int64))
        crowd = truth.crowd[true]
        ious = np.zeros((len(mine), 0))
        if len(true):
            boxes = (detections.boxes_xywh[mine], truth.boxes_xywh[true])
            ious = np.asarray(coco_mask.iou(*boxes, crowd.astype(np.uint8)))
        off = _outside(detections.areas[mine], areas)
        rows.append(mine)
        outcomes.append(_judge(ious, outside[:, true], crowd, off))
    row = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    outcome = np.concatenate(
        [np.zeros((len(areas), len(THRESHOLDS), 0), dtype=np.int8), *outcomes], axis=2
    )
    classes, scores, images = (
        x[row] for x in (detections.categories, detections.scores, detections.images)
    )
    order = np.lexsort((images, -scores, classes))  # ties: by picture, as pycocotools has them
    return Matches(
        class_names=tuple(class_names),
        starts=np.searchsorted(classes[order], np.arange(num_classes + 1)),
        images=images[order],
        scores=scores[order],
        outcomes=outcome[:, :, order],
        truth=wanted,
    )


def average_precision(
    matches: Matches, weights: np.ndarray | None = None, size: str = ""
) -> np.ndarray:
    """Returns (B, T, C) average precision in [0, 1]; NaN where a class has no truth.

    Args:
        matches: from `match`.
        weights: (B, I) how often each picture counts; None: once, B = 1.
        size: of `SIZES`.
    """
    a = list(SIZES).index(size)
    weights = np.ones((1, matches.num_images)) if weights is None else weights
    num_classes = len(matches.class_names)
    found = np.full((len(weights), len(THRESHOLDS), num_classes), np.nan)
    for first in range(0, len(weights), CHUNK):
        part = weights[first : first + CHUNK].astype(float)
        wanted = part @ matches.truth[a]
        for c in range(num_classes):
            of_class = slice(int(matches.starts[c]), int(matches.starts[c + 1]))
            outcomes = matches.outcomes[a, :, of_class]
            mine = (outcomes != UNCOUNTED).any(axis=0)  # of one size few are
            of_dets = part[:, matches.images[of_class][mine]]
            values = precision_of_class(of_dets, outcomes[:, mine], wanted[:, c])
            values[wanted[:, c] == 0] = np.nan
            found[first : first + CHUNK, :, c] = values
    return found


def precisions(
    matches: Matches, weights: np.ndarray, sizes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns AP, AP50, AP75, AP_<size> and AP/<class> by name, each (B,).

    Args:
        matches: of all pictures.
        weights: (B, I) how often each picture counts.
        sizes: of `SIZES`.
    """
    found = average_precision(matches, weights)
    of_sizes = {size: average_precision(matches, weights, size) for size in sizes}
    return {
        "AP": mean_of_known(found.mean(axis=1)),
        "AP50": mean_of_known(found[:, 0]),
        "AP75": mean_of_known(found[:, 5]),
        **{f"AP_{size}": mean_of_known(of.mean(axis=1)) for size, of in of_sizes.items()},
        **{f"AP/{name}": found[:, :, c].mean(axis=1) for c, name in enumerate(matches.class_names)},
    }


def f1_at(
    matches: Matches, weights: np.ndarray | None = None, score_threshold: float = 0.5
) -> np.ndarray:
    """Returns (B,) the mean over classes with truth of F1 = 2 TP / (2 TP + FP + FN) at IoU .5.

    Arguments as of `average_precision`; detections of at least `score_threshold` count.
    """
    weights = np.ones((1, matches.num_images)) if weights is None else weights
    kept = matches.scores >= score_threshold
    counts = {}
    classes = np.repeat(np.arange(len(matches.class_names)), np.diff(matches.starts))
    for outcome in (RIGHT, WRONG):
        rows = np.flatnonzero(kept & (matches.outcomes[0, 0] == outcome))
        table = np.zeros(matches.truth.shape[1:])
        np.add.at(table, (matches.images[rows], classes[rows]), 1)
        counts[outcome] = weights @ table
    wanted = weights @ matches.truth[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 2 * counts[RIGHT] / (counts[RIGHT] + counts[WRONG] + wanted)
    values[wanted == 0] = np.nan
    return mean_of_known(values)


def reliability(matches: Matches, bins: int = 15) -> tuple[float, list[tuple[float, float, int]]]:
    """Returns the expected calibration error of scores as the probability of being right (IoU .5), and
    per bin of scores (mean score, share that is right, detections); empty bins are left out.

    Source: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning; Guo et
    al. 2017, arXiv 1706.04599, eq. 3. Detections on crowds do not count.
    """
    counted = matches.outcomes[0, 0] != UNCOUNTED
    scores, right = matches.scores[counted], matches.outcomes[0, 0][counted] == RIGHT
    if not len(scores):
        return float("nan"), []
    at = np.minimum((scores * bins).astype(int), bins - 1)
    table, error = [], 0.0
    for b in np.unique(at):
        mine = at == b
        score, share = float(scores[mine].mean()), float(right[mine].mean())
        table.append((score, share, int(mine.sum())))
        error += abs(score - share) * float(mine.mean())
    return error, table


def calibration_error(matches: Matches, weights: np.ndarray, bins: int = 15) -> np.ndarray:
    """Returns (B,) the error that `reliability` tells; NaN where no detection counts.

    Args:
        matches: from `match`.
        weights: (B, I) how often each picture counts.
        bins: of scores.
    """
    counted = matches.outcomes[0, 0] != UNCOUNTED
    scores, images = matches.scores[counted], matches.images[counted]
    off, found = np.zeros((matches.num_images, bins)), np.zeros(matches.num_images)
    at = np.minimum((scores * bins).astype(int), bins - 1)
    np.add.at(off, (images, at), scores - (matches.outcomes[0, 0][counted] == RIGHT))
    np.add.at(found, images, 1)
    weights = weights.astype(float)
    with np.errstate(invalid="ignore"):
        return np.abs(weights @ off).sum(axis=1) / (weights @ found)


def precision_of_class(weights: np.ndarray, outcomes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns (B, T) average precision of one class.

    The interpolated precision at a recall is the highest from there on, which is one of those at the
    P right detections: only they are looked at.

    Args:
        weights: (B, D). outcomes: (T, D). wanted: (B,) weighted boxes of truth.
    """
    out = np.zeros((len(weights), len(outcomes)))
    ignored, group = np.unique(outcomes == UNCOUNTED, axis=0, return_inverse=True)
    for g, uncounted in enumerate(ignored):
        counted = weights[:, ~uncounted]
        seen = np.cumsum(counted, axis=1)
        for t in np.flatnonzero(group.reshape(-1) == g):
            right = np.flatnonzero(outcomes[t, ~uncounted] == RIGHT)
            if not len(right):
                continue
            hits = np.cumsum(counted[:, right], axis=1)
            precision = hits / (seen[:, right] + np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(wanted, np.spacing(1))[:, None]
            reached = np.searchsorted(RECALLS, recall, side="right")
            steps = np.diff(reached, axis=1, prepend=0)
            out[:, t] = np.einsum("bp,bp->b", best, steps) / len(RECALLS)
    return out


def _judge(
    ious: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, outside: np.ndarray
) -> np.ndarray:
    """Returns (A, T, D) outcomes of one class in one picture.

    Each detection, best first, takes the free box of truth that it overlaps most, of several equal
    ones the last; one to be ignored only where no other will do. A crowd is never used up.

    Args:
        ious: (D, G). ignored: (A, G). crowd: (G,). outside: (A, D), detections of another size.
    """
    (num_areas, num_true), num_found = ignored.shape, len(ious)
    unmatched = np.where(outside, UNCOUNTED, WRONG).astype(np.int8)
    out = np.repeat(unmatched[:, None], len(THRESHOLDS), axis=1)
    free = np.ones((num_areas, len(THRESHOLDS), num_true), dtype=bool)
    a, t = np.ix_(np.arange(num_areas), np.arange(len(THRESHOLDS)))
    for d in range(num_found):
        if not num_true or ious[d].max() < THRESHOLDS[0]:
            continue
        able = free & (ious[d] >= THRESHOLDS[:, None])
        real = able & ~ignored[:, None]
        able = np.where(real.any(axis=-1, keepdims=True), real, able)
        found = able.any(axis=-1)
        best = num_true - 1 - np.argmax(np.where(able, ious[d], -1.0)[..., ::-1], axis=-1)
        taken = np.where(ignored[a, best], UNCOUNTED, RIGHT)
        out[:, :, d] = np.where(found, taken, out[:, :, d])
        free[a, t, best] &= ~found | crowd[best]
    return out


def _outside(areas: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Returns (A, N) which of the areas (N,) lie outside of each range (A, 2)."""
    return (areas < ranges[:, :1]) | (areas > ranges[:, 1:])


def _groups(boxes: Boxes, rows: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields for each picture and class a key and those of `rows`, in their order."""
    if not len(rows):
        return
    keys = boxes.images[rows] * num_classes + boxes.categories[rows]
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, cuts):
        yield int(keys[group[0]]), rows[group]
