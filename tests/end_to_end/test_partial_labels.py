"""People labelled some classes in some pictures: a run fills in the rest and knows who said what."""

import json

import numpy as np
import pytest
from conftest import run_verb
from ruamel.yaml import YAML

from detmtl.config import read_settings
from detmtl.data.coco import read_labels
from detmtl.run_teachers import audit_source, gold_sources
from detmtl.structures.labels import Grade
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings

SOURCES = """{
  reds: {kind: coco, images: images/gold, annotations: gold.json, keep: [red], subset: {share: 0.5}},
  blues: {kind: coco, images: images/gold, annotations: gold.json, keep: [blue],
    subset: {share: 0.5, rest: true}}}"""
SETTINGS = [
    f"data.sources={SOURCES}",
    "silver.pools=[reds, blues]",
    "silver.audit={share: 0.25}",
    "mix={mode: concat}",
    "train.steps=4",
    "silver.teacher.train.steps=4",
    "export.format=null",
]


@pytest.fixture(scope="module")
def partial(data, tmp_path_factory):
    """Runs the recipe on partial labels; returns the run folder."""
    folder = tmp_path_factory.mktemp("partial")
    out = folder / "run"
    words = [word for text in SETTINGS for word in ("--set", text)]
    done = run_verb("train", "--config", data / "recipe.yaml", "--out", out, *words, folder=folder)
    assert done.status == 0, done.err
    (out / "told.txt").write_text(done.out)
    return out


def test_each_picture_has_gold_where_people_looked_and_silver_elsewhere(partial):
    files = list((partial / "silver" / "select").glob("*/with_gold_*.json"))
    found = [read_labels(file) for file in files]
    assert len(found) == 2 and sum(map(len, found)) == 8
    looked = [int(np.flatnonzero((source.coverage == 1).all(axis=0))[0]) for source in found]
    assert sorted(looked) == [0, 1]  # one source for the reds, one for the blues
    for source, c in zip(found, looked, strict=True):
        a = source.annotations
        mine = a.classes == c
        assert mine.sum() == 4 and (a.grade[mine] == Grade.GOLD).all()
        assert (a.grade[~mine] == Grade.SILVER).all() and (source.coverage[:, 1 - c] < 1).all()
    assert "model (electrum)" in (partial / "told.txt").read_text()


def test_the_teacher_does_not_see_what_it_is_audited_on(partial, data, tmp_path):
    settings = read_settings(data / "recipe.yaml", SETTINGS)
    space = settings.data.label_space()
    assert gold_sources(settings) == ["reds", "blues"]
    sources = {
        name: source.load(name, settings.data.root, space, tmp_path)
        for name, source in settings.data.sources.items()
    }
    audited = audit_source(settings, sources, None)
    assert len(audited) == 2 and audited.coverage.tolist() == [[1, 0], [0, 1]]
    (kept,) = (partial / "silver" / "audit").glob("*/audit.json")
    assert json.loads(kept.read_text())["gold_boxes"] == [1, 1]
    taught = YAML(typ="safe", pure=True).load((partial / "teacher" / "settings.yaml").read_text())
    alone = read_settings(partial / "teacher" / "settings.yaml")
    assert set(taught["data"]["sources"]) == {"reds", "blues"}
    learned = [
        content_hash
        for name, source in alone.data.sources.items()
        for content_hash in source.load(name, alone.data.root, space, tmp_path).hashes()
    ]
    assert len(learned) == 6 and not set(learned) & set(audited.hashes())


def test_masked_labels_alone_need_no_silver(data, detmtl, tmp_path):
    words = [word for text in [*SETTINGS, "mix={mode: gold}"] for word in ("--set", text)]
    done = detmtl("train", "--config", data / "recipe.yaml", "--out", tmp_path / "run", *words)
    assert done.status == 0, done.err
    assert "model (gold)" in done.out and not (tmp_path / "run" / "silver").exists()


def test_a_model_says_for_which_classes_nobody_looked(data, detmtl, tmp_path):
    gold = (
        "data.sources.gold={kind: coco, images: images/gold, annotations: gold.json, keep: [red]}"
    )
    words = ["mix={mode: gold}", "silver=null", "train.steps=2", gold, "export.format=torchscript"]
    words = [word for text in words for word in ("--set", text)]
    done = detmtl("train", "--config", data / "recipe.yaml", "--out", tmp_path / "run", *words)
    assert done.status == 0, done.err
    told = "boxes: in what is trained on nobody looked for blue: nothing is learned of it"
    assert told in done.out and "in val nobody looked" not in done.out
    for name in ("best.pt", "last.pt"):
        card = CheckpointTeacherSettings(path=name).load(tmp_path / "run").card
        assert card.classes == ("red", "blue") and card.unsearched == ("blue",)
    exported = TorchScriptTeacherSettings(path="model.torchscript")
    assert exported.load(tmp_path / "run").card.unsearched == ("blue",)
    named = exported.model_copy(update={"classes": ["r", "b"]})
    assert named.load(tmp_path / "run").card.unsearched == ("b",)
    fewer = exported.model_copy(update={"classes": ["red", "N/A"]})
    assert fewer.load(tmp_path / "run").card.unsearched == ()


def test_a_class_that_cannot_be_scored_is_told(data, detmtl, tmp_path):
    val = "data.val={kind: coco, images: images/val, annotations: val.json, keep: [blue]}"
    half = (
        "data.sources.gold={kind: coco, images: images/gold, annotations: gold.json, covers: [red]}"
    )
    words = ["mix={mode: gold}", "silver=null", "train.steps=1", "data.test=null", val, half]
    words = [word for text in words for word in ("--set", text)]
    done = detmtl("train", "--config", data / "recipe.yaml", "--out", tmp_path / "run", *words)
    assert done.status == 0, done.err
    assert "boxes: in val nobody looked for red: it is not in the scores" in done.out
    assert "Without labels in val, and so not in the means: 'red' (boxes)" in done.out
    assert "nobody looked for blue: it learns where one is, never where none is" in done.out
