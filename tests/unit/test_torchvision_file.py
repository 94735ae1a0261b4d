"""What cannot be written for torchvision is refused before anything is made, all reasons at once."""

import pytest

from detmtl.inference.export import export
from detmtl.inference.predictor import LoadedModel
from detmtl.inference.torchvision_file import TorchvisionReport, export_torchvision
from detmtl.models.backbone import BackboneSettings
from detmtl.structures.errors import InputError
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.presets import detection, pyramid
from detmtl.tasks.tags import TagsConfig

NAMES = ("cat", "dog")


def _loaded(preset="torchvision", fpn=None, tasks=None, **own):
    model = build_model(
        ModelSettings(
            backbone=BackboneSettings(name="test_efficientnet"),
            fpn=pyramid(preset, channels=16, **(fpn or {})),
        ),
        {"boxes": detection(preset, **own), **(tasks or {})},
        NAMES,
    )
    return LoadedModel(model.eval(), NAMES, 64, 96, {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "detectron2"}, ["P6 comes from c5 and the head has no norm", "anchors"]),
        ({"preset": "mmdet"}, ["fpn.extra_relu", "anchors"]),
        ({"preset": "keras"}, ["anchors are others", "class_agnostic"]),
        ({"fpn": {"p6_from": "c5"}}, ["P6 comes from c5"]),
        ({"head": {"norm": "group"}}, ["P6 comes from p5 and the head has group norm"]),
        ({"anchors": {"variance": [0.1, 0.1, 0.2, 0.2]}}, ["anchors are others"]),
        ({"anchors": {"order": "size"}}, ["anchors are others"]),
        ({"fpn": {"levels": 4}}, ["lacks backbone.body", "backbone resnet50"]),
        ({"tasks": {"more": detection("torchvision")}}, ["boxes, more"]),
        ({"tasks": {"tags": TagsConfig(at="p5")}}, ["boxes, tags"]),
    ],
)
def test_other_networks_are_refused(given, words, tmp_path):
    with pytest.raises(InputError) as error:
        export_torchvision(_loaded(**given), tmp_path / "w.pth")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not list(tmp_path.iterdir())


def test_names_must_have_a_class_of_the_model(tmp_path):
    with pytest.raises(InputError, match="none of the names is a class of the model"):
        export_torchvision(_loaded(), tmp_path / "w.pth", ["__background__", "zebra"])


def test_half_precision_is_not_for_torchvision(tmp_path):
    with pytest.raises(InputError, match="bfloat16 is for torchscript"):
        export(tmp_path / "best.pt", tmp_path / "w.pth", "torchvision", "bfloat16")


def test_the_report_says_how_to_load_the_file(tmp_path):
    report = TorchvisionReport(
        tmp_path / "w.pth", "f(num_classes=3)", ("__background__", *NAMES), 1e-6
    )
    assert "torchvision.models.detection.f(num_classes=3)" in str(report)
    assert "labels 1..2 are cat, dog" in str(report)
