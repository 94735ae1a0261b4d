import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from silver_stand_ins import gold, pictures, store_of

from detmtl.data.coco import CocoSource
from detmtl.silver.audit import audit
from detmtl.silver.calibration import fit_calibration
from detmtl.silver.selection import AtPrecision, AtProbability, SelectionSettings, select
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

TEACHER = ("human", "rider", "auto")
SPACE = LabelSpace.of({"person": ["human", "rider"], "car": ["auto"], "dog": ["hound"]})
A, B, C = [0, 0, 10, 10], [15, 5, 25, 20], [2, 12, 9, 20]


@pytest.fixture
def source(tmp_path):
    return pictures(tmp_path / "images", 3)


@pytest.fixture
def store(tmp_path, source):
    found = [
        [(A, 0, 0.9), ([0, 0, 10, 9], 1, 0.8), (B, 2, 0.7)],
        [(A, 2, 0.4), (B, 0, 0.2), (C, 2, 0.6)],
        [],
    ]
    return store_of(tmp_path / "store", TEACHER, source, found)


def read(path, root, tmp_path):
    """Reads a selection as training does."""
    settings = CocoSource(kind="coco", images=str(root), annotations=str(path))
    return settings.load("silver", tmp_path, LabelSpace.of(SPACE.names), tmp_path / "cache")


def test_threshold_ignore_band_duplicates_and_empty_pictures(tmp_path, store, source):
    path = select(store, [source], SPACE, SelectionSettings(), root=tmp_path / "images")
    silver = read(path, tmp_path / "images", tmp_path)
    assert silver.ids.tolist() == source.ids.tolist() and silver.grade == Grade.SILVER
    first, second, third = (silver.labels(i)["boxes"] for i in range(3))
    # The rider on the human is a duplicate once both are persons.
    assert first.classes.tolist() == [0, 1] and first.boxes[0].tolist() == A
    assert first.scores.tolist() == [1, 1] and first.ignore.tolist() == [0, 0]
    assert dict(zip(second.ignore.tolist(), second.boxes.tolist(), strict=True)) == {
        int(Ignore.NO): C,
        int(Ignore.CLASS): A,
    }
    # what is doubtful is no target; the file shows how probable it is
    targets = dict(zip(second.ignore.tolist(), second.scores.tolist(), strict=True))
    assert targets == {int(Ignore.NO): 1, int(Ignore.CLASS): pytest.approx(0.4)}
    assert len(third) == 0
    for labels in (first, second, third):
        assert labels.coverage.tolist() == [1, 1, 0]  # the teacher never heard of dogs
        assert (labels.grade == int(Grade.SILVER)).all()


def test_soft_targets_and_weights_travel_in_the_file(tmp_path, store, source):
    settings = SelectionSettings(
        soft_targets=True, class_weight=0.7, box_weight=0.25, coverage=0.5, calibration="none"
    )
    path = select(store, [source], SPACE, settings, root=tmp_path / "images")
    labels = read(path, tmp_path / "images", tmp_path).labels(0)["boxes"]
    assert labels.scores.tolist() == pytest.approx([0.9, 0.7])
    np.testing.assert_allclose(labels.weights, [[0.7, 0.25]] * 2, rtol=1e-6)
    assert labels.coverage.tolist() == [0.5, 0.5, 0]


def test_per_class_threshold_nms_and_most_boxes(tmp_path, store, source):
    def classes_of(**settings):
        path = select(store, [source], SPACE, SelectionSettings(**settings))
        stats = json.loads((path.parent / "stats.json").read_text())
        return {name: row["labels"] for name, row in stats["per_class"].items()}

    assert classes_of() == {"person": 1, "car": 2, "dog": 0}
    assert classes_of(per_class={"car": 0.65}) == {"person": 1, "car": 1, "dog": 0}
    assert classes_of(threshold=0.7) == {"person": 1, "car": 1, "dog": 0}
    assert classes_of(nms=None) == {"person": 2, "car": 2, "dog": 0}
    assert classes_of(max_boxes=1) == {"person": 1, "car": 1, "dog": 0}
    assert classes_of(threshold=0.3, ignore_from=None) == {"person": 1, "car": 3, "dog": 0}


