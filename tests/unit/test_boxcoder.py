"""The box coder against torchvision's."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from detmtl.models import boxcoder


@pytest.fixture
def anchors():
    corners = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 400
    sides = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) * 300 + 16
    return torch.cat([corners, corners + sides], 1)


@pytest.fixture
def boxes(anchors):
    return anchors.flip(0) + torch.tensor([1.5, -2.0, 4.0, 3.0])


def test_encode_and_decode_equal_torchvision(anchors, boxes):
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = boxcoder.encode(anchors, boxes)
    assert torch.equal(deltas, coder.encode_single(boxes, anchors))
    wild = torch.randn(500, 4, generator=torch.Generator().manual_seed(2)) * 3
    torch.testing.assert_close(
        boxcoder.decode(anchors, wild), coder.decode_single(wild, anchors), rtol=1e-6, atol=1e-3
    )


def test_round_trip(anchors, boxes):
    back = boxcoder.decode(anchors, boxcoder.encode(anchors, boxes))
    torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-3)


def test_broadcasts_over_pictures(anchors, boxes):
    batch = torch.stack([boxes, boxes.flip(0)])
    both = boxcoder.encode(anchors, batch)
    assert torch.equal(both[1], boxcoder.encode(anchors, boxes.flip(0)))
    assert torch.equal(boxcoder.decode(anchors, both)[0], boxcoder.decode(anchors, both[0]))


def test_growth_is_limited():
    box = boxcoder.decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 50, 50]]))
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492, 508, 508]]))


def test_padding_rows_stay_finite(anchors):
    padding = torch.zeros(1, 4, requires_grad=True)
    deltas = boxcoder.encode(anchors, padding)
    least = (boxcoder.SMALLEST_SIDE / (anchors[:, 2:] - anchors[:, :2])).log()
    torch.testing.assert_close(deltas[:, 2:], least)
    thin = torch.tensor([[8.0, 9, 8.25, 9.5]])  # longer than that
    torch.testing.assert_close(
        boxcoder.decode(anchors[:1], boxcoder.encode(anchors[:1], thin)), thin
    )
    deltas.sum().backward()
    assert deltas.isfinite().all() and padding.grad is not None and padding.grad.isfinite().all()


def test_half_precision_deltas_are_decoded_in_float32(anchors):
    deltas = torch.full((500, 4), 0.25)
    decoded = boxcoder.decode(anchors, deltas.bfloat16())
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, boxcoder.decode(anchors, deltas))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_scripted_equals_eager(anchors, boxes):
    encode, decode = torch.jit.script(boxcoder.encode), torch.jit.script(boxcoder.decode)
    deltas = encode(anchors, boxes)
    assert torch.equal(deltas, boxcoder.encode(anchors, boxes))
    assert torch.equal(decode(anchors, deltas), boxcoder.decode(anchors, deltas))


BY_HAND = [
    # anchor, box, deltas: shifts in anchor sides, logs of the ratios of sides
    ([0, 0, 10, 20], [5, 5, 15, 45], [0.5, 0.75, 0.0, math.log(2)]),
    ([-8, -8, 8, 8], [-8, -8, 8, 8], [0.0, 0.0, 0.0, 0.0]),
    ([100, 50, 140, 60], [90, 40, 100, 80], [-0.625, 0.5, math.log(0.25), math.log(4)]),
    ([0, 0, 32, 16], [15, 7, 17, 9], [0.0, 0.0, math.log(1 / 16), math.log(1 / 8)]),
]


@pytest.mark.parametrize(("anchor", "box", "deltas"), BY_HAND)
def test_by_hand(anchor, box, deltas):
    anchor, box = (torch.tensor([x], dtype=torch.float32) for x in (anchor, box))
    torch.testing.assert_close(boxcoder.encode(anchor, box), torch.tensor([deltas]))
    torch.testing.assert_close(boxcoder.decode(anchor, torch.tensor([deltas])), box)
