"""People's corrections come back: matched, counted, and as gold."""

import json
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detmtl.config import settings_from
from detmtl.data.coco import CocoSource, read_labels
from detmtl.data.folder import FolderSource
from detmtl.run_teachers import gold_by_models
from detmtl.silver import corrections as corrections_module
from detmtl.silver.corrections import left_behind, take_back, write_rest, write_verified
from detmtl.silver.held_out import given_gold
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

CAT, DOG = 1, 2


def box(id, image, category, xyxy, doubtful=False, **more):
    x1, y1, x2, y2 = xyxy
    row = {"id": id, "image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    attributes = {"grade": "silver", "teacher": "t", **({"ignore": "class"} if doubtful else {})}
    return {**row, "iscrowd": int(doubtful), "score": 0.75, "attributes": attributes, **more}


def write(path, annotations, images=None, names=("cat", "dog"), **more):
    images = images or [(1, "a/1.jpg"), (2, "a/2.jpg"), (3, "b/3.jpg")]
    data = {
        "info": {"grade": "silver", "coverage": {"cat": 0.75, "dog": 0.5}},
        "images": [{"id": i, "file_name": n, "height": 100, "width": 100} for i, n in images],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": n} for k, n in enumerate(names)],
        **more,
    }
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def sent(tmp_path):
    rows = [
        box(1, 1, CAT, (10, 10, 30, 30)),
        box(2, 1, DOG, (50, 10, 70, 30)),
        box(3, 1, CAT, (10, 60, 30, 80)),
        box(4, 2, CAT, (10, 10, 30, 30)),
        box(5, 2, DOG, (50, 50, 80, 80), doubtful=True),
        box(6, 2, CAT, (0, 50, 20, 80), doubtful=True),
        box(7, 3, DOG, (5, 5, 25, 25)),
    ]
    return write(tmp_path / "sent.json", rows)


@pytest.fixture
def back(tmp_path):
    """As a tool writes it: other ids, no folders, no attributes, categories in another order."""
    cat, dog = 2, 1
    plain = {"attributes": {}, "score": 1}
    rows = [
        box(11, 7, cat, (10.4, 10, 30, 30.3), **plain),  # accepted
        box(12, 7, dog, (53, 10, 74, 30), **plain),  # moved
        box(13, 7, dog, (10, 60, 30, 80), **plain),  # renamed
        box(14, 7, cat, (80, 80, 99, 99), **plain),  # added
        box(15, 8, dog, (50, 50, 80, 80), **plain),  # rescued
        box(16, 8, cat, (0, 50, 20, 80), **plain, iscrowd=1),  # left in doubt
        box(17, 8, dog, (60, 0, 90, 20), **plain, iscrowd=1),  # a crowd of the person's own
        box(18, 9, dog, (5, 5, 25, 25), **plain),
    ]
    images = [(7, "1.jpg"), (8, "2.jpg"), (9, "3.jpg")]
    return write(tmp_path / "back.json", rows, images, ("dog", "cat"), info={})


def counts_of(corrections):
    return {name: value.tolist() for name, value in corrections.counts.items()}


def test_what_people_did_is_counted_per_class(sent, back):
    corrections = take_back(sent, back)
    assert counts_of(corrections) == {
        "sent": [3, 2],
        "accepted": [1, 1],
        "moved": [0, 1],
        "renamed": [1, 0],
        "deleted": [1, 0],
        "ignored": [0, 0],
        "added": [1, 0],
        "doubted": [1, 1],
        "rescued": [0, 1],
    }
    console = Console(width=200)
    with console.capture() as told:
        console.print(corrections.table())
    assert "0.33" in told.get() and "1.00" in told.get() and "0.60 (0.23-0.88)" in told.get()


def test_finished_pictures_become_gold(sent, back, tmp_path):
    write_verified(take_back(sent, back), sent, tmp_path / "gold.json")
    gold = read_labels(tmp_path / "gold.json")
    assert gold.grade is Grade.GOLD and gold.coverage.tolist() == [[1, 1]]
    assert [gold.files.name(i) for i in range(3)] == ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
    assert gold.ids.tolist() == [1, 2, 3]
    first, second = gold.labels(0)["boxes"], gold.labels(1)["boxes"]
    assert first.classes.tolist() == [0, 1, 1, 0] and first.scores.tolist() == [1] * 4
    assert first.boxes[1].tolist() == [53, 10, 74, 30]
    assert second.classes.tolist() == [1, 0, 1]
    assert second.ignore.tolist() == [Ignore.NO, Ignore.CLASS, Ignore.REGION]
    info = json.loads((tmp_path / "gold.json").read_text())["info"]
    assert info["grade"] == "gold" and info["corrections"]["cat"]["deleted"] == 1


@pytest.mark.parametrize("attributes", [True, False], ids=["kept", "lost"])
def test_crowds_that_people_set_and_clear_count_whatever_attributes_say(tmp_path, attributes):
    region = {"grade": "silver", "ignore": "region"}
    rows = [
        box(1, 1, CAT, (10, 10, 30, 30)),
        box(2, 1, CAT, (50, 10, 70, 30)),
        box(3, 1, DOG, (10, 60, 30, 80), doubtful=True),
        box(4, 1, DOG, (60, 60, 80, 80), doubtful=True),
        box(5, 2, CAT, (10, 10, 30, 30), iscrowd=1, attributes=region),
        box(6, 2, DOG, (50, 10, 70, 30), doubtful=True),
    ]
    sent = write(tmp_path / "sent.json", rows)
    crowds = (1, 0, 0, 1, 0, 0)  # set, left, cleared, left, cleared, cleared
    changed = [{**row, "iscrowd": crowd} for row, crowd in zip(rows, crowds, strict=True)]
    changed[5]["category_id"] = CAT
    if not attributes:
        changed = [{**row, "attributes": {}} for row in changed]
    corrections = take_back(sent, write(tmp_path / "back.json", changed))
    assert counts_of(corrections) == {
        "sent": [2, 0],
        "accepted": [1, 0],
        "moved": [0, 0],
        "renamed": [0, 0],
        "deleted": [0, 0],
        "ignored": [1, 0],
        "added": [2, 0],
        "doubted": [0, 3],
        "rescued": [0, 1],
    }
    console = Console(width=200)
    with console.capture() as told:
        console.print(corrections.table())
    assert "1.00 (0.21-1.00)" in told.get()  # of the one label that was judged
    write_verified(corrections, sent, tmp_path / "gold.json")
    gold = read_labels(tmp_path / "gold.json")
    assert gold.labels(0)["boxes"].ignore.tolist() == [
        Ignore.REGION,
        Ignore.NO,
        Ignore.NO,
        Ignore.CLASS,
    ]
    assert gold.labels(1)["boxes"].ignore.tolist() == [Ignore.NO, Ignore.NO]


@pytest.mark.parametrize("flag", [0, None], ids=["0", "lost"])
def test_doubts_that_are_all_gone_as_a_tool_without_crowds_loses_them_are_told(
    sent, tmp_path, flag
):
    rows = json.loads(sent.read_text())["annotations"]
    plain = [{k: v for k, v in row.items() if k != "attributes"} for row in rows]
    for row in plain:
        row.pop("iscrowd") if flag is None else row.update(iscrowd=flag)
    with pytest.warns(
        UserWarning, match=r"b\.json: 2 of 2 boxes that were sent as doubtful"
    ) as told:
        corrections = take_back(sent, write(tmp_path / "b.json", plain))
    assert len(told) == 1 and "selected with ignore_from: null" in str(told[0].message)
    assert counts_of(corrections)["rescued"] == counts_of(corrections)["doubted"] == [1, 1]
    # What follows shows that people looked, or that the tool knows crowds: nothing to warn of.
    moved, renamed, crowd = ([dict(row) for row in plain] for _ in range(3))
    moved[4]["bbox"] = [53, 50, 30, 30]
    renamed[5]["category_id"] = DOG
    crowd[0]["iscrowd"] = 1
    for changed in (moved, renamed, crowd, plain[:5] + plain[6:]):
        take_back(sent, write(tmp_path / "b.json", changed))
    (tmp_path / "done.txt").write_text("a/1.jpg\n")
    take_back(sent, write(tmp_path / "b.json", plain), finished=tmp_path / "done.txt")


@pytest.mark.parametrize(("untouched", "warned"), [(5, True), (3, True), (2, False), (0, False)])
def test_a_few_touched_doubts_do_not_hide_that_the_others_are_lost(sent, untouched, warned):
    corrections = SimpleNamespace(counts={"doubted": np.array([2, 3])}, untouched=untouched)
    ordinary = SimpleNamespace(annotations=SimpleNamespace(ignore=np.full(9, Ignore.NO)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        corrections_module._tell_lost_doubts(corrections, ordinary, sent)
    assert [f"{untouched} of 5 boxes" in str(t.message) for t in told] == [True] * warned


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 0),
        ({"segmentation": []}, 0),
        ({"segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}, 0),
        ({"segmentation": [[10, 10, 30, 10, 30, 30, 20, 40, 10, 30]]}, 1),
        ({"segmentation": {"counts": "0123", "size": [100, 100]}}, 1),
        ({"keypoints": [0, 0, 0, 0, 0, 0]}, 0),
        ({"keypoints": [12, 14, 2, 0, 0, 0]}, 1),
    ],
)
def test_shapes_and_keypoints_that_are_not_taken_are_counted(tmp_path, more, count):
    rows = [box(1, 1, CAT, (10, 10, 30, 30), **more), box(2, 2, DOG, (10, 10, 30, 30))]
    assert left_behind(write(tmp_path / "back.json", rows)) == count


def test_pictures_that_are_not_finished_stay_as_they_were_sent(sent, back, tmp_path):
    (tmp_path / "done.txt").write_text("\ufeff2.jpg\n\n", encoding="utf-8")
    data = json.loads(sent.read_text())
    for row in data["annotations"]:
        row["attributes"]["teacher"] = f"t{row['id']}"
    sent.write_text(json.dumps(data))
    corrections = take_back(sent, back, finished=tmp_path / "done.txt")
    assert corrections.pictures == 1 and counts_of(corrections)["sent"] == [1, 0]
    write_verified(corrections, sent, tmp_path / "gold.json")
    assert read_labels(tmp_path / "gold.json").ids.tolist() == [2]
    assert write_rest(corrections, sent, tmp_path / "rest.json") == 2
    rest, was = read_labels(tmp_path / "rest.json"), read_labels(sent)
    assert rest.ids.tolist() == [1, 3] and rest.coverage.tolist() == [[0.75, 0.5]]
    for i, k in ((0, 0), (1, 2)):
        ours, theirs = rest.labels(i)["boxes"], was.labels(k)["boxes"]
        assert ours.boxes.tolist() == theirs.boxes.tolist()
        assert (
            ours.scores.tolist() == theirs.scores.tolist()
            and ours.grade.tolist() == theirs.grade.tolist()
        )
    data = json.loads((tmp_path / "rest.json").read_text())
    teachers = [row["attributes"]["teacher"] for row in data["annotations"]]
    assert teachers == ["t1", "t2", "t3", "t7"], "what was said of each box stays with it"


def test_a_finished_picture_of_which_people_deleted_every_box(sent, back, tmp_path):
    data = json.loads(back.read_text())
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] != 9]
    back.write_text(json.dumps(data))
    (tmp_path / "done.txt").write_text("3.jpg\n")
    corrections = take_back(sent, back, finished=tmp_path / "done.txt")
    counts = counts_of(corrections)
    assert counts["sent"] == counts["deleted"] == [0, 1]
    assert not any(counts["accepted"] + counts["moved"] + counts["renamed"] + counts["added"])
    write_verified(corrections, sent, tmp_path / "gold.json")
    gold = json.loads((tmp_path / "gold.json").read_text())
    assert len(gold["images"]) == 1 and gold["annotations"] == []


