"""The feature pyramid: every level sees what the coarser levels recognized.

Letters: B pictures, C channels, H and W positions of a level.
Source: Lin et al. 2017 (FPN), arXiv 1612.03144; P6 and P7 as in RetinaNet, arXiv 1708.02002.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.models.conv import Norm, conv
from detmtl.structures.settings import Settings


class FPNSettings(Settings):
    """Width and levels of the pyramid.

    Attributes:
        channels: of every level.
        levels: how many, from P3 on: 5 is P3 to P7, 4 is P3 to P6, 3 is P3 to P5.
        p6_from: what P6 is computed from: "p5" (torchvision) or "c5" (the paper,
            detectron2, torchvision v2).
        norm: of the lateral and output convolutions.
    """

    channels: int = Field(default=256, ge=1)
    levels: int = Field(default=5, ge=3, le=6)
    p6_from: Literal["p5", "c5"] = "p5"
    norm: Norm = "none"

    def build(self, in_channels: list[int], in_strides: list[int]) -> "FPN":
        """Makes the pyramid on a backbone's features with these channels and strides."""
        return FPN(in_channels, self.channels, self.levels, self.p6_from, self.norm, in_strides)


class FPN(nn.Module):
    """Pyramid levels P3 .. P7 from the backbone's C3, C4 and C5.

    Attributes:
        channels: of each level.
        strides: pixels of the picture per position, of each level.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int = 256,
        num_levels: int = 5,
        p6_from: Literal["p5", "c5"] = "p5",
        norm: Norm = "none",
        in_strides: list[int] | None = None,
    ):
        """Takes the parts that `FPNSettings.build` gives.

        Args:
            in_channels: of the backbone's features, fine to coarse.
            out_channels: of every level.
            num_levels: at least the number of features; each further one halves the resolution.
            p6_from: what the first further level is computed from.
            norm: of the lateral and output convolutions.
            in_strides: of the features; None: 8, 16, 32 ...
        """
        super().__init__()
        num_extra = num_levels - len(in_channels)
        assert num_extra >= 0
        self.strides = list(in_strides or [8 * 2**i for i in range(len(in_channels))])
        self.strides += [self.strides[-1] * 2 ** (i + 1) for i in range(num_extra)]
        self.channels = [out_channels] * num_levels
        self.p6_from = p6_from
        self.laterals = nn.ModuleList(conv(c, out_channels, 1, norm) for c in in_channels)
        self.outputs = nn.ModuleList(conv(out_channels, out_channels, 3, norm) for _ in in_channels)
        first = in_channels[-1] if p6_from == "c5" else out_channels
        self.extras = nn.ModuleList(
            conv(out_channels if i else first, out_channels, 3, stride=2) for i in range(num_extra)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the levels (B, C, H, W), fine to coarse.

        Args:
            features: C3, C4 and C5, each (B, its channels, H, W); any sizes, each level about half
                the one before.
        """
        return self.levels(features, self.merged(features))

    def merged(self, features: list[Tensor]) -> list[Tensor]:
        """Returns what each level's output convolution gets: its lateral and all that is coarser."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            size = merged[i].shape[-2:]
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=size, mode="nearest")
        return merged

    def levels(self, features: list[Tensor], merged: list[Tensor]) -> list[Tensor]:
        """Returns the levels from the features and what `merged` made of them."""
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        extra = features[-1] if self.p6_from == "c5" else levels[-1]
        for i, block in enumerate(self.extras):
            extra = block(F.relu(extra) if i else extra)
            levels.append(extra)
        return levels

    def alone(self, features: list[Tensor], merged: list[Tensor], i: int) -> Tensor:
        """Returns level i < number of features - 1, of the same values, whose gradient does not reach what
        is coarser: of the pyramid its own lateral and output alone, of the backbone the layers below."""
        size = merged[i].shape[-2:]
        coarser = F.interpolate(merged[i + 1].detach(), size=size, mode="nearest")
        return self.outputs[i](self.laterals[i](features[i]) + coarser)
