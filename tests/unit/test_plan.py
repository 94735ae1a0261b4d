"""What the loader yields against the plan, in every mode, and the traps of mixing by name."""

import importlib.util
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from detmtl.data.mixture import MixSettings, Mixture, idle_weights
from detmtl.data.tags import Tags
from detmtl.silver.held_out import without_doubles
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade


def _benchmark(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


plans = _benchmark("plans")
STEPS = 30


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return plans.sources(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("mode", plans.CASES)
def test_every_mode_draws_what_its_plan_says(mode, balanced, sources):
    mix = plans.mixture(mode, balanced, sources, 6, STEPS)
    rows, drawn = mix.plan(), plans.counted(mix, STEPS)
    assert [(r.drawn, r.most) for r in rows] == [(count, most) for count, most, _ in drawn]
    assert [r.loss_share for r in rows] == pytest.approx([loss for *_, loss in drawn], abs=1e-6)
    assert sum(r.drawn for r in rows) == 6 * STEPS


def test_balance_changes_every_mode_that_has_something_to_balance(sources):
    for mode in plans.CASES:
        plain, balanced = (plans.mixture(mode, b, sources, 6, STEPS) for b in (False, True))
        assert any(plain.picks(s) != balanced.picks(s) for s in range(STEPS)), mode


def test_trap_a_share_that_rounds_to_zero_pictures(sources):
    for mode in ("batch", "curriculum", "finetune", "online"):
        shares = {"gold": 1, "rare": 0.001, "pool": 50}
        mix = Mixture(sources, MixSettings(mode=mode, shares=shares), 6, steps=STEPS)
        assert all(row.drawn for row in mix.plan()), mode


def test_trap_a_sampler_that_never_ends(sources):
    """Three pictures for a share of five in every batch, balanced or not."""
    shares = {"gold": 1, "rare": 5, "pool": 1}
    for balance in ({}, plans.BALANCE):
        settings = MixSettings.model_validate(
            {"mode": "batch", "shares": shares, "balance": balance}
        )
        mix = Mixture(sources, settings, 7)
        picks = [p.index for s in range(60) for p in mix.picks(s) if p.source == 1]
        assert len(picks) == 300 and set(picks) == {0, 1, 2}


def test_trap_gold_repeated_fifty_times_unnoticed(sources):
    mix = Mixture(sources, MixSettings(mode="batch", shares={"gold": 1, "rare": 1, "pool": 4}), 6)
    few = mix.plan(150)[1]
    assert few.most == 50 and "repeated 50.0 times" in few.warning
    assert mix.plan(150)[2].warning == ""


def test_trap_one_picture_repeated_often_though_its_source_is_not(sources):
    """Balance may repeat a rare picture more often than its source's average tells."""
    pool = sources[2]
    annotations = pool.annotations
    one = replace(annotations, classes=np.where(np.arange(len(annotations)) == 0, 1, 0))
    settings = MixSettings.model_validate({"mode": "silver", "balance": {"classes": 1.0}})
    mix = Mixture([replace(pool, annotations=one)], settings, 6)
    (row,) = mix.plan(60)
    assert row.passes < 20 < row.most and "one of its pictures" in row.warning


def test_trap_a_picture_in_both_gold_and_pool(sources):
    gold = replace(sources[0], coverage=np.ones((1, 2), np.float32))
    pool = sources[2]
    mixed = replace(
        pool.subset([0, 1, 2]),
        files=type(pool.files).of(pool.files.folder, ["pool0.png", "gold4.png", "pool2.png"]),
    )
    with pytest.warns(UserWarning, match=r"source 'pool': 1 of 3 .*gold4.png of source 'gold'"):
        kept, left = without_doubles([gold, mixed], ["pool"])
    assert kept is gold
    assert left.ids.tolist() == [0, 2] and left.path(1).endswith("pool2.png")
    with (
        warnings.catch_warnings()
    ):  # where people looked for one class, silver may tell of the other
        warnings.simplefilter("error")
        assert without_doubles([sources[0], mixed], ["pool"])[1] is mixed


def test_modes_of_two_grades_want_both(sources):
    for mode in ("curriculum", "finetune", "online"):
        with pytest.raises(InputError, match=f"{mode} needs gold and silver sources"):
            Mixture(sources[:2], MixSettings(mode=mode), 6, steps=STEPS)
        silver = replace(sources[0], name="other", grade=Grade.SILVER)
        Mixture([sources[0], silver], MixSettings(mode=mode), 6, steps=STEPS)


def test_online_burns_in_on_what_people_said_of_its_pools(sources):
    """A source that is gold for some classes and a pool for the others needs no other beside it."""
    num = len(sources[0].classes)
    partly = np.eye(1, num, dtype=np.float32)
    pool = replace(sources[0], coverage=partly, grade=Grade.SILVER)
    mix = Mixture([pool], MixSettings(mode="online", burn_in=0.5), 4, steps=10)
    assert mix.first_step_of_last_phase() == 5
    assert all(pick.source == 0 for step in range(10) for pick in mix.picks(step))
    # not where nobody has looked at some pictures at all, nor where a model has labelled before
    some = np.zeros((len(pool), num), np.float32)
    some[0] = 1
    annotations = pool.annotations
    silver = replace(annotations, grade=np.ones_like(annotations.grade))
    for other in (replace(pool, coverage=some), replace(pool, annotations=silver)):
        with pytest.raises(InputError, match="online needs gold and silver sources"):
            Mixture([other], MixSettings(mode="online"), 4, steps=10)
        beside = replace(other, name="other")
        mix = Mixture([sources[0], beside], MixSettings(mode="online", burn_in=0.5), 4, steps=10)
        assert {pick.source for step in range(5) for pick in mix.picks(step)} == {0}


def test_a_weight_that_nothing_is_weighed_against_is_told(sources):
    gold, rare, pool = sources
    tags = Tags(*np.ones((3, len(pool), 2), np.float32), np.zeros(len(pool), np.uint8))
    tagged = [gold, replace(pool, annotations=None, tags=tags, weight=0.1)]
    tasks = {"det": "boxes", "tag": "tags"}

    def told(given=tagged, coming=(), mode="concat", **weights):
        settings = MixSettings.model_validate({"mode": mode, "weights": weights})
        return idle_weights(given, settings, tasks, {"pool": coming})

    (note,) = told()
    assert "source 'pool': its weight changes nothing but at 0 for tag," in note
    assert "balancing.weights: {tag: 0.5}" in note
    plain = [gold, replace(tagged[1], weight=1.0)]
    assert not told(plain) and not told(plain, pool=0) and not told(mode="alternate")
    assert len(told(plain, pool=[[0, 0.2], [1, 1]])) == len(told(plain, mode="curriculum")) == 1
    assert [n.split("'")[1] for n in told(gold=3)] == ["gold", "pool"]
    assert len(told(gold=3, coming=["boxes"])) == 1  # boxes of two sources are weighed
    assert not told([gold, rare], gold=3)
