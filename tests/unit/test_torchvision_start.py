"""Starting from torchvision's weights: names, classes, misfits, and where they come from."""

from urllib.error import URLError

import pytest
import torch
from torchvision.models import get_weight
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights
from torchvision_retinanet import NAMES, reference

from detmtl.inference.predictor import load_checkpoint
from detmtl.models.backbone import BackboneSettings
from detmtl.models.torchvision_weights import (
    NO_EPSILON,
    class_rows,
    from_torchvision,
    norm_of,
    to_torchvision,
    unfolded,
    with_rows,
)
from detmtl.structures.errors import InputError
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.presets import detection, pyramid
from detmtl.tasks.torchvision_start import TorchvisionStartSettings
from detmtl.yaml_settings import checked

KIND = "regnetx_002"
WIDTH = 64


@pytest.fixture(scope="module")
def theirs():
    return reference(KIND)


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save(theirs.state_dict(), path)
    return path


def _model(file, names=NAMES, preset="torchvision", backbone=None, **start):
    settings = ModelSettings(
        backbone=BackboneSettings(**{"name": KIND, **(backbone or {})}),
        fpn=pyramid(preset, channels=WIDTH),
        start=TorchvisionStartSettings(path=str(file), **start),
    )
    torch.manual_seed(1)
    return build_model(settings, {"boxes": detection(preset)}, names)


def _class_rows(model):
    layer = model.tasks["boxes"].head.class_logits
    return layer.weight.detach().unflatten(0, (9, -1)), layer.bias.detach().view(9, -1)


def _their_rows(theirs):
    layer = theirs.head.classification_head.cls_logits
    return layer.weight.detach().unflatten(0, (9, -1)), layer.bias.detach().view(9, -1)


@pytest.mark.parametrize("names", [NAMES, ["__background__", *NAMES]])
def test_class_rows_find_each_other_by_name(theirs, file, names):
    mine = ["horse", "fish", "cat"]
    model = _model(file, mine, classes=names)
    weight, bias = _class_rows(model)
    given_weight, given_bias = _their_rows(theirs)
    for row, name in ((1, "fish"), (2, "cat")):
        place = 1 + NAMES.index(name)
        assert torch.equal(weight[:, row], given_weight[:, place])
        assert torch.equal(bias[:, row], given_bias[:, place])
    torch.testing.assert_close(bias[:, 0].sigmoid(), torch.full((9,), 0.01))
    assert not any(torch.equal(weight[:, 0], given_weight[:, k]) for k in range(6))
    assert "class rows of fish, cat; fresh: horse" in model.started
    assert model.brought == {"boxes": ["fish", "cat"]}


@pytest.mark.parametrize("start", [{}, {"classes": NAMES, "class_layer": "fresh"}])
def test_class_layer_is_fresh_where_names_are_unknown_or_not_wanted(theirs, file, start):
    model = _model(file, ["cat", "dog"], **start)
    weight, bias = _class_rows(model)
    torch.testing.assert_close(bias.sigmoid(), torch.full((9, 2), 0.01))
    torch.testing.assert_close(weight.std(), torch.tensor(0.01), rtol=0.1, atol=0)
    assert "class layer fresh" in model.started
    tower = model.tasks["boxes"].head.box_deltas.weight
    assert torch.equal(tower, theirs.head.regression_head.bbox_reg.weight)


def test_no_class_in_common_is_told(file):
    model = _model(file, ["a", "b"], classes=NAMES)
    assert "class layer fresh: none of a, b is among its classes" in model.started


def test_files_of_old_torchvisions_have_other_names(theirs):
    """The published weights are such files: towers count their ReLUs, pyramids have no blocks."""
    old = {}
    for name, tensor in theirs.state_dict().items():
        parts = name.split(".")
        if ".conv." in name and name.startswith("head"):
            parts[3:5] = [str(2 * int(parts[3]))]
        elif "inner_blocks" in name or "layer_blocks" in name:
            del parts[4]
        old[".".join(parts)] = tensor
    assert "head.classification_head.conv.6.bias" in old
    assert "backbone.fpn.inner_blocks.2.weight" in old
    for mine, wanted in zip(
        (from_torchvision(old), from_torchvision(theirs.state_dict())), "ab", strict=True
    ):
        assert wanted and len(mine.head) == 20 and len(mine.fpn) == 16
    a, b = from_torchvision(old), from_torchvision(theirs.state_dict())
    for part in ("backbone", "fpn", "head"):
        left, right = getattr(a, part), getattr(b, part)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left)


