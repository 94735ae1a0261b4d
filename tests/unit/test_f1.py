"""F1 against a plain loop, and the scoring backends against each other, on data like a detector's."""

from dataclasses import replace

import numpy as np
import pytest

from detmtl.metrics.box_arrays import Boxes
from detmtl.metrics.coco import score
from detmtl.metrics.f1 import judged

CATEGORIES = [3, 7, 20]


def like_a_detector(pictures: int, seed: int) -> tuple[Boxes, Boxes]:
    """Returns truth with crowds, and found boxes: several near each, false alarms, scores with ties."""
    rng = np.random.default_rng(seed)
    num = rng.poisson(6, pictures)
    image = np.repeat(np.arange(pictures) * 5, num)
    n = len(image)
    side = np.exp(rng.normal(3.7, 1, (n, 2))).clip(3, 300)
    true = np.concatenate([rng.uniform(0, 200, (n, 2)), side], axis=1).round(1)
    categories = rng.choice(CATEGORIES, n)
    truth = Boxes(image, categories, true, side.prod(1) * 0.7, np.ones(n), rng.random(n) < 0.15)
    copies = rng.integers(0, 4, n)
    near = np.repeat(true, copies, axis=0) * (1 + rng.normal(0, 0.12, (copies.sum(), 4)))
    alarms = rng.integers(0, 30, pictures)
    far = rng.uniform(1, 200, (alarms.sum(), 4))
    found = np.concatenate([near, far]).clip(0.5).astype(np.float32).astype(np.float64)
    m = len(found)
    images = np.concatenate([np.repeat(image, copies), np.repeat(np.arange(pictures) * 5, alarms)])
    guessed = np.concatenate([np.repeat(categories, copies), rng.choice(CATEGORIES, alarms.sum())])
    scores = rng.beta(1, 2, m).round(2)
    detections = Boxes(images, guessed, found, found[:, 2] * found[:, 3], scores, np.zeros(m, bool))
    return truth, detections


def by_hand(
    truth: Boxes, detections: Boxes, least: float = 0.5, categories: list[int] = CATEGORIES
) -> float:
    """Returns the mean F1 as the definition says it, box by box."""
    values = []
    for c in categories:
        tp = fp = 0
        for image in np.unique(detections.images):
            g = np.flatnonzero((truth.images == image) & (truth.categories == c))
            d = np.flatnonzero(
                (detections.images == image)
                & (detections.categories == c)
                & (detections.scores >= least)
            )
            taken = set()
            for i in d[np.argsort(-detections.scores[d], kind="stable")]:
                ious = {j: overlap(detections.boxes_xywh[i], truth.boxes_xywh[j]) for j in g}
                free = [j for j in g if not truth.crowd[j] and j not in taken]
                best = max(free, key=lambda j: ious[j][0], default=None)
                if best is not None and ious[best][0] >= 0.5:
                    taken.add(best)
                    tp += 1
                elif not any(truth.crowd[j] and ious[j][1] >= 0.5 for j in g):
                    fp += 1
        wanted = int(((truth.categories == c) & ~truth.crowd).sum())
        values += [2 * tp / (tp + fp + wanted)] if wanted else []
    return float(np.mean(values)) if values else float("nan")


def overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Returns the IoU of two boxes xywh, and the share of the first that is in the second."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter), inter / (a[2] * a[3])


@pytest.mark.parametrize("seed", range(4))
def test_f1_is_that_of_a_plain_loop(seed):
    truth, found = like_a_detector(12, seed)
    expected = by_hand(truth, found)
    assert 0.05 < expected < 0.9
    assert judged(truth, found, CATEGORIES).f1(0.5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_f1_of_a_class_is_the_highest_over_all_scores(seed):
    truth, found = like_a_detector(8, seed)
    best = judged(truth, found, CATEGORIES).best()
    for c, (value, score_there) in zip(CATEGORIES, best, strict=True):
        own = np.unique(found.scores[found.categories == c])
        values = [by_hand(truth, found, least, [c]) for least in own]
        assert value == pytest.approx(max(values), abs=1e-12) and 0.05 < value < 0.95
        assert score_there == max(s for s, v in zip(own, values, strict=True) if v > value - 1e-12)
    assert len({score_there for _, score_there in best}) == 3


def test_the_best_f1_and_its_score_are_among_the_numbers():
    truth, found = like_a_detector(8, 0)
    some = replace(truth, categories=np.where(truth.categories == 7, 3, truth.categories))
    ids = range(0, 40, 5)
    numbers = score(some, found, ids, {3: "cat", 7: "dog", 20: "cow"})
    assert np.isnan(numbers["F1/dog"]) and np.isnan(numbers["score/dog"])
    (value, least), _, (_, other) = judged(some, found, CATEGORIES).best()
    assert numbers["F1/cat"] == value and numbers["score/cat"] == least != other
    assert numbers["score/cow"] == other and numbers["F1/cow"] >= numbers["AP/cow"]


def test_f1_without_truth_or_detections():
    truth, found = like_a_detector(3, 0)
    nothing = Boxes(*(np.asarray(v)[:0] for v in vars(truth).values()))
    crowds = replace(truth, crowd=truth.crowd | True)
    for none in (judged(nothing, found, CATEGORIES), judged(crowds, found, CATEGORIES)):
        assert np.isnan(none.f1(0.5)) and np.isnan(none.best()).all()
    blind = judged(truth, nothing, CATEGORIES)
    assert blind.f1(0.5) == 0 and [value for value, _ in blind.best()] == [0, 0, 0]
    assert np.isnan([score_there for _, score_there in blind.best()]).all()
    of_no_class = judged(nothing, nothing, [])
    assert np.isnan(of_no_class.f1(0.5)) and of_no_class.best() == []


@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_bit_for_bit_on_ties_crowds_and_more_than_100_detections(seed):
    truth, found = like_a_detector(15, seed)
    many = Boxes(*(np.concatenate([v, v]) for v in vars(found).values()))  # ties of everything
    crowded = replace(many, images=np.where(many.images < 20, 0, many.images))
    names = {c: str(c) for c in CATEGORIES}
    ids = sorted({0, 5, 10, 15, *truth.images.tolist(), *crowded.images.tolist()})
    assert np.bincount(crowded.images).max() > 100
    slow, fast = (score(truth, crowded, ids, names, b) for b in ("pycocotools", "fast"))
    assert slow.keys() == fast.keys() and 0.001 < slow["AP"] < 0.9
    np.testing.assert_array_equal(list(slow.values()), list(fast.values()))
