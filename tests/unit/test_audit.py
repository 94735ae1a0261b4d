import os
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from silver_stand_ins import gold, pictures, store_of

from detmtl.silver.audit import Audit, audit
from detmtl.silver.audit_estimates import wilson
from detmtl.silver.evidence import Evidence
from detmtl.silver.held_out import overlap, refuse_overlap
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

CLASSES = ("person", "car")
SPACE = LabelSpace.of(CLASSES)
A, B, C = [0, 0, 10, 10], [15, 5, 25, 20], [2, 12, 9, 20]


def test_wilson_equals_published_values():
    # Newcombe 1998, table I (without continuity correction).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def compared(tmp_path, rows, found, coverage=((1.0, 1.0),), classes=CLASSES):
    source = pictures(tmp_path / "images", len(found))
    store = store_of(tmp_path / "store", classes, source, found)
    return audit(store, gold(source, rows, coverage), SPACE)


def test_a_gold_box_confirms_one_box_and_crowds_judge_none(tmp_path):
    rows = [(0, A, 0, 0), (0, B, 0, 2), (1, C, 1, 0)]
    found = [
        [(A, 0, 0.9), ([0, 0, 10, 8], 0, 0.8), ([16, 6, 20, 12], 0, 0.7), (C, 0, 0.6)],
        [(C, 0, 0.5), (C, 1, 0.4)],
    ]
    source = pictures(tmp_path / "images", 2)
    store = store_of(tmp_path / "store", CLASSES, source, found)
    result = audit(store, gold(source, rows), SPACE, nms=None)
    assert result.gold_boxes.tolist() == [1, 1]
    np.testing.assert_allclose(result.scores[0], [0.9, 0.8, 0.6, 0.5])  # .7 lies in the crowd
    assert result.hits[0].tolist() == [True, False, False, False]
    assert result.hits[1].tolist() == [True]
    assert result.confusion.tolist() == [[1, 0], [1, 0]]


def test_a_model_s_labels_audit_nobody(tmp_path):
    source = pictures(tmp_path / "images", 1)
    store = store_of(tmp_path / "store", CLASSES, source, [[(A, 0, 0.9)]])
    silver = replace(gold(source, [(0, A, 0, 0)]), grade=Grade.SILVER)
    with pytest.raises(InputError, match=r"source 's': a model wrote its labels"):
        audit(store, silver, SPACE)
    assert not (tmp_path / "store" / "audit").exists()


def test_classes_that_nobody_looked_for_are_not_judged(tmp_path):
    found = [[(A, 0, 0.9), (B, 1, 0.8)], [(A, 0, 0.7), (B, 1, 0.6)]]
    result = compared(tmp_path, [(0, A, 0, 0)], found, ((1.0, 0.0), (1.0, 1.0)))
    np.testing.assert_allclose(result.scores[1], [0.6])
    assert result.hits[0].tolist() == [True, False]


def many(tmp_path):
    """Twelve persons: ten found with scores .95 to .5, two refuted boxes at .7 and .3."""
    rows = [(i, A, 0, 0) for i in range(12)]
    found = [[(A, 0, 0.95 - 0.05 * i)] for i in range(10)] + [[(B, 0, 0.72)], [(B, 0, 0.3)]]
    return compared(tmp_path, rows, found)


def thresholds(result, precision):
    found = Evidence.of(result).thresholds(precision)
    return dict(zip(result.classes, found.tolist(), strict=True))


def test_precision_and_recall_over_thresholds(tmp_path):
    result = many(tmp_path)
    assert result.recall_at(0.5)["person"] == pytest.approx(10 / 12)
    assert result.recall_at({"person": 0.74, "car": 0.5})["person"] == pytest.approx(5 / 12)
    assert thresholds(result, 1.0)["person"] == pytest.approx(0.75)
    assert thresholds(result, 0.9)["person"] == pytest.approx(0.5)
    assert thresholds(result, 0.5)["person"] == pytest.approx(0.3)
    # Cars: the teacher has too few boxes of them, so all classes speak.
    assert thresholds(result, 0.9)["car"] == pytest.approx(0.5)
    assert result.recall_at(0.5)["car"] == pytest.approx(10 / 12)


def test_no_threshold_reaches_an_impossible_precision(tmp_path):
    found = [[(B, 0, 0.9)] for _ in range(12)]
    result = compared(tmp_path, [(i, A, 0, 0) for i in range(12)], found)
    assert thresholds(result, 0.1) == {"person": float("inf"), "car": float("inf")}
    assert next(iter(result.table(thresholds(result, 0.1)).columns[1].cells)) == "-"


def test_a_class_that_the_teacher_does_not_know_has_no_recall(tmp_path):
    found = [[(A, 0, 0.9)] for _ in range(12)]
    result = compared(tmp_path, [(i, A, 0, 0) for i in range(12)], found, classes=("person",))
    assert result.recall_at(0.5) == {"person": 1.0, "car": 0.0}


