"""What can be wrong with annotations and pictures."""

import time

import numpy as np
import pytest
from coco_files import NAMES, annotation, coco_data, save_coco
from PIL import Image

from detmtl.data.coco import CocoSource
from detmtl.data.depth import DepthFolder
from detmtl.data.faults import (
    Faults,
    annotation_faults,
    check_source,
    class_rows,
    number_column,
    repeated,
)
from detmtl.data.folder import FolderSource
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

SIZES = np.array([[48, 64], [0, 0]])


def faults_of(*boxes, image=0):
    boxes = np.array(boxes, dtype=np.float64)
    return annotation_faults(boxes, np.full(len(boxes), image), SIZES, lambda i: f"box {i}")


def load(root, data, num_images=3):
    save_coco(root, data, num_images)
    settings = CocoSource(images="images", annotations="coco.json")
    return settings.load("here", root, LabelSpace.of(NAMES), root / "cache")


def test_good_boxes_pass_unchanged():
    boxes, bad, problems = faults_of([0, 0, 64, 48], [1.5, 2.5, 3, 4])
    assert boxes.tolist() == [[0, 0, 64, 48], [1.5, 2.5, 3, 4]] and not bad.any() and not problems


def test_each_fault_has_its_sentence_in_order():
    _, bad, problems = faults_of(
        [1, 1, np.nan, 4], [5, 5, 5, 9], [1, 1, 2, 2], [9, 5, 5, 9], [60, 1, 66, 4], [70, 1, 76, 4]
    )
    # box 4 is cut
    assert bad.tolist() == [True, True, False, True, False, True]
    assert [p.split(":")[0] for p in problems] == [f"box {i}" for i in (0, 1, 3, 4, 5)]
    for problem, part in zip(
        problems, ("not finite", "width is 0", "inverted", "outside", "outside"), strict=True
    ):
        assert part in problem


@pytest.mark.parametrize(("reach", "fine"), [(0.5, True), (1.0, True), (1.01, False)])
def test_a_pixel_over_the_edge_is_cut(reach, fine):
    boxes, useless, problems = faults_of([-reach, 1, 5, 48 + reach])
    assert len(problems) == (not fine) and not useless.any()
    assert boxes.tolist() == [[0, 1, 5, 48]]


def test_a_picture_of_unknown_size_has_no_outside():
    boxes, bad, _ = faults_of([500, 500, 900, 900], image=1)
    assert not bad.any() and boxes.tolist() == [[500, 500, 900, 900]]


def test_a_box_too_thin_for_float32_is_faulty():
    _, bad, _ = faults_of([60, 1, 60 + 1e-9, 4])
    assert bad.all()


def test_no_boxes_at_all():
    boxes, bad, problems = annotation_faults(
        np.zeros((0, 4)), np.zeros(0, np.int64), SIZES, lambda i: "x"
    )
    assert boxes.shape == (0, 4) and bad.shape == (0,) and problems == []


def test_number_column_reads_fast_and_falls_back_to_row_by_row():
    rows = [{"a": 1}, {"a": 2.5}, {}, {"a": None}, {"a": True}, 5]
    values, bad, problems = number_column(rows, "a", lambda i: f"row {i}")
    assert values[:2].tolist() == [1, 2.5] and bad.tolist() == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert problems[0] == "row 2: has no 'a'; it needs a number"
    assert problems[3] == "row 5: is 5; it needs to be a JSON object"
    values, bad, _ = number_column(rows[:2], "a", str, whole=True)
    assert bad.tolist() == [False, True]
    values, bad, _ = number_column([{}, {"a": 3}], "a", str, default=1.0)
    assert values.tolist() == [1, 3] and not bad.any()
    values, bad, _ = number_column([{"a": 2**70}, {"a": 3}], "a", str, whole=True)
    assert bad.tolist() == [True, False]


def test_repeated_marks_all_but_the_first():
    assert repeated(np.array([3, 1, 3, 3, 2, 1])).tolist() == [0, 0, 1, 1, 0, 1]


def test_settle_counts_and_names_the_first_few():
    faults = Faults("a.json")
    assert faults.settle("error") == faults.settle("drop") == ""
    faults.add("p1", "p2", "p3", "p4", "p5")
    assert faults.settle("drop") == "a.json: 5 faults left out: p1; p2; p3; and 2 more"
    with pytest.raises(InputError) as caught:
        faults.settle("error")
    assert caught.value.problems[1:] == ["p1", "p2", "p3", "p4", "p5"]


