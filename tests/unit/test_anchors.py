"""Anchors against torchvision's generator and the formulas of the papers."""

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

from detmtl.models.anchors import Anchors, AnchorSettings
from detmtl.structures.errors import InputError

STRIDES = [8, 16, 32, 64, 128]


def maps(height: int, width: int) -> list[torch.Tensor]:
    return [torch.zeros(2, 3, -(-height // s), -(-width // s)) for s in STRIDES]


@pytest.mark.parametrize(("height", "width"), [(320, 416), (512, 512), (96, 32), (800, 1344)])
def test_equal_torchvision(height, width):
    anchors = AnchorSettings(rounded=True, stride="measured").build(STRIDES)
    features = maps(height, width)
    images = ImageList(torch.zeros(2, 3, height, width), [(height, width)] * 2)
    expected = _default_anchorgen()(images, features)[0]
    assert torch.equal(torch.cat(anchors(features)), expected)
    assert torch.equal(anchors.flat(features), expected)


def test_default_shapes_and_places():
    anchors = AnchorSettings().build(STRIDES)
    level = anchors(maps(64, 96))[1].view(4, 6, 9, 4)
    sides = level[..., 2:] - level[..., :2]
    sizes = [64 * 2 ** (i / 3) for i in range(3)]
    expected = [(s / math.sqrt(r), s * math.sqrt(r)) for r in (0.5, 1, 2) for s in sizes]
    torch.testing.assert_close(sides, torch.tensor(expected).expand(4, 6, 9, 2))
    centers = (level[..., :2] + level[..., 2:]) / 2
    torch.testing.assert_close(centers[2, 5], torch.tensor([5 * 16.0, 2 * 16.0]).expand(9, 2))


def test_order_by_size_and_offset():
    anchors = AnchorSettings(sizes=[[10, 20]], ratios=[1.0, 4.0], order="size", offset=0.5).build(
        [8]
    )
    first = anchors([torch.zeros(1, 1, 1, 1)])[0]
    expected = torch.tensor(
        [[-1, -1, 9, 9], [1.5, -6, 6.5, 14], [-6, -6, 14, 14], [-1, -16, 9, 24]]
    )
    torch.testing.assert_close(first, expected)


def test_ratio_is_height_over_width():
    cell = AnchorSettings(octaves=1, ratios=[4.0]).build([8]).cell(0)[0]
    torch.testing.assert_close(cell, torch.tensor([-8.0, -32.0, 8.0, 32.0]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_scripted_equals_eager_and_survives_half():
    anchors = AnchorSettings(rounded=True, stride="measured").build(STRIDES)
    expected = anchors(maps(320, 416))  # something is kept before scripting
    scripted = torch.jit.script(anchors.bfloat16())
    for a, b in zip(scripted(maps(320, 416)), expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    assert torch.equal(scripted.cell(1), anchors.cell(1))


def test_kept_anchors_can_train_after_inference_mode():
    anchors = AnchorSettings().build(STRIDES)
    with torch.inference_mode():
        anchors(maps(64, 64))
    weight = torch.ones(1, requires_grad=True)
    (anchors(maps(64, 64))[0] * weight).sum().backward()


def test_keeps_few_sizes():
    anchors = AnchorSettings().build(STRIDES)
    assert anchors.flat(maps(32, 64)) is anchors.flat(maps(32, 64))
    for i in range(40):
        anchors(maps(32 * (i + 1), 32))
    assert len(anchors._kept) == Anchors.KEPT


def test_sizes_must_fit_the_levels():
    with pytest.raises(InputError, match="2 lists of sizes for 5 levels"):
        AnchorSettings(sizes=[[32], [64]]).build(STRIDES)
    with pytest.raises(InputError, match="same number"):
        AnchorSettings(sizes=[[32, 40], [64]]).build([8, 16])


def test_number_of_anchors():
    assert AnchorSettings().num_anchors == 9
    assert AnchorSettings(sizes=[[1, 2]], ratios=[1.0]).num_anchors == 2


BY_HAND = [
    # sides 32, 40 (32 * 2 ** (1/3) = 40.3, cut) and 50 (50.8, cut); a ratio of 1/2 makes of 32 a box of
    # 45.25 x 22.63, so corners at 22.63 and 11.31, rounded
    [-23, -11, 23, 11],
    [-28, -14, 28, 14],
    [-35, -18, 35, 18],
    [-16, -16, 16, 16],
    [-20, -20, 20, 20],
    [-25, -25, 25, 25],
    [-11, -23, 11, 23],
    [-14, -28, 14, 28],
    [-18, -35, 18, 35],
]


def test_torchvisions_anchors_by_hand():
    anchors = AnchorSettings(rounded=True, stride="measured").build(STRIDES)
    levels = anchors(maps(96, 224))
    by_hand = torch.tensor(BY_HAND, dtype=torch.float32)
    at = levels[0].view(12, 28, 9, 4)
    assert torch.equal(at[0, 0], by_hand)
    assert torch.equal(at[3, 5], by_hand + torch.tensor([40.0, 24, 40, 24]))
    # P7: 96 pixels on one row, 224 on two columns, which are 112 apart rather than 128
    assert torch.equal(
        levels[4].view(1, 2, 9, 4)[0, :, 3],
        torch.tensor([[-256.0, -256, 256, 256], [-144, -256, 368, 256]]),
    )


def test_variance_scales_deltas_both_ways():
    anchors = AnchorSettings(variance=(0.1, 0.1, 0.2, 0.2)).build([8])
    deltas = torch.tensor([[1.0, 2, 3, 4]])
    torch.testing.assert_close(anchors.units(deltas), torch.tensor([[0.1, 0.2, 0.6, 0.8]]))
    torch.testing.assert_close(anchors.targets(anchors.units(deltas)), deltas)
    assert anchors.units(deltas.bfloat16()).dtype == torch.float32
    plain = AnchorSettings().build([8])
    assert plain.units(deltas) is deltas and plain.targets(deltas) is deltas
