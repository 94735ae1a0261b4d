"""The loss of a detection head, for every kind of label.

| case | class loss | box loss |
|---|---|---|
| ordinary box | target: its score; weight: its class weight | weight: its box weight |
| `Ignore.CLASS` | none of that class for anchors on it; positives untouched | none |
| `Ignore.REGION` | none for anchors inside it; positives untouched | none |
| class of coverage r | its negative loss is weighted by r, on positives of other classes too | - |
| picture looked at, empty | all negatives; the normalizer is at least 1 | none |
| picture not looked at | none, and no part in the normalizer | none |

Outputs: logits (B, A * C, H, W) for each of L levels, then deltas (B, A * 4, H, W) for each.
Letters: B pictures, C classes, L levels, A anchors (per position in outputs, else of all levels),
R rows (anchors of one level), M boxes of a picture, K positions of positives.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002; what coverage and ignored boxes do is ours.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detmtl.losses.boxes import giou, l1, smooth_l1
from detmtl.losses.focal import FocalTargets, focal_sums
from detmtl.losses.normalizer import Density, Normalizer, normalizer
from detmtl.losses.terms import LossTerms
from detmtl.models.anchors import Anchors
from detmtl.models.boxcoder import decode, encode
from detmtl.models.matching import Matches, Rules, match
from detmtl.models.windows import Grid, grids
from detmtl.structures.labels import PaddedBoxes
from detmtl.structures.sample import Batch

BoxLoss = Literal["smooth_l1", "l1", "giou"]


class DetectionLoss:
    """Matches anchors with labels and sums the loss of all pictures.

    On a GPU nothing is waited for: positives are not counted, work on them is done for all anchors
    and masked. On a CPU just the positives are gathered, which is far faster there.
    """

    def __init__(
        self,
        anchors: Anchors,
        rules: Rules,
        alpha: float,
        gamma: float,
        box: BoxLoss,
        beta: float,
        box_weight: float,
        normalizer: Normalizer,
    ):
        """Takes the anchors of the head and what `detmtl.tasks.detection.LossSettings` explains."""
        self.anchors = anchors
        self.rules = rules
        self.alpha = alpha
        self.gamma = gamma
        self.box = box
        self.beta = beta
        self.box_weight = box_weight
        self.normalizer: Normalizer = normalizer
        self._grids: dict[tuple[tuple[int, int], ...], list[Grid]] = {}

    def __call__(
        self,
        outputs: list[Tensor],
        labels: PaddedBoxes,
        batch: Batch,
        density: Density | None = None,
    ) -> LossTerms:
        """Returns the terms "class" and "box", scalars of at least float32.

        Args:
            outputs: logits (B, A * C, H, W) for each level, then deltas (B, A * 4, H, W) for each.
            labels: of the B pictures.
            batch: the pictures' sources and weights.
            density: what the normalizer remembers of earlier batches.
        """
        num_classes = labels.coverage.shape[1]
        half = len(outputs) // 2
        levels = self.anchors(outputs[:half])
        anchors = self.anchors.flat(outputs[:half])
        matches = match(anchors, labels, self.rules, self._grids_of(levels, outputs[:half]))
        positives = matches.positive.sum(1)
        scale = normalizer(self.normalizer, positives, labels.present, batch, density)
        logits = [_rows(x, num_classes) for x in outputs[:half]]
        deltas = torch.cat([_rows(x, 4) for x in outputs[half:]], dim=1)
        learned = _learned(matches)
        targets = class_targets(logits, labels, matches, learned, scale)
        return LossTerms.of(
            {
                "class": focal_sums(logits, targets, self.alpha, self.gamma),
                "box": self._box_term(deltas, anchors, labels, matches, learned, scale),
            }
        )

    def _box_term(
        self,
        deltas: Tensor,
        anchors: Tensor,
        labels: PaddedBoxes,
        matches: Matches,
        learned: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """Returns each picture's sum over positive anchors of box loss, box weight and scale, (B,)."""
        a = len(anchors)
        picture = torch.div(learned, a, rounding_mode="floor")
        box = matches.index.view(-1)[learned]
        on = matches.positive.view(-1)[learned]
        own = anchors[learned % a]
        # Rows that are no positives compare an anchor with itself: finite, and weighted 0.
        target = torch.where(on[:, None], labels.boxes[picture, box], own)
        predicted = deltas.reshape(-1, 4)[learned]
        if predicted.dtype in (torch.float16, torch.bfloat16):
            predicted = predicted.float()
        if self.box == "giou":
            losses = giou(decode(own.to(predicted.dtype), self.anchors.units(predicted)), target)
        elif self.box == "l1":
            losses = l1(predicted, self.anchors.targets(encode(own, target)))
        else:
            losses = smooth_l1(predicted, self.anchors.targets(encode(own, target)), self.beta)
        weights = labels.weights[picture, box, 1] * on * scale[picture]
        sums = losses.new_zeros(len(deltas)).index_add(0, picture, losses * weights)
        return self.box_weight * sums

    def _grids_of(self, levels: list[Tensor], maps: list[Tensor]) -> list[Grid] | None:
        if levels[0].device.type != "cpu":
            return None
        shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        if shapes not in self._grids:
            self._grids[shapes] = grids(levels, shapes)
        return self._grids[shapes]


def class_targets(
    logits: Sequence[Tensor],
    labels: PaddedBoxes,
    matches: Matches,
    learned: Tensor,
    scale: Tensor,
) -> list[FocalTargets]:
    """Returns what the logits (B, R, C) of each level shall become.

    A positive learns its box's score as target of its box's class, weighted by the box's class
    weight. For all other classes it is a negative, as the negatives are for every class: target 0,
    weighted by the picture's coverage of the class.

    Args:
        logits: of each level.
        labels: of the pictures.
        matches: of all levels' anchors.
        learned: (K,) int64 positions in the flattened (B, A), all positives among them, rising.
        scale: (B,) factor of each picture's loss.
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
    own_weights = (labels.weights[picture, box, 0] * scale[picture]).to(kind)
    found, first = [], 0
    for x in logits:
        rows, num_classes = x.shape[1:]
        last = first + rows
        if off.is_cuda:  # all positions in order: the level's are known without asking the device
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
            )
        )
        first = last
    return found


def _learned(matches: Matches) -> Tensor:
    """Returns positions in the flattened (B, A) that hold all positives: on a CPU just these; on a
    GPU all positions, since counting the positives would mean waiting for it."""
    flat = matches.positive.view(-1)
    if flat.is_cuda:
        return torch.arange(len(flat), device=flat.device)
    return flat.nonzero()[:, 0]


def _rows(maps: Tensor, numbers: int) -> Tensor:
    """Returns (B, A * numbers, H, W) as (B, H * W * A, numbers); of a channels_last map a view."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, numbers)