def test_classes_that_nobody_reviewed_stay_silver(sent, back, tmp_path):
    corrections = take_back(sent, back, reviewed=["cat"])
    assert counts_of(corrections)["sent"] == [3, 0] and counts_of(corrections)["renamed"] == [0, 0]
    write_verified(corrections, sent, tmp_path / "mixed.json")
    mixed = read_labels(tmp_path / "mixed.json")
    assert mixed.grade is Grade.SILVER and mixed.coverage.tolist() == [[1, 0.5]] * 3
    first = mixed.labels(0)["boxes"]
    assert first.classes.tolist() == [0, 0, 1] and first.grade.tolist() == [0, 0, 1]
    assert first.scores.tolist() == [1, 1, 0.75]
    data = json.loads((tmp_path / "mixed.json").read_text())
    assert [a["attributes"].get("teacher") for a in data["annotations"][:3]] == [None, None, "t"]


def loaded(folder, name, classes=("cat", "dog"), **settings):
    """Returns a file as a source of a run, whose pictures have to be there."""
    for i, picture in enumerate(("a/1.jpg", "a/2.jpg", "b/3.jpg")):
        (folder / picture).parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 100), (i, 0, 0)).save(folder / picture)
    source = CocoSource(images=".", annotations=name, **settings)
    return source.load("people", folder, LabelSpace.of(classes), folder / "cache")


