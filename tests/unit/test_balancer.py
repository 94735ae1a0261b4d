"""Each balancer against hand-computed values, and what is checked of their settings."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from detmtl.balancing import from_torchjd
from detmtl.balancing.balancers import AnyBalancer
from detmtl.balancing.gradients import gram
from detmtl.balancing.losses import MeanLoss
from detmtl.balancing.pcgrad import orders, projected
from detmtl.structures.errors import InputError


def terms(w):
    return {"boxes": {"class": 3 * w, "box": 5 * w}, "tags": {"class": 7 * w}}


def build(tasks=("boxes", "tags"), **settings):
    return TypeAdapter(AnyBalancer).validate_python(settings).build(list(tasks))


def values(**losses):
    """Returns terms that say nothing but values, on a weight of 1 each."""
    weights = {name: nn.Parameter(torch.tensor(1.0)) for name in losses}
    return weights, {name: {"x": v * weights[name]} for name, v in losses.items()}


def factors(balancer, **losses):
    """Returns the weight that each task's loss is given."""
    weights, given = values(**losses)
    balancer.backward(given)
    return [float(w.grad) / losses[name] for name, w in weights.items()]


@pytest.mark.parametrize(
    ("weights", "gradient"),
    [
        ({}, 15),
        ({"boxes/box": 2.0}, 20),
        ({"boxes": 0.5}, 11),
        ({"boxes": 0.5, "boxes/box": 2.0}, 13.5),
        ({"tags": 0.0}, 8),
    ],
)
def test_fixed_weights(weights, gradient):
    w = nn.Parameter(torch.tensor(2.0))
    total = build(weights=weights).backward(terms(w))
    assert float(w.grad) == pytest.approx(gradient)
    assert float(total) == pytest.approx(2 * gradient)


def test_unknown_task_is_told_at_once():
    with pytest.raises(InputError, match="'bxes/box' names no task; the tasks are boxes"):
        build(["boxes"], weights={"bxes/box": 1.0})


def test_unknown_term_is_told_when_its_task_first_speaks():
    w = nn.Parameter(torch.tensor(2.0))
    balancer = build(weights={"tags/clas": 1.0})
    balancer.backward({"boxes": {"box": w}, "tags": {}})
    with pytest.raises(InputError, match="'tags/clas' names no loss term; there are tags/class"):
        balancer.backward(terms(w))


def test_unknown_term_of_a_task_that_names_its_terms_is_told_without_any():
    settings = TypeAdapter(AnyBalancer).validate_python(
        {"weights": {"boxes/bx": 1.0, "boxes": 1.0, "tags/clas": 1.0}}
    )
    assert settings.misnamed(["boxes", "tags"], {"boxes": ("class", "box")}) == [
        "balancing.weights: 'boxes/bx' names no loss term; there are boxes/class, boxes/box"
    ]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_checked(weight):
    with pytest.raises(ValidationError):
        build(weights={"boxes": weight})


@pytest.mark.parametrize("kind", ["famo", "geometric"])
def test_weights_that_would_do_nothing_are_refused(kind):
    with pytest.raises(InputError, match=f"'tags' would change nothing: {kind} looks at"):
        build(kind=kind, weights={"tags": 2.0})
    assert build(kind=kind, weights={"boxes/box": 2.0})


def test_unknown_kind_lists_the_known():
    with pytest.raises(ValidationError, match="'uncertainty', 'dwa'"):
        build(kind="uncertanty")


def test_initial_scale_is_the_mean_of_the_first_losses():
    balancer = build(kind="fixed", scale="initial", weights={"boxes": 3.0})
    first = factors(balancer, boxes=4.0, tags=0.5)
    # a weight counts after the scale
    assert first == pytest.approx([3 / 4, 1 / 0.5])
    assert factors(balancer, boxes=2.0, tags=0.5) == pytest.approx([3 / 3, 1 / 0.5])
    for _ in range(18):
        factors(balancer, boxes=3.0, tags=0.5)
    assert factors(balancer, boxes=30.0, tags=9.0) == pytest.approx([3 / 3, 1 / 0.5])


