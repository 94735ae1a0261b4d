"""Suppression of all pictures at once against torchvision's, one box after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from detmtl.models import suppression
from detmtl.models.suppression import kept_of_all


def _scores(counts, n):
    """Falling scores (B, N), -1 from each count on."""
    falling = torch.arange(n, 0, -1).expand(len(counts), n).double() / n
    return torch.where(torch.arange(n) < torch.tensor(counts)[:, None], falling, -1.0)


def _check(boxes, classes, counts, *rest, pairs=1 << 26, scripted=None):
    limit, agnostic, wanted = rest
    scores = _scores(counts, boxes.shape[1])
    found = (scripted or kept_of_all)(boxes, scores, classes, *rest, pairs)
    pictures = zip(boxes.double(), scores, classes, counts, found, strict=True)
    for box, score, of, count, kept in pictures:
        apart = box[:count] + (0 if agnostic else 1e4 * of[:count, None])
        assert torch.equal(kept, nms(apart, score[:count], limit)[:wanted])
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.booleans(),
    st.sampled_from([1, 3, 20, 100]),
    st.sampled_from([100, 5000, 1 << 26]),
)
def test_any_boxes(seed, counts, limit, agnostic, wanted, pairs):
    """On few places, so that many are the same, touch, or overlap in chains; at once, in parts, and where
    those of one picture are too many to be compared at once."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 30, (len(counts), 60, 2), generator=g).float()
    side = torch.randint(0, 20, (len(counts), 60, 2), generator=g).float()
    classes = torch.randint(0, 3, (len(counts), 60), generator=g)
    boxes = torch.cat([corner, corner + side], 2)
    _check(boxes, classes, counts, limit, agnostic, wanted, pairs=pairs)


def test_a_chain_is_followed_to_its_end():
    """Each box suppresses the next one, if it is kept itself: every other one is."""
    x = torch.arange(40.0)
    boxes = torch.stack([x, torch.zeros(40), x + 3, torch.ones(40)], 1)[None]
    (kept,) = _check(boxes, torch.zeros(1, 40), [40], 0.4, False, 100)
    assert kept.tolist() == list(range(0, 40, 2))


def test_more_boxes_are_looked_at_only_of_pictures_where_too_few_are_kept(monkeypatch):
    looked, real = [], suppression._kept

    def counting(boxes, *rest):
        looked.append(tuple(boxes.shape[:2]))
        return real(boxes, *rest)

    monkeypatch.setattr(suppression, "_kept", counting)
    same = torch.tensor([[0.0, 0, 9, 9]]).expand(2, 50, 4).clone()
    far = same + 20 * torch.arange(50.0)[:, None]
    classes = torch.zeros(2, 50)
    _check(far, classes, [50, 50], 0.5, False, 4)
    assert looked == [(2, 6)]
    kept = _check(torch.stack([same[0], far[0]]), classes, [50, 50], 0.5, False, 4)
    assert looked == [(2, 6), (2, 6), (1, 24), (1, 50)] and [len(k) for k in kept] == [1, 4]
    _check(same, classes, [5, 6], 0.5, False, 4)  # there are no more
    assert looked[4:] == [(2, 6)]


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_nothing_to_suppress(counts):
    boxes, classes = torch.zeros(len(counts), 7, 4), torch.zeros(len(counts), 7)
    assert [len(k) for k in _check(boxes, classes, counts, 0.5, False, 10)] == counts


def test_pictures_are_looked_at_a_few_at_a_time(monkeypatch):
    """The matrix of who overlaps whom is that of some pictures: of 5,000 boxes, of two."""
    shapes = []

    def nobody(boxes, _limit):
        shapes.append(tuple(boxes.shape[:2]))
        return torch.zeros(*boxes.shape[:2], boxes.shape[1], dtype=torch.bool)

    monkeypatch.setattr(suppression, "_over", nobody)
    boxes, classes = torch.zeros(5, 5000, 4), torch.zeros(5, 5000, dtype=torch.uint8)
    kept_of_all(boxes, _scores([5000] * 5, 5000), classes, 0.5, True, 5000)
    assert shapes == [(2, 5000), (2, 5000), (1, 5000)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_scripted_it_stays_the_same_once_the_program_is_optimized():
    scripted, g = torch.jit.script(kept_of_all), torch.Generator().manual_seed(0)
    for n, pairs in ((30, 1 << 26), (0, 1 << 26), (70, 1 << 26), (70, 2000), (5, 10), (60, 9000)):
        corner = torch.rand(3, n, 2, generator=g) * 30
        boxes = torch.cat([corner, corner + torch.rand(3, n, 2, generator=g) * 20], 2)
        classes = torch.randint(0, 2, (3, n), generator=g)
        counts = [n, n // 2, 0]
        _check(boxes, classes, counts, 0.4, False, 9, pairs=pairs, scripted=scripted)
