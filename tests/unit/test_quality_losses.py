"""Quality focal, varifocal and distribution focal loss, against their formulas and against autograd."""

import pytest
import torch
from torch.nn import functional as F

from detmtl.losses import focal
from detmtl.losses.distribution import distribution_focal
from detmtl.losses.focal import FocalTargets
from detmtl.losses.quality import (
    quality_focal,
    quality_focal_sums,
    varifocal,
    varifocal_sums,
)


def _logits(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    targets = torch.rand(n, generator=g, dtype=torch.float64)
    targets[::4], targets[1] = 0, 1
    return torch.randn(n, generator=g, dtype=torch.float64) * 3, targets


def test_quality_focal_is_equation_5():
    x, y = _logits()
    p = x.sigmoid()
    expected = -((y - p).abs() ** 2) * ((1 - y) * (1 - p).log() + y * p.log())
    torch.testing.assert_close(quality_focal(x, y), expected)


def test_varifocal_is_equation_2():
    x, q = _logits()
    p = x.sigmoid()
    fits = -q * (q * p.log() + (1 - q) * (1 - p).log())
    expected = torch.where(q > 0, fits, -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(varifocal(x, q), expected)


@pytest.mark.parametrize("loss", [quality_focal, varifocal])
def test_gradients(loss):
    x, y = _logits()
    assert torch.autograd.gradcheck(lambda x: loss(x, y), (x.requires_grad_(),))


@pytest.mark.parametrize("loss", [quality_focal, varifocal])
def test_a_positive_is_learned_when_its_score_is_its_quality(loss):
    q = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x = torch.logit(q).requires_grad_()
    loss(x, q).sum().backward()
    assert x.grad.abs().max() < 1e-12
    assert (loss(x + 0.1, q) > loss(x, q)).all() and (loss(x - 0.1, q) > loss(x, q)).all()


def test_varifocal_weighs_positives_by_their_quality_and_does_not_weaken_learned_ones():
    x, q = torch.tensor([2.0, 2.0]), torch.tensor([0.4, 0.8])
    entropy = F.binary_cross_entropy_with_logits(x, q, reduction="none")
    torch.testing.assert_close(varifocal(x, q), q * entropy)


def _one_level(seed=0, pictures=2, rows=30, classes=3):
    """A level's logits and targets of every kind, and the same as dense targets and weights."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(pictures, rows, classes, generator=g, dtype=torch.float64) * 3
    weights = torch.rand(pictures, classes, generator=g, dtype=torch.float64)
    weights[0, 1] = 0
    off = torch.rand(pictures, rows, generator=g) < 0.3
    holes = torch.rand(pictures, rows, classes, generator=g) < 0.2
    place = (~off).view(-1).nonzero()[:8, 0]
    own = place * classes + torch.arange(len(place)) % classes
    holes.view(-1)[own] = False
    on = torch.arange(len(own)) != 2
    target = torch.rand(len(own), generator=g, dtype=torch.float64)
    target[:2] = torch.tensor([1.0, 0.0])  # a positive whose box does not overlap its label's
    own_weights = torch.rand(len(own), generator=g, dtype=torch.float64)
    t, w = torch.zeros_like(x), weights[:, None] * ~off[..., None] * ~holes
    t.view(-1)[own[on]] = target[on]
    w.view(-1)[own[on]] = own_weights[on]
    return x, FocalTargets(off, holes, weights, own, on, target, own_weights), t, w


@pytest.mark.parametrize("exponent", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("kind", ["quality_focal", "varifocal"])
def test_one_pass_equals_elementwise_with_weights(kind, exponent, monkeypatch):
    monkeypatch.setattr(focal, "CACHED", 32)
    x, targets, t, w = _one_level()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    if kind == "varifocal":
        sums = varifocal_sums([ours], [targets], 0.6, exponent)
        expected = varifocal(theirs, t, 0.6, exponent)
    else:
        sums = quality_focal_sums([ours], [targets], exponent)
        expected = quality_focal(theirs, t, exponent)
    expected = (expected * w).sum((1, 2))
    torch.testing.assert_close(sums, expected)
    scale = torch.tensor([1.0, 0.5], dtype=torch.float64)
    (sums * scale).sum().backward()
    (expected * scale).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[w == 0] == 0).all()


@pytest.mark.parametrize("kind", ["quality_focal", "varifocal"])
def test_one_pass_gradcheck(kind):
    x, targets, _, _ = _one_level(rows=6)

    def total(x):
        if kind == "varifocal":
            return varifocal_sums([x], [targets], 0.75, 2.0)
        return quality_focal_sums([x], [targets], 2.0)

    assert torch.autograd.gradcheck(total, (x.requires_grad_(),))


def test_distribution_focal_is_equation_6():
    logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0.0, 0.25, 3.0, 6.9, 7.5], dtype=torch.float64)
    s = logits.softmax(1)
    expected = [
        -((i + 1 - v) * s[k, i].log() + (v - i) * s[k, i + 1].log())
        for k, v in enumerate(y.tolist())
        for i in [int(v)]
    ]
    torch.testing.assert_close(distribution_focal(logits, y), torch.stack(expected))


def test_distribution_focal_is_least_where_the_two_places_beside_have_all():
    y = torch.tensor([2.3])
    logits = torch.full((1, 9), -30.0)
    logits[0, 2], logits[0, 3] = torch.tensor([0.7, 0.3]).log()
    best = distribution_focal(logits, y)
    places = torch.arange(9.0)
    assert float((logits.softmax(1) * places).sum()) == pytest.approx(2.3, abs=1e-6)
    for shift in (-0.2, 0.2):
        other = logits.clone()
        other[0, 2] += shift
        assert distribution_focal(other, y) > best


def test_distances_beyond_the_ends_are_learned_as_the_ends():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    ends = distribution_focal(logits, torch.tensor([0.0, 3.99, 3.99]))
    torch.testing.assert_close(distribution_focal(logits, torch.tensor([-7.0, 4.0, 99.0])), ends)


def test_gradient_of_distribution_focal():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 9, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.rand(6, 4, generator=g, dtype=torch.float64) * 10 - 1
    assert torch.autograd.gradcheck(lambda x: distribution_focal(x, y), (logits,))