def test_what_people_reviewed_is_gold_once_it_is_kept_alone(sent, back, tmp_path):
    """A teacher learns from it, is audited on it, and silver is laid under it."""
    write_verified(take_back(sent, back, reviewed=["cat"]), sent, tmp_path / "mixed.json")
    assert json.loads((tmp_path / "mixed.json").read_text())["info"]["reviewed"] == ["cat"]
    mixed = loaded(tmp_path, "mixed.json")
    cats = loaded(tmp_path, "mixed.json", keep=["cat"])
    assert mixed.grade is Grade.SILVER and cats.grade is Grade.GOLD
    assert np.broadcast_to(cats.coverage, (3, 2)).tolist() == [[1, 0]] * 3
    own = cats.boxes_by_people()
    assert own is cats and own.annotations.classes.tolist() == [0] * 3
    assert own.labels(2)["boxes"].coverage.tolist() == [1, 0], "people looked and found none"
    pool = FolderSource(images=".").load("pool", tmp_path, LabelSpace.of(["cat", "dog"]), tmp_path)
    given, told = given_gold(pool, [cats])
    assert len(told) == 1 and given.coverage.tolist() == [[1, 0]] * 3
    tree = {
        "data": {
            "root": str(tmp_path),
            "classes": ["cat", "dog"],
            "sources": {
                "people": {"kind": "coco", "images": ".", "annotations": "mixed.json"},
                "pool": {"kind": "folder", "images": "."},
            },
            "val": {"kind": "coco", "images": ".", "annotations": "val.json"},
            "batch_size": 1,
        },
        "model": {"backbone": {"name": "resnet18"}},
        "tasks": {"boxes": {"kind": "detection"}},
        "silver": {"teacher": {"kind": "gold"}, "pools": ["pool"], "audit": {"share": 0.5}},
        "mix": {"mode": "concat"},
        "train": {"steps": 1},
    }
    settings = settings_from(tree)
    assert gold_by_models(settings, {"people": cats}) == []
    (problem,) = gold_by_models(settings, {"people": mixed})
    assert "by data.sources.people.keep: the classes that people reviewed" in problem


