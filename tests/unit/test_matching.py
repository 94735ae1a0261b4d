"""Matching against a matrix of all IoUs and torchvision's Matcher."""

import resource
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detmtl.models import matching
from detmtl.models.anchors import AnchorSettings
from detmtl.models.matching import Rules, dense, match, windowed
from detmtl.models.windows import grids, reach
from detmtl.structures.labels import BoxLabels, Ignore, pad_boxes

STRIDES = [8, 16, 32, 64]


def _anchors(height=64, width=96, **kwargs):
    shapes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    anchors = AnchorSettings(**kwargs).build(STRIDES)
    return anchors.flat(maps), grids(anchors(maps), shapes)


ANCHORS, GRIDS = _anchors()
ROUNDED, ROUNDED_GRIDS = _anchors(rounded=True, stride="measured", offset=0.5, octaves=1)


def _check_equal(a, b):
    assert torch.equal(a.positive, b.positive)
    assert torch.equal(a.negative, b.negative)
    assert torch.equal(a.index, b.index)
    assert (a.ignored is None) == (b.ignored is None)
    assert a.ignored is None or torch.equal(a.ignored, b.ignored)


def _both(anchors, grid, labels, rules=Rules()):  # noqa: B008
    quick, thorough = windowed(anchors, labels, rules, grid), dense(anchors, labels, rules)
    _check_equal(quick, thorough)
    _check_equal(quick, dense(anchors, labels, rules, grid))
    return quick


def _check_torchvisions(anchors, boxes, found, rules=Rules()):  # noqa: B008
    """Compares one picture with torchvision's Matcher."""
    if not len(boxes):
        assert not found.positive.any() and found.negative.all()
        return
    overlap = box_iou(boxes, anchors)
    expected = Matcher(rules.foreground, rules.background, rules.force)(overlap)
    assert torch.equal(found.positive[0], expected >= 0)
    assert torch.equal(found.negative[0], expected == Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(found.index[0], expected.clamp(min=0))


def _picture(boxes, classes=None, ignore=None, num_classes=3):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.zeros(len(boxes)) if classes is None else torch.as_tensor(classes)
    ignore = None if ignore is None else torch.as_tensor(ignore)
    return BoxLabels.of(boxes, classes, num_classes, ignore=ignore)


coordinate = st.one_of(
    st.integers(0, 96).map(float),
    st.floats(0, 96, width=32),
    st.integers(0, 12).map(lambda i: 8.0 * i),
)
side = st.one_of(st.sampled_from([1.0, 0.25, 32.0, 64.0, 8.0]), st.floats(0.125, 90, width=32))


@st.composite
def box_lists(draw):
    """Boxes with duplicates, on and over the edges, one pixel large, or none."""
    boxes = draw(st.lists(st.tuples(coordinate, coordinate, side, side), max_size=8))
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes]
    for _ in range(draw(st.integers(0, 2))):
        boxes += boxes[:1]
    return boxes


