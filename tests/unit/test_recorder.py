import json
import os
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import NAMES, batch_of, recorder

from detmtl.engine import recorder as recorder_module
from detmtl.engine.recorder import Recorder, read_metrics
from detmtl.structures.labels import BoxLabels, TagLabels, pad_tags


def events(folder):
    """Returns what TensorBoard shows: tag -> steps, and the picture tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
    tags = found.Tags()
    return {t: [e.step for e in found.Scalars(t)] for t in tags["scalars"]}, tags["images"]


def test_scalars_go_to_both(tmp_path):
    with recorder(tmp_path, 10) as told:
        told.scalars(1, {"train/loss": 2.5, "val/boxes/AP": float("nan")})
        told.scalars(2, {"train/loss": float("inf")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert strict == [
        {"step": 1, "train/loss": 2.5, "val/boxes/AP": None},
        {"step": 2, "train/loss": None},
    ]
    assert events(tmp_path)[0] == {"train/loss": [1]}


def test_without_a_terminal_a_line_now_and_then_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("detmtl.engine.recorder.LINE_EVERY", 0.0)
    with Recorder(tmp_path, 4, {"boxes": NAMES}) as told:
        assert told.progress is not None and not told.progress.console.is_terminal
        told.advance(1, 0.5)
        told.advance(3)
    printed = capsys.readouterr().out
    assert "train (loss 0.5): step 1 of 4" in printed and "train: step 3 of 4" in printed
    monkeypatch.setattr("detmtl.engine.recorder.LINE_EVERY", 1e6)
    with Recorder(tmp_path, 4, {"boxes": NAMES}) as told:
        told.advance(1)
    assert "step 1 of 4" not in capsys.readouterr().out


def test_going_on_drops_what_came_after(tmp_path):
    with recorder(tmp_path, 10) as told:
        for step in range(1, 7):
            told.scalars(step, {"train/loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/lo')  # torn by a kill
    # TensorBoard orders files by second, then by a counter of this process as text: 10 before 9
    time.sleep(1.1)
    with recorder(tmp_path, 10, start_step=4) as told:
        for step in range(5, 9):
            told.scalars(step, {"train/loss": -step})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["train/loss"] for r in records] == [1, 2, 3, 4, -5, -6, -7, -8]
    assert events(tmp_path)[0]["train/loss"] == list(range(1, 9))


def test_starting_anew_in_a_used_folder_keeps_nothing(tmp_path):
    for value in (1, 2):
        with recorder(tmp_path, 10) as told:
            told.scalars(3, {"train/loss": value})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, "train/loss": 2}]
    assert events(tmp_path)[0] == {"train/loss": [3]}


def test_pictures(tmp_path):
    batch = batch_of(0, size=6)
    found = [x for x in batch.labels["boxes"].unpadded([]) if x is not None]
    with recorder(tmp_path, 10) as told:
        told.pictures(5, "val", batch, {"boxes": found})
    assert events(tmp_path)[1] == [f"val/boxes/{i}" for i in range(4)]


@pytest.mark.parametrize("key", ["boxes", "own"])
def test_what_is_found_has_the_task_s_names_and_truth_those_of_its_labels(
    tmp_path, monkeypatch, key
):
    """A task from outside may give tags, and learn from boxes or from labels of its own."""
    drawn = []

    def draw(image, labels, names, colors="grade", least=0.0):
        drawn.append((type(labels), tuple(names)))
        return real(image, labels, names, colors, least)

    real = recorder_module.draw
    monkeypatch.setattr(recorder_module, "draw", draw)
    batch = batch_of(0, size=1)
    if key == "own":
        batch = replace(batch, labels={"own": pad_tags([TagLabels(torch.ones(1), torch.ones(1))])})
    found = [TagLabels(torch.tensor([0.9]), torch.ones(1))]
    labels, names = {"busy": key}, {"busy": ("busy",)}
    with Recorder(tmp_path, 10, names, 0, False, labels, False, {"boxes": NAMES}) as told:
        told.pictures(5, "train", batch, {"busy": found})
    truth = (BoxLabels, tuple(NAMES)) if key == "boxes" else (TagLabels, ("busy",))
    assert drawn == [truth, (TagLabels, ("busy",))]


def test_ranks_but_the_first_are_silent(tmp_path, monkeypatch):
    from detmtl.engine import distributed

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with recorder(tmp_path, 10) as told:
        told.scalars(1, {"train/loss": 1.0})
        told.pictures(1, "train", batch_of(0), {"boxes": []})
        told.advance(1)
    assert list(tmp_path.iterdir()) == []


def test_bar(tmp_path, capsys):
    with Recorder(tmp_path, 10, {"boxes": NAMES}, start_step=2) as told:
        assert told.progress is not None and told.progress.tasks[0].completed == 2
        told.advance(5, loss=0.123456)
        assert told.progress.tasks[0].completed == 5
        assert "0.1235" in told.progress.tasks[0].description
    assert told.progress is None
    assert "5/10" in capsys.readouterr().out


def test_stopwatch_splits_time():
    import time

    from detmtl.engine.stopwatch import Stopwatch

    clock = Stopwatch(torch.device("cpu"))
    time.sleep(0.02)
    clock.restart()
    for _ in range(2):
        clock.lap("data")
        time.sleep(0.01)
        clock.lap("forward")
    parts = clock.read()
    assert parts["forward"] >= 0.02 and parts["data"] < 0.01
    assert clock.read() == {}
