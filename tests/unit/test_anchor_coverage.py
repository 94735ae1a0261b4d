"""Boxes that no anchor reaches, and anchors that would."""

from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coco_files import NAMES, annotation, coco_data, save_coco, save_picture
from rich.console import Console
from torchvision.ops import box_iou

from detmtl.cli import main
from detmtl.data.coco import CocoSource
from detmtl.data.fit import InputSettings
from detmtl.models.anchors import AnchorSettings
from detmtl.structures.classes import LabelSpace
from detmtl.tasks.anchor_coverage import (
    Boxes,
    CoverageRow,
    best_overlap,
    coverage,
    coverage_table,
    proposed,
    ratio_centers,
    reached_share,
)
from detmtl.tasks.detection import DetectionConfig
from detmtl.verbs.check import _print_coverage

STRIDES = [8, 16, 32]
SIZE = InputSettings(short=96, long=128)  # twice the pictures of coco_data


def _source(root, *boxes, ignored=()):
    data = coco_data()
    data["annotations"] = [
        annotation(i + 1, 10 * (1 + i % 3), 1, list(box)) for i, box in enumerate(boxes)
    ] + [annotation(900 + i, 10, 1, list(box), iscrowd=1) for i, box in enumerate(ignored)]
    save_coco(root, data, 3)
    settings = CocoSource(images="images", annotations="coco.json", covers=list(NAMES))
    return settings.load("here", root, LabelSpace.of(NAMES), root / "cache")


def _random_boxes(n, low, high, ratio, seed=0):
    """xywh boxes inside pictures of 64 x 48 px."""
    rng = np.random.default_rng(seed)
    side = rng.uniform(low, high, n)
    height, width = side * ratio**0.5, side / ratio**0.5
    x, y = rng.uniform(0, 64 - width), rng.uniform(0, 48 - height)
    return np.stack([x, y, width, height], axis=1).round(2).tolist()