@pytest.mark.parametrize(
    ("settings", "classes", "info"),
    [
        ({"keep": ["dog"]}, ("cat", "dog"), {}),
        ({"keep": ["cat", "dog"]}, ("cat", "dog"), {}),
        ({"keep": ["cat"], "covers": ["cat", "dog"]}, ("cat", "dog"), {}),
        ({"keep": ["cat"], "grade": "silver"}, ("cat", "dog"), {}),
        ({"keep": ["pet"]}, {"pet": ["cat", "dog"]}, {}),
        ({"keep": ["cat"]}, ("cat", "dog"), {"reviewed": None}),
        ({"keep": ["cat"]}, ("cat", "dog"), {"reviewed": "cat"}),
    ],
)
@pytest.mark.parametrize("boxes", [True, False], ids=["boxes", "none"])
def test_what_a_model_says_is_no_gold_whatever_is_kept(
    sent, back, tmp_path, settings, classes, info, boxes
):
    """Not even where it says that there is nothing, which leaves no silver box."""
    write_verified(take_back(sent, back, reviewed=["cat"]), sent, tmp_path / "mixed.json")
    data = json.loads((tmp_path / "mixed.json").read_text())
    data["info"] |= info
    data["annotations"] = data["annotations"] if boxes else []
    data["info"]["coverage"] = {}
    (tmp_path / "mixed.json").write_text(json.dumps(data))
    assert loaded(tmp_path, "mixed.json", classes, **settings).grade is Grade.SILVER


