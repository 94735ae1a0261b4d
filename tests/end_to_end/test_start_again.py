"""Runs that start from another run's checkpoint: with a further task, with other classes."""

import io

import pytest
import torch
from rich.console import Console

from detmtl.config import settings_from
from detmtl.data.scenes import SCENE_CLASSES
from detmtl.inference.predictor import load_checkpoint
from detmtl.recipe import _check_parts, run
from detmtl.structures.checkpoint import read_checkpoint, weights_of
from detmtl.structures.errors import InputError

STEPS = 4
BOXES, BOTH = ["boxes"], ["boxes", "map"]


def _settings(root, tasks, classes=SCENE_CLASSES, model=None, **changed):
    def source(split):
        maps = {"folder": f"semantic/{split}", "categories": "semantic/categories.json"}
        return {
            "kind": "coco",
            "images": f"images/{split}",
            "annotations": f"annotations/{split}.json",
        } | ({"maps": maps} if "map" in tasks else {})

    data = {
        "root": str(root),
        "scenes": {"gold": 4, "pool": 2, "val": 3, "test": 0, "size": [64, 96]},
        "classes": list(classes),
        "unmapped": "drop",
        "sources": {"gold": source("gold")},
        "val": source("val"),
        "batch_size": 2,
    } | ({"maps": {"classes": ["background", *SCENE_CLASSES]}} if "map" in tasks else {})
    every = {"boxes": {"kind": "detection", "head": {"depth": 1}}, "map": {"kind": "semantic"}}
    network = {"backbone": {"name": "resnet10t", "norm": "train"}, "fpn": {"channels": 16}}
    return settings_from(
        {
            "data": data,
            "input": {"short": 64, "long": 96},
            "model": network | (model or {}),
            "tasks": {name: every[name] for name in tasks},
            "mix": {"mode": "gold"},
            "device": "cpu",
            "train": {"steps": STEPS, "precision": "fp32", "log_every": 1, "ema": None},
            "optim": {"lr": 0.01, "warmup": 0},
            "export": {"format": "torchscript"},
        }
        | changed
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    run(_settings(root / "data", BOXES), root / "first")
    return root


def _start(root, **more):
    return {"start": {"kind": "checkpoint", "path": str(root / "first" / "best.pt"), **more}}


@pytest.mark.slow
def test_a_task_is_added_while_the_detector_stays_as_it_is(first, tmp_path):
    told = Console(file=io.StringIO(), width=200)
    model = _start(first) | {"frozen": ["backbone", "fpn", "boxes"]}
    settings = _settings(first / "data", BOTH, model=model)
    summary = run(settings, tmp_path / "run", told)
    printed = told.file.getvalue()
    assert "backbone, pyramid, boxes (class rows of" in printed and "map afresh" in printed
    assert "map/mIoU" in summary.metrics
    old, new = (
        weights_of(read_checkpoint(p / "best.pt")) for p in (first / "first", tmp_path / "run")
    )
    # norms are folded now, the head is the same to the bit; what the normalizer remembers is of the new run
    heads = [k for k in old if k.startswith(("tasks.boxes.head", "fpn"))]
    assert heads and all(torch.equal(old[k], new[k]) for k in heads)
    models = [load_checkpoint(p / "best.pt").model for p in (first / "first", tmp_path / "run")]
    pictures = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        theirs, mine = (model(pictures)["boxes"] for model in models)
    for a, b in zip(theirs, mine, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not [m for m in models[1].backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (tmp_path / "run" / "model.torchscript").exists()


@pytest.mark.slow
def test_other_classes_begin_with_the_rows_of_those_that_both_have(first, tmp_path):
    told = Console(file=io.StringIO(), width=400)
    classes = [SCENE_CLASSES[2], SCENE_CLASSES[0]]
    settings = _settings(
        first / "data", BOXES, classes, _start(first), optim={"lr": 1e-12, "warmup": 0}
    )
    run(settings, tmp_path / "run", told)
    assert f"class rows of {', '.join(classes)}" in told.file.getvalue()
    old, new = (
        weights_of(read_checkpoint(p / "best.pt")) for p in (first / "first", tmp_path / "run")
    )
    layer = "tasks.boxes.head.class_logits.weight"
    mine, theirs = (
        new[layer].unflatten(0, (-1, 2)),
        old[layer].unflatten(0, (-1, len(SCENE_CLASSES))),
    )
    for row, theirs_row in ((0, 2), (1, 0)):
        torch.testing.assert_close(mine[:, row], theirs[:, theirs_row], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_class_that_neither_run_was_taught_stays_unknown(first, tmp_path):
    """Its row is fresh and without labels: who takes the model for a teacher has to know."""
    told, classes = Console(file=io.StringIO(), width=400), [SCENE_CLASSES[0], "gnome"]
    settings = _settings(first / "data", BOXES, classes, _start(first))
    run(settings, tmp_path / "run", told)
    nobody = "boxes: in what is trained on nobody looked for gnome: nothing is learned of it"
    assert nobody in told.file.getvalue()
    assert load_checkpoint(tmp_path / "run" / "best.pt").searched == {"boxes": classes[:1]}


@pytest.mark.slow
def test_what_neither_starts_from_anything_nor_trains_is_told(first, tmp_path):
    told, classes = Console(file=io.StringIO(), width=400), [SCENE_CLASSES[0], "gnome"]
    model = _start(first) | {"frozen": ["boxes", "map"]}
    run(_settings(first / "data", BOTH, classes, model), tmp_path / "run", told)
    printed = told.file.getvalue()
    assert (
        "model.frozen: boxes does not train, and what it starts from knows nothing of gn" in printed
    )
    assert "model.frozen: map starts afresh and does not train: it stays as chance made" in printed
    assert "boxes: in what is trained on" not in printed, "it learns nothing at all"


@pytest.mark.slow
def test_tasks_are_not_balanced_by_gradients_that_there_are_not(first, tmp_path):
    model = _start(first) | {"frozen": ["backbone", "fpn"]}
    settings = _settings(first / "data", BOTH, model=model, balancing={"kind": "pcgrad"})
    with pytest.raises(InputError, match=r"balancing.kind: pcgrad .*model.frozen.*leave balancing"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "best.pt").exists()
    with pytest.raises(InputError, match=r"balancing.kind: pcgrad"):
        _check_parts(settings)  # before a teacher labels


@pytest.mark.slow
def test_a_frozen_trunk_leaves_nothing_to_diagnose_and_says_so(first, tmp_path):
    told = Console(file=io.StringIO(), width=200)
    model = _start(first) | {"frozen": ["backbone", "fpn"]}
    settings = _settings(first / "data", BOXES, model=model, diagnosis={"every": 1})
    run(settings, tmp_path / "run", told)
    assert "diagnosis.every changes nothing: nothing that the tasks share" in told.file.getvalue()
