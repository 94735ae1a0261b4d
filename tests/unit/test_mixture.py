"""Which pictures each step draws, and whether the plan tells it exactly."""

import io
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console
from silver_stand_ins import gold, pictures

from detmtl.data.draws import apportion, cycle_of
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.schedule import Curriculum
from detmtl.data.tags import Tags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade


@dataclass(frozen=True)
class Pictures:
    """As much of a Source as a mixture looks at."""

    name: str
    length: int
    grade: Grade = Grade.GOLD
    weight: float = 1.0
    annotations: None = None
    maps: None = None
    tags: None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length


GOLD = Pictures("gold", 13)
SILVER = Pictures("silver", 101, Grade.SILVER)
MORE = Pictures("more", 40, Grade.SILVER, 0.5)

MIXES = {
    "gold": MixSettings(mode="gold"),
    "silver": MixSettings(mode="silver"),
    "concat": MixSettings(mode="concat"),
    "batch": MixSettings(mode="batch", shares={"gold": 1, "silver": 2, "more": 2}),
    "alternate": MixSettings(mode="alternate", shares={"gold": 2, "silver": 3, "more": 1}),
    "fractions": MixSettings(mode="alternate", shares={"gold": 0.1, "silver": 0.6, "more": 0.3}),
    "weighted": MixSettings(mode="weighted", weights={"silver": 0.25}),
    "curriculum": MixSettings(mode="curriculum"),
    "ramp": MixSettings(mode="concat", weights={"silver": [(0.2, 0.0), (0.6, 2.0)]}),
    "finetune": MixSettings(mode="finetune", gold_from=0.6),
    "online": MixSettings(mode="online", burn_in=0.4),
    "balanced": MixSettings.model_validate({"mode": "concat", "balance": {"sources": 0.5}}),
}


PHASED = {"finetune", "online"}
"""These change their way to draw: their orders begin anew."""


def mixture(settings, sources=(GOLD, SILVER, MORE), batch_size=8, seed=3, steps=60):
    return Mixture(list(sources), settings, batch_size, seed, steps)


def refusal(settings, **more):
    with pytest.raises(InputError) as caught:
        mixture(settings, **more)
    return str(caught.value)


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("steps", [1, 57])
def test_the_plan_is_what_is_drawn(name, steps):
    mix = mixture(MIXES[name])
    drawn, loss, pictures = Counter(), Counter(), Counter()
    for step in range(steps):
        batch = Counter(pick.source for pick in mix.picks(step))
        pictures.update((pick.source, pick.index) for pick in mix.picks(step))
        drawn += batch
        total = sum(mix.weights_at(step)[s] * n for s, n in batch.items())
        for s, n in batch.items():
            loss[s] += mix.weights_at(step)[s] * n / total / steps
    rows = mix.plan(steps)
    assert [r.source for r in rows] == ["gold", "silver", "more"]
    for s, row in enumerate(rows):
        assert row.drawn == drawn[s]
        assert row.most == max((n for (k, _), n in pictures.items() if k == s), default=0)
        assert row.pictures == len(mix.sources[s])
        assert row.passes == pytest.approx(drawn[s] / row.pictures)
        assert row.share == pytest.approx(drawn[s] / (8 * steps))
        assert row.loss_share == pytest.approx(loss[s])
    assert sum(r.share for r in rows) == pytest.approx(1)
    assert sum(r.loss_share for r in rows) == pytest.approx(1)


def test_a_plan_longer_than_one_block_of_its_sum_is_exact():
    mix = mixture(MixSettings(), batch_size=2**17)
    rows = mix.plan(20)  # a block holds 2**20 pictures: eight steps
    assert sum(r.drawn for r in rows) == 20 * 2**17
    each = 20 * 2**17 / 154
    assert all(abs(r.passes - each) < 1 for r in rows)


@pytest.mark.parametrize("name", sorted(MIXES.keys() - PHASED - {"balanced"}))
def test_no_picture_comes_again_before_all_have_come(name):
    mix = mixture(MIXES[name])
    seen = Counter()
    epochs: dict[tuple[int, int], list[int]] = {}
    for step in range(150):
        for pick in mix.picks(step):
            assert pick.epoch == seen[pick.source, pick.index]
            seen[pick.source, pick.index] += 1
            epochs.setdefault((pick.source, pick.epoch), []).append(pick.index)
    assert all(len(set(indices)) == len(indices) for indices in epochs.values())
    for source in {s for s, _ in epochs}:
        assert sorted(epochs[source, 0]) == list(range(len(mix.sources[source])))


@pytest.mark.parametrize("name", MIXES)
def test_a_step_does_not_depend_on_the_steps_before(name):
    there = mixture(MIXES[name])
    straight = [there.picks(step) for step in range(60)]
    back = mixture(MIXES[name])
    assert [back.picks(step) for step in reversed(range(60))] == straight[::-1]
    assert mixture(MIXES[name]).picks(59) == straight[59]


