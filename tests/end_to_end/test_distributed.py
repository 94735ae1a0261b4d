"""Two processes, started by torchrun, do what one does."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import (
    SIZES,
    SPLITS,
    coco_file,
    draw_pictures,
    environment,
    make_data,
    script,
    settings_words,
)

from detmtl.silver.store import Store

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def torchrun(verb, *words, folder, status=0):
    """Runs `torchrun --nproc-per-node 2 tools/VERB.py WORDS` and returns what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", script(verb)]
    done = subprocess.run(
        [*launcher, *map(str, words)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert (done.returncode == 0) == (status == 0), done.stdout
    return done.stdout


def test_training_equals_that_of_one_process(detmtl, tmp_path):
    """One picture in four is gold: only one of the two processes has it."""
    # pictures of one size: each process pads to the largest of its own
    data = make_data(tmp_path / "data", SIZES[:1])
    pool = data / "images/pool"
    boxes = draw_pictures(pool, SPLITS["pool"], 1, sizes=SIZES[:1])
    (data / "pool.json").write_text(json.dumps(coco_file(pool, boxes)))
    labelled = "{kind: coco, images: images/pool, annotations: pool.json, grade: silver}"
    words = ["--config", data / "recipe.yaml", *settings_words(silver="null")]
    words += settings_words(data__sources__pool=labelled)
    words += settings_words(mix="{mode: batch, shares: {gold: 1, pool: 3}}")
    # norms that learn see another batch on every rank
    words += settings_words(model__backbone__norm="frozen", train__steps=3, device="cpu")
    words += settings_words(train__evaluate_every=2, train__best="boxes/AP50", train__ema="null")
    words += settings_words(optim__name="sgd")  # Adam makes whole steps of rounding errors
    done = detmtl("train", *words, "--out", tmp_path / "one")
    assert done.status == 0, done.err
    told = torchrun("train", *words, "--out", tmp_path / "two", folder=tmp_path)

    for what in ("Scores on test", "best.pt", "model.torchscript", "metrics.json"):
        assert told.count(what) == 1, told  # rank 0 alone speaks
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert {p.name for p in (tmp_path / "two").iterdir()} == names

    runs = [tmp_path / "one", tmp_path / "two"]
    start, end = (torch.load(run / "last.pt", weights_only=True)["model"] for run in runs)
    assert start.keys() == end.keys()
    for name, value in start.items():
        torch.testing.assert_close(
            end[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    losses = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    for one, two in zip(*losses, strict=True):
        assert one.keys() == two.keys()
        for name in (k for k in one if k.startswith(("train/", "loss_share/"))):
            assert math.isclose(one[name], two[name], rel_tol=1e-4), name
    assert 0 < losses[0][0]["loss_share/pool"] < 1
    scores = [json.loads((run / "metrics.json").read_text()) for run in runs]
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        other = scores[1][name]
        assert value is other or math.isclose(value, other, abs_tol=1e-3), name
    detections = [json.loads((run / "detections.json").read_text()) for run in runs]
    images = [sorted({d["image_id"] for d in found}) for found in detections]
    assert images[0] == images[1] == [1, 2, 3, 4]


def test_a_whole_recipe(data, detmtl, tmp_path):
    words = ["--config", data / "recipe.yaml", "--out", tmp_path / "run"]
    words += settings_words(train__steps=2, train__save_every=1, device="cpu")
    words += ["--set", "silver.teacher.train={steps: 2}"]
    told = torchrun("train", *words, folder=tmp_path)
    assert told.count("Scores on test") == 1 and "teacher (gold alone)" in told
    run = tmp_path / "run"
    for name in ("best.pt", "metrics.json", "model.torchscript", "teacher/best.pt"):
        assert (run / name).is_file()
    assert len(Store.open(run / "silver")) == 6 + 6
    # nothing is left to do for one process
    checkpoint = (run / "last.pt").read_bytes()
    done = detmtl("train", *words)
    assert done.status == 0 and "Scores on test" in done.out
    assert (run / "last.pt").read_bytes() == checkpoint


def test_annotate_labels_every_picture_once(data, finished, detmtl, tmp_path):
    words = ["--teacher", finished / "teacher/best.pt", "--images", data / "images"]
    # one picture at a time: padding beside other pictures would change the numbers
    words += ["--device", "cpu", "--floor", 0.02, "--batch-size", 1]
    done = detmtl("annotate", *words, "--out", tmp_path / "one")
    assert done.status == 0, done.err
    told = torchrun("annotate", *words, "--out", tmp_path / "two", folder=tmp_path)
    assert told.count("24 pictures labelled") == 1, told
    one, two = Store.open(tmp_path / "one"), Store.open(tmp_path / "two")
    assert two.digest() == one.digest()
    raw = tmp_path / "two" / "raw" / "best"
    counts = [json.loads(ok.read_text())["pictures"] for ok in raw.glob("part-*.ok")]
    assert sorted(counts) == [12, 12]


def test_bad_input_that_one_process_finds_ends_all(own_data, tmp_path):
    shutil.copy(own_data / "images/test/001.jpg", own_data / "images/gold/000.jpg")
    words = ["--config", own_data / "recipe.yaml", "--set", "device=cpu"]
    told = torchrun("train", *words, "--out", tmp_path / "run", folder=tmp_path, status=1)
    assert "gold/000.jpg: a training picture that is also held out as" in told
