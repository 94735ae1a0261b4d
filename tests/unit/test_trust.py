"""A checkpoint runs no code but detmtl's and timm's, unless its user says so."""

import sys

import pytest
import torch
from coco_files import coco_data, save_coco

from detmtl.cli import main
from detmtl.inference.predictor import load_predictor
from detmtl.inference.trust import refuse_foreign
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.errors import InputError
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.noise import KIND

CODE = """
import pathlib
import timm
from detmtl.tasks.detection import DetectionConfig
pathlib.Path({mark!r}).write_text("ran")
def network(**args):
    return timm.create_model("test_efficientnet", **args)
class Config(DetectionConfig):
    kind: str
"""


def settings_of(backbone=None, kind="detection"):
    model = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=8)
    )
    tree = model.model_dump(mode="json")
    tree["backbone"] |= backbone or {}
    tasks = {"boxes": DetectionConfig().model_dump(mode="json") | {"kind": kind}}
    return {"model": tree, "tasks": tasks, "input": {"short": 64, "long": 96}}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that the module `foreign_code` writes when it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "foreign_code.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)
    yield mark
    sys.modules.pop("foreign_code", None)


CHANGES = [{"backbone": {"name": "foreign_code:network"}}, {"kind": "foreign_code:Config"}]


@pytest.mark.parametrize("change", CHANGES)
def test_other_code_runs_only_if_it_is_trusted(tmp_path, mark, change, capsys):
    torch.manual_seed(0)
    model = ModelSettings.model_validate(settings_of()["model"])
    network = build_model(model, {"boxes": DetectionConfig()}, ["cat"])
    path, out = tmp_path / "best.pt", tmp_path / "out"
    content = {"format": 1, "settings": settings_of(**change), "classes": ["cat"], "step": 1}
    torch.save(content | {"model": network.state_dict()}, path)
    save_coco(tmp_path, coco_data())
    with pytest.raises(InputError, match=r"foreign_code:\w+; if .* --trust"):
        load_predictor(path)
    images = tmp_path / "images"
    for words in (
        ["predict", "--model", path, "--source", images, "--out", out],
        ["evaluate", "--checkpoint", path, "--images", images, "--annotations", images],
        ["export", "--checkpoint", path, "--out", tmp_path / "m.torchscript"],
        ["annotate", "--teacher", path, "--images", images, "--out", tmp_path / "store"],
    ):
        assert main([str(word) for word in words]) == 2
        assert "foreign_code" in capsys.readouterr().err
    assert not mark.exists()
    words = ["predict", "--model", path, "--source", images, "--out", out, "--trust"]
    assert main([str(word) for word in words]) == 0
    assert mark.exists()


@pytest.mark.parametrize(
    ("inside", "where"),
    [
        ({"of": {"kind": "foreign_code:Config"}}, "tasks.x.of"),
        ({"of": {"kind": KIND, "of": {"kind": "foreign_code:Config"}}}, "tasks.x.of.of"),
        ({"of": [{"kind": "foreign_code:Config"}]}, "tasks.x.of.0"),
    ],
)
def test_a_task_of_ours_brings_no_other_code_along(tmp_path, mark, inside, where):
    settings = settings_of() | {"tasks": {"x": {"kind": KIND} | inside}}
    content = {"format": 1, "settings": settings, "classes": ["cat"], "step": 1, "model": {}}
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(InputError) as error:
        load_predictor(tmp_path / "best.pt")
    assert not mark.exists()
    assert f"{where} foreign_code:Config" in str(error.value)


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "torch.hub:load", "args": {"repo_or_dir": "x", "source": "local"}},
        {"name": "timm.models._helpers:load_checkpoint"},
        {"name": "timm.models.resnet:partial"},
        {"name": "timm.models.efficientnet:checkpoint_seq"},
        {"name": "timm.utils:ModelEma"},
        {"name": "timmy.models.resnet:resnet18"},
        {"name": "resnet18", "args": {"checkpoint_path": "other.pth"}},
    ],
)
def test_a_backbone_that_is_not_one_of_timm_s(tmp_path, backbone):
    with pytest.raises(InputError, match=backbone["name"]):
        refuse_foreign(settings_of(backbone), tmp_path)


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "resnet18.a1_in1k", "args": {"pad_type": "same"}},
        {"name": "timm.models.efficientnet:_gen_mobilenet_v1"},
        {"name": "timm.models:resnet18"},
    ],
)
def test_what_timm_makes_itself_needs_no_word(tmp_path, backbone):
    refuse_foreign(settings_of(backbone), tmp_path)
    refuse_foreign(settings_of(backbone, "detmtl.tasks.detection:DetectionConfig"), tmp_path)
    noise = {"x": {"kind": KIND, "of": {"kind": "detection", "matching": {"kind": "atss"}}}}
    refuse_foreign(settings_of(backbone) | {"tasks": noise}, tmp_path)
