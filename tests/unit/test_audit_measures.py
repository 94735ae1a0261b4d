"""What an audit says of teachers whose faults are known."""

import itertools
import json
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from audit_stand_ins import CLASSES, moved, records, scenes, stored
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from silver_stand_ins import card

from detmtl.silver.audit import Audit, audit
from detmtl.silver.comparison import Fault
from detmtl.silver.record import Record
from detmtl.structures.classes import LabelSpace

SPACE = LabelSpace.of(CLASSES)


def judged(tmp_path, gold, *args, **faults) -> Audit:
    return audit(stored(tmp_path / "store", gold, *args, **faults), gold, SPACE, nms=None)


def as_coco(gold, said):
    images = [{"id": i} for i in range(len(gold))]
    annotations, results = [], []
    for i, record in enumerate(said):
        labels = gold.labels(i)["boxes"]
        for box, c in zip(labels.boxes.tolist(), labels.classes.tolist(), strict=True):
            x1, y1, x2, y2 = box
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": c,
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0,
                                "area": (x2 - x1) * (y2 - y1)})  # fmt: skip
        for box, c, score in zip(record.boxes, record.classes, record.scores, strict=True):
            x1, y1, x2, y2 = (round(float(v), 2) for v in box)
            results.append({"image_id": i, "category_id": int(c), "score": float(score),
                            "bbox": [x1, y1, x2 - x1, y2 - y1]})  # fmt: skip
    truth = COCO()
    categories = [{"id": c, "name": n} for c, n in enumerate(gold.classes)]
    truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
    truth.createIndex()
    return truth, truth.loadRes(results)


