"""What every balancer promises, tried on each member of the union."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from detmtl.balancing.balancer import Balancer
from detmtl.balancing.balancers import BALANCERS, AnyBalancer
from detmtl.balancing.from_torchjd import Method, TorchJd

TASKS = ["boxes", "tags"]
CASES = [
    (settings, {"scale": scale})
    for settings in BALANCERS
    for scale in ("none", "initial", "running")
]
CASES += [(BALANCERS[-1], {"method": method}) for method in get_args(Method)]


class Net(nn.Module):
    """A trunk of 3 weights and a head of 2 for each task."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.heads = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor([0.5 + i, 1.5])) for i, name in enumerate(TASKS)}
        )

    def terms(self, *silent):
        x, heads = self.trunk, self.heads
        spoken = {
            "boxes": {
                "class": (x.square().sum() * heads["boxes"][0] - 1).square() / 9,
                "box": (x - 1).abs().sum() * heads["boxes"][1].square(),
            },
            "tags": {"class": (x.sum() * heads["tags"].sum() + 4).square()},
        }
        return {name: {} if name in silent else of for name, of in spoken.items()}


@pytest.fixture(
    params=CASES, ids=lambda c: f"{get_args(c[0].model_fields['kind'].annotation)[0]}-{c[1]}"
)
def settings(request):
    kind, changed = request.param
    if kind is BALANCERS[-1]:
        pytest.importorskip("torchjd")
    return kind(kind=get_args(kind.model_fields["kind"].annotation)[0], **changed)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def balancer(settings, net) -> Balancer:
    return attached(settings, net)


def attached(settings, net) -> Balancer:
    balancer = settings.build(TASKS)
    balancer.attach([net.trunk], list(net.heads.values()))
    return balancer


def state(module: nn.Module):
    return copy.deepcopy(module.state_dict())


def grads(net):
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def assert_grads(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_the_union_is_all_of_them():
    members = {get_args(a)[0] for a in get_args(get_args(AnyBalancer)[0])}
    assert members == set(BALANCERS)


def test_gives_gradients_and_a_detached_total(balancer, net):
    for _ in range(3):
        total = balancer.backward(net.terms())
    assert total.shape == () and not total.requires_grad and total.isfinite()
    for gradient in grads(net):
        assert gradient is not None and gradient.isfinite().all() and gradient.any()


def test_gradients_add_up(balancer, net):
    start = state(balancer)
    balancer.backward(net.terms())
    once = grads(net)
    balancer.load_state_dict(start)
    balancer.backward(net.terms())
    assert_grads(grads(net), [2 * g for g in once])


def test_share_scales_the_gradient_and_not_the_total(balancer, net):
    start = state(balancer)
    whole = balancer.backward(net.terms())
    once = grads(net)
    net.zero_grad()
    balancer.load_state_dict(start)
    assert torch.equal(balancer.backward(net.terms(), share=0.25), whole)
    assert_grads(grads(net), [g * 0.25 for g in once])


def test_scaler_scales_the_gradient_and_not_the_total(balancer, net):
    start = state(balancer)
    whole = balancer.backward(net.terms())
    once = grads(net)
    net.zero_grad()
    balancer.load_state_dict(start)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert torch.equal(balancer.backward(net.terms(), scaler), whole)
    assert_grads(grads(net), [g * 8 for g in once])


@pytest.mark.parametrize("silent", [{}, {"boxes": {}, "tags": {}}])
def test_silence_leaves_gradients_alone(balancer, net, silent):
    assert balancer.backward(silent) == 0
    balancer.backward(net.terms())
    before = grads(net)
    assert balancer.backward(silent) == 0
    assert_grads(grads(net), before)
    assert all(p.grad is None or not p.grad.isnan().any() for p in balancer.parameters())


def test_a_silent_task_is_legal_and_its_head_untouched(balancer, net):
    for silent in ("boxes", "tags"):
        net.zero_grad()
        total = balancer.backward(net.terms(silent))
        assert total.isfinite() and total > 0
        assert net.trunk.grad.isfinite().all() and net.trunk.grad.any()
        assert net.heads[silent].grad is None
    net.zero_grad()
    balancer.backward(net.terms())
    assert all(g.isfinite().all() and g.any() for g in grads(net))


def test_a_loss_of_zero_is_as_good_as_silence(settings, net):
    """No task can know in every case, without waiting, that nothing was to be learned."""
    found = []
    for zero in (False, True):
        balancer = attached(settings, net)
        for step in range(3):
            terms = net.terms(*(["tags"] if step else []))
            if zero and step:
                terms["tags"] = {"class": 0 * net.heads["tags"].sum() + 0 * net.trunk.sum()}
            net.zero_grad()
            balancer.backward(terms)
        found.append((net.trunk.grad, net.heads["boxes"].grad, state(balancer)))
        assert not zero or not net.heads["tags"].grad.any()
    (trunk, head, kept), (same_trunk, same_head, same_kept) = found
    torch.testing.assert_close(same_trunk, trunk)
    torch.testing.assert_close(same_head, head)
    torch.testing.assert_close(same_kept, kept)


def test_one_task_alone_is_the_plain_gradient_up_to_a_factor(settings, net):
    balancer = settings.build(["boxes"])
    balancer.attach([net.trunk], list(net.heads.values()))
    balancer.backward({"boxes": net.terms()["boxes"]})
    found = torch.cat([net.trunk.grad, net.heads["boxes"].grad])
    net.zero_grad()
    sum(net.terms()["boxes"].values()).backward()
    plain = torch.cat([net.trunk.grad, net.heads["boxes"].grad])
    torch.testing.assert_close(found / found.norm(), plain / plain.norm())


def test_state_travels_bit_for_bit(settings, net):
    """As stop and resume: state to a file and back into a new balancer."""
    one = attached(settings, net)
    for i in range(3):
        one.backward(net.terms(*TASKS[:i]))
        with torch.no_grad():
            net.trunk.mul_(0.9)
    other_net = copy.deepcopy(net)
    other = attached(settings, other_net)
    other.load_state_dict(state(one))
    net.zero_grad()
    other_net.zero_grad()
    for _ in range(2):
        a, b = one.backward(net.terms()), other.backward(other_net.terms())
        assert torch.equal(a, b)
        for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_trunk_parameter_that_no_task_reaches_keeps_no_gradient(settings, net):
    idle = nn.Parameter(torch.ones(2))
    balancer = settings.build(TASKS)
    balancer.attach([net.trunk, idle], list(net.heads.values()))
    balancer.backward(net.terms())
    assert idle.grad is None and net.trunk.grad.any()


def test_terms_without_graph_give_no_gradient(balancer, net):
    terms = {"boxes": {"class": torch.tensor(2.0)}, "tags": {}}
    assert balancer.backward(terms).isfinite()
    assert grads(net) == [None] * 3


def test_a_loss_that_is_not_finite_spoils_no_state(balancer, net):
    balancer.backward(net.terms())
    bad = net.terms()
    bad["tags"]["class"] = bad["tags"]["class"] * float("nan")
    balancer.backward(bad)
    assert all(b.isfinite().all() for b in balancer.buffers())
    net.zero_grad()
    balancer.backward(net.terms())
    assert all(g.isfinite().all() for g in grads(net))


def test_nothing_is_read_from_the_device_but_by_solvers(balancer, net, reads):
    balancer.backward(net.terms())
    reads.clear()
    balancer.backward(net.terms())
    balancer.backward(net.terms("boxes"))
    # torchjd's solvers run on the CPU: one copy of the inner products is what they cost
    assert bool(reads) == isinstance(balancer, TorchJd)
