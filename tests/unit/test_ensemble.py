"""Several stores read as one: fused, audited and selected."""

import json
from dataclasses import replace

import numpy as np
import pytest
from silver_stand_ins import HEIGHT, WIDTH, card, gold, pictures

from detmtl.silver.audit import Audit, audit, audit_folder
from detmtl.silver.ensemble import Ensemble
from detmtl.silver.fusion import FusionSettings
from detmtl.silver.policy import resolve
from detmtl.silver.record import Record
from detmtl.silver.records import FORMATS
from detmtl.silver.selection import AtPrecision, AtProbability, SelectionSettings, select
from detmtl.silver.spill import Spill
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

pytest.importorskip("numba", reason="numba is not installed: detmtl[fusion]")

SPACE = LabelSpace.of({"person": ["human", "people"], "car": ["auto", "car"]})
A, B, C = [0, 0, 10, 10], [15, 5, 25, 20], [2, 12, 9, 20]
COUNT = 12


def store_of(path, name, classes, source, found, backwards=False):
    """Makes the store of a teacher of this name; found: (box, class, score) rows of each picture."""
    made = card(*classes).model_copy(update={"name": name, "weights_sha256": name * 8})
    store = Store.create(path / name, made, 0.05)
    files = [source.files.name(i) for i in range(len(source))]
    rows = list(zip(source.hashes(), found, files, strict=True))
    with store.writer() as writer:
        for content_hash, boxes, file in rows[::-1] if backwards else rows:
            boxes = sorted(boxes, key=lambda r: -r[2])
            writer.add(
                Record(
                    content_hash,
                    HEIGHT,
                    WIDTH,
                    np.array([r[0] for r in boxes], dtype=np.float32).reshape(-1, 4),
                    np.array([r[1] for r in boxes], dtype=np.int32),
                    np.array([r[2] for r in boxes], dtype=np.float32),
                    file=file,
                )
            )
    return Store.open(path / name)


@pytest.fixture
def source(tmp_path):
    return pictures(tmp_path / "images", COUNT)


@pytest.fixture
def labelled(source):
    """A person at A in every picture, a car at B in every other one."""
    rows = [(i, A, 0, 0) for i in range(COUNT)] + [(i, B, 1, 0) for i in range(0, COUNT, 2)]
    return gold(source, rows)


@pytest.fixture
def stores(tmp_path, source):
    """`aa` knows both classes and is modest; `bb` knows persons alone and boasts of one at C."""
    shifted = [1, 0, 11, 10]
    first = [[(A, 0, 0.6), (B, 1, 0.4 if i % 2 else 0.7)] for i in range(COUNT)]
    second = [[(shifted, 0, 0.9), (C, 0, 0.8)] for _ in range(COUNT)]
    return [
        store_of(tmp_path, "aa", ["human", "auto"], source, first),
        store_of(tmp_path, "bb", ["people"], source, second, backwards=True),
    ]


def joined(stores, labelled):
    audits = [audit(store, labelled, SPACE) for store in stores]
    return Ensemble.of(stores, SPACE, audits=audits)


def test_fused_labels_are_audited_and_selected(source, labelled, stores, tmp_path):
    ensemble = joined(stores, labelled)
    checked = ensemble.audit(labelled)
    assert checked.pictures == COUNT and checked.known.tolist() == [True, True]
    # Two teachers on A are one box; bb's C stands alone.
    assert [len(s) for s in checked.scores] == [2 * COUNT, COUNT]
    assert checked.hits[0].sum() == COUNT and checked.hits[0][:COUNT].all()

    settings = SelectionSettings(threshold=AtPrecision(precision=0.9), ignore_from=None)
    path = select(ensemble, [source], SPACE, settings, checked, tmp_path)
    content = json.loads(path.read_text())
    boxes = [a for a in content["annotations"] if a["category_id"] == 1]
    assert len(boxes) == COUNT
    assert boxes[0]["attributes"] | {"fused_score": 0, "probability": 0} == {
        "teacher": "aa+bb",
        "teacher_score_aa": 0.6,
        "teacher_score_bb": 0.9,
        "fused_score": 0,
        "probability": 0,
        "grade": "silver",
    }
    assert select(ensemble, [source], SPACE, settings, checked, tmp_path) == path


