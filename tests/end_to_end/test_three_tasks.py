"""Boxes, maps and tags from files to export, on the built-in scenes."""

import json

import pytest
import torch
from conftest import same_weights

from detmtl.cli import main
from detmtl.config import settings_from
from detmtl.data.scenes import SCENE_CLASSES, TAGS
from detmtl.engine.state import Ema
from detmtl.inference.predictor import load_predictor
from detmtl.inference.results import predict_to_files
from detmtl.recipe import run

STEPS = 6


def _settings(root, **changed):
    def source(split, **more):
        return {
            "kind": "coco",
            "images": f"images/{split}",
            "annotations": f"annotations/{split}.json",
            **more,
        }

    def maps(split):
        return {"folder": f"semantic/{split}", "categories": "semantic/categories.json"}

    def tags(split):
        return {"file": f"annotations/{split}.json"}

    data = {
        "root": str(root),
        "scenes": {"gold": 6, "pool": 4, "val": 4, "test": 0, "size": [64, 96]},
        "classes": list(SCENE_CLASSES),
        "maps": {"classes": ["background", *SCENE_CLASSES]},
        "tags": {"classes": list(TAGS)},
        # three sources, each labelled for other tasks
        "sources": {
            "all": source("gold", maps=maps("gold"), tags=tags("gold")),
            "boxes": source("pool", subset={"count": 2}),
            "maps": {
                "kind": "folder",
                "images": "images/pool",
                "maps": maps("pool"),
                "subset": {"count": 2, "rest": True},
            },
        },
        "val": source("val", maps=maps("val"), tags=tags("val")),
        "batch_size": 3,
    }
    return settings_from(
        {
            "data": data,
            "input": {"short": 64, "long": 96},
            "augment": {"steps": [{"HorizontalFlip": {"p": 0.5}}, {"Affine": {"rotate": 10}}]},
            "model": {"backbone": {"name": "resnet10t"}, "fpn": {"channels": 16, "levels": 3}},
            "tasks": {
                "boxes": {"kind": "detection", "head": {"depth": 1}},
                "map": {"kind": "semantic", "subsets": {"first": list(SCENE_CLASSES[:3])}},
                "tags": {"kind": "tags"},
            },
            "mix": {"mode": "concat"},
            "device": "cpu",
            "train": {"steps": STEPS, "precision": "fp32", "log_every": 1, "save_every": 2}
            | {"pictures_every": 3, "ema": 0.5},
        }
        | changed
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    folder = root / "run"
    return root, folder, run(_settings(root / "data"), folder)


@pytest.mark.slow
def test_every_task_is_trained_and_scored(finished):
    _, folder, summary = finished
    assert {"boxes/AP", "map/mIoU", "map/mIoU/first", "map/accuracy", "tags/mAP"} <= {
        *summary.metrics
    }
    assert 0 < summary.metrics["map/accuracy"] <= 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {k for line in lines for k in line if k.startswith("train/")}
    assert {"train/boxes/class", "train/map/pixel", "train/tags/tag"} <= losses


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bits(finished, monkeypatch):
    root, folder, summary = finished
    original = Ema.update

    def stop(self, model, step):
        if step == 5:
            raise KeyboardInterrupt
        original(self, model, step)

    monkeypatch.setattr(Ema, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(_settings(root / "data"), root / "again")
    monkeypatch.undo()
    assert torch.load(root / "again" / "last.pt", weights_only=True)["step"] == 4
    resumed = run(_settings(root / "data"), root / "again")
    assert dict(resumed.metrics) == pytest.approx(dict(summary.metrics), nan_ok=True)
    assert same_weights(folder / "last.pt", root / "again" / "last.pt")


@pytest.mark.slow
def test_the_file_gives_every_task_s_labels(finished, tmp_path):
    root, folder, _ = finished
    predictor = load_predictor(folder / "model.torchscript")
    path = predict_to_files(predictor, [root / "data" / "images" / "val"], tmp_path)
    content = json.loads(path.read_text())
    assert len(content["images"]) == 4
    assert {*content["images"][0]["scores"]} == {*TAGS}
    assert len(list((tmp_path / "map").glob("*.png"))) == 4
    assert len(list((tmp_path / "drawn").glob("*"))) == 4


@pytest.mark.slow
def test_evaluate_scores_every_task_as_the_run_did(finished, tmp_path):
    root, folder, summary = finished
    data, out = root / "data", tmp_path / "scores.json"
    boxes = ["--annotations", data / "annotations/val.json"]
    maps = ["--maps", data / "semantic/val", "--categories", data / "semantic/categories.json"]
    tags = ["--tags", data / "annotations/val.json"]

    def scores(*options):
        args = ["evaluate", "--checkpoint", folder / "best.pt", "--images", data / "images/val"]
        assert main([str(a) for a in [*args, "--precision", "fp32", "--json", out, *options]]) == 0
        return json.loads(out.read_text())

    together = scores(*boxes, *maps, *tags)
    assert together["map/mIoU"] == pytest.approx(summary.metrics["map/mIoU"])
    for name, value in together.items():
        assert value is None or value == pytest.approx(summary.metrics[name], nan_ok=True), name
    assert {name.split("/")[0] for name in together} == {"boxes", "map", "tags"}
    alone = scores(*maps)
    assert alone["map/mIoU"] == pytest.approx(together["map/mIoU"])
    assert {name.split("/")[0] for name in alone if alone[name] is not None} == {"map"}
