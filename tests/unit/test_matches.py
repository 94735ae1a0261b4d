"""Matches and weighted average precision, against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detmtl.metrics.coco import Boxes, score
from detmtl.metrics.matches import (
    SIZES,
    Matches,
    average_precision,
    calibration_error,
    f1_at,
    match,
    reliability,
)
from detmtl.metrics.per_picture import mean_of_known

NAMES = ["cat", "dog", "cow"]


def boxes(rng, count, num_images, truth, near=None):
    """Returns random boxes, some of them jittered copies of `near`'s."""
    xywh = np.concatenate([rng.uniform(0, 80, (count, 2)), rng.uniform(4, 120, (count, 2))], axis=1)
    images, categories = rng.integers(0, num_images, count), rng.integers(0, len(NAMES), count)
    if near is not None and len(near.images):
        from_truth = rng.random(count) < 0.7
        of = rng.integers(0, len(near.images), count)
        moved = near.boxes_xywh[of] + rng.normal(0, 4, (count, 4))
        moved[:, 2:] = moved[:, 2:].clip(2)
        xywh = np.where(from_truth[:, None], moved, xywh)
        images = np.where(from_truth, near.images[of], images)
        categories = np.where(from_truth, near.categories[of], categories)
    # few different scores: ties are where implementations differ
    scores = np.ones(count) if truth else rng.integers(1, 12, count) / 12
    crowd = rng.random(count) < 0.15 if truth else np.zeros(count, dtype=bool)
    areas = xywh[:, 2] * xywh[:, 3]
    return Boxes(images.astype(np.int64), categories.astype(np.int64), xywh, areas, scores, crowd)


def problem(seed, num_images=6, true=25, found=80):
    rng = np.random.default_rng(seed)
    truth = boxes(rng, true, num_images, True)
    return truth, boxes(rng, found, num_images, False, near=truth)


def repeated(b, times):
    """Returns the boxes of a data set that holds picture i `times[i]` times, copies side by side."""
    first = np.concatenate([[0], np.cumsum(times)])
    parts = [
        (np.flatnonzero(b.images == i), first[i] + copy)
        for i, n in enumerate(times)
        for copy in range(n)
    ]
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *[r for r, _ in parts]])
    images = np.concatenate([np.zeros(0, dtype=np.int64), *[np.full(len(r), p) for r, p in parts]])
    columns = (b.categories, b.boxes_xywh, b.areas, b.scores, b.crowd)
    return Boxes(images.astype(np.int64), *(column[rows] for column in columns))


def numbers(truth, found, num_images):
    return score(truth, found, range(num_images), dict(enumerate(NAMES)), "pycocotools")


def ours(matches, weights=None):
    by_size = {s: average_precision(matches, weights, s) for s in SIZES}
    ap = by_size[""]
    out = {"AP": mean_of_known(ap.mean(axis=1)), "AP50": mean_of_known(ap[:, 0])}
    out["AP75"] = mean_of_known(ap[:, 5])
    out |= {f"AP_{s}": mean_of_known(v.mean(axis=1)) for s, v in by_size.items() if s}
    out |= {f"AP/{n}": ap[:, :, c].mean(axis=1) for c, n in enumerate(NAMES)}
    return {name: float(value[0]) for name, value in out.items()}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), true=st.integers(0, 40), found=st.integers(0, 150))
def test_equals_pycocotools(seed, true, found):
    truth, detections = problem(seed, true=true, found=found)
    expected = numbers(truth, detections, 6)
    for name, value in ours(match(truth, detections, 6, NAMES)).items():
        assert value == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


def test_of_a_class_the_hundred_best_of_a_picture_count_as_in_pycocotools():
    truth, detections = problem(0, num_images=1, true=30, found=600)
    assert np.bincount(detections.categories).min() > 100
    expected = numbers(truth, detections, 1)
    for name, value in ours(match(truth, detections, 1, NAMES)).items():
        assert value == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_weight_is_a_picture_that_comes_several_times(seed):
    truth, detections = problem(seed)
    # without ties between pictures: copies of one picture must not interleave with another's
    order = np.argsort(detections.scores + 1e-9 * np.arange(len(detections.scores)))
    detections.scores[order] = np.linspace(0.01, 0.99, len(order))
    times = np.random.default_rng(seed).integers(0, 4, 6)
    expected = numbers(repeated(truth, times), repeated(detections, times), int(times.sum()))
    matches = match(truth, detections, 6, NAMES)
    for name, value in ours(matches, times[None]).items():
        assert value == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name
    if times.sum():
        assert f1_at(matches, times[None])[0] == pytest.approx(expected["F1@.5"], nan_ok=True)


def test_many_reweightings_at_once_are_those_one_by_one():
    matches = match(*problem(3), 6, NAMES)
    weights = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=150)
    together = average_precision(matches, weights)
    alone = np.concatenate([average_precision(matches, w[None]) for w in weights])
    np.testing.assert_allclose(together, alone, atol=1e-12)
    f1s = [f1_at(matches, w[None])[0] for w in weights]
    np.testing.assert_allclose(f1_at(matches, weights), f1s)


def test_a_detection_on_a_crowd_counts_neither_as_right_nor_as_wrong():
    one = np.array([[10.0, 10, 20, 20]])
    zero, full = np.zeros(1, dtype=np.int64), np.ones(1)
    truth = Boxes(zero, zero, one, np.array([400.0]), full, np.array([True]))
    found = Boxes(zero, zero, one, np.array([400.0]), full, np.array([False]))
    matches = match(truth, found, 1, NAMES)
    assert (matches.outcomes[0] == -1).all() and matches.truth.sum() == 0
    assert np.isnan(average_precision(matches)).all()
    assert np.isnan(reliability(matches)[0])


def test_reliability_by_hand():
    zeros = np.zeros(4, dtype=np.int64)
    apart = np.array([[100.0 * i, 0, 10, 10] for i in range(4)])
    area, no = np.full(4, 100.0), np.zeros(4, dtype=bool)
    truth = Boxes(zeros[:2], zeros[:2], apart[:2], area[:2], np.ones(2), no[:2])
    found = Boxes(zeros, zeros, apart, area, np.array([0.9, 0.1, 0.9, 0.1]), no)
    error, table = reliability(match(truth, found, 1, NAMES), bins=10)
    # at .9 one of two is right, at .1 as well: |.9 - .5| and |.1 - .5|
    assert error == pytest.approx(0.4)
    assert table == [(pytest.approx(0.1), 0.5, 2), (pytest.approx(0.9), 0.5, 2)]


def test_a_score_of_one_is_in_the_highest_bin():
    zeros, no = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=bool)
    apart, area = np.array([[0.0, 0, 10, 10], [100, 0, 10, 10]]), np.full(2, 100.0)
    truth = Boxes(zeros[:1], zeros[:1], apart[:1], area[:1], np.ones(1), no[:1])
    found = match(truth, Boxes(zeros, zeros, apart, area, np.array([0.95, 1.0]), no), 1, NAMES)
    error, table = reliability(found, bins=10)
    assert table == [(pytest.approx(0.975), 0.5, 2)] and error == pytest.approx(0.475)
    assert calibration_error(found, np.ones((1, 1)), bins=10) == pytest.approx([0.475])


def test_kept_and_read_again(tmp_path):
    matches = match(*problem(5), 6, NAMES)
    matches.save(tmp_path / "matches.npz")
    again = Matches.load(tmp_path / "matches.npz")
    assert again.class_names == matches.class_names
    for name in ("starts", "images", "scores", "outcomes", "truth"):
        np.testing.assert_array_equal(getattr(again, name), getattr(matches, name))
