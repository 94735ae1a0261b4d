"""What positive anchors learn of their boxes: place, distances of the sides, quality.

| term | of | target |
|---|---|---|
| box | every head | the label's box |
| distribution | a head of distributions | the label's distances from the anchor's center |
| quality | a head with that branch | IoU of the predicted box with the label's, or the anchor's centerness |

All are weighted by the label's box weight: silver whose geometry is trusted less is so in each of them.
Letters: B pictures, A anchors of all levels, n bins, K rows that hold all positives.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.losses.boxes import ciou, diou, giou, l1, paired_iou, smooth_l1
from detmtl.losses.distribution import distribution_focal
from detmtl.models.anchors import Anchors
from detmtl.models.boxcoder import decode, encode
from detmtl.models.distances import centerness, decode_distances, encode_distances, expected
from detmtl.models.matching import Matches
from detmtl.models.retina_head import Quality
from detmtl.structures.labels import PaddedBoxes

BoxLoss = Literal["smooth_l1", "l1", "giou", "diou", "ciou"]
OF_BOXES = {"giou": giou, "diou": diou, "ciou": ciou}
"""Losses that compare boxes; the others compare deltas."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that are worked on, and what each learns.

    Attributes:
        place: (K,) int64 positions in the flattened (B, A), all positives among them, rising.
        picture: (K,) int64.
        own: (K, 4) their anchors.
        target: (K, 4) their labels' boxes. A row that is no positive compares its anchor with itself:
            finite, and weighted 0.
        weights: (K,) of the label's box weight and the picture's scale; 0 of a row that is no positive.
        every: whether these are all rows of all pictures.
    """

    place: Tensor
    picture: Tensor
    own: Tensor
    target: Tensor
    weights: Tensor
    every: bool = False

    @classmethod
    def of(
        cls,
        place: Tensor,
        anchors: Tensor,
        labels: PaddedBoxes,
        matches: Matches,
        scale: Tensor,
        every: bool = False,
    ) -> "Rows":
        """Looks up what anchors (A, 4) at `place` learn; scale (B,) is each picture's factor."""
        a = len(anchors)
        picture = torch.div(place, a, rounding_mode="floor")
        box = matches.index.view(-1)[place]
        on = matches.positive.view(-1)[place]
        own = anchors[place % a]
        target = torch.where(on[:, None], labels.boxes[picture, box], own)
        weights = labels.weights[picture, box, 1] * on * scale[picture]
        return cls(place, picture, own, target, weights, every)

    def sums(self, losses: Tensor, num_pictures: int) -> Tensor:
        """Returns each picture's weighted sum (B,) of losses (K,)."""
        weighted = losses * self.weights
        if self.every:  # no atomic additions, whose order is a matter of chance
            return weighted.view(num_pictures, -1).sum(1)
        return losses.new_zeros(num_pictures).index_add(0, self.picture, weighted)


class BoxTerms:
    """The terms of the boxes; the settings are explained in `detmtl.tasks.detection.LossSettings` and
    `detmtl.models.retina_head.HeadSettings`.

    Attributes:
        names: of the terms.
    """

    def __init__(
        self,
        anchors: Anchors,
        box: BoxLoss,
        beta: float,
        box_weight: float,
        distribution_weight: float = 0.25,
        quality_weight: float = 1.0,
        bins: int = 0,
        reach: float = 2.0,
        quality: Quality = "none",
    ):
        """Takes the head's anchors and settings; bins 0 stands for deltas."""
        self.anchors = anchors
        self.box: BoxLoss = box
        self.beta = beta
        self.box_weight = box_weight
        self.distribution_weight = distribution_weight
        self.quality_weight = quality_weight
        self.bins = bins
        self.reach = reach
        self.quality: Quality = quality
        more = {"distribution": bins > 0, "quality": quality != "none"}
        self.names = ("box", *(name for name, there in more.items() if there))

    def boxes(self, outputs: Tensor, own: Tensor) -> Tensor:
        """Returns the predicted boxes (K, 4) of anchors (K, 4).

        Args:
            outputs: (K, 4) deltas or (K, 4 * (n + 1)) distributions, float32 or float64.
            own: the anchors.
        """
        own = own.to(outputs.dtype)
        if self.bins == 0:
            return decode(own, self.anchors.units(outputs))
        return decode_distances(own, expected(outputs, self.bins), self.bins, self.reach)

    def terms(
        self,
        outputs: Tensor,
        boxes: Tensor | None,
        quality: Tensor | None,
        rows: Rows,
        fit: Tensor | None,
        num_pictures: int,
    ) -> dict[str, Tensor]:
        """Returns the terms' sums of each picture, (B,) each.

        Args:
            outputs: see `boxes`.
            boxes: what `boxes` returns; None where nothing needs it.
            quality: (K,) logits; None: the head has no such branch.
            rows: what is learned.
            fit: (K,) IoU of `boxes` with their targets; None where nothing needs it.
            num_pictures: B.
        """
        if boxes is not None and self.box in OF_BOXES:
            losses = OF_BOXES[self.box](boxes, rows.target)
        elif self.box == "l1":
            losses = l1(outputs, self.anchors.targets(encode(rows.own, rows.target)))
        else:
            target = self.anchors.targets(encode(rows.own, rows.target))
            losses = smooth_l1(outputs, target, self.beta)
        terms = {"box": self.box_weight * rows.sums(losses, num_pictures)}
        if self.bins:
            places = encode_distances(rows.own, rows.target, self.bins, self.reach)
            losses = distribution_focal(outputs.view(-1, 4, self.bins + 1), places).mean(1)
            terms["distribution"] = self.distribution_weight * rows.sums(losses, num_pictures)
        if quality is not None:
            target = centerness(rows.own, rows.target) if fit is None else fit
            losses = F.binary_cross_entropy_with_logits(
                quality, target.to(quality.dtype), reduction="none"
            )
            terms["quality"] = self.quality_weight * rows.sums(losses, num_pictures)
        return terms

    def needs_boxes(self) -> bool:
        """Returns whether the terms read the predicted boxes themselves."""
        return self.box in OF_BOXES or self.quality == "iou"


def overlap_of(boxes: Tensor, rows: Rows) -> Tensor:
    """Returns the IoU (K,) of predicted boxes (K, 4) with their targets, without a gradient."""
    return paired_iou(boxes.detach(), rows.target.to(boxes.dtype))
