"""`select` on the store in a run's folder: the run's classes, policy and gold."""

import json
import shutil

import pytest
from rich.console import Console
from silver_stand_ins import ColorTeacher, pictures
from test_annotate_processes import OtherTeacher
from test_teacher_arm import ONE, Doubtful, run  # noqa: F401

from detmtl import pools
from detmtl.cli import main
from detmtl.config import read_settings
from detmtl.engine import distributed
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources, to_be_labelled

pytestmark = pytest.mark.filterwarnings("default::UserWarning")  # of gates, on so little gold
POLICY = {"threshold": {"precision": 0.3}, "ignore_from": None, "nms": 0.9}
CLASSES = {"human": ["person"], "vehicle": ["car"]}


@pytest.fixture
def labelled(run, tmp_path, monkeypatch):  # noqa: F811
    """Returns what labels the pool of a run, four pictures, and returns its folder."""
    pictures(tmp_path / "pool", 4, first=80)
    monkeypatch.setattr(pools, "available", lambda: False)

    def labels(teacher, *overrides):
        monkeypatch.setattr(pools, "load_teachers", lambda *_: iter([teacher]))
        settings = read_settings(tmp_path / "run.yaml", [*ONE, *overrides])
        folder = RunFolder(tmp_path / "folder")
        folder.claim(settings)
        process = distributed.start("cpu")
        sources, val, _ = load_sources(settings, folder.cache, process)
        written = teacher.card.task
        sources |= to_be_labelled(settings, sources, written)
        opened = OpenRun(settings, folder, process, Console(quiet=True))
        pools.label_pools(opened, sources, val)
        return folder.path

    return labels


def _select(folder, out, *words):
    """Returns what select writes, {} of nothing, and how it ends."""
    status = main([str(w) for w in ("select", "--store", folder / "silver", "--out", out, *words)])
    return json.loads(out.read_text()) if out.is_file() else {}, status


def _boxes_of(data, name):
    (image,) = (i for i in data["images"] if i["file_name"].endswith(name))
    return [
        (a["category_id"], a["bbox"], a["attributes"]["teacher_score"])
        for a in data["annotations"]
        if a["image_id"] == image["id"]
    ]


def _overrides(policy=POLICY):
    return (
        f"data.classes={json.dumps(CLASSES)}",
        f"silver.select={json.dumps(policy)}",
        "silver.gates=warn",
        "tasks={boxes: {kind: detection}}",
    )


def test_select_takes_classes_policy_and_gold_of_the_run(labelled, tmp_path, capsys):
    folder = labelled(Doubtful(), *_overrides())
    (chosen,) = (folder / "silver/select").glob("*/instances.json")
    runs_own = json.loads(chosen.read_text())
    pool = ("--pool", tmp_path / "pool")
    data, status = _select(folder, tmp_path / "out.json", *pool)
    assert status == 0
    assert f"policy, classes and gold of the run {folder}" in capsys.readouterr().out
    assert [c["name"] for c in data["categories"]] == ["human", "vehicle"]
    assert data["info"]["coverage"] == runs_own["info"]["coverage"]
    assert any(0 < c < 1 for c in data["info"]["coverage"].values()), "of the audit"
    for name in ("000.png", "001.png", "002.png", "003.png"):
        assert _boxes_of(data, name) == _boxes_of(runs_own, name)
    assert any(_boxes_of(data, f"00{i}.png") for i in range(4))

    # Options come first, each in its own place.
    data, _ = _select(folder, tmp_path / "all.json", *pool, "--set", "threshold=0.06")
    assert sum(len(_boxes_of(data, f"00{i}.png")) for i in range(4)) == 4
    data, _ = _select(folder, tmp_path / "names.json", *pool, "--classes", "[person, car]")
    assert [c["name"] for c in data["categories"]] == ["person", "car"]
    assert "policy and gold of the run" in capsys.readouterr().out
    other = json.loads((tmp_path / "val.json").read_text())
    other["annotations"].pop()
    (tmp_path / "other.json").write_text(json.dumps(other))
    words = ("--annotations", tmp_path / "other.json", "--images", tmp_path / "val")
    _, status = _select(folder, tmp_path / "last.json", *pool, *words)
    assert status == 0
    audits = [*(folder / "silver/audit").glob("*/audit.json")]
    assert len(audits) == 3, "of the run, in other classes, and by other gold"


