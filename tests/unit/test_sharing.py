"""Which layers a task's loss reaches, for every place that it may hang on."""

import pytest
import torch

from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.errors import InputError
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

STAGES = ["c2", "c3", "c4", "c5"]
PLACES = [*STAGES, "p3", "p4", "p5", "p6", "p7"]


def build(at, sharing, p6_from="p5", **more):
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="resnet10t"),
        fpn=FPNSettings(channels=8, p6_from=p6_from),
        sharing=sharing,
    )
    return build_model(settings, {"tags": TagsConfig(at=at), **more}, ["a", "b"])


def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=generator)


def stages_of_parameters(model):
    """Returns backbone parameter -> the first stage whose features depend on it."""
    found = {}
    features = model.backbone._all_features(model.normalize(pictures()))
    named = dict(model.backbone.named_parameters())
    for feature in features:
        stage = f"c{(128 // feature.shape[-1]).bit_length() - 1}"
        gradients = torch.autograd.grad(
            feature.sum(), list(named.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                found.setdefault(name, stage)
    assert found.keys() == named.keys()
    return found


def reached(model):
    """Returns the stages of the backbone and the parts of the pyramid that the loss of tags reaches."""
    stage_of = stages_of_parameters(model)
    model.zero_grad(set_to_none=True)
    model(pictures())["tags"][0].square().sum().backward()
    backbone = {
        stage_of[name] for name, p in model.backbone.named_parameters() if p.grad is not None
    }
    partly = {
        stage_of[name] for name, p in model.backbone.named_parameters() if p.grad is None
    } & backbone
    assert not partly
    parts = {
        ".".join(name.split(".")[:2])
        for name, p in model.fpn.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    return backbone, parts


def up_to(stage):
    return {s for s in ("c1", *STAGES) if s <= stage}


@pytest.mark.parametrize("at", PLACES)
def test_selective_reaches_exactly_what_is_below(at):
    backbone, pyramid = reached(build(at, "selective"))
    if at[0] == "c":
        assert backbone == up_to(at) and pyramid == set()
        return
    level = int(at[1])
    assert backbone == up_to(f"c{min(level, 5)}")
    own = {f"laterals.{min(level, 5) - 3}", f"outputs.{min(level, 5) - 3}"}
    assert pyramid == own | {f"extras.{i}" for i in range(level - 5)}


@pytest.mark.parametrize("at", PLACES)
def test_hard_reaches_all_that_the_place_is_made_of(at):
    backbone, pyramid = reached(build(at, "hard"))
    if at[0] == "c":
        assert backbone == up_to(at) and pyramid == set()
        return
    level = int(at[1])
    assert backbone == up_to("c5")
    laterals = {f"laterals.{i - 3}" for i in range(min(level, 5), 6)}
    extras = {f"extras.{i}" for i in range(level - 5)}
    assert pyramid == laterals | {f"outputs.{min(level, 5) - 3}"} | extras


def test_p6_from_c5_is_below_p6_alone():
    assert reached(build("p6", "selective", p6_from="c5")) == (up_to("c5"), {"extras.0"})


@pytest.mark.parametrize("at", ["p3", "p4"])
def test_values_are_those_of_hard_sharing(at):
    hard, selective = build(at, "hard"), build(at, "selective")
    with torch.no_grad():
        expected = hard(pictures())["tags"][0]
        torch.testing.assert_close(selective(pictures())["tags"][0], expected, rtol=0, atol=0)
    torch.testing.assert_close(selective(pictures())["tags"][0], expected)


def test_another_task_s_gradient_is_not_changed_by_a_selective_one():
    def gradients(sharing):
        model = build("p3", sharing, boxes=DetectionConfig(head={"depth": 1}))
        torch.stack([x.square().mean() for x in model(pictures())["boxes"]]).sum().backward()
        return [p.grad for p in model.shared_parameters()]

    for a, b in zip(gradients("hard"), gradients("selective"), strict=True):
        torch.testing.assert_close(a, b)


def test_the_whole_pyramid_is_shared_either_way():
    model = build("c5", "selective", map=SemanticConfig(at="fpn"))
    model(pictures())["map"][0].square().sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_a_finer_stage_is_made_only_when_asked_for():
    assert build("c3", "hard").backbone.strides == [8, 16, 32]
    model = build("c2", "hard")
    assert model.backbone.strides == [4, 8, 16, 32]
    assert model(pictures())["tags"][0].shape[-2:] == (32, 32)
    assert model.fpn.strides == [8, 16, 32, 64, 128]


def test_an_unknown_place_lists_the_known():
    with pytest.raises(InputError, match="no level c9; the network has fpn, c2, c3, c4, c5, p3"):
        build("c9", "hard")