def test_a_silver_box_of_a_class_that_is_called_reviewed_is_no_gold(sent, back, tmp_path):
    write_verified(take_back(sent, back, reviewed=["cat"]), sent, tmp_path / "mixed.json")
    data = json.loads((tmp_path / "mixed.json").read_text())
    data["annotations"][0]["attributes"]["grade"] = "silver"
    (tmp_path / "mixed.json").write_text(json.dumps(data))
    assert loaded(tmp_path, "mixed.json", keep=["cat"]).grade is Grade.SILVER


def test_classes_that_are_reviewed_one_after_the_other(sent, back, tmp_path):
    mixed, whole = tmp_path / "mixed.json", tmp_path / "whole.json"
    write_verified(take_back(sent, back, reviewed=["cat"]), sent, mixed)
    (tmp_path / "done.txt").write_text("1.jpg\n")
    second = take_back(mixed, back, reviewed=["dog"], finished=tmp_path / "done.txt")
    write_verified(second, mixed, whole)
    assert write_rest(second, mixed, tmp_path / "rest.json") == 2
    assert "reviewed" not in json.loads(whole.read_text())["info"]
    gold = loaded(tmp_path, "whole.json")
    assert gold.grade is Grade.GOLD and (gold.coverage == 1).all()
    assert sorted(gold.annotations.classes.tolist()) == [0, 0, 1, 1]
    rest = loaded(tmp_path, "rest.json", keep=["cat"])
    assert rest.grade is Grade.GOLD, "people have gone through its cats before"
    assert loaded(tmp_path, "rest.json").grade is Grade.SILVER


def test_where_every_box_was_made_a_crowd_no_precision_is_known(tmp_path):
    rows = [box(1, 1, CAT, (10, 10, 30, 30))]
    sent = write(tmp_path / "s.json", rows)
    corrections = take_back(sent, write(tmp_path / "b.json", [{**rows[0], "iscrowd": 1}]))
    assert counts_of(corrections)["ignored"] == counts_of(corrections)["sent"] == [1, 0]
    assert list(corrections.table().columns[-1].cells) == ["-", "-", "-"]


@pytest.mark.parametrize("before", [5, "dog", None])
def test_what_is_no_list_of_reviewed_classes_names_none(sent, back, tmp_path, before):
    data = json.loads(sent.read_text())
    data["info"]["reviewed"] = before
    sent.write_text(json.dumps(data))
    write_verified(take_back(sent, back, reviewed=["cat"]), sent, tmp_path / "mixed.json")
    assert json.loads((tmp_path / "mixed.json").read_text())["info"]["reviewed"] == ["cat"]


