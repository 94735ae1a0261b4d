"""Shapes of boxes as rings of points: from COCO's segmentations, and to small masks.

A shape is inside where the winding number of its rings is not 0. Polygons of a file run clockwise as
seen (positive area with y downwards), so that parts that overlap add up; holes, which only run-length
encodings have, run the other way.
Letters: N boxes, P points, R rings, E edges, S side of a mask, H and W pixels.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask
from torch import Tensor

from detmtl.structures.details import MASK_SIDE, NO_MASK, Outlines
from detmtl.structures.labels import BoxLabels

_coco: Any = mask  # its stubs know less than it does
_BLOCK = 1 << 16
"""Pixels that are filled together: their winding numbers stay in the processor's cache."""


def rings_of(segmentation: Any, height: int, width: int) -> list[np.ndarray]:
    """Returns the rings (P, 2) float64 of a COCO segmentation: polygons, or a run-length encoding.

    An encoding's rings run along the edges of its pixels, so nothing of it is lost.

    Args:
        segmentation: as in a file; an empty list: none.
        height, width: of the picture.

    Raises:
        ValueError: it is neither, says what is wrong.
    """
    if isinstance(segmentation, list):
        return [_polygon(numbers) for numbers in segmentation]
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            f"is {segmentation!r:.60}; it needs a list of polygons, or an object with size and counts"
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(
            f"is of {size!r:.60} pixels (height, width), the picture of {[height, width]}"
        )
    # pycocotools believes it: of too few runs it gives whatever the memory held before.
    if not _fills(counts, height * width):
        raise ValueError(f"has the counts {counts!r:.60}, which do not fill its size")
    shape = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        shape = _coco.frPyObjects(shape, height, width)
    return traced(decoded(shape))


