"""From planted numbers to the right word, each case of the field once."""

import math

import numpy as np
import pytest

from detmtl.comparing.statistics import Estimate, over_seeds
from detmtl.comparing.transfer_words import Evidence, named, seeds_needed, solved


def found(word, **more):
    return Evidence("boxes", ("map",), word, **more)


def share(mean, low=None):
    return Estimate(mean, mean - 0.1 if low is None else low, mean + 0.1, math.nan, 3)


@pytest.mark.parametrize(
    ("evidence", "word"),
    [
        (found("better"), "helps"),
        (found("worse"), "hurts"),
        (found("cannot tell"), "cannot tell"),
        # random labels
        (found("better", noise="better", beyond_noise="better"), "helps"),
        (found("better", noise="cannot tell", beyond_noise="cannot tell"), "helps"),
        (found("better", noise="better", beyond_noise="cannot tell"), "cannot tell"),
        # a wide trunk
        (found("worse", wide="cannot tell", widened="better"), "trunk too narrow"),
        (found("worse", wide="better", widened="better"), "trunk too narrow"),
        (found("worse", wide="cannot tell", widened="cannot tell"), "hurts"),
        (found("worse", wide="worse", widened="better"), "hurts"),
        (found("cannot tell", wide="better", widened="better"), "cannot tell"),
        # overlap
        (found("cannot tell", overlap=share(0.97)), "duplicate"),
        (found("better", overlap=share(1.2)), "duplicate"),
        (found("worse", overlap=share(0.97)), "hurts"),
        (found("cannot tell", overlap=share(0.6)), "cannot tell"),
        (found("cannot tell", overlap=share(0.97, low=0.2)), "cannot tell"),
        (found("cannot tell", overlap=share(math.nan)), "cannot tell"),
    ],
)
def test_the_word(evidence, word):
    assert named(evidence).word == word


def test_a_difference_of_words_is_not_a_difference_of_effects():
    """Harm that can be told on the narrow trunk and not on the wide one may be the same harm."""
    said = named(found("worse", wide="cannot tell", widened="cannot tell"))
    assert said.word == "hurts" and "does not surely take the harm away" in said.because


def test_what_to_do_follows_from_the_cause():
    loud = named(found("worse", loudness=30.0))
    assert "30 times that of boxes" in loud.because
    assert loud.advice.startswith("Lower the weight of map (balancing.weights)")
    against = named(found("worse", cosine=-0.2))
    assert "(cosine -0.20)" in against.because and "hang lower" in against.advice
    labels = named(found("worse", noise="cannot tell", beyond_noise="worse"))
    assert (
        "more than random labels" in labels.because and "Look at the labels of map" in labels.advice
    )
    weight = named(found("worse", noise="worse", beyond_noise="cannot tell"))
    assert "random labels hurt no less" in weight.because
    plain = named(found("worse"))
    assert plain.because == "" and plain.advice == "Train map in a run of its own."
    narrow = named(found("worse", wide="better", widened="better"))
    assert narrow.advice.startswith("Widen the trunk (model.fpn.channels")
    assert "leave it out" in named(found("cannot tell", overlap=share(1.0))).advice
    gain = named(found("better", overlap=share(1.0)))
    assert "97" not in gain.because and "had by its own weight" in gain.because


def test_several_others_are_named():
    said = named(Evidence("boxes", ("map", "tags"), "better"))
    assert said.advice == "Keep map and tags, if its time per step is worth it."


def test_seeds_that_would_tell():
    assert math.isnan(seeds_needed([0.1]))
    assert seeds_needed([0.5, 0.5, 0.5]) == 0, "these tell it"
    assert seeds_needed([1.0, -1.0]) == math.inf == seeds_needed([0.0, 0.0])
    # sqrt(n) mean / sd: 3.46 of 6 seeds are below 2.571 + 0.920, 3.74 of 7 above 2.447 + 0.906
    assert seeds_needed([0.1, 0.3]) == 7
    assert seeds_needed([0.1, 0.3], 0.05 / 12) == 11, "Holm's correction asks for more"


@pytest.mark.parametrize("values", [[0.02, 0.03], [0.01, 0.03, 0.02], [0.1, 0.5, 0.1, 0.4, 0.0]])
def test_seeds_that_would_tell_do_so_in_four_cases_of_five(values):
    level = 0.05 / 12
    needed = int(seeds_needed(values, level))
    assert needed > len(values)
    spread = np.std(values, ddof=1)
    drawn = np.random.default_rng(0).normal(np.mean(values), spread, (2000, needed))
    assert np.mean([over_seeds(of).p <= level for of in drawn]) > 0.77


def test_what_would_tell_an_effect_that_one_cannot_tell():
    def advice(**more):
        return named(found("cannot tell", **more)).advice

    assert advice(needed=4.0) == "About 4 seeds would tell an effect of this size."
    assert advice(needed=4.0, few_pictures=True).startswith("About 4 seeds, and more test pictures")
    assert advice(needed=0.0, few_pictures=True).startswith(
        "More test pictures are needed; of seeds"
    )
    assert advice(needed=0.0).startswith("More seeds or more test pictures")
    assert "no effect" in advice(needed=math.inf, few_pictures=True)
    assert advice() == "More seeds."


def test_the_threshold_of_overlap_is_a_setting():
    assert solved(share(0.8), 0.75) and not solved(share(0.8), 0.9) and not solved(None, 0.1)
