"""The floor of a store is its teacher's: a model's own threshold does not hide what is asked for.

Scores below the threshold were silently not to be had, and thresholds of a selection that lay there
were without effect.
"""

import pytest
import torch
from torchvision.models import get_model

from detmtl.inference.export import export_torchscript
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.sample import ImageInfo
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings
from detmtl.teachers.from_torchvision import TorchvisionTeacherSettings

HEIGHT, WIDTH = 48, 64
NAMES = ["cat", "dog"]


def checkpoint(folder):
    """Writes a checkpoint whose scores lie around .01, and whose own threshold is .05."""
    model = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=8)
    )
    task = DetectionConfig.model_validate({"test": {"detections": 1000}})
    torch.manual_seed(0)
    network = build_model(model, {"boxes": task}, NAMES)
    for parameter in network.tasks.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter.data)
    settings = {
        "model": model.model_dump(mode="json"),
        "tasks": {"boxes": task.model_dump(mode="json")},
        "input": {"short": HEIGHT, "long": WIDTH},
    }
    content = {"format": 1, "settings": settings, "classes": NAMES, "model": network.state_dict()}
    torch.save(content | {"step": 1}, folder / "c.pt")
    return CheckpointTeacherSettings(path="c.pt").load(folder)


def exported(folder):
    checkpoint(folder)
    export_torchscript(folder / "c.pt", folder / "e.pt")
    return TorchScriptTeacherSettings(path="e.pt").load(folder)


def torchvision(folder, model="retinanet_resnet50_fpn", **options):
    """Returns a detector of torchvision with random weights, whose own threshold is .05 and whose scores
    lie on both sides of it."""
    torch.manual_seed(0)
    network = get_model(model, weights=None, weights_backbone=None, num_classes=3)
    if model.startswith("retinanet"):
        bias = network.head.classification_head.cls_logits.bias
        bias.data = torch.linspace(-5, -1, len(bias))
    else:
        network.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([3.0, 0, 3])
    torch.save(network.state_dict(), folder / "w.pth")
    sizes = {"min_size": HEIGHT, "max_size": WIDTH}
    settings = {"model": model, "path": "w.pth", "classes": NAMES}
    return TorchvisionTeacherSettings(**settings, options=sizes | options).load(folder)


def two_stages(folder):
    return torchvision(folder, "fasterrcnn_mobilenet_v3_large_320_fpn")


def asked(teacher, floor):
    image = torch.randint(
        0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    (found,) = teacher.annotate([image], [ImageInfo(0, "0.png", HEIGHT, WIDTH, "s")], floor)
    return found


@pytest.mark.parametrize("make", [checkpoint, exported, torchvision, two_stages])
def test_lower_scores_are_to_be_had_and_higher_ones_stay_the_same(make, tmp_path):
    usual, lower = asked(make(tmp_path), 0.05), asked(make(tmp_path), 0.01)
    assert (lower.scores < 0.05).any()
    assert lower.scores.min() >= 0.01
    same = lower[lower.scores >= 0.05]
    assert torch.equal(same.scores, usual.scores) and len(usual) == len(same)
    assert torch.equal(same.classes, usual.classes)
    torch.testing.assert_close(same.boxes, usual.boxes)


def test_a_threshold_that_is_asked_for_stays(tmp_path):
    teacher = torchvision(tmp_path, score_thresh=0.03)
    assert asked(teacher, 0.01).scores.min() > 0.03
