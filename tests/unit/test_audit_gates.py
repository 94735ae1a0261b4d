"""Each gate with its planted fault, and teachers that are merely weak, which pass."""

from dataclasses import replace

import numpy as np
import pytest
from audit_stand_ins import CLASSES, moved, scenes, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from silver_stand_ins import gold as labelled
from silver_stand_ins import store_of

from detmtl.data.coco import CocoSource, category_names
from detmtl.data.flat import FileNames
from detmtl.silver import audit_gates
from detmtl.silver.audit import audit
from detmtl.silver.audit_gates import problems_alone, tells_nothing
from detmtl.silver.held_out import refuse_seen
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.teachers.annotate import annotate
from detmtl.teachers.from_results import ResultsTeacherSettings

SPACE = LabelSpace.of(CLASSES)
WEAK = {"miss": 0.3, "jitter": 0.05, "extra": 2}


def sides(b):
    return b[:, 2:] - b[:, :2]


def wide(w, h):
    return np.array([w, h, w, h])


def one(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


FORMATS = {
    "x, y, width, height instead of two corners": lambda b, w, h: np.c_[b[:, :2], sides(b)],
    "center, width, height instead": lambda b, w, h: np.c_[b[:, :2] + sides(b) / 2, sides(b)],
    "taken for x, y, width, height": lambda b, w, h: np.c_[b[:, :2], b[:, :2] + b[:, 2:]],
    "height, cut at the picture's edge": lambda b, w, h: np.clip(
        np.c_[b[:, :2], b[:, :2] + b[:, 2:]], 0, wide(w, h)
    ),
    "center taken for the left top": lambda b, w, h: b + np.tile(sides(b) / 2, 2),
    "fractions of the picture instead": lambda b, w, h: b / wide(w, h),
    "fractions of the picture, as center": lambda b, w, h: (
        np.c_[b[:, :2] + sides(b) / 2, sides(b)] / wide(w, h)
    ),
    "y before x": lambda b, w, h: b[:, [1, 0, 3, 2]],
    "mirrored left to right": lambda b, w, h: np.c_[w - b[:, 2], b[:, 1], w - b[:, 0], b[:, 3]],
    "turned by 90 degrees": lambda b, w, h: np.c_[b[:, 1], w - b[:, 2], b[:, 3], w - b[:, 0]],
    "resized to 416 x 416": lambda b, w, h: b * 416 / wide(w, h),
    "resized to about 26": lambda b, w, h: b * 263 / wide(w, h),
    "longer side was resized to 320": lambda b, w, h: b * 320 / max(w, h),
    "shorter side was resized to 800": lambda b, w, h: b * 800 / min(w, h),
    "padded on both sides to 640 x 640": lambda b, w, h: (
        (b + wide((max(w, h) - w) / 2, (max(w, h) - h) / 2)) * 640 / max(w, h)
    ),
}


@pytest.mark.parametrize("reading", FORMATS)
def test_boxes_in_a_wrong_convention(tmp_path, reading):
    gold = scenes()
    store = stored(tmp_path, gold, moved(FORMATS[reading]), **WEAK)
    problem = one(audit(store, gold, SPACE).problems())
    assert problem.startswith("audit: wrong format: ") and reading in problem


def test_boxes_of_other_pictures(tmp_path):
    gold, other = scenes(), scenes(seed=1)
    store = stored(tmp_path, other)  # the same hashes, other objects
    problem = one(audit(store, gold, SPACE).problems())
    assert "wrong format" in problem and "are they of these pictures" in problem


def test_sizes_that_are_not_those_of_the_pictures(tmp_path):
    gold = scenes()
    turned = stored(tmp_path / "a", gold, lambda r: replace(r, height=r.width, width=r.height))
    problem = one(audit(turned, gold, SPACE).problems())
    assert "audit: wrong size: 40 of 40 pictures" in problem and "EXIF" in problem
    assert "gold's picture 0: 480 x 640 for 640 x 480" in problem
    half = stored(tmp_path / "b", gold, lambda r: replace(r, height=r.height // 2))
    assert "EXIF" not in one(audit(half, gold, SPACE).problems())


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_of_pictures_that_were_not_turned_as_exif_says(tmp_path, orientation):
    gold = scenes(count=40)
    names = [f"{i}.jpg" for i in range(40)]
    for i, name in enumerate(names):
        exif = Image.Exif()
        exif[0x0112] = orientation if i % 4 == 0 else 1
        Image.new("RGB", (8, 8)).save(tmp_path / name, exif=exif)
    gold = replace(gold, files=FileNames.of(tmp_path, names))
    turn = {  # from what a person sees to the pixels of the file
        3: lambda b, w, h: wide(w, h) - b[:, [2, 3, 0, 1]],
        6: lambda b, w, h: np.c_[b[:, 1], w - b[:, 2], b[:, 3], w - b[:, 0]],
        8: lambda b, w, h: np.c_[h - b[:, 3], b[:, 0], h - b[:, 1], b[:, 2]],
    }[orientation]

    def change(record):
        return moved(turn)(record) if int(record.file[:-4]) % 4 == 0 else record

    spoiled = stored(tmp_path / "a", gold, change, jitter=0.03)
    problem = one(audit(spoiled, gold, SPACE).problems())
    assert "in the pictures that EXIF turns, and on" in problem
    assert problem.endswith(f"EXIF orientation {orientation}")
    assert audit(stored(tmp_path / "b", gold, jitter=0.03), gold, SPACE).problems() == []


def test_permuted_classes(tmp_path):
    gold = scenes()
    size = len(CLASSES)
    shifted = stored(tmp_path / "a", gold, lambda r: replace(r, classes=(r.classes + 1) % size))
    problem = one(audit(shifted, gold, SPACE).problems())
    assert problem.startswith("audit: classes permuted: ") and "1 ahead of gold's" in problem
    behind = stored(
        tmp_path / "b", gold, lambda r: replace(r, classes=(r.classes - 1) % size), **WEAK
    )
    assert "1 behind gold's" in one(audit(behind, gold, SPACE).problems())
    order = np.array([1, 0, 2, 3, 4, 5])
    swapped = stored(tmp_path / "c", gold, lambda r: replace(r, classes=order[r.classes]))
    problem = one(audit(swapped, gold, SPACE).problems())
    assert "'person' are 'car'" in problem and "'car' are 'person'" in problem
    assert "another order" in problem and "'dog'" not in problem


def test_permuted_classes_of_which_each_is_rare(tmp_path):
    gold = scenes(count=10, per_picture=4)
    mixed = np.random.default_rng(0).permutation(len(CLASSES))
    assert (mixed != np.arange(len(CLASSES))).all()
    store = stored(tmp_path, gold, lambda r: replace(r, classes=mixed[r.classes]))
    result = audit(store, gold, SPACE)
    assert result.gold_boxes.max() < 10
    assert "classes permuted: the teacher has a box on" in one(result.problems())


def test_a_class_taken_for_a_similar_one_is_no_permutation(tmp_path):
    gold = scenes()
    cats = CLASSES.index("cat"), CLASSES.index("dog")
    merged = stored(
        tmp_path,
        gold,
        lambda r: replace(r, classes=np.where(r.classes == cats[0], cats[1], r.classes)),
    )
    assert audit(merged, gold, SPACE).problems() == []


def test_boxes_of_a_class_that_nobody_looked_for_are_no_permutation(tmp_path):
    cars = scenes(count=90)
    cars = replace(cars, coverage=np.array([[0, 1, 0, 0, 0, 0]], np.float32))

    def also_a_person(record):
        twice = np.arange(2 * len(record.boxes)) // 2
        classes = np.where(np.arange(len(twice)) % 2, record.classes[twice], 0).astype(np.int32)
        return replace(
            record, boxes=record.boxes[twice], classes=classes, scores=record.scores[twice]
        )

    result = audit(stored(tmp_path, cars, also_a_person), cars, SPACE)
    assert len(result.gold) > 40 and result.recall_at(0.5)["car"] == 1
    assert result.confusion[1].tolist() == [0, len(result.gold), 0, 0, 0, 0]
    assert result.problems() == []


def test_classes_that_the_teacher_does_not_know_are_no_permutation(tmp_path):
    gold = scenes()
    names = tuple(n for n in CLASSES if n != "cat")  # cats are dogs to it
    at = np.array([names.index("dog" if n == "cat" else n) for n in CLASSES])
    store = stored(tmp_path, gold, lambda r: replace(r, classes=at[r.classes]), classes=names)
    assert audit(store, gold, SPACE).problems() == []


def test_a_teacher_of_one_rare_class_is_judged_by_that_class(tmp_path):
    gold = scenes(count=60)
    classes = gold.annotations.classes.copy()
    cup, other = CLASSES.index("cup"), CLASSES.index("tree")
    cups = np.flatnonzero(classes == cup)
    classes[cups[12:]] = other
    gold = replace(gold, annotations=replace(gold.annotations, classes=classes))
    assert 0.05 * len(classes) > 12

    def alone(record):
        own = record.classes == cup
        kept = {name: getattr(record, name)[own] for name in ("boxes", "scores")}
        return replace(record, **kept, classes=np.zeros(int(own.sum()), np.int32))

    result = audit(stored(tmp_path, gold, alone, classes=("cup",)), gold, SPACE)
    assert result.problems(0.5) == []
    found = result.measures(0.5)
    assert found.row("all").recall.count == found.row("all").recall.hits == 12
    assert found.density.tolist() == [12 / 60, 12 / 60]


def test_a_class_that_takes_in_unknown_ones_is_no_permutation(tmp_path):
    gold = scenes()
    store = stored(
        tmp_path, gold, lambda r: replace(r, classes=np.zeros_like(r.classes)), classes=("dog",)
    )
    result = audit(store, gold, SPACE)
    assert result.confusion.sum() > 5 * result.confusion.diagonal().sum()
    assert problems_alone(result) == []


def test_gold_that_confirms_nothing_speaks_against_a_teacher_unless_gold_is_little(tmp_path):
    gold = scenes()
    wrong = moved(lambda b, w, h: np.tile([0.0, 0.0, 3.0, 3.0], (len(b), 1)))
    known = audit(stored(tmp_path / "a", gold, wrong), gold, SPACE, nms=None)
    assert not np.concatenate(known.hits).any() and not tells_nothing(known)
    assert len(problems_alone(known)) == 1
    few = gold.subset([0, 1])
    unknown = audit(stored(tmp_path / "b", few, wrong, extra=9), few, SPACE, nms=None)
    assert tells_nothing(unknown) and problems_alone(unknown) == []


def test_far_more_and_far_fewer_boxes_than_gold_has(tmp_path):
    gold = scenes()
    flood = audit(stored(tmp_path / "a", gold, extra=40), gold, SPACE)
    problem = one(flood.problems(0.05))
    assert problem.startswith("audit: too many boxes: at score 0.05 the teacher has 4")
    assert "raise the threshold" in problem
    assert flood.problems(0.5) == []
    few = audit(stored(tmp_path / "b", gold, miss=0.5), gold, SPACE)
    problem = one(few.problems(0.99))
    assert problem.startswith("audit: too few boxes: ") and "lower the threshold" in problem
    never = dict.fromkeys(CLASSES, float("inf"))
    assert "0.00 boxes a picture" in one(few.problems(never))
    assert few.problems(0.5) == []


def test_a_class_that_few_pictures_were_searched_for_counts_there_from_three_pictures_on(tmp_path):
    gold, cup = scenes(), CLASSES.index("cup")

    def flooded(record):
        boxes = np.tile(np.array([[5, 5, 50, 50]], np.float32), (60, 1)) + np.arange(60)[:, None]
        return replace(
            record,
            boxes=np.concatenate([record.boxes, boxes.astype(np.float32)]),
            classes=np.concatenate([record.classes, np.full(60, cup, np.int32)]),
            scores=np.concatenate([record.scores, np.full(60, 0.54, np.float32)]),
        )

    store = stored(tmp_path, gold, flooded)
    for searched, problems in ((2, 0), (5, 1)):
        coverage = np.ones((len(gold), len(CLASSES)), np.float32)
        coverage[searched:, cup] = 0
        partly = replace(gold, coverage=coverage)
        result = audit(store, partly, SPACE, nms=None)
        assert result.measures(0.5).kept.sum() < 3 * len(result.gold), "of all classes they are few"
        assert len(result.problems(0.5)) == problems


def test_few_boxes_of_the_classes_that_are_searched_enough_are_no_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_gates, "LEAST_PICTURES", 12)
    gold, cup = scenes(), CLASSES.index("cup")
    cups = [cup in gold.labels(i)["boxes"].classes.tolist() for i in range(len(gold))]
    coverage = np.zeros((len(gold), len(CLASSES)), np.float32)
    coverage[:11] = 1
    coverage[:, cup] = np.logical_not(cups)
    partly = replace(gold, coverage=coverage)

    def one_cup_too_many(record):
        return replace(
            record,
            boxes=np.concatenate([record.boxes, np.array([[5, 5, 50, 50]], np.float32)]),
            classes=np.append(record.classes, np.int32(cup)),
            scores=np.append(record.scores, np.float32(0.54)),
        )

    for folder, change, problems in (("a", None, 0), ("b", one_cup_too_many, 1)):
        store = stored(tmp_path / folder, gold, *([change] if change else []))
        result = audit(store, partly, SPACE, nms=None)
        few = replace(result, boxes=result.boxes[result.boxes["class"] != cup])
        extra = result.boxes[result.boxes["class"] == cup]
        assert len(result.gold) >= 20, "enough for the other gates"
        assert few.problems(0.5) == []
        some = replace(result, boxes=np.concatenate([few.boxes, extra[:9]]))
        assert some.problems(0.5) == [], "9 boxes tell nothing"
        assert len(result.problems(0.5)) == problems, "more do"


def test_too_little_gold(tmp_path):
    few = scenes(count=3, per_picture=2, seed=3)
    assert len(few.annotations.boxes) < 10
    problem = one(audit(stored(tmp_path / "a", few), few, SPACE).problems())
    assert problem.startswith("audit: too little gold: ")
    two = scenes(count=2, per_picture=20)
    problem = one(audit(stored(tmp_path / "b", two), two, SPACE).problems())
    assert "too little gold" in problem and "in 2 pictures" in problem
    # Gold of classes that the teacher does not know says nothing about it.
    gold = scenes(count=12, per_picture=4)
    assert 0 < np.count_nonzero(gold.annotations.classes == 0) < 10

    def persons(record):
        own = record.classes == 0
        kept = {name: getattr(record, name)[own] for name in ("boxes", "classes", "scores")}
        return replace(record, **kept)

    blind = stored(tmp_path / "c", gold, persons, classes=("person",))
    assert "too little gold" in one(audit(blind, gold, SPACE).problems())


def test_a_teacher_that_says_nothing(tmp_path):
    gold = scenes()
    store = stored(tmp_path, gold, miss=1.0)
    assert "too few boxes: the teacher has 0 boxes of any score" in one(
        audit(store, gold, SPACE).problems()
    )


def test_audit_on_the_pictures_that_the_teacher_learned_from():
    gold = scenes()
    refuse_seen([scenes(name="others")], gold)
    with pytest.raises(InputError, match=r"0\.jpg: the teacher learned from it, .* in 'gold'"):
        refuse_seen([scenes(name="others"), gold.subset([0, 3])], gold)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**20),
    miss=st.floats(0, 0.75),
    jitter=st.floats(0, 0.08),
    confuse=st.floats(0, 0.3),
    extra=st.floats(0, 6),
)
def test_a_teacher_that_is_merely_weak_passes(tmp_path_factory, seed, miss, jitter, confuse, extra):
    gold = scenes(count=20, seed=seed)
    path = tmp_path_factory.mktemp("store")
    store = stored(path, gold, seed=seed, miss=miss, jitter=jitter, confuse=confuse, extra=extra)
    assert audit(store, gold, SPACE).problems(0.5) == []


