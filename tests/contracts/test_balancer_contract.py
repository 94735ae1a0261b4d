"""What every balancer promises, tried on each member of the union."""

from typing import get_args

import pytest
import torch
from torch import nn

from detmtl.balancing.balancer import Balancer
from detmtl.balancing.balancers import AnyBalancer

TASKS = ["boxes", "tags"]
# a union of one member is the member itself
SETTINGS = [a for a in get_args(AnyBalancer) if isinstance(a, type)] or [AnyBalancer]


@pytest.fixture(params=SETTINGS, ids=lambda s: s.__name__)
def balancer(request) -> Balancer:
    return request.param().build(TASKS)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


def terms(weight):
    return {
        "boxes": {"class": weight.square().sum(), "box": (weight - 1).abs().sum()},
        "tags": {"class": weight.sum().square()},
    }


def test_gives_gradients_and_a_detached_total(balancer, weight):
    total = balancer.backward(terms(weight))
    assert total.shape == () and not total.requires_grad and total.isfinite()
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


def test_gradients_add_up(balancer, weight):
    start = balancer.state_dict()
    balancer.backward(terms(weight))
    once = weight.grad.clone()
    balancer.load_state_dict(start)
    balancer.backward(terms(weight))
    torch.testing.assert_close(weight.grad, 2 * once)


def test_share_scales_the_gradient_and_not_the_total(balancer, weight):
    start = balancer.state_dict()
    whole = balancer.backward(terms(weight))
    gradient, weight.grad = weight.grad, None
    balancer.load_state_dict(start)
    assert torch.equal(balancer.backward(terms(weight), share=0.25), whole)
    torch.testing.assert_close(weight.grad, gradient * 0.25)


def test_scaler_scales_the_gradient_and_not_the_total(balancer, weight):
    start = balancer.state_dict()
    whole = balancer.backward(terms(weight))
    gradient, weight.grad = weight.grad, None
    balancer.load_state_dict(start)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert torch.equal(balancer.backward(terms(weight), scaler), whole)
    torch.testing.assert_close(weight.grad, gradient * 8)


@pytest.mark.parametrize("silent", [{}, {"boxes": {}, "tags": {}}])
def test_silence_leaves_gradients_alone(balancer, weight, silent):
    assert balancer.backward(silent) == 0
    assert weight.grad is None


def test_one_silent_task_is_legal(balancer, weight):
    balancer.backward({**terms(weight), "boxes": {}})
    assert weight.grad.any()


def test_state_travels(balancer, weight):
    balancer.backward(terms(weight))
    other = nn.Parameter(weight.detach().clone())
    copy = type(balancer).__new__(type(balancer))
    copy.__dict__.update(balancer.__dict__)
    copy.load_state_dict(balancer.state_dict())
    weight.grad = None
    assert torch.equal(balancer.backward(terms(weight)), copy.backward(terms(other)))
    assert torch.equal(weight.grad, other.grad)
