"""COCO annotation files: reading, what is refused, writing."""

import json
import os
import re
import tracemalloc

import numpy as np
import pytest
import torch
from coco_files import NAMES, annotation, coco_data, save_coco, save_picture
from pycocotools.coco import COCO

from detmtl.data.coco import CocoSource
from detmtl.data.coco_rows import is_object
from detmtl.data.coco_writer import CocoImage, write_coco, write_coco_annotations
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore

CLASSES = LabelSpace.of(NAMES)


def load(root, data=None, num_images=3, classes=CLASSES, **settings):
    """Writes and reads a COCO folder."""
    if data is not None:
        save_coco(root, data, num_images)
    source = CocoSource(images="images", annotations="coco.json", **settings)
    return source.load("here", root, classes, root / "cache")


def problems_of(root, data, **settings) -> list[str]:
    """Returns the sentences with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load(root, data, **settings)
    return caught.value.problems


def test_reads_boxes_ids_and_gappy_categories(tmp_path):
    source = load(tmp_path, coco_data())
    assert len(source) == 3 and source.ids.tolist() == [10, 20, 30]
    second = source.labels(1)["boxes"]
    assert second.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 64, 48]]
    assert second.classes.tolist() == [2, 1]
    assert second.scores.tolist() == [1, 1] and second.coverage.tolist() == [1, 1, 1]
    assert len(source.labels(2)["boxes"]) == 0  # looked at, nothing there: not absent
    assert source.info(0).height == 48 and source.path(0).endswith("0.png")
    assert source.read(0).shape == (48, 64, 3)
    assert source.grade is Grade.GOLD


def test_classes_are_merged_dropped_or_refused(tmp_path):
    pets = LabelSpace.of({"pet": ["cat", "dog"], "car": ["car"]}, drop_unmapped=True)
    source = load(tmp_path, coco_data(), classes=pets)
    assert source.annotations.classes.tolist() == [0, 0]
    assert source.labels(0)["boxes"].coverage.tolist() == [1, 0]  # nobody looked for cars
    kept = LabelSpace.of(["cat", "dogs"])
    with pytest.raises(InputError, match=r"'dog' belongs to no class .*nearest: 'dogs'"):
        load(tmp_path, classes=kept)


def test_extension_fields_are_read(tmp_path):
    data = coco_data()
    silver = {"grade": "silver", "class_weight": 0.25, "box_weight": 0.5, "teacher": "x"}
    data["annotations"] = [
        annotation(1, 10, 1, [1, 1, 5, 5], score=0.75, attributes=silver),
        annotation(2, 10, 5, [1, 1, 5, 5], iscrowd=1, attributes={"ignore": "class"}),
        annotation(3, 10, 9, [1, 1, 5, 5], iscrowd=1),
        annotation(4, 10, 9, [1, 1, 5, 5], ignore=1, attributes={"color": "red"}),
    ]
    data["info"] = {"coverage": {"dog": 0.5}}
    source = load(tmp_path, data)
    labels = source.labels(0)["boxes"]
    assert labels.scores.tolist() == [0.75, 1, 1, 1]
    assert labels.weights.tolist() == [[0.25, 0.5], [1, 1], [1, 1], [1, 1]]
    assert labels.ignore.tolist() == [0, Ignore.CLASS, Ignore.REGION, Ignore.REGION]
    assert labels.grade.tolist() == [1, 0, 0, 0]
    assert labels.coverage.tolist() == [1, 0.5, 1]
    assert source.grade is Grade.SILVER


def test_the_grade_of_the_file_is_that_of_annotations_that_do_not_say_theirs(tmp_path):
    data = coco_data()
    data["info"] = {"grade": "silver"}
    data["annotations"][0]["attributes"] = {"grade": "gold"}
    source = load(tmp_path, data)
    assert source.annotations.grade.tolist() == [Grade.SILVER, Grade.GOLD, Grade.SILVER]
    assert source.grade == Grade.SILVER and source.grades() == {Grade.SILVER, Grade.GOLD}
    assert source.boxes_by_people().annotations.boxes.tolist() == [[1, 2, 11, 22]]
    # What is written says it of each, so that it is read alike.
    write_coco_annotations(tmp_path / "coco.json", source)
    again = load(tmp_path)
    assert again.annotations.grade.tolist() == source.annotations.grade.tolist()
    data["info"] = {"grade": "gold"}  # as where a file says nothing
    gold = load(tmp_path, data)
    assert gold.grade == Grade.GOLD and not gold.annotations.grade.any()
    assert load(tmp_path, grade="silver").annotations.grade.tolist() == [1, 0, 1]
    data["info"] = {"grade": "Silver"}
    assert problems_of(tmp_path, data) == [
        "coco.json: info.grade is 'Silver'; it is gold or silver"
    ]


def test_iscrowd_says_whether_and_attributes_how_an_annotation_is_ignored(tmp_path):
    data, said = coco_data(), {"ignore": "class"}
    rows = [{"iscrowd": 0}, {"iscrowd": None}, {"iscrowd": 1}, {"iscrowd": 0, "ignore": 1}]
    data["annotations"] = [
        annotation(i, 10, 1, [1, 1, 5, 5]) | row | {"attributes": said}
        for i, row in enumerate(rows)
    ]
    assert load(tmp_path, data).boxes(0).ignore.tolist() == [Ignore.NO] + [Ignore.CLASS] * 3
    assert [is_object(row) for row in data["annotations"]] == [True, False, False, False]


def test_a_class_of_crowds_alone_is_told(tmp_path):
    """As CVAT writes masks: such a file taught nothing, and neither `check` nor a run said so."""
    data = coco_data()
    for row in data["annotations"]:
        row["iscrowd"] = int(row["category_id"] != 1)
    notes = load(save_coco(tmp_path, data)).notes
    assert [note.split(",")[0] for note in notes] == [
        f"source 'here': has of class '{name}' 1 boxes" for name in ("dog", "bird")
    ]
    assert "`iscrowd: 1`" in notes[0] and "CVAT" in notes[0]
    assert len(load(tmp_path, keep=["cat", "dog"]).notes) == 1
    assert load(tmp_path, grade="silver").notes == ()


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_what_is_neither_true_nor_false_ignores_nothing_in_silence(tmp_path, key):
    data = coco_data()
    given = [float("nan"), "0", "false", 2, []]
    sound = [0, 1, True, False, None, 0.0]
    data["annotations"] = [
        annotation(i, 10, 1, [1, 1, 5, 5]) | {key: value} for i, value in enumerate(given + sound)
    ]
    told = [s.split(": ", 2)[2] for s in problems_of(tmp_path, data)[1:]]
    assert told == [f"{key} is {value!r}; it needs 0 or 1" for value in given]


def test_lvis_fields_say_what_was_searched(tmp_path):
    data = coco_data()
    data["images"][0]["neg_category_ids"] = [9]  # a cat is annotated, birds are not there
    data["images"][1]["not_exhaustive_category_ids"] = [5]
    source = load(tmp_path, data)
    assert source.coverage.tolist() == [[1, 0, 1], [1, 0, 1], [1, 1, 1]]
    both = LabelSpace.of({"pet": ["cat", "dog"], "bird": ["bird"]})
    merged = load(tmp_path, classes=both)
    assert merged.coverage[0].tolist() == [0, 1]  # dogs, which are pets, were not searched
    explicit = load(tmp_path, covers=["dog"])
    assert explicit.coverage[0].tolist() == [0, 1, 0]


def test_a_picture_may_state_its_coverage_as_numbers(tmp_path):
    data = coco_data()
    data["info"] = {"coverage": {"cat": 0.5, "dog": 0}}
    data["images"][0]["coverage"] = {"dog": 1, "bird": 0.25}
    data["images"][1]["neg_category_ids"] = []
    data["images"][1]["coverage"] = {"cat": 0.75}
    source = load(tmp_path, data)
    # of the second picture the lists say that its birds and dogs were looked for, and info that dogs were not
    assert source.coverage.tolist() == [[0.5, 1, 0.25], [0.75, 0, 1], [0.5, 0, 1]]
    both = LabelSpace.of({"pet": ["cat", "dog"], "bird": ["bird"]})
    assert load(tmp_path, classes=both).coverage[0].tolist() == [0, 0.25]  # of members the least
    assert load(tmp_path, covers=["bird"]).coverage.tolist()[0] == [0, 0, 0.25]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("neg_category_ids", [2, 9], r"neg_category_ids has \[2\], which are not in 'categories'"),
        ("neg_category_ids", 5, "neg_category_ids is 5; it needs a list of category ids"),
        (
            "not_exhaustive_category_ids",
            ["cat"],
            r"not_exhaustive_category_ids is \['cat'\]; it needs a list",
        ),
        ("coverage", ["cat"], r"coverage is \['cat'\]; it needs category names and recalls"),
        ("coverage", {"cow": 1}, "coverage names 'cow', which is not in 'categories'"),
        ("coverage", {"cat": True}, r"coverage of 'cat' is True; it lies in \[0, 1\]"),
    ],
)
def test_coverage_of_a_picture_that_makes_no_sense(tmp_path, key, value, sentence):
    data = coco_data()
    data["images"][1][key] = value
    problems = problems_of(tmp_path, data)
    assert len(problems) == 2 and re.search("coco.json: image 20: " + sentence, problems[1]), (
        problems
    )


def test_strange_ids_are_told_picture_by_picture(tmp_path):
    data = coco_data()
    data["images"][0]["neg_category_ids"] = [4, 9, 2, 4]
    data["images"][2]["neg_category_ids"] = [7]
    assert problems_of(tmp_path, data)[1:] == [
        "coco.json: image 10: neg_category_ids has [2, 4], which are not in 'categories'",
        "coco.json: image 30: neg_category_ids has [7], which are not in 'categories'",
    ]


@pytest.mark.parametrize(
    ("key", "value", "coverage"),
    [
        ("neg_category_ids", [2, 1], [1, 1, 1]),  # of what it has, dogs and birds, it was searched
        ("neg_category_ids", ["1"], [0, 1, 1]),
        ("neg_category_ids", 1, [0, 1, 1]),
        ("not_exhaustive_category_ids", [2, 1], [0, 0, 0]),
        ("not_exhaustive_category_ids", ["1"], [0, 0, 0]),
        ("not_exhaustive_category_ids", 2**70, [0, 0, 0]),
        ("not_exhaustive_category_ids", [2**70], [0, 0, 0]),
        ("coverage", ["cat"], [0, 0, 0]),
        ("coverage", {"cow": 1, "cat": 0.5}, [0.5, 0, 0]),
        ("coverage", {"cat": 7}, [0, 1, 1]),
    ],
)
def test_coverage_that_makes_no_sense_is_dropped_to_the_least(tmp_path, key, value, coverage):
    data = coco_data()
    data["images"][1][key] = value
    save_coco(tmp_path, data)
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop")
    assert source.coverage.tolist() == [[1, 1, 1], coverage, [1, 1, 1]]


def test_boxes_are_cut_within_a_pixel_of_the_edge(tmp_path):
    data = coco_data()
    data["annotations"] = [annotation(1, 10, 1, [-0.5, 40, 65, 9])]
    assert load(tmp_path, data).labels(0)["boxes"].boxes.tolist() == [[0, 40, 64, 48]]


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bbox": [1, 1, NAN, 5]}, "annotation 3 of image 10: the box .*nan.* is not finite"),
        ({"bbox": [1, 1, float("inf"), 5]}, "annotation 3 of image 10: .*inf.* is not finite"),
        (
            {"bbox": [9, 9, -3, 5]},
            "annotation 3 of image 10: width is -3 .*need width and height > 0",
        ),
        (
            {"bbox": [9, 9, 3, 0]},
            "annotation 3 of image 10: height is 0; boxes need width and height > 0",
        ),
        (
            {"bbox": [60, 9, 20, 5]},
            "annotation 3 of image 10: .* lies outside its picture of 64 x 48",
        ),
        ({"bbox": [-9, 9, 20, 5]}, "annotation 3 of image 10: .* lies outside its picture"),
        ({"bbox": [64, 9, 0.5, 5]}, "annotation 3 of image 10: .* lies outside its picture"),
        (
            {"bbox": [1, 2, 3]},
            r"annotation 3 of image 10: 'bbox' is \[1, 2, 3\]; it needs 4 numbers",
        ),
        ({"bbox": "1 2 3 4"}, "annotation 3 of image 10: 'bbox' is '1 2 3 4'; it needs 4 numbers"),
        (
            {"category_id": 4},
            "annotation 3 of image 10: category_id is 4, which is not in 'categories'",
        ),
        (
            {"category_id": "cat"},
            "annotation 3 of image 10: 'category_id' is 'cat'; it needs a whole",
        ),
        ({"image_id": 99}, "annotation 3 of image 99: there is no such image"),
        ({"image_id": None}, "annotation 3: 'image_id' is None; it needs a whole number"),
        ({"id": 7}, "annotation 7 of image 10: the annotation id is used twice"),
        ({"score": 1.5}, r"annotation 3 of image 10: score is 1.5; scores lie in \[0, 1\]"),
        ({"score": "high"}, "annotation 3 of image 10: 'score' is 'high'; it needs a number"),
        (
            {"attributes": {"grade": "bronze"}},
            "attributes.grade is 'bronze'; allowed are gold and silver, and an attribute of your own",
        ),
        (
            {"attributes": {"ignore": "all"}},
            "attributes.ignore is 'all'; allowed are class and region",
        ),
        ({"attributes": {"box_weight": -1}}, "attributes.box_weight is -1; it needs a number >= 0"),
    ],
)
def test_a_faulty_annotation_is_named_or_dropped(tmp_path, change, sentence):
    data = coco_data()
    data["annotations"][1].update(change)
    problems = problems_of(tmp_path, data)
    assert "1 fault; correct" in problems[0] and "faults: drop" in problems[0]
    assert len(problems) == 2 and re.search("coco.json: .*" + sentence, problems[1]), problems
    for _ in range(2):  # the second time from the cache: the loss is told again
        with pytest.warns(UserWarning, match=r"1 fault left out: .*annotation"):
            source = load(tmp_path, faults="drop")
        assert len(source) == 3 and source.annotations.classes.tolist()[-2:] == [2, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": 20}, "the image id 20 is listed twice"),
        ({"id": "x"}, "image at position 2: 'id' is 'x'; it needs a whole number"),
        (
            {"id": 2**63 + 1},
            "image at position 2: 'id' is 9223372036854775809; it needs a whole number below",
        ),
        ({"file_name": None}, "image 30: has no 'file_name'"),
        ({"height": 0}, "image 30: height is 0; it needs a whole number of pixels > 0"),
        ({"file_name": "gone.png"}, r"images/gone\.png: no such picture"),
    ],
)
def test_a_faulty_picture_is_named_or_dropped(tmp_path, change, sentence):
    data = coco_data()
    data["images"][2].update(change)
    problems = problems_of(tmp_path, data)
    assert len(problems) == 2 and sentence.replace("\\", "") in problems[1], problems
    with pytest.warns(UserWarning, match="left out"):
        source = load(tmp_path, faults="drop")
    assert source.ids.tolist() == [10, 20] and len(source.annotations) == 3


@pytest.mark.parametrize("stated", [True, False], ids=["sizes", "no sizes"])
@pytest.mark.parametrize("folder", ["", "train2017/"], ids=["flat", "split"])
def test_pictures_of_lvis_are_found_by_their_addresses(tmp_path, folder, stated):
    data = coco_data()
    for i, row in enumerate(data["images"]):
        split = "val2017" if folder and i == 2 else "train2017"
        row["coco_url"] = f"http://images.cocodataset.org/{split}/{row.pop('file_name')}"
        save_picture(tmp_path / "images" / (f"{split}/" if folder else "") / f"{i}.png", seed=i)
        if not stated:
            del row["height"], row["width"]
    source = load(tmp_path, data, num_images=0)
    last = "val2017/2.png" if folder else "2.png"
    assert [source.files.name(i) for i in range(3)] == [f"{folder}0.png", f"{folder}1.png", last]
    assert source.sizes.tolist() == [[48, 64]] * 3 and source.read(2).shape == (48, 64, 3)
    (tmp_path / "images" / last).unlink()
    with pytest.raises(InputError, match=rf"images/{last}: no such picture"):
        load(tmp_path)


def test_pictures_that_move_into_the_folder_of_their_split_are_found_again(tmp_path):
    data = coco_data()
    for row in data["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/train2017/{row.pop('file_name')}"
    source = load(tmp_path, data)
    assert source.files.name(0) == "0.png"
    (tmp_path / "images").rename(tmp_path / "train2017")
    (tmp_path / "images").mkdir()
    (tmp_path / "train2017").rename(tmp_path / "images" / "train2017")
    assert load(tmp_path).files.name(0) == "train2017/0.png"


@pytest.mark.parametrize("given", [{}, {"bbox": None}, {"bbox": []}])
def test_a_box_that_is_not_given_is_that_around_the_polygons(tmp_path, given):
    data = coco_data()
    square, corner = [4, 4, 14, 4, 14.5, 24, 4, 20], [30, 2, 20, 8, 25, 30]
    shapes = {7: [square], 3: [square, corner], 5: corner}  # VIA writes one polygon without a list
    rows = [{k: v for k, v in row.items() if k != "bbox"} for row in data["annotations"]]
    data["annotations"] = [row | given | {"segmentation": shapes[row["id"]]} for row in rows]
    source = load(tmp_path, data)
    assert source.boxes(0).boxes.tolist() == [[4, 2, 30, 30]]
    assert source.boxes(1).boxes.tolist() == [[4, 4, 14.5, 24], [20, 2, 30, 30]]


@pytest.mark.parametrize("shape", [[], [[]], [[1, 2, "x", 4]], [[1, 2, 3]], {"counts": [0]}, None])
def test_a_box_that_no_polygon_tells(tmp_path, shape):
    data = coco_data()
    data["annotations"][1] |= {"bbox": None, "segmentation": shape}
    (_, problem) = problems_of(tmp_path, data)
    assert "annotation 3 of image 10: 'bbox' is None; it needs 4 numbers" in problem


def test_boxes_in_fractions_are_refused(tmp_path):
    data = coco_data()
    for row in data["annotations"]:
        row["bbox"] = [0.1, 0.2, 0.5, 0.8]
    (problem,) = problems_of(tmp_path, data)
    assert "all of its boxes lie within the first pixel" in problem
    data["annotations"][0]["bbox"] = [1, 2, 10, 20]
    assert len(load(tmp_path, data).annotations) == 3


def test_names_with_backslashes_as_tools_on_windows_write_them(tmp_path):
    data = coco_data()
    for row in data["images"]:
        row["file_name"] = "images\\" + row["file_name"]
    save_coco(tmp_path, data)
    settings = CocoSource(images=".", annotations="coco.json")
    source = settings.load("here", tmp_path, CLASSES, tmp_path / "cache")
    assert source.files.name(0) == "images/0.png"
    save_picture(tmp_path / "images\\1.png", seed=9)  # here that is a name like any other
    (tmp_path / "coco.json").write_text(json.dumps(data, indent=1))
    source = settings.load("here", tmp_path, CLASSES, tmp_path / "cache")
    assert [source.files.name(i) for i in range(2)] == ["images/0.png", "images\\1.png"]


@pytest.mark.parametrize("change", [{}, {"coco_url": "http://x/"}, {"file_name": 5}])
def test_a_picture_without_a_name(tmp_path, change):
    data = coco_data()
    del data["images"][2]["file_name"]
    data["images"][2] |= change
    (_, problem) = problems_of(tmp_path, data)
    assert "image 30: has no 'file_name', nor the 'coco_url' of LVIS" in problem


@pytest.mark.parametrize("again", ["0.png", "./0.png"])
def test_a_picture_that_is_listed_under_two_ids_is_refused_or_dropped_whole(tmp_path, again):
    data = coco_data()
    data["images"][1]["file_name"] = again  # each would have the other's boxes as background
    (_, problem) = problems_of(tmp_path, data)
    assert "coco.json: the images 10, 20 are all 0.png; keep one of them, or join" in problem
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop")
    assert source.ids.tolist() == [30] and source.coverage.tolist() == [ALL]


ALL, NO_CAT, NOTHING = [1, 1, 1], [0, 1, 1], [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "boxes", "ignore", "coverage"),
    [
        ({"bbox": [50, 9, 20, 5]}, [[50, 9, 64, 14]], [Ignore.NO], ALL),  # 6 pixels over the edge
        ({"score": 1.5}, [[4, 4, 12.5, 12.25]], [Ignore.REGION], ALL),
        ({"attributes": {"grade": "bronze"}}, [[4, 4, 12.5, 12.25]], [Ignore.REGION], ALL),
        ({"id": 7}, [[4, 4, 12.5, 12.25]], [Ignore.REGION], ALL),
        ({"bbox": [9, 9, 3, 0]}, [], [], NO_CAT),
        ({"bbox": [90, 9, 3, 3]}, [], [], NO_CAT),
        ({"bbox": None}, [], [], NO_CAT),
        ({"category_id": 4}, [], [], NOTHING),
        ({"category_id": "cat"}, [], [], NOTHING),
        ({"image_id": 99}, [], [], ALL),
    ],
)
def test_what_is_dropped_does_not_become_background(tmp_path, change, boxes, ignore, coverage):
    data = coco_data()
    data["annotations"][1].update(change)
    save_coco(tmp_path, data)
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop")
    labels = source.boxes(0)
    assert labels.boxes.tolist() == boxes and labels.ignore.tolist() == ignore
    assert labels.coverage.tolist() == coverage and source.boxes(1).coverage.tolist() == ALL


def test_a_lost_label_is_stronger_than_what_covers_file_says(tmp_path):
    data = coco_data()
    data["annotations"][1]["bbox"] = None
    save_coco(tmp_path, data)
    (tmp_path / "c.json").write_text('{"0.png": ["cat", "dog"], "1.png": ["cat"]}')
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop", covers_file="c.json")
    assert source.coverage.tolist() == [[0, 1, 0], [1, 0, 0], ALL]


def test_a_category_of_id_0_takes_no_annotation_without_category(tmp_path):
    data = coco_data()
    data["categories"][0]["id"] = 0
    data["annotations"][1]["category_id"] = "cat"
    save_coco(tmp_path, data)
    with pytest.warns(UserWarning, match="1 fault left out"):
        assert load(tmp_path, faults="drop").annotations.classes.tolist() == [2, 1]


def test_a_missing_picture_without_a_stated_size_is_told_and_comes_back(tmp_path):
    data = coco_data()
    for image in data["images"]:
        del image["height"], image["width"]
    save_coco(tmp_path, data)
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png: no such picture; its size is not in coco.json"):
        load(tmp_path)
    with pytest.warns(UserWarning, match=r"1\.png: no such picture"):
        assert load(tmp_path, faults="drop").ids.tolist() == [10, 30]
    save_picture(tmp_path / "images" / "1.png", seed=1)
    for faults in ("error", "drop"):
        assert load(tmp_path, faults=faults).ids.tolist() == [10, 20, 30]
    save_picture(tmp_path / "images" / "1.png", 96, 128)
    for faults in ("error", "drop"):
        assert load(tmp_path, faults=faults).sizes.tolist() == [[48, 64], [96, 128], [48, 64]]


def test_pictures_that_cannot_be_used_are_dropped_before_the_training(tmp_path):
    save_coco(tmp_path, coco_data(5), 5)
    whole = (tmp_path / "images" / "1.png").read_bytes()
    (tmp_path / "images" / "1.png").write_bytes(whole[: len(whole) // 2])
    save_picture(tmp_path / "images" / "2.png", 50, 64)
    (tmp_path / "images" / "3.png").write_text("no picture")
    told = r"3 faults left out: .*1\.png: the picture is truncated.*2\.png: .* says 64 x 48"
    with pytest.warns(UserWarning, match=told):
        source = load(tmp_path, faults="drop")
    assert source.ids.tolist() == [10, 50]
    assert [source.read(i).shape for i in range(2)] == [(48, 64, 3)] * 2
    (tmp_path / "images" / "1.png").write_bytes(whole)
    with pytest.warns(UserWarning, match="2 faults left out"):
        assert load(tmp_path, faults="drop").ids.tolist() == [10, 20, 50]


def test_everything_wrong_is_told_at_once(tmp_path):
    data = coco_data()
    data["annotations"][0]["bbox"][2] = -1
    data["annotations"][1]["category_id"] = 2
    data["images"][2]["file_name"] = "gone.png"
    assert len(problems_of(tmp_path, data)) == 4
    for row in data["annotations"]:
        row["category_id"] = 2
    told = " ".join(problems_of(tmp_path, data))
    assert told.count("category_id is 2") == 1 and "(and 2 more annotations)" in told


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"coco.json: the file is empty \(0 bytes\)"),
        ("{'a': 1}", "coco.json: is not JSON .*line 1 column 2"),
        ("[]", r"coco.json: is a list, perhaps of detections"),
        ("3", "coco.json: is int; it needs to be a JSON object"),
        ("{}", "coco.json: has no list 'images'"),
        ({**coco_data(), "images": []}, "coco.json: the list 'images' is empty"),
        ({**coco_data(), "annotations": []}, "coco.json: has no annotations at all"),
        (
            {**coco_data(), "annotations": {}},
            "coco.json: 'annotations' is dict; it needs to be a list",
        ),
        ({**coco_data(), "categories": []}, "coco.json: the list 'categories' is empty"),
        ({**coco_data(), "categories": [{"id": 1}]}, "coco.json: category 1 has no name"),
        (
            {**coco_data(), "categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
            "coco.json: the category id 1 is listed twice",
        ),
        (
            {**coco_data(), "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]},
            "coco.json: two categories are named 'cat'",
        ),
        ({**coco_data(), "info": {"coverage": {"cow": 1}}}, "info.coverage names 'cow'"),
        ({**coco_data(), "info": {"coverage": {"cat": 2}}}, "info.coverage of 'cat' is 2"),
    ],
)
@pytest.mark.parametrize("faults", ["error", "drop"])
def test_a_file_that_cannot_be_used_is_refused_in_any_case(tmp_path, text, sentence, faults):
    problems = problems_of(tmp_path, text, faults=faults)
    assert re.search(sentence, problems[0]), problems


def test_missing_files_and_folders(tmp_path):
    save_coco(tmp_path, coco_data())
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        CocoSource(images="images", annotations="nowhere.json").load(
            "x", tmp_path, CLASSES, tmp_path / "c"
        )
    with pytest.raises(InputError, match=r"folder of pictures .*nowhere does not exist"):
        CocoSource(images="nowhere", annotations="coco.json").load(
            "x", tmp_path, CLASSES, tmp_path / "c"
        )
    with pytest.raises(InputError, match="none of its 3 pictures is there"):
        CocoSource(images="cache", annotations="coco.json").load(
            "x", tmp_path, CLASSES, tmp_path / "cache"
        ) if (tmp_path / "cache").mkdir() is None else None
    load(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png: no such picture"):  # though the cache knows it
        load(tmp_path)
    with pytest.raises(
        InputError, match=r"covers names 'cats', which is no class .*nearest: 'cat'"
    ):
        load(tmp_path, covers=["cats"], faults="drop")


def test_nothing_found_is_legal_if_somebody_looked(tmp_path):
    source = load(tmp_path, {**coco_data(), "annotations": []}, covers=["cat", "dog"])
    labels = source.labels(0)["boxes"]
    assert len(labels) == 0 and labels.coverage.tolist() == [1, 1, 0]


def test_sizes_come_from_the_picture_where_the_file_has_none(tmp_path):
    data = coco_data()
    del data["images"][0]["height"], data["images"][0]["width"]
    assert load(tmp_path, data).sizes.tolist() == [[48, 64]] * 3


def test_a_wrong_size_is_noticed_when_the_picture_is_read(tmp_path):
    data = coco_data()
    data["images"][0].update(height=64, width=48)
    source = load(tmp_path, data)
    with pytest.raises(InputError, match=r"64 x 48 pixels .* says 48 x 64"):
        source.read(0)


def silver_images():
    """Three pictures with every kind of label, with no box, and unlabelled."""
    labels = BoxLabels.of(
        torch.tensor([[1.125, 2, 11.5, 22], [0, 0, 64, 48], [5, 5, 6, 6]]),
        torch.tensor([2, 0, 0]),
        num_classes=3,
        scores=torch.tensor([0.5, 0.875, 1]),
        weights=torch.tensor([[1, 0.5], [1, 1], [0.25, 0]]),
        ignore=torch.tensor([Ignore.NO, Ignore.CLASS, Ignore.REGION]),
        grade=torch.tensor([1, 1, 0]),
        coverage=torch.tensor([0.25, 0, 1]),
    )
    teacher = [{"teacher": "t"}] * 3
    return [
        CocoImage("0.png", 48, 64, 10, labels, teacher),
        CocoImage("1.png", 48, 64, 20, BoxLabels.empty(3)),
        CocoImage("2.png", 48, 64, 30, None),
    ]


def test_written_files_are_read_back_alike(tmp_path):
    save_coco(tmp_path, "")
    images = silver_images()
    count = write_coco(tmp_path / "coco.json", iter(images), NAMES, {"coverage": {"cat": 0.5}})
    source = load(tmp_path)
    assert count == 3 and source.grade is Grade.SILVER
    assert source.coverage.tolist() == [[0.25, 0, 1], [1, 1, 1], [0, 0, 0]]
    first, expected = source.labels(0)["boxes"], images[0].labels
    for name in ("boxes", "classes", "scores", "weights", "ignore", "grade"):
        assert torch.equal(getattr(first, name), getattr(expected, name)), name
    data = json.loads((tmp_path / "coco.json").read_text())
    assert data["images"][0]["coverage"] == {"cat": 0.25} and "coverage" not in data["images"][2]
    assert data["annotations"][0]["attributes"]["teacher"] == "t"
    assert [a["iscrowd"] for a in data["annotations"]] == [0, 1, 1]
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3]
    write_coco_annotations(tmp_path / "again.json", source)
    again = json.loads((tmp_path / "again.json").read_text())
    for row in data["annotations"]:
        row["attributes"].pop("teacher")
    assert [a.get("bbox") for a in again["annotations"]] == [a["bbox"] for a in data["annotations"]]
    (tmp_path / "coco.json").write_text(json.dumps(again))
    np.testing.assert_array_equal(load(tmp_path).coverage, source.coverage)


def test_pycocotools_reads_what_is_written(tmp_path, capsys):
    write_coco(tmp_path / "coco.json", silver_images(), NAMES, {})
    coco = COCO(tmp_path / "coco.json")
    assert coco.getCatIds() == [1, 2, 3] and coco.getImgIds() == [10, 20, 30]
    row = coco.loadAnns(coco.getAnnIds(10, iscrowd=False))[0]
    assert row["bbox"] == [1.125, 2, 10.375, 20] and row["area"] == pytest.approx(207.5)
    assert row["category_id"] == 3 and row["score"] == 0.5


def test_a_file_name_that_is_no_utf8_is_written_and_read_again(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save_picture(tmp_path / "images" / name)
    image = CocoImage(name, 48, 64, 10, BoxLabels.empty(3))
    write_coco(tmp_path / "coco.json", [image], NAMES)
    assert COCO(tmp_path / "coco.json").loadImgs(10)[0]["file_name"] == name
    source = load(tmp_path, covers=NAMES)
    assert source.files.name(0) == name and source.read(0).shape == (48, 64, 3)
    write_coco_annotations(tmp_path / "again.json", source)
    assert (tmp_path / "again.json").read_text("utf-8").count(r"caf\udce9.png") == 1


def test_a_file_of_no_pictures_is_still_json_and_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "deep" / "coco.json"
    assert write_coco(path, [], NAMES) == 0
    old = json.loads(path.read_text())
    assert old["images"] == old["annotations"] == []

    def broken():
        yield silver_images()[0]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_coco(path, broken(), NAMES)
    assert json.loads(path.read_text()) == old and len(list(path.parent.iterdir())) == 1


@pytest.mark.real
@pytest.mark.parametrize("name", ["coco128", "bccd", "chess"])
def test_real_files_go_round(tmp_path, real_data, name):
    folder = real_data / "data" / name
    images = "images/train" if name == "coco128" else "images"
    path = folder / "annotations" / "instances_train.json"
    truth = json.loads(path.read_text())
    classes = LabelSpace.of([c["name"] for c in truth["categories"]])
    settings = CocoSource(images=images, annotations="annotations/instances_train.json")
    source = settings.load("real", folder, classes, tmp_path)
    assert len(source) == len(truth["images"])
    assert len(source.annotations) == len(truth["annotations"])
    crowds = sum(a["iscrowd"] for a in truth["annotations"])
    assert int((source.annotations.ignore == Ignore.REGION).sum()) == crowds
    write_coco_annotations(tmp_path / "copy.json", source)
    copy = CocoSource(images=str(folder / images), annotations="copy.json")
    again = copy.load("copy", tmp_path, classes, tmp_path)
    np.testing.assert_array_equal(again.annotations.boxes, source.annotations.boxes)
    np.testing.assert_array_equal(again.annotations.classes, source.annotations.classes)


def many_faults():
    """Returns a file in which every kind of thing is wrong with some annotation."""
    data = coco_data()
    data["annotations"] += [
        annotation(1, 10, 1, [1, 1, 5, 5]),  # the first one's id
        annotation(50, 99, 1, [1, 1, 5, 5]),
        annotation(51, 10, 77, [1, 1, 5, 5]),
        annotation(52, 20, 77, [1, 1, 5, 5]),
        annotation(53, 10, 1, [1, 1, 0, 5]),
        annotation(54, 10, 1, [1, 1, "5", 5]),
        annotation(55, 10, 1, [1, 1, 5, 5], score=2),
        annotation(56, 10, 1, [1, 1, 5, 5], score="high"),
        annotation(57, 10, 1, [1, 1, 5, 5], attributes={"grade": "bronze", "box_weight": -1}),
        "an annotation",
        annotation(59, 20, 5, [1, 1, 5, 5], score=0.5, attributes={"grade": "silver"}),
        annotation(50, 20, 5, [2, 1, 5, 5], iscrowd=1),
    ]
    return data


@pytest.mark.parametrize("size", [1, 2, 5])
def test_blocks_of_annotations_change_nothing(tmp_path, size, monkeypatch):
    told = problems_of(tmp_path, many_faults())
    with pytest.warns(UserWarning, match="left out"):
        whole = load(tmp_path, faults="drop")
    monkeypatch.setattr("detmtl.data.json_file.BLOCK", size)
    assert sorted(problems_of(tmp_path, many_faults())) == sorted(told)
    (tmp_path / "cache").rename(tmp_path / "earlier")
    with pytest.warns(UserWarning, match="left out"):
        blocks = load(tmp_path, faults="drop")
    for name, array in whole.annotations.arrays().items():
        np.testing.assert_array_equal(blocks.annotations.arrays()[name], array, err_msg=name)
    assert blocks.coverage.tolist() == whole.coverage.tolist()
    assert blocks.grade is whole.grade is Grade.SILVER


def test_memory_of_a_large_file_is_that_of_its_arrays(tmp_path):
    rows = [
        annotation(
            k, 10, 1, [k % 40, 1.5, 5, 5.25], score=0.5, attributes={"grade": "silver", "note": k}
        )
        for k in range(1, 60_001)
    ]
    save_coco(tmp_path, coco_data() | {"annotations": rows}, 3)
    del rows
    settings = CocoSource(images="images", annotations="coco.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detmtl.data.json_file.BLOCK", 4096)
        patch.setattr("detmtl.data.json_file.PIECE", 1 << 16)
        tracemalloc.start()
        try:
            parsed = settings.parse(tmp_path, CLASSES)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(parsed.annotations) == 60_000
    # Objects of all rows at once are more than 1,000 bytes each, arrays and their copies 300.
    assert peak < 400 * 60_000
