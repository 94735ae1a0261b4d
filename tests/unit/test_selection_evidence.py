"""What a selection makes of classes and pictures of which gold says little or nothing."""

import json

import numpy as np
import pytest
from silver_stand_ins import gold, pictures, store_of

from detmtl.data.coco import CocoSource
from detmtl.silver.audit import audit
from detmtl.silver.policy import Policy
from detmtl.silver.selection import AtPrecision, AtProbability, SelectionSettings, select
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

NAMES = ("person", "car", "dog")
SPACE = LabelSpace.of(NAMES)
A, B, C = [0, 0, 10, 10], [15, 5, 25, 20], [2, 12, 9, 20]
ALL = ((1.0, 1.0, 1.0),)


def audited(tmp_path, found, rows, looked=ALL, teacher=("person", "car")):
    """Returns a store of what a teacher found, its pictures, and its audit."""
    source = pictures(tmp_path / "images", len(found))
    store = store_of(tmp_path / "store", teacher, source, found)
    labelled = gold(source, rows, looked)
    labelled.__dict__["classes"] = NAMES
    return store, source, audit(store, labelled, SPACE)


def stats_of(path):
    return json.loads((path.parent / "stats.json").read_text())


@pytest.fixture
def wrong_cars(tmp_path):
    """Every person is found; three cars are not, and each of twenty boxes of cars is wrong."""
    found = [[(A, 0, 0.8)] + [(C, 1, 0.8)] * (i < 20) for i in range(30)]
    rows = [(i, A, 0, 0) for i in range(30)] + [(i, B, 1, 0) for i in range(3)]
    return audited(tmp_path, found, rows)


@pytest.mark.parametrize(
    ("settings", "person"),
    [
        ({"threshold": AtPrecision(precision=0.8), "ignore_from": None}, 1),
        ({"threshold": AtPrecision(precision=0.8), "ignore_from": None, "coverage": 0.9}, 0.9),
        (
            {
                "threshold": AtProbability(probability=0.7),
                "ignore_from": AtProbability(probability=0.5),
                "calibration": {"method": "isotonic", "shrink": 0},
            },
            1,
        ),
    ],
)
def test_the_absence_of_what_is_never_labelled_says_nothing(tmp_path, wrong_cars, settings, person):
    store, source, found = wrong_cars
    with pytest.warns(UserWarning, match="no score is enough for a label of 'car'"):
        path = select(store, [source], SPACE, SelectionSettings(**settings), found)
    car = stats_of(path)["per_class"]["car"]
    nothing = {"labels": 0, "ignored": 0, "threshold": None, "ignored_from": None}
    assert car == {**nothing, "coverage": 0}
    # What is not asked of cars does not speak against persons either.
    assert json.loads(path.read_text())["info"]["coverage"] == {
        "person": person,
        "car": 0,
        "dog": 0,
    }
    read = CocoSource(kind="coco", images="/", annotations=str(path))
    silver = read.load("silver", tmp_path, SPACE, tmp_path / "cache")
    labels = silver.boxes(0)
    assert labels is not None and labels.coverage.tolist() == pytest.approx([person, 0, 0])


def test_with_an_ignore_band_its_absence_has_the_recall_of_the_band(wrong_cars):
    store, source, found = wrong_cars
    settings = SelectionSettings(threshold=AtPrecision(precision=0.8), ignore_from=0.3)
    car = stats_of(select(store, [source], SPACE, settings, found))["per_class"]["car"]
    assert car["threshold"] is None and car["ignored"] == 20
    assert car["coverage"] == pytest.approx(10 * 30 / 33 / 13, abs=1e-6)


def test_a_band_that_the_budget_empties_is_none(wrong_cars):
    store, source, found = wrong_cars
    policy = {"threshold": AtPrecision(precision=0.8), "ignore_from": 0.3, "ignore_budget": 0.1}
    with pytest.warns(UserWarning, match="no score is enough"):
        path = select(store, [source], SPACE, SelectionSettings(**policy), found)
    rows = stats_of(path)["per_class"]
    assert rows["car"]["ignored"] == rows["car"]["coverage"] == 0
    assert rows["person"]["coverage"] == 1 and rows["person"]["labels"] == 30


def test_a_class_that_nobody_looked_for_is_taken_for_like_the_others_and_that_is_said(tmp_path):
    found = [[(A, 0, 0.9), (B, 1, 0.4 + 0.01 * i)] for i in range(20)]
    rows = [(i, A if i < 10 else C, 0, 0) for i in range(20)]
    store, source, checked = audited(tmp_path, found, rows, ((1.0, 0.0, 1.0),))

    def car(**settings):
        path = select(store, [source], SPACE, SelectionSettings(**settings), checked)
        return stats_of(path)["per_class"]["car"]

    with pytest.warns(UserWarning, match="none of gold's 20 pictures has anybody looked for 'car'"):
        assert car()["coverage"] == 0.5
    with pytest.warns(UserWarning, match="looked for 'car'"):  # nothing to bound its band by
        assert car(threshold=0.8, ignore_budget=0.1, coverage=0.7)["ignored"] == 20
    assert car(coverage=0.7)["coverage"] == 0.7


def test_that_a_class_is_missing_where_gold_lets_expect_it_is_said(tmp_path):
    found = [[(A, 0, 0.9), (B, 1, 0.4)] for _ in range(20)]
    rows = [(i, box, c, 0) for i in range(20) for box, c in ((A, 0), (B, 1))]
    store, source, checked = audited(tmp_path, found, rows)
    settings = SelectionSettings(threshold=0.5, ignore_from=None, coverage=0.6)
    with pytest.warns(UserWarning, match="not one box of 'car' in 20 pictures"):
        select(store, [source], SPACE, settings, checked)
    few = settings.model_copy(update={"coverage": 0.4})  # 8 are not enough to say so
    select(store, [source], SPACE, few, checked)