def test_numbers_are_probabilities_where_teachers_have_no_common_score(labelled, stores):
    ensemble = joined(stores, labelled)
    settings = SelectionSettings(threshold=0.6, ignore_from=0.4, calibration="platt")
    found = resolve(ensemble, SPACE, settings, ensemble.audit(labelled), several=True)
    assert found.calibration is not None
    for scores, probability in ((found.limits, 0.6), (found.lower, 0.4)):
        np.testing.assert_allclose(scores, found.calibration.score_for(probability), rtol=1e-6)
        assert (np.abs(scores - probability) > 0.01).any()


@pytest.mark.parametrize("chosen", [None, {"bb": 3.0}])
def test_the_more_trusted_teacher_moves_the_box(source, labelled, stores, chosen):
    """By weight and calibrated score: what the settings name, or what gold says."""
    audits = [audit(store, labelled, SPACE) for store in stores]
    ensemble = Ensemble.of(stores, SPACE, fusion=FusionSettings(weights=chosen), audits=audits)
    if chosen is not None:
        assert ensemble.weights[1] == 3 * ensemble.weights[0]
    assert ensemble.weights[0] != ensemble.weights[1]
    classes = np.zeros(1, int)
    worth = [
        float(curve(np.array([score]), classes)[0] * weight)
        for curve, score, weight in zip(
            ensemble.calibrations, (0.6, 0.9), ensemble.weights, strict=True
        )
    ]
    for record in ensemble.fused(source.hashes()):
        on_a = record.classes == 0
        left = record.boxes[on_a & (record.boxes[:, 1] < 1), 0]
        assert left.tolist() == pytest.approx([worth[1] / sum(worth)], rel=1e-5)


def test_an_audit_of_fused_labels_is_the_same_when_it_is_read_again(source, labelled, stores):
    ensemble = joined(stores, labelled)
    fresh = ensemble.audit(labelled)
    kept = Audit.load(audit_folder(ensemble.path, fresh.gold_hash) / "audit.json")
    assert kept.digest() == fresh.digest() == ensemble.audit(labelled).digest()
    np.testing.assert_array_equal(kept.boxes["score"], fresh.boxes["score"])
    labels = np.concatenate([record.scores for record in ensemble.fused(source.hashes())])
    assert sorted(labels) == sorted(fresh.boxes["score"]), (
        "a threshold is one of its labels' scores"
    )


@pytest.mark.filterwarnings("ignore:.*of class 'person' teacher")
def test_labels_of_pictures_that_are_not_asked_for_are_not_parsed(
    source, labelled, stores, monkeypatch
):
    ensemble = joined(stores, labelled)  # audits are kept by what they are of
    some, parsed = labelled.subset([1, 4]), []
    of_boxes = FORMATS["boxes"]

    def counted(line):
        parsed.append(line)
        return of_boxes.decode(line)

    monkeypatch.setitem(FORMATS, "boxes", replace(of_boxes, decode=counted))
    assert audit(stores[0], some, SPACE).pictures == len(parsed) == 2
    parsed.clear()
    assert ensemble.audit(some).pictures == 2
    assert len(parsed) == 2 * 3, "the first store for the pictures' sizes, and each for its boxes"
    parsed.clear()
    select(stores[0], [source.subset([3])], SPACE, SelectionSettings())
    assert len(parsed) == 1


def test_who_does_not_know_a_class_is_no_vote_against(source, labelled, stores):
    ensemble = joined(stores, labelled)
    alone = ensemble.calibrations[0](np.array([0.7]), np.array([1]))[0]
    checked = ensemble.audit(labelled)
    assert checked.scores[1][0] == pytest.approx(alone, abs=1e-5)


