"""Pascal VOC files: reading, what is refused, writing."""

import re

import numpy as np
import pytest
from coco_files import NAMES, coco_data, save_coco, save_picture

from detmtl.data.coco import CocoSource
from detmtl.data.voc import VocSource, write_voc
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Ignore

CLASSES = LabelSpace.of(NAMES)

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>
<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""
SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def thing(name="cat", box=(5, 6, 20, 30), difficult=0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def save(root, files: dict[str, str]) -> None:
    """Writes XML files (name -> what stands inside <annotation>) and their pictures."""
    (root / "xml").mkdir(parents=True, exist_ok=True)
    for i, (name, inside) in enumerate(files.items()):
        (root / "xml" / f"{name}.xml").write_text(f"<annotation>{inside}</annotation>")
        save_picture(root / "images" / f"{name}.jpg", seed=i)


def load(root, **settings):
    settings = VocSource(images="images", annotations="xml", **settings)
    return settings.load("voc", root, CLASSES, root / "cache")


def test_reads_boxes_that_count_from_one(tmp_path):
    save(tmp_path, {"b": SIZE + thing() + thing("dog", difficult=1), "a": SIZE})
    save_picture(tmp_path / "images" / "unlabelled.jpg")
    source = load(tmp_path)
    assert [source.files.name(i) for i in range(len(source))] == ["a.jpg", "b.jpg"]
    labels = source.labels(1)["boxes"]
    assert labels.boxes.tolist() == [[4, 5, 20, 30]] * 2
    assert labels.classes.tolist() == [0, 1] and labels.ignore.tolist() == [0, Ignore.REGION]
    assert labels.coverage.tolist() == [1, 1, 0]  # nobody names birds
    assert len(source.labels(0)["boxes"]) == 0 and source.sizes.tolist() == [[48, 64]] * 2
    assert load(tmp_path, first_pixel=0).labels(1)["boxes"].boxes[0].tolist() == [5, 6, 20, 30]
    assert load(tmp_path, covers=NAMES).labels(1)["boxes"].coverage.tolist() == [1, 1, 1]


def test_list_and_size_of_the_picture(tmp_path):
    save(tmp_path, {"a": thing(), "b": thing(), "c": thing()})
    (tmp_path / "train.txt").write_text("\ufeffc  1\na -1\n\n", encoding="utf-8")
    source = load(tmp_path, list="train.txt")
    assert [source.files.name(i) for i in range(2)] == ["c.jpg", "a.jpg"]
    assert source.sizes.tolist() == [[48, 64]] * 2
    (tmp_path / "train.txt").write_text("a\nz\n")
    with pytest.raises(InputError, match=r"train\.txt: 'z' has no XML file"):
        load(tmp_path, list="train.txt")


def test_names_in_a_list_may_have_blanks(tmp_path):
    """As pictures of many tools do; cut at the blank, another picture was taken, or none."""
    save(tmp_path, {"a": SIZE, "a b": SIZE + thing(), "c d": SIZE, "e": SIZE})
    (tmp_path / "train.txt").write_text('a b\n"c d"\r\ne  -1\n')
    source = load(tmp_path, list="train.txt")
    assert [source.files.name(i) for i in range(len(source))] == ["a b.jpg", "c d.jpg", "e.jpg"]
    (tmp_path / "train.txt").write_text("a b 1\na y 1\n")
    with pytest.raises(InputError, match=r"train\.txt: 'a y' has no XML file"):
        load(tmp_path, list="train.txt")
    with pytest.warns(UserWarning, match="1 fault left out"):
        assert load(tmp_path, list="train.txt", faults="drop").files.name(0) == "a b.jpg"


def test_boxes_before_the_first_pixel_tell_that_a_tool_counts_from_0(tmp_path):
    save(tmp_path, {"a": SIZE + thing(box=(0, 6, 20, 30)) + thing(), "b": SIZE + thing()})
    (note,) = load(tmp_path).notes
    assert "has 1 boxes whose xmin or ymin is below 1" in note and "`first_pixel: 0`" in note
    assert load(tmp_path, first_pixel=0).notes == ()


def test_a_class_of_difficult_objects_alone_is_told(tmp_path):
    save(
        tmp_path,
        {"a": SIZE + thing() + thing("dog", difficult=1), "b": SIZE + thing("dog", difficult=1)},
    )
    (note,) = load(tmp_path).notes
    assert "has of class 'dog' 2 boxes, all of them `difficult`" in note
    assert load(tmp_path, keep=["cat"]).notes == load(tmp_path, grade="silver").notes == ()


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "iso-8859-1", "utf-16"])
def test_files_in_the_encoding_that_they_name(tmp_path, encoding):
    name = {"gb2312": "\u732b", "shift_jis": "\u732b"}.get(encoding, "\xfc")
    save(tmp_path, {"a": ""})
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?><annotation>{SIZE}{thing(name)}</annotation>'
    )
    (tmp_path / "xml" / "a.xml").write_bytes(text.encode(encoding))
    classes = LabelSpace.of({"cat": [name]})
    settings = VocSource(images="images", annotations="xml")
    assert len(settings.load("voc", tmp_path, classes, tmp_path / "cache").boxes(0)) == 1