def test_a_box_is_matched_once_and_by_its_best(tmp_path):
    sent = write(
        tmp_path / "s.json", [box(1, 1, CAT, (0, 0, 20, 20)), box(2, 1, CAT, (2, 0, 22, 20))]
    )
    back = write(
        tmp_path / "b.json", [box(1, 1, CAT, (2, 0, 22, 20)), box(2, 1, DOG, (0, 0, 20, 20))]
    )
    counts = counts_of(take_back(sent, back))
    assert counts["accepted"] == [1, 0] and counts["renamed"] == [1, 0]
    assert counts["deleted"] == counts["added"] == [0, 0]
    twice = [box(1, 1, CAT, (0, 0, 20, 20)), box(2, 1, CAT, (2, 0, 22, 20))]
    sent, back = write(tmp_path / "s.json", twice[:1]), write(tmp_path / "b.json", twice)
    counts = counts_of(take_back(sent, back))
    assert counts["accepted"] == counts["added"] == [1, 0] and counts["moved"] == [0, 0]


@pytest.mark.parametrize(
    ("right", "done"),
    [(31, {"accepted"}), (31.5, {"moved"}), (50, {"moved"}), (51, {"deleted", "added"})],
)
def test_how_far_a_box_may_move_to_be_the_one_that_was_sent(tmp_path, right, done):
    """A pixel is rounding; of a box that grows to twice its size, half of both is the overlap."""
    sent = write(tmp_path / "s.json", [box(1, 1, CAT, (10, 10, 30, 30))])
    back = write(tmp_path / "b.json", [box(1, 1, CAT, (10, 10, right, 30), attributes={})])
    counts = counts_of(take_back(sent, back))
    assert {name for name, (cats, _) in counts.items() if cats} == {"sent", *done}


@pytest.mark.parametrize(
    ("doubtful", "change", "done"),
    [
        (False, {"bbox": [10, 10, 25, 20], "iscrowd": 1}, {"sent", "ignored"}),
        (False, {"category_id": DOG, "iscrowd": 1}, {"sent", "renamed"}),
        (True, {"category_id": DOG, "iscrowd": 0}, {"doubted", "added"}),
        (True, {"category_id": DOG}, {"doubted"}),
        (True, None, {"doubted"}),
    ],
)
def test_what_is_done_to_a_box_at_once_counts_once(tmp_path, doubtful, change, done):
    row = box(1, 1, CAT, (10, 10, 30, 30), doubtful)
    sent = write(tmp_path / "s.json", [row])
    back = write(tmp_path / "b.json", [] if change is None else [{**row, **change}])
    counts = counts_of(take_back(sent, back))
    assert {name for name, of_classes in counts.items() if any(of_classes)} == done


def test_pictures_may_come_back_in_another_order(sent, back, tmp_path):
    data = json.loads(back.read_text())
    data["images"].reverse()
    for number, image in enumerate(data["images"]):
        for row in data["annotations"]:
            row["image_id"] = number if row["image_id"] == image["id"] else row["image_id"]
        image["id"] = number
    turned = tmp_path / "turned.json"
    turned.write_text(json.dumps(data))

    def verified(path):
        source = take_back(sent, path).verified.source
        rows = zip(source.ids.tolist(), map(source.labels, range(len(source))), strict=True)
        return sorted((key, labels["boxes"].boxes.tolist()) for key, labels in rows)

    assert verified(turned) == verified(back)


def test_sizes_are_those_of_the_same_picture_in_any_order(tmp_path):
    def pictures(name, *sizes):
        path = write(tmp_path / name, [], [(i, n) for i, (n, _, _) in enumerate(sizes)])
        data = json.loads(path.read_text())
        for image, (_, width, height) in zip(data["images"], sizes, strict=True):
            image.update(width=width, height=height)
        path.write_text(json.dumps(data))
        return path

    sent = pictures("s.json", ("a.jpg", 100, 80), ("b.jpg", 60, 40))
    back = pictures("b.json", ("b.jpg", 60, 40), ("a.jpg", 100, 80))
    assert take_back(sent, back).pictures == 2
    with pytest.raises(InputError, match=r"'a\.jpg' is 80 x 100 pixels .* was sent as 100 x 80"):
        take_back(sent, pictures("t.json", ("b.jpg", 60, 40), ("a.jpg", 80, 100)))