@pytest.fixture
def few_searched(tmp_path):
    """Two cars in each picture, which gold knows of the first five pictures alone."""
    found = [
        [(A, 0, 0.9), (B, 1, 0.9), (C, 1, 0.4 + 0.01 * i)] + [(A, 1, 0.85)] * (i == 7)
        for i in range(30)
    ]
    rows = [(i, A, 0, 0) for i in range(30)]
    rows += [(i, box, 1, 0) for i in range(5) for box in (B, C)]
    looked = [(1.0, float(i < 5), 1.0) for i in range(30)]
    return audited(tmp_path, found, rows, looked)


def test_the_mean_of_partly_searched_gold_is_that_of_the_searched_pictures(few_searched):
    store, source, checked = few_searched

    def dense(most):
        settings = SelectionSettings(threshold=0.3, ignore_from=None, max_density=most)
        return stats_of(select(store, [source], SPACE, settings, checked))["pictures_too_dense"]

    assert [dense(1.3), dense(1.4)] == [1, 0]  # 3 labels in each, 4 in one; gold has 1 + 2


def test_the_budget_of_partly_searched_gold_is_that_of_the_searched_pictures(few_searched):
    store, source, checked = few_searched
    settings = SelectionSettings(threshold=0.8, ignore_from=0.3, ignore_budget=0.25)
    path = select(store, [source], SPACE, settings, checked)
    assert stats_of(path)["per_class"]["car"]["ignored"] == 15  # a quarter of 2 in each of 30


def test_labels_of_a_class_that_nobody_looked_for_make_no_picture_too_dense(tmp_path):
    found = [[(A, 0, 0.9), (B, 1, 0.9), (C, 1, 0.9)] for _ in range(6)]
    found[0].append((B, 0, 0.8))
    rows = [(i, A, 0, 0) for i in range(6)]
    store, source, checked = audited(tmp_path, found, rows, ((1.0, 0.0, 1.0),))
    assert np.isnan(checked.density[1])
    with pytest.warns(UserWarning, match="looked for 'car'"):
        path = select(store, [source], SPACE, SelectionSettings(max_density=1.5), checked)
    assert stats_of(path)["pictures_too_dense"] == 1


def test_labels_alone_make_a_picture_too_dense_beside_objects_that_the_teacher_can_know(tmp_path):
    found = [[(A, 0, 0.9)] for _ in range(6)]
    found[0] = [(A, 0, 0.9), (B, 0, 0.9), (C, 0, 0.9)]
    found[1] = [(A, 0, 0.9), (B, 0, 0.9)]
    found[2] = [(A, 0, 0.9), (B, 0, 0.4), (C, 0, 0.4)]  # two of them are doubtful
    rows = [(i, A, 0, 0) for i in range(6)]
    rows += [(i, box, 2, 0) for i in range(6) for box in (A, B, C)]  # dogs, unknown to the teacher
    store, source, checked = audited(tmp_path, found, rows)
    path = select(store, [source], SPACE, SelectionSettings(max_density=2.0), checked)
    assert stats_of(path)["pictures_too_dense"] == 1
    numbers = {image["id"] for image in json.loads(path.read_text())["images"]}
    assert numbers == {101, 102, 103, 104, 105}


def test_that_no_picture_is_left_is_said_with_reasons(tmp_path):
    found = [[(A, 0, 0.9), (B, 0, 0.9), (C, 0, 0.9)]] * 4 + [[(A, 0, 0.1)]] * 2
    store, source, checked = audited(tmp_path, found, [(i, A, 0, 0) for i in range(6)])
    more = pictures(tmp_path / "more", 3, first=50)
    settings = SelectionSettings(max_density=2.0, max_empty=0.0)
    words = (
        r"of 9 pictures none is left: 4 have more labels than max_density \(2\) times the 1 boxes that "
        r"gold has in a picture; 2 have no label at these thresholds, and max_empty \(0\) keeps .*; 3 "
        r"have not been labelled by the teacher; raise or leave out selection.max_density and "
        r"selection.max_empty"
    )
    for _ in range(2):  # nothing of it is kept
        with pytest.raises(InputError, match=words):
            select(store, [source, more], SPACE, settings, checked)
    assert not list((tmp_path / "store").rglob("select/*/*"))


def test_gold_without_a_box_tells_neither_recall_nor_density(tmp_path):
    found = [[(A, 0, 0.9)]] * 4
    for where, rows in (("none", []), ("unknown", [(0, A, 2, 0)])):
        store, source, checked = audited(tmp_path / where, found, rows)
        with pytest.raises(InputError) as caught:
            select(store, [source], SPACE, SelectionSettings(max_density=2.0), checked)
        assert len(caught.value.problems) == 2
        first, second = caught.value.problems
        assert "selection.coverage: none of gold's 4 pictures has a box" in first
        assert "leave max_density out" in second
        path = select(store, [source], SPACE, SelectionSettings(coverage=0.8), checked)
        assert stats_of(path)["per_class"]["person"]["coverage"] == 0.8
        known = np.array([True, True, False])
        with pytest.raises(InputError, match=r"selection\.coverage"):
            Policy.of(store, SPACE, known, SelectionSettings(), checked)