def test_a_band_begins_no_higher_than_the_labels_of_its_class(store, source):
    settings = SelectionSettings(per_class={"car": 0.3}, ignore_from=0.45)
    stats = json.loads(
        (select(store, [source], SPACE, settings).parent / "stats.json").read_text()
    )["per_class"]
    assert stats["car"]["ignored_from"] == stats["car"]["threshold"] == 0.3
    assert (stats["car"]["labels"], stats["car"]["ignored"]) == (3, 0)
    assert stats["person"]["ignored_from"] == 0.45


def test_it_is_kept_by_policy_and_deterministic(tmp_path, store, source):
    settings = SelectionSettings()
    path = select(store, [source], SPACE, settings)
    stamp, content = path.stat().st_mtime_ns, path.read_bytes()
    assert select(store, [source], SPACE, settings) == path
    assert path.stat().st_mtime_ns == stamp
    assert (path.parent / "policy.yaml").read_text().startswith("audit:")
    assert select(store, [source], SPACE, SelectionSettings(threshold=0.6)) != path
    assert select(store, [source.subset([0, 1])], SPACE, settings) != path
    path.unlink()
    assert select(store, [source], SPACE, settings).read_bytes() == content


def test_it_is_made_anew_where_a_name_has_other_members(store, source):
    before = select(store, [source], SPACE, SelectionSettings())
    members = {"person": ["human"], "car": ["auto", "rider"], "dog": ["hound"]}
    after = select(store, [source], LabelSpace.of(members), SelectionSettings())
    rider = [a["category_id"] for a in json.loads(after.read_text())["annotations"]]
    assert after != before and rider.count(2) == 4, "three cars and the rider"


def test_it_is_made_anew_where_more_pictures_are_labelled(tmp_path, source):
    part = store_of(tmp_path / "store", TEACHER, source, [[(A, 0, 0.9)]])
    with pytest.warns(UserWarning, match="2 of 3 pictures"):
        select(part, [source], SPACE, SelectionSettings())
    whole = store_of(tmp_path / "store", TEACHER, source.subset([1, 2]), [[(A, 0, 0.9)]] * 2)
    path = select(whole, [source], SPACE, SelectionSettings())
    assert len(json.loads(path.read_text())["annotations"]) == 3


def test_all_of_a_store_without_sources(store):
    path = select(store, None, SPACE, SelectionSettings())
    content = json.loads(path.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert sorted(i["file_name"] for i in content["images"]) == ["000.png", "001.png", "002.png"]
    assert len(content["annotations"]) == 4


def test_the_file_is_valid_for_pycocotools(store, source):
    import contextlib
    import io

    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(select(store, [source], SPACE, SelectionSettings())))
    assert len(coco.anns) == 4 and sum(a["iscrowd"] for a in coco.anns.values()) == 1
    assert {a["attributes"]["teacher_score"] for a in coco.anns.values()} == {0.9, 0.7, 0.6, 0.4}


def test_precision_and_coverage_come_from_the_audit(tmp_path, store, source):
    labelled = gold(source, [(0, A, 0, 0), (0, B, 1, 0), (1, C, 1, 0), (2, A, 1, 0)], ((1, 1, 1),))
    labelled.__dict__["classes"] = SPACE.names
    found = audit(store, labelled, SPACE)
    settings = SelectionSettings(threshold=AtPrecision(precision=1.0))
    with pytest.raises(InputError, match="audit"):
        select(store, [source], SPACE, settings)
    path = select(store, [source], SPACE, settings, found)
    stats = json.loads((path.parent / "stats.json").read_text())
    # Pooled, since there are few: hits at .9, .7, .6; misses at .4 and .2.
    assert stats["per_class"]["car"]["threshold"] == pytest.approx(0.6)
    info = json.loads(path.read_text())["info"]
    # 1 of 1 and 2 of 3 are found, drawn toward 3 of 4, which counts as ten gold boxes.
    assert info["coverage"] == {"person": 0.772727, "car": 0.730769, "dog": 0.0}


