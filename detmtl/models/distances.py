"""Boxes as distances of their sides from an anchor's center, each a distribution over bins.

A distance is in units of the anchor's width (left, right) or height (top, bottom), in [0, reach]. n bins
cut that range; the network gives n + 1 logits for each side, whose softmax is a distribution over the
places 0 .. n, and its mean the distance. An IoU of at least .5 with an anchor means that the anchor's
center is in the box and no side farther from it than 1.5 widths or heights: every box that max-IoU
matching gives an anchor can be said, forced matches aside. ATSS gives large boxes to smaller anchors, so
the default reach is 2.
All functions can be compiled by `torch.jit.script`.

Source: Li et al. 2020, arXiv 2006.04388, section 3 (general distribution). There distances are in
strides, for one square anchor of 8 strides a place: bins of 1/8 of its side, 16 of them, as here; in units
of each anchor they suit anchors of any size and shape.
"""

import torch
from torch import Tensor


def expected(logits: Tensor, bins: int) -> Tensor:
    """Returns the mean places (..., 4) in [0, bins] of distributions.

    Args:
        logits: (..., 4 * (bins + 1)), side by side left, top, right, bottom. Half precision is raised to
            float32 first: a mean of 17 rounded numbers would shift the box.
        bins: n.
    """
    if logits.dtype == torch.float16 or logits.dtype == torch.bfloat16:
        logits = logits.float()
    share = torch.softmax(logits.unflatten(-1, (4, bins + 1)), dim=-1)
    places = torch.arange(bins + 1, device=logits.device).to(share.dtype)
    return (share * places).sum(-1)


def decode_distances(anchors: Tensor, places: Tensor, bins: int, reach: float) -> Tensor:
    """Returns the boxes (..., 4) xyxy in pixels, not clipped to the picture.

    Args:
        anchors: (..., 4) xyxy, pixels.
        places: (..., 4) in [0, bins], of left, top, right, bottom.
        bins: n.
        reach: distance of the last place, in sides of the anchor.
    """
    places = places.to(anchors.dtype)
    sides = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + 0.5 * sides
    scale = sides * (reach / bins)
    return torch.cat([center - places[..., :2] * scale, center + places[..., 2:] * scale], dim=-1)


def encode_distances(anchors: Tensor, boxes: Tensor, bins: int, reach: float) -> Tensor:
    """Returns places (..., 4) of the boxes' sides; beyond [0, bins] where a box reaches farther, or does
    not hold the anchor's center.

    Args:
        anchors: (..., 4) xyxy, pixels, sides > 0.
        boxes: (..., 4) xyxy, pixels.
        bins: n.
        reach: distance of the last place, in sides of the anchor.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + 0.5 * sides
    scale = sides * (reach / bins)
    return torch.cat([center - boxes[..., :2], boxes[..., 2:] - center], dim=-1) / torch.cat(
        [scale, scale], dim=-1
    )


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Returns how central the anchors' centers are in boxes, (...) in [0, 1]; 0 outside of them.

    Source: Tian et al. 2019 (FCOS), arXiv 1904.01355, equation 3.

    Args:
        anchors: (..., 4) xyxy.
        boxes: (..., 4) xyxy.
    """
    center = (anchors[..., :2] + anchors[..., 2:]) / 2
    before = (center - boxes[..., :2]).clamp(min=0)
    after = (boxes[..., 2:] - center).clamp(min=0)
    farther = torch.maximum(before, after).clamp(min=1e-6)
    share = torch.minimum(before, after) / farther
    return (share[..., 0] * share[..., 1]).sqrt()
