"""Matching against the plain matrix of all IoUs, written out in numpy, for every rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matching import ANCHORS, GRIDS, ROUNDED, ROUNDED_GRIDS, box_lists

from detmtl.models.matching import Rules, dense, match, windowed
from detmtl.structures.labels import BoxLabels, pad_boxes

RULES = [
    Rules(forced=forced, **more)
    for forced in ("best", "forcing")
    for more in (
        {},
        {"force": False},
        {"foreground": 0.7, "background": 0.3},
        {"foreground": 0.35, "background": 0.2},
        {"foreground": 0.5, "background": 0.5},
        {"foreground": 0.3, "background": 0.5},
    )
]


def _iou(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Returns (M, A), float32: the area of the overlap over that of the union."""
    width = np.minimum(boxes[:, None, 2], anchors[:, 2]) - np.maximum(
        boxes[:, None, 0], anchors[:, 0]
    )
    height = np.minimum(boxes[:, None, 3], anchors[:, 3]) - np.maximum(
        boxes[:, None, 1], anchors[:, 1]
    )
    overlap = width.clip(0) * height.clip(0)
    of_box = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    of_anchor = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    return overlap / (of_box[:, None] + of_anchor - overlap)


def brute_force(boxes: np.ndarray, anchors: np.ndarray, rules: Rules):
    """Returns of each anchor: the box that it learns (-1: none), and whether it is a negative."""
    if not len(boxes):
        return np.full(len(anchors), -1), np.ones(len(anchors), dtype=bool)
    iou = _iou(boxes, anchors)
    best, first = iou.max(0), iou.argmax(0)
    learned = np.where(best >= rules.foreground, first, -1)
    negative = (best < rules.background) & (learned < 0)
    if rules.force:
        for i, row in enumerate(iou):  # a later box takes what an earlier one forced
            if row.max() > 0:
                reached = row == row.max()
                learned[reached] = i if rules.forced == "forcing" else first[reached]
                negative[reached] = False
    return learned, negative


def _check(boxes, anchors, grid, rules):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = pad_boxes([BoxLabels.of(boxes, torch.zeros(len(boxes)), 1)])
    learned, negative = brute_force(boxes.numpy(), anchors.numpy(), rules)
    for found in (
        windowed(anchors, labels, rules, grid),
        dense(anchors, labels, rules),
        dense(anchors, labels, rules, grid),
    ):
        assert np.array_equal(found.positive[0].numpy(), learned >= 0)
        assert np.array_equal(found.negative[0].numpy(), negative)
        assert np.array_equal(found.index[0].numpy(), learned.clip(0))
    return learned


@settings(max_examples=60, deadline=None, derandomize=True)
@given(box_lists(), st.sampled_from(RULES), st.booleans())
def test_any_boxes_under_any_rule(boxes, rules, rounded):
    _check(boxes, *((ROUNDED, ROUNDED_GRIDS) if rounded else (ANCHORS, GRIDS)), rules)


TIES = [
    [[8.0, 8, 40, 40]] * 3,  # duplicates
    [[-16.0, -16, 16, 16], [-16, -16, 16, 16]],  # an anchor itself, half outside the picture
    [[4.0, 4, 5, 5], [12, 4, 13, 5]],  # one pixel between anchors that reach it alike
    [[-50.0, -50, 200, 200], [0, 0, 96, 64]],  # larger than the picture, and as large
    [[90.0, 60, 130, 90], [-30, 20, 2, 40]],  # over the edges
    [[7.5, 7.5, 8.5, 8.5], [7.5, 7.5, 8.5, 8.5], [0, 0, 16, 16]],
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("boxes", TIES, ids=range(len(TIES)))
def test_ties_edges_and_single_pixels(boxes, rules):
    for anchors, grid in ((ANCHORS, GRIDS), (ROUNDED, ROUNDED_GRIDS)):
        learned = _check(boxes, anchors, grid, rules)
        assert (learned >= 0).any() or not rules.force


@pytest.mark.parametrize("forced", ["best", "forcing"])
def test_five_thousand_boxes(forced):
    """More boxes than anchors: most anchors are forced by several."""
    g = torch.Generator().manual_seed(0)
    corner = (torch.rand(5000, 2, generator=g) * torch.tensor([100.0, 70]) - 4).round()
    side = torch.exp(torch.rand(5000, 2, generator=g) * 4.5).round().clamp(min=1)
    boxes = torch.cat([corner, corner + side], 1)
    boxes[1000:1500] = boxes[:500]
    learned = _check(boxes, ANCHORS, GRIDS, Rules(forced=forced))
    assert (learned >= 0).mean() > 0.3


def test_an_anchor_that_two_boxes_force():
    """It overlaps the first box more; mmdet gives it to the last box all the same."""
    cell = torch.tensor([[0.0, 0, 16, 16]])
    boxes = torch.tensor([[0.0, 0, 16, 15], [0, 0, 16, 9], [40, 40, 50, 50]])
    labels = pad_boxes([BoxLabels.of(boxes, torch.tensor([0, 1, 0]), 2)])
    found = {forced: match(cell, labels, Rules(forced=forced)) for forced in ("best", "forcing")}
    assert found["best"].index.tolist() == [[0]] and found["forcing"].index.tolist() == [[1]]
    assert all(x.positive.all() and not x.negative.any() for x in found.values())