def test_an_untouched_file_is_all_accepted(sent):
    counts = counts_of(take_back(sent, sent))
    assert counts["accepted"] == counts["sent"] == [3, 2]
    for name in ("moved", "renamed", "deleted", "ignored", "added", "rescued"):
        assert counts[name] == [0, 0]


@pytest.mark.parametrize(
    ("images", "names", "sentence"),
    [
        (
            [(1, "4.jpg")],
            ("cat", "dog"),
            r"b\.json: the picture '4\.jpg' is not among those of .*sent",
        ),
        (
            [(1, "1.jpg"), (2, "a/1.png")],
            ("cat", "dog"),
            r"b\.json: has the picture 'a/1\.jpg' twice",
        ),
        ([(1, "1.jpg")], ("cow", "cat"), r"b\.json: has the categories cow, which were not sent"),
    ],
)
def test_what_fits_nothing_that_was_sent(sent, tmp_path, images, names, sentence):
    back = write(tmp_path / "b.json", [box(1, 1, CAT, (10, 10, 30, 30))], images, names)
    with pytest.raises(InputError, match=sentence):
        take_back(sent, back)


@pytest.mark.parametrize(
    "names",
    [
        ("images/895c3330-1.jpg", "images/0a1b2c3d-a_photo_2.jpg"),  # Label Studio
        (r"images\895c3330-1.jpg", r"images\0a1b2c3d-a_photo_2.jpg"),  # on Windows
        ("1_jpg.rf.2f1c8b8d.jpg", "a photo (2)_JPG.rf.Xy3Z.jpg"),  # Roboflow
    ],
)
def test_names_as_tools_return_them(tmp_path, names):
    sent = write(tmp_path / "sent.json", [], [(1, "a/1.jpg"), (2, "a/a photo (2).jpg")])
    corrections = take_back(sent, write(tmp_path / "b.json", [], [*enumerate(names, 1)]))
    assert corrections.pictures == 2 and corrections.verified.source.ids.tolist() == [1, 2]


def test_finished_pictures_may_be_listed_on_windows(sent, back, tmp_path):
    (tmp_path / "done.txt").write_text("a\\1.jpg\r\na\\1.jpg\r\n")  # twice, which is no fault
    assert take_back(sent, back, finished=tmp_path / "done.txt").pictures == 1


def test_categories_without_a_box_are_no_new_classes(sent, tmp_path):
    """Tools write all labels of their project, and Roboflow the project's own name."""
    rows, images = [box(1, 1, DOG + 1, (10, 10, 30, 30))], [(1, "1.jpg")]
    names = ("pets", "cat", "dog", "cow")
    assert take_back(sent, write(tmp_path / "b.json", rows, images, names)).pictures == 1
    rows = [box(1, 1, DOG + 2, (10, 10, 30, 30))]
    with pytest.raises(InputError, match=r"has the categories cow, which were not sent"):
        take_back(sent, write(tmp_path / "b.json", rows, images, names))


@pytest.mark.parametrize(
    ("pictures", "touched", "warned"),
    [(20, 0, True), (20, 9, True), (20, 11, False), (30, 14, True), (30, 15, False)],
)
def test_pictures_that_nobody_touched_are_told_unless_they_are_called_finished(
    tmp_path, pictures, touched, warned
):
    """A tool returns all that it was given, whether or not somebody has looked at it."""
    images = [(i, f"{i}.jpg") for i in range(1, pictures + 1)]
    sent = write(tmp_path / "s.json", [box(i, i, CAT, (10, 10, 30, 30)) for i, _ in images], images)
    moved = [
        box(i, i, CAT, (10, 10, 35 if i <= touched else 30, 30), attributes={}) for i, _ in images
    ]
    back = write(tmp_path / "b.json", moved, images, info={})
    with pytest.warns(UserWarning) if warned else nullcontext() as told:
        assert take_back(sent, back).unchanged == (left := pictures - touched)
    if warned:
        assert f"{left} of {pictures} pictures came back just as they were" in str(told[0].message)
    (tmp_path / "done.txt").write_text("".join(f"{n}\n" for _, n in images))
    assert take_back(sent, back, finished=tmp_path / "done.txt").pictures == pictures


