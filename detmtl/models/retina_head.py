"""RetinaNet's head: two towers of convolutions, shared by all levels of the pyramid.

Letters: B pictures, A anchors per position, C classes, H and W positions of a level, n bins.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002, section 4. Distributions: Li et al. 2020,
arXiv 2006.04388; the branch for quality on the tower of the boxes: Wu et al. 2019, arXiv 1912.05992.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.models.conv import Norm, conv
from detmtl.structures.settings import Settings

Init = Literal["fan_in", "torchvision", "orthogonal"]
BoxOutput = Literal["deltas", "distribution"]
Quality = Literal["none", "iou", "centerness"]

SPREAD = 2.0
"""Standard deviation, in bins, of the distribution that every side starts with."""


class HeadSettings(Settings):
    """Size and initialization of the head.

    Attributes:
        depth: convolutions in each tower, before the one that makes the outputs.
        width: channels of the towers; None: as many as the pyramid has.
        norm: after each convolution of a tower.
        init: "fan_in" keeps the signal's size at any width; "torchvision" is a standard deviation of
            .01 everywhere, made for 256 channels: narrower towers are starved by it; "orthogonal" is
            keras'.
        prior: probability that each class starts with at every anchor.
        box: what the network says of a box: "deltas" from the anchor, or a "distribution" of each side's
            distance (see `detmtl.models.distances`), learned by the distribution focal loss.
        bins: of a distribution: n + 1 places for each side.
        reach: of a distribution: its largest distance, in sides of the anchor. 2 is as far as a box that
            overlaps an anchor by half can reach from its center.
        quality: one more output for each anchor: the "iou" of its box with the object's, or its
            "centerness" in it. It lowers the scores of boxes that don't fit, see `test.quality_power`.
    """

    depth: int = Field(default=4, ge=0)
    width: int | None = Field(default=None, ge=1)
    norm: Norm = "none"
    init: Init = "fan_in"
    prior: float = Field(default=0.01, gt=0, lt=1)
    box: BoxOutput = "deltas"
    bins: int = Field(default=16, ge=2, le=64)
    reach: float = Field(default=2.0, ge=0.5, le=16)
    quality: Quality = "none"

    @property
    def used_bins(self) -> int:
        """The number of bins; 0: boxes are deltas."""
        return self.bins if self.box == "distribution" else 0

    def build(self, in_channels: int, num_anchors: int, num_classes: int) -> "RetinaHead":
        """Makes the head for levels of `in_channels` channels."""
        return RetinaHead(
            in_channels,
            num_anchors,
            num_classes,
            depth=self.depth,
            width=self.width,
            norm=self.norm,
            init=self.init,
            prior=self.prior,
            bins=self.used_bins,
            reach=self.reach,
            quality=self.quality != "none",
        )


class RetinaHead(nn.Module):
    """Class logits and boxes for every anchor of every level, and where asked for a box's quality.

    Can be compiled by `torch.jit.script`.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        depth: int = 4,
        width: int | None = None,
        norm: Norm = "none",
        init: Init = "fan_in",
        prior: float = 0.01,
        bins: int = 0,
        reach: float = 2.0,
        quality: bool = False,
    ):
        """Takes channels of the levels and A, C; the rest as in `HeadSettings`, with bins 0 for deltas."""
        super().__init__()
        width = width or in_channels
        self.class_tower = _tower(in_channels, width, depth, norm)
        self.box_tower = _tower(in_channels, width, depth, norm)
        last = width if depth else in_channels
        self.class_logits = nn.Conv2d(last, num_anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(last, num_anchors * 4 * (bins + 1), 3, padding=1)
        self.quality_logits = nn.Conv2d(last, num_anchors, 3, padding=1) if quality else None
        self._initialize(init, prior)
        if bins:
            self._start_at_anchors(bins, reach)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns logits of each level, and boxes of each level, with their quality where the head has it.

        Args:
            features: levels (B, in_channels, H, W).

        Returns:
            logits: for each level (B, A * C, H, W); channel a * C + c is class c of anchor a.
            boxes: for each level (B, A * 4, H, W), see `boxcoder.encode`; of distributions
                (B, A * 4 * (n + 1), H, W), see `distances.expected`. In the same list follow, of a head
                with a branch for quality, its logits for each level (B, A, H, W): two lists, whatever the
                head says, can be traced and scripted.
        """
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        quality: list[Tensor] = []
        for x in features:
            y = x
            for block in self.class_tower:
                y = F.relu(block(y), inplace=True)
            logits.append(self.class_logits(y))
            y = x
            for block in self.box_tower:
                y = F.relu(block(y), inplace=True)
            boxes.append(self.box_deltas(y))
            if self.quality_logits is not None:
                quality.append(self.quality_logits(y))
        return logits, boxes + quality

    def _initialize(self, init: Init, prior: float) -> None:
        for module in self.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if init == "torchvision":
                nn.init.normal_(module.weight, std=0.01)
            elif init == "orthogonal":
                nn.init.orthogonal_(module.weight)
            elif module in (self.class_logits, self.box_deltas, self.quality_logits):
                # .01 at 256 channels, and outputs of the same size at any other width.
                nn.init.normal_(module.weight, std=0.01 * math.sqrt(256 / module.in_channels))
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))

    def _start_at_anchors(self, bins: int, reach: float) -> None:
        """Lets every side start about where the anchor has it, as it does with deltas of 0.

        From even distributions, whose mean is half the reach, all boxes would start twice as large.
        """
        assert self.box_deltas.bias is not None
        away = torch.arange(bins + 1) - 0.5 / reach * bins
        start = -0.5 * (away / SPREAD).square()
        with torch.no_grad():
            self.box_deltas.bias.copy_(start.repeat(len(self.box_deltas.bias) // (bins + 1)))


def _tower(in_channels: int, width: int, depth: int, norm: Norm) -> nn.ModuleList:
    return nn.ModuleList(conv(width if i else in_channels, width, 3, norm) for i in range(depth))