def test_audit_takes_classes_and_policy_of_the_run(labelled, tmp_path, capsys):
    """So an audit by the run's own gold is the run's own."""
    folder = labelled(Doubtful(), *_overrides())
    capsys.readouterr()
    words = ["audit", "--store", folder / "silver", "--annotations", tmp_path / "val.json"]
    words = [str(w) for w in (*words, "--images", tmp_path / "val")]

    def audits():
        return {p.parent.name for p in (folder / "silver/audit").glob("*/audit.json")}

    own = audits()
    assert len(own) == 1
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"policy and classes of the run {folder}" in told and "vehicle" in told
    assert audits() == own
    assert main([*words, "--classes", "[person, car]"]) == 0
    told = capsys.readouterr().out
    assert f"policy of the run {folder}" in told and "vehicle" not in told and len(audits()) == 2


def test_gold_of_a_run_that_is_gone_is_told(labelled, tmp_path, capsys):
    policy = {"threshold": 0.89, "per_class": {"vehicle": 0.92}, "ignore_from": None}
    folder = labelled(ColorTeacher(), *_overrides(policy))
    shutil.rmtree(tmp_path / "val")
    data, status = _select(folder, tmp_path / "out.json", "--pool", tmp_path / "pool")
    told = capsys.readouterr().err
    assert status == 0 and "the gold of this run's audit cannot be read" in told
    assert "val does not exist" in told
    assert set(data["info"]["coverage"].values()) == {1}
    found = [(a["category_id"], a["attributes"]["teacher_score"]) for a in data["annotations"]]
    assert found == [(1, 0.9), (1, 0.92), (2, 0.93)], "by the run's policy"


def test_a_store_of_another_folder_or_of_settings_that_cannot_be_read(labelled, tmp_path, capsys):
    folder = labelled(ColorTeacher(), *_overrides())
    alone = tmp_path / "alone"
    shutil.copytree(folder / "silver", alone / "silver")
    (folder / "settings.yaml").write_text("seed: 3\n")
    for place, why in ((alone, ""), (folder, "settings cannot be read")):
        data, status = _select(place, tmp_path / "out.json")
        told = capsys.readouterr()
        assert status == 0 and "of the run" not in told.out and why in told.err
        assert [c["name"] for c in data["categories"]] == ["person", "car"]
    # a run whose labels lie elsewhere says nothing of this store
    text = (tmp_path / "run.yaml").read_text()
    text = text.replace("  pools: [pool]", f"  pools: [pool]\n  store: {tmp_path / 'elsewhere'}")
    (folder / "settings.yaml").write_text(text)
    assert _select(folder, tmp_path / "out.json")[1] == 0
    assert "of the run" not in capsys.readouterr().out


@pytest.mark.parametrize("task", ["maps", "tags"])
def test_maps_and_tags_too(labelled, tmp_path, capsys, task):
    gold = "maps: {folder: maps, categories: {1: person, 2: car, 3: rest}}, tags: {file: tags.json}"
    val = f"data.val={{kind: coco, images: test, annotations: test.json, {gold}}}"
    policy = "silver.select_maps={confidence: 0.3}"
    folder = labelled(OtherTeacher(task), val, "data.test=null", policy, "silver.gates=warn")
    (chosen,) = (p for p in (folder / "silver/select").iterdir() if p.is_dir())
    words = ("select", "--store", folder / "silver", "--images", tmp_path / "pool")
    assert main([str(w) for w in (*words, "--out", tmp_path / "out")]) == 0
    assert "policy, classes and gold of the run" in capsys.readouterr().out
    for path in (p for p in chosen.rglob("*") if p.is_file()):
        assert (tmp_path / "out" / path.relative_to(chosen)).read_bytes() == path.read_bytes()
