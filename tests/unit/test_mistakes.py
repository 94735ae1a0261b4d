"""Kinds of mistakes, against the program of those who named them, and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import annotation, coco_data

from detmtl.cli import main
from detmtl.metrics.box_arrays import Boxes
from detmtl.metrics.mistakes import KINDS, mistakes

CASES = json.loads((Path(__file__).parent / "mistakes_by_tidecv.json").read_text())["cases"]


def boxes(rows, crowd=()):
    """Returns boxes of rows: picture, class, x, y, width, height, and of detections a score."""
    table = np.array(rows, dtype=float) if len(rows) else np.zeros((0, 7))
    scores = table[:, 6] if table.shape[1] > 6 else np.ones(len(table))
    flags = np.isin(np.arange(len(table)), crowd)
    image, category = table[:, :2].astype(int).T
    return Boxes(image, category, table[:, 2:6], table[:, 4] * table[:, 5], scores, flags)


@pytest.mark.parametrize("case", CASES)
def test_the_figures_are_tidecv_s(case):
    found = mistakes(boxes(case["truth"]), boxes(case["found"]), 4)
    assert found.counts == case["counts"] and min(found.counts.values()) > 5
    # a recall may fall to either side of one of the 101 at which precision is read
    assert found.lost == pytest.approx(case["lost"], abs=2e-4)


def test_one_mistake_of_each_kind():
    truth = [
        (0, 0, 0, 0, 10, 10),
        (0, 0, 100, 0, 10, 10),
        (0, 1, 200, 0, 10, 10),
        (0, 0, 300, 0, 10, 10),
        (0, 1, 400, 0, 10, 10),
    ]
    found = [
        (0, 0, 0, 0, 10, 10, 0.9),
        (0, 0, 1, 0, 10, 10, 0.8),  # again
        (0, 0, 106, 0, 10, 10, 0.7),  # IoU .25
        (0, 0, 200, 0, 10, 10, 0.6),  # class 1 is there
        (0, 1, 306, 0, 10, 10, 0.5),  # class 0 is there, and IoU .25
        (0, 0, 500, 0, 10, 10, 0.4),
        (0, 1, 600, 0, 10, 10, 0.3),  # on a crowd
    ]
    crowd = (0, 1, 590, 0, 40, 40)
    made = mistakes(boxes([*truth, crowd], crowd=[5]), boxes(found), 2)
    # of the boxes at 300 and 400 nothing but a wrong class at a wrong place tells
    expected = {"double": 1, "place": 1, "class": 1, "both": 1, "background": 1, "missed": 2}
    assert made.counts == expected
    # put right, the second of three boxes of class 0 comes after a double: precision 2/3 from recall 1/3 on
    before = 34 / 101 / 2
    place = (34 + 33 * 2 / 3) / 101 / 2 - before
    assert made.lost["place"] == pytest.approx(place, abs=1e-9)
    # one of two of class 1, then one of two of class 0; nothing right comes after the other mistakes
    assert made.lost["class"] == pytest.approx(51 / 101 / 2, abs=1e-9)
    assert made.lost["missed"] == pytest.approx((51 - 34) / 101 / 2, abs=1e-9)
    assert made.lost["double"] == made.lost["background"] == made.lost["both"] == 0


def test_of_several_detections_about_a_box_the_best_is_put_right():
    truth = [(0, 0, 0, 0, 10, 10)]
    found = [(0, 0, 6, 0, 10, 10, 0.5), (0, 0, 0, 6, 10, 10, 0.9), (0, 1, 0, 0, 10, 10, 0.7)]
    made = mistakes(boxes(truth), boxes(found), 2)
    assert made.counts["place"] == 2 and made.counts["class"] == 1 and made.counts["missed"] == 0
    assert made.lost["place"] == pytest.approx(1) and made.lost["class"] == 0


def test_a_class_that_is_missed_altogether():
    made = mistakes(boxes([(0, 0, 0, 0, 9, 9), (1, 1, 0, 0, 9, 9)]), boxes([]), 3)
    assert made.counts == dict.fromkeys(KINDS, 0) | {"missed": 2}
    assert made.lost == dict.fromkeys(KINDS, 0) | {"missed": 1}


def test_nothing_to_find():
    made = mistakes(boxes([]), boxes([(0, 0, 0, 0, 9, 9, 0.5)]), 1)
    assert made.counts == dict.fromkeys(KINDS, 0) | {"background": 1}
    assert all(np.isnan(value) for value in made.lost.values())


def test_of_a_picture_and_class_the_hundred_best_count():
    found = [(0, c, 50 + k, 0, 9, 9, 1 - k / 200) for k in range(120) for c in (0, 1)]
    made = mistakes(boxes([(0, 0, 0, 0, 9, 9)]), boxes(found), 2)
    assert made.counts["background"] == 200


def test_evaluate_tells_them_dearest_first(tmp_path, capsys):
    gold = coco_data()
    gold["annotations"] = [annotation(1, 10, 1, [4, 4, 9, 9]), annotation(2, 10, 1, [40, 9, 9, 9])]
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    row = {"image_id": 10, "category_id": 1, "bbox": [4, 4, 9, 9], "score": 0.9}
    rows = [row, row | {"bbox": [20, 30, 5, 5], "score": 0.95}]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    words = ["evaluate", "--annotations", str(tmp_path / "gold.json"), "--mistakes"]
    out = ["--json", str(tmp_path / "out.json")]
    assert main([*words, "--detections", str(tmp_path / "found.json"), *out]) == 0
    _, told = capsys.readouterr().out.split("what AP50 would gain")
    assert told.index("missed") < told.index("double")
    lost = json.loads((tmp_path / "out.json").read_text())
    assert lost["lost/background"] > 0.2 and lost["lost/double"] == 0
    assert main([*words, "--checkpoint", "best.pt", "--images", str(tmp_path)]) == 2
    assert "--mistakes: is told of a file" in capsys.readouterr().err


def test_what_is_not_known_without_truth_is_a_dash(tmp_path, capsys):
    (tmp_path / "gold.json").write_text(json.dumps(coco_data() | {"annotations": []}))
    (tmp_path / "found.json").write_text("[]")
    files = ["--annotations", "gold.json", "--detections", "found.json"]
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in files]
    assert main(["evaluate", *words, "--mistakes"]) == 0
    _, told = capsys.readouterr().out.split("what AP50 would gain")
    assert "missed" in told and "nan" not in told
