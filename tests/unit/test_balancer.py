import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detmtl.balancing.fixed import Fixed, FixedSettings
from detmtl.structures.errors import InputError


def terms(w):
    return {"boxes": {"class": 3 * w, "box": 5 * w}, "tags": {"class": 7 * w}}


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
def test_weights(weights, gradient):
    w = nn.Parameter(torch.tensor(2.0))
    total = FixedSettings(weights=weights).build(["boxes", "tags"]).backward(terms(w))
    assert float(w.grad) == pytest.approx(gradient)
    assert float(total) == pytest.approx(2 * gradient)


def test_unknown_task_is_told_at_once():
    with pytest.raises(InputError, match="'bxes/box' names no task; the tasks are boxes"):
        FixedSettings(weights={"bxes/box": 1.0}).build(["boxes"])


def test_unknown_term_is_told_when_its_task_first_speaks():
    w = nn.Parameter(torch.tensor(2.0))
    balancer = Fixed({"tags/clas": 1.0})
    balancer.backward({"boxes": {"box": w}, "tags": {}})
    with pytest.raises(InputError, match="'tags/clas' names no loss term; there are tags/class"):
        balancer.backward(terms(w))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_checked(weight):
    with pytest.raises(ValidationError):
        FixedSettings(weights={"boxes": weight})


def test_terms_without_graph_do_not_crash():
    assert float(Fixed({}).backward({"boxes": {"box": torch.tensor(2.0)}})) == 2
