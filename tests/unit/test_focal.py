"""Focal loss against torchvision's, against autograd, and at the ends of number ranges."""

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from detmtl.losses import focal
from detmtl.losses.focal import FocalTargets, focal_sums, sigmoid_and_softplus, sigmoid_focal


def _random(dtype=torch.float64, sizes=(7, 3), pictures=2, classes=4, holes=True, seed=0):
    """Levels of logits with targets of every kind, and the same as dense targets and weights."""
    g = torch.Generator().manual_seed(seed)
    levels, targets, dense = [], [], []
    weights = torch.rand(pictures, classes, generator=g, dtype=dtype)
    weights[0, 1] = 0
    for rows in sizes:
        x = torch.randn(pictures, rows, classes, generator=g, dtype=torch.float64) * 3
        off = torch.rand(pictures, rows, generator=g) < 0.3
        hole = torch.rand(pictures, rows, classes, generator=g) < 0.2
        place = (~off).view(-1).nonzero()[:4, 0]
        own = place * classes + torch.arange(len(place)) % classes
        hole.view(-1)[own] = False
        on = torch.tensor([True, False, True, True])[: len(own)]
        target = torch.rand(len(own), generator=g, dtype=dtype)
        target[:1] = 1
        own_weights = torch.rand(len(own), generator=g, dtype=dtype)
        t = torch.zeros_like(x)
        w = weights[:, None].repeat(1, rows, 1).double() * ~off[..., None]
        if holes:
            w = w * ~hole
        t.view(-1)[own[on]] = target[on].double()
        w.view(-1)[own[on]] = own_weights[on].double()
        levels.append(x.to(dtype))
        dense.append((t, w))
        targets.append(
            FocalTargets(off, hole if holes else None, weights, own, on, target, own_weights)
        )
    return levels, targets, dense


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_hard_targets_give_torchvisions_focal_loss(alpha, gamma):
    x = torch.linspace(-15, 15, 61, dtype=torch.float64)[:, None]
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = sigmoid_focal_loss(x.expand(-1, 2), t.expand(61, -1), alpha, gamma)
    torch.testing.assert_close(
        sigmoid_focal(x.expand(-1, 2), t, alpha, gamma), expected, rtol=1e-9, atol=1e-15
    )


def test_soft_target_is_the_minimum():
    x = torch.tensor([-2.0, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    target = torch.sigmoid(x.detach())
    loss = sigmoid_focal(x, target)
    assert loss.abs().max() < 1e-12
    assert (sigmoid_focal(x + 0.1, target) > 0).all() and (sigmoid_focal(x - 0.1, target) > 0).all()


def test_elementwise_gradient():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, generator=g, dtype=torch.float64, requires_grad=True)
    t = torch.rand(12, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal(x, t), (x,))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("holes", [True, False])
def test_one_pass_equals_elementwise_with_weights(gamma, holes, monkeypatch):
    monkeypatch.setattr(focal, "CACHED", 16)  # several blocks a level
    levels, targets, dense = _random(holes=holes)
    ours = [x.clone().requires_grad_() for x in levels]
    theirs = [x.clone().requires_grad_() for x in levels]
    total = focal_sums(ours, targets, 0.25, gamma).sum()
    expected = sum(
        (sigmoid_focal(x, t, 0.25, gamma) * w).sum()
        for x, (t, w) in zip(theirs, dense, strict=True)
    )
    torch.testing.assert_close(total, expected)
    (3 * total).backward()
    (3 * expected).backward()
    for a, b, (_, w) in zip(ours, theirs, dense, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        assert (a.grad[w == 0] == 0).all()


def test_one_pass_gradcheck():
    levels, targets, _ = _random(sizes=(5, 2))
    levels = [x.requires_grad_() for x in levels]
    assert torch.autograd.gradcheck(lambda *x: focal_sums(x, targets, 0.25, 2.0).sum(), levels)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_backward_twice_through_a_kept_graph(scale):
    levels, targets, _ = _random()
    x = levels[0].requires_grad_()
    total = scale * focal_sums([x], targets[:1], 0.25, 2.0).sum()
    total.backward(retain_graph=True)
    once = x.grad.clone()
    total.backward()
    torch.testing.assert_close(x.grad, 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_worked_on_in_float32(dtype):
    levels, targets, _ = _random(torch.float32, sizes=(300,))
    halves = [x.to(dtype).requires_grad_() for x in levels]
    floats = [x.detach().float().requires_grad_() for x in halves]
    total = focal_sums(halves, targets, 0.25, 2.0).sum()
    expected = focal_sums(floats, targets, 0.25, 2.0).sum()
    assert total.dtype == torch.float32
    assert torch.equal(total, expected)
    total.backward()
    expected.backward()
    assert halves[0].grad.dtype == dtype
    torch.testing.assert_close(halves[0].grad.float(), floats[0].grad, rtol=1e-2, atol=1e-7)


def test_loss_scaling_saves_small_gradients_in_float16():
    x = torch.full((1, 1, 1), -6.0, dtype=torch.float16, requires_grad=True)
    none = torch.zeros(0)
    target = FocalTargets(
        torch.zeros(1, 1, dtype=torch.bool),
        None,
        torch.ones(1, 1),
        none.long(),
        none.bool(),
        none,
        none,
    )
    total = focal_sums([x], [target], 0.25, 2.0).sum()
    (total * 65536).backward()
    y = torch.full((1,), -6.0, requires_grad=True)
    (sigmoid_focal(y, torch.zeros(1)).sum() * 65536).backward()
    torch.testing.assert_close(x.grad.float().view(1), y.grad, rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [-200.0, -60.0, 60.0, 200.0])
def test_extreme_logits_stay_finite(value):
    levels, targets, _ = _random(torch.float32)
    x = [torch.full_like(level, value).requires_grad_() for level in levels]
    total = focal_sums(x, targets, 0.25, 2.0).sum()
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(level.grad).all() for level in x)


def test_a_level_without_rows():
    levels, targets, _ = _random(sizes=(0, 3))
    assert torch.isfinite(focal_sums(levels, targets, 0.25, 2.0).sum())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.float64, 4e-16)])
def test_sigmoid_and_softplus_are_exact_from_tiny_to_huge(dtype, tolerance):
    x = torch.cat([torch.linspace(-80, 80, 40_001), torch.tensor([-torch.inf, -90, -1e-9])]).to(
        dtype
    )
    wide = np.exp(x.numpy().astype(np.longdouble))
    true = wide / (1 + wide), np.log1p(wide)
    # torch's exp is right to the last bit of its type only up to some of them.
    tolerance = tolerance + np.abs(torch.exp(x).numpy() / np.maximum(wide, 1e-300) - 1)[:-3].max()
    for found, exact in zip(sigmoid_and_softplus(x), true, strict=True):
        error = np.abs(found.numpy().astype(np.longdouble) - exact)
        assert (error <= tolerance * exact + torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("classes", [1, 3])
def test_weights_of_classes_repeat_as_weights_of_each_logit_do(classes):
    """A GPU is given the first, a CPU the second."""
    torch.manual_seed(0)
    logits, weights = torch.randn(2, 7 * classes), torch.rand(2, classes)
    short, spread = logits.clone(), logits.clone()

    few = focal._negatives_of(short, weights, 2.0)
    many = focal._negatives_of(spread, weights[:, None].expand(-1, 7, -1).flatten(1), 2.0)

    assert torch.equal(few, many) and torch.equal(short, spread)
    assert not torch.equal(short, logits)
