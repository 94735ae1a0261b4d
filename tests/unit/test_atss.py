"""ATSS against a version that compares every anchor with every box, and its properties."""

import resource
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detmtl.models import atss
from detmtl.models.anchors import AnchorSettings
from detmtl.models.atss import match_atss, nearest
from detmtl.models.matching import Rules
from detmtl.models.windows import Grid, grids
from detmtl.structures.labels import BoxLabels, Ignore, pad_boxes

STRIDES = [8, 16, 32, 64]
HEIGHT, WIDTH = 64, 96


def _anchors(height=HEIGHT, width=WIDTH, strides=STRIDES, **kwargs):
    shapes = [(-(-height // s), -(-width // s)) for s in strides]
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    anchors = AnchorSettings(**kwargs).build(strides)
    return anchors(maps), anchors.flat(maps), grids(anchors(maps), shapes)


NINE = _anchors()
ONE = _anchors(octaves=1, ratios=[1.0], base_scale=8, offset=0.5)
RULES = Rules(kind="atss")
PAPER = Rules(kind="atss", force=False)


def _picture(boxes, classes=None, ignore=None, num_classes=3):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.zeros(len(boxes)) if classes is None else torch.as_tensor(classes)
    ignore = None if ignore is None else torch.as_tensor(ignore)
    return BoxLabels.of(boxes, classes, num_classes, ignore=ignore)


def _taken(levels, per_place, boxes, rules):
    """(M, A) bool, the anchors that each box takes, by the letter of the paper's algorithm."""
    anchors = torch.cat(levels)
    overlap = box_iou(boxes, anchors)
    taken = torch.zeros_like(overlap, dtype=torch.bool)
    for i, box in enumerate(boxes):
        middle = (box[:2].double() + box[2:].double()) / 2
        candidates, first = [], 0
        for level in levels:
            places = level.view(-1, per_place, 4).double()
            centers = ((places[..., :2] + places[..., 2:]) / 2).mean(1)
            order = (centers - middle).square().sum(1).argsort(stable=True)[: rules.candidates]
            candidates += [first + int(p) * per_place + a for p in order for a in range(per_place)]
            first += len(level)
        its = overlap[i, candidates].double()
        threshold = its.mean() + (its.std() if len(its) > 1 else 0)
        for a in candidates:
            center = (anchors[a, :2] + anchors[a, 2:]) / 2
            inside = float(torch.cat([center - box[:2], box[2:] - center]).min()) > 0.01
            taken[i, a] = inside and overlap[i, a] > 0 and float(overlap[i, a]) >= threshold
        if rules.force and not taken[i].any():
            best = overlap[i, candidates].max()
            for a in candidates:
                taken[i, a] = overlap[i, a] == best and best > 0
    return overlap, taken


def _check_equal(anchors, found, boxes, rules=RULES):
    levels, flat, grid = anchors
    if not len(boxes):
        assert not found.positive.any() and found.negative.all()
        return
    overlap, taken = _taken(levels, grid[0].step, boxes, rules)
    value, index = torch.where(taken, overlap, -1.0).max(0)
    assert torch.equal(found.positive[0], value > 0)
    assert torch.equal(found.negative[0], value <= 0)
    assert torch.equal(found.index[0], index * (value > 0))
    assert len(flat) == found.positive.shape[1]


coordinate = st.one_of(
    st.integers(0, 96).map(float),
    st.floats(0, 96, width=32),
    st.integers(0, 12).map(lambda i: 8.0 * i),
)
side = st.one_of(st.sampled_from([1.0, 0.25, 32.0, 64.0, 8.0]), st.floats(0.125, 90, width=32))


@st.composite
def box_lists(draw):
    """Boxes with duplicates, on and over the edges, one pixel large, or none."""
    boxes = draw(st.lists(st.tuples(coordinate, coordinate, side, side), max_size=5))
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes]
    for _ in range(draw(st.integers(0, 2))):
        boxes += boxes[:1]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(box_lists(), st.booleans(), st.booleans())
def test_equals_brute_force(boxes, nine, force):
    anchors, rules = (NINE if nine else ONE), (RULES if force else PAPER)
    found = match_atss(anchors[1], pad_boxes([_picture(boxes)]), rules, anchors[2])
    _check_equal(anchors, found, boxes, rules)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_other_numbers_of_candidates(k):
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(12, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + torch.rand(12, 2, generator=g) * 50 + 1], 1)
    rules = Rules(kind="atss", candidates=k)
    found = match_atss(NINE[1], pad_boxes([_picture(boxes)]), rules, NINE[2])
    _check_equal(NINE, found, boxes, rules)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(1, 12), st.floats(-9, 70), st.floats(-9, 70)
)
def test_nearest_places_of_any_grid(rows, columns, k, x, y):
    grid = Grid(0, 1, rows, columns, 8.0, 9.0, (0, 0, 0, 0))
    box = torch.tensor([[x - 1, y - 2, x + 1, y + 2]])
    middle = (box[:, :2].double() + box[:, 2:].double())[0] / 2
    place_y, place_x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    at = torch.stack([2.5 + place_x * 9.0, 1.5 + place_y * 8.0], -1).view(-1, 2).double()
    distance = (at - middle).square().sum(1)
    found = nearest(box, grid, (2.5, 1.5), k)[0]
    assert len(found) == min(k, rows * columns) == len(set(found.tolist()))
    torch.testing.assert_close(distance[found], distance.sort()[0][: len(found)])


