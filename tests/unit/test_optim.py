import itertools
import math
import os
import sys

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import TinyModel

from detmtl.engine.optim import OptimSettings, parameter_groups, set_lr


def groups(settings, model, *others):
    return {g["name"]: g for g in settings.build(model, *others).param_groups}


def test_groups():
    model = TinyModel()
    settings = OptimSettings(lr=0.1, weight_decay=0.05, backbone_lr_scale=0.2)
    found = groups(settings, model)
    assert {n: (g["lr"], g["weight_decay"]) for n, g in found.items()} == {
        "backbone": (pytest.approx(0.02), 0.05),
        "backbone_no_decay": (pytest.approx(0.02), 0),
        "rest": (0.1, 0.05),
        "rest_no_decay": (0.1, 0),
    }
    assert [id(p) for p in found["backbone"]["params"]] == [id(model.backbone[0].weight)]
    assert all(p.ndim == 1 for p in found["backbone_no_decay"]["params"])
    assert sum(len(g["params"]) for g in found.values()) == len(list(model.parameters()))


def test_the_usual_decay_is_that_of_the_optimizer():
    usual = {"adamw": 0.02, "sgd": 1e-4}
    assert {name: OptimSettings(name=name).weight_decay for name in usual} == usual
    assert OptimSettings().weight_decay == 0.02
    assert OptimSettings(name="sgd", weight_decay=0.02).weight_decay == 0.02


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("nfnet_l0", "gain"),
        ("swin_tiny_patch4_window7_224", "relative_position_bias_table"),
        ("efficientformerv2_s0", "attention_biases"),
        ("edgenext_xx_small", "temperature"),
        ("hiera_tiny_224", "pos_embed"),
    ],
)
def test_vectors_and_places_of_timms_networks_are_not_decayed(name, own):
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True)
    found = {g["name"]: g for g in parameter_groups(network, 0.1, 0.05, 1.0)}
    names = {id(p): n.rpartition(".")[2] for n, p in network.named_parameters()}
    decayed, rest = (
        {names[id(p)] for p in found[group]["params"]} for group in ("rest", "rest_no_decay")
    )
    assert decayed == {"weight"} and own in rest


@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", "mobilenetv3_small_100", "resnet50", "tf_efficientnet_lite0"]
)
def test_a_kernel_is_decayed_whatever_its_shape(name):
    """Groups are those of trainings that earlier versions began."""
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True)
    found = {g["name"]: g for g in parameter_groups(network, 0.1, 0.05, 1.0)}
    assert {id(p) for p in found["rest"]["params"]} == {
        id(p) for p in network.parameters() if p.ndim > 1
    }


def test_frozen_weights_are_in_no_group_and_stay():
    model = TinyModel()
    model.backbone.requires_grad_(False)
    assert not [n for n in groups(OptimSettings(), model) if n.startswith("backbone")]
    before = model.backbone[0].weight.clone()
    optimizer = OptimSettings(lr=1).build(model)
    model(torch.rand(2, 3, 8, 8))["boxes"][0].sum().backward()
    optimizer.step()
    assert torch.equal(model.backbone[0].weight, before)


def test_weights_of_others_are_trained_without_decay():
    other = nn.Linear(2, 2)
    group = groups(OptimSettings(lr=0.1), TinyModel(), other)["other"]
    assert group["weight_decay"] == 0 and len(group["params"]) == 2


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equals_torch_over_channels_last_weights(name):
    """The fused kernels, the groups and our momentum buffers give torch's plain updates."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)).to(
        memory_format=torch.channels_last
    )
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1))
    plain.load_state_dict(ours.state_dict())
    settings = OptimSettings(name=name, lr=0.01, weight_decay=0.1)
    optimizer = settings.build(ours)
    decayed = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in plain.parameters()]
    if name == "adamw":
        reference = torch.optim.AdamW(decayed, lr=0.01, fused=False, foreach=False)
    else:
        reference = torch.optim.SGD(decayed, lr=0.01, momentum=0.9, fused=False, foreach=False)
    x = torch.rand(2, 3, 9, 9)
    for _ in range(4):
        for model, opt in ((ours, optimizer), (plain, reference)):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_warmup_and_cosine():
    settings = OptimSettings(warmup=10, schedule="cosine", lr_end=0.1)
    factors = [settings.factor(s, 110) for s in range(110)]
    assert factors[:10] == pytest.approx([(s + 1) / 11 for s in range(10)])
    assert factors[10] == 1 and max(factors) == 1
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert settings.factor(110, 110) == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_milestones():
    settings = OptimSettings(warmup=0, schedule="steps", milestones=[0.5, 0.9], gamma=0.1)
    factors = [settings.factor(s, 10) for s in range(10)]
    assert factors == pytest.approx([1] * 5 + [0.1] * 4 + [0.01])


def test_warmup_longer_than_the_run_is_finite():
    settings = OptimSettings(warmup=50)
    assert all(0 < settings.factor(s, 20) < 1 for s in range(20))
    assert math.isfinite(settings.factor(50, 50))


def test_a_run_that_is_all_warm_up_is_told():
    settings = OptimSettings(warmup=50)
    assert settings.notes(51) == [] == OptimSettings(warmup=0).notes(1)
    assert max(settings.factor(s, 51) for s in range(51)) == 1
    assert settings.notes(50)[0].startswith("optim.warmup takes 50 steps of 50: the learning rate")


def test_set_lr_keeps_the_ratio_of_groups():
    optimizer = OptimSettings(lr=0.1, backbone_lr_scale=0.5).build(TinyModel())
    for factor in (0.3, 0.1):  # not cumulative
        set_lr(optimizer, factor)
        told = {g["name"]: g["lr"] for g in optimizer.param_groups}
        assert told["rest"] == pytest.approx(0.1 * factor)
        assert told["backbone"] == pytest.approx(0.05 * factor)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0}, {"warmup": -1}, {"clip": 0}, {"name": "adam"}, {"milestones": [1.5]}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        OptimSettings(**wrong)