def test_best_overlap_is_that_of_the_matrix_at_the_networks_size(tmp_path):
    source = _source(tmp_path, *_random_boxes(60, 2, 45, 1.0), ignored=[(0, 0, 9, 9)])
    boxes = Boxes.of(source, SIZE)
    settings = AnchorSettings()
    maps = [torch.zeros(1, 1, 96 // s, 128 // s) for s in STRIDES]
    twice = torch.from_numpy(np.array(source.annotations.boxes)) * 2
    twice = twice[np.asarray(source.annotations.ignore) == 0]
    assert len(boxes) == 60
    expected = box_iou(twice, settings.build(STRIDES).flat(maps)).amax(1)
    torch.testing.assert_close(
        best_overlap(boxes, settings, STRIDES), expected, rtol=1e-4, atol=1e-6
    )


def test_rows_count_by_size_in_the_file(tmp_path):
    source = _source(tmp_path, (1, 1, 2, 2), (1, 1, 30, 30), (0, 0, 40, 40), (0, 0, 64, 0.5))
    boxes = Boxes.of(source, SIZE)
    by_area = {4: 0.1, 900: 0.6, 1600: 0.7, 32: 0.05}
    rows = coverage(boxes, torch.tensor([by_area[round(x)] for x in boxes.areas.tolist()]), 0.5)
    found = [(r.name, r.boxes, r.unreached) for r in rows]
    assert found == [("small", 3, 2), ("medium", 1, 0), ("large", 0, 0), ("all", 4, 2)]
    assert rows[0].overlap == pytest.approx(0.1) and np.isnan(rows[2].overlap)


@pytest.mark.parametrize(("low", "high", "ratio"), [(4, 8, 1.0), (10, 20, 2.8), (5, 20, 0.3)])
def test_proposed_anchors_reach_more(tmp_path, low, high, ratio):
    boxes = Boxes.of(_source(tmp_path, *_random_boxes(80, low, high, ratio)), SIZE)
    now = AnchorSettings(base_scale=8, ratios=[1.0])
    then = proposed(boxes, now, STRIDES, 0.5)
    reached = [float((best_overlap(boxes, a, STRIDES) >= 0.5).float().mean()) for a in (now, then)]
    assert reached[1] > max(0.7, reached[0] + 0.1)
    assert then.ratios == [pytest.approx(ratio, rel=0.1)] and then.sizes is None
    assert then.offset == now.offset and then.num_anchors <= 3


def test_few_small_boxes_count_as_much_as_many_large_ones():
    small, large = CoverageRow("small", 20, 10, 0.5), CoverageRow("large", 980, 0, 0.8)
    whole = CoverageRow("all", 1000, 10, 0.8)
    assert reached_share([small, large, whole]) == pytest.approx((0.5 + 1 + 0.99) / 3)
    handful = CoverageRow("small", 9, 9, 0.1)  # too few to be heard
    assert reached_share([handful, large]) == 1 and reached_share([handful]) == 0


def test_ratios_are_clustered_by_their_logarithms():
    ratios = np.concatenate([np.full(50, 0.5), np.full(200, 1.0), np.full(50, 2.0)])
    assert ratio_centers(ratios, 3) == [0.5, 1.0, 2.0]
    assert ratio_centers(np.ones(5), 3) == [1.0]
    assert ratio_centers(np.array([0.5, 2.0]), 1) == [1.0]


def test_pictures_of_several_sizes_have_their_own_grids(tmp_path):
    data = coco_data()
    data["annotations"] = [
        annotation(1, 10, 1, [40, 30, 20, 15]),
        annotation(2, 20, 1, [2, 2, 9, 9]),
    ]
    save_coco(tmp_path, data, 3)
    data["images"][1] |= {"height": 30, "width": 90}
    save_picture(tmp_path / "images/1.png", 30, 90)
    (tmp_path / "other").mkdir()
    save_coco(tmp_path / "other", data, 0)
    settings = CocoSource(images="images", annotations="other/coco.json")
    source = settings.load("here", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache")
    boxes = Boxes.of(source, SIZE)
    assert boxes.shapes.tolist() == [[64, 128], [96, 128]] and boxes.shape.tolist() == [1, 0]
    torch.testing.assert_close(boxes.boxes[0], torch.tensor([80.0, 60, 120, 90]))
    torch.testing.assert_close(
        boxes.boxes[1], torch.tensor([2.0, 2, 11, 11]) * 128 / 90, rtol=0.02, atol=0
    )


def test_the_table_and_no_boxes(tmp_path):
    source = _source(tmp_path, *_random_boxes(30, 4, 8, 1.0))
    made = coverage_table(source, SIZE, AnchorSettings(base_scale=8), STRIDES, 0.5)
    assert made is not None
    console = Console(width=200, file=StringIO())
    console.print(made[0])
    text = console.file.getvalue()
    assert "96 x 128 px" in text and "small" in text and "100.0%" in text
    empty = _source(tmp_path / "none")
    assert coverage_table(empty, SIZE, AnchorSettings(), STRIDES, 0.5) is None


def test_check_prints_it(tmp_path, capsys):
    _source(tmp_path, *_random_boxes(30, 4, 8, 1.0))
    options = {"annotations": "coco.json", "images": "images", "cache": "cache"}
    status = main(
        ["check", *(x for name, at in options.items() for x in (f"--{name}", str(tmp_path / at)))]
    )
    out = capsys.readouterr().out
    assert status == 0 and "not reached" in out and "480 x 640" in out
    assert "proposed: anchors: {base_scale:" in out


def test_where_each_box_finds_its_own_threshold_none_is_told(tmp_path):
    """`matching.foreground` is not read by kind atss, so no box is short of it."""
    source, told = _source(tmp_path, *_random_boxes(30, 4, 8, 1.0)), {}
    for kind in ("max_iou", "atss"):
        run = SimpleNamespace(
            tasks={"boxes": DetectionConfig.model_validate({"matching": {"kind": kind}})},
            input=SIZE,
            model=SimpleNamespace(fpn=SimpleNamespace(levels=3)),
        )
        console = Console(width=200, file=StringIO())
        _print_coverage(source, run, console)
        told[kind] = console.file.getvalue()
    assert "not reached" in told["max_iou"] and "proposed: anchors" in told["max_iou"]
    assert "not reached" not in told["atss"] and "proposed:" not in told["atss"]
    assert "each box finds its own threshold" in told["atss"]
    assert "9 a place at 9 places" in told["atss"] and "candidates: 1" in told["atss"]
    assert "a place at" not in told["max_iou"]
    assert all("of 30 boxes are learned by no anchor" in text for text in told.values())
