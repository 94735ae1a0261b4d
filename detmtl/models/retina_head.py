"""RetinaNet's head: two towers of convolutions, shared by all levels of the pyramid.

Letters: B pictures, A anchors per position, C classes, H and W positions of a level.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002, section 4.
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
    """

    depth: int = Field(default=4, ge=0)
    width: int | None = Field(default=None, ge=1)
    norm: Norm = "none"
    init: Init = "fan_in"
    prior: float = Field(default=0.01, gt=0, lt=1)

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
        )


class RetinaHead(nn.Module):
    """Class logits and box deltas for every anchor of every level."""

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
    ):
        """Takes channels of the levels and A, C; the rest as in `HeadSettings`."""
        super().__init__()
        width = width or in_channels
        self.class_tower = _tower(in_channels, width, depth, norm)
        self.box_tower = _tower(in_channels, width, depth, norm)
        last = width if depth else in_channels
        self.class_logits = nn.Conv2d(last, num_anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(last, num_anchors * 4, 3, padding=1)
        self._initialize(init, prior)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns logits and deltas of each level.

        Args:
            features: levels (B, in_channels, H, W).

        Returns:
            logits: for each level (B, A * C, H, W); channel a * C + c is class c of anchor a.
            deltas: for each level (B, A * 4, H, W); see `boxcoder.encode`.
        """
        logits = [self.class_logits(_run(self.class_tower, x)) for x in features]
        deltas = [self.box_deltas(_run(self.box_tower, x)) for x in features]
        return logits, deltas

    def _initialize(self, init: Init, prior: float) -> None:
        for module in self.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if init == "torchvision":
                nn.init.normal_(module.weight, std=0.01)
            elif init == "orthogonal":
                nn.init.orthogonal_(module.weight)
            elif module is self.class_logits or module is self.box_deltas:
                # .01 at 256 channels, and outputs of the same size at any other width.
                nn.init.normal_(module.weight, std=0.01 * math.sqrt(256 / module.in_channels))
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))


def _tower(in_channels: int, width: int, depth: int, norm: Norm) -> nn.ModuleList:
    return nn.ModuleList(conv(width if i else in_channels, width, 3, norm) for i in range(depth))


def _run(tower: nn.ModuleList, x: Tensor) -> Tensor:
    for block in tower:
        x = F.relu(block(x), inplace=True)
    return x