def test_other_seeds_and_epochs_are_other_orders():
    def order(seed, epoch):
        mix = mixture(MixSettings(mode="gold"), batch_size=13, seed=seed)
        return [p.index for p in mix.picks(epoch)]

    orders = {tuple(order(seed, epoch)) for seed in (1, 12) for epoch in (23, 3, 0)}
    assert len(orders) == 6


def test_sources_of_one_size_have_each_an_order_of_its_own():
    mix = mixture(MixSettings(mode="batch"), [GOLD, replace(GOLD, name="twin")], batch_size=26)
    first, second = ([p.index for p in mix.picks(0) if p.source == s] for s in (0, 1))
    assert sorted(first) == sorted(second) == list(range(13)) and first != second


def test_a_source_is_drawn_alike_whatever_stands_beside_it_in_the_batch():
    settings = MixSettings(mode="batch")
    alone = mixture(settings, sources=[GOLD], batch_size=4)
    beside = mixture(settings, sources=[GOLD, SILVER], batch_size=8)
    for step in range(10):
        assert [p for p in beside.picks(step) if p.source == 0] == alone.picks(step)


def test_a_share_that_would_round_to_no_picture_gets_one():
    settings = MixSettings(mode="batch", shares={"gold": 0.001, "silver": 1})
    mix = mixture(settings, sources=[GOLD, SILVER])
    for step in range(5):
        assert Counter(p.source for p in mix.picks(step)) == {0: 1, 1: 7}
    settings = MixSettings(mode="alternate", shares={"gold": 0.001, "silver": 1})
    assert mixture(settings, sources=[GOLD, SILVER]).plan(100)[0].drawn == 8


def test_a_source_smaller_than_its_share_neither_ends_nor_hangs():
    tiny = Pictures("tiny", 3)
    mix = mixture(
        MixSettings(mode="batch", shares={"tiny": 7, "silver": 1}),
        sources=[tiny, SILVER],
        batch_size=16,
    )
    for step in range(40):
        counts = Counter(p.index for p in mix.picks(step) if p.source == 0)
        assert sum(counts.values()) == 14
        assert max(counts.values()) - min(counts.values()) <= 2
    one = mixture(MixSettings(), sources=[Pictures("one", 1)], batch_size=4)
    assert [p.epoch for p in one.picks(2)] == [8, 9, 10, 11]


def test_many_small_permutations_do_not_displace_the_large_ones():
    large = Pictures("large", 200_000)
    mix = mixture(MixSettings(mode="batch"), sources=[Pictures("one", 1), large], batch_size=128)
    mix.picks(0)
    streams = mix._phases[0][1]._streams
    known = streams[1].epoch(0)
    mix.picks(1)
    assert streams[1].epoch(0) is known
    assert all(len(s._recent) <= 2 for s in streams)


def test_gold_repeated_many_times_is_told():
    few = Pictures("few", 5)
    mix = mixture(MixSettings(mode="batch"), sources=[few, SILVER], batch_size=8)
    assert [r.warning for r in mix.plan(25)] == ["", ""]  # 20 passes over five pictures
    few_row, silver_row = mix.plan(26)
    assert "'few' is repeated 20.8 times" in few_row.warning
    assert silver_row.warning == ""
    out = io.StringIO()
    Console(file=out, width=200).print(mix.plan_table(26))
    assert "'few' is repeated 20.8 times" in out.getvalue()


def test_the_table_shows_names_as_they_are():
    out = io.StringIO()
    odd = [replace(GOLD, name="[bold]one"), replace(SILVER, name="[red]two")]
    Console(file=out, width=200).print(mixture(MixSettings(), odd, batch_size=500).plan_table(9))
    text = out.getvalue()
    assert "[bold]one " in text and "[red]two " in text
    assert "source '[bold]one' is repeated" in text


def test_the_table_shows_every_source_and_what_is_ignored():
    out = io.StringIO()
    settings = MixSettings(mode="gold", shares={"gold": 1})
    Console(file=out, width=120).print(mixture(settings).plan_table(10))
    text = out.getvalue()
    assert "silver" in text and "100.0%" in text and "6.15" in text
    assert "mix.shares change nothing in mode gold" in text
    settings = MixSettings(mode="alternate", weights={"silver": 0.5})
    assert "weights change nothing" in " ".join(mixture(settings).notes)


