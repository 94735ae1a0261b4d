"""YOLO label files: reading, what is refused, writing."""

import re
from pathlib import Path

import numpy as np
import pytest
from coco_files import NAMES, coco_data, save_coco, save_picture

from detmtl.data.coco import CocoSource
from detmtl.data.yolo import YoloSource, read_names, write_yolo
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Ignore

CLASSES = LabelSpace.of(NAMES)


def save(root, files: dict[str, str]) -> None:
    """Writes label files (name -> text) and their pictures of 64 x 48 pixels."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        save_picture(root / "images" / f"{name}.jpg")


def load(root, **settings):
    usual = {"images": "images", "labels": "labels", "names": NAMES}
    settings = YoloSource(**(usual | settings))
    return settings.load("yolo", root, CLASSES, root / "cache")


def test_reads_boxes_scores_and_polygons(tmp_path):
    lines = "\ufeff1 0.5 0.5 0.25 0.5\n\n2 0.5 0.5 1 1 0.75\n0 0.25 0.5 0.5 0.25 0.75 1\n"
    save(tmp_path, {"deep/a": lines, "b": ""})
    save_picture(tmp_path / "images" / "c.jpg")
    source = load(tmp_path)
    assert [source.files.name(i) for i in range(3)] == ["b.jpg", "c.jpg", "deep/a.jpg"]
    labels = source.labels(2)["boxes"]
    assert labels.boxes.tolist() == [[24, 12, 40, 36], [0, 0, 64, 48], [16, 12, 48, 48]]
    assert labels.classes.tolist() == [1, 2, 0] and labels.scores.tolist() == [1, 0.75, 1]
    assert len(source.labels(1)["boxes"]) == 0 and source.coverage.tolist() == [[1, 1, 1]]
    assert len(load(tmp_path, unlabelled="skip")) == 2


def test_a_label_file_of_two_pictures_is_told(tmp_path):
    save(tmp_path, {"a": "1 0.5 0.5 0.25 0.5\n", "b": "1 0.5 0.5 0.25 0.5\n"})
    for name in ("a.png", "c.jpg", "c.png"):  # c has no text file: nothing is on either
        save_picture(tmp_path / "images" / name, seed=1)
    with pytest.raises(InputError, match=r"labels/a\.txt: a\.jpg and a\.png may be its picture"):
        load(tmp_path)
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop")
    assert [source.files.name(i) for i in range(len(source))] == ["b.jpg", "c.jpg", "c.png"]


def test_a_changed_label_file_is_read_again(tmp_path):
    save(tmp_path, {"a": "1 0.5 0.5 0.25 0.5\n"})
    assert len(load(tmp_path).annotations) == 1
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n" * 2)
    assert len(load(tmp_path).annotations) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "names:\n  0: cat\n  1: dog\n  2: bird\nnc: 3\n"),
        ("data.yml", "names: [cat, dog, bird]\n"),
        ("classes.txt", "\ufeffcat\ndog\nbird\n\n"),
    ],
)
def test_names_come_from_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / name, name) == NAMES
    save(tmp_path, {"a": "1 0.5 0.5 0.25 0.5\n"})
    assert load(tmp_path, names=name).annotations.classes.tolist() == [1]


@pytest.mark.parametrize("text", ["", "names: []", "names: {1: cat}", "just text", "a: ["])
def test_names_that_cannot_be_used(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=r"data\.yaml: "):
        read_names(tmp_path / "data.yaml", "data.yaml")


def test_names_in_json_are_refused(tmp_path):
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}]}')
    with pytest.raises(InputError, match=r"notes\.json: is JSON; class names are read from YAML"):
        read_names(tmp_path / "notes.json", "notes.json")


def test_names_after_a_blank_line_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n\nbird\n")
    with pytest.raises(InputError, match=r"classes\.txt: line 2 is blank, so that nobody can tell"):
        read_names(tmp_path / "classes.txt", "classes.txt")


FATES = {
    "cut": ([[44.8, 21.6, 64, 26.4]], [Ignore.NO], [1, 1, 1]),
    "region": ([[28.8, 21.6, 35.2, 26.4]], [Ignore.REGION], [1, 1, 1]),
    "cat": ([], [], [0, 1, 1]),
    "all": ([], [], [0, 0, 0]),
}
"""Further boxes, their `Ignore` and the coverage under `faults: drop`."""


@pytest.mark.parametrize(
    ("line", "sentence", "fate"),
    [
        (
            "3 0.5 0.5 0.1 0.1",
            "the class is 3; there are 3 names, so it lies between 0 and 2",
            "all",
        ),
        ("-1 0.5 0.5 0.1 0.1", "the class is -1; there are 3 names", "all"),
        ("1.5 0.5 0.5 0.1 0.1", "the class is 1.5; there are 3 names", "all"),
        ("0 0.5 0.5 -0.1 0.1", r"width is -6.4 \(inverted corners\?\); boxes need", "cat"),
        ("0 0.5 0.5 0.1 0", "height is 0; boxes need width and height > 0", "cat"),
        ("0 nan 0.5 0.1 0.1", "is not finite", "cat"),
        ("0 0.9 0.5 0.4 0.1", "lies outside its picture of 64 x 48 pixels", "cut"),
        ("0 30 20 10 10", "lies outside its picture", "cat"),
        ("0 0.5 0.5 0.1", "is '0 0.5 0.5 0.1'; it needs `class x y width height", "all"),
        ("cat 0.5 0.5 0.1 0.1", "is 'cat 0.5 0.5 0.1 0.1'; it needs `class", "all"),
        ("0 0.5 0.5 0.1 0.1 7", r"the score is 7; scores lie in \[0, 1\]", "region"),
    ],
)
def test_a_faulty_line_is_named_or_dropped(tmp_path, line, sentence, fate):
    save(tmp_path, {"a": f"0 0.5 0.5 0.1 0.1\n{line}\n"})
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert len(caught.value.problems) == 2
    assert re.search(r"^labels/a\.txt line 2: .*" + sentence, caught.value.problems[1])
    with pytest.warns(UserWarning, match="1 fault left out"):
        labels = load(tmp_path, faults="drop").boxes(0)
    boxes, ignore, coverage = FATES[fate]
    assert labels.boxes[1:].numpy() == pytest.approx(np.array(boxes).reshape(-1, 4))
    assert labels.ignore[1:].tolist() == ignore and labels.coverage.tolist() == coverage


def test_boxes_of_a_broken_picture_are_no_faults_of_their_own(tmp_path):
    save(tmp_path, {"a": "0 0.5 0.5 0.1 0.1\n" * 5, "b": "0 0.5 0.5 0.1 0.1\n"})
    (tmp_path / "images" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert len(caught.value.problems) == 2 and "a.jpg" in caught.value.problems[1]
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop")
    assert source.files.name(0) == "b.jpg" and len(source.annotations) == len(source) == 1
    assert source.coverage.tolist() == [[1, 1, 1]]


POSE = "0 0.5 0.5 0.25 0.5 0.45 0.45 2 0.55 0.55 1\n"


def test_boxes_of_lines_with_keypoints(tmp_path):
    save(tmp_path, {"a": "0 .5 .5 .25 .5 .45 .45 .55 .55\n"})
    assert load(tmp_path, kpt_shape=(2, 2)).boxes(0).boxes.tolist() == [[24, 12, 40, 36]]
    save(tmp_path, {"a": POSE})
    (tmp_path / "data.yaml").write_text("names: [cat, dog, bird]\nkpt_shape: [2, 3]\n")
    assert load(tmp_path, names="data.yaml").boxes(0).boxes.tolist() == [[24, 12, 40, 36]]
    with pytest.raises(InputError, match="needs `class x y width height` and 9 numbers of keypoi"):
        load(tmp_path, kpt_shape=(3, 3))
    save(tmp_path, {"a": "0 .5 .5 .25 .5 " + ".5 .5 2 " * 17})
    with pytest.raises(InputError, match="for keypoints behind boxes set `kpt_shape`"):
        load(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat, dog, bird]\nkpt_shape: many\n")
    with pytest.raises(InputError, match="kpt_shape is 'many'; it needs two numbers"):
        load(tmp_path, names="data.yaml")


def test_a_list_names_the_pictures_that_are_taken(tmp_path):
    """As darknet's, CVAT's and Ultralytics' train.txt, whose paths start somewhere else."""
    line = "0 0.5 0.5 0.25 0.5\n"
    save(tmp_path, {"a": line, "deep/a": line, "deep/b c": line, "d": line})
    listing = tmp_path / "train.txt"
    listing.write_bytes(b"./images/deep/b c.jpg\r\n\ndata\\deep\\a.jpg\r\nd.jpg\nd.jpg\n")
    source = load(tmp_path, list="train.txt")
    names = [source.files.name(i) for i in range(len(source))]
    assert names == ["d.jpg", "deep/a.jpg", "deep/b c.jpg"] and len(source.annotations) == 3
    listing.write_text("/somewhere/else/a.jpg\n")
    assert load(tmp_path, list="train.txt").files.name(0) == "a.jpg"
    listing.write_text("images/a.jpg\nimages/e.jpg\n")
    with pytest.raises(InputError, match=r"train\.txt: images/e\.jpg is no picture below .*images"):
        load(tmp_path, list="train.txt")
    listing.write_text("e.jpg\n")
    with pytest.raises(InputError, match=r"train\.txt: names no picture below"):
        load(tmp_path, list="train.txt", faults="drop")
    with pytest.raises(InputError, match=r"source 'yolo': the folder of pictures .* is a file"):
        load(tmp_path, images="train.txt")