def test_running_scale_follows():
    balancer = build(kind="fixed", scale="running")
    for _ in range(3):
        factors(balancer, boxes=1.0, tags=1.0)
    for _ in range(300):
        found = factors(balancer, boxes=5.0, tags=1e-3)
    # what is left of the three first ones: .99 ** 300 of .99 ** 0 + .99 ** 1 + .99 ** 2
    old, new = 0.99**300 * (1 - 0.99**3) / 0.01, (1 - 0.99**300) / 0.01
    means = [(old + new * loss) / (old + new) for loss in (5.0, 1e-3)]
    assert found == pytest.approx([1 / mean for mean in means], rel=1e-4)
    _, given = values(boxes=7.0, tags=1.0)
    del given["tags"]["x"]
    balancer.backward(given)
    assert factors(balancer, boxes=5.0, tags=1e-3)[1] == pytest.approx(found[1], rel=0.02)


def test_mean_of_the_first_losses_leaves_out_silence_and_nan():
    mean, yes = MeanLoss(2, "initial"), torch.tensor([True, True])
    mean(torch.tensor([2.0, 5.0]), yes)
    mean(torch.tensor([4.0, float("nan")]), yes)
    found = mean(torch.tensor([9.0, 7.0]), torch.tensor([False, True]))
    assert found.tolist() == [3, 6]


def test_uncertainty_has_kendalls_gradients():
    balancer = build(kind="uncertainty", scale="none")
    s = torch.tensor([0.3, -0.7])
    balancer.log_variances.data.copy_(s)
    found = factors(balancer, boxes=4.0, tags=0.5)
    assert found == pytest.approx(torch.exp(-s).tolist())
    losses = torch.tensor([4.0, 0.5])
    expected = -torch.exp(-s) * losses + 0.5
    torch.testing.assert_close(balancer.log_variances.grad, expected)


def test_uncertainty_of_a_silent_task_has_no_gradient():
    balancer = build(kind="uncertainty")
    _, given = values(boxes=4.0, tags=0.5)
    balancer.backward({"boxes": given["boxes"], "tags": {}})
    assert balancer.log_variances.grad[1] == 0 != balancer.log_variances.grad[0]


def test_uncertainty_settles_where_every_weighted_loss_is_a_half():
    balancer = build(kind="uncertainty", scale="none")
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.1)
    for _ in range(150):
        found = factors(balancer, boxes=4.0, tags=0.1)
        optimizer.step()
        optimizer.zero_grad()
    assert [found[0] * 4.0, found[1] * 0.1] == pytest.approx([0.5, 0.5], rel=1e-2)


def test_uncertainty_leaves_the_weight_of_a_task_as_it_is():
    balancer = build(kind="uncertainty", scale="none", weights={"boxes": 3.0, "tags/x": 2.0})
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.1)
    for _ in range(150):
        found = factors(balancer, boxes=4.0, tags=0.1)
        optimizer.step()
        optimizer.zero_grad()
    assert [found[0] * 4.0, found[1] * 0.1] == pytest.approx([3 * 0.5, 0.5], rel=1e-2)


def test_dwa_weighs_by_the_rate_of_the_last_two_windows():
    balancer = build(kind="dwa", scale="none", window=2, temperature=2.0)
    for boxes, tags in [(4, 1), (4, 1)]:
        assert factors(balancer, boxes=float(boxes), tags=float(tags)) == pytest.approx([1, 1])
    for boxes, tags in [(1, 1), (3, 1)]:  # means 4 -> 2, 1 -> 1
        assert factors(balancer, boxes=float(boxes), tags=float(tags)) == pytest.approx([1, 1])
    a, b = math.exp(0.5 / 2), math.exp(1 / 2)
    expected = [2 * a / (a + b), 2 * b / (a + b)]
    assert factors(balancer, boxes=9.0, tags=9.0) == pytest.approx(expected)


def test_dwa_of_a_window_of_silence_keeps_the_rate():
    balancer = build(kind="dwa", scale="none", window=1)
    for boxes, tags in [(4.0, 1.0), (2.0, 1.0)]:
        factors(balancer, boxes=boxes, tags=tags)
    before = balancer.weights()
    _, given = values(boxes=1.0, tags=1.0)
    balancer.backward({"boxes": {}, "tags": given["tags"]})
    assert torch.equal(balancer.weights(), before)


