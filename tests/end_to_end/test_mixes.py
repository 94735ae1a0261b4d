"""Whole runs in the modes of the mix that no other test here takes."""

import json

import pytest
import torch
from conftest import same_weights, settings_words

from detmtl.engine.state import Ema

SHORT = settings_words(
    train__steps=6, train__save_every=2, train__log_every=2, export__format="null", device="cpu"
)
TEACHER = ["--set", "silver.teacher.train={steps: 2}"]


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["silver", "curriculum", "finetune", "alternate"])
def test_pools_that_a_teacher_labels_beforehand(mode, data, detmtl, tmp_path):
    words = ["--config", data / "recipe.yaml", *SHORT, *TEACHER, *settings_words(mix__mode=mode)]
    words += settings_words(mix__gold_from=0.6)
    done = detmtl("train", *words, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert f"Mix {mode}: 6 steps of 4 pictures" in done.out
    shares = [r for r in records(tmp_path / "run") if "loss_share/pool" in r]
    assert len(shares) == 3
    if mode == "silver":
        assert shares[0]["loss_share/pool"] == 1.0
    else:
        assert all(0 <= r["loss_share/gold"] <= 1 for r in shares)
    if mode == "finetune":  # gold alone from step 5 on
        assert shares[-1]["loss_share/gold"] == pytest.approx(1.0)
        assert shares[0]["loss_share/pool"] > 0


def test_online_without_any_teacher_and_stopped(data, detmtl, tmp_path, monkeypatch):
    """Stopped between two files, it goes on with the batch, the audit and the draws of an undisturbed one."""
    words = ["--config", data / "recipe.yaml", *SHORT, *settings_words(silver="null")]
    words += settings_words(mix="{mode: online, burn_in: 0.4}", train__accumulate=2)
    words += settings_words(
        online__audit_every=2, online__select="{threshold: 0.1, ignore_from: null}"
    )
    words += settings_words(model__backbone__norm="frozen")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = detmtl("train", *words, "--out", whole)
    assert done.status == 0, done.err
    assert [r["loss_share/pool"] > 0 for r in records(whole) if "loss_share/pool" in r] == [
        False, True, True,
    ]  # fmt: skip
    assert torch.load(whole / "last.pt", weights_only=True)["step"] == 6

    update = Ema.update

    def stop_at_step_5(self, model, step):
        if step == 5:
            raise KeyboardInterrupt
        update(self, model, step)

    with monkeypatch.context() as patched:
        patched.setattr(Ema, "update", stop_at_step_5)
        done = detmtl("train", *words, "--out", stopped)
        assert done.status == 130, done.err
    done = detmtl("train", *words, "--out", stopped)
    assert done.status == 0, done.err
    assert "Continuing from step 4" in done.out
    assert same_weights(stopped / "last.pt", whole / "last.pt")
    assert (stopped / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    for run in (whole, stopped):  # from .4 of twelve batches on, every two steps of two batches
        assert sorted(p.name for p in (run / "online").iterdir()) == ["00000005", "00000009"]
    measured = ("time/", "pictures_per_second")
    told = [
        [{k: v for k, v in r.items() if not k.startswith(measured)} for r in records(run)]
        for run in (whole, stopped)
    ]
    assert told[0] == told[1]


def test_online_on_one_source_that_is_gold_for_some_classes(data, detmtl, tmp_path):
    """People looked for red alone; the model learns that in the burn-in, and knows that it knows no blue."""
    words = ["--config", data / "recipe.yaml", *SHORT, *settings_words(silver="null")]
    partly = "{kind: coco, images: images/gold, annotations: gold.json, keep: [red]}"
    words += settings_words(
        data__sources=f"{{partly: {partly}}}",
        mix="{mode: online, burn_in: 0.4}",
        online="{pools: [partly], audit_every: 2, select: {threshold: 0.1, ignore_from: null}}",
    )
    done = detmtl("train", *words, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert "nobody looked for blue" in done.err and "until an audit confirms" in done.err
    told = [r for r in records(tmp_path / "run") if "pictures_per_second" in r]
    assert [r["online/weak_audits_of_boxes"] for r in told] == [0, 0, 0]
    assert all(r["loss_share/partly"] == 1 for r in told)
    assert "electrum" in done.out