def test_a_score_at_the_threshold_is_a_label_and_finds_its_object(tmp_path):
    gold = scenes(count=5)
    level = judged(tmp_path, gold, lambda r: replace(r, scores=np.full_like(r.scores, 0.7)))
    at, above = level.measures(0.7).row("all"), level.measures(0.71).row("all")
    assert at.precision.count == at.recall.hits == len(level.gold) > 10
    assert above.precision.count == above.recall.hits == 0


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_confirmed_as_pycocotools_does_it(tmp_path, seed, capsys):
    gold = scenes(count=25, seed=seed, per_picture=12)
    faults = {"seed": seed, "miss": 0.2, "jitter": 0.12, "confuse": 0.1, "extra": 6}
    result = judged(tmp_path, gold, **faults)
    evaluation = COCOeval(*as_coco(gold, records(gold, **faults)), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    for c in range(len(CLASSES)):
        there = [e for e in evaluation.evalImgs if e and e["category_id"] == c]
        scores = np.concatenate([e["dtScores"] for e in there])
        hits = np.concatenate([e["dtMatches"][0] > 0 for e in there])
        order = np.lexsort((~hits, -scores))
        np.testing.assert_allclose(result.scores[c], scores[order], atol=1e-5)
        assert result.hits[c].tolist() == hits[order].tolist()
        assert result.hits[c].sum() == (result.gold["score"][result.gold["class"] == c] > 0).sum()


def test_every_kind_of_fault(tmp_path):
    gold = scenes(count=1, per_picture=0)
    box = np.array([100.0, 100, 200, 200], np.float32)
    annotations = gold.annotations.of(1, np.zeros(1, int), box[None], np.zeros(1, int))
    gold = replace(gold, annotations=annotations)
    boxes = np.stack([box, box + 2, box + 60, box, [300, 300, 400, 400]]).astype(np.float32)
    classes, scores = np.array([0, 0, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.6, 0.5])

    def said(record):
        return replace(record, boxes=boxes, classes=classes, scores=scores)

    result = judged(tmp_path, gold, said)
    kinds = {round(float(s), 1): Fault(f) for s, f in result.boxes[["score", "fault"]].tolist()}
    assert kinds == {
        0.9: Fault.NONE, 0.8: Fault.TWICE, 0.7: Fault.NOTHING, 0.6: Fault.CLASS, 0.5: Fault.NOTHING
    }  # fmt: skip
    boxes[2] = box + 40  # IoU .22
    result = judged(tmp_path / "b", gold, said)
    assert result.measures(0.5).faults() == {"twice": 1, "class": 1, "place": 1, "nothing": 1}
    assert result.measures(0.75).faults(0) == {"twice": 1, "class": 0, "place": 0, "nothing": 0}
    assert [int(r["class"]) for r in result.measures(0.5).refuted(2)] == [0, 1]


@pytest.mark.parametrize("larger", [1.0, 1.2, 0.8])
def test_boxes_that_are_too_large_are_seen(tmp_path, larger):
    gold = scenes(count=60)
    found = judged(tmp_path, gold, larger=larger, jitter=0.03).measures(0.5).localization()
    assert found["boxes"] > 200
    for name in ("log_width", "log_height"):
        mean, sd = found[name]
        assert np.exp(mean) == pytest.approx(larger, abs=0.01)
        assert sd == pytest.approx(0.03 * np.sqrt(2) / larger, rel=0.2)
    for name in ("right", "down"):
        assert found[name][0] == pytest.approx(0, abs=0.005)


def test_boxes_that_are_shifted_are_seen(tmp_path):
    gold = scenes(count=60)

    def right(b, w, h):
        return b + 0.1 * (b[:, [2, 3, 2, 3]] - b[:, [0, 1, 0, 1]]) * [1, 0, 1, 0]

    found = judged(tmp_path, gold, moved(right)).measures(0.5).localization()
    # Here and there a box meets another object of its class rather than its own.
    assert found["right"] == pytest.approx((0.1, 0), abs=0.02)
    assert found["down"] == pytest.approx((0, 0), abs=0.02)


def test_boxes_far_too_large_are_misplaced_by_that_much(tmp_path):
    measures = judged(tmp_path, scenes(count=60), larger=1.6).measures(0.5)
    assert measures.row("all").precision.value < 0.1
    wrong = measures.localization(fault=Fault.PLACE)
    assert wrong["boxes"] > 200 and np.exp(wrong["log_width"][0]) == pytest.approx(1.6, abs=0.1)


def test_sizes_are_cocos(tmp_path):
    gold = scenes(count=40)
    measures = judged(tmp_path, gold, miss=0.4).measures(0.5)
    side = gold.annotations.boxes[:, 2:] - gold.annotations.boxes[:, :2]
    area = side.prod(axis=1)
    rows = [measures.row(n, size=i) for i, n in enumerate(("small", "medium", "large"))]
    assert [r.recall.count for r in rows] == [
        int((area < 1024).sum()), int(((area >= 1024) & (area < 9216)).sum()), int((area >= 9216).sum())
    ]  # fmt: skip
    assert sum(r.precision.count for r in rows) == measures.row("all").precision.count
    assert min(r.recall.count for r in rows[1:]) > 10


def test_boxes_per_picture_count_empty_pictures(tmp_path):
    gold = scenes(count=30, per_picture=1)
    in_gold, in_silver = judged(tmp_path, gold, miss=0.5).measures(0.5).per_picture()
    assert len(in_gold) == len(in_silver) == 30
    assert in_gold.sum() == len(gold.annotations.boxes) > in_silver.sum() > 0
    assert (in_gold >= in_silver).all() and (in_gold == 0).any()


def test_what_the_ignore_band_rescues_and_costs(tmp_path):
    gold = scenes(count=60)
    result = judged(tmp_path, gold, miss=0.2, extra=3)
    measures = result.measures(0.8)
    band = measures.band(0.55)
    scores, hit = result.boxes["score"], result.boxes["fault"] == Fault.NONE
    inside = (scores >= 0.55) & (scores < 0.8)
    assert band.boxes == inside.sum() and band.rescued == (inside & hit).sum() > 50
    assert band.missed == len(result.gold) - (hit & (scores >= 0.8)).sum()
    assert band.background + band.other + band.rescued == band.boxes
    lower = measures.band(0.05)
    assert lower.rescued == band.rescued and lower.background > band.background + 50
    assert measures.band(dict.fromkeys(CLASSES, 0.55)) == band
    assert measures.band(0.9).boxes == 0
    assert sum(measures.band(0.55, c).rescued for c in range(len(CLASSES))) == band.rescued


def test_calibration_errors_before_and_after(tmp_path):
    result = judged(tmp_path, scenes(count=60), miss=0.1, extra=4)
    measures = result.measures(0.5)
    before = measures.reliability()
    assert before.counts.sum() == len(result.boxes)

    def perfect(scores, classes):
        assert len(scores) == len(classes) == len(result.boxes)
        return (result.boxes["fault"] == Fault.NONE).astype(float)

    after = measures.reliability(probabilities=measures.probabilities(perfect))
    assert after.error() == 0 < before.error()
    own = measures.reliability(1, measures.probabilities(perfect))
    assert own.counts.sum() == (result.boxes["class"] == 1).sum()


def test_the_json_has_the_main_numbers_for_readers(tmp_path):
    result = judged(tmp_path, scenes(), miss=0.3)
    path = tmp_path / "store" / "audit" / result.gold_hash / "audit.json"
    summary = json.loads(path.read_text())["summary_at_0.5"]
    share = summary["all"]["recall"]
    assert share["share"] == pytest.approx(share["hits"] / share["count"], abs=1e-5)
    assert share["interval"][0] < share["share"] < share["interval"][1]
    assert summary["per_class"]["cup"]["sizes"]["large"]["precision"]["share"] == 1
    assert summary["per_class"]["cup"]["threshold"] == 0.5
    fields = json.loads(path.read_text())
    assert fields["gold_boxes"] == np.bincount(result.gold["class"], minlength=6).tolist()
    assert np.sum(fields["confusion"]) == (result.gold["called"] >= 0).sum()
    again = Audit.load(path)
    assert again.digest() == result.digest()
    for name in ("boxes", "gold"):
        assert getattr(again, name).tobytes() == getattr(result, name).tobytes()


def test_the_order_of_the_store_does_not_matter(tmp_path):
    gold = scenes(count=15)
    one = judged(tmp_path / "a", gold, jitter=0.1, extra=3)
    said = list(records(gold, jitter=0.1, extra=3))
    store = SimpleNamespace(
        path=tmp_path / "b", card=card(*CLASSES), digest=lambda: one.store_digest,
        records_of=lambda hashes: (r for r in said[::-1] if r.content_hash in hashes),
    )  # fmt: skip
    assert (
        audit(store, gold, SPACE, nms=None).boxes["fault"].tolist() == one.boxes["fault"].tolist()
    )


def test_memory_does_not_grow_with_the_store(tmp_path):
    gold = scenes(count=10)
    other = Record(
        "f" * 64, 480, 640, np.ones((300, 4), np.float32), np.zeros(300, np.int32), np.ones(300)
    )

    def many():
        yield from records(gold)
        for i in range(5000):  # 36 MB if they were kept
            yield replace(other, content_hash=f"{i:064x}", boxes=other.boxes + 1)

    store = SimpleNamespace(
        path=tmp_path, card=card(*CLASSES), digest=lambda: "d",
        records_of=lambda hashes: (r for r in many() if r.content_hash in hashes),
    )  # fmt: skip
    tracemalloc.start()
    result = audit(store, gold, SPACE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.pictures == 10 and peak < 5e6


def test_a_missed_object_that_the_teacher_does_not_know_is_no_disagreement(tmp_path):
    gold = scenes()
    known = tuple(n for n in CLASSES if n != "cup")
    at = {CLASSES.index(n): i for i, n in enumerate(known)}

    def forget(record):
        keep = np.array([c in at for c in record.classes.tolist()], dtype=bool)
        kept = {name: getattr(record, name)[keep] for name in ("boxes", "scores")}
        own = np.array([at[c] for c in record.classes[keep].tolist()], np.int32)
        return replace(record, classes=own, **kept)

    store = stored(tmp_path, gold, forget, classes=known, miss=0.3)
    missed = audit(store, gold, SPACE).measures(0.5).missed(12)
    assert len(missed) == 12 and CLASSES.index("cup") not in missed["class"]
    area = (missed["box"][:, 2:] - missed["box"][:, :2]).prod(axis=1)
    assert all(a >= b for a, b in itertools.pairwise(area.tolist()))