def test_what_is_wrong_is_said(store, source):
    with pytest.raises(InputError, match="'rider' belongs to no class"):
        select(store, [source], LabelSpace.of({"person": ["human"]}), SelectionSettings())
    with pytest.raises(InputError, match="nearest: 'car'"):
        select(store, [source], SPACE, SelectionSettings(per_class={"cars": 0.5}))
    with pytest.raises(InputError, match=r"below 0\.05"):
        select(store, [source], SPACE, SelectionSettings(ignore_from=0.01))
    with pytest.raises(ValueError, match="ignore_from"):
        SelectionSettings(threshold=0.2)
    with pytest.raises(ValueError, match="no score"):
        SelectionSettings(threshold=50.0)


def test_a_dropped_class_gives_no_labels(store, source):
    space = LabelSpace.of({"car": ["auto"]}, drop_unmapped=True)
    path = select(store, [source], space, SelectionSettings())
    assert len(json.loads(path.read_text())["annotations"]) == 3


def test_a_class_that_nobody_looked_for_in_the_teacher_s_training_is_none_of_its(tmp_path, source):
    found = [[(A, 0, 0.9), (B, 2, 0.7)], [(B, 2, 0.9)], []]
    store = store_of(tmp_path / "store", TEACHER, source, found, unsearched=("auto",))
    with pytest.warns(UserWarning, match="teacher 't' has the class 'car', but nobody looked"):
        path = select(store, [source], SPACE, SelectionSettings(), root=tmp_path / "images")
    silver = read(path, tmp_path / "images", tmp_path)
    assert [silver.labels(i)["boxes"].classes.tolist() for i in range(3)] == [[0], [], []]
    assert silver.coverage.max(axis=0).tolist() == [1, 0, 0]


def test_a_class_of_which_a_part_was_looked_for_is_not_said_to_be_left_out(tmp_path, source):
    store = store_of(tmp_path / "store", TEACHER, source, [[], [], []], unsearched=("rider",))
    with pytest.warns(
        UserWarning, match="of class 'person' teacher 't' knows human but not rider"
    ) as told:
        select(store, [source], SPACE, SelectionSettings())
    assert not [w for w in told if "abstains" in str(w.message)]


def test_a_teacher_that_knows_a_part_of_a_class_is_told_of(tmp_path, source):
    space = LabelSpace.of(
        {
            "beast": ["dog", "cow"],
            "thing": ["auto", "car"],
            "red": ["red", "blue"],
            "sun": ["sun", "star"],
        }
    )
    teacher = ("dog", "auto", "car", "red", "star")
    store = store_of(tmp_path / "store", teacher, source, [[(A, 0, 0.9)], [], []])
    told = "of class 'beast' teacher 't' knows dog but not cow, and counts as looking for the class"
    with pytest.warns(UserWarning, match=told) as warned:
        select(store, [source], space, SelectionSettings())
    assert len(warned) == 1, (
        "of 'red' it has the name, of 'thing' all, 'star' is another word for 'sun'"
    )
    labelled = gold(source, [(0, A, 0, 0)], ((1, 1, 1, 1),))
    labelled.__dict__["classes"] = space.names
    judged = audit(store, labelled, space)
    select(store, [source], space, SelectionSettings(), judged)  # a warning would be an error
    with pytest.warns(UserWarning, match=told):
        select(store, [source], space, SelectionSettings(coverage=1.0), judged)


def test_pictures_without_a_record_are_left_out_with_a_warning(tmp_path, store, source):
    more = pictures(tmp_path / "more", 2, first=50)
    with pytest.warns(UserWarning, match="2 of 5 pictures"):
        path = select(store, [source, more], SPACE, SelectionSettings())
    assert len(json.loads(path.read_text())["images"]) == 3
    with pytest.raises(InputError, match="none of the 2 pictures"):
        select(store, [more], SPACE, SelectionSettings())


@pytest.fixture
def audited(tmp_path):
    """Twenty pictures, a person at A in half of them, boxes whose score foretells it; and the audit."""
    source = pictures(tmp_path / "many", 20)
    found = [[(A, 0, 0.3 + 0.03 * i)] for i in range(20)]
    store = store_of(tmp_path / "many_store", TEACHER, source, found)
    labelled = gold(source, [(i, A, 0, 0) for i in range(10, 20)], ((1, 1, 1),))
    labelled.__dict__["classes"] = SPACE.names
    return store, source, audit(store, labelled, SPACE)


