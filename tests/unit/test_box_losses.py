"""Box losses against torch's and torchvision's."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detmtl.losses.boxes import giou, l1, smooth_l1


def _boxes(n, seed):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g, dtype=torch.float64) * 20
    side = torch.rand(n, 2, generator=g, dtype=torch.float64) * 15 + 0.5
    return torch.cat([corner, corner + side], 1)


def test_giou_equals_torchvisions():
    a, b = _boxes(200, 0), _boxes(200, 1)
    torch.testing.assert_close(giou(a, b), generalized_box_iou_loss(a, b))


def test_giou_of_equal_and_of_distant_boxes():
    box = torch.tensor([[0.0, 0, 1, 1]])
    assert giou(box, box) == pytest.approx(0, abs=1e-6)
    assert giou(box, box + 1000) == pytest.approx(2, abs=1e-3)


def test_giou_of_boxes_without_area_is_finite():
    point = torch.zeros(1, 4, requires_grad=True)
    loss = giou(point, torch.zeros(1, 4)).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(point.grad).all()


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_equals_torchs(beta):
    a, b = _boxes(50, 0) / 20, _boxes(50, 1) / 20
    expected = F.smooth_l1_loss(a, b, beta=beta, reduction="none").sum(1)
    torch.testing.assert_close(smooth_l1(a, b, beta), expected)
    if beta == 0:
        torch.testing.assert_close(l1(a, b), expected)


@pytest.mark.parametrize("loss", [giou, l1, smooth_l1])
def test_gradient(loss):
    a, b = _boxes(12, 0).requires_grad_(), _boxes(12, 1)
    assert torch.autograd.gradcheck(lambda a: loss(a, b), (a,))