def test_geometric_is_the_gradient_of_the_geometric_mean():
    w = torch.tensor([3.0, 0.2, 7.0], requires_grad=True)
    (3 * w.prod() ** (1 / 3)).backward()
    balancer = build(["a", "b", "c"], kind="geometric", scale="none")
    found = factors(balancer, a=3.0, b=0.2, c=7.0)
    assert found == pytest.approx(w.grad.tolist())


def test_geometric_mean_is_of_those_that_speak():
    weights, given = values(boxes=3.0, tags=7.0)
    build(kind="geometric", scale="none").backward({"boxes": given["boxes"], "tags": {}})
    assert float(weights["boxes"].grad) == pytest.approx(3)


def test_famo_follows_algorithm_1():
    balancer = build(kind="famo", scale="none", rate=0.1, decay=0.01)
    first = factors(balancer, boxes=4.0, tags=0.5)
    # equal weights of the logarithms, which add up to 2
    parts = [0.5 / 4, 0.5 / 0.5]
    assert first == pytest.approx([2 * p / sum(parts) for p in parts])
    logits = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1, weight_decay=0.01)
    before = torch.tensor([4.0, 0.5])
    for pair in ((1.0, 0.4), (1.5, 0.3), (0.7, 0.31)):
        adam.zero_grad()
        now = torch.tensor(pair)
        (torch.softmax(logits, 0) * (before.log() - now.log())).sum().backward()
        adam.step()
        found = factors(balancer, boxes=pair[0], tags=pair[1])
        moved = logits.detach()
        torch.testing.assert_close(balancer.logits, moved)
        parts = [float(z) / loss for z, loss in zip(moved.softmax(0), pair, strict=True)]
        assert found == pytest.approx([2 * p / sum(parts) for p in parts], rel=1e-5)
        before = now
    assert balancer.logits[1] > balancer.logits[0]  # what fell less counts more


def test_famo_takes_one_step_for_an_update_of_several_batches():
    """By the mean logarithm of what each task said in them; within one nothing has changed."""
    whole, parted = build(kind="famo", scale="none"), build(kind="famo", scale="none")
    updates = [[(4.0, 0.5), (1.0, 2.0)], [(1.0, 3.0), (2.0, None)], [(0.5, 0.2), (0.1, 4.0)]]
    for update in updates:
        logs = [[math.log(x) for x in of if x is not None] for of in zip(*update, strict=True)]
        boxes, tags = [math.exp(sum(of) / len(of)) for of in logs]
        factors(whole, boxes=boxes, tags=tags)
        for boxes, tags in update:
            before = parted.logits.clone(), parted.steps.clone()
            _, given = values(boxes=boxes, tags=tags or 1.0)
            parted.backward(given if tags else {**given, "tags": {}}, share=0.5)
            if (boxes, tags) == update[0]:
                assert torch.equal(parted.logits, before[0])
        torch.testing.assert_close(parted.logits, whole.logits)
    assert parted.steps.tolist() == [2, 2] and parted.logits.any()
    assert {*parted.state_dict()} == {*whole.state_dict()} and "sums" not in parted.state_dict()


def test_famo_gives_weight_to_a_task_that_lags():
    balancer = build(kind="famo")
    g = torch.Generator().manual_seed(0)
    for step in range(300):
        noise = (0.1 * torch.randn(2, generator=g)).exp().tolist()
        factors(balancer, boxes=100 ** (1 - step / 300) * noise[0], tags=noise[1])
    boxes, tags = balancer.logits.softmax(0).tolist()
    assert tags > 2 * boxes


def test_famo_learns_nothing_of_a_task_that_was_silent():
    balancer = build(kind="famo", scale="none")
    _, given = values(boxes=3.0, tags=7.0)
    balancer.backward(given)
    _, given = values(boxes=1.0, tags=1.0)
    balancer.backward({"boxes": given["boxes"], "tags": {}})
    assert not balancer.logits.any()  # one alone cannot be better than the others
    balancer.logits.copy_(torch.tensor([1.0, -1.0]))
    _, given = values(boxes=1.0, tags=1.0)
    balancer.backward({"boxes": given["boxes"], "tags": {}})
    assert balancer.logits.tolist() == [1, -1] and not balancer.steps.any()