def test_there_and_back(theirs):
    state = theirs.state_dict()
    back = to_torchvision(from_torchvision(state))
    assert back.keys() == state.keys() and all(back[k] is state[k] for k in state)


def test_another_networks_file_is_refused(theirs, tmp_path):
    with pytest.raises(InputError, match=r"state dict of torchvision's RetinaNet.*roi_heads"):
        from_torchvision({**theirs.state_dict(), "roi_heads.box": torch.zeros(1)})
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="has no tensors of the backbone, fpn, head"):
        _model(tmp_path / "w.pth")


def test_networks_that_do_not_fit_are_told_with_the_preset_that_does(file):
    with pytest.raises(InputError) as error:
        _model(file, preset="torchvision_v2")
    assert "model.fpn" in str(error.value) and "tasks.boxes.head" in str(error.value)
    assert "preset: torchvision_v2 fits retinanet_resnet50_fpn_v2" in str(error.value)
    with pytest.raises(InputError, match=r"backbone|architecture"):
        _model(file, backbone={"name": "resnet18"})
    with pytest.raises(InputError, match=r"7 names, but the class layer of .* has 6 rows"):
        _model(file, classes=[*NAMES, "x", "y"])


def test_another_width_is_told(theirs, file):
    settings = ModelSettings(
        backbone=BackboneSettings(name=KIND),
        fpn=pyramid("torchvision", channels=32),
        start=TorchvisionStartSettings(path=str(file), classes=NAMES),
    )
    with pytest.raises(
        InputError, match=r"has class_tower\.0\.0\.weight \(64, 64, 3, 3\) for \(32, 32, 3, 3\)"
    ):
        build_model(settings, {"boxes": detection("torchvision")}, NAMES)


def test_weights_that_are_not_finite_are_refused(theirs, tmp_path):
    state = dict(theirs.state_dict())
    key = "head.regression_head.bbox_reg.bias"
    state[key] = torch.full_like(state[key], float("nan"))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"not finite in box_deltas\.bias"):
        _model(tmp_path / "w.pth")


def test_a_backbone_has_one_origin(file):
    with pytest.raises(InputError, match=r"model.start has them too.*pretrained: false"):
        _model(file, backbone={"pretrained": True})


def test_settings_of_a_start():
    for wrong, words in (
        ({}, "give weights"),
        ({"weights": "RetinaNet_ResNet50_FPN_Weights.COCO_V1", "classes": ["a"]}, "leave it out"),
        ({"weights": "FasterRCNN.COCO_V1"}, "RetinaNet_ResNet50_FPN_V2_Weights.DEFAULT"),
    ):
        with pytest.raises(InputError, match=words):
            checked(TorchvisionStartSettings, wrong, where="start")
    with pytest.raises(InputError, match="there is no file"):
        TorchvisionStartSettings(path="nowhere.pth").read()


def test_a_checkpoint_needs_the_file_no_more(file, tmp_path):
    model = _model(file)
    settings = {
        "model": {
            "backbone": {"name": KIND},
            "fpn": pyramid("torchvision", channels=WIDTH).model_dump(mode="json"),
            "start": {"path": "gone.pth"},
        },
        "tasks": {"boxes": detection("torchvision").model_dump(mode="json")},
    }
    content = {"format": 1, "settings": settings, "classes": NAMES, "step": 1}
    torch.save({**content, "model": model.state_dict()}, tmp_path / "best.pt")
    loaded = load_checkpoint(tmp_path / "best.pt")
    assert torch.equal(_class_rows(loaded.model)[0], _class_rows(model)[0])
    assert loaded.model.started == ""


def test_a_failed_download_names_the_address_and_the_way_out(monkeypatch):
    def fail(self, **_):
        raise URLError("no network")

    monkeypatch.setattr(RetinaNet_ResNet50_FPN_Weights, "get_state_dict", fail)
    start = TorchvisionStartSettings(weights="RetinaNet_ResNet50_FPN_Weights.DEFAULT")
    with pytest.raises(InputError, match=r"retinanet_resnet50_fpn_coco-.*model.start.path"):
        start.read()


