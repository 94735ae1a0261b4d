"""Scores become probabilities: right, rising, and honest about how right they are."""

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detmtl.silver.audit_estimates import Reliability
from detmtl.silver.calibration import (
    CalibrationSettings,
    _logistic,
    cross_fitted,
    fit_calibration,
    log_loss,
)
from detmtl.silver.evidence import Evidence
from detmtl.structures.errors import InputError

pytest.importorskip("sklearn", reason="scikit-learn is not installed: detmtl[calibration]")


def audited(*classes):
    """Stands in for an audit; a class is (scores, hits)."""
    ordered = []
    for scores, hits in classes:
        scores, hits = np.asarray(scores, dtype=np.float32), np.asarray(hits, dtype=bool)
        order = np.argsort(-scores, kind="stable")
        ordered.append((scores[order], hits[order]))
    return SimpleNamespace(scores=tuple(s for s, _ in ordered), hits=tuple(h for _, h in ordered))


def teacher(rng, count, sharpness=1.0, shift=0.0):
    """Returns scores, and hits whose logit is sharpness * logit(score) + shift."""
    scores = rng.uniform(0.05, 0.99, count)
    truth = 1 / (1 + np.exp(-(sharpness * np.log(scores / (1 - scores)) + shift)))
    return scores, rng.uniform(size=count) < truth


def how(method, shrink=0.0):
    return CalibrationSettings(method=method, shrink=shrink)


@pytest.mark.parametrize("method", ["platt", "isotonic", "auto"])
def test_a_boasting_teacher_is_put_right(method):
    rng = np.random.default_rng(0)
    audit = audited(teacher(rng, 3000, 0.8, -1.5))
    fitted = fit_calibration(audit, how(method))
    asked = np.array([0.2, 0.5, 0.8])
    truth = 1 / (1 + np.exp(-(0.8 * np.log(asked / (1 - asked)) - 1.5)))
    np.testing.assert_allclose(fitted(asked, np.zeros(3, int)), truth, atol=0.05)
    hits = np.concatenate(audit.hits)
    before = Reliability.of(np.concatenate(audit.scores), hits).error()
    after = Reliability.of(np.concatenate(cross_fitted(audit, how(method))), hits).error()
    assert before > 0.2 and after < 0.04


def test_a_temperature_is_found_again():
    scores, hits = teacher(np.random.default_rng(1), 4000, sharpness=0.5)
    fitted = fit_calibration(audited((scores, hits)), how("temperature"))
    p = fitted(np.array([0.5, 0.9]), np.zeros(2, int))
    assert p[0] == pytest.approx(0.5, abs=1e-3)  # temperature leaves the middle where it is
    assert p[1] == pytest.approx(0.75, abs=0.02)


def test_auto_takes_what_foretells_best():
    rng = np.random.default_rng(2)

    def chosen(*shape):
        return fit_calibration(audited(teacher(rng, 3000, *shape)), how("auto")).method

    assert chosen(0.5) == "temperature" and chosen(1, -2) == "platt"
    assert chosen(1) in (
        "none",
        "temperature",
    )  # scores that are probabilities: a temperature near 1
    scores = rng.uniform(0.05, 0.99, 4000)
    steps = rng.uniform(size=4000) < np.where(scores < 0.5, 0.1, np.where(scores < 0.6, 0.85, 0.9))
    assert fit_calibration(audited((scores, steps)), how("auto")).method == "isotonic"


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 1, width=32), st.booleans()),
        min_size=10,
        max_size=60,
    ),
    method=st.sampled_from(["temperature", "platt", "isotonic", "auto"]),
    shrink=st.sampled_from([0.0, 50.0]),
)
def test_it_never_falls_and_stays_a_probability(rows, method, shrink):
    rows = [*rows, (0, 0.5, True)]
    audit = audited(
        *(([s for k, s, _ in rows if k == c], [h for k, _, h in rows if k == c]) for c in range(3))
    )
    fitted = fit_calibration(audit, how(method, shrink))
    scores = np.linspace(0, 1, 257)
    for c in range(3):
        p = fitted(scores, np.full(len(scores), c))
        assert np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1
        assert (np.diff(p) >= 0).all()


