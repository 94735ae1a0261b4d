"""Fusion: equal to the published package in value, and fair to teachers that do not know a class.

What the package ensemble-boxes made of two pictures' boxes stands in a file beside this one, which says
how.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from detmtl.silver.fusion import FusionSettings, fuse
from detmtl.structures.errors import InputError

pytest.importorskip("numba", reason="numba is not installed: detmtl[fusion]")

THEIRS = json.loads(Path(__file__).with_name("fused_by_ensemble_boxes.json").read_text())
A, A2, B = [0.10, 0.10, 0.50, 0.50], [0.12, 0.10, 0.52, 0.52], [0.60, 0.60, 0.90, 0.90]


def scene(seed, teachers=3, count=40, classes=3):
    """Returns per teacher boxes (in [0, 1]), scores and classes: jittered objects."""
    rng = np.random.default_rng(seed)
    size, middle = rng.uniform(0.08, 0.3, (25, 2)), rng.uniform(0.2, 0.8, (25, 2))
    objects, kind = np.concatenate([middle - size / 2, middle + size / 2], 1), None
    kind = rng.integers(0, classes, 25)
    found = []
    for _ in range(teachers):
        pick = rng.integers(0, 25, count)
        jitter = rng.normal(0, 0.06, (count, 4)) * np.tile(size[pick], 2)
        boxes = (objects[pick] + jitter).clip(0, 1)
        found.append((boxes, rng.uniform(0.05, 0.95, count), kind[pick]))
    return found


def flat(scenes):
    columns = [[], [], [], [], []]
    for p, one in enumerate(scenes):
        for t, (boxes, scores, classes) in enumerate(one):
            n = len(scores)
            for column, values in zip(
                columns, (boxes, scores, classes, np.full(n, t), np.full(n, p)), strict=True
            ):
                column.append(np.asarray(values))
    return [np.concatenate(c) for c in columns]


def run(scenes, known=None, weights=None, **settings):
    teachers, classes = len(scenes[0]), 3
    known = np.ones((teachers, classes), bool) if known is None else np.asarray(known, bool)
    settings = {"overlap": 0.55} | settings
    return fuse(*flat(scenes), known, FusionSettings(**settings), weights)


def of(*rows):
    """One teacher's boxes of class 0."""
    return (
        np.array([r[0] for r in rows]).reshape(-1, 4),
        np.array([r[1] for r in rows]),
        np.zeros(len(rows), int),
    )


def given_to_ensemble_boxes():
    tables = [[np.array(teacher) for teacher in one] for one in THEIRS["scenes"]]
    return [[(t[:, 2:], t[:, 1], t[:, 0].astype(int)) for t in one] for one in tables]


@pytest.mark.parametrize(("kind", "weights"), [("equal", None), ("weights", [1.0, 2.0, 0.5])])
@pytest.mark.parametrize("score", ["average", "teachers", "absent", "maximum"])
def test_means_are_those_of_ensemble_boxes(score, kind, weights):
    weights = None if weights is None else np.array(weights)
    found = run(given_to_ensemble_boxes(), weights=weights, score=score)
    _equal(found, THEIRS["fused"][f"{score}, {kind}"])


@pytest.mark.parametrize("method", ["nms", "soft_nms"])
def test_suppression_is_that_of_ensemble_boxes(method):
    _equal(run(given_to_ensemble_boxes(), method=method, sigma=0.5), THEIRS["fused"][method])


def _equal(found, theirs):
    def ordered(rows):
        rows[:, 2] = rows[:, 2].clip(0, 1)
        return rows[np.lexsort(np.round(rows, 4).T[::-1])]

    ours = np.column_stack([found.pictures, found.classes, found.scores, found.boxes])
    np.testing.assert_allclose(
        ordered(ours),
        ordered(np.array(theirs)),
        atol=2e-6,  # the package adds up in float32
    )


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("average", (0.9 + 2 * 0.3) / 2 * 2 / 3.5),  # two boxes of three teachers, who weigh 3.5
        ("teachers", (0.9 + 2 * 0.3) / 3 * 3 / 3.5),
        ("absent", (0.9 + 2 * 0.3) / 3.5),
        ("maximum", 0.9 / 2),
    ],
)
def test_a_teacher_speaks_with_its_weight(score, expected):
    found = run(
        [[of((A, 0.9)), of((A2, 0.3)), of()]], weights=np.array([1.0, 2.0, 0.5]), score=score
    )
    assert found.scores.tolist() == pytest.approx([expected])
    np.testing.assert_allclose(found.boxes[0], 0.6 * np.array(A) + 0.4 * np.array(A2))