def test_totals_are_of_the_classes_that_the_teacher_knows(tmp_path):
    rows = [(i, A, 0, 0) for i in range(12)] + [(i, C, 1, 0) for i in range(12)]
    result = compared(
        tmp_path, rows, [[(A, 0, 0.9)] for _ in range(9)] + [[]] * 3, classes=("person",)
    )
    measures = result.measures(0.5)
    assert measures.row("all").recall.plain() == measures.row("person", 0).recall.plain()
    assert measures.by_score()[5].recall.value == pytest.approx(0.75)
    assert measures.density.tolist() == [1, 0.75]
    assert measures.per_picture()[0].sum() == 12
    assert measures.band(0.1).missed == 3


def test_other_sizes_of_gold_are_another_audit(tmp_path):
    source = gold(pictures(tmp_path / "images", 2), [(0, A, 0, 0)])
    store = store_of(tmp_path / "store", CLASSES, source, [[(A, 0, 0.9)], []])
    first = audit(store, source, SPACE)
    turned = replace(source, sizes=source.sizes + np.array([0, 1], np.int32))
    assert audit(store, turned, SPACE).gold_hash != first.gold_hash
    assert audit(store, source, SPACE).gold_hash == first.gold_hash


def test_a_class_that_no_score_is_enough_for_has_no_recall_and_speaks_for_none(tmp_path):
    rows = [(i, A, 0, 0) for i in range(10)] + [(i, B, 1, 0) for i in range(10)]
    result = compared(tmp_path, rows, [[(A, 0, 0.9), (B, 1, 0.8)] for _ in range(10)])
    assert result.recall_at({"person": 0.5, "car": 0.9}) == {"person": 0.75, "car": 0.25}
    recall = result.recall_at({"person": 0.5, "car": float("inf")})
    assert recall == {"person": 1.0, "car": 0.0}


def test_density_is_of_the_pictures_searched_for_the_class(tmp_path):
    rows = [(i, A, 0, 0) for i in range(4)] + [(0, B, 1, 0), (1, B, 1, 0), (1, C, 1, 0)]
    looked = [(1.0, float(i < 2)) for i in range(4)]
    result = compared(tmp_path, rows, [[(A, 0, 0.9), (B, 1, 0.8)] for _ in range(4)], looked)
    assert result.searched.tolist() == [4, 2] and result.density.tolist() == [1, 1.5]
    again = Audit.load(tmp_path / "store" / "audit" / result.gold_hash / "audit.json")
    assert again.searched.tolist() == [4, 2]
    cells = [list(column.cells) for column in result.table(0.5).columns]
    assert cells[5:] == [["1.00", "1.50", "2.50"], ["1.00", "1.00", "2.00"]]
    never = compared(tmp_path / "never", rows[:4], [[]] * 4, ((1.0, 0.0),))
    assert never.searched.tolist() == [4, 0] and np.isnan(never.density[1])


def test_it_is_kept_and_read_back(tmp_path):
    result = many(tmp_path)
    path = tmp_path / "store" / "audit" / result.gold_hash / "audit.json"
    again = Audit.load(path)
    assert again.digest() == result.digest()
    assert thresholds(again, 0.9) == thresholds(result, 0.9)
    path.write_text("{}")
    with pytest.raises(InputError, match="audit again"):
        Audit.load(path)


def test_the_table_has_intervals_and_densities(tmp_path):
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(many(tmp_path).table(0.5))
    console.file.close()
    text = console.export_text()
    assert "0.91 (0.62-0.98)" in text and "0.83 (0.55-0.95)" in text


def test_gold_that_the_teacher_has_not_seen_is_refused(tmp_path):
    store = store_of(tmp_path / "s", CLASSES, pictures(tmp_path / "a", 1), [[]])
    other = pictures(tmp_path / "b", 2, first=50)
    with pytest.raises(InputError, match="none of the 2 pictures"):
        audit(store, gold(other, [(0, A, 0, 0)]), SPACE)
    with pytest.raises(InputError, match="no labels"):
        audit(store, other, SPACE)


def test_held_out_pictures_among_the_training_ones_are_refused(tmp_path):
    training, test = pictures(tmp_path / "a", 4), pictures(tmp_path / "b", 3, first=2)
    pairs = overlap([training], [test])
    assert [(os.path.basename(a), os.path.basename(b)) for a, b in pairs] == [
        ("002.png", "000.png"),
        ("003.png", "001.png"),
    ]
    with pytest.raises(InputError, match=r"002\.png"):
        refuse_overlap([training], [test])
    refuse_overlap([training], [pictures(tmp_path / "c", 3, first=30)])
