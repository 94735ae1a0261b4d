import json

import pytest
import torch

from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.sample import ImageInfo
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


def load(tmp_path, results=RESULTS, about=ABOUT):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "truth.json").write_text(json.dumps(about))
    return ResultsTeacherSettings(path="results.json", annotations="truth.json").load(tmp_path)


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


def test_a_picture_without_results_is_empty_but_an_unknown_one_an_error(tmp_path):
    teacher = load(tmp_path)
    assert len(ask(teacher, "/x/empty.jpg", 8, 8)) == 0
    with pytest.raises(InputError, match=r"other\.jpg"):
        ask(teacher, "/x/other.jpg", 8, 8)
    with pytest.raises(InputError, match="30 x 20"):
        ask(teacher, "/x/a.jpg", 40, 60)


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
    with pytest.raises(InputError, match="list"):
        load(tmp_path, {"annotations": []})
    with pytest.raises(InputError, match="categories"):
        load(tmp_path, about={"images": []})