def test_two_boxes_become_their_mean_weighted_by_score():
    found = run([[of((A, 0.9)), of((A2, 0.3), (B, 0.8))]])
    assert found.scores.tolist() == pytest.approx([0.6, 0.4])  # (.9 + .3) / 2; .8 of one of two
    np.testing.assert_allclose(found.boxes[0], 0.75 * np.array(A) + 0.25 * np.array(A2))
    np.testing.assert_allclose(found.boxes[1], B)
    assert found.member.tolist() == [0, 0, 1]


@pytest.mark.parametrize("score", ["average", "teachers", "absent", "maximum"])
def test_a_teacher_that_does_not_know_the_class_is_no_vote_against(score):
    one, nothing = of((A, 0.9)), of()
    both = run([[one, nothing]], score=score)
    abstains = run([[one, nothing]], known=[[1, 1, 1], [0, 1, 1]], score=score)
    alone = run([[one]], score=score)
    assert abstains.scores[0] == pytest.approx(alone.scores[0]) == pytest.approx(0.9)
    if score != "maximum":
        assert both.scores[0] == pytest.approx(0.45)


def test_classes_and_pictures_are_apart():
    boxes, scores, _ = of((A, 0.9), (A2, 0.8))
    apart = run([[(boxes, scores, np.array([0, 1]))], [of((A, 0.7))]])
    assert sorted(zip(apart.pictures.tolist(), apart.classes.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
    ]


def test_many_pictures_at_once_are_as_one_by_one():
    scenes = [scene(seed, classes=3) for seed in range(6)]
    together = run(scenes)
    for p, one in enumerate(scenes):
        alone, on = run([one]), together.pictures == p
        np.testing.assert_array_equal(together.boxes[on], alone.boxes)
        np.testing.assert_array_equal(together.scores[on], alone.scores)


def test_nms_and_soft_nms():
    three = [[of((A, 0.9), (B, 0.5)), of((A2, 0.8))]]
    hard = run(three, method="nms")
    assert hard.scores.tolist() == [0.9, 0.5] and hard.member.tolist() == [0, 1, 0]
    soft = run(three, method="soft_nms", sigma=0.5)
    inter = 0.38 * 0.40
    overlap = inter / (0.16 + 0.40 * 0.42 - inter)
    assert soft.scores.tolist() == pytest.approx(
        sorted([0.9, 0.5, 0.8 * np.exp(-(overlap**2) / 0.5)], reverse=True)
    )


def test_only_weighted_boxes_know_weights_of_teachers():
    one = [[of((A, 0.9), (B, 0.5)), of((A2, 0.8))]]
    for method in ("nms", "soft_nms"):
        plain, weighed = (run(one, method=method, weights=w) for w in (None, np.array([0.2, 1.0])))
        assert plain.scores.tolist() == weighed.scores.tolist()


def test_two_boxes_of_a_heavy_teacher_are_no_more_than_certain():
    found = run([[of((A, 0.9), (A2, 0.9)), of()]], weights=np.array([2.0, 0.5]))
    assert found.scores.tolist() == [1]


def test_a_box_is_told_which_fused_one_it_is_part_of():
    boxes, scores, _ = of((A, 0.5), (B, 0.9))
    found = run([[(boxes, scores, np.array([0, 1]))]])
    assert found.classes.tolist() == [1, 0] and found.member.tolist() == [1, 0]


def test_boxes_of_score_0_have_a_mean_too():
    found = run([[of((A, 0.0)), of((A2, 0.0))]])
    np.testing.assert_allclose(found.boxes, [np.mean([A, A2], axis=0)])
    assert found.scores.tolist() == [0]


def test_nothing_to_fuse():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("weighted", "nms", "soft_nms"):
            assert len(run([[of(), of()]], method=method).boxes) == 0


def test_a_missing_package_is_said(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else find(name)
    )
    with pytest.raises(InputError, match=r"pip install 'detmtl\[fusion\]'"):
        run([[of((A, 0.5))]])
