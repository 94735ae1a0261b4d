"""The cut between trunk and heads is exact, and so are the tasks' separate passes."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from cut import Cut

from detmtl.balancing.gradients import task_gradients
from detmtl.balancing.gradnorm import GradNormSettings
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="resnet10t"), fpn=FPNSettings(channels=16)
    )
    tasks = {
        "boxes": DetectionConfig(head={"depth": 1}),
        "map": SemanticConfig(at="p3"),
        "tags": TagsConfig(at="c4"),
    }
    return build_model(settings, tasks, ["a", "b"]).train()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator)


def terms(outputs):
    """Returns a smooth loss for each task."""
    return {
        name: {"x": torch.stack([(x.float() - 0.1 * i).square().mean() for x in xs]).sum()}
        for i, (name, xs) in enumerate(outputs.items())
    }


def plain(model, images):
    model.zero_grad(set_to_none=True)
    torch.stack([t["x"] for t in terms(model(images)).values()]).sum().backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same(model, expected):
    """To 1e-6 of the largest gradient of each parameter's kind."""
    for name, p in model.named_parameters():
        other = expected[name]
        assert (p.grad is None) == (other is None), name
        if other is not None:
            torch.testing.assert_close(p.grad, other, rtol=1e-5, atol=1e-6, msg=name)


def test_the_cut_equals_plain_backward(model, images):
    expected = plain(model, images)
    model.zero_grad(set_to_none=True)
    features = model.features(images)
    cut = Cut(features)
    for of_task in terms(model.heads(cut.leaves)).values():  # heads one by one
        of_task["x"].backward()
    assert all(p.grad is None for p in model.shared_parameters())
    cut.backward()
    assert_same(model, expected)


def test_a_cut_without_losses_does_nothing(model, images):
    model.zero_grad(set_to_none=True)
    Cut(model.features(images)).backward()
    assert all(p.grad is None for p in model.parameters())


def test_separate_passes_add_up_to_plain_backward(model, images):
    """GradNorm's weights start at 1."""
    expected = plain(model, images)
    model.zero_grad(set_to_none=True)
    balancer = GradNormSettings(kind="gradnorm", scale="none").build(list(model.tasks))
    balancer.attach(model.shared_parameters(), model.own_parameters())
    balancer.backward(terms(model(images)))
    assert_same(model, expected)


def test_rows_add_up_to_plain_backward(model, images):
    expected = plain(model, images)
    shared = model.shared_parameters()
    rows = task_gradients(terms(model(images)), shared)
    names = {id(p): n for n, p in model.named_parameters()}
    flat = torch.cat(
        [
            torch.zeros(p.numel())
            if expected[names[id(p)]] is None
            else expected[names[id(p)]].flatten()
            for p in shared
        ]
    )
    torch.testing.assert_close(rows.sum(0), flat, rtol=1e-5, atol=1e-6)