def pulls(*rows, losses=None):
    """Returns a trunk of 2 and terms whose gradients on it are `rows`."""
    trunk = nn.Parameter(torch.zeros(len(rows[0])))
    given = {}
    for i, (name, row) in enumerate(zip("abc", rows, strict=False)):
        value = 1.0 if losses is None else losses[i]
        given[name] = {"x": (trunk * torch.tensor(row)).sum() + value}
    return trunk, given


def test_gradnorm_follows_algorithm_1():
    balancer = build(["a", "b"], kind="gradnorm", scale="none", alpha=1.0, rate=0.1)
    trunk, given = pulls([3.0, 0.0], [0.0, 1.0])
    balancer.attach([trunk], [])
    balancer.backward(given)
    assert trunk.grad.tolist() == [3, 1]
    # norms 3 and 1, mean 2: the first is too strong, the second too weak; steps in units of 2
    moved = torch.tensor([1 - 0.1 * 3 / 2, 1 + 0.1 * 1 / 2])
    torch.testing.assert_close(balancer.weights, moved * 2 / moved.sum())


def test_gradnorm_lets_a_task_that_lags_pull_harder():
    balancer = build(["a", "b"], kind="gradnorm", scale="none")
    trunk, given = pulls([1.0, 0.0], [0.0, 1.0], losses=[4.0, 4.0])
    balancer.attach([trunk], [])
    balancer.backward(given)
    assert balancer.weights.tolist() == [1, 1]
    trunk, given = pulls([1.0, 0.0], [0.0, 1.0], losses=[1.0, 4.0])
    balancer.attach([trunk], [])
    for _ in range(5):
        balancer.backward({k: dict(v) for k, v in pulls_again(trunk, [1.0, 4.0]).items()})
    assert balancer.weights[1] > 1 > balancer.weights[0]


def pulls_again(trunk, losses):
    return {"a": {"x": trunk[0] + losses[0]}, "b": {"x": trunk[1] + losses[1]}}


def test_gradnorm_brings_norms_together():
    balancer = build(["a", "b"], kind="gradnorm", scale="none", alpha=0.0)
    trunk = nn.Parameter(torch.zeros(2))
    balancer.attach([trunk], [])
    for _ in range(300):
        trunk.grad = None
        balancer.backward({"a": {"x": 4 * trunk[0] + 1}, "b": {"x": trunk[1] + 1}})
    assert trunk.grad.tolist() == pytest.approx([1.6, 1.6], rel=0.1)  # weights .4 and 1.6


@pytest.mark.parametrize("of_b", [1.0, 3.0, 0.0])
def test_gradnorm_leaves_the_weight_of_a_task_as_it_is(of_b):
    balancer = build(["a", "b"], kind="gradnorm", scale="none", alpha=0.0, weights={"b": of_b})
    trunk = nn.Parameter(torch.zeros(2))
    balancer.attach([trunk], [])
    for _ in range(300):
        trunk.grad = None
        balancer.backward({"a": {"x": 4 * trunk[0] + 1}, "b": {"x": trunk[1] + 1}})
    pull_of_a, pull_of_b = trunk.grad.tolist()
    if of_b:
        assert pull_of_b / pull_of_a == pytest.approx(of_b, rel=0.15)
        assert balancer.weights.tolist() == pytest.approx([0.4, 1.6], rel=0.1)
    else:
        assert (pull_of_a, pull_of_b) == (4, 0) and balancer.weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [1, 1]),  # no conflict: the sum
        ([[1.0, 0.0], [1.0, 1.0]], [2, 1]),
        # g1 = (1, 0), g2 = (-1, 1): g1' = g1 + g2 / 2 = (.5, .5); g2' = g2 + g1 = (0, 1)
        ([[1.0, 0.0], [-1.0, 1.0]], [0.5, 1.5]),
    ],
)
def test_pcgrad_by_hand(rows, expected):
    trunk, given = pulls(*rows)
    balancer = build(["a", "b"], kind="pcgrad", scale="none")
    balancer.attach([trunk], [])
    balancer.backward(given)
    assert trunk.grad.tolist() == pytest.approx(expected)