@pytest.mark.parametrize(("named", "why"), [("utf-8", "can't decode"), ("klingon", "unknown")])
def test_a_file_in_another_encoding_than_it_names(tmp_path, named, why):
    save(tmp_path, {"a": SIZE + thing()})
    text = f'<?xml version="1.0" encoding="{named}"?><annotation>\u72d7</annotation>'
    (tmp_path / "xml" / "b.xml").write_bytes(text.encode("gb2312"))
    with pytest.raises(InputError, match=rf"b\.xml: is not in the encoding .*{why}.* UTF-8"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        (thing(box=(30, 6, 20, 30)), r"xml/b\.xml: object 1 \(cat\): width is -9 \(inverted"),
        (thing(box=(5, "nan", 20, 30)), r"xml/b\.xml: object 1 \(cat\): the box .* is not finite"),
        (thing(box=(5, 6, 90, 30)), r"xml/b\.xml: object 1 \(cat\): .* lies outside its picture"),
        (thing(box=(5, "", 20, 30)), r"xml/b\.xml: object 1 \(cat\): has the box .*ymin ''"),
        (thing(name=""), r"xml/b\.xml: object 1: has no name"),
        ("<object>", r"xml/b\.xml: is not XML"),
    ],
)
def test_a_faulty_file_is_named_or_dropped(tmp_path, inside, sentence):
    save(tmp_path, {"a": SIZE + thing() + thing("dog"), "b": SIZE + inside})
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert len(caught.value.problems) == 2
    assert re.search(sentence, caught.value.problems[1]), caught.value.problems
    with pytest.warns(UserWarning, match="1 fault left out"):
        source = load(tmp_path, faults="drop")
    if "90" in inside:  # cut at the edge
        assert source.boxes(1).boxes.tolist() == [[4, 5, 64, 30]]
        return
    assert len(source.annotations) == 2
    if len(source) > 1:  # not XML: no picture either
        covered = [0, 0, 0] if "<name></name>" in inside else [0, 1, 0]
        assert source.coverage.tolist() == [[1, 1, 0], covered]


def test_a_changed_picture_whose_size_no_file_says_is_measured_again(tmp_path):
    save(tmp_path, {"a": thing()})
    assert load(tmp_path).sizes.tolist() == [[48, 64]]
    save_picture(tmp_path / "images" / "a.jpg", 96, 128)
    assert load(tmp_path).sizes.tolist() == [[96, 128]]


def test_missing_pictures_empty_files_and_unknown_names(tmp_path):
    save(tmp_path, {"a": SIZE + thing(), "b": SIZE + thing()})
    (tmp_path / "images" / "b.jpg").unlink()
    (tmp_path / "xml" / "c.xml").write_text("")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    told = str(caught.value)
    assert "b.xml: there is no picture named 'b'" in told and "c.xml: the file is empty" in told
    save(tmp_path, {"b": SIZE, "c": SIZE + thing("cow")})
    with pytest.raises(InputError, match="'cow' belongs to no class"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("said", "ignore"), [("0", 0), ("False", 0), ("true", Ignore.REGION), ("1", Ignore.REGION)]
)
def test_what_is_difficult_may_be_said_in_words(tmp_path, said, ignore):
    save(tmp_path, {"a": SIZE + thing(difficult=said)})
    assert load(tmp_path).boxes(0).ignore.tolist() == [ignore]


def test_what_is_difficult_may_not_be_said_otherwise(tmp_path):
    save(tmp_path, {"a": SIZE + thing(difficult="maybe")})
    with pytest.raises(InputError, match=r"\(cat\): difficult is 'maybe'; it needs 0 or 1"):
        load(tmp_path)
    with pytest.warns(UserWarning, match="1 fault left out"):
        assert load(tmp_path, faults="drop").boxes(0).ignore.tolist() == [Ignore.REGION]


