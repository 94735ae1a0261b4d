"""Masks or keypoints matched to truth once: their numbers of resampled pictures are weighted counting.

Letters: I pictures, C classes, D detections, T IoU (or OKS) thresholds, A size ranges, B reweightings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detmtl.metrics.matches import (
    RIGHT,
    SIZES,
    THRESHOLDS,
    UNCOUNTED,
    WRONG,
    Matches,
    precisions,
)


@dataclass(frozen=True, eq=False)
class ShapeCounts:
    """What the numbers of masks or of keypoints are made of; see `PerPicture`.

    Attributes:
        class_names: (C,).
        told: names of `SIZES` by which AP is told too.
        starts, images, scores, outcomes, truth: as in `Matches`.
        on_truth: (I, 2) sum over the boxes of truth that the task looked at, and how many they are.
        measure: () name of what is summed.
    """

    class_names: np.ndarray
    told: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray
    truth: np.ndarray
    on_truth: np.ndarray
    measure: np.ndarray

    def __len__(self) -> int:
        return len(self.on_truth)

    def numbers(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns AP, AP50, AP75, those of the sizes and of each class, and the mean on boxes of truth,
        each (B,)."""
        names = tuple(self.class_names.tolist())
        matches = Matches(names, self.starts, self.images, self.scores, self.outcomes, self.truth)
        total, count = (weights.astype(float) @ self.on_truth).T
        with np.errstate(invalid="ignore"):
            mean = total / count
        return {
            **precisions(matches, weights, self.told.tolist()),
            f"on_truth/{self.measure}": mean,
        }

    @classmethod
    def of(
        cls,
        judged: Sequence[Mapping[str, Any] | None],
        class_names: Sequence[str],
        sizes: Sequence[str],
        told: Sequence[str],
        on_truth: np.ndarray,
        measure: str,
    ) -> "ShapeCounts":
        """Takes what pycocotools found.

        Args:
            judged: its `evalImgs`, by class, size range and picture; None where a picture has neither truth
                nor detections of a class.
            class_names: the C classes in the order of its categories.
            sizes: names of its size ranges, of `SIZES`; the first is "", all.
            told: those by which AP is told too.
            on_truth, measure: see the attributes.
        """
        num_classes, num_images = len(class_names), len(on_truth)
        truth = np.zeros((len(SIZES), num_images, num_classes), dtype=np.uint16)
        scores, where = [np.zeros(0)], []
        outcomes = [np.zeros((len(SIZES), len(THRESHOLDS), 0), dtype=np.int8)]
        all_sizes = list(SIZES)
        for c in range(num_classes):
            for i in range(num_images):
                first = c * len(sizes) * num_images + i
                of_all = judged[first : first + len(sizes) * num_images : num_images]
                of_sizes = [one for one in of_all if one is not None]
                if not of_sizes:
                    continue
                its_scores = np.asarray(of_sizes[0]["dtScores"], dtype=float)
                outcome = np.full(
                    (len(SIZES), len(THRESHOLDS), len(its_scores)), UNCOUNTED, np.int8
                )
                for size, one in zip(sizes, of_sizes, strict=True):
                    a = all_sizes.index(size)
                    truth[a, i, c] = (np.asarray(one["gtIgnore"]) == 0).sum()
                    hit = np.where(np.asarray(one["dtMatches"]) > 0, RIGHT, WRONG)
                    outcome[a] = np.where(one["dtIgnore"], UNCOUNTED, hit)
                scores.append(its_scores)
                outcomes.append(outcome)
                where.append((i, c, len(its_scores)))
        image, of, count = np.array([(0, 0, 0), *where]).T
        images, classes, score = (
            np.repeat(image, count),
            np.repeat(of, count),
            np.concatenate(scores),
        )
        order = np.lexsort((images, -score, classes))  # ties: by picture, as pycocotools has them
        return cls(
            class_names=np.array(class_names, dtype=str),
            told=np.array(told, dtype=str),
            starts=np.searchsorted(classes[order], np.arange(num_classes + 1)),
            images=images[order].astype(np.int32),
            scores=score[order],
            outcomes=np.concatenate(outcomes, axis=2)[:, :, order],
            truth=truth,
            on_truth=on_truth,
            measure=np.array(measure),
        )
