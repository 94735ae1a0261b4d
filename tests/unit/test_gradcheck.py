"""Gradients of every loss of boxes and classes against finite differences, in float64."""

import pytest
import torch
from torch.autograd import gradcheck

from detmtl.losses.boxes import giou, l1, smooth_l1
from detmtl.losses.depth import depth_errors
from detmtl.losses.focal import FocalTargets, focal_sums, sigmoid_focal
from detmtl.models.boxcoder import decode
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.presets import PRESETS, detection

C, A = 2, 9


def _noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_focal(alpha, gamma):
    """Hard and soft targets; a soft target is never met exactly, where the loss has a corner."""
    logits = _noise(4, 5).mul(3).requires_grad_()
    targets = torch.tensor([0.0, 1, 0.3, 0.9], dtype=torch.float64)[:, None]
    assert gradcheck(lambda x: sigmoid_focal(x, targets, alpha, gamma), (logits,))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_focal_in_one_pass(gamma):
    logits = [_noise(2, rows, C, seed=rows).mul(2).requires_grad_() for rows in (4, 1)]
    targets = []
    for x in logits:
        off = torch.zeros(x.shape[:2], dtype=torch.bool)
        off[0, -1] = x.shape[1] > 1
        own = torch.tensor([0, x[0].numel() + 1])
        weights = torch.tensor([[0.7, 0.2], [1, 0]], dtype=torch.float64)
        targets.append(
            FocalTargets(
                off,
                None,
                weights,
                own,
                torch.tensor([True, True]),
                torch.tensor([1.0, 0.4], dtype=torch.float64),
                torch.tensor([0.5, 2.0], dtype=torch.float64),
            )
        )
    assert gradcheck(lambda *x: focal_sums(x, targets, 0.25, gamma).sum(), logits)


@pytest.mark.parametrize(
    "loss",
    [l1, lambda a, b: smooth_l1(a, b, 0.0), smooth_l1, lambda a, b: smooth_l1(a, b, 1.0)],
    ids=["l1", "0", "1/9", "1"],
)
def test_differences_of_deltas(loss):
    """On both sides of the place where the square turns into a line."""
    away = torch.tensor([-3.0, -1.4, -0.5, -0.2, -0.05, 0.05, 0.1, 0.3, 0.8, 1.2, 2, 5])
    target = _noise(3, 4)
    predicted = (target + away.double().view(3, 4)).requires_grad_()
    target.requires_grad_()
    assert gradcheck(loss, (predicted, target))


BOXES = {
    "overlapping": ([0.0, 0, 10, 8], [3, 2, 12, 13]),
    "inside": ([0.0, 0, 20, 20], [5, 6, 9, 12]),
    "around": ([5.0, 6, 9, 12], [0, 0, 20, 20]),
    "apart": ([0.0, 0, 4, 5], [9, 11, 15, 13]),
    "apart in x": ([0.0, 0, 4, 5], [9, 1, 15, 6]),
    "thin": ([0.0, 0, 0.01, 50], [0.005, 3, 4, 60]),
}


@pytest.mark.parametrize(("a", "b"), BOXES.values(), ids=BOXES)
def test_giou(a, b):
    a, b = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (a, b))
    assert gradcheck(giou, (a, b))


def test_giou_through_decoding():
    anchors = torch.tensor([[0.0, 0, 16, 16], [8, 8, 40, 24]], dtype=torch.float64)
    target = torch.tensor([[2.0, 1, 20, 14], [60, 70, 90, 95]], dtype=torch.float64)
    deltas = _noise(2, 4).mul(0.3).requires_grad_()
    assert gradcheck(lambda x: giou(decode(anchors, x), target), (deltas,))


def _check_whole_loss(config: DetectionConfig) -> None:
    task = config.build("boxes", [8], [32], C, list("ab"))
    boxes = torch.tensor([[4.0, 6, 40, 38], [30, 10, 90, 60]])
    labels = BoxLabels.of(boxes, torch.tensor([0, 1]), C)
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    samples = [
        Sample(image, {"boxes": x}, ImageInfo(i, "", 64, 96, "s"))
        for i, x in enumerate([labels, BoxLabels.empty(C)])
    ]
    batch = Batch.of(samples)
    outputs = [_noise(2, A * n, 2, 3, seed=n).mul(0.3).requires_grad_() for n in (C, 4)]

    def terms(*given):
        if task.density.steady is not None:
            task.density.steady.fill_(100)  # the moving average is no part of the gradient
        return tuple(task.loss(list(given), batch).values())

    assert gradcheck(terms, outputs, fast_mode=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_whole_loss_of_each_preset(preset):
    _check_whole_loss(detection(preset))


@pytest.mark.parametrize("normalizer", ["source", "batch", "image"])
def test_whole_loss_under_each_normalizer(normalizer):
    _check_whole_loss(DetectionConfig.model_validate({"loss": {"normalizer": normalizer}}))


DEPTHS = torch.tensor([[[-2.0, -0.7, -0.1], [0.05, 0.3, 1.1]], [[0.4, -0.2, 3.0], [0.8, 9.0, 9.0]]])
KNOWN = torch.ones(2, 2, 3, dtype=torch.bool)
KNOWN[1, 1, 1:] = False


@pytest.mark.parametrize("invariance", [0.0, 0.5, 1.0])
def test_silog_and_l1_of_depth(invariance):
    d = DEPTHS.double().requires_grad_()
    assert gradcheck(lambda x: depth_errors(x, KNOWN, "silog", invariance), (d,))
    assert gradcheck(lambda x: depth_errors(x, KNOWN, "l1"), (d,))


def test_berhu_of_depth_has_a_threshold_without_gradient():
    """The largest difference makes the threshold; held fast it makes no gradient by differences either."""
    d, largest = DEPTHS.double().requires_grad_(), torch.tensor(3.0, dtype=torch.float64)
    with_largest = torch.cat([KNOWN, torch.ones(1, 2, 3, dtype=torch.bool)])

    def held(x):
        more = largest.expand(1, 2, 3)
        return depth_errors(torch.cat([x.clamp(-3, 3), more]), with_largest, "berhu")[:2]

    inner = DEPTHS.double().clamp(max=2.5).requires_grad_()
    assert gradcheck(held, (inner,))
    depth_errors(d, KNOWN, "berhu").sum().backward()
    c = 0.2 * 3.0
    size = DEPTHS.double().abs()
    slope = torch.where(size <= c, 1.0, size / c) * DEPTHS.sign() * KNOWN
    torch.testing.assert_close(d.grad, slope / KNOWN.sum((1, 2)).view(2, 1, 1))