def test_of_equally_near_places_the_first_are_taken():
    grid = Grid(0, 1, 4, 4, 8.0, 8.0, (0, 0, 0, 0))
    box = torch.tensor([[11.0, 11, 13, 13]])  # in the middle of places 5, 6, 9 and 10
    assert nearest(box, grid, (0.0, 0.0), 2).tolist() == [[5, 6]]


def test_an_anchor_of_two_boxes_learns_the_one_it_overlaps_most_and_the_first_of_equals():
    boxes = torch.tensor([[20.0, 20, 60, 50], [20, 20, 60, 50], [22, 20, 62, 50]])
    found = match_atss(NINE[1], pad_boxes([_picture(boxes)]), RULES, NINE[2])
    index = found.index[0][found.positive[0]]
    assert set(index.tolist()) == {0, 2}
    overlap = box_iou(boxes, NINE[1][found.positive[0]])
    assert torch.equal(index, overlap.argmax(0))


def test_small_and_large_boxes_get_about_as_many_anchors():
    """Max-IoU matching gives a box of 40 px several times as many as one of 12 px."""
    one = _anchors(256, 256, [8, 16, 32], octaves=1, ratios=[1.0], base_scale=8)
    sizes = torch.tensor([12.0, 40, 80, 200])
    boxes = torch.cat([128 - sizes[:, None] / 2] * 2 + [128 + sizes[:, None] / 2] * 2, 1)
    counts = [
        int(match_atss(one[1], pad_boxes([_picture(b)]), PAPER, one[2]).positive.sum())
        for b in boxes
    ]
    assert min(counts) >= 1 and max(counts) <= 9


def test_a_box_between_the_places_learns_only_if_forced():
    tiny = torch.tensor([[33.0, 33, 36, 36]])  # places of the first level are 8 px apart
    labels = pad_boxes([_picture(tiny)])
    assert not match_atss(NINE[1], labels, PAPER, NINE[2]).positive.any()
    found = match_atss(NINE[1], labels, RULES, NINE[2])
    overlap = box_iou(tiny, NINE[1])[0]
    assert found.positive.any() and (overlap[found.positive[0]] == overlap.max()).all()


