"""Boxes as offsets from anchors, and back.

Source: Girshick et al. 2014, arXiv 1311.2524, appendix C; the clamp is Detectron's.
Both functions can be compiled by `torch.jit.script`.
"""

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""Largest log of (box side / anchor side) that is decoded: a 16 px anchor grows to 1000 px."""

SMALLEST_SIDE = 1e-4
"""Pixels; shorter sides are encoded as this long, so that rows of padding stay finite."""


def encode(anchors: Tensor, boxes: Tensor, smallest_side: float = SMALLEST_SIDE) -> Tensor:
    """Returns the deltas that lead from anchors to boxes.

    Args:
        anchors: (..., 4) xyxy, pixels, sides > 0.
        boxes: (..., 4) xyxy, pixels; broadcasts against `anchors`. Empty boxes give finite deltas.
        smallest_side: pixels; shorter sides are encoded as this long.

    Returns:
        (..., 4): shift of the center in x and y in units of the anchor's width and height, then
        log of the ratio of the widths and of the heights.
    """
    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    sides = boxes[..., 2:] - boxes[..., :2]
    shift = boxes[..., :2] + 0.5 * sides - (anchors[..., :2] + 0.5 * anchor_sides)
    log_scale = torch.log(sides.clamp(min=smallest_side) / anchor_sides)
    return torch.cat([shift / anchor_sides, log_scale], dim=-1)


def decode(anchors: Tensor, deltas: Tensor, max_log_scale: float = MAX_LOG_SCALE) -> Tensor:
    """Returns the boxes to which deltas lead from anchors; not clipped to the picture.

    Args:
        anchors: (..., 4) xyxy, float32, pixels.
        deltas: (..., 4) as `encode` returns them; broadcasts against `anchors`. Half precision is
            raised to float32 first: a bfloat16 corner at 500 px is 2 px off.
        max_log_scale: larger log scales are cut to it.

    Returns:
        (..., 4) xyxy, float32, pixels.
    """
    deltas = deltas.to(anchors.dtype)
    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    centers = deltas[..., :2] * anchor_sides + (anchors[..., :2] + 0.5 * anchor_sides)
    half_sides = 0.5 * torch.exp(deltas[..., 2:].clamp(max=max_log_scale)) * anchor_sides
    return torch.cat([centers - half_sides, centers + half_sides], dim=-1)
