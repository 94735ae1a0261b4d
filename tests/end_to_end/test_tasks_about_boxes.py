"""Boxes with attributes, masks and keypoints from files to export, on the built-in scenes and on chess."""

import json
import math
from pathlib import Path

import pytest
import torch

from detmtl.config import read_settings, settings_from
from detmtl.data.json_file import read_json
from detmtl.data.scenes import COLORS, SCENE_CLASSES, SCENE_KEYPOINTS
from detmtl.inference.predictor import load_predictor
from detmtl.inference.results import predict_to_files
from detmtl.recipe import run
from detmtl.structures.errors import InputError

CHESS = Path(__file__).resolve().parents[2] / "configs" / "chess_attributes.yaml"


def _settings(root, **details):
    def source(split):
        return {
            "kind": "coco",
            "images": f"images/{split}",
            "annotations": f"annotations/{split}.json",
        }

    details = {
        "attributes": {"color": list(COLORS)},
        "keypoints": {name: list(points) for name, points in SCENE_KEYPOINTS.items()},
        "masks": True,
    } | details
    data = {
        "root": str(root),
        "scenes": {"gold": 10, "pool": 0, "val": 4, "test": 0, "size": [96, 128]},
        "classes": list(SCENE_CLASSES),
        "details": details,
        "sources": {"gold": source("gold")},
        "val": source("val"),
        "batch_size": 2,
    }
    return settings_from(
        {
            "data": data,
            "input": {"short": 96, "long": 128},
            "augment": {"steps": [{"HorizontalFlip": {"p": 0.5}}, {"Affine": {"rotate": 10}}]},
            "model": {"backbone": {"name": "resnet10t"}, "fpn": {"channels": 16, "levels": 3}},
            "tasks": {
                # before the detection task, and hanging on one level
                "color": {"kind": "attributes", "at": "p3"},
                "boxes": {
                    "kind": "detection",
                    "head": {"depth": 1, "prior": 0.3},
                    "test": {"score_threshold": 0.01, "detections": 20},
                },
                "shape": {"kind": "masks", "head": {"side": 7, "depth": 1}},
                "points": {"kind": "keypoints", "head": {"side": 7, "depth": 1}},
            },
            "mix": {"mode": "concat"},
            "device": "cpu",
            "train": {"steps": 2, "precision": "fp32", "log_every": 1, "pictures_every": 1},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    return root, root / "run", run(_settings(root / "data"), root / "run")


def test_every_task_is_trained_and_scored(finished):
    _, folder, summary = finished
    wanted = {"color/accuracy", "color/on_truth/accuracy", "shape/AP", "shape/on_truth/IoU"}
    wanted |= {"points/AP", "points/on_truth/OKS", "boxes/AP"}
    assert wanted <= {*summary.metrics}
    assert 0 < summary.metrics["shape/on_truth/IoU"] <= 1
    assert 0 <= summary.metrics["color/on_truth/accuracy"] <= 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {k for line in lines for k in line if k.startswith("train/")}
    assert {"train/color/value", "train/shape/mask", "train/points/place"} <= losses


def test_the_file_says_what_the_model_says_and_writes_it(finished, tmp_path):
    root, folder, _ = finished
    file, model = load_predictor(folder / "model.torchscript"), load_predictor(folder / "best.pt")
    path = predict_to_files(file, [root / "data" / "images" / "val"], tmp_path)
    content = read_json(path, "results")
    assert len(content["annotations"]) > 0 and len(list((tmp_path / "drawn").glob("*"))) == 4
    points = {c["name"]: c.get("keypoints") for c in content["categories"]}
    assert points["person"] == list(SCENE_KEYPOINTS["person"]) and points["tree"] is None
    for row in content["annotations"]:
        name = content["categories"][row["category_id"] - 1]["name"]
        assert row["attributes"]["color"] in COLORS and row["segmentation"]["size"] == [96, 128]
        assert len(row.get("keypoints", [])) == 3 * len(SCENE_KEYPOINTS.get(name, ()))
    image = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8)
    (a,), (b,) = file.predict([image]), model.predict([image])
    assert {*a} == {*b} == {"color", "boxes", "shape", "points"} and file.names == model.names
    torch.testing.assert_close(a["boxes"].boxes, b["boxes"].boxes, atol=1e-2, rtol=0)
    scores = [x["color"].details.attribute_scores for x in (a, b)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_a_name_that_no_file_has_is_told(finished, tmp_path):
    root, _, _ = finished
    wrong = _settings(root / "data", attributes={"color": list(COLORS), "colour": ["red"]})
    with pytest.raises(InputError, match=r"data.details.attributes.colour: none of data.sources"):
        run(wrong, tmp_path / "run")


def test_tasks_that_val_has_no_labels_for_are_told(finished, tmp_path, capsys):
    """A whole training went by without a word, and kept its last weights for its best."""
    root, _, _ = finished
    file = read_json(root / "data/annotations/val.json", "val")
    for row in file["annotations"]:
        row.pop("attributes"), row.pop("keypoints", None)
    (root / "data/bare.json").write_text(json.dumps(file))
    tree = _settings(root / "data").resolved()
    tree["data"]["val"]["annotations"], tree["export"]["format"] = "bare.json", None
    best = tree["train"] | {"best": "points/AP"}
    with pytest.raises(
        InputError, match=r"train.best: .* points/AP, but no picture of data.val has key"
    ):
        run(settings_from(tree | {"train": best}), tmp_path / "refused")
    metrics = run(settings_from(tree), tmp_path / "run").metrics
    told = capsys.readouterr().out
    for task, kind in (("color", "attributes"), ("points", "keypoints")):
        assert f"{task}: no picture of val has {kind}: it has no score" in told
    assert "no picture of what is trained on" not in told and "shape: no picture" not in told
    assert math.isnan(metrics["color/accuracy"]) and not math.isnan(metrics["shape/on_truth/IoU"])


def test_details_that_are_not_asked_for_are_missed(tmp_path):
    with pytest.raises(
        InputError, match=r"tasks.shape: learns masks of boxes, but data.details.masks"
    ):
        _settings(tmp_path, masks=False)


@pytest.mark.real
@pytest.mark.slow
def test_chess(real_data, tmp_path):
    settings = read_settings(
        CHESS,
        [
            f"data.root={real_data / 'data' / 'chess'}",
            "data.sources.gold.subset={count: 8}",
            "data.val.subset={count: 3}",
            "data.test.subset={count: 4}",
            "data.batch_size=2",
            "model.backbone={name: resnet10t}",
            "input={short: 214, long: 320}",
            "train={steps: 2, pictures_every: null}",
            "export.format=null",
            "device=cpu",
        ],
    )
    metrics = run(settings, tmp_path / "run").metrics
    assert 0 < metrics["attributes/on_truth/accuracy/color"] <= 1
    assert 0 <= metrics["attributes/on_truth/accuracy/piece"] < 1