def test_ranks_share_every_batch_without_overlap_and_find_the_same_in_any_process():
    """The trap of splits that differ between ranks."""
    mix = mixture(MIXES["batch"], batch_size=10)
    for step in range(5):
        picks = mix.picks(step)
        parts = [mixture(MIXES["batch"], batch_size=10).picks(step)[r::2] for r in range(2)]
        assert sorted(parts[0] + parts[1]) == sorted(picks)
        gold = [sum(p.source == 0 for p in part) for part in parts]
        assert abs(gold[0] - gold[1]) <= 1
    # another process with another hash seed, another rank, another global random state
    code = (
        "import random, numpy, sys; sys.path.insert(0, sys.argv[1]); import test_mixture as t;"
        "numpy.random.seed(5); random.seed(6);"
        "print([tuple(p) for n in t.MIXES for p in t.mixture(t.MIXES[n]).picks(7)])"
    )
    here = os.path.dirname(__file__)
    there = subprocess.run(
        [sys.executable, "-c", code, here],
        env={**os.environ, "PYTHONHASHSEED": "1234", "RANK": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=os.path.dirname(os.path.dirname(here)),
    )
    expected = [tuple(p) for n in MIXES for p in mixture(MIXES[n]).picks(7)]
    assert there.stdout.strip() == str(expected)


def test_alternate_takes_turns_by_steps():
    settings = MixSettings(mode="alternate", shares={"gold": 1, "silver": 3})
    mix = mixture(settings, sources=[GOLD, SILVER])
    owners = [{p.source for p in mix.picks(step)} for step in range(8)]
    assert owners == [{0}, {1}, {1}, {1}] * 2
    thirds = MixSettings(mode="alternate", shares={"gold": 0.333, "silver": 0.667})
    mix = mixture(thirds, sources=[GOLD, SILVER])
    assert [mix.picks(step)[0].source for step in range(6)] == [0, 1, 1, 0, 1, 1]


def test_shares_of_turns_are_reduced_and_a_source_never_drawn_is_told():
    settings = MixSettings(mode="alternate", shares={"silver": 900, "gold": 100})
    mix = mixture(settings, sources=[SILVER, GOLD], steps=500)
    assert [row.drawn for row in mix.plan()] == [450 * 8, 50 * 8]
    settings = MixSettings(mode="alternate", shares={"silver": 901, "gold": 100})
    silver, gold = mixture(settings, sources=[SILVER, GOLD], steps=500).plan()
    assert "'gold' is never drawn in 500 steps" in gold.warning and "never" not in silver.warning
    unwanted = mixture(MixSettings(mode="gold"), sources=[GOLD, SILVER]).plan()[1]
    assert unwanted.drawn == 0 and unwanted.warning == ""


def test_gold_and_silver_draw_from_their_grade_alone():
    assert {p.source for t in range(20) for p in mixture(MIXES["gold"]).picks(t)} == {0}
    assert {p.source for t in range(20) for p in mixture(MIXES["silver"]).picks(t)} == {1, 2}


def test_weights_multiply_the_sources_own():
    assert mixture(MixSettings(weights={"more": 3.0})).weights_at(0) == [1.0, 1.0, 1.5]


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8).flatmap(
        lambda shares: st.tuples(st.just(shares), st.integers(len(shares), 300))
    )
)
def test_apportioned_numbers_sum_up_and_leave_nobody_out(case):
    shares, total = case
    counts = apportion(shares, total)
    assert sum(counts) == total and min(counts) >= 1
    due = np.array(shares) / sum(shares) * total
    assert np.all(np.array(counts) <= np.maximum(due + 1, 1) + 1e-6)
    if due.min() >= 1:
        assert np.all(np.array(counts) >= due - len(shares))
    assert [c for _, c in sorted(zip(shares, counts, strict=True))] == sorted(counts)


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        ([1, 1], 8, [4, 4]),
        ([1, 3], 16, [4, 12]),
        ([1, 1, 1], 8, [3, 3, 2]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([1e-6, 1], 2, [1, 1]),
        ([1e-6, 1e-6, 1], 8, [1, 1, 6]),
    ],
)
def test_apportioned_numbers(shares, total, expected):
    assert apportion(shares, total) == expected


@pytest.mark.parametrize(
    ("shares", "cycle"),
    [
        ([0.5, 0.5], [1, 1]),
        ([0.1, 0.6, 0.3], [1, 6, 3]),
        ([0.34, 0.66], [15, 29]),  # of 44, off by less than a thousandth
        ([4, 6], [2, 3]),
    ],
)
def test_a_cycle_is_as_short_as_can_be(shares, cycle):
    assert cycle_of(shares) == cycle


