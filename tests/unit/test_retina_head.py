"""The head alone; on backbone and pyramid it is compared in test_torchvision_parity.py."""

import pytest
import torch
from torch import nn

from detmtl.models.retina_head import HeadSettings, RetinaHead

CLASSES = 5


def test_shapes_and_memory_format():
    head = HeadSettings(depth=2, width=24, norm="group").build(16, 3, CLASSES)
    features = [torch.randn(2, 16, s, s).to(memory_format=torch.channels_last) for s in (8, 4, 1)]
    logits, deltas = head(features)
    assert [tuple(x.shape) for x in logits] == [(2, 15, s, s) for s in (8, 4, 1)]
    assert [tuple(x.shape) for x in deltas] == [(2, 12, s, s) for s in (8, 4, 1)]
    assert all(
        x.is_contiguous(memory_format=torch.channels_last) for x in [*logits[:2], *deltas[:2]]
    )


@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_every_width_starts_alike(width, norm):
    torch.manual_seed(0)
    head = RetinaHead(width, 9, CLASSES, depth=4, norm=norm)
    logits, deltas = head([torch.randn(2, width, 16, 16)])
    assert 0.005 < logits[0].detach().sigmoid().mean() < 0.03
    assert 0.1 < logits[0].detach().std() < 1
    assert 0.1 < deltas[0].detach().std() < 1
    (logits[0].sum() + deltas[0].sum()).backward()
    first = head.class_tower[0][0].weight.grad
    assert first is not None and float(first.abs().mean()) > 0


def test_torchvision_initialization():
    torch.manual_seed(0)
    head = RetinaHead(64, 9, CLASSES, init="torchvision", prior=0.05)
    stds = [m.weight.std() for m in head.modules() if isinstance(m, nn.Conv2d)]
    torch.testing.assert_close(torch.stack(stds), torch.full((10,), 0.01), rtol=0.05, atol=0)
    torch.testing.assert_close(head.class_logits.bias.sigmoid(), torch.full((45,), 0.05))
    assert not head.box_deltas.bias.any()


def test_no_tower():
    head = RetinaHead(8, 1, 2, depth=0, width=64)
    assert head.class_logits.in_channels == 8
    assert head([torch.randn(1, 8, 3, 3)])[0][0].shape == (1, 2, 3, 3)


@pytest.mark.parametrize("box", ["deltas", "distribution"])
@pytest.mark.parametrize("quality", ["none", "iou", "centerness"])
def test_outputs_of_every_kind(box, quality):
    head = HeadSettings(depth=1, box=box, bins=8, quality=quality).build(16, 3, CLASSES)
    logits, boxes = head([torch.randn(2, 16, s, s) for s in (8, 4)])
    assert [x.shape[1] for x in logits] == [3 * CLASSES] * 2
    numbers = [3 * 4 * (9 if box == "distribution" else 1)] * 2 + [3] * 2 * (quality != "none")
    assert [x.shape[1] for x in boxes] == numbers
    if quality != "none":
        assert abs(float(boxes[2].detach().sigmoid().mean()) - 0.5) < 0.2


def test_switches_that_are_off_change_no_weight():
    torch.manual_seed(0)
    plain = RetinaHead(16, 3, CLASSES).state_dict()
    torch.manual_seed(0)
    off = HeadSettings(box="deltas", bins=8, quality="none").build(16, 3, CLASSES).state_dict()
    assert plain.keys() == off.keys() and all(torch.equal(plain[k], off[k]) for k in plain)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.filterwarnings("ignore:Encountering a list:torch.jit.TracerWarning")
@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize("quality", [False, True])
def test_traced_and_scripted_equal_eager_at_other_sizes(bins, quality):
    head = RetinaHead(8, 3, 2, depth=1, norm="group", bins=bins, quality=quality).eval()
    traced = torch.jit.trace(
        head, ([torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)],), strict=False
    )
    features = [torch.randn(2, 8, 6, 5), torch.randn(2, 8, 3, 3)]
    torch.testing.assert_close(traced(features), head(features))
    torch.testing.assert_close(torch.jit.script(head)(features), head(features))
