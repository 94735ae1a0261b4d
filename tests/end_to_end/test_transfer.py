"""`transfer` as a user runs it, on tiny data: every kind of run once, kept, and its report."""

import json

import pytest
import torch

from detmtl.comparing.scores import read_scores
from detmtl.engine.diagnosis import read_records

CONFIG = """\
base: {recipe}
set:
  silver: null
  mix: {{mode: gold}}
  data.tags: {{classes: [red, blue], from_boxes: true}}
  tasks.tags: {{kind: tags, at: p5}}
  train.steps: 2
  device: cpu
seeds: 1
tasks: {{boxes: boxes/AP50, tags: tags/mAP}}
target: boxes
overlap: true
noise: true
resamples: 100
"""


@pytest.fixture
def config(data, tmp_path):
    def written(text=CONFIG):
        path = tmp_path / "transfer.yaml"
        path.write_text(text.format(recipe=data / "recipe.yaml"))
        return path

    return written


@pytest.mark.slow
def test_a_report_with_all_its_runs_each_once(config, detmtl, tmp_path):
    words = ["--config", config(), "--out", tmp_path / "out", "--threads", 1]
    done = detmtl("transfer", *words)
    assert done.status == 0, done.out + done.err
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    (variant,) = found["variants"]
    assert [*variant["arms"]] == [
        "boxes alone",
        "tags alone",
        "boxes + tags",
        "boxes + noise like tags",
        "tags on a trunk that never learned",
        "tags on the trunk of boxes",
    ]
    assert found["finished"] == found["planned"] == 6 and not found["failures"]
    (effect,) = variant["effects"]
    assert (effect["task"], effect["others"], effect["name"]) == ("boxes", ["tags"], "cannot tell")
    assert "one seed" in effect["reason"] and "cannot be told" in done.out
    assert all(arm["peak_bytes"] > 1e8 for arm in variant["arms"].values())

    runs = {name: tmp_path / "out" / "runs" / a["runs"]["0"] for name, a in variant["arms"].items()}
    assert [r["step"] for r in read_records(runs["boxes + tags"] / "diagnosis.jsonl")] == [1, 2]
    assert "boxes/tags" in variant["gradients"]["boxes + tags"]["cosine"]["trunk"]
    # a probe's trunk is the other run's, and stays so
    probe, trunk, head = (
        torch.load(runs[name] / "best.pt", weights_only=True)["model"]
        for name in ("tags on the trunk of boxes", "boxes alone", "tags alone")
    )
    shared = [k for k in probe if k.startswith("fpn.")]
    assert shared and all(torch.equal(probe[k], trunk[k]) for k in shared)
    assert not any(torch.equal(head[k], trunk[k]) for k in shared if k.endswith("weight"))
    assert {k for k in probe if k.startswith("tasks.")} == {
        k for k in head if k.startswith("tasks.")
    }

    tags = read_scores(runs["tags alone"], 100)
    assert tags.resampled["tags/mAP"].shape == (100,)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out" / "runs").glob("*/done.json")}
    again = detmtl("transfer", *words)
    assert again.status == 0 and "jobs to do" not in again.out
    assert before == {f: f.stat().st_mtime_ns for f in before}
    for name in ("report.md", "report.html"):
        assert "tags" in (tmp_path / "out" / name).read_text()


def test_mistakes_are_told_before_any_run(config, detmtl, tmp_path):
    def told(text):
        done = detmtl("transfer", "--config", config(text), "--out", tmp_path / "out")
        assert done.status == 2 and not list((tmp_path / "out").glob("runs/*/done.json"))
        return done.err

    assert "tasks.map: is no task of the base config" in told(
        CONFIG.replace("tags: tags/mAP", "map: map/mIoU")
    )
    assert "set train.best: null" in told(
        CONFIG.replace("  device:", "  train.best: boxes/AP\n  device:")
    )
    assert "target: 'tag' is no task" in told(CONFIG.replace("target: boxes", "target: tag"))
