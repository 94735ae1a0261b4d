"""`compare` as a user runs it, on tiny data: everything once, killed and again, cached, failing."""

import json
import os
import time

import numpy as np
import pytest
from conftest import start_verb
from test_kill import kill_when

from detmtl.metrics.matches import Matches, average_precision, f1_at
from detmtl.metrics.per_picture import mean_of_known

BASE = """\
set:
  {train.steps: 2, train.save_every: 1, silver.teacher.train: {}, device: cpu, export.format: null}
"""
TWO_ARMS = """\
base: {recipe}
{base}
seeds: 2
arms:
  gold: {{mix.mode: gold}}
  fast: {{mix.mode: gold, optim.lr: 1.0e-2}}
baseline: gold
resamples: 120
"""
WITH_TEACHER = """\
base: {recipe}
{base}
seeds: 1
arms:
  gold: {{mix.mode: gold}}
  electrum: {{}}
  broken: {{mix.mode: gold, data.sources.gold.subset: {{count: 8}}, optim.lr: 1.0e+30, train.steps: 40}}
  teacher: teacher
baseline: gold
resamples: 120
equal_steps: false
"""


@pytest.fixture
def config(data, tmp_path):
    def written(text):
        path = tmp_path / "compare.yaml"
        path.write_text(text.format(recipe=data / "recipe.yaml", base=BASE))
        return path

    return written


def done_files(out):
    return {f: f.stat().st_mtime_ns for f in (out / "runs").glob("*/done.json")}


def workers_of(out):
    """Returns the processes that work below a folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
        except OSError:
            continue
        if b"detmtl.comparing.worker" in words and str(out).encode() in words:
            found.append(pid)
    return found


@pytest.mark.slow
def test_killed_and_again_and_cached(config, detmtl, tmp_path):
    out, path = tmp_path / "out", config(TWO_ARMS)
    words = ["--config", path, "--out", out, "--threads", 1]
    moment = {"folder": tmp_path, "patience": 400}  # several processes start one after the other
    kill_when(lambda: out.is_dir() and done_files(out), "compare", *words, **moment)
    before = done_files(out)
    assert 1 <= len(before) < 4
    end = time.monotonic() + 20
    while workers_of(out):  # they notice that nobody waits for them
        assert time.monotonic() < end, "a worker lives on without its parent"
        time.sleep(0.1)

    process = start_verb("compare", *words, "--jobs", 2, folder=tmp_path)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    after = done_files(out)
    assert len(after) == 4 and before.items() <= after.items(), "a finished run was run again"
    logs = [f.with_name("log.txt").read_text() for f in after]
    assert all(logs) and not any("Fatal" in log or "Traceback" in log for log in logs)
    assert "fast - gold" not in told and "report.html" in told
    found = json.loads((out / "report.json").read_text())
    assert found["finished"] == found["planned"] == 4 and not found["failures"]
    (cell,) = found["cells"]
    assert cell["scored_on"] == "test" and set(cell["arms"]) == {"gold", "fast"}
    ap = cell["comparisons"][0]
    assert (ap["metric"], ap["seeds"]["count"], ap["pictures"]["count"]) == ("boxes/AP", 2, 120)
    starts = [json.loads(f.read_text())["start"] for f in after]
    assert sorted(starts.count(s) for s in set(starts)) == [2, 2], (
        "a seed is one start for all arms"
    )
    (use,) = [x for x in (tmp_path / "test_uses.jsonl").read_text().splitlines() if x]
    assert json.loads(use)["folder"] == "out"

    again = detmtl("compare", *words)
    assert again.status == 0 and "jobs to do" not in again.out
    assert done_files(out) == after

    config(TWO_ARMS.replace("1.0e-2", "5.0e-3"))  # another experiment on the same test pictures
    other = detmtl("compare", *words, "--report-only")
    assert (
        "2 of 4 runs are finished" in other.out and "scored before with other settings" in other.out
    )


@pytest.mark.slow
def test_a_teacher_is_trained_once_and_a_failing_run_does_not_stop_the_others(
    config, detmtl, tmp_path
):
    out, path = tmp_path / "out", config(WITH_TEACHER)
    done = detmtl("compare", "--config", path, "--out", out, "--threads", 1)
    assert done.status == 1, done.out + done.err
    assert "broken, seed 0: failed:" in done.out and "log.txt" in done.out
    found = json.loads((out / "report.json").read_text())
    (cell,) = found["cells"]
    assert set(cell["arms"]) == {"gold", "electrum", "teacher"}
    assert [f["name"] for f in found["failures"]] == ["broken, seed 0"]
    runs = {arm: a["runs"]["0"] for arm, a in cell["arms"].items()}
    # gold alone for as many steps is the teacher: one run
    assert runs["gold"] == runs["teacher"]
    student = out / "runs" / runs["electrum"]
    assert (student / "teacher").resolve() == (out / "runs" / runs["teacher"]).resolve()
    assert len(list((out / "stores").iterdir())) == 1
    # one run against itself is no comparison
    assert {c["arm"] for c in cell["comparisons"]} == {"electrum"}

    for key in set(runs.values()):
        metrics = json.loads((out / "runs" / key / "metrics.json").read_text())
        matches = Matches.load(out / "runs" / key / "matches.npz")
        mine = float(mean_of_known(average_precision(matches).mean(axis=1))[0])
        assert mine == pytest.approx(metrics["boxes/AP"], abs=1e-12)
        assert float(f1_at(matches)[0]) == pytest.approx(metrics["boxes/F1@.5"], abs=1e-12)
        assert np.all(matches.truth[0].sum(axis=0) > 0)


def test_mistakes_are_told_before_any_run(config, detmtl, tmp_path):
    text = TWO_ARMS.replace("optim.lr: 1.0e-2", "train.steps: 3")
    done = detmtl("compare", "--config", config(text), "--out", tmp_path / "out")
    assert done.status == 2 and not done_files(tmp_path / "out")
    assert "do not make equal efforts (gold 2 steps of 4 pictures; fast 3 steps" in done.err
    text = TWO_ARMS.replace("optim.lr: 1.0e-2", "model.fpn.channels: 8")
    done = detmtl("compare", "--config", config(text), "--out", tmp_path / "out")
    assert done.status == 2 and "do not start from the same weights" in done.err
    text = TWO_ARMS.replace("baseline: gold", "baseline: glod")
    done = detmtl("compare", "--config", config(text), "--out", tmp_path / "out")
    assert done.status == 2 and "baseline: 'glod' is no arm; arms has gold, fast" in done.err
