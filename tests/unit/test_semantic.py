"""The task of semantic maps, and its metric."""

import math

import pytest
import torch

from detmtl.metrics.dense import MapMetric
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.confusion import confusion
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, MapLabels
from detmtl.structures.sample import ImageInfo
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig, decode_map
from detmtl.tasks.tags import TagsConfig

NAMES = ["a", "b", "c"]


def _map(rows, coverage=(1, 1, 1)):
    return MapLabels(torch.tensor(rows, dtype=torch.uint8), None, torch.tensor(coverage).float())


def test_confusion_counts_pixels():
    truth = _map([[0, 0, 1, UNKNOWN], [2, OTHER, OTHER, 1]])
    found = _map([[0, 1, 1, 2], [2, OTHER, 2, UNKNOWN]])
    counts = confusion(truth, found)
    expected = [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert counts.tolist() == expected
    assert confusion(truth, found, unknown_counts=False).sum() == counts.sum() - 1


def test_a_class_that_nobody_looked_for_may_be_right_where_truth_says_other():
    truth = _map([[OTHER, OTHER]], coverage=(1, 0, 1))
    counts = confusion(truth, _map([[0, 1]]))
    assert counts[3].tolist() == [1, 0, 0, 0]


def test_maps_of_different_sizes_are_an_error():
    with pytest.raises(ValueError, match="cannot be compared"):
        confusion(_map([[0]]), _map([[0, 1]]))


def test_mean_iou_by_hand():
    metric = MapMetric(NAMES, {"first": ["a"], "seen": ["a", "b"], "never": ["c"]})
    infos = [ImageInfo(i, "", 1, 4, "s") for i in range(3)]
    truth = [_map([[0, 0, 0, 1]]), _map([[1, 1, UNKNOWN, UNKNOWN]]), None]
    found = [_map([[0, 0, 1, 1]]), _map([[1, 2, 2, 2]]), _map([[2, 2, 2, 2]])]
    metric.update(found, truth, infos)
    metric.update(found[:1], truth[:1], infos[:1])  # the same picture again counts once
    values = metric.compute()
    assert values["IoU/a"] == pytest.approx(2 / 3) and values["IoU/b"] == pytest.approx(2 / 4)
    assert values["mIoU"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["mIoU/first"] == values["IoU/a"] and values["mIoU/seen"] == values["mIoU"]
    assert math.isnan(values["mIoU/never"]) and math.isnan(values["IoU/c"])


def test_a_mean_without_truth_is_no_number():
    assert math.isnan(MapMetric(NAMES).compute()["mIoU"])


def test_decoding_brings_logits_to_the_pixels():
    logits = torch.full((3, 4, 4), -5.0)
    logits[0, :, :2], logits[1, :, 2:] = 5, 5
    classes, confidence = decode_map(logits, 8, 30, 27)
    assert classes.shape == confidence.shape == (30, 27) and classes.dtype == torch.uint8
    assert (classes[:, :16] == 0).all() and (classes[:, 16:] == 1).all()
    assert confidence[0, 0] > 0.99 and confidence[0, 15] < 0.8, "unsure at the edge"
    assert confidence.max() <= 1


def test_subsets_name_classes():
    config = SemanticConfig(subsets={"x": ["a", "d"]})
    with pytest.raises(InputError, match=r"subsets\.x: 'd' is no class of data\.maps"):
        config.build("m", [8], [8], 3, NAMES)


MODEL = ModelSettings(
    backbone=BackboneSettings(name="resnet18", pretrained=False), fpn=FPNSettings(channels=16)
)


def _model(**tasks):
    return build_model(MODEL, tasks, ["box"], other_names={"maps": NAMES, "tags": ["t", "u"]})


def test_heads_know_their_own_classes():
    model = _model(m=SemanticConfig(), t=TagsConfig())
    outputs = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert [x.shape for x in outputs["m"]] == [(1, 3, 8, 12)]
    assert [x.shape for x in outputs["t"]] == [(1, 2, 2, 3)]
    assert model.tasks["m"].levels == ("p3", "p4", "p5") and model.tasks["t"].levels == ("c5",)


@pytest.mark.parametrize(("at", "stride"), [("c3", 8), ("c4", 16), ("p4", 16)])
def test_a_task_hangs_where_it_is_told(at, stride):
    model = _model(m=SemanticConfig(at=at))
    outputs = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert outputs["m"][0].shape == (1, 3, 64 // stride, 96 // stride)
    outputs["m"][0].sum().backward()
    touched = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert ("fpn" in touched) == (at[0] == "p")


def test_a_level_that_there_is_not_is_told():
    with pytest.raises(
        InputError, match=r"tasks\.m\.at: there is no level p9; the network has fpn"
    ):
        _model(m=SemanticConfig(at="p9"))


@pytest.mark.parametrize(
    ("task", "at", "stride"), [(SemanticConfig, "p6", 64), (DepthConfig, "p7", 128)]
)
def test_a_level_that_is_too_coarse_is_told(task, at, stride):
    wanted = rf"tasks\.m\.at: {at} is at stride {stride}; .* up to 32, such as p3 or c4, or fpn"
    with pytest.raises(InputError, match=wanted):
        task(at=at).build("m", [8], [stride], 2, ["a", "b"])
