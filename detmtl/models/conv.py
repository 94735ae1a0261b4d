"""The convolutions that necks and heads are made of."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["none", "group"]
"""Normalization after a convolution: none (and the convolution has a bias), or group norm."""

GROUP_CHANNELS = 8
"""Channels per group of group norm: 32 groups at the usual 256 channels."""


class GroupNorm(nn.GroupNorm):
    """Group norm that can be traced: without torch's check of sizes, which is a branch on a tensor."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `input` (B, C, H, W), normalized over groups of channels and positions."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: Norm = "none", stride: int = 1
) -> nn.Sequential:
    """Returns a convolution padded to keep the size (at stride 1), with its norm, if any."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=norm == "none",
        )
    ]
    if norm == "group":
        groups = out_channels // math.gcd(GROUP_CHANNELS, out_channels)
        layers.append(GroupNorm(groups, out_channels))
    return nn.Sequential(*layers)
