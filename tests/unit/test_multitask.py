"""The whole network with a small task, and how it is made from settings."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.models.retina_head import RetinaHead
from detmtl.structures.errors import InputError
from detmtl.tasks.multitask import ModelSettings, MultiTask, Normalize, build_model
from detmtl.tasks.task import Task

CLASSES = ("a", "b")
MODEL = ModelSettings(
    backbone=BackboneSettings(
        name="mobilenetv2_035", frozen_stages=1, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)
    ),
    fpn=FPNSettings(channels=16, levels=4),
)


class Heads(Task):
    labels = "boxes"

    def __init__(self, name: str, channels: int, num_classes: int, levels: Sequence[str]):
        super().__init__()
        self.name, self.levels = name, tuple(levels)
        self.head = RetinaHead(channels, 3, num_classes, depth=1, norm="group")

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        logits, deltas = self.head(features)
        return logits + deltas

    def loss(self, outputs, batch):
        return {}

    def decode(self, outputs, sizes):
        return []

    def metric(self):
        raise NotImplementedError


class OneTask(nn.Module):
    def __init__(self, model: MultiTask):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model(images)["boxes"]


class Config:
    def __init__(self, *levels: str):
        self.levels = levels

    def build(self, name, channels, strides, num_classes, class_names):
        assert channels == [16] * 4 and strides == [8, 16, 32, 64] and class_names == CLASSES
        return Heads(name, channels[0], num_classes, self.levels)


@pytest.fixture(scope="module")
def model() -> MultiTask:
    torch.manual_seed(0)
    tasks = {"boxes": Config("p3", "p4", "p5", "p6"), "coarse": Config("p5")}
    return build_model(MODEL, tasks, CLASSES)


def pictures(height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def test_outputs_of_every_task(model):
    outputs = model(pictures())
    assert list(outputs) == ["boxes", "coarse"]
    shapes = [(8, 12), (4, 6), (2, 3), (1, 2)]
    assert [x.shape for x in outputs["boxes"]] == [(2, c, *s) for c in (6, 12) for s in shapes]
    assert [x.shape for x in outputs["coarse"]] == [(2, 6, 2, 3), (2, 12, 2, 3)]
    first = outputs["boxes"][0]
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_uint8_and_float_pictures_give_the_same(model):
    given = pictures().float()
    kept = given.clone()
    for a, b in zip(model(pictures())["boxes"], model(given)["boxes"], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(given, kept)


def test_normalize():
    normalize = Normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    expected = (pictures() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    exact = normalize(pictures())
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(normalize.bfloat16()(pictures()), exact)


def test_the_model_normalizes_by_the_backbone(model):
    seen: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    model(pictures())
    handle.remove()
    assert torch.equal(seen[0], Normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))(pictures()))


def test_gradients_reach_everything_but_frozen_stages(model):
    model.train()
    outputs = model(pictures())
    sum(x.sum() for xs in outputs.values() for x in xs).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    assert any(not p.requires_grad for p in model.parameters())
    model.zero_grad()


def test_autocast_and_conversion_to_bfloat16(model):
    model.eval()
    with torch.no_grad():
        expected = model(pictures())["boxes"]
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(pictures())["boxes"]
        torch.manual_seed(0)
        tasks = {"boxes": Config("p3", "p4", "p5", "p6"), "coarse": Config("p5")}
        converted = build_model(MODEL, tasks, CLASSES)
        converted.load_state_dict(model.state_dict())
        half = converted.eval().bfloat16()(pictures())["boxes"]
    for exact, a, b in zip(expected, cast, half, strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        for x in (a, b):
            assert (x.float() - exact).norm() < 0.15 * exact.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("args", [{}, {"pad_type": "same"}])
def test_traced_equals_eager_at_other_sizes(args):
    settings = MODEL.backbone.model_copy(update={"args": args})
    model = build_model(
        MODEL.model_copy(update={"backbone": settings}), {"boxes": Config("p3", "p6")}, CLASSES
    ).eval()
    network = OneTask(model)  # a trace can return a list, but no dict of lists
    with torch.no_grad():
        traced = torch.jit.trace(network, pictures()[:1], strict=False)
        torch.testing.assert_close(traced(pictures(96, 160)), network(pictures(96, 160)))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "none given"),
        ({"a.b": Config("p3")}, r"tasks: 'a\.b': a task's name may not .* have a dot"),
        ({"values": Config("p3")}, r"tasks\.values: torch's modules have something of that name"),
        ({"boxes": Config("p7")}, "no level p7; the network has c3, c4, c5, p3, p4, p5, p6"),
    ],
)
def test_user_mistakes(tasks, message):
    with pytest.raises(InputError, match=message):
        build_model(MODEL, tasks, CLASSES)


def test_weights_are_found_below_the_root(tmp_path):
    backbone = BackboneSettings(name="mobilenetv2_035", weights="w.pth")
    with pytest.raises(InputError, match=f"no file {tmp_path}"):
        build_model(ModelSettings(backbone=backbone), {"boxes": Config("p3")}, CLASSES, tmp_path)


def test_settings_reject_unknown_names():
    with pytest.raises(ValueError, match="fnp"):
        ModelSettings.model_validate({"backbone": {"name": "resnet18"}, "fnp": {}})


def test_parameters_are_channels_last(model):
    big = [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.weight.shape[1] > 1
    ]
    assert big and all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in big)
