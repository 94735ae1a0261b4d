"""The pyramid alone; its numbers are checked against torchvision's beside the head."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detmtl.models.fpn import FPN, FPNSettings


def features(height: int = 64, width: int = 96, pictures: int = 2) -> list[Tensor]:
    return [
        torch.randn(pictures, c, height // s, width // s).to(memory_format=torch.channels_last)
        for c, s in [(6, 8), (10, 16), (14, 32)]
    ]


@pytest.mark.parametrize("levels", [3, 4, 5, 6])
def test_levels_strides_and_memory_format(levels):
    fpn = FPNSettings(channels=16, levels=levels).build([6, 10, 14], [8, 16, 32])
    maps = fpn(features())
    assert fpn.strides == [8, 16, 32, 64, 128, 256][:levels]
    assert fpn.channels == [16] * levels
    for m, stride in zip(maps, fpn.strides, strict=True):
        assert m.shape == (2, 16, -(-64 // stride), -(-96 // stride))
        assert m.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("p6_from", ["p5", "c5"])
def test_equal_torchvision(p6_from):
    theirs = FeaturePyramidNetwork(
        [6, 10, 14], 16, extra_blocks=LastLevelP6P7(14 if p6_from == "c5" else 16, 16)
    )
    ours = FPN([6, 10, 14], 16, p6_from=p6_from)
    names = {
        "inner_blocks": "laterals",
        "layer_blocks": "outputs",
        "extra_blocks.p6": "extras.0.0",
        "extra_blocks.p7": "extras.1.0",
    }
    state = theirs.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    ours.load_state_dict(state)
    x = features(72, 104)  # sizes of which a level is not half the one before
    expected = theirs(dict(zip(["c3", "c4", "c5"], x, strict=True)))
    for a, b in zip(ours(x), expected.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_group_norm_and_initialization():
    fpn = FPN([6, 10, 14], 64, norm="group")
    norms = [m for m in fpn.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 6 and all(n.num_groups == 8 for n in norms)
    bound = (3 / (64 * 9)) ** 0.5  # kaiming_uniform_(a=1)
    weight = fpn.extras[0][0].weight
    assert (
        0.95 * bound < float(weight.detach().abs().max()) <= bound
        and not fpn.extras[0][0].bias.any()
    )


def test_coarse_levels_reach_the_finest():
    fpn = FPN([6, 10, 14], 16)
    x = [f.requires_grad_() for f in features()]
    fpn(x)[0].sum().backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.filterwarnings("ignore:Encountering a list:torch.jit.TracerWarning")
def test_traced_equals_eager_at_other_sizes():
    fpn = FPN([6, 10, 14], 16).eval()
    traced = torch.jit.trace(fpn, (features(64, 64, 1),), strict=False)
    x = features(96, 160)
    torch.testing.assert_close(traced(x), fpn(x))
