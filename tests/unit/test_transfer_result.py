"""From made-up runs to a transfer report: numbers, words and pages."""

import json
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest

from detmtl.comparing.contrast import contrast, relative, share
from detmtl.comparing.plan import Cell, Plan, Run
from detmtl.comparing.prepare import Prepared
from detmtl.comparing.scores import RunScores
from detmtl.comparing.transfer_plan import Transfer, arms_of
from detmtl.comparing.transfer_result import delta_m, transfer_result
from detmtl.comparing.transfer_settings import TransferSettings
from detmtl.config import RunSettings
from detmtl.engine.diagnosis import FILE, record
from detmtl.report.transfer_page import html, markdown, sentences, summary

SEEDS = 6
RESAMPLES = 400
METRICS = {"boxes": "boxes/AP", "map": "map/mIoU", "depth": "depth/RMSE"}
LEVELS = {"boxes/AP": 0.3, "map/mIoU": 0.5, "depth/RMSE": 2.0}


@dataclass
class Pictures:
    def __len__(self):
        return 60


@pytest.fixture
def run_settings():
    coco = {"kind": "coco", "images": "i", "annotations": "a.json"}
    return RunSettings.model_validate(
        {
            "data": {"root": ".", "classes": ["cat"], "sources": {"g": coco}, "val": coco}
            | {"batch_size": 2},
            "model": {"backbone": {"name": "resnet18"}},
            "tasks": {"boxes": {"kind": "detection"}},
            "mix": {"mode": "gold"},
            "train": {"steps": 7},
        }
    )


def scores_of(key, values, rng):
    resampled = {
        m: v + rng.normal(0, 0.004, RESAMPLES) for m, v in values.items() if m.startswith("boxes")
    }
    return RunScores(key, values, resampled, [], 12.0, 0.5, "", 3e8)


@pytest.fixture
def make(run_settings, tmp_path):
    """Returns settings, plan, scores and folder of made-up runs.

    `effects`: arm -> metric -> what is added to the level; a seed's luck is the same in all arms.
    """

    def made(
        effects=None, missing=(), spread=0.003, tasks=("boxes", "map"), gradients=None, **asked
    ):
        effects = effects or {}
        settings = TransferSettings.model_validate(
            {"base": "x.yaml", "tasks": {t: METRICS[t] for t in tasks}, "seeds": SEEDS}
            | {"resamples": RESAMPLES}
            | asked
        )
        rng = np.random.default_rng(0)
        cells = [Cell(name, {}, None, {}) for name in settings.all_variants]
        plan, arms = Plan(cells), arms_of(settings)
        prepared = Prepared(plan, {i: (Pictures(), "test") for i in range(len(cells))})
        scores = {i: {} for i in range(len(cells))}
        luck = rng.normal(0, 0.02, (len(cells), SEEDS))
        for i in range(len(cells)):
            for arm in arms:
                for seed in range(SEEDS):
                    key = f"{i}-{arm.name}-{seed}"
                    plan.at[i, arm.name, seed] = key
                    plan.runs[key] = Run(key, "train", run_settings, 7)
                    values = {
                        METRICS[t]: LEVELS[METRICS[t]]
                        + luck[i, seed]
                        + rng.normal(0, spread)
                        + effects.get(arm.name, {}).get(METRICS[t], 0.0)
                        for t in arm.tasks
                    }
                    if (arm.name, seed) not in missing:
                        of_arm = scores[i].setdefault(arm.name, {})
                        of_arm[seed] = scores_of(key, values, rng)
                    if gradients and len(arm.tasks) > 1 and not arm.noise:
                        folder = tmp_path / key
                        folder.mkdir(exist_ok=True)
                        (folder / FILE).write_text(json.dumps(gradients) + "\n")
        return settings, Transfer(prepared, arms, ""), scores, tmp_path

    return made


def about(found):
    return found | {
        "title": "A <title>",
        "note": "",
        "scored": "Scored on data.val: 36 pictures.",
        "provenance": {"command": "detmtl transfer", "commit": "abc"},
        "finished": 25,
        "planned": 25,
        "failures": [],
    }


