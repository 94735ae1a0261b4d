"""The loss of a detection head, for every kind of label.

| case | class loss | box loss |
|---|---|---|
| ordinary box | target: its score; weight: its class weight | weight: its box weight |
| `Ignore.CLASS` | none of that class for anchors on it; positives untouched | none |
| `Ignore.REGION` | none for anchors inside it; positives untouched | none |
| class of coverage r | its negative loss is weighted by r, on positives of other classes too | - |
| picture looked at, empty | all negatives; the normalizer is at least 1 | none |
| picture not looked at | none, and no part in the normalizer | none |

With the class losses of `detmtl.losses.quality` a positive's target is its label's score times the IoU of
its predicted box with the label's; everything else in the table stays as it is. What the boxes learn is in
`detmtl.tasks.detection_boxes`.

Outputs: logits (B, A * C, H, W) for each of L levels, then boxes for each, then, of some heads, quality
for each: see `detmtl.models.retina_head.RetinaHead.forward`.
Letters: B pictures, C classes, L levels, A anchors (per position in outputs, else of all levels),
R rows (anchors of one level), M boxes of a picture, K positions of positives.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002; what coverage and ignored boxes do is ours.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detmtl.losses.focal import FocalTargets, focal_sums
from detmtl.losses.normalizer import Density, Normalizer, normalizer
from detmtl.losses.quality import quality_focal_sums, varifocal_sums
from detmtl.losses.terms import LossTerms
from detmtl.models.anchors import Anchors
from detmtl.models.atss import match_atss
from detmtl.models.decoding import rows_of
from detmtl.models.matching import Matches, Rules, match
from detmtl.models.windows import Grids, grids
from detmtl.structures.labels import PaddedBoxes
from detmtl.structures.sample import Batch
from detmtl.tasks.detection_boxes import BoxTerms, Rows, overlap_of

ClassLoss = Literal["focal", "quality_focal", "varifocal"]


class DetectionLoss:
    """Matches anchors with labels and sums the loss of all pictures.

    On a GPU nothing is waited for: positives are not counted, work on them is done for all anchors
    and masked. On a CPU just the positives are gathered, which is far faster there.

    Attributes:
        terms: names of what a call returns.
    """

    def __init__(
        self,
        anchors: Anchors,
        rules: Rules,
        alpha: float,
        gamma: float,
        normalizer: Normalizer,
        boxes: BoxTerms,
        classification: ClassLoss = "focal",
    ):
        """Takes the anchors of the head and what `detmtl.tasks.detection.LossSettings` explains.

        Args:
            boxes: the terms of the boxes.
        """
        self.anchors = anchors
        self.rules = rules
        self.alpha = alpha
        self.gamma = gamma
        self.normalizer: Normalizer = normalizer
        self.boxes = boxes
        self.terms = ("class", *boxes.names)
        self.classification: ClassLoss = classification
        self._grids: dict[tuple[tuple[int, int], ...], Grids] = {}

    def __call__(
        self,
        outputs: list[Tensor],
        labels: PaddedBoxes,
        batch: Batch,
        density: Density | None = None,
    ) -> LossTerms:
        """Returns `terms`, "class" and "box", scalars of at least float32; where the head has more
        outputs, "distribution" and "quality" too.

        Args:
            outputs: of the head, for each level; see the module.
            labels: of the B pictures.
            batch: the pictures' sources and weights.
            density: what the normalizer remembers of earlier batches.
        """
        num_classes = labels.coverage.shape[1]
        num_levels = len(outputs) // (2 if self.boxes.quality == "none" else 3)
        maps, of_boxes, of_quality = (
            outputs[i * num_levels : (i + 1) * num_levels] for i in range(3)
        )
        anchors = self.anchors.flat(maps)
        matches = self._match(anchors, labels, maps)
        positives = matches.positive.sum(1)
        scale = normalizer(self.normalizer, positives, labels.present, batch, density)
        logits = [rows_of(x, num_classes) for x in maps]
        learned, every = _learned(matches)
        rows = Rows.of(learned, anchors, labels, matches, scale, every)
        place = None if every else learned
        of_learned = _gather(of_boxes, 4 * (self.boxes.bins + 1), place)
        quality = _gather(of_quality, 1, place)[:, 0] if of_quality else None
        boxes, fit = None, None
        if self.boxes.needs_boxes() or self.classification != "focal":
            boxes = self.boxes.boxes(of_learned, rows.own)
        if boxes is not None and (self.boxes.quality == "iou" or self.classification != "focal"):
            fit = overlap_of(boxes, rows)
        of_class = fit if self.classification != "focal" else None
        targets = class_targets(logits, labels, matches, learned, scale, of_class, every)
        terms = {"class": self._class_sums(logits, targets)}
        of_quality_term = fit if self.boxes.quality == "iou" else None
        terms |= self.boxes.terms(of_learned, boxes, quality, rows, of_quality_term, len(positives))
        return LossTerms.of(terms)

    def _class_sums(self, logits: Sequence[Tensor], targets: Sequence[FocalTargets]) -> Tensor:
        if self.classification == "quality_focal":
            return quality_focal_sums(logits, targets, self.gamma)
        if self.classification == "varifocal":
            return varifocal_sums(logits, targets, 1 - self.alpha, self.gamma)
        return focal_sums(logits, targets, self.alpha, self.gamma)

    def _match(self, anchors: Tensor, labels: PaddedBoxes, maps: Sequence[Tensor]) -> Matches:
        if self.rules.kind == "atss":
            return match_atss(anchors, labels, self.rules, self._grids_of(maps))
        return match(anchors, labels, self.rules, self._grids_of(maps))

    def _grids_of(self, maps: Sequence[Tensor]) -> Grids:
        """Returns the grids of the anchors; read off anchors on the CPU, so that no device is waited for."""
        shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        if shapes not in self._grids:
            levels = self.anchors.of_shapes(list(shapes), torch.device("cpu"))
            self._grids[shapes] = grids(levels, shapes)
        return self._grids[shapes]


def class_targets(
    logits: Sequence[Tensor],
    labels: PaddedBoxes,
    matches: Matches,
    learned: Tensor,
    scale: Tensor,
    fit: Tensor | None = None,
    every: bool = False,
) -> list[FocalTargets]:
    """Returns what the logits (B, R, C) of each level shall become.

    A positive learns its box's score (times how well its predicted box fits, where that counts) as
    target of its box's class, weighted by the box's class weight. For all other classes it is a
    negative, as the negatives are for every class: target 0, weighted by the picture's coverage of the
    class.

    Args:
        logits: of each level.
        labels: of the pictures.
        matches: of all levels' anchors.
        learned: (K,) int64 positions in the flattened (B, A), all positives among them, rising.
        scale: (B,) factor of each picture's loss.
        fit: (K,) in [0, 1]; None: it does not count.
        every: whether `learned` are all positions.
    """
    b, a = matches.positive.shape
    kind = torch.promote_types(logits[0].dtype, torch.float32)
    weights = (labels.coverage * scale[:, None]).to(kind)
    off = ~(matches.positive | matches.negative)
    picture, anchor = torch.div(learned, a, rounding_mode="floor"), learned % a
    box = matches.index.view(-1)[learned]
    on = matches.positive.view(-1)[learned]
    classes = labels.classes[picture, box]
    targets = labels.scores[picture, box].to(kind)
    if fit is not None:
        targets = targets * fit.to(kind)
    own_weights = (labels.weights[picture, box, 0] * scale[picture]).to(kind)
    found, first = [], 0
    for x in logits:
        rows, num_classes = x.shape[1:]
        last = first + rows
        if every:  # in order: the level's are known without asking the device
            here = torch.arange(first, last, device=off.device)
            here = (torch.arange(b, device=off.device)[:, None] * a + here).view(-1)
        else:
            here = ((anchor >= first) & (anchor < last)).nonzero()[:, 0]
        found.append(
            FocalTargets(
                off=off[:, first:last],
                holes=None if matches.ignored is None else matches.ignored[:, first:last],
                weights=weights,
                own=(picture[here] * rows + anchor[here] - first) * num_classes + classes[here],
                own_on=on[here],
                own_targets=targets[here],
                own_weights=own_weights[here],
                every=every,
            )
        )
        first = last
    return found


def _learned(matches: Matches) -> tuple[Tensor, bool]:
    """Returns positions in the flattened (B, A) that hold all positives, and whether they are all there
    are: on a CPU just the positives; on a GPU all, since counting them would mean waiting for it."""
    flat = matches.positive.view(-1)
    if flat.is_cuda:
        return torch.arange(len(flat), device=flat.device), True
    return flat.nonzero()[:, 0], False


def _gather(maps: Sequence[Tensor], numbers: int, learned: Tensor | None) -> Tensor:
    """Returns rows (K, numbers) of maps (B, A * numbers, H, W) of all levels, at least float32.

    Args:
        learned: which; None: all. An index that is backward a sort of them is spared then.
    """
    rows = torch.cat([rows_of(x, numbers) for x in maps], dim=1).reshape(-1, numbers)
    rows = rows if learned is None else rows[learned]
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
