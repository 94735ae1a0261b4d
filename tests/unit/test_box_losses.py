"""Box losses against torch's and torchvision's."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import (
    box_iou,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from detmtl.losses.boxes import (
    EPSILON,
    ciou,
    diou,
    giou,
    l1,
    paired_iou,
    shape_distance,
    smooth_l1,
)


def _boxes(n, seed):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g, dtype=torch.float64) * 20
    side = torch.rand(n, 2, generator=g, dtype=torch.float64) * 15 + 0.5
    return torch.cat([corner, corner + side], 1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (giou, generalized_box_iou_loss),
        (diou, distance_box_iou_loss),
        (ciou, complete_box_iou_loss),
    ],
)
def test_losses_of_boxes_equal_torchvisions(ours, theirs):
    a, b = _boxes(200, 0).requires_grad_(), _boxes(200, 1)
    loss, expected = ours(a, b), theirs(a, b)
    # torchvision adds its epsilon to the diagonal, and to the ratio's divisor, in other places
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), a)[0] for x in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_paired_iou_is_the_diagonal_of_all_pairs():
    a, b = _boxes(50, 0), _boxes(50, 1)
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diagonal(), rtol=1e-6, atol=1e-9)
    assert paired_iou(a[:1], a[:1] + 100) == 0 and paired_iou(a, a).min() > 1 - 1e-6


def test_diou_and_ciou_tell_apart_what_giou_takes_for_the_same():
    """Boxes inside the target: GIoU is their IoU alone, wherever they are, whatever their shape."""
    target = torch.tensor([[0.0, 0, 10, 10]])
    middle, corner, long = (
        torch.tensor([x]) for x in ([3.0, 3, 7, 7], [0.0, 0, 4, 4], [1.0, 4, 9, 6])
    )
    assert giou(middle, target) == giou(corner, target) == giou(long, target)
    assert diou(middle, target) == diou(long, target) < diou(corner, target)
    assert ciou(middle, target) == diou(middle, target) and ciou(long, target) > diou(long, target)


def test_giou_of_equal_and_of_distant_boxes():
    box = torch.tensor([[0.0, 0, 1, 1]])
    assert giou(box, box) == pytest.approx(0, abs=1e-6)
    assert giou(box, box + 1000) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("of_boxes", [giou, diou, ciou])
def test_loss_of_boxes_without_area_is_finite(of_boxes):
    point = torch.zeros(1, 4, requires_grad=True)
    loss = of_boxes(point, torch.zeros(1, 4)).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(point.grad).all()


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_equals_torchs(beta):
    a, b = _boxes(50, 0) / 20, _boxes(50, 1) / 20
    expected = F.smooth_l1_loss(a, b, beta=beta, reduction="none").sum(1)
    torch.testing.assert_close(smooth_l1(a, b, beta), expected)
    if beta == 0:
        torch.testing.assert_close(l1(a, b), expected)


@pytest.mark.parametrize("loss", [giou, diou, shape_distance, paired_iou, l1, smooth_l1])
def test_gradient(loss):
    a, b = _boxes(12, 0).requires_grad_(), _boxes(12, 1)
    assert torch.autograd.gradcheck(lambda a: loss(a, b), (a,))


def test_gradient_of_ciou_with_the_weight_of_the_shape_held():
    a, b = _boxes(12, 0).requires_grad_(), _boxes(12, 1)
    shape = shape_distance(a, b).detach()
    weight = shape / (1 - paired_iou(a, b).detach() + shape + EPSILON)

    def held(a):
        return diou(a, b) + weight * shape_distance(a, b)

    assert torch.autograd.gradcheck(held, (a,))
    grads = [torch.autograd.grad(loss.sum(), a)[0] for loss in (held(a), ciou(a, b))]
    torch.testing.assert_close(*grads)
