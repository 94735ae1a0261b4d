"""Orders with repeats, and how often what is rare is repeated."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detmtl.data.flat import Annotations
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.repeat_factor import BalanceSettings, repeat_factors
from detmtl.data.streams import Stream
from detmtl.structures.labels import Grade, Ignore


@dataclass(frozen=True)
class Pictures:
    """As much of a Source as balancing looks at: the classes that each picture shows."""

    name: str
    shown: list[tuple[int, ...]]
    coverage: np.ndarray
    ignore: int = Ignore.NO
    grade: Grade = Grade.GOLD
    weight: float = 1.0
    notes: tuple[str, ...] = ()
    annotations: Annotations | None = field(init=False)

    def __post_init__(self):
        image = np.repeat(np.arange(len(self.shown)), [len(s) for s in self.shown])
        classes = np.array([c for s in self.shown for c in s], dtype=np.int64)
        boxes = np.tile([0.0, 0, 9, 9], (len(image), 1))
        ignore = np.full(len(image), self.ignore)
        made = Annotations.of(len(self.shown), image, boxes, classes, ignore=ignore)
        object.__setattr__(self, "annotations", made)

    def __len__(self):
        return len(self.shown)


def factors(of, joint=True, **balance):
    return repeat_factors(of, BalanceSettings(**balance), joint)


@given(
    st.lists(st.floats(1, 9), min_size=1, max_size=30),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_each_epoch_has_every_picture_floor_or_ceil_of_its_repeats(repeats, number):
    stream = Stream(len(repeats), 1, 0, np.array(repeats))
    counts = np.bincount(stream.epoch(number), minlength=len(repeats))
    if len(set(repeats)) == 1:
        assert counts.tolist() == [1] * len(repeats)  # alike: nothing to repeat
        return
    raised = np.array(repeats) * np.ceil(sum(repeats)) / sum(repeats)
    assert np.all(counts >= np.floor(raised - 1e-5)) and np.all(counts <= np.ceil(raised + 1e-5))
    assert counts.min() >= 1
    assert counts.sum() == stream.length == len(stream.epoch(number + 1))


def test_over_many_epochs_repeats_are_exact():
    repeats = np.array([1, 1.25, 1.5, 2.25])  # sums up to 6
    stream = Stream(4, 0, 0, repeats)
    counts = stream.counts(0, 1000 * stream.length)
    assert stream.length == 6 and counts.sum() == 6000
    # a comb, and not a coin for each picture: its variance is that of one rounding an epoch
    assert np.abs(counts / 1000 - repeats).max() < 0.05
    pairs = Counter(tuple(stream.epoch(n).tolist()) for n in range(50))
    assert len(pairs) > 40  # other orders


@pytest.mark.parametrize("repeats", [None, np.array([1, 2.5, 1, 1.2, 3])])
def test_counts_are_those_of_the_places(repeats):
    stream = Stream(5, 4, 2, repeats)
    for first, end in ((0, 1), (0, 5), (3, 4), (2, 37), (10, 10), (5, 40), (13, 14)):
        drawn = [item for item, _ in stream.at(first, end - first)]
        expected = np.bincount(drawn, minlength=5) if drawn else np.zeros(5)
        assert stream.counts(first, end).tolist() == expected.tolist(), (first, end)


def test_lvis_factors():
    everything = np.ones((1, 2), np.float32)
    source = Pictures("gold", [(0,)] * 15 + [(0, 1)], everything)
    (found,) = factors([source], classes=0.25)
    # class 1 is in one of 16 pictures: sqrt(.25 / .0625) = 2; class 0 in all
    assert found.tolist() == [1.0] * 15 + [2.0]
    assert factors([source]) is None
    several = Pictures("gold", [(0,)] * 15 + [(0, 1, 1, 1, 1)], everything)
    assert factors([several], classes=0.25)[0].tolist() == found.tolist(), "pictures, not objects"
    ignored = Pictures("gold", [(0,)] * 15 + [(0, 1)], everything, ignore=Ignore.REGION)
    assert factors([ignored], classes=0.25)[0].tolist() == [1.0] * 16


def test_classes_that_nobody_shows_or_looked_for_and_sources_without_boxes_change_nothing():
    rows = np.array([[1, 1, 1, 0]], np.float32)  # nobody shows class 2, nobody looked for class 3
    source = Pictures("gold", [(0,)] * 15 + [(0, 1)], rows)
    maps = Pictures("maps", [()] * 3, rows)
    object.__setattr__(maps, "annotations", None)
    for joint in (True, False):
        found, others = factors([source, maps], joint=joint, classes=0.25)
        assert found.tolist() == [1.0] * 15 + [2.0] and others.tolist() == [1.0] * 3
        found, others = factors([source, maps], joint=joint, coverage=1.0)
        assert set(found) == set(others) == {1.0}


def test_a_class_is_as_rare_as_it_is_where_somebody_looked():
    """Of 85 pictures searched for class 0 all show it, of 15 searched for class 1 three do."""
    many = Pictures("many", [(0,)] * 85, np.array([[1, 0]], np.float32))
    few = Pictures("few", [(1,)] * 3 + [()] * 12, np.array([[0, 1]], np.float32))
    a, b = factors([many, few], classes=0.8)
    assert set(a) == {1.0}
    np.testing.assert_allclose(b, [2.0] * 3 + [1.0] * 12)  # sqrt(.8 / .2), not sqrt(.8 / .03)


def test_partial_labels_are_balanced_by_what_was_looked_for():
    many = Pictures("many", [(0,)] * 85, np.array([[1, 0, 0]], np.float32))
    few = Pictures("few", [(1, 2)] * 15, np.array([[0, 1, 1]], np.float32))
    a, b = factors([many, few], coverage=1.0)
    assert set(a) == {1.0} and b == pytest.approx(85 / 15)
    a, b = factors([many, few], coverage=0.88)
    assert b == pytest.approx(0.88 * 85 / 15)  # about five times
    # the same in one source whose pictures differ
    rows = np.repeat([[1, 0, 0], [0, 1, 1]], [85, 15], axis=0).astype(np.float32)
    (both,) = factors([Pictures("both", [*many.shown, *few.shown], rows)], coverage=1.0)
    assert both[:85].tolist() == [1.0] * 85 and both[85:] == pytest.approx(85 / 15)
    # where everybody looked for everything there is nothing to balance
    whole = np.ones((1, 3), np.float32)
    sources = [Pictures("many", many.shown, whole), Pictures("few", few.shown, whole)]
    assert all(set(f) == {1.0} for f in factors(sources, coverage=1.0))


def test_a_picture_that_was_half_searched_counts_as_half_a_picture():
    rows = np.array([[1, 1], [1, 0.5], [1, 0], [1, 0]], np.float32)
    (found,) = factors([Pictures("silver", [(0,)] * 4, rows)], coverage=1.0)
    scarce = 4 / 1.5  # of class 1 one picture and a half
    assert found == pytest.approx([scarce, (1 + scarce) / 2, 1, 1])


def test_rare_sources_count_where_numbers_of_pictures_decide():
    everything = np.ones((1, 1), np.float32)
    big, small = (Pictures(n, [(0,)] * k, everything) for n, k in (("big", 60), ("small", 12)))
    a, b = factors([big, small], sources=1.0)
    assert set(a) == {1.0} and set(b) == {5.0}
    assert set(factors([big, small], sources=0.5)[1]) == {2.5}
    assert factors([big, small], joint=False, sources=1.0) is None
    mix = MixSettings(mode="batch", balance=BalanceSettings(sources=1.0))
    assert "balance.sources changes nothing" in Mixture([big, small], mix, 8).notes[0]


def test_reasons_do_not_multiply():
    big = Pictures("big", [(0,)] * 60, np.array([[1, 0]], np.float32))
    small = Pictures("small", [(1,)] * 12, np.array([[0, 1]], np.float32))
    assert set(factors([big, small], sources=1.0, coverage=1.0)[1]) == {5.0}


def test_a_source_of_its_own_order_counts_from_its_least_repeated_picture():
    many = Pictures("many", [(0,)] * 85, np.array([[1, 0]], np.float32))
    few = Pictures("few", [(1,)] * 15, np.array([[0, 1]], np.float32))
    assert all(set(f) == {1.0} for f in factors([many, few], joint=False, coverage=1.0))


@pytest.mark.parametrize("mode", ["concat", "batch", "alternate"])
def test_the_rare_is_drawn_more_often_in_every_mode(mode):
    everything = np.ones((1, 2), np.float32)
    gold = Pictures("gold", [(0,)] * 30 + [(0, 1)] * 2, everything)
    pool = Pictures("pool", [(0,)] * 60 + [(1,)] * 4, everything, grade=Grade.SILVER)
    settings = MixSettings.model_validate({"mode": mode, "balance": {"classes": 0.56}})
    mix = Mixture([gold, pool], settings, 8)
    drawn: Counter[tuple[int, int]] = Counter()
    steps = 8 * 3 * 50
    for step in range(steps):
        drawn.update((p.source, p.index) for p in mix.picks(step))
    # 6 of 96 pictures: sqrt(.56 / .0625) = 3
    for source, first in ((0, 30), (1, 60)):
        common = np.mean([drawn[source, i] for i in range(first)])
        rare = np.mean([drawn[source, i] for i in range(first, len([gold, pool][source]))])
        assert rare / common == pytest.approx(np.sqrt(0.56 / 0.0625), rel=0.02)
    assert [r.drawn for r in mix.plan(steps)] == [
        sum(n for (s, _), n in drawn.items() if s == k) for k in (0, 1)
    ]