def test_a_class_of_few_boxes_follows_all_classes():
    rng = np.random.default_rng(3)
    common = teacher(rng, 2000, 1, -2)
    lucky = ([0.9, 0.8, 0.4, 0.3], [True] * 4)
    audit = audited(common, lucky, ([], []))

    def worth(shrink):
        fitted = fit_calibration(audit, how("platt", shrink))
        return fitted(np.full(3, 0.5), np.arange(3))

    own, mixed = worth(0.0), worth(50.0)
    assert own[1] > 0.6  # four of four are right
    assert mixed[1] == pytest.approx(mixed[0], abs=0.1) and mixed[1] > mixed[0]
    assert mixed[2] == pytest.approx(mixed[0], abs=0.01)  # none of its own: all classes' curve
    many = fit_calibration(audited(common, teacher(rng, 2000, 1, 2)), how("platt", 50.0))
    p = many(np.full(2, 0.5), np.arange(2))
    assert p[0] < 0.25 and p[1] > 0.75  # with many boxes each class has its own


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_logits_are_mixed_by_the_number_of_boxes(method):
    rng = np.random.default_rng(8)
    audit = audited(teacher(rng, 300, 1, -1), teacher(rng, 20, 1, 1), ([], []))
    scores = np.linspace(0.05, 0.95, 19)

    def logits(c, shrink):
        p = fit_calibration(audit, how(method, shrink))(scores, np.full(len(scores), c))
        return np.log(p) - np.log1p(-p)

    common = logits(2, 30.0)  # no box of its own
    for c, own in ((0, 300 / 330), (1, 20 / 50)):
        expected = own * logits(c, 0.0) + (1 - own) * common
        np.testing.assert_allclose(logits(c, 30.0), expected, atol=1e-9)
        assert np.abs(logits(c, 0.0) - common).max() > 0.1


def test_shrinking_foretells_better_where_gold_is_little():
    rng = np.random.default_rng(4)
    shifts = rng.normal(-1, 0.5, 12)
    audit = audited(*(teacher(rng, 15, 1, s) for s in shifts))
    fresh = [teacher(rng, 500, 1, s) for s in shifts]
    hits = np.concatenate([h for _, h in fresh])

    def loss(shrink):
        fitted = fit_calibration(audit, how("platt", shrink))
        p = [fitted(s, np.full(len(s), c)) for c, (s, _) in enumerate(fresh)]
        return log_loss(np.concatenate(p), hits)

    assert loss(50.0) < loss(0.0) - 0.01


def test_the_score_of_a_probability_is_where_the_curve_reaches_it():
    audit = audited(teacher(np.random.default_rng(5), 2000, 1, -1), ([], []))
    fitted = fit_calibration(audit, how("platt"))
    score = fitted.score_for(0.4)
    np.testing.assert_allclose(fitted(score, np.arange(2)), 0.4, atol=1e-9)
    assert np.isinf(fitted.score_for(0.99999)).all()
    assert fitted.score_for(0.0).tolist() == [0, 0]


def test_expected_calibration_error_by_hand():
    # Guo et al. 2017: |.95 - .5| of two boxes, |.25 - 0| of one, weighted by their number.
    found = Reliability.of(np.array([0.95, 0.95, 0.25]), np.array([True, False, False]))
    assert found.error() == pytest.approx((2 * 0.45 + 0.25) / 3)
    assert Reliability.of(np.array([1.0, 0.0]), np.array([True, False])).error() == 0
    assert np.isnan(Reliability.of(np.zeros(0), np.zeros(0, bool)).error())


