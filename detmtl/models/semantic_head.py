"""A class per pixel from the levels of the pyramid.

Letters: B pictures, C classes, H and W positions of the finest level.
Source: Kirillov et al. 2019 (Panoptic FPN), arXiv 1901.02446, section 3.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.models.conv import Norm, conv
from detmtl.structures.settings import Settings


class SemanticHeadSettings(Settings):
    """Size of the head.

    Attributes:
        width: channels; None: as many as the pyramid has, at most 128 as in Panoptic FPN.
        norm: after each convolution.
    """

    width: int | None = Field(default=None, ge=1)
    norm: Norm = "group"

    def build(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        exact: bool = False,
    ) -> "SemanticHead":
        """Makes the head for levels of these channels and strides, each twice the one before; `exact`: see
        `SemanticHead`."""
        width = self.width or min(128, channels[0])
        return SemanticHead(channels, strides, num_classes, width, self.norm, exact)


class SemanticHead(nn.Module):
    """Each level is brought to the finest one's size, doubling by doubling, with a convolution before
    each; the sum of all gives the logits."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        width: int,
        norm: Norm,
        exact: bool = False,
    ):
        """Takes channels and strides of the levels, C, and what `SemanticHeadSettings` explains.

        Args:
            exact: whether the last convolution is computed in float32 under autocast: where outputs are
                values rather than classes' logits, bfloat16's 8 bits are too few.
        """
        super().__init__()
        self.exact = exact
        self.branches = nn.ModuleList(
            _branch(inside, width, (stride // strides[0]).bit_length() - 1, norm)
            for inside, stride in zip(channels, strides, strict=True)
        )
        self.logits = nn.Conv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.logits.weight, std=0.01)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns logits (B, C, H, W).

        Args:
            features: (B, channels, H / 2 ** k, W / 2 ** k) for level k.
        """
        merged = self.branches[0](features[0])
        for i, branch in enumerate(self.branches):
            if i > 0:
                merged = merged + branch(features[i])
        if self.exact:
            merged = merged.to(self.logits.weight.dtype)
            if not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
                with torch.autocast(merged.device.type, enabled=False):
                    return self.logits(merged)
        return self.logits(merged)


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Returns x (B, channels, H, W) at twice the size."""
        return F.interpolate(x, scale_factor=2.0, mode="bilinear")


def _branch(channels: int, width: int, doublings: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(max(1, doublings)):
        layers += [conv(channels if i == 0 else width, width, 3, norm), nn.ReLU(inplace=True)]
        if doublings:
            layers.append(_Double())
    return nn.Sequential(*layers)