def effect(found, task="boxes", others=("map",), variant=0):
    (one,) = [
        e
        for e in found["variants"][variant]["effects"]
        if e["task"] == task and e["others"] == [*others]
    ]
    return one


def test_help_and_harm_are_named(make):
    planted = {"boxes + map": {"boxes/AP": 0.05, "map/mIoU": -0.05}}
    found = transfer_result(*make(planted))
    assert effect(found)["name"] == "helps" and effect(found, "map", ("boxes",))["name"] == "hurts"
    assert effect(found)["seeds"]["mean"] == pytest.approx(0.05, abs=0.01)
    assert (
        effect(found)["pictures"]["low"] > 0
        and effect(found, "map", ("boxes",))["pictures"]["low"] is None
    )
    assert effect(found)["relative"]["mean"] == pytest.approx(0.05 / 0.3, abs=0.03)
    (caution,) = found["cautions"]
    assert caution.startswith("map/mIoU: verdicts are over seeds alone"), (
        "none of its runs has more"
    )
    assert "hurts (seeds alone)" in markdown(about(found))
    (helped, hurt) = [text for word, text in sentences(about(found)) if word]
    assert "not resampled" in hurt and "over 60 pictures" in helped


def test_nothing_planted_nothing_found(make):
    found = transfer_result(*make(spread=0.02, tasks=("boxes", "map", "depth")))
    assert {e["name"] for e in found["variants"][0]["effects"]} == {"cannot tell"}


def test_the_advice_asks_for_what_stands_in_the_way(make):
    few_pictures = make({"boxes + map": {"boxes/AP": 0.003}}, spread=0.0002, target="boxes")
    found = effect(transfer_result(*few_pictures))
    assert found["seeds"]["low"] > 0 > found["pictures"]["low"]
    assert found["advice"].startswith("More test pictures are needed")
    planted = {"boxes + map + depth": {"boxes/AP": 0.02, "map/mIoU": 0.002, "depth/RMSE": -0.005}}
    asked = {"tasks": ("boxes", "map", "depth"), "pairs": False, "spread": 0.01}
    effects = transfer_result(*make(planted, **asked))["variants"][0]["effects"]
    assert any(e["p"] < 0.05 for e in effects), "told, but for Holm's correction"
    for e in effects:
        assert e["name"] == "cannot tell"
        assert int(re.search(r"About (\d+) seeds", e["advice"])[1]) > SEEDS


def test_less_error_is_better(make):
    planted = {"boxes + depth": {"depth/RMSE": -0.3}}
    found = transfer_result(*make(planted, tasks=("boxes", "depth")))
    gain = effect(found, "depth", ("boxes",))
    assert gain["name"] == "helps" and gain["seeds"]["mean"] == pytest.approx(0.3, abs=0.02)
    assert gain["relative"]["mean"] == pytest.approx(0.15, abs=0.02)
    assert found["tasks"]["depth"] == {"metric": "depth/RMSE", "sign": -1}


def test_a_narrow_trunk_is_named_and_plain_harm_is_not(make):
    harm = {"boxes + map": {"boxes/AP": -0.06}}
    asked = {"target": "boxes", "wide": {"model.fpn.channels": 64}}
    found = transfer_result(*make(harm, **asked))
    assert effect(found)["name"] == "trunk too narrow"
    assert effect(found)["widened"]["seeds"]["mean"] == pytest.approx(0.06, abs=0.01)
    stays = harm | {"boxes + map, wide": {"boxes/AP": -0.06}}
    assert effect(transfer_result(*make(stays, **asked)))["name"] == "hurts"