def test_after_is_measured_on_boxes_that_were_not_fitted_to():
    rng = np.random.default_rng(6)
    audit = audited((rng.uniform(0.05, 1, 40), rng.uniform(size=40) < 0.5))  # scores say nothing
    fitted = fit_calibration(audit, how("isotonic"))
    hits = np.concatenate(audit.hits)
    flattered = fitted(np.concatenate(audit.scores), np.zeros(40, int))
    honest = np.concatenate(cross_fitted(audit, how("isotonic")))
    assert log_loss(honest, hits) > log_loss(flattered, hits) + 0.05
    again = np.concatenate(cross_fitted(audit, how("isotonic")))
    assert (honest == again).all()


def weighted(seed=9):
    """Returns labels of three classes that stand for one to four observations each, and the same as so many
    labels of one."""
    rng = np.random.default_rng(seed)
    light, heavy = ([], [], [], []), ([], [], [], [])
    for count, shift in ((40, -1), (8, 1), (0, 0)):
        scores, hits = teacher(rng, count, 1, shift)
        order = np.argsort(-scores)
        weights, folds = rng.integers(1, 5, count), np.arange(count) % 5
        own = (scores[order], hits[order], weights.astype(float), folds)
        often = [np.repeat(column, weights) for column in own]
        for kept, column in zip(heavy, own, strict=True):
            kept.append(column)
        for kept, column in zip(light, (*often[:2], np.ones(len(often[0])), often[3]), strict=True):
            kept.append(column)
    return Evidence(*heavy), Evidence(*light)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic", "auto"])
def test_a_label_counts_as_often_as_it_weighs(method):
    for seed in range(5):
        heavy, light = weighted(seed)
        found, expected = (fit_calibration(e, how(method, 20.0)) for e in (heavy, light))
        assert found.method == expected.method
        np.testing.assert_allclose(found.curves, expected.curves, atol=1e-6)
        np.testing.assert_array_equal(heavy.thresholds(0.7), light.thresholds(0.7))


def test_so_much_gold_is_needed_as_labels_weigh():
    heavy, _ = weighted()
    with pytest.raises(InputError, match=r"gold judges 5 .*10 are needed"):
        fit_calibration(replace(heavy, weights=[w / w.sum() * 2.5 for w in heavy.weights]))


def test_scores_that_foretell_the_wrong_ones_are_worth_what_all_are_together():
    scores = np.linspace(0.05, 0.95, 200)
    audit = audited((scores, (scores < 0.5) & (np.arange(200) % 2 == 0)))  # one of four is right
    asked, classes = np.array([0.1, 0.5, 0.9]), np.zeros(3, int)
    shifted = fit_calibration(audit, how("platt"))(asked, classes)
    np.testing.assert_allclose(shifted, 0.25, atol=0.01)
    scaled = fit_calibration(audit, how("temperature"))(asked, classes)
    np.testing.assert_allclose(scaled, 0.5)


def test_labels_of_classes_that_have_one_each_lie_in_all_folds():
    evidence = Evidence.of(audited(*(([0.5], [True]) for _ in range(10))))
    assert np.bincount(np.concatenate(evidence.folds)).tolist() == [2, 2, 2, 2, 2]


def test_too_little_gold_and_a_missing_package_are_said(monkeypatch):
    few = audited(([0.9, 0.5], [True, False]))
    with pytest.raises(InputError, match=r"gold judges 2 .*calibration: none"):
        fit_calibration(few)
    assert fit_calibration(few, how("none"))(np.array([0.3]), np.array([0])) == pytest.approx(0.3)
    with pytest.raises(InputError, match="confirms none of 20"):
        fit_calibration(audited((np.linspace(0.1, 0.9, 20), np.zeros(20))))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name)
    )
    with pytest.raises(InputError, match=r"pip install 'detmtl\[calibration\]'"):
        fit_calibration(audited(teacher(np.random.default_rng(7), 50)))


def test_scores_that_part_hits_from_misses_by_a_hair_make_a_steep_curve():
    scores = np.repeat([0.1, 0.1001], 400)
    curve = _logistic("platt", scores, scores > 0.1, np.ones(800))
    assert curve[0] == 0 and curve[-1] == 1 and (np.diff(curve) >= 0).all()
