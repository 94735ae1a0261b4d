import json
import os
import tracemalloc
from dataclasses import replace

import pytest
import torch
from silver_stand_ins import HEIGHT, WIDTH, pictures

from detmtl.data.flat import FileNames
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.annotate import annotate
from detmtl.teachers.from_results import ResultsTeacherSettings

ABOUT = {
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    "images": [
        {"id": 5, "file_name": "a.jpg", "height": 20, "width": 30},
        {"id": 9, "file_name": "sub/a.jpg", "height": 10, "width": 10},
        {"id": 11, "file_name": "empty.jpg", "height": 8, "width": 8},
    ],
    "annotations": [],
}
RESULTS = [
    {"image_id": 9, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.6},
    {"image_id": 5, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.3},
    {"image_id": 5, "category_id": 7, "bbox": [20, 2, 15, 10.5], "score": 0.9},
    {"image_id": 5, "category_id": 7, "bbox": [1, 1, 2, 2], "score": 0.01},
]


def load(tmp_path, results=RESULTS, about=ABOUT, **settings):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "truth.json").write_text(json.dumps(about))
    settings = {"annotations": "truth.json"} | settings
    return ResultsTeacherSettings(path="results.json", **settings).load(tmp_path)


def ask(teacher, name, height, width, floor=0.05):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return teacher.annotate([image], [ImageInfo(77, name, height, width, "s")], floor)[0]


def test_boxes_are_found_by_file_name_and_sorted(tmp_path):
    teacher = load(tmp_path)
    assert teacher.card.classes == ("cat", "dog") and teacher.card.name == "results"
    labels = ask(teacher, "/pictures/a.jpg", 20, 30)
    assert labels.boxes.tolist() == [[20, 2, 30, 12.5], [0, 0, 5, 5]]  # cut at the right edge
    assert labels.classes.tolist() == [1, 0]
    assert labels.scores.tolist() == pytest.approx([0.9, 0.3])
    assert (labels.grade == int(Grade.SILVER)).all()
    assert len(ask(teacher, "/pictures/a.jpg", 20, 30, floor=0.005)) == 3


def test_of_equal_base_names_the_longest_path_wins(tmp_path):
    assert ask(load(tmp_path), "/x/sub/a.jpg", 10, 10).scores.tolist() == pytest.approx([0.6])


def test_pictures_and_categories_that_nothing_tells_apart_are_refused(tmp_path):
    """Of two with one name, or one id, the boxes of one would be lost."""
    first = ABOUT["images"][0]
    for more, told in (
        (first | {"id": 6}, "the file_name 'a.jpg' stands in 2 images; list each picture once"),
        (first | {"file_name": "b.jpg"}, "2 images have the id 5; give each its own"),
    ):
        with pytest.raises(InputError, match=told):
            load(tmp_path, about=ABOUT | {"images": [*ABOUT["images"], more]})
    categories = [*ABOUT["categories"], {"id": 7, "name": "fox"}]
    with pytest.raises(InputError, match="two categories have the id 7"):
        load(tmp_path, about=ABOUT | {"categories": categories})
    both = ABOUT | {"images": [*ABOUT["images"], first | {"id": 6, "file_name": "a.png"}]}
    results = [RESULTS[0] | {"image_id": "a"}]
    with pytest.raises(InputError, match="image_id 'a' is no image of the annotation file"):
        load(tmp_path, results, both)
    assert len(ask(load(tmp_path, results), "a.jpg", 20, 30)) == 1


def test_a_picture_without_results_is_empty_but_an_unknown_one_an_error(tmp_path):
    teacher = load(tmp_path)
    assert len(ask(teacher, "/x/empty.jpg", 8, 8)) == 0
    with pytest.raises(InputError, match=r"other\.jpg"):
        ask(teacher, "/x/other.jpg", 8, 8)
    with pytest.raises(InputError, match="30 x 20"):
        ask(teacher, "/x/a.jpg", 40, 60)