def test_label_files_without_a_picture_are_told(tmp_path):
    save(tmp_path, {"a": "0 0.5 0.5 0.25 0.5\n", "deep/b": "0 0.5 0.5 0.25 0.5\n"})
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\nbird\n")
    (tmp_path / "labels" / "own.txt").write_text("cat\ndog\nbird\n")
    assert len(load(tmp_path, names="labels/own.txt").annotations) == 2
    (tmp_path / "labels" / "own.txt").unlink()
    (tmp_path / "labels" / "deep" / "b.txt").rename(tmp_path / "labels" / "deep" / "b.TXT")
    (tmp_path / "labels" / "c.txt").write_text("")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert [p.split(":")[0] for p in caught.value.problems[1:]] == [
        "labels/c.txt",
        "labels/deep/b.TXT",
    ]


def test_labels_that_are_not_there(tmp_path):
    save(tmp_path, {"a": ""})
    with pytest.raises(InputError, match="labels: has no annotations at all"):
        load(tmp_path)
    assert len(load(tmp_path, covers=["cat"]).annotations) == 0
    (tmp_path / "labels" / "a.txt").unlink()
    with pytest.raises(
        InputError, match=r"no picture of .* has a text file there; a\.jpg would have a\.txt"
    ):
        load(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "images" / "a.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.jpg: is not a picture"):
        load(tmp_path)


