"""How many anchors learn each box under a task's matching, and how well they overlap it.

Few good anchors and many poor ones are two ways to hurt a detector: of a box that no anchor learns nothing
is learned, and anchors that hardly overlap their box teach its class to the background beside it.
Letters: N boxes, A anchors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detmtl.data.fit import InputSettings, fit_size
from detmtl.data.source import Source
from detmtl.models.atss import match_atss
from detmtl.models.matching import Rules, match
from detmtl.models.windows import grids
from detmtl.structures.boxes import iou
from detmtl.structures.labels import Ignore, pad_boxes
from detmtl.structures.sample import DIVISOR
from detmtl.tasks.detection import DetectionConfig

MOST = 200
"""Pictures that are looked at: an even sample of those of a larger data set."""

POOR = 0.4
"""An anchor of less IoU is background to the usual matching: Lin et al. 2017, arXiv 1708.02002, section 4."""


@dataclass(frozen=True)
class Learners:
    """What a matching gives the boxes of a data set.

    Attributes:
        pictures: how many of the pictures with boxes were looked at, and how many there are.
        boxes: how many ordinary boxes these have.
        unlearned: how many of them no anchor learns.
        anchors: how many anchors learn a box, on average.
        overlap: mean IoU of an anchor with the box that it learns; nan if there is none.
        poor: share of these anchors below `POOR`; nan if there is none.
    """

    pictures: tuple[int, int]
    boxes: int
    unlearned: int
    anchors: float
    overlap: float
    poor: float

    def told(self) -> str:
        """Returns it as a sentence."""
        seen, there = self.pictures
        sample = "" if seen == there else f" (in {seen} of {there} pictures)"
        start = f"matching: {self.unlearned} of {self.boxes} boxes{sample} are learned by no anchor"
        if math.isnan(self.overlap):
            return start
        return (
            f"{start}; on average {self.anchors:.1f} anchors learn one and overlap it by "
            f"{self.overlap:.2f}, {self.poor:.0%} of them by less than {POOR:g}"
        )


def learners(
    source: Source, size: InputSettings, task: DetectionConfig, strides: Sequence[int]
) -> Learners | None:
    """Matches the boxes of a source, in pictures as validation sees them; None without boxes.

    Args:
        source: pictures with boxes.
        size: of the network's pictures.
        task: its anchors and matching.
        strides: pixels, of the pyramid's levels.
    """
    if source.annotations is None:
        return None
    per_picture = np.bincount(source.annotations.image_index(), minlength=len(source))
    there = np.flatnonzero(per_picture)
    some = there[np.linspace(0, len(there) - 1, min(MOST, len(there))).round().astype(int)]
    made, rules = task.anchors.build(list(strides)), Rules(**task.matching.model_dump())
    counts, overlaps = [], []
    for i in some.tolist():
        labels = source.boxes(i)
        assert labels is not None
        file = (int(source.sizes[i, 0]), int(source.sizes[i, 1]))
        fitted = fit_size(*file, size.short, size.long)
        padded = [-(-side // DIVISOR) * DIVISOR for side in fitted]
        shapes = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in strides]
        levels = made.of_shapes(shapes, torch.device("cpu"))
        anchors, placed = torch.cat(levels), grids(levels, shapes)
        batch = pad_boxes([labels.resized(file, fitted)])
        matched = (match_atss if rules.kind == "atss" else match)(anchors, batch, rules, placed)
        positive = matched.positive[0].nonzero()[:, 0]
        learned = matched.index[0, positive]
        ordinary = batch.valid[0] & (batch.ignore[0] == Ignore.NO)
        counts.append(torch.bincount(learned, minlength=len(ordinary))[ordinary])
        pairs = iou(batch.boxes[0], anchors[positive])
        overlaps.append(pairs[learned, torch.arange(len(learned))])
    if not counts or not (count := torch.cat(counts)).numel():
        return None
    overlap = torch.cat(overlaps)
    return Learners(
        pictures=(len(some), len(there)),
        boxes=len(count),
        unlearned=int((count == 0).sum()),
        anchors=float(count.double().mean()),
        overlap=float(overlap.double().mean()),
        poor=float((overlap < POOR).double().mean()),
    )
