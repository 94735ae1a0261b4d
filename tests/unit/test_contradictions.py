"""Pictures of two labelled sources whose boxes say different things."""

import json

import numpy as np
import pytest
from coco_files import coco_data, save_coco, save_picture
from ruamel.yaml import YAML
from silver_stand_ins import gold, pictures
from test_cli_data import run, settings_of

from detmtl.silver import overlay
from detmtl.silver.contradictions import contradictions
from detmtl.structures.labels import Ignore

A, B = [1, 1, 11, 11], [1, 2, 11, 12]  # IoU .82
C, D = [15, 5, 25, 15], [15, 10, 25, 20]  # IoU .33
PERSON, CAR = 0, 1


def two(tmp_path, rows, others, coverage=((1.0, 1.0),), others_coverage=((1.0, 1.0),)):
    """Returns two sources of four pictures each, of which the last two of one are the first of the other."""
    a = gold(pictures(tmp_path / "a", 4, name="a"), rows, coverage)
    b = gold(pictures(tmp_path / "b", 4, name="b", first=2), others, others_coverage)
    return [a, b]


def test_boxes_that_the_other_source_denies_are_counted_and_named(tmp_path):
    rows = [(0, A, PERSON, 0), (2, A, PERSON, 0), (2, C, CAR, 0), (3, A, PERSON, 0)]
    others = [(0, B, PERSON, 0), (0, D, CAR, 0), (1, B, CAR, 0), (1, D, CAR, 0), (3, A, CAR, 0)]
    (told,) = contradictions(two(tmp_path, rows, others))
    # Persons A and B are one; the cars are too far apart; the person of the last is a car elsewhere.
    assert told.startswith(
        "sources 'a' and 'b' contradict each other in 2 of the 2 pictures that both have, such as 002.png, "
        "003.png: of classes that the other looked for there, 'a' has 2 boxes that 'b' has not, and 'b' 3 "
        "that 'a' has not (2 of them it calls otherwise); "
    )
    assert "correct one of the two" in told


@pytest.mark.parametrize(
    ("rows", "others", "coverage", "others_coverage"),
    [
        ([(2, A, PERSON, 0)], [(0, B, PERSON, 0)], [[1, 1]], [[1, 1]]),
        ([(2, A, PERSON, 0)], [(0, C, CAR, 0)], [[1, 0]], [[0, 1]]),  # each looked for its own
        ([(0, A, PERSON, 0)], [(2, A, CAR, 0)], [[1, 1]], [[1, 1]]),  # other pictures
        ([(2, A, PERSON, 0)], [], [[1, 1]], [[0, 1], [1, 1], [1, 1], [1, 1]]),
        ([(2, A, PERSON, Ignore.CLASS)], [], [[1, 1]], [[1, 1]]),
        ([(2, A, PERSON, Ignore.REGION)], [], [[1, 1]], [[1, 1]]),
        ([(2, A, PERSON, 0)], [(0, B, PERSON, Ignore.CLASS)], [[1, 1]], [[1, 1]]),
        ([(2, A, PERSON, 0)], [(0, [0, 0, 30, 20], CAR, Ignore.REGION)], [[1, 1]], [[1, 1]]),
    ],
)
def test_what_nobody_looked_for_or_one_doubts_is_no_contradiction(
    tmp_path, rows, others, coverage, others_coverage
):
    sources = two(tmp_path, rows, others, coverage, others_coverage)
    assert contradictions(sources) == []
    # the same with a box that nobody doubts and that the other looked for
    sources = two(tmp_path, [*rows, (3, C, CAR, 0)], others, coverage, others_coverage)
    assert len(contradictions(sources)) == others_coverage[0][1]


def test_three_sources_are_compared_two_by_two_and_names_are_few(tmp_path):
    some = gold(pictures(tmp_path / "a", 9, name="a"), [(i, A, PERSON, 0) for i in range(9)])
    none = gold(pictures(tmp_path / "b", 9, name="b"), [])
    bare = pictures(tmp_path / "c", 9, name="c")
    same = gold(pictures(tmp_path / "d", 9, name="d"), [(i, B, PERSON, 0) for i in range(9)])
    told = contradictions([some, none, bare, same])
    assert [sentence.split(" contradict")[0] for sentence in told] == [
        "sources 'a' and 'b'",
        "sources 'b' and 'd'",
    ]
    assert told[0].count(".png") == 3 and "in 9 of the 9 pictures" in told[0]
    assert "call" not in told[0]


def test_many_boxes_are_compared_in_blocks(tmp_path, monkeypatch):
    random = np.random.default_rng(0)

    def boxes(number):
        corner = random.uniform(0, 12, (number, 2))
        return np.concatenate([corner, corner + random.uniform(4, 12, (number, 2))], axis=1)

    def rows():
        return [(int(random.integers(4)), b, int(random.integers(2)), 0) for b in boxes(60)]

    sources = two(tmp_path, rows(), rows())
    told = contradictions(sources)
    assert len(told) == 1 and "calls otherwise" in told[0]
    sizes = []
    shared = overlay.shared
    monkeypatch.setattr(overlay, "_PAIRS", 40)
    monkeypatch.setattr(overlay, "shared", lambda a, b: sizes.append(len(a)) or shared(a, b))
    assert contradictions(sources) == told
    assert max(sizes) <= 40 and len(sizes) > 20


def contradicting(root, **changed):
    """Writes a config whose two gold sources have the same pictures; of one a picture lacks its box."""
    save_coco(root, coco_data())
    less = coco_data() | {"annotations": coco_data()["annotations"][1:]}
    (root / "less.json").write_text(json.dumps(less))
    for i in range(3):
        save_picture(root / "val" / f"{i}.png", seed=10 + i)
    one = {"kind": "coco", "images": "images", "annotations": "coco.json"}
    sources = {"one": one, "other": one | {"annotations": "less.json"} | changed}
    val = one | {"images": "val"}
    tree = settings_of(root, classes=["cat", "dog", "bird"], details=None, sources=sources, val=val)
    tree["tasks"] = {"boxes": {"kind": "detection", "head": {"depth": 1}}}
    with (root / "c.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(tree, file)


def test_check_and_the_plan_of_a_run_tell_of_contradictions(tmp_path, capsys):
    contradicting(tmp_path)
    wanted = "sources 'one' and 'other' contradict each other in 1 of the"
    assert run("check", "--config", tmp_path / "c.yaml", "--cache", tmp_path / "runs") == 0
    assert wanted in capsys.readouterr().out
    assert run("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count(wanted) == 1
    name = coco_data()["annotations"][0]["category_id"]
    first = next(c["name"] for c in coco_data()["categories"] if c["id"] == name)
    kept = [n for n in ("cat", "dog", "bird") if n != first]
    contradicting(tmp_path, keep=kept)
    assert run("check", "--config", tmp_path / "c.yaml", "--cache", tmp_path / "runs") == 0
    assert "contradict" not in capsys.readouterr().out


def test_a_model_s_boxes_in_a_pool_give_way_and_contradict_nobody(tmp_path, capsys):
    contradicting(tmp_path, grade="silver")
    words = ["check", "--config", tmp_path / "c.yaml", "--cache", tmp_path / "runs"]
    words += ["--set", "mix.mode=concat"]
    assert run(*words) == 0
    assert "contradict each other" in capsys.readouterr().out
    pool = "silver={teacher: {kind: gold}, pools: [other]}"
    assert run(*words, "--set", pool) == 0
    assert "contradict each other" not in capsys.readouterr().out
