"""Parts of the recipe: whose folder a run's is, and what a teacher is trained on."""

import os

import pytest
from audit_stand_ins import CLASSES, scenes, stored
from rich.console import Console

from detmtl import pools
from detmtl.config import read_settings
from detmtl.pools import gold_sources, show_audit
from detmtl.run_folder import RunFolder
from detmtl.silver.audit import audit
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

TEXT = """\
data:
  root: here
  classes: [cat, dog]
  sources:
    gold: {kind: coco, images: images, annotations: gold.json}
    checked: {kind: coco, images: images, annotations: checked.json}
    written: {kind: coco, images: images, annotations: silver.json, grade: silver}
    pool: {kind: folder, images: pool}
    other: {kind: folder, images: other}
  val: {kind: coco, images: images, annotations: val.json}
  batch_size: 2
model:
  backbone: {name: resnet18}
tasks:
  boxes: {kind: detection}
silver: {teacher: {kind: gold}, pools: [pool], audit: checked}
mix: {mode: batch, shares: {gold: 1, pool: 1}}
train: {steps: 3}
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "run.yaml").write_text(TEXT)
    return lambda *overrides: read_settings(tmp_path / "run.yaml", overrides)


def test_a_teacher_learns_from_gold_alone_and_not_from_its_audit(settings):
    assert gold_sources(settings()) == ["gold"]
    assert gold_sources(settings("silver.audit=val")) == ["gold", "checked"]

    with pytest.raises(InputError, match="no gold source"):
        gold_sources(settings("data.sources.gold.grade=silver"))


def test_a_corrected_command_may_use_the_same_folder(settings, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings("data.root=wrong"))
    folder.claim(settings())
    assert "root: here" in folder.settings.read_text()


@pytest.mark.parametrize("work", ["last.pt", "best.pt", "silver/store.json", "teacher/last.pt"])
def test_a_folder_with_work_in_it_belongs_to_its_settings(settings, tmp_path, work):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings())
    (folder.path / work).parent.mkdir(exist_ok=True)
    (folder.path / work).touch()
    folder.claim(settings())
    with pytest.raises(InputError, match=r"train\.steps was 3, now 4"):
        folder.claim(settings("train.steps=4"))
    assert "steps: 3" in folder.settings.read_text()


def test_without_the_packages_for_it_one_line_says_that_there_is_no_page(tmp_path, monkeypatch):
    gold = scenes(count=4)
    store = stored(tmp_path, gold)
    checked = audit(store, gold, LabelSpace.of(CLASSES))
    monkeypatch.setattr(pools, "available", lambda: False)
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        show_audit(store, checked, gold, dict.fromkeys(CLASSES, 0.5), 0.3, console)
        *table, last = console.export_text().strip().splitlines()
    assert last == "No page of the audit: pip install 'detmtl[report]'"
    assert any("person" in line for line in table)
    assert list(tmp_path.rglob("report.html")) == []


def test_the_page_of_a_recipe_has_scores_before_and_after_calibration(tmp_path):
    pytest.importorskip("jinja2")
    gold = scenes(count=12)
    store = stored(tmp_path, gold)
    checked = audit(store, gold, LabelSpace.of(CLASSES))
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        show_audit(store, checked, gold, dict.fromkeys(CLASSES, 0.5), 0.3, console)
    (page,) = tmp_path.rglob("report.html")
    enough = sum(map(len, checked.scores)) >= 20 and any(h.any() for h in checked.hits)
    assert enough
    assert "After calibration" in page.read_text()
    assert "No calibrated scores" not in console.export_text()
