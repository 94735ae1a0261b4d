"""From made-up runs to a result, and from a result to pages."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from detmtl.comparing.bootstrap import picture_weights
from detmtl.comparing.contrast import contrast, share
from detmtl.comparing.plan import Plan, Run, cells_of
from detmtl.comparing.prepare import Prepared
from detmtl.comparing.results import result
from detmtl.comparing.scores import RunScores
from detmtl.comparing.settings import CompareSettings
from detmtl.comparing.statistics import over_both, over_pictures, ratio
from detmtl.config import RunSettings
from detmtl.report.compare_page import html, markdown, summary

PICTURES = 60
EFFECTS = {"gold": 0.0, "silver": 0.002, "electrum": 0.06, "all": 0.1, "teacher": 0.03}


@dataclass
class Pictures:
    """As much of a `Source` as a result asks for."""

    classes: tuple[str, ...] = ("cat", "dog")

    def __len__(self):
        return PICTURES


@pytest.fixture
def run_settings(tmp_path):
    coco = {"kind": "coco", "images": "i", "annotations": "a.json"}
    return RunSettings.model_validate(
        {
            "data": {"root": ".", "classes": ["cat", "dog"], "sources": {"g": coco}, "val": coco}
            | {"batch_size": 2},
            "model": {"backbone": {"name": "resnet18"}},
            "tasks": {"boxes": {"kind": "detection"}},
            "mix": {"mode": "gold"},
            "train": {"steps": 7},
        }
    )


def scores_of(key, level, rng, of_pictures):
    """Returns a run whose AP is the mean of made-up values of its pictures."""
    values = level + of_pictures + rng.normal(0, 0.05, PICTURES)
    mean, resampled = float(values.mean()), picture_weights(PICTURES, 200) @ values / PICTURES
    metrics = {"boxes/AP": mean, "boxes/AP50": 2 * mean, "boxes/F1@.5": mean + 0.1}
    metrics |= {"boxes/AP/cat": mean, "boxes/AP/dog": mean, "boxes/AP_small": float("nan")}
    shares = {"boxes/AP": resampled, "boxes/AP50": 2 * resampled, "boxes/AP/cat": resampled}
    table = [(0.2, 0.1, 40), (0.8, 0.7, 20)]
    start = "" if "teacher" in key else f"start {key[-1]}"
    metrics["boxes/ECE"] = 0.1
    return RunScores(key, metrics, shares, table, 12.0, 0.5, start)


@pytest.fixture
def make(run_settings):
    """Returns the result of a comparison of `arms`, each with its effect."""

    def made(seeds=5, missing=(), **changes):
        settings = CompareSettings.model_validate(
            {
                "base": "x.yaml",
                "seeds": seeds,
                "arms": {a: "teacher" if a == "teacher" else {} for a in EFFECTS},
                "baseline": "gold",
                "resamples": 200,
            }
            | changes
        )
        plan, rng = Plan(cells_of(settings)), np.random.default_rng(0)
        prepared = Prepared(plan, {i: (Pictures(), "test") for i in range(len(plan.cells))})
        found, of_pictures = {}, rng.normal(0.3, 0.1, PICTURES)
        for i, arm, seed in (
            (i, a, s) for i in range(len(plan.cells)) for a in EFFECTS for s in range(seeds)
        ):
            # one teacher, whatever the seed
            key = f"{i}-teacher-0" if arm == "teacher" else f"{i}-{arm}-{seed}"
            plan.at[i, arm, seed] = key
            kind = "teacher" if arm == "teacher" else "train"
            plan.runs[key] = Run(key, kind, run_settings, 7)
            if (arm, seed) not in missing:
                level = EFFECTS[arm] + rng.normal(0, 0.004)
                kept = [s for s in found.values() if s.key == key]
                found[i, arm, seed] = kept[0] if kept else scores_of(key, level, rng, of_pictures)
        return settings, prepared, found

    return made


def about(found):
    """Returns a result with what the command adds to it."""
    return found | {
        "title": "A <title>",
        "note": "",
        "scored": "Scored on data.val: 36 pictures.",
        "provenance": {"command": "detmtl compare", "commit": "abc"},
        "finished": 25,
        "planned": 25,
        "failures": [],
    }


def told(found, arm, metric="boxes/AP", baseline="gold"):
    (cell,) = found["cells"]
    (one,) = [
        c
        for c in cell["comparisons"]
        if (c["arm"], c["baseline"], c["metric"]) == (arm, baseline, metric)
    ]
    return one


def test_a_planted_difference_is_found_and_a_null_is_not(make):
    found = result(*make())
    assert told(found, "electrum")["word"] == "better"
    assert told(found, "silver")["word"] == "cannot tell"
    assert told(found, "electrum")["seeds"]["mean"] == pytest.approx(0.06, abs=0.02)
    assert told(found, "electrum")["pictures"]["low"] > 0
    # what has no value per picture is judged by seeds alone, which is said
    assert told(found, "electrum", "boxes/F1@.5")["pictures"]["low"] is None
    assert "were not resampled" in told(found, "electrum", "boxes/F1@.5")["reason"]
    (caution,) = found["cautions"]
    assert caution.startswith("boxes/F1@.5: verdicts are over seeds alone")
    worse = told(result(*make(baseline="electrum")), "gold", baseline="electrum")
    assert worse["word"] == "worse"


def test_differences_are_paired_by_seed(make):
    settings, prepared, scores = make(missing=[("electrum", 1), ("gold", 3)])
    found = result(settings, prepared, scores)
    assert sorted(told(found, "electrum")["values"]) == ["0", "2", "4"]
    by_hand = [
        scores[0, "electrum", s].metrics["boxes/AP"] - scores[0, "gold", s].metrics["boxes/AP"]
        for s in (0, 2, 4)
    ]
    assert told(found, "electrum")["seeds"]["mean"] == pytest.approx(np.mean(by_hand))
    assert told(found, "electrum")["seeds"]["count"] == 3


def test_pictures_are_resampled_together_for_all_seeds(make):
    _, _, scores = make()
    arm, gold = ({s: scores[0, a, s] for s in range(5)} for a in ("electrum", "gold"))
    runs = {"electrum": arm, "gold": gold}
    found = contrast(runs, {"electrum": 1, "gold": -1}, "boxes/AP")
    joint = np.mean(
        [arm[s].resampled["boxes/AP"] - gold[s].resampled["boxes/AP"] for s in range(5)], axis=0
    )
    assert found.pictures.low == pytest.approx(np.quantile(joint, 0.025))
    # of one run less is known: of the whole difference, then, nothing is over pictures
    runs["gold"] = gold | {4: replace(gold[4], resampled={})}
    assert not contrast(runs, {"electrum": 1, "gold": -1}, "boxes/AP").pictures.known


def test_a_share_is_of_means_over_seeds_on_the_same_pictures(make):
    _, _, scores = make()
    way = ("electrum", "gold", "all")
    runs = {arm: {s: scores[0, arm, s] for s in range(5)} for arm in way}
    values = np.array([[r.metrics["boxes/AP"] for r in runs[arm].values()] for arm in way])
    drawn = np.array([[r.resampled["boxes/AP"] for r in runs[arm].values()] for arm in way])
    over_seeds = ratio(values[0] - values[1], values[2] - values[1])
    arm, floor, top = drawn.mean(axis=1)
    pictures = over_pictures(over_seeds.mean, (arm - floor) / (top - floor))
    assert share(runs, way, "boxes/AP") == over_both(over_seeds, pictures)
    runs["gold"][0] = replace(runs["gold"][0], resampled={})
    assert share(runs, way, "boxes/AP") == over_seeds


def test_one_teacher_counts_as_one_model(make):
    found = result(*make())
    (cell,) = found["cells"]
    assert cell["arms"]["teacher"]["models"] == 1
    assert cell["arms"]["teacher"]["metrics"]["boxes/AP"]["estimate"]["low"] is None
    assert cell["arms"]["gold"]["models"] == 5


def test_arms_of_the_same_runs_are_not_compared(make):
    settings, prepared, scores = make()
    for seed in range(5):
        scores[0, "silver", seed] = replace(scores[0, "gold", seed])
    found = result(settings, prepared, scores)
    assert "silver" not in {c["arm"] for c in found["cells"][0]["comparisons"]}
    (caution,) = [c for c in found["cautions"] if "the same runs" in c]
    assert caution.startswith("silver and gold are the same runs: ")
    for arm in ("electrum", "all", "teacher"):
        for seed in range(5):
            scores[0, arm, seed] = replace(scores[0, "gold", seed])
    nothing = about(result(settings, prepared, scores))
    assert not nothing["verdict"] and "No two arms are finished" not in html(nothing)
    assert "No two arms are finished" in html(about(result(settings, prepared, {})))


def test_the_share_of_the_way_to_the_ceiling(make):
    found = result(*make(ceiling="all"))
    (share,) = [
        g for g in found["cells"][0]["gap"] if (g["arm"], g["metric"]) == ("electrum", "boxes/AP")
    ]
    assert share["low"] < 0.6 < share["high"] and abs(share["share"] - 0.6) < 0.15
    upside_down = result(*make(ceiling="gold", baseline="all"))
    assert all(g["share"] is None for g in upside_down["cells"][0]["gap"])


def test_cautions(make):
    settings, prepared, scores = make()
    scores[0, "gold", 0] = replace(scores[0, "gold", 0], start="another")
    cautions = " ".join(result(settings, prepared, scores)["cautions"])
    assert "Seed 0: the arms did not start from the same weights" in cautions
    assert "Seed 1" not in cautions


def test_less_is_better_for_a_calibration_error(make):
    settings, prepared, scores = make(metrics=["boxes/AP", "boxes/ECE"])
    for (i, arm, seed), s in list(scores.items()):
        error = 0.05 if arm == "electrum" else 0.2
        scores[i, arm, seed] = replace(s, metrics={**s.metrics, "boxes/ECE": error + seed / 1e3})
    found = result(settings, prepared, scores)
    assert told(found, "electrum", "boxes/ECE")["word"] == "better"
    assert told(found, "electrum", "boxes/ECE")["seeds"]["mean"] == pytest.approx(-0.15)


def test_pages(make):
    found = about(result(*make(ceiling="all")))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    columns, rows = summary(found)
    assert columns[:3] == ["arm", "AP", "AP50"] and len(rows) == 5
    text = markdown(found)
    assert "electrum is better than gold: AP +0.0" in text
    assert "Whether silver is better than gold cannot be told" in text
    assert found["scored"] in text and found["scored"] in html(found)
    assert "| better (seeds alone) | seeds do not explain it" in text
    assert "marked 'seeds alone', has only ruled out the seeds" in text
    for heading in (
        "## Differences",
        "## By class and size",
        "## Time",
        "## Share of the way to all",
    ):
        assert heading in text
    page = html(found)
    assert "A &lt;title&gt;" in page and page.count("<svg") == 3
    assert "http" not in page.split("</style>")[1], "nothing is loaded from anywhere"
    assert page.index("electrum is better than gold") < page.index("<table")


def test_many_cells_have_a_curve_and_a_sentence_that_counts(make):
    grid = {"teacher": {"nano": {}, "fast": {}}}
    found = about(result(*make(grid=grid, curve={"data.sources.gold.subset.count": [8, 16]})))
    assert [c["name"] for c in found["cells"]] == [
        "nano, gold 8",
        "nano, gold 16",
        "fast, gold 8",
        "fast, gold 16",
    ]
    texts = [v["text"] for v in found["verdict"]]
    assert "electrum against gold, 4 cells: better in 4, worse in 0, cannot tell in 0." in texts
    assert {"better", "cannot tell"} >= {v["word"] for v in found["verdict"]}
    assert "Curve" in html(found) and "cell" in summary(found)[0]


def test_nothing_is_finished_yet(make):
    settings, prepared, _ = make()
    found = about(result(settings, prepared, {}))
    assert found["verdict"] == [] and found["cells"][0]["arms"] == {}
    assert "nothing to compare yet" in html(found) and "A <title>" in markdown(found)
