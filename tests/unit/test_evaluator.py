import json
import os
import sys

import pytest
import torch
from torch import nn

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import CPU, NAMES, TinyModel, batch_of, picture

from detmtl.engine.evaluator import evaluate, to_file_pixels
from detmtl.metrics.coco import CocoMetric
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample


class Oracle(nn.Module):
    """Finds exactly what the batch's labels say, in the network's pixels."""

    def __init__(self, samples: list[Sample]):
        super().__init__()
        self.samples, self.given = samples, 0
        self.tasks = nn.ModuleDict({"boxes": self.Task()})
        self.tasks["boxes"].model = [self]

    def forward(self, images):
        assert not self.training
        self.given += len(images)
        return {"boxes": [torch.arange(self.given - len(images), self.given)]}

    class Task(nn.Module):
        labels = "boxes"
        class_names = NAMES

        def decode(self, outputs, sizes):
            return [self.model[0].samples[i].labels["boxes"] for i in outputs[0].tolist()]

        def metric(self):
            return CocoMetric(NAMES)


def sample(i: int, height: int, width: int) -> Sample:
    """Returns a picture of height x width whose file was twice as high and four times as wide."""
    boxes = torch.tensor([[1.0, 2, 9, 12], [20, 20, 31, 25]]) + i
    labels = BoxLabels.of(boxes, torch.tensor([0, 1]), 2, scores=torch.tensor([0.9, 0.8]))
    info = ImageInfo(i, f"{i}.jpg", 2 * height, 4 * width, "val")
    return Sample(torch.zeros(3, height, width, dtype=torch.uint8), {"boxes": labels}, info)


def given():
    samples = [sample(0, 40, 50), sample(1, 64, 33), sample(2, 50, 50)]
    return samples, [Batch.of(samples[:2]), Batch.of(samples[2:])]


def test_perfect_predictions_in_pictures_of_several_sizes():
    samples, batches = given()
    metrics = evaluate(Oracle(samples), batches, CPU, "fp32")
    assert metrics["boxes/AP"] == pytest.approx(1)
    assert all(name.startswith("boxes/") for name in metrics)


def test_truth_in_file_pixels():
    samples, batches = given()

    def of_file(info):
        labels = samples[info.id].labels["boxes"]
        return {"boxes": labels.with_boxes(labels.boxes * torch.tensor([4.0, 2, 4, 2]))}

    assert evaluate(Oracle(samples), batches, CPU, truth=of_file)["boxes/AP"] == pytest.approx(1)

    def unscaled(info):
        return dict(samples[info.id].labels)

    assert evaluate(Oracle(samples), batches, CPU, truth=unscaled)["boxes/AP"] < 0.2


def test_detections_file_is_in_file_pixels_and_by_category_id(tmp_path):
    samples, batches = given()
    path = tmp_path / "deep" / "found.json"
    evaluate(Oracle(samples), batches, CPU, detections=path)
    found = json.loads(path.read_text())
    assert [(r["image_id"], r["category_id"]) for r in found] == [
        (i, c) for i in range(3) for c in (1, 2)
    ]
    assert [r["category_name"] for r in found[:2]] == list(NAMES[:2])
    assert found[0]["bbox"] == [4, 4, 32, 20] and found[0]["score"] == pytest.approx(0.9)


def test_keeps_the_models_mode_and_gradients():
    model = TinyModel().train()
    model.dropout.eval()
    weights = [p.clone() for p in model.parameters()]
    statistics = model.backbone[1].running_mean.clone()
    evaluate(model, [batch_of(0)], CPU, "fp32")
    assert model.training and all(p.grad is None for p in model.parameters())
    assert torch.equal(model.backbone[1].running_mean, statistics)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_pictures_without_labels_are_left_out():
    samples, _ = given()
    bare = Sample(samples[1].image, {}, samples[1].info)
    seen = []
    metrics = evaluate(
        Oracle(samples),
        [Batch.of([samples[0], bare]), Batch.of([Sample(samples[2].image, {}, samples[2].info)])],
        CPU,
        on_batch=lambda batch, found: seen.append((len(batch), len(found["boxes"]))),
    )
    assert metrics["boxes/AP"] == pytest.approx(1)
    assert seen == [(2, 2), (1, 1)]


def test_unpadded_is_the_way_back():
    samples = [sample(0, 40, 50), picture(3), picture(4, labelled=False)]
    back = Batch.of(samples).labels["boxes"].unpadded([])
    assert back[2] is None
    for one, s in zip(back[:2], samples[:2], strict=True):
        for name, value in vars(s.labels["boxes"]).items():
            if name == "details":
                assert getattr(one, name) is value is None
            else:
                assert torch.equal(getattr(one, name), value)


def test_scales_differ_by_direction():
    labels = BoxLabels.of(torch.tensor([[10.0, 10, 20, 30]]), torch.zeros(1), 1)
    mapped = to_file_pixels(labels, (100, 200), ImageInfo(0, "", 50, 600, "val"))
    assert mapped.boxes.tolist() == [[30, 5, 60, 15]]
