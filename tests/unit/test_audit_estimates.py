import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detmtl.silver.audit_estimates import Curve, Reliability, mean_and_sd, toward, wilson


@given(hits=st.integers(0, 50), more=st.integers(0, 50))
def test_wilson_holds_the_share_and_narrows(hits, more):
    low, high = wilson(hits, hits + more)
    assert 0 <= low <= high <= 1
    if hits + more:
        assert low <= hits / (hits + more) <= high
        wider = wilson(4 * hits, 4 * (hits + more))
        assert wider[1] - wider[0] < high - low


def test_shares_are_drawn_toward_all_classes_where_there_are_few():
    hits, counts = np.array([0, 0, 5, 500]), np.array([0, 1, 10, 1000])
    drawn = toward(hits, counts, np.array(0.8), 10)
    assert drawn == pytest.approx([0.8, 8 / 11, 13 / 20, 508 / 1010])
    # No jump anywhere, unlike a switch at ten boxes.
    steps = [float(toward(n * 0.5, np.array(n), np.array(0.9), 10)) for n in range(40)]
    assert max(a - b for a, b in itertools.pairwise(steps)) < 0.04
    assert steps == sorted(steps, reverse=True)


def curve_of(random, n, lift=0.0):
    """Boxes of which a share equal to their score is right, moved by `lift`."""
    scores = np.sort(random.uniform(0.05, 1, n))[::-1].astype(np.float32)
    return scores, random.uniform(size=n) < np.clip(scores + lift, 0, 1)


def test_the_threshold_of_a_class_without_boxes_is_that_of_all():
    scores, hits = curve_of(np.random.default_rng(0), 400)
    curve = Curve(scores, hits)
    none = np.zeros(0, np.float32), np.zeros(0, bool)
    kept = [np.mean(hits[scores >= t]) for t in np.unique(scores)]
    lowest = np.unique(scores)[np.flatnonzero(np.array(kept) >= 0.8)[0]]
    assert curve.threshold(*none, 0.8) == pytest.approx(lowest)
    assert curve.threshold(*none, 0.0) == pytest.approx(scores.min())


def test_a_class_with_many_boxes_has_its_own_threshold():
    random = np.random.default_rng(1)
    good, bad = curve_of(random, 3000, 0.3), curve_of(random, 3000, -0.3)
    curve = Curve(*(np.concatenate(pair) for pair in zip(good, bad, strict=True)))
    assert curve.threshold(*good, 0.8) < 0.3  # its precision is .8 on the whole
    assert curve.threshold(*bad, 0.6) == pytest.approx(0.8, abs=0.06)  # mean of .5 to .7


def test_thresholds_from_little_gold_swing_less():
    random = np.random.default_rng(2)
    alone, drawn = [], []
    for _ in range(150):
        classes = [curve_of(random, 15) for _ in range(4)]
        curve = Curve(*(np.concatenate(parts) for parts in zip(*classes, strict=True)))
        drawn.append(curve.threshold(*classes[0], 0.8))
        alone.append(Curve(*classes[0]).threshold(*classes[0], 0.8))
    alone, drawn = (np.minimum(t, 1) for t in (alone, drawn))
    assert drawn.std() < 0.75 * alone.std()
    assert drawn.mean() == pytest.approx(0.6, abs=0.05)  # mean of .6 to 1


def test_no_threshold_where_no_box_is_right():
    scores, hits = np.array([0.9, 0.8], np.float32), np.zeros(2, bool)
    assert Curve(scores, hits).threshold(scores, hits, 0.1) == np.inf
    nothing = Curve(np.zeros(0, np.float32), np.zeros(0, bool))
    assert nothing.threshold(np.zeros(0, np.float32), np.zeros(0, bool), 0.5) == np.inf


def test_calibration_error_by_hand():
    scores = np.array([0.95, 0.95, 0.91, 0.05, 1.0, 0.55])
    hits = np.array([True, True, False, False, True, False])
    found = Reliability.of(scores, hits)
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 4]
    assert found.score[9] == pytest.approx(0.9525) and found.share[9] == 0.75
    assert found.error() == pytest.approx((4 * 0.2025 + 0.05 + 0.55) / 6)
    assert np.isnan(Reliability.of(np.zeros(0), np.zeros(0, bool)).error())


def test_the_error_of_calibrated_scores_is_about_the_noise_that_is_told():
    random = np.random.default_rng(3)
    errors, told = [], []
    for _ in range(100):
        scores = random.uniform(0, 1, 200)
        found = Reliability.of(scores, random.uniform(size=200) < scores)
        errors.append(found.error())
        told.append(found.noise())
    assert np.mean(errors) == pytest.approx(np.mean(told), rel=0.1)


def test_labels_that_are_not_independent_leave_more_noise():
    scores, hits, counts = np.array([0.5, 0.9]), np.array([True, True]), np.array([300, 100])
    pixels = Reliability.of(scores, hits, counts=counts)
    few = Reliability.of(scores, hits, counts=counts, observations=counts / 25)
    assert few.error() == pixels.error() == pytest.approx((300 * 0.5 + 100 * 0.1) / 400)
    assert few.noise() == pytest.approx(5 * pixels.noise())


def test_mean_and_sd():
    assert mean_and_sd([1, 3]) == pytest.approx((2, np.sqrt(2)))
    mean, sd = mean_and_sd([1.5])
    assert mean == 1.5 and np.isnan(sd)
    assert np.isnan(mean_and_sd([])).all()