@pytest.mark.parametrize("version", ["", "_V2"])
def test_official_names_are_torchvisions(version):
    name = f"RetinaNet_ResNet50_FPN{version}_Weights.COCO_V1"
    assert TorchvisionStartSettings(weights=name)._official() is get_weight(name)
    default = TorchvisionStartSettings(weights=name.replace("COCO_V1", "DEFAULT"))
    assert default._official() is get_weight(name)


def test_rows_of_coco_skip_background_and_gaps():
    categories = get_weight("RetinaNet_ResNet50_FPN_Weights.COCO_V1").meta["categories"]
    named = [c for c in categories if c not in ("__background__", "N/A")]
    rows = class_rows(categories, named)
    assert len(named) == 80 and rows[0] == 1 and rows[11] == 13 and rows[-1] == 90
    assert class_rows(categories, ["N/A", "unicorn", "__background__"]) == [-1, -1, -1]


def test_rows_are_placed_for_every_anchor():
    own, given = torch.zeros(2 * 3, 1), torch.arange(2 * 4).float()[:, None]
    mixed = with_rows(own, given, [3, -1, 0], num_anchors=2)
    assert mixed[:, 0].tolist() == [3, 0, 0, 7, 0, 4]


def test_folded_norms_come_back_as_norms_that_add_the_bias():
    assert norm_of("layer1.0.conv2") == "layer1.0.bn2" and norm_of("conv1") == "bn1"
    assert norm_of("layer3.0.downsample.0") == "layer3.0.downsample.1"
    conv = torch.nn.Conv2d(3, 4, 3)
    found = unfolded({"conv1.weight": conv.weight.data, "conv1.bias": conv.bias.data})
    assert "conv1.bias" not in found
    norm = torch.nn.BatchNorm2d(4).eval()
    norm.load_state_dict({k.removeprefix("bn1."): v for k, v in found.items() if k[:3] == "bn1"})
    x = torch.randn(2, 3, 8, 8)
    plain = torch.nn.functional.conv2d(x, found["conv1.weight"])
    torch.testing.assert_close(norm(plain), conv(x))


@pytest.mark.slow
def test_the_first_published_weights_have_norms_that_add_nothing(tmp_path):
    """torchvision sets epsilon to 0 for them; with 1e-5 small variances would scale otherwise."""
    names = list(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    network = reference("torchvision", names[1:])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.mul_(1e-3)
            module.weight.data.mul_(1e-3**0.5)
            module.running_mean.mul_(1e-3**0.5)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    settings = ModelSettings(
        backbone=BackboneSettings(name="resnet50"),
        fpn=pyramid("torchvision"),
        start=TorchvisionStartSettings(
            weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1", path=str(tmp_path / "w.pth")
        ),
    )
    model = build_model(settings, {"boxes": detection("torchvision")}, ["zebra", "person"])
    assert "class rows of zebra, person" in model.eval().started
    image = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    found = {}
    for epsilon in (NO_EPSILON, 1e-5):
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = epsilon
        with torch.no_grad():
            features = network.backbone.body(network.transform.normalize(image[0] / 255)[None])
        found[epsilon] = list(features.values())[-1]
    with torch.no_grad():
        mine = model.backbone(model.normalize(image))[-1]
    scale = found[NO_EPSILON].abs().max()
    assert (mine - found[NO_EPSILON]).abs().max() < 1e-5 * scale
    assert (mine - found[1e-5]).abs().max() > 1e-4 * scale


@pytest.mark.network
@pytest.mark.parametrize("preset", ["torchvision", "torchvision_v2"])
def test_published_weights_fit(preset):
    version = "_V2" if preset.endswith("v2") else ""
    settings = ModelSettings(
        backbone=BackboneSettings(name="resnet50"),
        fpn=pyramid(preset),
        start=TorchvisionStartSettings(weights=f"RetinaNet_ResNet50_FPN{version}_Weights.COCO_V1"),
    )
    model = build_model(settings, {"boxes": detection(preset)}, ["person", "dog", "mine"])
    assert "class rows of person, dog; fresh: mine" in model.started
