"""What the recipe writes, and shows to an exported file."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detmtl import run_training
from detmtl.config import settings_from
from detmtl.data.augment import AugmentSettings
from detmtl.data.fit import InputSettings
from detmtl.engine.distributed import Process
from detmtl.recipe import _check_parts, _check_sizes, _some_pictures
from detmtl.report.run_summary import Summary
from detmtl.run_folder import OpenRun
from detmtl.run_training import validation_batches
from detmtl.structures.errors import InputError


@pytest.mark.parametrize(("world", "together"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_processes_evaluate_as_many_pictures_together_as_they_train(monkeypatch, world, together):
    monkeypatch.setattr(run_training, "evaluation_batches", lambda *given: given)
    settings = SimpleNamespace(
        input=SimpleNamespace(short=64, long=96), data=SimpleNamespace(batch_size=6, workers=0)
    )
    process = Process(0, world, torch.device("cpu"))
    given = validation_batches(OpenRun(settings, None, process, None), None)
    assert given == (None, 64, 96, together, 0, 0, world)


def test_a_backbone_of_one_size_is_for_pictures_of_that_size():
    model = SimpleNamespace(
        backbone=SimpleNamespace(misfit=lambda *size: None if size == (64, 64) else "no such size")
    )
    flip, crop = (
        {"HorizontalFlip": {}},
        {"RandomCrop": {"height": 32, "width": 32, "p": 0.5}},
    )
    slight = {"RandomCrop": {"height": 60, "width": 60}}

    def check(sources, held_out, *steps, format=None):
        settings = SimpleNamespace(
            input=InputSettings(short=64, long=128),
            augment=AugmentSettings(steps=steps),
            model=SimpleNamespace(backbone=SimpleNamespace(name="one")),
            export=SimpleNamespace(format=format),
        )
        _check_sizes(settings, model, sources, held_out)

    square = SimpleNamespace(sizes=np.array([[100, 100], [64, 64]]))
    wide = SimpleNamespace(sizes=np.array([[100, 200]]))
    check([square], [square], flip)
    check([square], [square], flip, slight)
    with pytest.raises(
        InputError, match=r"^export.format: a torchscript file .* one does not .*format: null"
    ):
        check([square], [square], flip, format="torchscript")
    for case in (
        ([square, wide], [square]),
        ([wide], [wide]),
        ([square], [square, wide]),
        ([square], [square], flip, crop),
    ):
        with pytest.raises(InputError, match=r"backbone: one .* of 96 x 160 pixels: no such size"):
            check(*case)


@pytest.mark.parametrize("task", ["map", "noise"])
def test_a_weight_of_a_term_that_no_task_has_is_told_before_the_training(task):
    semantic = {"kind": "semantic"}
    tasks = {"map": semantic, "noise": {"kind": "detmtl.tasks.noise:NoiseConfig", "of": semantic}}
    source = {
        "kind": "coco",
        "images": "x",
        "annotations": "y",
        "maps": {"folder": "m", "categories": "c.json"},
    }
    tree = {
        "data": {
            "root": "none",
            "maps": {"classes": ["grass", "road"]},
            "sources": {"gold": source},
            "val": source,
            "batch_size": 1,
        },
        "model": {"backbone": {"name": "resnet10t"}, "fpn": {"channels": 8, "levels": 3}},
        "tasks": {task: tasks[task]},
        "mix": {"mode": "gold"},
        "train": {"steps": 1},
        "export": {"format": None},
        "balancing": {"weights": {f"{task}/pixel": 2}},
    }
    _check_parts(settings_from(tree))
    tree["balancing"]["weights"] = {f"{task}/pixels": 2}
    with pytest.raises(
        InputError, match=f"'{task}/pixels' names no loss term; there are {task}/pixel$"
    ):
        _check_parts(settings_from(tree))


@pytest.mark.parametrize(
    ("there", "shown"), [(3, [0, 1, 2]), (100, [0, 12, 24, 36, 48, 60, 72, 84])]
)
def test_pictures_to_compare_on_are_spread_over_the_source(there, shown):
    class Pictures:
        def __len__(self):
            return there

        def read(self, i):
            return np.full((4, 6, 3), i, dtype=np.uint8)

    found = _some_pictures(Pictures())
    assert [int(x[0, 0, 0]) for x in found] == shown
    assert all(x.shape == (3, 4, 6) for x in found)


def test_the_last_table_has_a_row_for_every_task():
    metrics = {
        "boxes/AP": 0.5,
        "boxes/AP50": 0.75,
        "boxes/AP_small": 0.1,
        "boxes/AP/person": 0.4,
        "boxes/AP/traffic light/red": math.nan,
        "boxes/F1/person": 0.625,
        "boxes/score/person": 0.375,
        "boxes/other/person": 0.1,
        "many/IoU/0": 0.5,
        **{f"many/IoU/{i}": 0.1 for i in range(1, 21)},
        "depth/delta1": 0.9,
        "depth/RMSE": 2.0,
        "mine/found": 0.25,
        "mine/lost": 0.75,
        "map/mIoU": math.nan,
        "teacher/boxes/AP": 0.3,
        "teacher/boxes/AP/person": 0.2,
    }
    all_of_it = Summary(metrics, {}, "test", "electrum")
    _, classes = all_of_it.tables()
    assert classes.title == "Classes of boxes on test"
    assert [c.header for c in classes.columns] == ["class", "AP", "best F1", "at a score from"]
    assert list(zip(*(column.cells for column in classes.columns), strict=True)) == [
        ("person", "0.400", "0.625", "0.375"),
        ("traffic light/red", "-", "-", "-"),
    ]
    scores = all_of_it.tables()[0]
    rows = list(zip(*(column.cells for column in scores.columns), strict=True))
    assert [column.header for column in scores.columns] == [
        "task", "score", "teacher (gold alone)", "model (electrum)",
    ]  # fmt: skip
    assert rows == [
        ("boxes", "AP", "0.300", "0.500"),
        ("boxes", "AP50", "-", "0.750"),
        ("depth", "delta1", "-", "0.900"),
        ("map", "mIoU", "-", "-"),
        ("mine", "found", "-", "0.250"),
    ]
    assert all_of_it.unscored() == (
        "Without labels in test, and so not in the means: 'traffic light/red' (boxes)"
    )
    gold = Summary({"boxes/AP": 0.5}, {}, "val", "gold")
    alone = gold.tables()[0]
    assert [column.header for column in alone.columns] == ["task", "score", "model (gold)"]
    assert gold.unscored() is None