@pytest.mark.parametrize("seed", range(2))
def test_a_teacher_whose_boxes_are_large_and_rough_passes(tmp_path, seed):
    """Gold that is spoiled by a wrong convention is large too, and lies on such boxes."""
    gold = scenes(seed=seed)
    cut = moved(lambda b, w, h: np.clip(b, 0, wide(w, h)))
    store = stored(tmp_path, gold, cut, seed=seed, larger=2, jitter=0.3, extra=3)
    assert audit(store, gold, SPACE).problems(0.5) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_teacher_passes(tmp_path, seed):
    gold = scenes(count=12, seed=seed)
    result = audit(stored(tmp_path, gold), gold, SPACE, nms=None)
    assert result.problems() == []
    assert result.measures(0.5).row("all").precision.value == 1
    assert result.measures(0.5).row("all").recall.value == 1


GROUPS = {
    "person": ["person"],
    "vehicle": ["bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"],
    "animal": [
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
    ],
}


@pytest.mark.real
@pytest.mark.parametrize("teacher", ["yolox_nano", "fastestdet"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_detectors_pass_every_gate(tmp_path, real_data, teacher, split):
    folder = real_data / "data" / "coco128"
    annotations = folder / "annotations" / f"instances_{split}.json"
    results = ResultsTeacherSettings(
        path=str(folder / "silver" / f"{teacher}_{split}.json"), annotations=str(annotations)
    ).load(tmp_path)
    source = CocoSource(annotations=str(annotations), images=str(folder / "images" / split))
    every = category_names(annotations)
    store = None
    for classes in (every, GROUPS, ["person"]):
        space = LabelSpace.of(classes, drop_unmapped=True)
        gold = source.load(split, tmp_path, space, tmp_path / "cache")
        store = store or annotate(results, [gold], tmp_path / "store")
        result = audit(store, gold, space)
        assert result.pictures == 128 and len(result.boxes) > 400
        for threshold in (0.3, 0.5):
            assert result.problems(threshold) == []
    for pictures in (8, 16, 32):  # as few as somebody may have
        few = audit(store, gold.subset(np.arange(pictures)), space)
        assert few.gold_boxes.sum() < 10 or few.problems(0.5) == []


def test_small_pictures_of_one_color_pass(tmp_path):
    """The boxes of the other tests of silver."""
    from silver_stand_ins import pictures

    source = pictures(tmp_path / "images", 12)
    box = [0, 0, 10, 10]
    store = store_of(tmp_path / "store", ("person", "car"), source, [[(box, 0, 0.9)]] * 12)
    gold = labelled(source, [(i, box, 0, 0) for i in range(12)])
    assert audit(store, gold, LabelSpace.of(("person", "car"))).problems() == []