def test_a_trunk_that_is_narrow_for_all_is_told_beside_the_word(make):
    wider = {"boxes alone, wide": {"boxes/AP": 0.05}, "boxes + map, wide": {"boxes/AP": 0.05}}
    asked = {"target": "boxes", "wide": {"model.fpn.channels": 64}}
    found = effect(transfer_result(*make(wider, **asked)))
    assert found["name"] == "cannot tell" and found["widened"]["word"] == "cannot tell"
    assert found["width"]["seeds"]["mean"] == pytest.approx(0.05, abs=0.01)
    assert "the trunk is narrow: on the wide one boxes is better" in found["because"]
    assert found["advice"].startswith("Widen the trunk (model.fpn.channels")
    same = effect(transfer_result(*make({}, **asked)))
    assert same["width"]["word"] == "cannot tell" and "narrow" not in same["because"]


def test_a_duplicate_is_named(make):
    start = {"tags on a trunk": {}, "map on a trunk that never learned": {"map/mIoU": -0.3}}
    asked = {"target": "boxes", "overlap": True}
    found = transfer_result(*make(start, **asked))
    assert effect(found)["solved"] and effect(found)["name"] == "duplicate"
    assert effect(found)["overlap"]["mean"] == pytest.approx(1, abs=0.03)
    half = start | {"map on the trunk of boxes": {"map/mIoU": -0.15}}
    found = transfer_result(*make(half, **asked))
    assert not effect(found)["solved"] and effect(found)["overlap"]["mean"] == pytest.approx(
        0.5, abs=0.05
    )
    # where the other's own training gives nothing there is no share to speak of
    assert effect(transfer_result(*make({}, **asked)))["overlap"]["mean"] is None


def test_overlap_is_told_without_pairs_too(make):
    start = {"map on a trunk that never learned": {"map/mIoU": -0.3}}
    asked = {"tasks": ("boxes", "map", "depth"), "pairs": False, "overlap": True}
    found = transfer_result(*make(start, target="boxes", **asked))
    told = {(o["task"], o["other"]): o["solved"] for o in found["variants"][0]["overlaps"]}
    assert told == {("boxes", "map"): True, ("boxes", "depth"): False}
    assert "| map | boxes | 100 % [" in markdown(about(found))


def test_help_that_random_labels_give_too_is_not_help(make):
    gain = {"boxes + map": {"boxes/AP": 0.05}, "boxes + noise like map": {"boxes/AP": 0.05}}
    asked = {"target": "boxes", "noise": True}
    found = effect(transfer_result(*make(gain, **asked)))
    assert found["word"] == "better" and found["name"] == "cannot tell"
    assert "beside random labels" in found["because"]
    gain["boxes + noise like map"] = {"boxes/AP": 0.0}
    assert effect(transfer_result(*make(gain, **asked)))["name"] == "helps"


def test_gradients_give_the_cause(make):
    seen = record(1, ["boxes", "map"], {"c5": [[1.0, -6.0], [-6.0, 900.0]]}, [1, 1])
    planted = {"boxes + map": {"boxes/AP": -0.05}}
    found = transfer_result(*make(planted, target="boxes", gradients=seen))
    assert effect(found)["loudness"] == pytest.approx(30)
    assert effect(found)["cosine"] == pytest.approx(-0.2)
    assert (
        "30 times" in effect(found)["because"]
        and "Lower the weight of map" in effect(found)["advice"]
    )
    gradients = found["variants"][0]["gradients"]["boxes + map"]
    assert gradients["runs"] == SEEDS and gradients["cosine"]["c5"]["boxes/map"]["count"] == SEEDS


def test_delta_m_by_hand_and_only_with_own_baselines(make):
    planted = {"boxes + depth": {"boxes/AP": 0.03, "depth/RMSE": 0.2}}
    settings, transfer, scores, folder = make(planted, tasks=("boxes", "depth"))
    runs = scores[0]
    found = delta_m(settings, runs, ("boxes", "depth"))
    per_task = []
    for metric, sign in (("boxes/AP", 1), ("depth/RMSE", -1)):
        task = metric.split("/")[0]
        a, b = (
            np.array([runs[arm][s].metrics[metric] for s in range(SEEDS)])
            for arm in ("boxes + depth", f"{task} alone")
        )
        per_task.append(sign * (a - b) / b.mean())
    assert found.mean == pytest.approx(np.mean(per_task)) and found.count == SEEDS
    missing = [("depth alone", s) for s in range(SEEDS)]
    settings, transfer, scores, folder = make(planted, tasks=("boxes", "depth"), missing=missing)
    report = transfer_result(settings, transfer, scores, folder)
    assert report["variants"][0]["delta_m"]["boxes + depth"]["mean"] is None
    assert [e["task"] for e in report["variants"][0]["effects"]] == ["boxes"]


