"""The backbone: folding against timm's own output, weights, frozen stages."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import Tensor, nn

from detmtl.models.backbone import Backbone, BackboneSettings
from detmtl.structures.errors import InputError

MOBILENET = {
    "name": "timm.models.efficientnet:_gen_mobilenet_v1",
    "args": {"variant": "mobilenetv1_100", "channel_multiplier": 0.25, "pad_type": "same"},
}


def shake(network: nn.Module) -> nn.Module:
    """Gives batch norms statistics and weights as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None and m.running_var is not None
                m.running_mean.normal_(std=0.2, generator=generator)
                m.running_var.uniform_(0.5, 2, generator=generator)
                m.weight.uniform_(0.5, 1.2, generator=generator)
                m.bias.normal_(std=0.1, generator=generator)
    return network.eval()


def picture(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, 2 * size, generator=torch.Generator().manual_seed(1))


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "mobilenetv1_025":
        return shake(_gen_mobilenet_v1(**MOBILENET["args"], features_only=True))
    return shake(timm.create_model(name, features_only=True))


def batch_norms(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenetv2_100", "mobilenetv1_025", "mobilenetv3_small_050"]
)
def test_folding_is_exact_and_complete(name):
    network = make_network(name)
    with torch.no_grad():
        expected = [f.clone() for f in network(picture())][-3:]
    backbone = Backbone(network, (0, 0, 0), (1, 1, 1)).train()
    assert not batch_norms(backbone)
    with torch.no_grad():
        got = backbone(picture())
    for a, b, stride, channels in zip(got, expected, [8, 16, 32], backbone.channels, strict=True):
        assert a.shape == (2, channels, 64 // stride, 128 // stride)
        assert (a - b).abs().max() < 1e-5 * b.abs().max().clamp(min=1)
    assert any("act" in n or isinstance(m, nn.ReLU6) for n, m in backbone.named_modules())


def test_norms_without_a_convolution_are_fixed():
    network = make_network("resnetv2_18")
    with torch.no_grad():
        expected = [f.clone() for f in network(picture())][-3:]
    backbone = Backbone(network, (0, 0, 0), (1, 1, 1)).train()
    assert not batch_norms(backbone)
    with torch.no_grad():
        for a, b in zip(backbone(picture()), expected, strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_convolutions_that_change_their_weights_are_not_folded():
    class Doubling(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.conv2d(input, torch.tanh(self.weight), None, padding=1)

    network = make_network("resnet10t")
    old = network.layer2[0].conv2
    network.layer2[0].conv2 = Doubling(old.in_channels, old.out_channels, 3, bias=False)
    with torch.no_grad():
        expected = [f.clone() for f in network(picture())][-3:]
        got = Backbone(network, (0, 0, 0), (1, 1, 1))(picture())
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_no_batch_norm_no_change():
    network = timm.create_model("convnext_atto", features_only=True)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    backbone = Backbone(network, (0, 0, 0), (1, 1, 1))
    assert backbone.channels == [80, 160, 320]
    after = backbone.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_channels_last_networks_give_channels_first():
    backbone = BackboneSettings(
        name="swin_tiny_patch4_window7_224",
        args={"depths": [1, 1, 1, 1], "embed_dim": 24, "strict_img_size": False, "img_size": 64},
    ).build()
    assert [tuple(f.shape[1:]) for f in backbone(torch.zeros(1, 3, 64, 64))] == [
        (48, 8, 8),
        (96, 4, 4),
        (192, 2, 2),
    ]


def test_trained_norm_stays_and_the_trial_leaves_statistics_alone():
    backbone = BackboneSettings(name="resnet10t", norm="train").build()
    norms = batch_norms(backbone)
    assert len(norms) == 14 and all(m.training for m in norms)
    assert all(int(m.num_batches_tracked) == 0 for m in norms)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"name": "resnet10t"}, ("conv1", "bn1", "layer1")),
        (MOBILENET, ("conv_stem", "blocks.0", "blocks.1")),
        ({"name": "convnext_atto"}, ("stem", "stages_0")),
    ],
)
@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_frozen_stages(settings, frozen, norm):
    backbone = BackboneSettings(**settings, frozen_stages=2, norm=norm).build()
    for name, p in backbone.network.named_parameters():
        assert p.requires_grad != name.startswith(frozen), name
    for name, m in backbone.network.named_modules():
        assert not (isinstance(m, nn.BatchNorm2d) and name.startswith(frozen)), name
    outputs: dict[str, Tensor] = {}
    for name, m in backbone.network.named_modules():
        m.register_forward_hook(lambda _m, _i, o, name=name: outputs.update({name: o}))
    backbone(picture())
    recorded = [n for n, o in outputs.items() if isinstance(o, Tensor) and o.requires_grad]
    assert recorded and not any(n.startswith(frozen) for n in recorded)


def test_frozen_stages_before_the_first_features():
    with pytest.raises(InputError, match="first features have stride 4; give 0 or at least 2"):
        BackboneSettings(name="convnext_atto", frozen_stages=1).build()


def save_classifier(path, **changes) -> nn.Module:
    torch.manual_seed(3)
    network = shake(_gen_mobilenet_v1(**MOBILENET["args"]))
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    for name, tensor in changes.items():
        state.pop(name) if tensor is None else state.update({name: tensor})
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(
        {"state_dict": state, "epoch": 3}, path
    )
    if not changes:
        network.load_state_dict(state)
    return network


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_local_weights(tmp_path, file):
    network = save_classifier(tmp_path / file)
    backbone = BackboneSettings(**MOBILENET, weights=file).build(root=tmp_path)
    with torch.no_grad():
        expected = network.forward_features(picture())
        got = backbone(picture())[-1]
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(p.dtype == torch.float32 for p in backbone.parameters())


