"""What an audit says at a policy's thresholds, as JSON and in the words of its page."""

import json
import os

import numpy as np
import pytest
from audit_stand_ins import CLASSES, scenes, stored
from rich.console import Console

from detmtl.pools import calibrated
from detmtl.report import audit_sections as parts
from detmtl.silver.audit import Audit, audit
from detmtl.silver.audit_summary import box_summary, coverage_words, write_summary
from detmtl.silver.calibration import CalibrationSettings
from detmtl.silver.policy import Policy
from detmtl.silver.selection import SelectionSettings
from detmtl.structures.classes import LabelSpace

SPACE = LabelSpace.of(CLASSES)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    gold = scenes(count=12)
    folder = tmp_path_factory.mktemp("audited")
    store = stored(folder, gold, miss=0.3, jitter=0.1, confuse=0.2, extra=4, larger=1.25)
    return store, audit(store, gold, SPACE)


def policy_of(audited, **settings):
    store, checked = audited
    return Policy.of(store, SPACE, checked.known, SelectionSettings(**settings), checked)


def test_the_summary_holds_what_the_page_holds_at_the_policys_thresholds(audited):
    store, checked = audited
    policy = policy_of(audited, per_class={"car": 0.7}, threshold=0.6, ignore_from=0.2)
    with open(os.devnull, "w") as nowhere:
        calibrate = calibrated(checked, policy.settings.calibration, Console(file=nowhere))
        as_it_is = calibrated(checked, CalibrationSettings(method="none"), Console(file=nowhere))
    assert calibrate is not None and as_it_is is not None
    raw = np.concatenate(checked.scores)
    assert np.array_equal(as_it_is(raw, None), raw) and not np.allclose(calibrate(raw, None), raw)
    path = write_summary(store.path, checked.gold_hash, box_summary(checked, policy, calibrate))
    found = json.loads(path.read_text())
    measures = checked.measures(dict(zip(CLASSES, policy.limits.tolist(), strict=True)))
    c, car = CLASSES.index("car"), found["per_class"]["car"]
    assert (car["threshold"], car["ignored_from"]) == (0.7, 0.2)
    for size, name in (None, None), *enumerate(("small", "medium", "large")):
        row, own = measures.row("car", c, size), car if name is None else car["sizes"][name]
        assert own["precision"] == row.precision.plain() and own["recall"] == row.recall.plain()
    sure = measures.probabilities(calibrate)
    before, after = measures.reliability(), measures.reliability(None, sure)
    assert found["all"]["calibration_error"] == pytest.approx(before.error(), abs=1e-5)
    assert found["all"]["calibration_error_after"] == pytest.approx(after.error(), abs=1e-5)
    for name, curve in (("reliability", before), ("reliability_after", after)):
        assert [row["labels"] for row in found[name]] == curve.counts.tolist()
    band = measures.band(0.2, c)
    assert car["ignore_band"]["rescued"] == band.rescued and car["ignore_band"]["boxes"] > 0
    assert car["localization"]["log_width"][0] > 0.1, "the teacher's boxes are too wide"
    gold, silver = measures.per_picture()
    assert found["silver_per_picture"] == pytest.approx(silver.mean(), abs=1e-5), (
        "all were searched"
    )
    assert found["pictures_with_more_silver"] == np.count_nonzero(silver > gold)
    assert found["coverage"] == policy.coverage and len(found["by_score"]) == 10
    raw = Audit.load(path.with_name("audit.json"))
    assert raw.digest() == checked.digest(), "the raw audit stays as it is"


def test_without_calibration_or_band_they_are_null(audited):
    found = box_summary(audited[1], policy_of(audited, ignore_from=None), None)
    assert found["reliability_after"] is None and found["all"]["ignore_band"] is None
    assert found["all"]["calibration_error_after"] is None
    assert found["all"]["calibration_error"] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "Coverage is the recall that training uses"),
        ({"coverage": 0.25}, "Coverage is what the selection's `coverage` says"),
        ({"ignore_budget": 0.5}, "training uses less: the selection's stats.json says how much"),
    ],
)
def test_coverage_on_the_page_is_that_of_training(audited, settings, words):
    pytest.importorskip("jinja2")
    policy = policy_of(audited, **settings)
    measures = audited[1].measures(0.5)
    html = "".join(map(str, parts.classes(measures, 0.3, policy)))
    assert words in html and words in coverage_words(policy)
    for name in CLASSES:
        assert f">{policy.coverage[name]:.2f}<" in html
    assert box_summary(audited[1], policy, None)["coverage"] == policy.coverage
    if "coverage" in settings:
        assert "Coverage is the recall" not in html and set(policy.coverage.values()) == {0.25}