def test_contrasts_are_paired_and_need_all_arms(make):
    _, _, scores, _ = make({"boxes + map": {"boxes/AP": 0.05}}, missing=[("boxes alone", 2)])
    runs = scores[0]
    found = contrast(runs, {"boxes + map": 1, "boxes alone": -1}, "boxes/AP")
    assert sorted(found.values) == [0, 1, 3, 4, 5]
    assert found.values[3] == pytest.approx(
        runs["boxes + map"][3].metrics["boxes/AP"] - runs["boxes alone"][3].metrics["boxes/AP"]
    )
    assert contrast(runs, {"boxes + map": 1, "nowhere": -1}, "boxes/AP").values == {}
    assert math.isnan(relative(runs, {"nowhere": 1}, "boxes/AP", "boxes alone").mean)
    assert math.isnan(share(runs, ("nowhere", "boxes alone", "boxes + map"), "boxes/AP").mean)


def test_no_share_is_told_of_a_way_that_leads_down():
    """A task's own training that makes it worse is none that a head on a frozen trunk could replace."""
    values = {"probe": (0.20, 0.21, 0.19), "floor": (0.30, 0.31, 0.295), "top": (0.20, 0.20, 0.20)}

    def found(task, metric, factor=1.0):
        runs = {
            arm: {
                s: RunScores("k", {f"{task}/{metric}": factor * v}, {}, [], 1, 1, "")
                for s, v in enumerate(of)
            }
            for arm, of in values.items()
        }
        return share(runs, ("probe", "floor", "top"), f"{task}/{metric}")

    assert math.isnan(found("map", "mIoU").mean) and found("map", "mIoU").count == 3
    assert found("depth", "RMSE").mean == pytest.approx(1, abs=0.05)  # less is better: it leads up
    assert math.isnan(found("depth", "RMSE", -1).mean)


def test_pages(make):
    seen = record(1, ["boxes", "map"], {"c5": [[1.0, -6.0], [-6.0, 900.0]]}, [1, 1])
    planted = {"boxes + map": {"boxes/AP": -0.05}}
    asked = {"noise": True, "overlap": True, "wide": {"model.fpn.channels": 64}}
    asked["variants"] = {"hard": {}, "selective": {}}
    found = about(transfer_result(*make(planted, gradients=seen, **asked)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    columns, rows = summary(found)
    assert columns[:3] == ["variant", "task", "with"] and len(rows) == 4
    told = [text for _, text in sentences(found)]
    assert any(text.startswith("hard: ") for text in told)
    text = markdown(found)
    assert found["scored"] in html(found)
    for part in (
        found["scored"],
        "delta-m of boxes + map",
        "## Affinity: what each task (column) gains with another (row) (hard)",
        "## Control: the task beside random labels, against alone (selective)",
        "## How much better the effect is on the wide trunk (hard)",
        "## Overlap: does a head on the frozen trunk",
        "## Gradients of boxes + map: cosine",
        "## Cost",
        "| boxes alone | 7 | 500 | 286 |",
    ):
        assert part in text, part
    page = html(found)
    assert "A &lt;title&gt;" in page and page.count("<svg") == 5
    assert "http" not in page.split("</style>")[1], "nothing is loaded from anywhere"


def test_nothing_is_finished_yet(make):
    settings, transfer, _, folder = make()
    found = about(transfer_result(settings, transfer, {}, folder))
    assert found["variants"][0]["effects"] == [] and sentences(found) == []
    assert "nothing to say yet" in html(found) and "A <title>" in markdown(found)