def test_files_in_capitals_and_two_pictures_of_one_name(tmp_path):
    save(tmp_path, {"a": SIZE + "<filename>a.jpg</filename>" + thing()})
    (tmp_path / "xml" / "a.xml").rename(tmp_path / "xml" / "a.XML")
    save_picture(tmp_path / "images" / "a.png")
    assert load(tmp_path).files.name(0) == "a.jpg"
    save(tmp_path, {"b": SIZE + thing()})
    save_picture(tmp_path / "images" / "b.png")
    with pytest.raises(InputError, match=r"b\.xml: b\.jpg and b\.png may be its picture"):
        load(tmp_path)


@pytest.mark.parametrize("faults", ["error", "drop"])
def test_two_files_of_one_picture_are_refused(tmp_path, faults):
    save(tmp_path, {"a": SIZE})
    for folder, box in (("one", (5, 6, 20, 30)), ("two", (1, 1, 9, 9))):
        (tmp_path / "xml" / folder).mkdir()
        (tmp_path / "xml" / folder / "a.xml").write_text(
            f"<annotation>{SIZE}{thing(box=box)}</annotation>"
        )
    (tmp_path / "xml" / "a.xml").unlink()
    with pytest.raises(InputError, match=r"xml/one/a\.xml and xml/two/a\.xml: are both of the pi"):
        load(tmp_path, faults=faults)
    (tmp_path / "train.txt").write_text("two/a\n")
    assert load(tmp_path, list="train.txt").boxes(0).boxes.tolist() == [[0, 0, 9, 9]]


def test_two_files_of_one_name_are_refused_whichever_is_listed(tmp_path):
    save(tmp_path, {"a": SIZE + thing(), "b": SIZE + thing()})
    (tmp_path / "xml" / "a.XML").write_text(f"<annotation>{SIZE}</annotation>")
    with pytest.raises(
        InputError, match=r"xml: a\.XML and a\.xml are both of one picture; keep one"
    ):
        load(tmp_path, faults="drop")
    (tmp_path / "train.txt").write_text("b\n")
    assert len(load(tmp_path, list="train.txt")) == 1
    (tmp_path / "train.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="are both of one picture"):
        load(tmp_path, list="train.txt")


def test_no_annotations_at_all(tmp_path):
    save(tmp_path, {"a": SIZE})
    with pytest.raises(InputError, match="xml: has no annotations at all"):
        load(tmp_path)
    assert load(tmp_path, covers=["cat"]).labels(0)["boxes"].coverage.tolist() == [1, 0, 0]
    (tmp_path / "xml" / "a.xml").unlink()
    with pytest.raises(InputError, match="there are no XML files"):
        load(tmp_path)


def test_written_files_are_read_back_alike(tmp_path):
    data = coco_data()
    data["annotations"][0]["iscrowd"] = 1
    save_coco(tmp_path, data)
    settings = CocoSource(images="images", annotations="coco.json")
    source = settings.load("coco", tmp_path, CLASSES, tmp_path / "cache")
    assert write_voc(tmp_path / "xml", source) == 3
    again = load(tmp_path)
    np.testing.assert_array_equal(again.annotations.boxes, source.annotations.boxes)
    np.testing.assert_array_equal(again.annotations.ignore, source.annotations.ignore)
    np.testing.assert_array_equal(again.annotations.classes, source.annotations.classes)
    assert [again.path(i) for i in range(3)] == [source.path(i) for i in range(3)]


def test_what_the_format_has_no_place_for_is_counted(tmp_path):
    data = coco_data()
    silver = {"grade": "silver", "ignore": "class"}
    data["annotations"][2].update(score=0.5, iscrowd=1, attributes=silver)
    data["images"][0]["neg_category_ids"] = [9]
    save_coco(tmp_path, data)
    settings = CocoSource(images="images", annotations="coco.json")
    source = settings.load("coco", tmp_path, CLASSES, tmp_path / "cache")
    with pytest.warns(UserWarning) as told:
        assert write_voc(tmp_path / "xml", source) == 3
    assert str(told[0].message) == (
        "VOC files have no place for: boxes that are ignored for their class (written as difficult) (1), "
        "scores below 1 (1), silver grades (1), coverage (1 pictures; see coverage.csv, for "
        "`covers_file`)"
    )
    again = load(tmp_path, covers_file="xml/coverage.csv")
    np.testing.assert_array_equal(again.annotations.ignore, [0, 0, Ignore.REGION])
    assert again.coverage.tolist() == [[1, 0, 1], [1, 1, 1], [1, 1, 1]]
