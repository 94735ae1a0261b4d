"""Each task's gradient on shared parameters, against hand-computed ones."""

import pytest
import torch
from torch import nn

from detmtl.balancing.gradients import task_gradients


@pytest.fixture
def shared() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0]]))]


def test_rows_are_the_tasks_gradients(shared):
    a, b = shared
    terms = {"x": {"one": a.sum(), "two": b.square().sum()}, "silent": {}, "y": {"one": -a[0]}}
    rows = task_gradients(terms, shared)
    assert rows.tolist() == [[1, 1, 6], [0, 0, 0], [-1, 0, 0]]
    assert a.grad is None and b.grad is None
    torch.stack([t for of in terms.values() for t in of.values()]).sum().backward()
    assert a.grad.tolist() == [0, 1]  # the graph was kept


def test_the_graph_is_freed_when_it_is_not_needed(shared):
    loss = (shared[0].square() * 2).sum()
    task_gradients({"x": {"one": loss}}, shared, keep_graph=False)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_loss_without_graph_has_no_gradient(shared):
    assert not task_gradients({"x": {"one": torch.tensor(2.0)}}, shared).any()


def test_channels_last_gradients_come_in_logical_order():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    factor = torch.randn(4, 3, 2, 2)
    rows = task_gradients({"x": {"one": (weight * factor).sum()}}, [weight])
    assert torch.equal(rows[0], factor.flatten())