@pytest.mark.parametrize(
    ("change", "unchanged"),
    [
        ({}, 20),
        ({"score": 1, "attributes": {}}, 20),  # as a tool that loses what it does not know
        (None, 0),
        ({"category_id": DOG}, 0),
        ({"category_id": DOG, "iscrowd": 0}, 0),
        ({"bbox": [10, 10, 25, 20]}, 0),
        ({"bbox": [10.5, 10, 20, 20.4]}, 20),
        ({"iscrowd": 0}, 0),
    ],
)
@pytest.mark.parametrize("ignore", ["class", "region"])
def test_pictures_of_which_people_changed_what_is_in_doubt_are_changed(
    tmp_path, change, unchanged, ignore
):
    images = [(i, f"{i}.jpg") for i in range(1, 21)]
    said = {"iscrowd": 1, "attributes": {"grade": "silver", "ignore": ignore}}
    rows = [box(i, i, CAT, (10, 10, 30, 30), **said) for i, _ in images]
    sent = write(tmp_path / "s.json", rows, images)
    kept = [] if change is None else [{**row, **change} for row in rows]
    back = write(tmp_path / "b.json", kept, images)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert take_back(sent, back).unchanged == unchanged
    assert any("just as they were" in str(t.message) for t in told) == (unchanged == 20)


def test_a_name_that_fits_several_pictures_and_other_mistakes(tmp_path, sent, back):
    rows = [box(1, 1, CAT, (10, 10, 30, 30))]
    two = write(tmp_path / "two.json", rows, [(1, "a/1.jpg"), (2, "b/1.jpg")])
    flat = write(tmp_path / "flat.json", rows, [(1, "1.jpg")])
    with pytest.raises(InputError, match=r"'1\.jpg' has a name that fits several of .*two\.json"):
        take_back(two, flat)
    assert take_back(two, write(tmp_path / "c.json", rows, [(1, "b/1")])).pictures == 1
    data = json.loads(flat.read_text())
    data["images"][0]["width"] = 50
    flat.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"'1\.jpg' is 50 x 100 pixels .* was sent as 100 x 100"):
        take_back(sent, flat)
    with pytest.raises(InputError, match="cow were not sent; the classes are cat, dog"):
        take_back(sent, back, reviewed=["cow"])
    with pytest.raises(InputError, match=r"gone\.txt: cannot be read"):
        take_back(sent, back, finished=tmp_path / "gone.txt")
    (tmp_path / "gone.txt").write_bytes("größe.jpg".encode("latin-1"))
    with pytest.raises(InputError, match=r"gone\.txt: cannot be read"):
        take_back(sent, back, finished=tmp_path / "gone.txt")
    odd = write(tmp_path / "odd.json", rows, [(1, "1.jpg")], categories=[{"id": CAT}, "dog"])
    with pytest.raises(InputError, match=r"odd\.json: category at position 1: is 'dog'"):
        take_back(sent, odd)
    (tmp_path / "done.txt").write_text("3.jpg\n")  # was sent, but is not among what came back
    with pytest.raises(InputError, match=r"done\.txt: names no picture that is in .*flat\.json"):
        take_back(sent, write(flat, rows, [(1, "1.jpg")]), finished=tmp_path / "done.txt")
    (tmp_path / "done.txt").write_text("9.jpg\n")
    with pytest.raises(InputError, match=r"done\.txt: the picture '9\.jpg' is not among"):
        take_back(sent, back, finished=tmp_path / "done.txt")