def _touching(boxes, anchors):
    """Keeps boxes that some anchor touches; the others are torchvision's quirk, tested below."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return boxes[box_iou(boxes, anchors).amax(1) > 0] if len(boxes) else boxes


@settings(max_examples=80, deadline=None, derandomize=True)
@given(box_lists(), st.booleans())
def test_equals_torchvisions_matcher(boxes, rounded):
    anchors, grid = (ROUNDED, ROUNDED_GRIDS) if rounded else (ANCHORS, GRIDS)
    boxes = _touching(boxes, anchors)
    found = _both(anchors, grid, pad_boxes([_picture(boxes)]))
    _check_torchvisions(anchors, boxes, found)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(box_lists(), box_lists(), st.data())
def test_both_ways_agree_with_every_kind_of_box(first, second, data):
    pictures = []
    for boxes in (first, second):
        kinds = data.draw(
            st.lists(st.sampled_from([0, 0, 1, 2]), min_size=len(boxes), max_size=len(boxes))
        )
        classes = data.draw(st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes)))
        pictures.append(_picture(boxes, torch.tensor(classes).long(), torch.tensor(kinds).long()))
    pictures.insert(1, None)
    found = _both(ANCHORS, GRIDS, pad_boxes(pictures))
    assert not found.positive[1].any() and not found.negative[1].any()
    for i, boxes in ((0, pictures[0]), (2, pictures[2])):
        alone = _both(ANCHORS, GRIDS, pad_boxes([boxes]))
        assert torch.equal(found.positive[i], alone.positive[0])
        assert torch.equal(found.negative[i], alone.negative[0])


@pytest.mark.parametrize(
    "rules", [Rules(force=False), Rules(0.7, 0.3), Rules(0.5, 0.5), Rules(0.35, 0.2)]
)
def test_other_thresholds(rules):
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(20, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + torch.rand(20, 2, generator=g) * 50 + 1], 1)
    found = _both(ANCHORS, GRIDS, pad_boxes([_picture(boxes)]), rules)
    _check_torchvisions(ANCHORS, boxes, found, rules)


def test_blocks_change_nothing(monkeypatch):
    g = torch.Generator().manual_seed(1)
    corner = torch.rand(30, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=g) * 40 + 1], 1)
    kinds = torch.randint(0, 3, (30,), generator=g)
    labels = pad_boxes([_picture(boxes, torch.arange(30) % 3, kinds)] * 2)
    whole = match(ANCHORS, labels, Rules(), GRIDS)
    monkeypatch.setattr(matching, "PAIRS", 3 * 2 * len(ANCHORS))
    monkeypatch.setattr(matching, "BLOCK", 3 * 30)
    _check_equal(whole, _both(ANCHORS, GRIDS, labels))


def test_a_box_that_no_anchor_touches_gets_none():
    labels = pad_boxes([_picture([[500.0, 500, 510, 510], [8, 8, 8, 20]])])
    found = _both(ANCHORS, GRIDS, labels)
    assert not found.positive.any() and found.negative.all()


def test_reach_is_the_best_iou():
    g = torch.Generator().manual_seed(2)
    corner = torch.rand(200, 2, generator=g) * 100 - 10
    boxes = torch.cat([corner, corner + torch.exp(torch.rand(200, 2, generator=g) * 5)], 1)
    expected = box_iou(boxes, ANCHORS).amax(1)
    torch.testing.assert_close(reach(boxes, GRIDS), expected, rtol=1e-5, atol=1e-7)


def test_ignored_class_box_acts_where_it_would_be_matched():
    box = torch.tensor([[20.0, 20, 60, 50]])
    ordinary = match(ANCHORS, pad_boxes([_picture(box)]), Rules(), GRIDS)
    found = _both(ANCHORS, GRIDS, pad_boxes([_picture(box, [1], [Ignore.CLASS])]))
    assert not found.positive.any() and found.negative.all()
    assert torch.equal(found.ignored[0, :, 1], ~ordinary.negative[0])
    assert not found.ignored[0, :, [0, 2]].any()


def test_region_by_share_of_the_anchor():
    box = torch.tensor([[0.0, 0, 96, 40]])
    found = _both(ANCHORS, GRIDS, pad_boxes([_picture(box, [1], [Ignore.REGION])]))
    inner = torch.minimum(ANCHORS[:, 2:], box[:, 2:]) - torch.maximum(ANCHORS[:, :2], box[:, :2])
    sides = ANCHORS[:, 2:] - ANCHORS[:, :2]
    inside = inner.clamp(min=0).prod(1) >= 0.5 * sides.prod(1)
    assert inside.any() and not inside.all()
    assert torch.equal(found.negative[0], ~inside)


@pytest.mark.slow
def test_many_boxes_on_many_anchors_in_bounded_memory():
    maps = [torch.zeros(1, 1, -(-800 // s), -(-1344 // s)) for s in (8, 16, 32, 64, 128)]
    anchors = AnchorSettings().build([8, 16, 32, 64, 128])
    flat, grid = anchors.flat(maps), grids(anchors(maps), [m.shape[-2:] for m in maps])
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(5000, 2, generator=g) * torch.tensor([1300.0, 760])
    boxes = torch.cat([corner, corner + torch.exp(torch.rand(5000, 2, generator=g) * 4.5 + 1)], 1)
    labels = pad_boxes([_picture(boxes)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = match(flat, labels, Rules(), grid)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert found.positive.sum() > 5000
    assert grown < 150, f"{grown:.0f} MB"  # a matrix of all pairs alone has 4 GB
    assert seconds < 20