def test_many_good_boxes_take_no_loop():
    corner = np.random.default_rng(0).uniform(0, 20, (300_000, 2))
    boxes = np.concatenate([corner, corner + 10], axis=1)
    begun = time.process_time()
    _, bad, _ = annotation_faults(boxes, np.zeros(len(boxes), np.int64), SIZES, lambda i: "x")
    assert not bad.any() and time.process_time() - begun < 5


def test_check_finds_nothing_in_a_sound_source(tmp_path):
    done = []
    source = load(tmp_path, coco_data())
    assert check_source(source, progress=lambda *step: done.append(step)) == []
    assert done[-1] == (3, 3)


def test_check_finds_copies_broken_pictures_and_wrong_sizes(tmp_path):
    data = coco_data()
    data["annotations"].append(annotation(8, 10, 1, [4, 4, 8.5, 8.25]))
    source = load(tmp_path, data)
    images = tmp_path / "images"
    (images / "2.png").write_bytes((images / "0.png").read_bytes())
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    problems = check_source(source)
    assert len(problems) == 3
    assert "2.png: is the same picture, byte for byte, as" in problems[0]
    assert "1.png: the picture is" in problems[1]
    assert "0.png: the class cat has the box" in problems[2] and "twice" in problems[2]
    assert len(check_source(source, decode=False)) == 2
    (images / "1.png").unlink()
    assert any("1.png" in p for p in check_source(source, decode=False))


def test_of_copies_the_one_of_which_people_say_most_stays_where_faults_are_dropped(tmp_path):
    save_coco(tmp_path, coco_data())
    images, maps = tmp_path / "images", tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(maps / "2.png")
    (images / "2.png").write_bytes((images / "0.png").read_bytes())
    boxes = CocoSource(images="images", annotations="coco.json", faults="drop")
    with pytest.warns(UserWarning, match=r"1 of 3 pictures .* same bytes: .*2\.png is .*0\.png"):
        source = boxes.load("here", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache")
    assert [source.files.name(i) for i in range(2)] == ["0.png", "1.png"], "which has boxes"
    assert check_source(source) == []
    folder = MapFolder(folder="maps", categories={0: "road"}, missing="absent")
    mapped = FolderSource(images="images", maps=folder, faults="drop")
    with pytest.warns(UserWarning, match=r"same bytes: .*0\.png is .*2\.png"):
        source = mapped.load(
            "here", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache", MapClasses(classes=["road"])
        )
    assert source.maps.present().tolist() == [False, True], "which has a map"


def test_check_opens_maps_and_depths(tmp_path):
    save_coco(tmp_path, coco_data())
    for folder in ("maps", "depth"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.fromarray(np.full((48, 64), 7, np.uint8)).save(tmp_path / folder / f"{i}.png")
    Image.fromarray(np.full((9, 7), 7, np.uint8)).save(tmp_path / "maps" / "0.png")
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(tmp_path / "maps" / "1.png")
    Image.fromarray(np.full((9, 7), 7, np.uint8)).save(tmp_path / "depth" / "0.png")
    (tmp_path / "depth" / "2.png").write_text("no picture")
    settings = CocoSource(
        images="images",
        annotations="coco.json",
        maps=MapFolder(folder="maps", categories={7: "road"}),
        depth=DepthFolder(folder="depth"),
    )
    maps = MapClasses(classes=["road"])
    source = settings.load("here", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache", maps)
    problems = check_source(source)
    assert len(problems) == 4
    assert "maps/0.png: the map is 7 x 9 pixels" in problems[0]
    assert "depth/0.png: the depth is 7 x 9 pixels" in problems[1]
    assert "maps/1.png: has pixels of 9" in problems[2]
    assert "depth/2.png: cannot be read" in problems[3]
    assert check_source(source, decode=False) == []


def test_class_rows_count_boxes_and_pictures(tmp_path):
    data = coco_data()
    data["annotations"].append(annotation(8, 10, 5, [4, 4, 9, 4], iscrowd=1))
    rows = class_rows(load(tmp_path, data))
    assert [(r.name, r.boxes, r.pictures, r.ignored) for r in rows] == [
        ("cat", 1, 1, 0),
        ("dog", 1, 1, 1),
        ("bird", 1, 1, 0),
    ]
    assert rows[1].side == pytest.approx((64 * 48) ** 0.5) and rows[0].coverage == 1
