"""Every loss compiles under TorchScript and is then the same."""

import warnings

import pytest
import torch

from detmtl.losses import boxes, focal, quality
from detmtl.losses.dense import marginal_cross_entropy
from detmtl.losses.depth import depth_errors
from detmtl.losses.distribution import distribution_focal
from detmtl.structures.labels import OTHER, UNKNOWN


def _noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _boxes(seed):
    corner = 20 * torch.rand(6, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([corner, corner + 5 + seed], 1)


PAIR = (_boxes(1), _boxes(2))
SOFT = (_noise(4, 3), _noise(4, 3, seed=1).sigmoid())
CLASSES = torch.tensor([[[0, 1], [OTHER, UNKNOWN]], [[2, OTHER], [0, 0]]], dtype=torch.uint8)
COVERAGE = torch.tensor([[1.0, 0.5, 0], [1, 1, 1]])
KNOWN = _noise(2, 3, 4, seed=3) > -1
CASES = [
    *((loss, PAIR) for loss in (boxes.l1, boxes.smooth_l1, boxes.paired_iou)),
    *((loss, PAIR) for loss in (boxes.giou, boxes.diou, boxes.ciou, boxes.shape_distance)),
    *((loss, SOFT) for loss in (focal.sigmoid_focal, quality.quality_focal, quality.varifocal)),
    (distribution_focal, (_noise(5, 9), 8 * torch.rand(5))),
    *((depth_errors, (_noise(2, 3, 4), KNOWN, kind)) for kind in ("silog", "l1", "berhu")),
    (marginal_cross_entropy, (_noise(2, 3, 2, 2), CLASSES, COVERAGE)),
]


@pytest.mark.parametrize(("loss", "given"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_scripted_is_the_same(loss, given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that scripting will end some day
        scripted = torch.jit.script(loss)
    torch.testing.assert_close(scripted(*given), loss(*given))