def test_pcgrad_equals_projecting_the_gradients_themselves():
    torch.manual_seed(0)
    rows = torch.randn(4, 6, dtype=torch.float64)
    rows[3] = -rows[:3].sum(0) + 0.1 * rows[3]
    order = orders(torch.tensor(5.0, dtype=torch.float64), 4)
    expected = torch.zeros(6, dtype=torch.float64)
    for i in range(4):
        g = rows[i].clone()
        for j in order[i].tolist():
            if j != i and g @ rows[j] < 0:
                g -= (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        expected += g
    torch.testing.assert_close(projected(gram(rows), order) @ rows, expected)


def test_orders_are_permutations_that_change():
    found = [orders(torch.tensor(float(n), dtype=torch.float64), 4) for n in range(200)]
    assert all(torch.equal(o.sort(1).values, torch.arange(4).expand(4, 4)) for o in found)
    first = torch.stack([o[:, 0] for o in found]).flatten()
    counts = torch.bincount(first, minlength=4)
    assert counts.min() > 150 and counts.sum() == 800  # 200 each by chance


def test_torchjd_upgrad_by_hand():
    pytest.importorskip("torchjd")
    # the same two gradients as above: UPGrad projects each on the cone that harms neither
    trunk, given = pulls([1.0, 0.0], [-1.0, 1.0])
    balancer = build(["a", "b"], kind="torchjd", scale="none")
    balancer.attach([trunk], [])
    balancer.backward(given)
    assert trunk.grad.tolist() == pytest.approx([0.5, 1.5], rel=1e-3)


@pytest.mark.parametrize(
    "method", ["upgrad", "dualproj", "mgda", "imtl_g", "aligned_mtl", "cagrad"]
)
def test_torchjd_equals_its_own_aggregators(method):
    aggregation = pytest.importorskip("torchjd.aggregation")
    torch.manual_seed(0)
    rows = torch.randn(3, 5)
    rows[2] += -2 * rows[0] + 0.3 * rows[1]
    kinds = {
        "upgrad": aggregation.UPGrad,
        "dualproj": aggregation.DualProj,
        "mgda": aggregation.MGDA,
        "imtl_g": aggregation.IMTLG,
        "aligned_mtl": aggregation.AlignedMTL,
        "cagrad": lambda: aggregation.CAGrad(c=0.4),
    }
    trunk, given = pulls(*rows.tolist())
    balancer = build(["a", "b", "c"], kind="torchjd", scale="none", method=method)
    balancer.attach([trunk], [])
    balancer.backward(given)
    torch.testing.assert_close(trunk.grad, 3 * kinds[method]()(rows), rtol=2e-2, atol=2e-3)


def test_torchjd_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchjd", None)
    with pytest.raises(
        InputError, match=r"balancing.method: mgda.*pip install 'detmtl\[torchjd\]'"
    ):
        from_torchjd.TorchJdSettings(kind="torchjd", method="mgda").build(["a"])


@pytest.mark.parametrize("kind", ["pcgrad", "gradnorm", "famo", "geometric", "dwa", "uncertainty"])
def test_methods_go_down_a_bowl_to_where_tasks_agree(kind):
    """Two tasks whose optima differ in the first coordinate and agree in the second."""
    x = nn.Parameter(torch.tensor([0.3, 3.0]))
    balancer = build(["a", "b"], kind=kind)
    balancer.attach([x], [])
    optimizer = torch.optim.Adam([x, *balancer.parameters()], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        a = (x[0] - 1).square() + (x[1] - 2).square() + 0.1
        b = 5 * (x[0] + 1).square() + (x[1] - 2).square() + 0.1
        balancer.backward({"a": {"x": a}, "b": {"x": b}})
        optimizer.step()
    first, second = x.tolist()
    assert abs(second - 2) < 0.1 and -1.1 < first < 1.1