def test_numbers_are_probabilities_with_several_teachers(source, labelled, stores):
    ensemble, checked = joined(stores, labelled), joined(stores, labelled).audit(labelled)
    by_number = select(ensemble, [source], SPACE, SelectionSettings(threshold=0.6), checked)
    probable = SelectionSettings(
        threshold=AtProbability(probability=0.6), ignore_from=AtProbability(probability=0.3)
    )
    by_name = select(ensemble, [source], SPACE, probable, checked)
    of = lambda path: json.loads(path.read_text())["annotations"]  # noqa: E731
    assert of(by_number) == of(by_name)
    assert all(a["attributes"]["probability"] >= 0.3 for a in of(by_name))
    with pytest.raises(InputError, match="need an audit"):
        select(ensemble, [source], SPACE, SelectionSettings())


def test_without_calibration_several_stores_need_no_gold(source, stores):
    settings = SelectionSettings(calibration="none", threshold=0.7, ignore_from=None)
    path = select(stores, [source], SPACE, settings)
    rows = json.loads(path.read_text())["annotations"]
    assert len([r for r in rows if r["category_id"] == 1]) == COUNT  # A: (.6 + .9) / 2; C: .8 / 2
    with pytest.raises(InputError, match="audit of each against gold"):
        select(stores, [source], SPACE, SelectionSettings())


def test_the_order_of_pictures_in_a_store_does_not_count(tmp_path, source, labelled, stores):
    again = store_of(
        tmp_path / "again",
        "aa",
        ["human", "auto"],
        source,
        [[(A, 0, 0.6), (B, 1, 0.4 if i % 2 else 0.7)] for i in range(COUNT)],
        backwards=True,
    )
    settings = SelectionSettings(calibration="none", ignore_from=None, threshold=0.3)
    one = select(stores, [source], SPACE, settings)
    other = select([again, stores[1]], [source], SPACE, settings)
    assert one.parent.name == other.parent.name  # same policy, same digest
    assert one.read_bytes() == other.read_bytes()


def test_what_is_wrong_with_teachers_is_said(tmp_path, source, stores):
    bare = LabelSpace.of({"person": ["human"]})
    with pytest.raises(InputError) as told:
        Ensemble.of(stores, bare)
    assert any("'aa'" in p and "'auto'" in p for p in told.value.problems)
    assert any("'bb'" in p and "'people'" in p for p in told.value.problems)
    with pytest.raises(InputError, match="names two of them"):
        Ensemble.of([stores[0], stores[0]], SPACE)


def test_a_picture_that_a_teacher_has_not_seen_is_left_out(tmp_path, source, stores):
    half = store_of(tmp_path / "half", "cc", ["people"], source.subset(range(5)), [[]] * 5)
    settings = SelectionSettings(calibration="none", ignore_from=None, threshold=0.1)
    with pytest.warns(UserWarning, match=f"{COUNT - 5} of {COUNT} pictures .* every teacher"):
        path = select([stores[0], half], [source], SPACE, settings)
    assert len(json.loads(path.read_text())["images"]) == 5


def test_rows_that_memory_does_not_hold_come_back_in_order(tmp_path):
    dtype = np.dtype([("picture", "i4"), ("value", "f4")])
    rng = np.random.default_rng(0)
    rows = np.zeros(5000, dtype)
    rows["picture"], rows["value"] = rng.integers(0, 300, 5000), np.arange(5000)
    small, large = Spill(dtype, tmp_path, buffer=1000), Spill(dtype, tmp_path)
    for part in np.array_split(rows, 70):
        small.add(part)
        large.add(part)
    assert len(small._runs) > 10 and not large._runs
    wanted = rows[np.argsort(rows["picture"], kind="stable")]
    for spill in (small, large):
        for _ in range(2):  # it can be read again
            got = [(block, part) for block, part in spill.blocks(300, 64)]
            assert [b.start for b, _ in got] == [0, 64, 128, 192, 256] and got[-1][0].stop == 300
            np.testing.assert_array_equal(np.concatenate([part for _, part in got]), wanted)
        spill.close()