def coco(root, data, **settings):
    """Writes and reads a COCO folder."""
    save_coco(root, data)
    source = CocoSource(images="images", annotations="coco.json", **settings)
    return source.load("coco", root, CLASSES, root / "cache")


def test_written_files_are_read_back_alike(tmp_path):
    source = coco(tmp_path, coco_data())
    assert write_yolo(tmp_path / "labels", source) == 3  # without a warning
    again = load(tmp_path, names="labels/data.yaml")
    np.testing.assert_allclose(again.annotations.boxes, source.annotations.boxes, atol=1e-4)
    np.testing.assert_array_equal(again.annotations.classes, source.annotations.classes)
    assert (tmp_path / "labels" / "2.txt").read_text() == ""
    assert len((tmp_path / "labels" / "0.txt").read_text().split()) == 5


def test_what_the_format_has_no_place_for_is_counted(tmp_path):
    data = coco_data()
    data["annotations"][2].update(score=0.5, attributes={"grade": "silver", "box_weight": 0.5})
    data["annotations"][0]["iscrowd"] = 1
    data["images"][2]["coverage"] = {"dog": 0.5, "bird": 0, "cat": 0}
    source = coco(tmp_path, data)
    with pytest.warns(UserWarning) as told:
        assert write_yolo(tmp_path / "labels", source) == 2
    assert str(told[0].message) == (
        "YOLO files have no place for: boxes that give no loss (1), scores below 1 (1), weights other "
        "than 1 (1), silver grades (1), coverage (1 pictures; see coverage.csv, for `covers_file`)"
    )
    covered = load(tmp_path, covers_file="labels/coverage.csv")
    assert covered.coverage.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0.5, 0]]
    with pytest.warns(UserWarning, match=r"no place for: boxes that give no loss \(1\), weights"):
        write_yolo(tmp_path / "labels", source, scores=True)
    assert sorted(load(tmp_path).annotations.scores.tolist()) == [0.5, 1]


def test_two_pictures_never_share_a_label_file(tmp_path):
    data = coco_data()
    data["images"][1]["file_name"] = "0.jpg"
    save_picture(tmp_path / "images" / "0.jpg")
    source = coco(tmp_path, data)
    with pytest.raises(
        InputError, match=r"0\.jpg: its labels would stand in 0\.txt, as 0\.png has"
    ):
        write_yolo(tmp_path / "labels", source)


def test_pictures_with_absolute_names_get_names_below_their_common_folder(tmp_path):
    data = coco_data()
    for i, row in enumerate(data["images"]):
        row["file_name"] = str(tmp_path / "images" / "abc"[i] / row["file_name"])
        save_picture(Path(row["file_name"]))
    source = coco(tmp_path, data)
    write_yolo(tmp_path / "labels", source)
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["a", "b", "c", "data.yaml"]
    assert not list((tmp_path / "images").rglob("*.txt"))
