"""Silver tags: audited against gold, chosen, and read again like any tags."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from silver_stand_ins import pictures

from detmtl.data.tags import TagClasses, Tags
from detmtl.silver.card import TeacherCard
from detmtl.silver.tags import TagSelection, audit_tags, select_tags, with_silver_tags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

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
    return with_silver_tags(source, select_tags(store, source, CLASSES, settings, audit), CLASSES)


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


def test_thresholds_of_one_tag_and_soft_targets(tmp_path):
    source = pictures(tmp_path / "p", 1)
    store = _store(tmp_path, source, [[0.5, 0.3, 0.1]])
    settings = TagSelection(per_tag={"night": (0.2, 0.4)}, soft_targets=True)
    tags = _select(store, source, settings).labels(0)["tags"]
    assert tags.targets.tolist() == pytest.approx([0.5, 0.1, 0])
    assert tags.weights.tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="fog: no such tag"):
        _select(store, source, TagSelection(per_tag={"fog": (0, 1)}))
    with pytest.raises(ValueError, match="not the higher one"):
        TagSelection(absent_below=0.7)


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


def _audited(tmp_path, targets, scores, **kwargs):
    source = _gold(pictures(tmp_path / "p", len(targets)), targets)
    return audit_tags(_store(tmp_path, source, scores, **kwargs), source, CLASSES, TagSelection())


def test_an_audit_counts_pictures(tmp_path):
    targets = [[1, 0, 0]] * 15 + [[0, 1, 0]] * 15
    scores = [[0.9, 0, 0.9]] * 10 + [[0.4, 0, 0]] * 5 + [[0, 0, 0.9]] * 15
    checked = _audited(tmp_path, targets, scores)
    assert checked.counts[0].tolist() == [[15, 0], [0, 5], [0, 10]]
    assert checked.counts[1].tolist() == [[5, 0], [0, 0], [10, 15]]
    absent, shown = checked.confirmed()
    assert shown[:2].tolist() == pytest.approx([1, 15 / 25])
    # rain is called absent 5 times only: judged by all tags together
    assert absent.tolist()[:2] == pytest.approx([1, 20 / 20])
    assert checked.problems() == []


def test_the_audit_weighs_the_labels(tmp_path):
    targets = [[1, 0, 0]] * 15 + [[0, 1, 0]] * 15
    scores = [[0.9, 0, 0.9]] * 10 + [[0.4, 0, 0]] * 5 + [[0, 0, 0.9]] * 15
    checked = _audited(tmp_path, targets, scores)
    pool = pictures(tmp_path / "pool", 1, first=60)
    store = _store(tmp_path, pool, [[0.9, 0.9, 0.9]])
    tags = _select(store, pool, TagSelection(), checked).labels(0)["tags"]
    assert tags.weights.tolist() == pytest.approx([1, 0.6, 0])
    plain = _select(store, pool, TagSelection(weight="one"), checked)
    assert plain.labels(0)["tags"].weights.tolist() == [1, 1, 0]


def test_tags_in_another_order_are_noticed(tmp_path):
    targets = [[1, 0, 0]] * 15 + [[0, 1, 0]] * 15
    scores = [[0.9, 0, 0.0]] * 15 + [[0, 0, 0.9]] * 15
    assert _audited(tmp_path, targets, scores).problems() == []
    swapped = _audited(tmp_path, targets, scores, classes=("rain", "dusk", "night"))
    assert "another order" in swapped.problems()[0]


def test_too_little_gold_cannot_judge(tmp_path):
    assert "at least 10" in _audited(tmp_path, [[1, 0, 0]] * 3, [[1, 0, 0]] * 3).problems()[0]


def test_pictures_that_the_store_lacks_are_told(tmp_path):
    source = pictures(tmp_path / "p", 1)
    with pytest.raises(InputError, match="no tags to audit against"):
        audit_tags(_store(tmp_path, source, []), source, CLASSES, TagSelection())
    with pytest.raises(InputError, match="none of the 1 pictures"):
        audit_tags(
            _store(tmp_path, source, []), _gold(source, [[1, 0, 0]]), CLASSES, TagSelection()
        )
    with pytest.raises(InputError, match="none of the pictures"):
        _select(_store(tmp_path, source, []), source, TagSelection())
