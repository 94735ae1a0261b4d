"""Anchors: the boxes that a detection head starts from.

Letters: L levels of the pyramid, A anchors per position, H and W positions of a level.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002, section 4.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings

Positive = Annotated[float, Field(gt=0)]


class AnchorSettings(Settings):
    """Shapes and places of the anchors.

    torchvision: `rounded: true, stride: measured`. detectron2: `order: size`. mmdet: the defaults.

    Attributes:
        base_scale: side of the smallest square anchor of a level, in strides.
        octaves: sizes per level: base * 2 ** (i / octaves) for i in 0..octaves-1.
        ratios: height / width of the anchors; all shapes of one size have the same area.
        sizes: sides in pixels, a list for each level of the pyramid, all of one length; replaces
            base_scale and octaves.
        rounded: whether sizes are cut, and corners rounded, to whole pixels.
        offset: place of a cell's center within the cell, in strides: 0 its top left corner, .5 its
            middle.
        order: what runs slower within a position: "ratio" (torchvision, mmdet) or "size" (detectron2).
        stride: distance of cells: "exact" the level's stride; "measured" picture // positions,
            rounded down (torchvision), which differs at P6 and P7 where the division has a rest.
        variance: what the network's deltas (x, y, width, height) are multiplied by before they move
            and scale an anchor; smaller numbers make the head learn larger ones.
    """

    base_scale: Positive = 4.0
    octaves: int = Field(default=3, ge=1)
    ratios: list[Positive] = Field(default=[0.5, 1.0, 2.0], min_length=1)
    sizes: list[list[Positive]] | None = None
    rounded: bool = False
    offset: float = Field(default=0.0, ge=0, lt=1)
    order: Literal["ratio", "size"] = "ratio"
    stride: Literal["exact", "measured"] = "exact"
    variance: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)

    @property
    def num_anchors(self) -> int:
        """Anchors per position."""
        return len(self.ratios) * (len(self.sizes[0]) if self.sizes else self.octaves)

    def build(self, strides: list[int]) -> "Anchors":
        """Makes the anchors of levels with these strides in pixels.

        Raises:
            InputError: `sizes` doesn't fit the levels.
        """
        sizes = self.sizes or [
            [self.base_scale * s * 2 ** (i / self.octaves) for i in range(self.octaves)]
            for s in strides
        ]
        if len(sizes) != len(strides):
            raise InputError(
                f"anchors.sizes: {len(sizes)} lists of sizes for {len(strides)} levels of strides "
                f"{strides}; give one list a level"
            )
        if len({len(s) for s in sizes}) != 1 or not sizes[0]:
            raise InputError(
                f"anchors.sizes: the levels have {[len(s) for s in sizes]} sizes; one head serves "
                "all levels, so give each the same number, at least 1"
            )
        cells = [cell_anchors(s, self.ratios, self.order, self.rounded) for s in sizes]
        measured = self.stride == "measured"
        return Anchors(torch.stack(cells), strides, self.offset, measured, self.variance)


def cell_anchors(
    sizes: list[float], ratios: list[float], order: str = "ratio", rounded: bool = False
) -> Tensor:
    """Returns the anchors (A, 4) xyxy, float32, around the origin.

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: height / width.
        order: "ratio" or "size", whichever runs slower.
        rounded: whether sizes are cut and corners rounded (half to even) to whole pixels.
    """
    side = torch.tensor([float(int(s)) if rounded else s for s in sizes])
    tall = torch.tensor(ratios).sqrt()
    width, height = (1 / tall)[:, None] * side, tall[:, None] * side
    if order == "size":
        width, height = width.T, height.T
    width, height = width.reshape(-1), height.reshape(-1)
    corners = torch.stack([-width, -height, width, height], dim=1) / 2
    return corners.round() if rounded else corners


class Anchors(nn.Module):
    """Anchors of every position of every level; holds no parameters and no buffers.

    Can be compiled by `torch.jit.script`. Shapes are kept as numbers, since a buffer would lose its
    digits with the network's conversion to half precision. In eager mode the anchors of the last
    pictures' sizes are kept.
    """

    KEPT = 16
    """Sizes whose anchors are kept: enough for training at many sizes, about 50 MB at 800 px."""

    __jit_ignored_attributes__ = ["_kept", "_kept_cells"]
    _cells: list[list[list[float]]]
    variance: list[float]

    def __init__(
        self,
        cells: Tensor,
        strides: list[int],
        offset: float = 0.0,
        measured: bool = False,
        variance: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    ):
        """Takes the parts that `AnchorSettings.build` makes.

        Args:
            cells: (L, A, 4) xyxy around the origin, pixels.
            strides: pixels between cells, for each level.
            offset: of the cells' centers, in strides.
            measured: whether strides are computed from the number of positions as torchvision does.
            variance: of deltas in x, y, width and height, see `AnchorSettings`.
        """
        super().__init__()
        assert len(cells) == len(strides)
        self.strides = list(strides)
        self.num_anchors = cells.shape[1]
        self.offset = offset
        self.measured = measured
        self.variance = list(variance)
        self._cells = cells.tolist()
        self._kept = dict[object, tuple[Tensor, list[Tensor]]]()
        self._kept_cells = dict[torch.device, list[Tensor]]()

    @torch.jit.export
    def cell(self, level: int) -> Tensor:
        """Returns a level's anchors (A, 4) xyxy, float32, around the origin, on the CPU."""
        return torch.tensor(self._cells[level], dtype=torch.float32)

    @torch.jit.export
    def units(self, deltas: Tensor) -> Tensor:
        """Returns a network's deltas (..., 4) as `boxcoder.decode` takes them."""
        if self.variance == [1.0, 1.0, 1.0, 1.0]:
            return deltas
        if deltas.dtype in (torch.float16, torch.bfloat16):
            deltas = deltas.float()
        return deltas * self._scale(deltas)

    @torch.jit.export
    def _scale(self, like: Tensor) -> Tensor:
        """Returns the variances (4,), written on the device: copied from here they would be waited for."""
        return torch.cat(
            [torch.full([1], v, dtype=like.dtype, device=like.device) for v in self.variance]
        )

    @torch.jit.unused
    def targets(self, deltas: Tensor) -> Tensor:
        """Returns what the network shall give, for deltas (..., 4) as `boxcoder.encode` returns them."""
        if self.variance == [1.0, 1.0, 1.0, 1.0]:
            return deltas
        return deltas / self._scale(deltas)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Returns the anchors of each level.

        Args:
            maps: a tensor (..., H, W) for each level, features or outputs; only shape and device
                are read.

        Returns:
            for each level (H * W * A, 4) xyxy, float32, pixels, in the order y, x, anchor. Not to be
            changed in place.
        """
        shapes = [(m.size(-2), m.size(-1)) for m in maps]
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return self.of_shapes(shapes, maps[0].device)
        return self._cached(shapes, maps[0].device)[1]

    @torch.jit.unused
    def flat(self, maps: list[Tensor]) -> Tensor:
        """Returns the anchors of all levels in one tensor (sum of H * W * A, 4); see `forward`."""
        return self._cached([(m.size(-2), m.size(-1)) for m in maps], maps[0].device)[0]

    @torch.jit.export
    def of_shapes(self, shapes: list[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Returns what `forward` returns for maps with these (H, W); keeps nothing."""
        return self._placed(shapes, [self.cell(i).to(device) for i in range(len(shapes))])

    @torch.jit.export
    def _placed(self, shapes: list[tuple[int, int]], cells: list[Tensor]) -> list[Tensor]:
        """Returns the anchors of `cells`, those of each level (A, 4) around the origin."""
        anchors: list[Tensor] = []
        device = cells[0].device
        height = shapes[0][0] * self.strides[0]
        width = shapes[0][1] * self.strides[0]
        for level, (rows, columns) in enumerate(shapes):
            stride_y, stride_x = self.strides[level], self.strides[level]
            if self.measured:
                stride_y, stride_x = height // rows, width // columns
            y = (torch.arange(rows, device=device).float() + self.offset) * stride_y
            x = (torch.arange(columns, device=device).float() + self.offset) * stride_x
            grid = torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1)
            corners = torch.cat([grid, grid], dim=-1)
            anchors.append((corners[:, :, None] + cells[level]).reshape(-1, 4))
        return anchors

    @torch.jit.unused
    def _cached(
        self, shapes: list[tuple[int, int]], device: torch.device
    ) -> tuple[Tensor, list[Tensor]]:
        key = (tuple(shapes), device)
        if key not in self._kept:
            # Made under inference mode, kept anchors would break the next training step.
            with torch.inference_mode(False), torch.no_grad():
                if device not in self._kept_cells:  # copied once: each copy is waited for
                    count = len(self.strides)
                    self._kept_cells[device] = [self.cell(i).to(device) for i in range(count)]
                levels = self._placed(shapes, self._kept_cells[device])
                flat = torch.cat(levels)
                split = list(flat.split([len(level) for level in levels]))
            while len(self._kept) >= self.KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = (flat, split)
        return self._kept[key]
