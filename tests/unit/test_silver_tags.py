"""Silver tags: audited against gold, chosen, and read again like any tags."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from silver_stand_ins import gold, pictures

from detmtl.data.tags import BoxTags, TagClasses, Tags
from detmtl.silver.audit_summary import tag_summary
from detmtl.silver.card import TeacherCard
from detmtl.silver.held_out import given_dense
from detmtl.silver.tag_policy import TagMeaning, TagSelection
from detmtl.silver.tags import ChosenTags, audit_tags
from detmtl.silver.thresholds import AtPrecision, AtProbability
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

PLAIN = TagSelection()
CLASSES = TagClasses(classes={"night": ["night", "dusk"], "rain": ["rain"], "snow": []})


@dataclass
class Record:
    content_hash: str
    scores: np.ndarray


@dataclass
class FakeStore:
    """As much of a store as selection and audit look at."""

    path: object
    card: TeacherCard
    rows: list

    def records(self):
        return iter(self.rows)

    def records_of(self, hashes):
        return (record for record in self.records() if record.content_hash in hashes)

    def digest(self):
        return "d" * 16


def _store(tmp_path, source, scores, classes=("night", "dusk", "rain")):
    card = TeacherCard(
        name="t", weights_sha256="0" * 64, classes=classes, preprocessing="none", task="tags"
    )
    hashes = source.hashes()
    rows = [Record(hashes[i], np.array(s, np.float32)) for i, s in enumerate(scores)]
    return FakeStore(tmp_path / "store", card, rows)


def _select(store, source, settings, audit=None):
    chosen = ChosenTags(store, CLASSES, settings)
    return chosen.read(source, chosen.select(source, audit))


def _gold(source, targets):
    n = len(source)
    targets = np.array(targets, np.float32)
    ones = np.ones_like(targets)
    return replace(source, tags=Tags(targets, ones, np.ones(n, bool), np.zeros(n, np.uint8)))


def test_scores_become_shown_absent_and_unknown(tmp_path):
    source = pictures(tmp_path / "p", 3)
    store = _store(tmp_path, source, [[0.1, 0.9, 0.4], [0.1, 0.1, 0.1]])
    silver = _select(store, source, TagSelection())
    first, second = silver.labels(0)["tags"], silver.labels(1)["tags"]
    assert first.targets.tolist() == [1, 0, 0] and first.weights.tolist() == [1, 0, 0]
    assert second.targets.tolist() == [0, 0, 0] and second.weights.tolist() == [1, 1, 0]
    assert first.grade == silver.grade == Grade.SILVER
    assert "tags" not in silver.labels(2)


def test_what_a_teacher_does_not_say_is_unknown(tmp_path):
    source = pictures(tmp_path / "p", 2)
    store = _store(tmp_path, source, [[0.1, np.nan, np.nan], [0.9, np.nan, 0.1]])
    silver = _select(store, source, TagSelection())
    assert silver.labels(0)["tags"].weights.tolist() == [0, 0, 0], "it may be dusk"
    assert silver.labels(1)["tags"].weights.tolist() == [1, 1, 0]
    assert silver.labels(1)["tags"].targets.tolist() == [1, 0, 0]


def test_a_tag_that_nobody_looked_for_in_the_teacher_s_training_is_none_of_its(tmp_path):
    store = _store(tmp_path, pictures(tmp_path / "p", 1), [[0.1, 0.9, 0.4]])
    meaning = TagMeaning.of(store.card.model_copy(update={"unsearched": ("dusk", "rain")}), CLASSES)
    assert meaning.known.tolist() == [True, False, False]
    said, whole = meaning(store.rows[0])
    assert said[0] == np.float32(0.1) and np.isnan(said[1:]).all()
    assert whole.tolist() == [True, False, False]


def test_thresholds_of_one_tag_and_soft_targets(tmp_path):
    source = pictures(tmp_path / "p", 1)
    store = _store(tmp_path, source, [[0.5, 0.3, 0.1]])
    settings = TagSelection(per_tag={"night": (0.2, 0.4)}, soft_targets=True, calibration="none")
    tags = _select(store, source, settings).labels(0)["tags"]
    assert tags.targets.tolist() == pytest.approx([0.5, 0.1, 0])
    assert tags.weights.tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="'fog' is no class"):
        _select(store, source, TagSelection(per_tag={"fog": (0, 1)}))
    with pytest.raises(ValueError, match="not the higher one"):
        TagSelection(absent_below=0.7)


def test_tags_that_another_model_wrote_give_way(tmp_path):
    source = pictures(tmp_path / "p", 2)
    own = Tags(
        np.zeros((2, 3), np.float32),
        np.ones((2, 3), np.float32),
        np.ones(2, dtype=bool),
        np.full(2, Grade.SILVER, np.uint8),
    )
    store = _store(tmp_path, source, [[0.9, 0.9, 0.9]])  # of the first picture alone
    silver = _select(store, replace(source, tags=own), TagSelection())
    first, second = silver.labels(0)["tags"], silver.labels(1)["tags"]
    assert first.targets.tolist() == [1, 1, 0] and second.targets.tolist() == [0, 0, 0]
    assert not silver.tags.by_people().any()


def test_people_s_tags_stay(tmp_path):
    source = pictures(tmp_path / "p", 2)
    own = Tags(
        np.zeros((2, 3), np.float32),
        np.ones((2, 3), np.float32),
        np.array([True, False]),
        np.zeros(2, np.uint8),
    )
    store = _store(tmp_path, source, [[0.9, 0.9, 0.9]] * 2)
    silver = _select(store, replace(source, tags=own), TagSelection())
    first, second = silver.labels(0)["tags"], silver.labels(1)["tags"]
    assert first.targets.tolist() == [0, 0, 0] and first.grade == Grade.GOLD
    assert second.targets.tolist() == [1, 1, 0] and second.grade == Grade.SILVER


def test_people_s_tags_of_other_sources_come_first_and_another_model_s_last(tmp_path):
    source = pictures(tmp_path / "p", 4)
    ones = np.ones((4, 3), np.float32)
    silver, gold = np.ones(4, np.uint8), np.zeros(4, np.uint8)
    old = Tags(np.eye(3, dtype=np.float32)[[2] * 4], ones, np.array([1, 1, 0, 1], bool), silver)
    people = Tags(0 * ones, ones, np.array([0, 1, 1, 0], bool), gold)
    given = given_dense(replace(source, tags=old), [replace(source, tags=people)], ["tags"])
    assert given.tags.by_people().tolist() == [False, True, True, False]
    store = _store(tmp_path, source, [[0.9, 0.9, 0.9]] * 3)
    found = [_select(store, given, TagSelection()).labels(i)["tags"] for i in range(4)]
    assert [tags.targets.tolist() for tags in found] == [[1, 1, 0], [0] * 3, [0] * 3, [0, 0, 1]]
    assert [tags.grade for tags in found] == [1, 0, 0, 1]


def _audited(tmp_path, targets, scores, settings=PLAIN, **kwargs):
    source = _gold(pictures(tmp_path / "p", len(targets)), targets)
    store = _store(tmp_path, source, scores, **kwargs)
    checked = audit_tags(store, source, CLASSES)
    return checked, ChosenTags(store, CLASSES, settings).measures(checked)


def test_tags_that_follow_from_people_s_boxes_stay(tmp_path):
    source = gold(pictures(tmp_path / "p", 2), [(0, [0, 0, 9, 9], 0, 0)], ((1, 1),))
    follow = BoxTags(np.array([[True, False], [False, True], [False, False]]))
    pool, store = replace(source, tags=follow), _store(tmp_path, source, [[0.1, 0.1, 0.9]] * 2)
    first, second = (_select(store, pool, PLAIN).labels(i)["tags"] for i in range(2))
    assert first.targets.tolist() == [1, 0, 0] and second.targets.tolist() == [0, 0, 0]
    assert first.grade == second.grade == Grade.GOLD
    by_model = replace(pool, annotations=replace(pool.annotations, grade=np.ones(1, np.uint8)))
    first = _select(store, by_model, PLAIN).labels(0)["tags"]
    assert first.targets.tolist() == [0, 1, 0] and first.grade == Grade.SILVER


def test_a_tag_whose_boxes_people_did_not_look_for_is_the_teacher_s(tmp_path):
    source = gold(pictures(tmp_path / "p", 3), [(0, [0, 0, 9, 9], 0, 0)], ((1, 0),))
    follow = BoxTags(np.array([[True, False], [False, True], [False, False]]))
    store = _store(tmp_path, source, [[0.1, 0.1, 0.9]] * 2)  # not of the last picture
    silver = _select(store, replace(source, tags=follow), PLAIN)
    tags = [silver.labels(i)["tags"] for i in range(3)]
    assert [t.targets.tolist() for t in tags] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert [t.weights.tolist() for t in tags] == [[1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert [t.grade for t in tags] == [Grade.SILVER, Grade.SILVER, Grade.GOLD]


def test_an_audit_asks_people_alone(tmp_path):
    source = _gold(pictures(tmp_path / "p", 3), [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    store = _store(tmp_path, source, [[0.9, 0.1, 0.1]] * 3)
    half = replace(source, tags=replace(source.tags, grade=np.array([0, 1, 1], np.uint8)))
    assert len(audit_tags(store, half, CLASSES).places) == 1
    nobody = replace(source, tags=replace(source.tags, grade=np.ones(3, np.uint8)))
    with pytest.raises(InputError, match="has no tags by people"):
        audit_tags(store, nobody, CLASSES)


def test_an_audit_counts_pictures(tmp_path):
    targets = [[1, 0, 0]] * 15 + [[0, 1, 0]] * 15
    scores = [[0.9, 0, 0.9]] * 10 + [[0.4, 0, 0]] * 5 + [[0, 0, 0.9]] * 15
    _, measures = _audited(tmp_path, targets, scores)
    assert measures.counts[0].tolist() == [[15, 0], [0, 5], [0, 10]]
    assert measures.counts[1].tolist() == [[5, 0], [0, 0], [10, 15]]
    absent, shown = measures.confirmed()
    assert shown[:2].tolist() == pytest.approx([1, 15 / 25])
    # rain is called absent 5 times only: judged by all tags together
    assert absent.tolist()[:2] == pytest.approx([1, 20 / 20])
    assert measures.problems() == []
    assert (measures.absent(0).value, measures.doubtful(0)) == (1, 5 / 30)
    row = measures.row("all")
    assert (row.precision.hits, row.precision.count, row.recall.count) == (25, 35, 30)
    assert "night" in str(measures.table().columns[0]._cells)


def test_the_audit_weighs_the_labels(tmp_path):
    targets = [[1, 0, 0]] * 15 + [[0, 1, 0]] * 15
    scores = [[0.9, 0, 0.9]] * 10 + [[0.4, 0, 0]] * 5 + [[0, 0, 0.9]] * 15
    checked, _ = _audited(tmp_path, targets, scores)
    pool = pictures(tmp_path / "pool", 1, first=60)
    store = _store(tmp_path, pool, [[0.9, 0.9, 0.9]])
    tags = _select(store, pool, TagSelection(), checked).labels(0)["tags"]
    assert tags.weights.tolist() == pytest.approx([1, 0.6, 0])
    plain = _select(store, pool, TagSelection(weight="one"), checked)
    assert plain.labels(0)["tags"].weights.tolist() == [1, 1, 0]


def test_tags_in_another_order_are_noticed(tmp_path):
    targets = [[1, 0, 0]] * 15 + [[0, 1, 0]] * 15
    scores = [[0.9, 0, 0.0]] * 15 + [[0, 0, 0.9]] * 15
    assert _audited(tmp_path, targets, scores)[1].problems() == []
    _, swapped = _audited(tmp_path, targets, scores, classes=("rain", "dusk", "night"))
    assert "another order" in swapped.problems()[0]


def test_too_little_gold_cannot_judge(tmp_path):
    _, measures = _audited(tmp_path, [[1, 0, 0]] * 3, [[1, 0, 0]] * 3)
    assert "at least 10" in measures.problems()[0]


def test_pictures_that_the_store_lacks_are_told(tmp_path):
    source = pictures(tmp_path / "p", 1)
    with pytest.raises(InputError, match="no tags to audit against"):
        audit_tags(_store(tmp_path, source, []), source, CLASSES)
    with pytest.raises(InputError, match="none of the 1 pictures"):
        audit_tags(_store(tmp_path, source, []), _gold(source, [[1, 0, 0]]), CLASSES)
    with pytest.raises(InputError, match="none of the pictures"):
        _select(_store(tmp_path, source, []), source, TagSelection())


def _ramp(tmp_path, settings, count=60):
    """An audit of a teacher whose night scores rise from 0 to 1 and are right from .7 on, and whose rain
    scores are right from .3 on."""
    scores = np.linspace(0, 1, count)
    targets = np.stack([scores >= 0.7, scores >= 0.3, np.zeros(count)], 1).astype(float)
    said = np.stack([scores, np.zeros(count), scores], 1)
    return _audited(tmp_path, targets, said, settings)


def test_wanted_precisions_find_each_tag_s_thresholds(tmp_path):
    wanted = AtPrecision(precision=0.95)
    checked, measures = _ramp(tmp_path, TagSelection(shown_from=wanted, absent_below=wanted))
    low, high = measures.policy.low, measures.policy.high
    # drawn toward both tags together: night gains from rain's better scores, and the reverse
    assert 0.5 < high[0] < 0.8 and 0.25 < high[1] < high[0]
    assert 0.2 < low[1] < 0.45 and low[1] < low[0] < 0.8
    said = checked.said[:, 1]
    called = measures.words[:, 1]
    assert (called[said < low[1]] == 0).all() and (called[said >= high[1]] == 2).all()
    assert np.isin(said[called == 0].max(), said), (
        "the last score that is sure enough is absent still"
    )
    assert measures.row("rain", 1).precision.value > 0.9 and measures.absent(1).value > 0.9


def test_nothing_is_called_what_is_never_sure_enough(tmp_path):
    wanted = AtPrecision(precision=1.0)
    targets = [[1 - k % 2, 1 - k % 2, 0] for k in range(60)]
    said = np.stack([np.linspace(0, 1, 60)] * 3, 1)
    settings = TagSelection(shown_from=wanted, absent_below=wanted)
    checked, measures = _audited(tmp_path, targets, said, settings)
    assert np.isinf(measures.policy.high[:2]).all() and (measures.policy.low == -np.inf).all()
    assert (measures.words[:, :2] == 1).all()
    cells = [list(column.cells) for column in measures.table().columns]
    assert cells[1] == cells[2] == ["-", "-"]
    rows = tag_summary(measures, {}, None)["per_tag"].values()
    assert all(row["absent_below"] is row["shown_from"] is None for row in rows)
    pool = pictures(tmp_path / "pool", 1, first=90)
    silver = _select(_store(tmp_path, pool, [[0.9, 0.9, 0.1]]), pool, settings, checked)
    assert silver.labels(0)["tags"].weights.tolist() == [0, 0, 0]


def test_wanted_probabilities_and_soft_targets_go_through_calibration(tmp_path):
    isotonic = {"method": "platt", "shrink": 0}
    wanted = AtProbability(probability=0.8)
    settings = TagSelection(
        shown_from=wanted, absent_below=wanted, calibration=isotonic, soft_targets=True
    )
    checked, measures = _ramp(tmp_path, settings)
    low, high = measures.policy.low, measures.policy.high
    assert 0.3 < low[0] < 0.7 < high[0] < 0.9, "night's scores are too low for what they say"
    assert low[1] < 0.3 < high[1] < 0.6
    curve = measures.policy.calibration
    assert curve(high[:1], np.array([0]))[0] == pytest.approx(0.8, abs=1e-3)
    assert curve(low[:1], np.array([0]))[0] == pytest.approx(0.2, abs=1e-3)
    pool = pictures(tmp_path / "pool", 1, first=90)
    store = _store(tmp_path, pool, [[0.85, 0.1, 0.05]])
    tags = _select(store, pool, settings, checked).labels(0)["tags"]
    expected = curve(np.array([0.85, 0.05]), np.array([0, 1]))
    assert tags.targets[:2].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert tags.weights[:2].min() > 0.9


def test_what_needs_an_audit_says_so(tmp_path):
    source = pictures(tmp_path / "p", 1)
    store = _store(tmp_path, source, [[0.5, 0.3, 0.1]])
    for settings in (
        TagSelection(shown_from=AtPrecision(precision=0.9)),
        TagSelection(per_tag={"rain": (0.1, AtProbability(probability=0.9))}),
        TagSelection(soft_targets=True),
    ):
        with pytest.raises(InputError, match=r"select_tags: .*audit"):
            _select(store, source, settings)
    with pytest.raises(ValueError, match="is no score"):
        TagSelection(shown_from=1.5)


def test_the_choice_is_kept_by_what_decides_it(tmp_path):
    settings = TagSelection(shown_from=AtPrecision(precision=0.9))
    checked, _ = _ramp(tmp_path, settings)
    pool = pictures(tmp_path / "pool", 1, first=90)
    store = _store(tmp_path, pool, [[0.85, 0.1, 0.05]])
    first = ChosenTags(store, CLASSES, settings).select(pool, checked)
    assert ChosenTags(store, CLASSES, settings).select(pool, checked) == first
    other = TagSelection(shown_from=AtPrecision(precision=0.8))
    assert ChosenTags(store, CLASSES, other).select(pool, checked) != first
    fewer, _ = _ramp(tmp_path / "fewer", settings, count=40)
    assert ChosenTags(store, CLASSES, settings).select(pool, fewer) != first


def test_the_worst_pictures_are_those_of_which_the_teacher_is_surely_wrong(tmp_path):
    targets = [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]]
    scores = [[0.9, 0, 0.1], [0.7, 0, 0.1], [0.1, 0, 0.65], [0.1, 0, 0.1]]
    _, measures = _audited(tmp_path, targets, scores)
    worst = measures.worst(3)
    assert [one.picture for one in worst] == [3, 1, 2]
    assert [t for t, _ in worst[0].overlooked] == [0, 1] and worst[0].invented == ()
    assert [t for t, _ in worst[1].invented] == [0] and [t for t, _ in worst[1].overlooked] == [1]
    assert worst[2].invented == ((1, pytest.approx(0.65)),)