def test_probabilities_make_thresholds_targets_and_weights(tmp_path, audited):
    store, source, found = audited
    settings = SelectionSettings(
        threshold=AtProbability(probability=0.5),
        ignore_from=None,
        calibration="platt",
        soft_targets=True,
        class_weight="probability",
        box_weight=0.5,
    )
    with pytest.raises(InputError, match="need an audit"):
        select(store, [source], SPACE, settings)
    path = select(store, [source], SPACE, settings, found, tmp_path)
    rows = json.loads(path.read_text())["annotations"]
    worth = fit_calibration(found, settings.calibration)
    scores = np.array([0.3 + 0.03 * i for i in range(20)])
    wanted = [p for p in worth(scores, np.zeros(20, int)) if p >= 0.5]
    assert 5 < len(rows) == len(wanted) < 15
    for row, p in zip(rows, wanted, strict=True):
        values = [row["score"], *(row["attributes"][k] for k in ("probability", "class_weight"))]
        assert values == pytest.approx([p] * 3, abs=1e-4)
        assert row["attributes"]["box_weight"] == 0.5


def test_weights_follow_the_audit_though_thresholds_and_coverage_stay(audited):
    store, source, found = audited
    settings = SelectionSettings(
        threshold=0.5,
        ignore_from=None,
        coverage=1.0,
        class_weight="probability",
        calibration="platt",
    )
    labelled = gold(source, [(i, A, 0, 0) for i in range(20)], ((1, 1, 1),))
    labelled.__dict__["classes"] = SPACE.names

    def weights(judged):
        rows = json.loads(select(store, [source], SPACE, settings, judged).read_text())
        return [row["attributes"]["class_weight"] for row in rows["annotations"]]

    assert min(weights(found)) < 0.9 < min(weights(audit(store, labelled, SPACE)))


def test_the_band_keeps_within_its_budget(audited):
    store, source, found = audited

    def ignored(budget, path_too=False):
        settings = SelectionSettings(threshold=0.8, ignore_from=0.3, ignore_budget=budget)
        path = select(store, [source], SPACE, settings, found)
        row = json.loads((path.parent / "stats.json").read_text())["per_class"]["person"]
        return (row, path) if path_too else row

    free = ignored(None)
    assert free["ignored"] == 17 and free["ignored_from"] == pytest.approx(0.3)
    # Gold lets expect 10 persons in these pictures.
    bound, path = ignored(0.5, path_too=True)
    assert bound["ignored"] == 5 and bound["labels"] == free["labels"]
    # Objects of which no box is ignored any more are not denied with the weight of those that are found.
    recall = found.recall_at(dict.fromkeys(SPACE.names, bound["ignored_from"]))["person"]
    assert bound["ignored_from"] > 0.63 and bound["coverage"] == pytest.approx(recall, abs=1e-6)
    assert bound["coverage"] < free["coverage"] - 0.1
    assert json.loads(path.read_text())["info"]["coverage"]["person"] == bound["coverage"]
    policy = YAML(typ="safe").load(path.with_name("policy.yaml"))
    assert policy["coverage"]["person"] == bound["coverage"]
    assert ignored(5.0)["ignored"] == 17
    # A budget that leaves no band leaves the labels, and their recall.
    none = ignored(0.01)
    recall = found.recall_at(dict.fromkeys(SPACE.names, none["threshold"]))["person"]
    assert none["ignored"] == 0 and none["ignored_from"] == none["threshold"]
    assert none["coverage"] == pytest.approx(recall, abs=1e-6) and 0 < recall < bound["coverage"]
    with pytest.raises(InputError, match="ignore_budget: needs an audit"):
        select(store, [source], SPACE, SelectionSettings(ignore_budget=1.0))


