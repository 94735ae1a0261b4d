"""Boxes as distances from anchors."""

import pytest
import torch

from detmtl.models.boxcoder import decode
from detmtl.models.distances import centerness, decode_distances, encode_distances, expected
from detmtl.models.retina_head import HeadSettings
from detmtl.structures.boxes import iou

ANCHORS = torch.tensor([[0.0, 0, 32, 16], [8, 8, 24, 40]])
BOXES = torch.tensor([[4.0, 2, 60, 14], [10, 0, 20, 40]])


def test_there_and_back():
    places = encode_distances(ANCHORS, BOXES, 16, 2.0)
    torch.testing.assert_close(decode_distances(ANCHORS, places, 16, 2.0), BOXES)
    # 12 px left of the center, an eighth of 32 px a bin
    assert places[0].tolist() == [3.0, 3.0, 11.0, 3.0]


def test_mean_of_a_distribution():
    logits = torch.full((1, 4, 9), -40.0)
    logits[0, 0, 3] = 0
    logits[0, 1, [3, 5]] = 0
    logits[0, 2] = 0
    logits[0, 3, 8] = 0
    found = expected(logits.view(1, 36), 8)
    torch.testing.assert_close(found, torch.tensor([[3.0, 4, 4, 8]]))
    half = expected(logits.view(1, 36).bfloat16(), 8)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found)


def test_every_box_that_overlaps_an_anchor_by_half_is_within_reach():
    """So that a head of distributions can say every box that max-IoU matching gives it."""
    g = torch.Generator().manual_seed(0)
    anchor = torch.tensor([[0.0, 0, 20, 30]])
    shift = torch.randn(100_000, 4, generator=g) * torch.tensor([6.0, 9, 6, 9])
    shift[:, 2] += torch.tensor([0.0, 10, 20])[torch.arange(100_000) % 3]  # far to one side
    boxes = anchor + shift * torch.tensor([0.2, 0.2, 1, 0.2])
    near = boxes[iou(boxes, anchor)[:, 0] > 0.5]
    places = encode_distances(anchor, near, 8, 1.0) / 8  # in sides of the anchor
    assert len(near) > 1000 and places.min() >= 0 and 1.3 < places.max() <= 1.5


@pytest.mark.parametrize("width", [16, 256])
@pytest.mark.parametrize("reach", [1.0, 2.0, 4.0])
def test_a_head_of_distributions_starts_near_its_anchors(width, reach):
    torch.manual_seed(0)
    settings = HeadSettings(depth=1, box="distribution", reach=reach, bins=int(8 * reach))
    head = settings.build(width, 1, 3)
    _, boxes = head([torch.randn(1, width, 8, 8)])
    rows = boxes[0].permute(0, 2, 3, 1).reshape(64, -1).detach()
    places = expected(rows, settings.bins)
    anchors = torch.tensor([[0.0, 0, 32, 32]]).expand(64, 4)
    start = decode_distances(anchors, places, settings.bins, reach)
    assert iou(start.mean(0, keepdim=True), anchors[:1]) > 0.9
    assert iou(decode(anchors[:1], torch.zeros(1, 4)), anchors[:1]) == 1


def test_centerness_by_hand():
    anchors = torch.tensor([[4.0, 4, 6, 6], [2, 4, 4, 6], [2, 2, 4, 4], [19, 4, 21, 6]])
    box = torch.tensor([[0.0, 0, 10, 10]])
    expected_values = torch.tensor([1.0, (3 / 7) ** 0.5, 3 / 7, 0.0])
    torch.testing.assert_close(centerness(anchors, box), expected_values)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_scripted_equals_eager():
    logits = torch.randn(2, 4 * 17, generator=torch.Generator().manual_seed(0))
    places = expected(logits, 16)
    assert torch.equal(torch.jit.script(expected)(logits, 16), places)
    scripted = torch.jit.script(decode_distances)
    assert torch.equal(
        scripted(ANCHORS, places, 16, 2.0), decode_distances(ANCHORS, places, 16, 2.0)
    )