@pytest.mark.parametrize(("margin", "count"), [(0.005, 1), (0.02, 2)])
def test_an_anchors_center_lies_well_within_its_box(margin, count):
    # the centers of the first level are at 4, 12, 20, ...: two of them overlap the box alike
    box = [[12 - margin, 8, 20 + 2 * margin, 16]]
    found = match_atss(ONE[1], pad_boxes([_picture(box)]), PAPER, ONE[2])
    x = ONE[1][found.positive[0]][:, 0::2].mean(1)
    assert ((x == 12) | (x == 20)).all() and len(x) == count


def test_a_box_without_area_and_one_far_outside_get_none():
    labels = pad_boxes([_picture([[500.0, 500, 510, 510], [8, 8, 8, 20]])])
    found = match_atss(NINE[1], labels, RULES, NINE[2])
    assert not found.positive.any() and found.negative.all()


def test_ignored_boxes_and_absent_pictures():
    box, region = [20.0, 20, 60, 50], [0.0, 0, 96, 40]
    ordinary = match_atss(NINE[1], pad_boxes([_picture([box])]), RULES, NINE[2])
    pictures = [
        _picture([box], [1], [Ignore.CLASS]),
        None,
        _picture([box, region], [1, 0], [Ignore.NO, Ignore.REGION]),
        BoxLabels.empty(3),
    ]
    found = match_atss(NINE[1], pad_boxes(pictures), RULES, NINE[2])
    assert not found.positive[0].any() and found.negative[0].all()
    assert torch.equal(found.ignored[0, :, 1], ordinary.positive[0])
    assert not found.ignored[0, :, [0, 2]].any() and not found.ignored[1:].any()
    assert not found.positive[1].any() and not found.negative[1].any()
    assert torch.equal(found.positive[2], ordinary.positive[0])
    sides = NINE[1][:, 2:] - NINE[1][:, :2]
    cut = torch.minimum(NINE[1][:, 2:], torch.tensor(region[2:])) - NINE[1][:, :2].clamp(min=0)
    inside = cut.clamp(min=0).prod(1) >= 0.5 * sides.prod(1)
    assert torch.equal(found.negative[2], ~inside & ~found.positive[2])
    assert found.negative[3].all()


def test_a_doubtful_box_never_touches_positives():
    boxes = [[20.0, 20, 60, 50], [24.0, 22, 64, 52]]
    labels = pad_boxes([_picture(boxes, [1, 2], [Ignore.NO, Ignore.CLASS])])
    found = match_atss(NINE[1], labels, RULES, NINE[2])
    assert found.ignored.any() and not (found.ignored & found.positive[..., None]).any()


def test_blocks_and_company_change_nothing(monkeypatch):
    g = torch.Generator().manual_seed(1)
    corner = torch.rand(30, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=g) * 40 + 1], 1)
    kinds = torch.randint(0, 3, (30,), generator=g)
    one = _picture(boxes, torch.arange(30) % 3, kinds)
    whole = match_atss(NINE[1], pad_boxes([one]), RULES, NINE[2])
    monkeypatch.setattr(atss, "PAIRS", 3 * 9 * 9 * len(STRIDES))
    again = match_atss(NINE[1], pad_boxes([_picture(boxes[:3]), one]), RULES, NINE[2])
    assert torch.equal(whole.positive[0], again.positive[1])
    assert torch.equal(whole.negative[0], again.negative[1])
    assert torch.equal(whole.index[0], again.index[1])
    assert torch.equal(whole.ignored[0], again.ignored[1])


def test_many_boxes_on_many_anchors_in_bounded_memory():
    _, flat, grid = _anchors(800, 1344, [8, 16, 32, 64, 128])
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(5000, 2, generator=g) * torch.tensor([1300.0, 760])
    boxes = torch.cat([corner, corner + torch.exp(torch.rand(5000, 2, generator=g) * 4.5 + 1)], 1)
    labels = pad_boxes([_picture(boxes)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = match_atss(flat, labels, RULES, grid)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert found.positive.sum() > 5000
    assert grown < 200, f"{grown:.0f} MB"  # a matrix of all pairs alone has 4 GB
    assert seconds < 20
