"""Killed at any moment, the same command goes on, and ends with the same bits."""

import json
import time

import pytest
import torch
from conftest import (
    GOLD_ALONE,
    draw_pictures,
    same_weights,
    settings_words,
    start_verb,
)

from detmtl.silver.store import Store

PATIENCE = 120.0
"""Seconds in which a process must come to the moment at which it is killed."""


def kill_when(moment, verb, *words, folder, patience=PATIENCE):
    """Starts a verb, and kills it (SIGKILL) as soon as `moment()` is true."""
    process = start_verb(verb, *words, folder=folder)
    try:
        end = time.monotonic() + patience
        while not moment():
            assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
            assert time.monotonic() < end, "the moment did not come"
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -9


def recorded(run):
    """Returns what the run's recorder wrote, without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "pictures_per_second")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


@pytest.mark.slow
def test_training(data, detmtl, tmp_path):
    words = ["--config", data / "recipe.yaml", *GOLD_ALONE]
    words += settings_words(device="cpu", train__steps=24, train__save_every=3)
    words += settings_words(train__evaluate_every=12, train__best="boxes/AP", export__format="null")
    done = detmtl("train", *words, "--out", tmp_path / "whole")
    assert done.status == 0, done.err

    run = tmp_path / "run"
    words += settings_words(train__score_in_background="true")  # and comes to the same
    kill_when((run / "last.pt").exists, "train", *words, "--out", run, folder=tmp_path)
    assert torch.load(run / "last.pt", weights_only=True)["step"] < 24
    assert not (run / "metrics.json").exists()
    process = start_verb("train", *words, "--out", run, folder=tmp_path)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert "Continuing from step" in told and "Scores on test" in told
    for name in ("last.pt", "best.pt"):
        assert same_weights(run / name, tmp_path / "whole" / name)
    for name in ("metrics.json", "detections.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert recorded(run) == recorded(tmp_path / "whole")


@pytest.mark.slow
def test_annotate(data, finished, detmtl, tmp_path):
    # a part is written after 1000 pictures
    draw_pictures(tmp_path / "many", 1150, seed=5, kind="png", sizes=[(32, 32)])
    words = ["--teacher", finished / "teacher/best.pt", "--images", tmp_path / "many"]
    words += ["--device", "cpu", "--floor", 0.2, "--batch-size", 8]
    done = detmtl("annotate", *words, "--out", tmp_path / "whole")
    assert done.status == 0, done.err

    store, raw = tmp_path / "store", tmp_path / "store" / "raw" / "best"
    kill_when(
        lambda: any(raw.glob("part-*.ok")), "annotate", *words, "--out", store, folder=tmp_path
    )
    (part,) = raw.glob("part-*.jsonl.gz")
    written = part.stat().st_mtime_ns
    assert 1000 <= len(Store.open(store)) < 1150
    done = detmtl("annotate", *words, "--out", store)
    assert done.status == 0, done.err
    assert "1150 pictures labelled" in done.out
    assert part.stat().st_mtime_ns == written, "the pictures were labelled again"
    assert Store.open(store).digest() == Store.open(tmp_path / "whole").digest()
    assert not list(raw.glob("*.lock")) and not list(raw.glob("*.tmp"))


@pytest.mark.slow
def test_a_whole_recipe_while_it_labels_and_while_the_student_trains(
    data, finished, detmtl, tmp_path
):
    words = ["--config", data / "recipe.yaml", "--out", tmp_path / "run"]
    run = tmp_path / "run"
    kill_when((run / "silver/store.json").exists, "train", *words, folder=tmp_path)
    assert (run / "teacher/best.pt").exists() and not (run / "last.pt").exists()
    trained = (run / "teacher/best.pt").stat().st_mtime_ns
    kill_when((run / "last.pt").exists, "train", *words, folder=tmp_path)
    assert not (run / "metrics.json").exists()
    done = detmtl("train", *words)
    assert done.status == 0, done.err
    assert (run / "teacher/best.pt").stat().st_mtime_ns == trained, "the teacher was trained again"
    assert Store.open(run / "silver").digest() == Store.open(finished / "silver").digest()
    for name in ("last.pt", "best.pt", "teacher/last.pt"):
        assert same_weights(run / name, finished / name)
    for name in ("metrics.json", "detections.json", "teacher/metrics.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
