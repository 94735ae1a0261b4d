"""Gold and silver on one picture: who speaks for which class, doubles, conflicts, and the file of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from silver_stand_ins import gold, pictures, store_of
from torchvision.ops import box_iou

from detmtl.data.coco import CocoSource, read_labels
from detmtl.data.details import FlatDetails
from detmtl.silver import overlay as module
from detmtl.silver.overlay import OverlaySettings, overlay, overlay_boxes, with_gold
from detmtl.silver.selection import SelectionSettings, select
from detmtl.structures.classes import LabelSpace
from detmtl.structures.details import Details, Outlines
from detmtl.structures.labels import BoxLabels, Grade, Ignore

CLASSES = LabelSpace.of(["person", "car"])
PERSON, CAR = 0, 1
A, B, C = [1, 1, 11, 11], [1, 2, 11, 12], [15, 5, 25, 15]  # A and B: IoU .82
COLORS = ("color/red", "color/blue")


def labelled(tmp_path, rows, coverage, grade=Grade.GOLD, **settings):
    """Returns a source of three pictures; rows: picture, box, class, ignore."""
    source = gold(pictures(tmp_path / "pool", 3), rows, coverage)
    object.__setattr__(source, "grade", grade)
    source.annotations.grade[:] = grade
    return source


def rows_of(source, i) -> list[tuple]:
    labels = source.labels(i)["boxes"]
    columns = (labels.boxes, labels.classes, labels.ignore, labels.grade)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def test_gold_speaks_for_what_it_looked_for_and_silver_for_the_rest(tmp_path):
    upper = labelled(tmp_path, [(0, A, PERSON, 0), (1, C, CAR, 0)], [[1, 0], [0, 1], [0, 0]])
    found = [(i, box, c, 0) for i in range(3) for box, c in ((C, PERSON), (A, CAR))]
    lower = labelled(tmp_path, found, [[0.75, 0.5]], Grade.SILVER)
    result = overlay(upper, lower, OverlaySettings(conflict=None))
    assert result.source.coverage.tolist() == [[1, 0.5], [0.75, 1], [0.75, 0.5]]
    assert rows_of(result.source, 0) == [(A, PERSON, 0, 0), (A, CAR, 0, 1)]
    assert rows_of(result.source, 1) == [(C, CAR, 0, 0), (C, PERSON, 0, 1)]
    assert rows_of(result.source, 2) == [(C, PERSON, 0, 1), (A, CAR, 0, 1)]
    assert result.rows.tolist() == [-1, 1, -1, 2, 4, 5]
    assert result.counts == {"added": 4, "covered": 2, "doubles": 0, "conflicts": 0}
    assert result.source.grade is Grade.SILVER and upper.grade is Grade.GOLD


def test_of_one_object_found_twice_gold_stays(tmp_path):
    # some persons are boxed, but nobody says that all are
    upper = labelled(tmp_path, [(0, A, PERSON, 0)], [[0, 0]])
    lower = labelled(tmp_path, [(0, B, PERSON, 0), (0, C, PERSON, 0)], [[0.5, 0.5]], Grade.SILVER)
    result = overlay(upper, lower, OverlaySettings())
    assert rows_of(result.source, 0) == [(A, PERSON, 0, 0), (C, PERSON, 0, 1)]
    assert result.counts == {"added": 1, "covered": 0, "doubles": 1, "conflicts": 0}
    assert result.source.coverage[0].tolist() == [0.5, 0.5]
    stricter = overlay(upper, lower, OverlaySettings(double=0.9)).source
    assert rows_of(stricter, 0)[1:] == [(B, PERSON, 0, 1), (C, PERSON, 0, 1)]  # no conflict either


@pytest.mark.parametrize(
    ("settings", "expected", "added"),
    [
        ({}, [(A, PERSON, 0, 0), (B, CAR, Ignore.CLASS, 1), (C, CAR, 0, 1)], 2),
        ({"conflicts": "drop"}, [(A, PERSON, 0, 0), (C, CAR, 0, 1)], 1),
        ({"conflict": 0.9}, [(A, PERSON, 0, 0), (B, CAR, 0, 1), (C, CAR, 0, 1)], 2),
        ({"conflict": None}, [(A, PERSON, 0, 0), (B, CAR, 0, 1), (C, CAR, 0, 1)], 2),
    ],
)
def test_silver_that_calls_gold_s_object_otherwise(tmp_path, settings, expected, added):
    upper = labelled(tmp_path, [(0, A, PERSON, 0)], [[1, 0]])
    lower = labelled(tmp_path, [(0, B, CAR, 0), (0, C, CAR, 0)], [[0, 0.5]], Grade.SILVER)
    result = overlay(upper, lower, OverlaySettings(**settings))
    assert rows_of(result.source, 0) == expected
    assert result.counts["added"] == added
    assert result.counts["conflicts"] == (settings.get("conflict", 0.7) == 0.7)


def test_what_the_upper_source_doubts_settles_nothing(tmp_path):
    upper = labelled(tmp_path, [(0, A, PERSON, Ignore.CLASS)], [[0.5, 0.5]], Grade.SILVER)
    lower = labelled(tmp_path, [(0, B, PERSON, 0), (0, A, CAR, 0)], [[0.25, 0.75]], Grade.SILVER)
    result = overlay(upper, lower, OverlaySettings())
    assert result.counts == {"added": 2, "covered": 0, "doubles": 0, "conflicts": 0}
    assert result.source.coverage[0].tolist() == [0.5, 0.75]


def test_teachers_that_know_different_classes_cover_their_union(tmp_path):
    people = labelled(tmp_path, [(0, A, PERSON, 0)], [[1, 0], [0, 0], [0, 0]])
    one = labelled(tmp_path, [(1, C, PERSON, 0)], [[0.5, 0]], Grade.SILVER)
    other = labelled(tmp_path, [(0, C, CAR, 0), (1, A, CAR, 0)], [[0, 0.75]], Grade.SILVER)
    both = overlay(overlay(people, one, OverlaySettings()).source, other, OverlaySettings()).source
    assert both.coverage.tolist() == [[1, 0.75], [0.5, 0.75], [0.5, 0.75]]
    assert rows_of(both, 1) == [(C, PERSON, 0, 1), (A, CAR, 0, 1)]


def test_pictures_that_silver_has_not_seen_keep_gold_alone(tmp_path):
    upper = labelled(tmp_path, [(0, A, PERSON, 0)], [[1, 0]])
    lower = labelled(tmp_path, [(2, C, CAR, 0)], [[0.5, 0.5]], Grade.SILVER).subset([2, 1])
    result = overlay(upper, lower, OverlaySettings()).source
    assert result.coverage.tolist() == [[1, 0], [1, 0.5], [1, 0.5]]
    assert [len(rows_of(result, i)) for i in range(3)] == [1, 0, 1]
    assert result.grade is Grade.SILVER
    assert overlay(upper.subset([0]), lower, OverlaySettings()).source.grade is Grade.GOLD


def test_many_boxes_are_compared_in_blocks_with_the_same_result(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 12, (2, 60, 2)).round(2)
    boxes = np.concatenate([corners, corners + rng.uniform(2, 9, (2, 60, 2)).round(2)], axis=2)
    classes, images = rng.integers(0, 2, (2, 60)), rng.integers(0, 3, (2, 60))
    rows = [
        [
            (int(i), box.tolist(), int(c), 0)
            for i, box, c in zip(images[k], boxes[k], classes[k], strict=True)
        ]
        for k in range(2)
    ]
    upper = labelled(tmp_path, rows[0], [[0, 0]])
    lower = labelled(tmp_path, rows[1], [[0.5, 0.5]], Grade.SILVER)
    settings = OverlaySettings(double=0.3, conflict=0.5)
    whole = overlay(upper, lower, settings)
    assert min(whole.counts["doubles"], whole.counts["conflicts"]) > 0
    monkeypatch.setattr(module, "_PAIRS", 7)
    parts = overlay(upper, lower, settings)
    assert parts.counts == whole.counts
    np.testing.assert_array_equal(parts.rows, whole.rows)
    expected = 0  # one by one
    for i, box, c, _ in rows[1]:
        mine = [r for r in rows[0] if r[0] == i and r[2] == c]
        overlaps = box_iou(torch.tensor([box]), torch.tensor([r[1] for r in mine]).reshape(-1, 4))
        expected += bool((overlaps >= 0.3).any())
    assert whole.counts["doubles"] == expected


@pytest.mark.parametrize("conflicts", ["ignore", "drop"])
def test_boxes_of_one_picture_are_laid_as_those_of_many(tmp_path, conflicts):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 10, (2, 60, 2)).round(2)
    boxes = np.concatenate([corners, corners + rng.uniform(2, 9, (2, 60, 2)).round(2)], axis=2)
    images, classes, doubts = rng.integers(0, [[[3]], [[2]], [[2]]], (3, 2, 60)).tolist()
    rows = [
        list(zip(images[k], boxes[k].tolist(), classes[k], doubts[k], strict=True))
        for k in range(2)
    ]
    upper = labelled(tmp_path, rows[0], [[0, 1], [0.5, 0], [1, 1]])
    lower = labelled(tmp_path, rows[1], [[0.5, 0.25]], Grade.SILVER)
    settings = OverlaySettings(double=0.3, conflict=0.5, conflicts=conflicts)
    expected = overlay(upper, lower, settings)
    assert min(expected.counts.values()) > 0
    for i in range(3):
        own, theirs = upper.boxes(i), lower.boxes(i)
        found, whole = overlay_boxes(own, theirs, settings), expected.source.boxes(i)
        for name in ("boxes", "classes", "scores", "weights", "ignore", "grade", "coverage"):
            assert torch.equal(getattr(found, name), getattr(whole, name)), name


def test_of_boxes_added_to_one_picture_no_details_are_known(tmp_path):
    outlines = Outlines(torch.ones(3, 2), torch.tensor([0, 3]), torch.tensor([0, 1]))
    known = Details(torch.tensor([[2]]), None, torch.ones(1, 1, 3), torch.tensor([7.0]), outlines)
    box, far = torch.tensor([A, C], dtype=torch.float32).split(1)
    person, car = torch.tensor([[PERSON], [CAR]])
    upper = replace(BoxLabels.of(box, person, 2, coverage=torch.tensor([1.0, 0])), details=known)
    found = overlay_boxes(upper, BoxLabels.of(far, car, 2), OverlaySettings()).details
    assert found.attributes.tolist() == [[2], [-1]]
    assert found.keypoints[:, 0].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found.areas.tolist() == [7, 100] and found.outlines.drawn().tolist() == [True, False]


def test_of_boxes_added_to_many_pictures_no_details_are_known(tmp_path):
    upper = labelled(tmp_path, [(1, A, PERSON, 0)], [[1, 0]])
    known = FlatDetails(np.array([[0]], np.int16), np.ones((1, 1, 3), np.float32), np.ones(1))
    named = replace(known, attribute_names=COLORS, keypoint_names=("nose",))
    upper = replace(upper, annotations=replace(upper.annotations, details=named))
    lower = labelled(tmp_path, [(0, C, CAR, 0), (1, C, CAR, 0)], [[0, 0.5]], Grade.SILVER)
    source = overlay(upper, lower, OverlaySettings()).source
    first, second = (source.boxes(i).details for i in (0, 1))
    assert (first.attributes.tolist(), second.attributes.tolist()) == ([[-1]], [[0], [-1]])
    assert second.keypoints[:, 0].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert (first.areas.tolist(), second.areas.tolist()) == ([100], [1, 100])


def test_the_file_carries_it_all(tmp_path):
    pool = labelled(tmp_path, [(0, A, PERSON, 0), (1, C, CAR, 0)], [[1, 0], [0, 1], [0, 0]])
    found = [[(A, PERSON, 0.9), (B, CAR, 0.8), (C, CAR, 0.7)], [(C, PERSON, 0.4)], [(A, CAR, 0.6)]]
    store = store_of(tmp_path / "store", ("person", "car"), pool, found)
    policy = SelectionSettings(coverage=0.75, box_weight=0.5, soft_targets=True, calibration="none")
    selection = select(store, [pool], CLASSES, policy)
    path = with_gold(pool, selection, OverlaySettings())
    assert path.parent == selection.parent
    source = CocoSource(annotations=str(path), images="/").load(
        "x", tmp_path, CLASSES, tmp_path / "c"
    )
    expected = overlay(pool, read_labels(selection), OverlaySettings()).source
    for i in range(3):
        ours, theirs = source.labels(i)["boxes"], expected.labels(i)["boxes"]
        for name in ("boxes", "classes", "scores", "weights", "ignore", "grade", "coverage"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), msg=name)
    assert source.labels(0)["boxes"].grade.tolist() == [0, 1, 1]
    assert source.labels(0)["boxes"].ignore.tolist() == [0, Ignore.CLASS, 0]
    assert source.coverage.tolist() == [[1, 0.75], [0.75, 1], [0.75, 0.75]]
    assert source.ids.tolist() == pool.ids.tolist() and source.hashes() == pool.hashes()
    data = json.loads(path.read_text())
    assert [a["attributes"].get("teacher") for a in data["annotations"][:3]] == [None, "t", "t"]
    assert data["annotations"][2]["attributes"]["teacher_score"] == pytest.approx(0.7)
    assert data["info"]["overlay"]["silver"]["conflicts"] == 2  # one of them was in doubt already
    assert len(COCO(path).getAnnIds(imgIds=[100], iscrowd=False)) == 2


def test_the_file_is_written_once_for_the_same_labels(tmp_path):
    pool = labelled(tmp_path, [(0, A, PERSON, 0)], [[1, 0]])
    store = store_of(tmp_path / "store", ("person", "car"), pool, [[], [], []])
    selection = select(store, [pool], CLASSES, SelectionSettings())
    path = with_gold(pool, selection, OverlaySettings())
    stamp = path.stat().st_mtime_ns
    assert with_gold(pool, selection, OverlaySettings()).stat().st_mtime_ns == stamp
    assert with_gold(pool, selection, OverlaySettings(conflict=None)) != path
    other = labelled(tmp_path, [(0, A, PERSON, 0)], [[1, 1]])
    assert with_gold(other, selection, OverlaySettings()) != path
    assert with_gold(pictures(tmp_path / "pool", 3), selection, OverlaySettings()) == selection


@pytest.mark.parametrize(
    "corrected",
    [
        {"boxes": np.array([[2, 1, 11, 11]], np.float32)},
        {"classes": np.array([CAR])},
        {"ignore": np.array([Ignore.CLASS], np.uint8)},
        {"weights": np.full((1, 2), 0.5, np.float32)},
        {"details": FlatDetails(np.array([[1]], np.int16), attribute_names=COLORS)},
    ],
)
def test_corrected_gold_makes_another_file(tmp_path, corrected):
    pool = labelled(tmp_path, [(0, A, PERSON, 0)], [[1, 0]])
    first = FlatDetails(np.array([[0]], np.int16), attribute_names=COLORS)
    pool = replace(pool, annotations=replace(pool.annotations, details=first))
    store = store_of(tmp_path / "store", ("person", "car"), pool, [[], [], []])
    selection = select(store, [pool], CLASSES, SelectionSettings())
    before = with_gold(pool, selection, OverlaySettings())
    after = replace(pool, annotations=replace(pool.annotations, **corrected))
    assert with_gold(after, selection, OverlaySettings()) != before