def test_local_weights_of_a_network_whose_extractor_renames(tmp_path):
    network = timm.create_model("convnext_atto").eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = BackboneSettings(name="convnext_atto", weights=str(tmp_path / "w.pth")).build()
    with torch.no_grad():
        _, expected = network.forward_intermediates(picture())
        torch.testing.assert_close(backbone(picture())[-1], expected[-1])


def test_weights_that_do_not_fit_are_all_listed(tmp_path):
    changes = {
        "conv_stem.weight": None,
        "extra.weight": torch.zeros(1),
        "bn1.bias": torch.zeros(3),
        "bn1.weight": torch.full((8,), float("inf")),
    }
    save_classifier(tmp_path / "w.pth", **changes)
    with pytest.raises(InputError) as caught:
        BackboneSettings(**MOBILENET, weights="w.pth").build(root=tmp_path)
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in (
        "the file lacks conv_stem.weight",
        "no place for extra.weight",
        "bn1.bias has the shape (3,); the network needs (8,)",
        "bn1.weight holds values that are not finite",
    ):
        assert part in problems


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"not weights", "cannot be read"), ([1, 2], "holds a list")],
)
def test_weights_that_are_none(tmp_path, content, message):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        BackboneSettings(**MOBILENET, weights="w.pth").build(root=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet5O"}, "no model 'resnet5O'; nearest: resnet50"),
        ({"name": "no_package_at_all.x:make"}, "cannot import no_package_at_all"),
        ({"name": "timm.models.efficientnet:nothing"}, "has no function 'nothing'"),
        ({"name": "resnet18", "args": {"widthh": 3}}, "does not take"),
        ({"name": "resnet18", "args": {"features_only": True}}, "set by the program"),
        ({"name": "vit_tiny_patch16_224"}, "strides 8, 16 and 32 are needed"),
        ({"name": "resnet18", "pretrained": True, "weights": "x.pth"}, "give one of them"),
        ({"name": "builtins:dict"}, "no feature extractor"),
    ],
)
def test_user_mistakes(settings, message):
    with pytest.raises(InputError, match=message):
        BackboneSettings(**settings).build()


class Whole(nn.Module):
    """Features of pictures of one size alone, or, `size` being None, padded to even numbers of rows."""

    def __init__(self, size, **_):
        super().__init__()
        self.size, self.feature_info = size, []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        assert self.size in (None, image.shape[-1]), f"width is not {self.size}"
        height, width = image.shape[-2:]
        sizes = [(height // s, width // s) for s in (8, 16, 32)]
        if self.size is None:
            sizes = [(h + h % 2, w + w % 2) for h, w in sizes]
        return [self.weight.expand(len(image), 4, *size) for size in sizes]


@pytest.mark.parametrize(
    ("size", "told"), [(64, "width is not 64"), (None, r"stride 32 are \(4, 6\), not \(3, 5\)")]
)
def test_a_network_of_some_sizes_alone_says_so(size, told):
    backbone = Backbone(Whole(size), (0, 0, 0), (1, 1, 1))
    assert backbone.misfit(64, 64) is None and backbone.training
    assert re.search(told, backbone.misfit(96, 160))
    with pytest.raises(InputError, match="of 64 x 64 pixels, and fails: Asser"):
        Backbone(Whole(96), (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("name", ["hiera_tiny_224", "swin_tiny_patch4_window7_224"])
def test_a_network_of_one_size_is_made_for_the_size_that_is_asked_for(name):
    backbone = BackboneSettings(name=name, args={"img_size": [64, 96]}).build()
    assert backbone.misfit(64, 96) is None and backbone.misfit(96, 160) is not None
    assert list(backbone.stages()) == ["c2", "c3", "c4", "c5"]


def test_mean_and_std():
    assert BackboneSettings(name="mobilenetv2_035").build().mean == (0.485, 0.456, 0.406)
    other = BackboneSettings(name="mobilenetv2_035", mean=(0, 0, 0), std=(1, 1, 1)).build()
    assert other.mean == (0, 0, 0) and other.std == (1, 1, 1)


def test_state_dict_fits_a_network_built_anew():
    first = BackboneSettings(**MOBILENET, frozen_stages=2).build()
    second = BackboneSettings(**MOBILENET).build()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first(picture())[-1], second(picture())[-1])


@pytest.mark.real
@pytest.mark.parametrize("name", ["mobilenetv1_025_in1k", "mobilenetv2_100_in1k"])
def test_real_weights(real_data, name):
    settings = MOBILENET if "v1" in name else {"name": "mobilenetv2_100"}
    settings = {**settings, "args": {**settings.get("args", {}), "pad_type": "same"}}
    weights = f"weights/{name}/{name}.pth"
    backbone = BackboneSettings(**settings, weights=weights).build(root=real_data)
    network = (
        _gen_mobilenet_v1(**settings["args"])
        if "v1" in name
        else timm.create_model("mobilenetv2_100", pad_type="same")
    ).eval()
    network.load_state_dict(torch.load(real_data / weights, weights_only=True))
    with torch.no_grad():
        expected = network.forward_intermediates(picture(), intermediates_only=True)[-1]
        got = backbone(picture())[-1]
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
