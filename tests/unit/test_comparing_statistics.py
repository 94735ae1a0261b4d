"""Intervals, corrections and verdicts, against values by hand and from scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from detmtl.comparing.statistics import (
    LEVEL,
    Estimate,
    holm,
    joint_p,
    level_left,
    over_both,
    over_pictures,
    over_seeds,
    ratio,
    verdicts,
)


def test_interval_over_seeds_by_hand():
    # mean 2, standard deviation 1, t(.975, 2) = 4.30265, half = 4.30265 / sqrt(3)
    found = over_seeds([1, 2, 3])
    assert (found.mean, found.count) == (2, 3)
    assert found.high - 2 == pytest.approx(2.48414, abs=1e-5)
    assert 2 - found.low == pytest.approx(2.48414, abs=1e-5)


def test_probability_over_seeds_is_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 7)
    assert over_seeds(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_seeds(values).low == pytest.approx(interval.low)


def test_one_value_has_no_interval_and_equal_values_one_of_no_width():
    assert over_seeds([0.4]).mean == 0.4 and not over_seeds([0.4]).known
    assert math.isnan(over_seeds([]).mean)
    same = over_seeds([0.5, 0.5])
    assert (same.low, same.high, same.p) == (0.5, 0.5, 0.0)
    assert over_seeds([0.0, 0.0]).p == 1
    assert over_seeds([1.0, float("nan"), 3.0]).count == 2


def test_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for seeds in (3, 5):
        floor, arm, top = rng.normal([[[0.5]], [[0.6]], [[0.7]]], 0.03, (3, 2000, seeds))
        known = [i for i in range(2000) if over_seeds(top[i] - floor[i]).low > 0]
        found = [ratio(arm[i] - floor[i], top[i] - floor[i]) for i in known]
        held = sum(e.low <= 0.5 <= e.high for e in found) / len(found)
        # three standard errors of a rate of .95 over these are .015; at 3 seeds one in ten is left out
        assert 0.935 < held < 0.975, (seeds, held)
        assert all(e.low <= e.mean <= e.high for e in found)


def test_interval_over_seeds_and_pictures_holds_the_true_share():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        # of 10 seeds and of the pictures, each as large a part of the error of an arm's mean
        of_pictures = rng.normal([0.5, 0.6, 0.7], 0.01)
        floor, arm, top = of_pictures[:, None] + rng.normal(0, 0.03, (3, 10))
        others = rng.normal([floor.mean(), arm.mean(), top.mean()], 0.01, (200, 3)).T
        shares = (others[1] - others[0]) / (others[2] - others[0])
        over_seeds_alone = ratio(arm - floor, top - floor)
        found = over_both(over_seeds_alone, over_pictures(over_seeds_alone.mean, shares))
        assert found.low < over_seeds_alone.low and found.high > over_seeds_alone.high
        held += found.low <= 0.5 <= found.high
    # three standard errors of a rate of .95 over 600 are .027; the wider of the two intervals holds .87
    assert 0.923 < held / 600 < 0.977
    assert over_both(over_seeds_alone, over_pictures(0.5, None)) is over_seeds_alone


def test_interval_of_a_ratio_ends_where_a_difference_holds_0():
    parts, wholes = np.array([0.1, 0.14, 0.09, 0.12]), np.array([0.2, 0.22, 0.25, 0.19])
    found = ratio(parts, wholes)
    assert found.mean == pytest.approx(parts.mean() / wholes.mean())
    for end in (found.low, found.high):
        assert over_seeds(parts - end * wholes).p == pytest.approx(LEVEL)
    same = ratio(np.full(3, 0.1), np.full(3, 0.2))
    assert same.low == pytest.approx(0.5) and same.high == pytest.approx(0.5)


def test_holm_reference_values():
    # statsmodels.stats.multitest.multipletests([.01, .04, .03, .005], method="holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == [0.02]
    with_gap = holm([0.01, float("nan"), 0.04])
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1])
    assert with_gap[2] == pytest.approx(0.04)


def test_level_that_tells_one_more_after_holm():
    others = [0.001, 0.9, 0.8]
    level = level_left(holm([*others, 0.5]))
    assert level == pytest.approx(0.05 / 3), "one of four is told already"
    for p, told in ((0.999 * level, True), (1.001 * level, False)):
        assert (holm([*others, p])[-1] <= 0.05) == told
    assert level_left([0.01, math.nan]) == level_left([]) == 0.05
    assert level_left([0.05, 0.9]) == 0.05, "what is told at the level itself is told"


def test_interval_over_pictures():
    resampled = np.arange(-5, 995) / 1000
    found = over_pictures(0.5, resampled)
    assert found.low == pytest.approx(np.quantile(resampled, 0.025))
    # six of the thousand are <= 0, and each is counted once more than seen
    assert found.p == pytest.approx(2 * 7 / 1001)
    assert over_pictures(-0.5, -resampled).p == found.p
    assert over_pictures(0.0, np.zeros(9)).p == 1
    gaps = np.append(resampled, np.nan)
    assert over_pictures(0.5, gaps) == found
    assert not over_pictures(0.5, None).known
    assert not over_pictures(float("nan"), np.full(3, np.nan)).known


def estimate(mean, half, p, count=5):
    return Estimate(mean, mean - half, mean + half, p, count)


def test_both_sources_of_chance_must_be_ruled_out():
    sure, unsure = estimate(0.1, 0.02, 0.001), estimate(0.1, 0.2, 0.4)
    (found,) = verdicts([(sure, sure)])
    assert found.word == "better" and found.corrected == 0.001
    for seeds, pictures, what in ((unsure, sure, "seeds"), (sure, unsure, "pictures")):
        (found,) = verdicts([(seeds, pictures)])
        assert found.word == "cannot tell"
        assert found.reason == f"the interval over {what} holds 0"
    (found,) = verdicts([(unsure, unsure)])
    assert found.reason == "the intervals over seeds and pictures hold 0"
    (found,) = verdicts([(estimate(-0.1, 0.02, 0.001), estimate(-0.1, 0.02, 0.002))])
    assert found.word == "worse" and found.corrected == 0.002


def test_a_correction_may_take_a_finding_away_and_says_so():
    pair = estimate(0.1, 0.09, 0.037), estimate(0.1, 0.002, 0.001)
    assert verdicts([pair])[0].word == "better"
    three = verdicts([pair] * 3)
    assert [v.word for v in three] == ["cannot tell"] * 3
    assert three[0].reason == "p = .037 alone, .111 corrected for 3 comparisons"
    nan = float("nan")
    one_seed = Estimate(0.1, nan, nan, nan, 1), pair[1]
    assert [v.reason for v in verdicts([pair, one_seed, pair])[::2]] == [
        "p = .037 alone, .074 corrected for 2 comparisons"
    ] * 2, "what one seed says is no comparison"


def test_what_neither_source_of_chance_explains_both_together_may():
    seeds, pictures = estimate(0.1, 0.09, 0.037), estimate(0.1, 0.09, 0.03)
    (found,) = verdicts([(seeds, pictures)])
    assert found.word == "cannot tell"
    # errors .09 / t(.975, 4) and .09 / 1.96; by hand: t = 1.780 with 4 (.05620 / .03242) ** 4 = 36.1 degrees
    assert found.p == pytest.approx(2 * stats.t.sf(1.780, 36.1), abs=2e-4)
    assert found.reason == (
        "seeds and pictures together may explain it: p = .084 alone, .084 corrected for one comparison"
    )
    # the end of the pictures' interval toward 0 counts, on either side of it
    lopsided = Estimate(-0.1, -0.9, -0.08, 0.001, 5)
    assert joint_p(estimate(-0.1, 0.02, 0.001), lopsided) == 0.001
    same = Estimate(0.1, 0.1, 0.1, 0.0, 5)
    assert joint_p(same, same) == 0
    of_pictures_alone = 2 * stats.norm.sf(0.1 / (0.09 / stats.norm.ppf(0.975)))
    assert joint_p(same, pictures) == pytest.approx(max(0.03, of_pictures_alone))


@pytest.mark.parametrize("of_pictures", [0.1, 0.3, 1.0])
def test_two_sources_of_chance_of_any_size_keep_the_level(of_pictures):
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(1000):
        by_chance = rng.normal(0, of_pictures)
        seeds = over_seeds(by_chance + rng.normal(0, math.sqrt(10) * 0.3, 10))
        p = 2 * stats.norm.sf(abs(seeds.mean) / of_pictures)
        told += joint_p(seeds, estimate(seeds.mean, 1.96 * of_pictures, p)) <= LEVEL
    # three standard errors of a rate of .05 over 1000 experiments are .021
    assert 0.029 < told / 1000 < 0.071


def test_one_seed_cannot_tell():
    nan = float("nan")
    (found,) = verdicts([(Estimate(0.2, nan, nan, nan, 1), estimate(0.2, 0.01, 0.001))])
    assert found.word == "cannot tell" and "one seed" in found.reason
    (found,) = verdicts([(Estimate(nan, nan, nan, nan, 0), Estimate(nan, nan, nan, nan, 0))])
    assert found.word == "cannot tell" and "no seed" in found.reason


def test_without_pictures_seeds_decide_alone():
    nan = float("nan")
    nothing = Estimate(0.1, nan, nan, nan, 0)
    assert joint_p(estimate(0.1, 0.02, 0.01), nothing) == 0.01
    (found,) = verdicts([(estimate(0.1, 0.02, 0.01), nothing)])
    assert found.word == "better"
    assert found.reason.startswith("seeds do not explain it: corrected p = .010")
    assert found.reason.endswith("; pictures, which were not resampled, may")


def experiment(rng, effect, seeds=5, pictures=60, resamples=100):
    """Returns the two estimates of one made-up experiment, in which a picture's difference varies about
    the effect, and every seed adds its own."""
    of_picture = effect + rng.normal(0, 0.1, pictures)
    values = of_picture + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.1, (seeds, pictures))
    weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    resampled = (weights @ values.mean(axis=0)) / pictures
    return over_seeds(values.mean(axis=1)), over_pictures(float(values.mean()), resampled)


def test_a_planted_difference_is_found_and_none_is_found_at_the_nominal_rate_at_most():
    rng = np.random.default_rng(1)
    found = [verdicts([experiment(rng, 0.08)])[0].word for _ in range(50)]
    assert found.count("better") >= 47 and "worse" not in found
    null = [verdicts([experiment(rng, 0.0)])[0].word for _ in range(400)]
    false = 1 - null.count("cannot tell") / len(null)
    # .05 is the level; three standard errors of a rate of .05 over 400 experiments are .033
    assert 0.003 < false < 0.05 + 0.033


def test_with_one_source_of_chance_alone_the_rate_is_the_level():
    rng = np.random.default_rng(2)
    nothing = over_pictures(0.0, None)
    p = [verdicts([(over_seeds(rng.normal(0, 1, 4)), nothing)])[0].p for _ in range(1000)]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.021
