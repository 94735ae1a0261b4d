"""Files of heads with every addition agree with their models."""

import pytest
import torch
from torch import nn

from detmtl.inference.canvas import on_canvas
from detmtl.inference.export import export_graph, export_model
from detmtl.inference.graph_predictor import load_graph
from detmtl.inference.predictor import (
    Predictor,
    ScriptPredictor,
    change_test,
    load_checkpoint,
)
from detmtl.models.backbone import BackboneSettings
from detmtl.models.decoding import least_logit
from detmtl.models.fpn import FPNSettings
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig

CLASSES = ["cat", "dog", "bird"]
HEADS = {
    "distribution": {"box": "distribution", "bins": 8},
    "iou": {"quality": "iou"},
    "distribution and centerness": {"box": "distribution", "bins": 8, "quality": "centerness"},
}


def _loaded(head, tmp_path, others=False):
    """A random detector whose scores differ, through a checkpoint."""
    one_anchor = {"octaves": 1, "ratios": [1.0], "base_scale": 4}
    config = {
        "head": {"depth": 1, "norm": "group", **head},
        "anchors": one_anchor,
        "matching": {"kind": "atss"},
    }
    tasks = {"boxes": DetectionConfig.model_validate(config)}
    names = {}
    if others:
        tasks["map"] = SemanticConfig()
        names = {"maps": ["sky", "sea"]}
    model_settings = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=16)
    )
    torch.manual_seed(0)
    model = build_model(model_settings, tasks, CLASSES, other_names=names)
    with torch.no_grad():
        for module in model.tasks["boxes"].head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        model.tasks["boxes"].head.class_logits.bias.fill_(-2)
    settings = {
        "model": model_settings.model_dump(mode="json"),
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
        "input": {"short": 75, "long": 100},
    }
    if others:
        settings["data"] = {"maps": {"classes": names["maps"]}}
    content = {"format": 1, "settings": settings, "classes": CLASSES, "step": 7}
    torch.save(content | {"model": model.state_dict()}, tmp_path / "best.pt")
    return load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("name", HEADS)
def test_the_file_agrees(name, tmp_path):
    loaded = _loaded(HEADS[name], tmp_path)
    report = export_model(loaded, tmp_path / "m.torchscript")
    assert report.method == "traced" and not report.difference.problems
    assert report.difference.detections > 100 and report.difference.matching > 0.99
    images = [
        torch.randint(0, 256, (3, 75, 100), generator=torch.Generator().manual_seed(2)).byte()
    ]
    ours = Predictor(loaded).predict(images)[0]["boxes"]
    theirs = ScriptPredictor(tmp_path / "m.torchscript").predict(images)[0]["boxes"]
    assert len(ours) > 10 and ours.scores.std() > 0.01
    torch.testing.assert_close(theirs.boxes, ours.boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(theirs.scores, ours.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("format", "name"), [("pt2", "distribution"), ("onnx", "distribution and centerness")]
)
def test_the_graph_of_fixed_shapes_agrees(format, name, tmp_path):
    loaded = _loaded(HEADS[name], tmp_path)
    report = export_graph(loaded, tmp_path / f"m.{format}", format)
    assert report.difference.detections > 100 and report.difference.matching > 0.99
    graph, about = load_graph(tmp_path / f"m.{format}", format)
    assert about["test"]["quality_power"] == 0.5
    picture = torch.randint(0, 256, (3, 75, 100), generator=torch.Generator().manual_seed(2))
    canvas, size = on_canvas(picture.byte(), 75, 100)
    decoder = loaded.model.tasks["boxes"].decoder

    def best(threshold):
        _, scores, labels = (
            torch.as_tensor(x) for x in graph(canvas, size, torch.tensor([threshold]))
        )
        return scores[labels >= 0]

    decoder.score_threshold, decoder.least_logit = 0.2, least_logit(0.2)
    with torch.inference_mode():
        expected = decoder(loaded.model(canvas)["boxes"], size[None])[0][1]
    assert 10 < len(expected) < 100
    torch.testing.assert_close(best(0.2), expected, atol=1e-4, rtol=0)
    if name != "distribution":  # some are above it by their quality alone, which is not enough
        assert (best(0.0) > 0.2).sum() > len(expected)


def test_maps_after_a_head_with_three_outputs_a_level(tmp_path):
    loaded = _loaded({"quality": "iou"}, tmp_path, others=True)
    assert not export_model(loaded, tmp_path / "m.torchscript").difference.problems
    found = ScriptPredictor(tmp_path / "m.torchscript").predict(
        [torch.zeros(3, 60, 80, dtype=torch.uint8)]
    )[0]
    assert found["map"].classes.shape == (60, 80)


def test_settings_of_the_decoder_can_be_changed_in_the_file(tmp_path):
    images = [
        torch.randint(0, 256, (3, 75, 100), generator=torch.Generator().manual_seed(2)).byte()
    ]
    export_model(_loaded(HEADS["iou"], tmp_path), tmp_path / "m.torchscript")
    predictor = ScriptPredictor(tmp_path / "m.torchscript")
    change_test(predictor, {"detections": 10_000, "score_threshold": 0.2}, "--set")
    both = predictor.predict(images)[0]["boxes"]
    change_test(predictor, {"class_agnostic": True}, "--set")
    agnostic = predictor.predict(images)[0]["boxes"]
    assert both.scores.min() > 0.2 and len(agnostic) < len(both)
    change_test(predictor, {"quality_power": 0.0}, "--set")  # the class's probability alone
    assert not torch.equal(predictor.predict(images)[0]["boxes"].scores, agnostic.scores)
