"""Which boxes of a data set no anchor reaches, and which anchors would reach more.

A box is reached if an anchor overlaps it by the matching's foreground threshold at least. One that is not
gets its best anchors only because matching forces it to, or none, and is learned badly.
Letters: N boxes, L levels, G grids (one per anchor shape and level), K ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from detmtl.data.fit import InputSettings, fit_size
from detmtl.data.source import Source
from detmtl.models.anchors import AnchorSettings
from detmtl.models.windows import grids, reach
from detmtl.structures.labels import Ignore
from detmtl.structures.sample import DIVISOR

SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": np.inf}
"""COCO's sizes and their largest areas, in square pixels of the picture's file, as COCO's metric has them."""

MOST = 20_000
"""Boxes that are looked at: an even sample of those of a larger data set."""

SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Base scales that are tried, in strides."""

WORTH = 0.005
"""Share of the boxes that an octave more must reach to be proposed: it costs one more anchor a place for
each ratio."""

FEW = 10
"""Sizes with fewer boxes have no say in what is proposed."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The ordinary boxes of a data set, in pixels of the network's pictures.

    Attributes:
        boxes: (N, 4) xyxy.
        areas: (N,) square pixels in the file.
        shape: (N,) int64, the row in `shapes` of the box's picture.
        shapes: (S, 2) heights and widths of padded pictures.
    """

    boxes: Tensor
    areas: np.ndarray
    shape: np.ndarray
    shapes: np.ndarray

    @classmethod
    def of(cls, source: Source, size: InputSettings) -> "Boxes":
        """Looks up a source's boxes and brings them to the size that the network sees."""
        a = source.annotations
        assert a is not None
        rows = np.flatnonzero(np.asarray(a.ignore) == Ignore.NO)
        rows = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]
        image = a.image_index()[rows]
        boxes = np.asarray(a.boxes[rows], dtype=np.float64)
        files, of_file = np.unique(source.sizes[image], axis=0, return_inverse=True)
        fitted = [fit_size(int(h), int(w), size.short, size.long) for h, w in files]
        fitted = np.array(fitted, dtype=np.int64).reshape(-1, 2)
        factor = (fitted / np.maximum(files, 1))[of_file.reshape(-1)]
        shapes, shape = np.unique(-(-fitted // DIVISOR) * DIVISOR, axis=0, return_inverse=True)
        return cls(
            torch.from_numpy(boxes * factor[:, [1, 0, 1, 0]]).float(),
            np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
            shape.reshape(-1)[of_file.reshape(-1)],
            shapes,
        )

    def __len__(self) -> int:
        """Returns the number of boxes N."""
        return len(self.boxes)


@dataclass(frozen=True)
class CoverageRow:
    """Boxes of one size.

    Attributes:
        name: of the size; "all".
        boxes: how many.
        unreached: how many of them no anchor reaches.
        overlap: median IoU of a box with its best anchor; nan without boxes.
    """

    name: str
    boxes: int
    unreached: int
    overlap: float


def best_overlap(boxes: Boxes, anchors: AnchorSettings, strides: Sequence[int]) -> Tensor:
    """Returns the IoU (N,) of each box with the anchor that overlaps it most."""
    best = torch.zeros(len(boxes))
    made = anchors.build(list(strides))
    for s, (height, width) in enumerate(boxes.shapes.tolist()):
        maps = [(-(-height // stride), -(-width // stride)) for stride in strides]
        of_shape = grids(made.of_shapes(maps, torch.device("cpu")), maps)
        mine = torch.from_numpy(np.flatnonzero(boxes.shape == s))
        for some in mine.split(4096):
            best[some] = reach(boxes.boxes[some], of_shape)
    return best


def coverage(boxes: Boxes, overlap: Tensor, foreground: float) -> list[CoverageRow]:
    """Returns a row for each size, and one for all, given each box's best IoU (N,)."""
    rows, low = [], 0.0
    values = overlap.numpy()
    for name, high in SIZES.items():
        rows.append(_row(name, values[(boxes.areas > low) & (boxes.areas <= high)], foreground))
        low = high
    return [*rows, _row("all", values, foreground)]


def _row(name: str, overlap: np.ndarray, foreground: float) -> CoverageRow:
    median = float(np.median(overlap)) if len(overlap) else float("nan")
    return CoverageRow(name, len(overlap), int((overlap < foreground).sum()), median)


def proposed(
    boxes: Boxes, anchors: AnchorSettings, strides: Sequence[int], foreground: float
) -> AnchorSettings:
    """Returns anchors that reach as many boxes as can be had with as many ratios.

    Ratios are the centers of the boxes' own. Of all base scales and up to three octaves those are taken
    that reach the largest share of the boxes, on the mean over the sizes, so that few small boxes count as
    much as many large ones; where they reach about as many, fewer octaves, then the better overlap.

    Args:
        boxes: of the data set, at least one.
        anchors: the settings now; what is not proposed stays as it is there.
        strides: of the L levels.
        foreground: the IoU that counts as reached.
    """
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).double().numpy()
    ratios = ratio_centers(sides[:, 1] / sides[:, 0], len(anchors.ratios))
    best, best_key = anchors, (-np.inf, -np.inf)
    for octaves in (1, 2, 3):
        found, found_key = anchors, (-np.inf, -np.inf)
        for scale in SCALES:
            changes = {
                "base_scale": scale,
                "octaves": octaves,
                "ratios": ratios,
                "sizes": None,
            }
            tried = AnchorSettings.model_validate(anchors.model_dump() | changes)
            overlap = best_overlap(boxes, tried, strides)
            key = reached_share(coverage(boxes, overlap, foreground)), float(overlap.mean())
            if key > found_key:
                found, found_key = tried, key
        if found_key[0] > best_key[0] + WORTH:
            best, best_key = found, found_key
    return best


def reached_share(rows: Sequence[CoverageRow]) -> float:
    """Returns the share of the boxes that are reached, the mean over the sizes that have at least a few
    and over all boxes."""
    shares = [1 - row.unreached / row.boxes for row in rows if row.boxes >= FEW]
    return float(np.mean(shares)) if shares else 0.0


def ratio_centers(ratios: np.ndarray, count: int) -> list[float]:
    """Returns up to `count` centers of ratios (N,) of height to width, rising, to two digits.

    k-means of the logarithms, so that 2 is as far from 1 as .5 is; it starts from evenly spread quantiles
    and thus needs no chance.

    Source: the idea of finding anchors by k-means is Redmon and Farhadi's 2016, arXiv 1612.08242, section
    2, who cluster sides by IoU; here sizes come from the levels, and only ratios are clustered.
    """
    logs = np.log(ratios)
    centers = np.quantile(logs, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(logs[:, None] - centers).argmin(1)
        sums, sizes = np.bincount(nearest, logs, count), np.bincount(nearest, minlength=count)
        moved = np.where(sizes > 0, sums / np.maximum(sizes, 1), centers)
        if np.allclose(moved, centers):
            break
        centers = moved
    return sorted({round(float(r), 2) for r in np.exp(centers)})


def coverage_table(
    source: Source,
    size: InputSettings,
    anchors: AnchorSettings,
    strides: Sequence[int],
    foreground: float,
) -> tuple[Table, AnchorSettings] | None:
    """Returns the table that `check` prints, and the anchors that it proposes; None without boxes.

    Args:
        source: pictures with boxes.
        size: of the network's pictures.
        anchors: the settings now.
        strides: pixels, of the pyramid's levels.
        foreground: the IoU that counts as reached.
    """
    if source.annotations is None:
        return None
    boxes = Boxes.of(source, size)
    if not len(boxes):
        return None
    other = proposed(boxes, anchors, strides, foreground)
    now, then = (
        coverage(boxes, best_overlap(boxes, one, strides), foreground) for one in (anchors, other)
    )
    table = Table(
        title=f"boxes that no anchor overlaps by {foreground:g}, at {size.short} x {size.long} px, with "
        f"{anchors.num_anchors} anchors a place now and {other.num_anchors} proposed",
        title_justify="left",
    )
    for column in ("size in the file", "boxes", "not reached", "median IoU", "proposed", "IoU"):
        justify = "left" if column == "size in the file" else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for a, b in zip(now, then, strict=True):
        cells = [c for row in (a, b) for c in (_share(row), _number(row.overlap))]
        table.add_row(escape(a.name), str(a.boxes), *cells)
    return table, other


def _share(row: CoverageRow) -> str:
    if not row.boxes:
        return "-"
    return f"{row.unreached} ({row.unreached / row.boxes:.1%})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else "-"