def test_what_cannot_be_mixed_is_refused_with_all_its_reasons():
    text = refusal(MixSettings(mode="batch", shares={"gold": 1, "sliver": 2}))
    assert "mix.shares: 'sliver' is no source (nearest: 'silver')" in text
    assert "'more' has no share" in text
    assert "draws from silver sources" in refusal(MixSettings(mode="silver"), sources=[GOLD])
    assert "no sources at all" in refusal(MixSettings(), sources=[])
    assert "it has no pictures" in refusal(MixSettings(), sources=[Pictures("void", 0)])
    assert "cannot hold each of 3 sources" in refusal(MixSettings(mode="batch"), batch_size=2)
    assert "given to two sources" in refusal(MixSettings(), sources=[GOLD, GOLD])
    assert "weight 0" in refusal(MixSettings(weights={"gold": 0}), sources=[GOLD])
    assert "mode weighted needs them" in refusal(
        MixSettings(mode="weighted"), sources=[GOLD, SILVER]
    )
    with pytest.raises(ValidationError):
        MixSettings(mode="batch", shares={"gold": 0})
    with pytest.raises(ValidationError):
        MixSettings(weights={"gold": -1})
    # an empty source that the mode leaves alone does no harm
    mixture(MixSettings(mode="gold"), sources=[GOLD, Pictures("void", 0, Grade.SILVER)]).plan(3)


def test_curriculum_ramps_silver_alone():
    settings = MixSettings.model_validate(
        {"mode": "curriculum", "curriculum": {"weight": [0.5, 2], "until": 0.5}}
    )
    mix = mixture(settings, steps=40)
    assert mix.weights_at(0) == [1.0, 0.5, 0.25]
    assert mix.weights_at(10) == [1.0, 1.25, 0.625]
    assert mix.weights_at(20) == mix.weights_at(39) == [1.0, 2.0, 1.0]
    assert {p.source for p in mix.picks(0)} == {0, 1, 2}  # drawn all the time
    out = io.StringIO()
    Console(file=out, width=120).print(mix.plan_table())
    assert "0.5 to 2" in out.getvalue()


def test_what_a_curriculum_is_unless_it_is_set():
    assert Curriculum().points() == [(0.0, 0.0), (0.5, 1.0)]
    for wrong in ({"until": 0}, {"until": 1.1}, {"weight": (-0.1, 1)}):
        with pytest.raises(ValidationError):
            Curriculum(**wrong)


def test_weights_over_time_are_straight_between_their_points():
    mix = mixture(MixSettings(weights={"more": [(0.25, 1.0), (0.75, 3.0)]}), steps=100)
    found = [mix.weights_at(step)[2] for step in (0, 25, 50, 75, 99)]
    assert found == [0.5, 0.5, 1.0, 1.5, 1.5]
    for wrong in ([(0.5, 1.0), (0.5, 2.0)], [(0.7, 1.0), (0.2, 2.0)], [], [(1.5, 1.0)]):
        with pytest.raises(ValidationError):
            MixSettings(weights={"more": wrong})
    level = MixSettings(weights={n: [(0.0, 0.0), (1.0, 0.0)] for n in ("gold", "silver", "more")})
    assert "weight 0" in refusal(level)


def test_finetune_ends_and_online_begins_with_gold_alone():
    late = mixture(MIXES["finetune"], steps=50)
    early = mixture(MIXES["online"], steps=50)
    assert late.first_step_of_last_phase() == 30 and early.first_step_of_last_phase() == 20
    alone = mixture(MIXES["finetune"], [GOLD, replace(SILVER, length=13)], batch_size=26, steps=50)
    of_mix, after = ([p.index for p in alone.picks(step) if p.source == 0] for step in (0, 30))
    assert of_mix != after[:13], "another order than that of the phase before"
    for step in range(50):
        assert {p.source for p in late.picks(step)} == ({0, 1, 2} if step < 30 else {0})
        assert {p.source for p in early.picks(step)} == ({0} if step < 20 else {0, 1, 2})
    assert mixture(MixSettings(mode="online", burn_in=0)).picks(0)[-1].source == 2
    assert early.plan(10)[1].drawn == 0  # a plan of fewer steps than the run has


def test_online_begins_with_pools_in_which_people_have_looked_at_every_picture(tmp_path):
    own = gold(pictures(tmp_path / "own", 3, "own"), [])
    pool = replace(gold(pictures(tmp_path / "pool", 2, "pool"), []), grade=Grade.SILVER)

    def tags(present, grade):
        grades = np.full(2, grade, np.uint8)
        return Tags(*np.ones((2, 2, 1), np.float32), np.array(present), grades)

    def begins_with(coverage, given=None):
        changed = replace(pool, coverage=np.array(coverage, np.float32), tags=given)
        mix = Mixture([own, changed], MixSettings(mode="online"), 4, steps=10)
        return [source.name for source in mix.people]

    everywhere, somewhere = [[1, 0], [0, 1]], [[1, 0], [0, 0]]
    assert begins_with(everywhere) == ["own", "pool"] and begins_with(somewhere) == ["own"]
    assert begins_with(somewhere, tags([False, True], Grade.GOLD)) == ["own", "pool"]
    assert begins_with(everywhere, tags([False, True], Grade.SILVER)) == ["own"], "a model's"
