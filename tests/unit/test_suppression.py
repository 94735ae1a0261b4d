"""Suppression of all pictures at once against torchvision's, one box after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from detmtl.models import suppression
from detmtl.models.suppression import kept_of_all


def _one_by_one(boxes, classes, counts, limit, agnostic, wanted):
    kept = []
    for box, of, count in zip(boxes.double(), classes, counts, strict=True):
        apart = box[:count] + (0 if agnostic else 1e4 * of[:count, None])
        kept.append(nms(apart, torch.arange(count, 0, -1).double(), limit)[:wanted])
    return kept


def _check(boxes, classes, counts, limit, agnostic, wanted):
    given = (boxes, classes, counts, limit, agnostic, wanted)
    found = kept_of_all(*given)
    for a, b in zip(found, _one_by_one(*given), strict=True):
        assert torch.equal(a, b)
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.booleans(),
    st.sampled_from([1, 3, 20, 100]),
)
def test_any_boxes(seed, counts, limit, agnostic, wanted):
    """On few places, so that many are the same, touch, or overlap in chains."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 30, (len(counts), 60, 2), generator=g).float()
    side = torch.randint(0, 20, (len(counts), 60, 2), generator=g).float()
    classes = torch.randint(0, 3, (len(counts), 60), generator=g)
    _check(torch.cat([corner, corner + side], 2), classes, counts, limit, agnostic, wanted)


def test_a_chain_is_followed_to_its_end():
    """Each box suppresses the next one, if it is kept itself: every other one is."""
    x = torch.arange(40.0)
    boxes = torch.stack([x, torch.zeros(40), x + 3, torch.ones(40)], 1)[None]
    (kept,) = _check(boxes, torch.zeros(1, 40), [40], 0.4, False, 100)
    assert kept.tolist() == list(range(0, 40, 2))


def test_more_boxes_are_looked_at_only_where_too_few_are_kept(monkeypatch):
    looked, real = [], suppression._kept

    def counting(boxes, *rest):
        looked.append(boxes.shape[1])
        return real(boxes, *rest)

    monkeypatch.setattr(suppression, "_kept", counting)
    same = torch.tensor([[0.0, 0, 9, 9]]).expand(2, 50, 4).clone()
    apart = same + 20 * torch.arange(50.0)[:, None]
    classes = torch.zeros(2, 50)
    kept_of_all(apart, classes, [50, 50], 0.5, False, 4)
    assert looked == [6]
    kept = kept_of_all(torch.stack([same[0], apart[0]]), classes, [50, 50], 0.5, False, 4)
    assert looked == [6, 6, 24, 50] and [len(k) for k in kept] == [1, 4]
    kept_of_all(same, classes, [5, 6], 0.5, False, 4)  # there are no more
    assert looked[4:] == [6]


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_nothing_to_suppress(counts):
    boxes, classes = torch.zeros(len(counts), 7, 4), torch.zeros(len(counts), 7)
    assert [len(k) for k in kept_of_all(boxes, classes, counts, 0.5, False, 10)] == counts


def test_pictures_are_looked_at_a_few_at_a_time(monkeypatch):
    """The matrix of who overlaps whom is that of some pictures: of 5,000 boxes, of two."""
    shapes, real = [], suppression._over

    def counting(boxes, limit):
        shapes.append(tuple(boxes.shape[:2]))
        return real(boxes[:, :3], limit).new_zeros(*boxes.shape[:2], boxes.shape[1])

    monkeypatch.setattr(suppression, "_over", counting)
    counts = [5000] * 5
    boxes, classes = torch.zeros(5, 5000, 4), torch.zeros(5, 5000, dtype=torch.uint8)
    kept_of_all(boxes, classes, counts, 0.5, True, 5000)
    assert shapes == [(2, 5000), (2, 5000), (1, 5000)]
