"""Which anchors of a regular grid can reach an IoU with a box, in closed form.

Anchors of one shape on a grid overlap a box in x by a width that depends on the column alone, and in
y by a height that depends on the row alone. An IoU of t asks for an intersection of t / (1 + t) times
the sum of the two areas; the width needed for that, even at full height, bounds the columns to an
interval, and likewise the rows.
Letters: N boxes, G grids (one per anchor shape and level), K pairs of a box and an anchor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SLACK = 1e-3
"""Windows are widened by this share, in threshold and in strides: far more than rounding costs."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The anchors of one shape on one level.

    Anchor (row, column) is number `first + (row * columns + column) * step` of all anchors, and its
    corners are `corner + (column * stride_x, row * stride_y)` twice.

    Attributes:
        corner: xyxy of the anchor at row 0, column 0, pixels.
        stride_y, stride_x: pixels.
    """

    first: int
    step: int
    rows: int
    columns: int
    stride_y: float
    stride_x: float
    corner: tuple[float, float, float, float]


class Grids(tuple[Grid, ...]):
    """G grids, and as tensors, made when first asked for, what is counted with."""

    @cached_property
    def corner(self) -> Tensor:
        """(G, 2) float64: x, y of the first anchor's left top corner."""
        return torch.tensor([g.corner[:2] for g in self], dtype=torch.float64)

    @cached_property
    def side(self) -> Tensor:
        """(G, 2) float64: width and height of the anchors."""
        return torch.tensor([g.corner[2:] for g in self], dtype=torch.float64) - self.corner

    @cached_property
    def stride(self) -> Tensor:
        """(G, 2) float64: x, y."""
        return torch.tensor([(g.stride_x, g.stride_y) for g in self], dtype=torch.float64)

    @cached_property
    def size(self) -> Tensor:
        """(G, 2) float64: columns, rows."""
        return torch.tensor([(g.columns, g.rows) for g in self], dtype=torch.float64)

    @cached_property
    def numbers(self) -> Tensor:
        """(3, G) int64: `first`, how many numbers a row is from the next, and `step`."""
        return torch.tensor([(g.first, g.columns * g.step, g.step) for g in self]).T.contiguous()


def grids(levels: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> Grids:
    """Returns the grids of anchors, read off the anchors themselves.

    Args:
        levels: (H * W * anchors per position, 4) xyxy of each level, in the order y, x, anchor.
        shapes: (H, W) of each level.
    """
    found, first = [], 0
    for anchors, (rows, columns) in zip(levels, shapes, strict=True):
        step = len(anchors) // (rows * columns)
        by_place = anchors.double().view(rows, columns, step, 4)
        stride_y = float(by_place[1, 0, 0, 1] - by_place[0, 0, 0, 1]) if rows > 1 else 1.0
        stride_x = float(by_place[0, 1, 0, 0] - by_place[0, 0, 0, 0]) if columns > 1 else 1.0
        for k, (x1, y1, x2, y2) in enumerate(by_place[0, 0].tolist()):
            corner = (x1, y1, x2, y2)
            found.append(Grid(first + k, step, rows, columns, stride_y, stride_x, corner))
        first += len(anchors)
    return Grids(found)


def reach(boxes: Tensor, of: Grids) -> Tensor:
    """Returns the best IoU (N,) of each box with any anchor, to rounding.

    Along each axis the overlap grows to the place where the centers meet and falls behind it, so the
    best place is one of the two beside it.
    """
    box, low, side, stride, count = boxes.double()[:, None], of.corner, of.side, of.stride, of.size
    ideal = ((box[..., :2] + box[..., 2:]) / 2 - (low + side / 2)) / stride
    overlaps = []
    for place in (ideal.floor(), ideal.floor() + 1):
        start = low + torch.minimum(place.clamp(min=0), count - 1) * stride
        end = torch.minimum(start + side, box[..., 2:])
        overlaps.append((end - torch.maximum(start, box[..., :2])).clamp(min=0))
    inter = _product(torch.maximum(*overlaps))
    union = _product(box[..., 2:] - box[..., :2]) + _product(side) - inter
    return (inter / union).amax(1).float()


def windows(boxes: Tensor, least: Tensor, of: Grids) -> tuple[Tensor, Tensor]:
    """Returns pairs of a box and an anchor: all with at least this IoU, and some more.

    Args:
        boxes: (N, 4) xyxy, pixels.
        least: (N,) IoU; boxes of 0 have no pairs.
        of: the grids.

    Returns:
        box: (K,) int64 index into `boxes`, rising.
        anchor: (K,) int64 number of the anchor.
    """
    box, low, side, stride, count = boxes.double()[:, None], of.corner, of.side, of.stride, of.size
    t = (least.double() * (1 - SLACK))[:, None]
    sides = box[..., 2:] - box[..., :2]
    needed = t / (1 + t) * (_product(sides) + _product(side))  # (N, G) square pixels
    most = torch.minimum(sides, side)
    width = needed[..., None] / most.flip(-1)  # needed overlap in x at full height, and in y
    begin = ((box[..., :2] + width - (low + side)) / stride - SLACK).ceil().clamp(min=0)
    end = torch.minimum(((box[..., 2:] - width - low) / stride + SLACK).floor(), count - 1)
    fits = width <= most * (1 + SLACK)
    possible = fits[..., 0] & fits[..., 1] & (t > 0)
    length = ((end - begin + 1).clamp(min=0) * possible[..., None]).long()  # (N, G, 2) x, y
    sizes = _product(length).reshape(-1)
    used = sizes.nonzero()[:, 0]
    sizes = sizes[used]
    of_pair = torch.repeat_interleave(torch.arange(len(used)), sizes)
    within = torch.arange(len(of_pair)) - (sizes.cumsum(0) - sizes)[of_pair]
    columns = length[..., 0].reshape(-1)[used]
    first_x, first_y = (begin[..., axis].reshape(-1)[used].long() for axis in (0, 1))
    first, row_step, step = of.numbers[:, used % len(of)]
    start = first + first_y * row_step + first_x * step
    y = torch.div(within, columns[of_pair], rounding_mode="floor")
    x = within - y * columns[of_pair]
    anchor = start[of_pair] + y * row_step[of_pair] + x * step[of_pair]
    return torch.div(used, len(of), rounding_mode="floor")[of_pair], anchor


def _product(pairs: Tensor) -> Tensor:
    """Returns the product (...) of x and y of (..., 2); ten times faster than `prod`."""
    return pairs[..., 0] * pairs[..., 1]
