"""What `check` tells of how a matching treats the boxes of a data set, counted by hand."""

import math

import pytest
from coco_files import NAMES, annotation, coco_data, save_coco

from detmtl.data.coco import CocoSource
from detmtl.data.fit import InputSettings
from detmtl.structures.classes import LabelSpace
from detmtl.tasks.anchor_learners import Learners, learners
from detmtl.tasks.detection import DetectionConfig

SIZE = InputSettings(short=48, long=64)
"""The pictures as they are, 48 x 64 pixels; padded to 64 x 64."""
ONE = {"octaves": 1, "ratios": [1.0], "base_scale": 4, "offset": 0.5}
"""Squares of 32 pixels around 4, 12, 20 ... at stride 8."""


def source(tmp_path, *boxes):
    data = coco_data()
    data["annotations"] = [
        annotation(i, 10, 1, list(box), **more) for i, (box, more) in enumerate(boxes, start=1)
    ]
    save_coco(tmp_path, data)
    settings = CocoSource(images="images", annotations="coco.json")
    return settings.load("here", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache")


def task(**matching):
    return DetectionConfig.model_validate({"anchors": ONE, "matching": matching})


def test_an_anchor_that_is_the_box_and_those_beside_it(tmp_path):
    # 24 of 32 columns in common: 24 / 40 = .6, four of these; diagonally 576 / 1472 = .39
    here = source(tmp_path, ([12, 12, 32, 32], {}))
    found = learners(here, SIZE, task(foreground=0.5), [8])
    assert (found.boxes, found.unlearned, found.anchors) == (1, 0, 5)
    assert found.overlap == pytest.approx((1 + 4 * 0.6) / 5) and found.poor == 0
    found = learners(here, SIZE, task(foreground=0.35, background=0.3), [8])
    assert found.anchors == 9 and found.poor == pytest.approx(4 / 9)


def test_a_box_that_nothing_learns_and_boxes_that_do_not_count(tmp_path):
    here = source(
        tmp_path,
        ([12, 12, 32, 32], {}),
        ([50, 2, 3, 3], {}),
        ([12, 12, 32, 32], {"iscrowd": 1}),
    )
    found = learners(here, SIZE, task(force=False), [8])
    assert (found.boxes, found.unlearned, found.anchors) == (2, 1, 2.5)
    assert learners(here, SIZE, task(), [8]).unlearned == 0


def test_each_kind_of_matching_by_its_own_rule(tmp_path):
    here = source(tmp_path, ([12, 12, 32, 32], {}))
    found = learners(here, SIZE, task(kind="atss", candidates=9), [8])
    # mean .62, deviation .22 of one 1, four .6 and four .39: the one alone is above their sum
    assert (found.anchors, found.overlap) == (1, 1)


def test_no_boxes_are_nothing_to_tell(tmp_path):
    crowd = source(tmp_path, ([12, 12, 32, 32], {"iscrowd": 1}))
    assert learners(crowd, SIZE, task(), [8]) is None


def test_the_sentence():
    assert Learners((9, 9), 3, 1, 7.25, 0.5, 0.256).told() == (
        "matching: 1 of 3 boxes are learned by no anchor; on average 7.2 anchors learn one and overlap it "
        "by 0.50, 26% of them by less than 0.4"
    )
    assert Learners((200, 900), 3, 3, 0, math.nan, math.nan).told() == (
        "matching: 3 of 3 boxes (in 200 of 900 pictures) are learned by no anchor"
    )