def test_blocks_change_nothing_and_every_fault_is_told_with_its_place(tmp_path, monkeypatch):
    wrong = [{"image_id": 5}, RESULTS[0] | {"score": 2}, RESULTS[0] | {"category_id": 4}]
    faulty = [*RESULTS[:3], wrong[0], RESULTS[3], *wrong[1:]]
    whole = ask(load(tmp_path), "/p/a.jpg", 20, 30, floor=0.005)
    with pytest.raises(InputError) as told:
        load(tmp_path, faulty)
    monkeypatch.setattr("detmtl.data.json_file.BLOCK", 2)
    monkeypatch.setattr("detmtl.data.json_file.PIECE", 10)
    blocks = ask(load(tmp_path), "/p/a.jpg", 20, 30, floor=0.005)
    for name in ("boxes", "classes", "scores", "grade"):
        assert torch.equal(getattr(blocks, name), getattr(whole, name))
    with pytest.raises(InputError) as again:
        load(tmp_path, faulty)
    assert again.value.problems == told.value.problems
    assert [p.split(":")[1] for p in told.value.problems] == [f" result {i}" for i in (3, 5, 6)]


@pytest.mark.parametrize("alone", [True, False])
def test_memory_is_that_of_the_numbers(tmp_path, alone):
    rows = [
        {"image_id": 5, "category_id": 3, "bbox": [k % 9, 1.5, 5, 5.25], "score": k / 50_000}
        for k in range(50_000)
    ]
    (tmp_path / "r.json").write_text(json.dumps(rows if alone else ABOUT | {"annotations": rows}))
    (tmp_path / "truth.json").write_text(json.dumps(ABOUT))
    del rows
    settings = ResultsTeacherSettings(path="r.json", annotations="truth.json" if alone else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detmtl.data.json_file.BLOCK", 500)
        patch.setattr("detmtl.data.json_file.PIECE", 1 << 14)
        tracemalloc.start()
        try:
            teacher = settings.load(tmp_path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(ask(teacher, "/p/a.jpg", 20, 30, floor=0.5)) == 25_000
    assert peak < 100 * 50_000  # the objects of a row are more than 700 bytes, its text 90


def test_no_results_at_all_is_a_teacher_that_saw_nothing(tmp_path):
    assert len(ask(load(tmp_path, []), "/x/a.jpg", 20, 30)) == 0


def test_every_faulty_result_is_named(tmp_path):
    faulty = [
        {"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5},
        {"image_id": 5, "category_id": 99, "bbox": [0, 0, 1, 1], "score": 0.5},
        {"image_id": 5, "category_id": 3, "bbox": [0, 0, -1, 1], "score": 0.5},
        {"image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 50},
        {"image_id": 5, "category_id": 3, "bbox": [0, 0, 1], "score": 0.5},
        {"image_id": 5},
    ]
    with pytest.raises(InputError) as caught:
        load(tmp_path, faulty)
    assert len(caught.value.problems) == 6
    with pytest.raises(InputError, match="neither a list"):
        load(tmp_path, {"images": []}, annotations=None)
    with pytest.raises(InputError, match="categories"):
        load(tmp_path, about={"images": []})


def test_the_card_tells_which_category_is_which_class_and_whose_pictures_they_are(tmp_path):
    rows = [{"image_id": 5, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 0.3}]
    one, other = (
        load(tmp_path, rows, classes=classes).card
        for classes in ({1: "a", 2: "b"}, {2: "a", 3: "b"})
    )
    assert one.classes == other.classes and one.identity() != other.identity()
    moved = ABOUT | {"images": [ABOUT["images"][0] | {"file_name": "b.jpg"}, *ABOUT["images"][1:]]}
    first, again, third = (load(tmp_path, about=a).card for a in (ABOUT, ABOUT, moved))
    assert first.identity() == again.identity() != third.identity()


def test_a_list_alone_needs_class_names_and_says_nothing_of_other_pictures(tmp_path):
    rows = [{"image_id": 9, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.6}]
    with pytest.raises(InputError, match="neither class names nor file names"):
        load(tmp_path, rows, annotations=None)
    teacher = load(tmp_path, rows, annotations=None, classes=["cat", "dog"])
    assert teacher.card.classes == ("cat", "dog")
    assert ask(teacher, "/p/000009.jpg", 10, 10).classes.tolist() == [1]
    with pytest.raises(InputError, match="not looked at"):
        ask(teacher, "/p/000010.jpg", 10, 10)


def test_pictures_may_be_named_and_classes_numbered_as_the_other_system_likes(tmp_path):
    rows = [
        {"image_id": "sub/a", "category_id": 0, "bbox": [1, 1, 4, 4], "score": 0.6},
        {"image_id": "a.jpg", "category_id": 5, "bbox": [1, 1, 4, 4], "score": 0.5},
    ]
    for about in ("truth.json", None):
        teacher = load(tmp_path, rows, annotations=about, classes={5: "cow", 0: "owl"})
        assert teacher.card.classes == ("owl", "cow")
        assert ask(teacher, "/p/sub/a.jpg", 10, 10).classes.tolist() == [0]
        assert ask(teacher, "/p/a.jpg", 20, 30).classes.tolist() == [1]
    with pytest.raises(InputError, match="category_id 5 is no category; the categories are 0, 1"):
        load(tmp_path, rows, classes=["owl", "cow"])


def test_an_annotation_file_is_results_and_says_what_a_box_without_a_score_counts(tmp_path):
    boxes = [
        {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 1, 4, 4]},
        {"id": 2, "image_id": 5, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.3},
        {"id": 3, "image_id": 5, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 4, "image_id": 5, "category_id": 3, "bbox": [0, 0, 9, 9], "ignore": 1},
        {
            "id": 5,
            "image_id": 5,
            "category_id": 3,
            "bbox": [0, 0, 9, 9],
            "attributes": {"ignore": "region"},
        },
        {
            "id": 6,
            "image_id": 5,
            "category_id": 3,
            "bbox": [1, 1, 4, 4],
            "score": 0.2,
            "iscrowd": 0,  # cleared in a tool that keeps attributes as they were
            "attributes": {"ignore": "region"},
        },
    ]
    whole = ABOUT | {"annotations": boxes}
    with pytest.raises(InputError, match=r"result 0: has no score; set teacher\.score"):
        load(tmp_path, whole, annotations=None)
    labels = ask(load(tmp_path, whole, annotations=None, score=0.8), "/p/a.jpg", 20, 30)
    assert labels.classes.tolist() == [1, 0, 0]
    assert labels.scores.tolist() == pytest.approx([0.8, 0.3, 0.2])
    with pytest.raises(InputError, match="is an annotation file itself"):
        load(tmp_path, whole)


def test_class_names_that_say_nothing_are_refused(tmp_path):
    twice = ABOUT | {"categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}]}
    with pytest.raises(InputError, match="'cat' is empty or there twice"):
        load(tmp_path, about=twice)
    with pytest.raises(InputError, match="does not see pixels"):
        load(tmp_path, tta={"flip": True})


def test_pictures_that_the_file_does_not_tell_apart_are_refused_before_any_is_labelled(tmp_path):
    about = ABOUT | {"images": [ABOUT["images"][0] | {"height": HEIGHT, "width": WIDTH}]}
    teacher = load(tmp_path, [RESULTS[1]], about)
    first, again, other = (
        pictures(tmp_path / name, 1, first=i) for name, i in (("x", 0), ("copy", 0), ("y", 9))
    )
    for source in (first, again, other):
        os.rename(source.files[0], tmp_path / source.files[0].replace("000.png", "a.jpg"))
    sources = [
        replace(s, files=FileNames.of(s.files.folder, ["a.jpg"])) for s in (first, again, other)
    ]
    annotate(teacher, sources[:2], tmp_path / "one")  # copies are one picture
    both = r"x/a\.jpg and .*y/a\.jpg: are one picture in the file of teacher 'results'"
    for rank in range(2):
        with pytest.raises(InputError, match=both):
            annotate(teacher, sources, tmp_path / "s", rank=rank, world=2)
    assert len(Store.open(tmp_path / "s")) == 0


def test_a_picture_s_id_of_more_than_64_bits_is_refused(tmp_path):
    about = ABOUT | {"images": [ABOUT["images"][0] | {"id": 2**63}]}
    with pytest.raises(InputError, match=f"the image id {2**63} has more than 64 bits"):
        load(tmp_path, about=about)