def _fills(counts: Any, pixels: int) -> bool:
    """Returns whether the runs of a run-length encoding, a list or COCO's text, are so many pixels long."""
    if isinstance(counts, list):
        return all(type(run) is int and run >= 0 for run in counts) and sum(counts) == pixels
    if not isinstance(counts, str) or not counts.isascii():
        return False
    # Each character holds 5 bits, the lowest first; 32 is added where more follow, and the highest bit of the
    # last is the sign. From the fourth run on, it stands for the difference to the run before the last.
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return False
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # 35 bits
        return False
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((codes & 31) << shift, starts)
    runs -= np.where(codes[ends] & 16, 1 << (shift[ends] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return bool((runs >= 0).all()) and int(runs.sum()) == pixels


def _polygon(numbers: Any) -> np.ndarray:
    try:
        ring = np.asarray(numbers, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        ring = np.zeros((0, 2))
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError(
            f"has the polygon {numbers!r:.60}; it needs at least 3 points, x and y each, finite"
        )
    return ring if signed_area(ring) >= 0 else ring[::-1]


def signed_area(ring: np.ndarray) -> float:
    """Returns the area of a ring (P, 2), above 0 if it runs clockwise as seen."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def traced(picture: np.ndarray) -> list[np.ndarray]:
    """Returns the rings (P, 2) float64 along the edges of the pixels of a mask (H, W), holes last."""
    picture = np.ascontiguousarray(picture, dtype=np.uint8)
    left, top, width, height = cv2.boundingRect(picture)
    if not width:
        return []
    # Contours run through the middles of pixels. Of a picture twice as large they run a quarter of
    # a pixel inside of the edge, on the side that odd and even tell.
    part = np.repeat(np.repeat(picture[top : top + height, left : left + width], 2, 0), 2, 1)
    contours, tree = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer, holes = [], []
    for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True):
        ring = _corners((contour[:, 0].astype(np.int64) + 1) >> 1) + np.array([left, top])
        inward = parent >= 0
        ring = ring if (signed_area(ring) < 0) == inward else ring[::-1]
        (holes if inward else outer).append(ring.astype(np.float64))
    return outer + holes


def _corners(ring: np.ndarray) -> np.ndarray:
    """Returns a closed ring (P, 2) without points that repeat or lie on a straight line."""
    ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def with_masks(labels: BoxLabels) -> BoxLabels:
    """Returns labels whose outlines have become masks within their boxes; others as they are."""
    details = labels.details
    if details is None or details.outlines is None:
        return labels
    masks = masks_within(details.outlines, labels.boxes)
    return replace(labels, details=replace(details, outlines=None, masks=masks))


def masks_within(outlines: Outlines, boxes: Tensor, side: int = MASK_SIDE) -> Tensor:
    """Returns (N, S, S) uint8, the picture of each shape within its box (N, 4): 1 where the middle of a
    cell is inside, else 0; `NO_MASK` where there is no shape."""
    frames = boxes.double().numpy()
    sides = np.maximum(frames[:, 2:] - frames[:, :2], 1e-6)
    rings, of_ring = outlines.rings.numpy(), _owners(outlines.boxes.numpy())
    of_point = of_ring[_owners(rings)]
    points = (outlines.points.double().numpy() - frames[of_point, :2]) * (side / sides[of_point])
    masks = filled(points, rings, of_ring, len(boxes), side, side)
    masks[~outlines.drawn().numpy()] = NO_MASK
    return torch.from_numpy(masks)


def filled(
    points: np.ndarray, rings: np.ndarray, owners: np.ndarray, count: int, height: int, width: int
) -> np.ndarray:
    """Returns (N, H, W) uint8: 1 where the middle of a pixel is inside of the rings of a shape.

    Every edge adds its direction to the winding numbers on its right, in the rows whose middles it
    crosses; what lies on an edge belongs to the right or lower side.

    Args:
        points: (P, 2) in pixels.
        rings: (R+1,) where each ring begins.
        owners: (R,) which of the N shapes each ring belongs to, rising.
        count: N.
        height, width: of each picture.
    """
    out = np.zeros((count, height, width), dtype=np.uint8)
    if not len(points):
        return out
    start, end = points, points[_next(rings)]
    first, last = (
        np.ceil(np.minimum(np.maximum(y, 0), height) - 0.5).astype(np.int64)
        for y in (np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1]))
    )
    crossed = last - first
    edge = np.repeat(np.arange(len(points)), crossed)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    slope = (end - start)[edge]
    x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope[:, 0] / slope[:, 1]
    column = np.ceil(np.clip(x, 0, width) - 0.5).astype(np.int64).clip(max=width)
    shape = owners[_owners(rings)][edge]
    turn = np.where(slope[:, 1] > 0, 1, -1)
    step = max(1, _BLOCK // (height * (width + 1)))
    for low in range(0, count, step):
        high = min(low + step, count)
        a, b = np.searchsorted(shape, [low, high])
        cell = ((shape[a:b] - low) * height + row[a:b]) * (width + 1) + column[a:b]
        turns = np.bincount(cell, turn[a:b], minlength=(high - low) * height * (width + 1))
        turns = turns.reshape(high - low, height, width + 1)[..., :width]
        out[low:high] = np.cumsum(turns.astype(np.int16), axis=2, dtype=np.int16) != 0
    return out


def encoded(outlines: Outlines, height: int, width: int) -> list[dict[str, Any] | None]:
    """Returns each shape as a run-length encoding of a picture; None where there is none.

    Polygons are filled by pycocotools, whose rounding COCO's numbers are made with; shapes with holes,
    which came from an encoding, give back that encoding.
    """
    points, rings, boxes = (x.numpy() for x in (outlines.points, outlines.rings, outlines.boxes))
    found: list[dict[str, Any] | None] = []
    for first, last in zip(boxes[:-1].tolist(), boxes[1:].tolist(), strict=True):
        parts = [points[rings[r] : rings[r + 1]].astype(np.float64) for r in range(first, last)]
        if not parts:
            found.append(None)
        elif min(map(signed_area, parts)) < 0:
            own = rings[first : last + 1] - rings[first]
            whole = filled(
                np.concatenate(parts), own, np.zeros(last - first, int), 1, height, width
            )
            found.append(_coco.encode(np.asfortranarray(whole[0])))
        else:
            flat = [part.ravel().tolist() for part in parts]
            found.append(_coco.merge(_coco.frPyObjects(flat, height, width)))
    return found


def _owners(offsets: np.ndarray) -> np.ndarray:
    """Returns for each row of lists the number of its list."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _next(rings: np.ndarray) -> np.ndarray:
    """Returns for each point (P,) the one that follows in its ring."""
    following = np.arange(1, rings[-1] + 1)
    some = np.diff(rings) > 0
    following[rings[1:][some] - 1] = rings[:-1][some]
    return following


def packed(shapes: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns points (P, 2) float32, where each ring begins (R+1,) and where each shape's rings begin
    (N+1,) int64, of the rings of N shapes."""
    rings = [ring for shape in shapes for ring in shape]
    points = np.concatenate([np.zeros((0, 2)), *rings]).astype(np.float32)
    lengths = np.array([0, *(len(ring) for ring in rings)], dtype=np.int64)
    counts = np.array([0, *(len(shape) for shape in shapes)], dtype=np.int64)
    return points, np.cumsum(lengths), np.cumsum(counts)


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """Returns masks within boxes as run-length encodings of a picture: the pixels whose middles are inside,
    at a probability of at least .5 between the middles of cells.

    Args:
        masks: (N, S, S) probabilities, or uint8 of 0 and 1; see `Details`.
        boxes: (N, 4) xyxy, pixels of the picture.
        height, width: of the picture.
    """
    found = []
    for rows, columns, inside in pasted_parts(masks, boxes, height, width):
        canvas = np.zeros((height, width), dtype=np.uint8, order="F")
        canvas[rows, columns] = inside
        found.append(_coco.encode(canvas))
    return found


def pasted_parts(
    masks: Tensor, boxes: Tensor, height: int, width: int
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yields what `pasted` encodes: of each mask the rows and columns of its box, and which of the pixels
    there are inside."""
    for mask_in_box, box in zip(masks.float().numpy(), boxes.double().numpy(), strict=True):
        (left, across), (top, down) = (
            _stretched(box[0], box[2], len(mask_in_box), width),
            _stretched(box[1], box[3], len(mask_in_box), height),
        )
        inside = down @ mask_in_box @ across.T >= 0.5
        yield slice(top, top + len(down)), slice(left, left + len(across)), inside


def _stretched(low: float, high: float, side: int, limit: int) -> tuple[int, np.ndarray]:
    """Returns the first pixel whose middle lies between low and high and within 0..limit, and what each
    such pixel takes from `side` cells, (pixels, side), bilinearly."""
    first = int(np.clip(np.ceil(low - 0.5), 0, limit))
    last = int(np.clip(np.ceil(high - 0.5), first, limit))
    at = (np.arange(first, last) + 0.5 - low) / max(high - low, 1e-6) * side - 0.5
    at = np.clip(at, 0, side - 1)
    return first, np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0)


def decoded(shape: Any) -> np.ndarray:
    """Returns a run-length encoding as (H, W) bool."""
    with warnings.catch_warnings():  # it hands numpy 2 an __array__ without the copy keyword
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return _coco.decode(shape).astype(bool)