def test_a_class_without_gold_has_the_budget_of_one_object(tmp_path):
    source = pictures(tmp_path / "many", 20)
    found = [[(A, 0, 0.9), (B, 2, 0.4 + 0.005 * i)] for i in range(20)]
    store = store_of(tmp_path / "store", TEACHER, source, found)
    labelled = gold(source, [(i, A, 0, 0) for i in range(20)], ((1, 1, 1),))
    labelled.__dict__["classes"] = SPACE.names
    settings = SelectionSettings(threshold=0.8, ignore_from=0.3, ignore_budget=2.0)
    path = select(store, [source], SPACE, settings, audit(store, labelled, SPACE))
    car = json.loads((path.parent / "stats.json").read_text())["per_class"]["car"]
    assert car["ignored"] == 2


def test_pictures_with_far_too_many_labels_are_left_out(tmp_path, audited):
    _, source, found = audited
    crowded = [[0, y, 3, y + 2] for y in range(0, 20, 3)]
    rows = [[(A, 0, 0.9)]] * 19 + [[(box, 0, 0.9) for box in crowded]]
    store = store_of(tmp_path / "crowded", TEACHER, source, rows)
    path = select(store, [source], SPACE, SelectionSettings(max_density=4.0), found)
    content = json.loads(path.read_text())
    assert len(content["images"]) == 19 and len(content["annotations"]) == 19
    stats = json.loads((path.parent / "stats.json").read_text())
    assert stats["pictures_too_dense"] == 1 and stats["pictures"] == 19


def test_of_pictures_without_a_label_only_so_many_stay(tmp_path):
    source = pictures(tmp_path / "many", 20)
    rows = [[(A, 0, 0.9)]] * 4 + [[(A, 0, 0.4)]] * 6 + [[]] * 10
    store = store_of(tmp_path / "mostly_empty", TEACHER, source, rows)

    def chosen(max_empty):
        settings = SelectionSettings(threshold=0.5, ignore_from=0.3, max_empty=max_empty)
        path = select(store, [source], SPACE, settings)
        stats = json.loads((path.parent / "stats.json").read_text())
        return {i["file_name"] for i in json.loads(path.read_text())["images"]}, stats

    everything, stats = chosen(None)
    assert len(everything) == 20 and stats["empty_pictures_left_out"] == 0
    some, stats = chosen(0.5)
    assert len(some) == 6 and stats["labels"] == 4
    assert (stats["pictures"], stats["pictures_without_labels"]) == (6, 2)
    assert stats["empty_pictures_left_out"] == 14
    none, _ = chosen(0.0)
    assert len(none) == 4 and none < some
    more, _ = chosen(1.0)
    assert len(more) == 8 and some < more


@pytest.mark.parametrize("backwards", [False, True])
def test_which_pictures_without_a_label_stay_is_up_to_their_content(tmp_path, backwards):
    source = pictures(tmp_path / "many", 20)
    rows = [[(A, 0, 0.9)]] * 4 + [[]] * 16
    store = store_of(tmp_path / "mostly_empty", TEACHER, source, rows)
    lowest = sorted(range(4, 20), key=lambda i: source.hashes()[i])
    assert lowest[:2] != [4, 5] and lowest[:2] != [19, 18]  # as they are listed
    settings = SelectionSettings(threshold=0.5, ignore_from=None, max_empty=0.5)
    for count in (20, 15):  # all, and without those listed last
        listed = range(count)[::-1] if backwards else range(count)
        path = select(store, [source.subset(listed)], SPACE, settings)
        expected = [0, 1, 2, 3, *[i for i in lowest if i < count][:2]]
        names = [Path(image["file_name"]).name for image in json.loads(path.read_text())["images"]]
        assert sorted(names) == sorted(f"{i:03d}.png" for i in expected)


def test_policies_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="ignore_from"):
        SelectionSettings(
            threshold=AtProbability(probability=0.2), ignore_from=AtProbability(probability=0.4)
        )
    with pytest.raises(ValueError, match="below 0"):
        SelectionSettings(class_weight=-1.0)
    with pytest.raises(ValueError, match="method"):
        SelectionSettings(calibration="plat")
    with pytest.raises(ValueError, match="no score"):
        SelectionSettings(ignore_from=3.0)
