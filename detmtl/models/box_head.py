"""A head that looks at each box by itself: features within it, a few convolutions, an output.

Both compile under TorchScript. Letters: B pictures, R boxes of all pictures, C channels, L levels, S cells
along a side, H and W positions of a level.
Source: He et al. 2017 (Mask R-CNN), arXiv 1703.06870; a box's level by Lin et al. 2017 (FPN),
arXiv 1612.03144, eq. 1, with P2 left out. On RetinaNet's pyramid: Fu et al. 2019 (RetinaMask),
arXiv 1901.03353.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from detmtl.models.conv import Norm, conv
from detmtl.structures.settings import Settings

_CELLS = 14
"""Cells of a level along the square root of a box's area, at least, where a finer level is left for it:
FPN's 224 pixels on the level of stride 16."""


class BoxHeadSettings(Settings):
    """The layers of a head that looks at each box.

    Attributes:
        side: cells along a side into which the features of a box are sampled.
        depth: 3 x 3 convolutions.
        channels: of them; None: as many as the levels have.
        norm: after each of them.
    """

    side: int = Field(default=14, ge=1, le=64)
    depth: int = Field(default=4, ge=0)
    channels: int | None = Field(default=None, ge=1)
    norm: Norm = "none"

    def build(
        self, channels: int, strides: Sequence[int], outputs: int, up: bool, mean: bool = False
    ) -> "BoxHead":
        """Makes a head with random weights.

        Args:
            channels: of each level.
            strides: of each level, rising.
            outputs: numbers for each cell.
            up: whether the output has twice as many cells along a side.
            mean: whether the output is one mean over all cells.
        """
        wide = self.channels or channels
        layers: list[nn.Module] = []
        for k in range(self.depth):
            layers += [conv(wide if k else channels, wide, 3, self.norm), nn.ReLU()]
        last = nn.Conv2d(wide if self.depth else channels, outputs, 1)
        for layer in [m for part in layers for m in part.modules()]:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=0.01)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        pool = BoxPool(self.side, list(strides))
        return BoxHead(pool, nn.Sequential(*layers), last, up, mean)


class BoxPool(nn.Module):
    """Samples the features within boxes, each from the level that fits its size.

    Args:
        side: cells along a side of the result.
        strides: pixels between the positions of each level, rising powers of 2.
    """

    def __init__(self, side: int, strides: list[int]):
        super().__init__()
        self.side = side
        self.strides = strides
        self.finest = float(strides[0] * _CELLS)
        self.everywhere = False
        """Whether boxes are sampled in all levels even on a CPU: in a graph of fixed shapes, where no number
        of boxes may depend on values."""

    def forward(self, features: list[Tensor], boxes: Tensor, picture: Tensor) -> Tensor:
        """Returns (R, C, S, S), at least float32, bilinear means of 2 x 2 samples a cell.

        Args:
            features: (B, C, H, W) of each level.
            boxes: (R, 4) xyxy, pixels of the network's picture.
            picture: (R,) int64, which of the B pictures each box is of.
        """
        maps: list[Tensor] = []
        for x in features:
            maps.append(x if x.dtype == torch.float64 else x.float())
        level = self.levels(boxes)
        rois = torch.cat([picture.unsqueeze(1).to(maps[0].dtype), boxes.to(maps[0].dtype)], dim=1)
        if self.everywhere or boxes.is_cuda:
            # on a GPU, counting the boxes of a level would mean waiting for it
            found = self._sampled(maps[0], rois, 0)
            for i in range(1, len(maps)):
                mine = (level == i).view(-1, 1, 1, 1)
                found = torch.where(mine, self._sampled(maps[i], rois, i), found)
            return found
        parts: list[Tensor] = []
        rows: list[Tensor] = []
        for i in range(len(maps)):
            mine = torch.nonzero(level == i).squeeze(1)
            parts.append(self._sampled(maps[i], rois[mine], i))
            rows.append(mine)
        return torch.cat(parts)[torch.argsort(torch.cat(rows))]

    def levels(self, boxes: Tensor) -> Tensor:
        """Returns for each box (R, 4) the index (R,) of its level: the finest one up to 28 cells along
        the square root of its area, then each doubling one coarser."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
        size = torch.sqrt(sides[:, 0] * sides[:, 1]) / self.finest
        return torch.floor(torch.log2(size) + 1e-6).clamp(0, len(self.strides) - 1).long()

    def _sampled(self, features: Tensor, rois: Tensor, level: int) -> Tensor:
        side, scale = [self.side, self.side], 1.0 / self.strides[level]
        return roi_align(features, rois, side, scale, sampling_ratio=2, aligned=True)


class BoxHead(nn.Module):
    """Convolutions on what `BoxPool` samples.

    Args:
        pool, body, last: the parts.
        up, mean: see `BoxHeadSettings.build`.
    """

    def __init__(self, pool: BoxPool, body: nn.Sequential, last: nn.Module, up: bool, mean: bool):
        super().__init__()
        self.pool = pool
        self.body = body
        self.last = last
        self.up = up
        self.mean = mean

    def forward(self, features: list[Tensor], boxes: Tensor, picture: Tensor) -> Tensor:
        """Returns (R, outputs, S, S), of `up` with 2 S, of `mean` (R, outputs); see `BoxPool`."""
        x = self.body(self.pool(features, boxes, picture))
        if self.mean:
            x = x.mean(dim=[2, 3], keepdim=True)
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = self.last(x)
        return x.flatten(1) if self.mean else x
