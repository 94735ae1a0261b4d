"""The verbs that read data: every kind of gold, faults, names with brackets, all sources of a config."""

import json
import os
import subprocess
import sys
import warnings
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import annotation, coco_data, save_coco, save_picture
from detail_files import HEIGHT, WIDTH, write
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML

from detmtl.cli import main
from detmtl.config import settings_from
from detmtl.data.plan import PlanRow, plan_table
from detmtl.inference.torchscript import deprecation_expected
from detmtl.recipe import Summary
from detmtl.report.told import told_files
from detmtl.structures.labels import Grade
from detmtl.tasks.multitask import build_model
from detmtl.verbs import perform


def run(*words):
    return main([str(word) for word in words])


TASKS = {
    "boxes": {"kind": "detection", "head": {"depth": 1}, "test": {"score_threshold": 0.0}},
    "color": {"kind": "attributes", "at": "p3"},
    "depth": {"kind": "depth"},
}


def settings_of(root, **data):
    source = {"kind": "coco", "images": ".", "annotations": "a.json", "depth": {"folder": "depth"}}
    tree = {
        "root": str(root),
        "classes": ["man", "cup"],
        "details": {"attributes": {"color": ["red", "blue"]}},
        "sources": {"gold": source},
        "val": source,
        "batch_size": 1,
    }
    return {
        "data": tree | data,
        "input": {"short": 64, "long": 96},
        "model": {"backbone": {"name": "test_efficientnet"}, "fpn": {"channels": 8}},
        "tasks": TASKS,
        "mix": {"mode": "gold"},
        "train": {"steps": 1},
        "export": {"format": None},
    }


def save_checkpoint(folder, root, **changes):
    """Saves an untrained model of the data below `root`."""
    settings = settings_from(settings_of(root) | changes)
    torch.manual_seed(0)
    model = build_model(
        settings.model, settings.tasks, ["man", "cup"], other_names=settings.data.names()
    )
    content = {"format": 1, "classes": ["man", "cup"], "step": 1, "model": model.state_dict()}
    folder.mkdir(exist_ok=True)
    torch.save(content | {"settings": settings.resolved()}, folder / "best.pt")


def test_evaluate_has_truth_for_attributes_and_depth(tmp_path, capsys):
    write(tmp_path)
    (tmp_path / "a.json").write_text((next(tmp_path.glob("*.json"))).read_text())
    (tmp_path / "depth").mkdir()
    Image.fromarray(np.full((HEIGHT, WIDTH), 1000, np.uint16)).save(tmp_path / "depth" / "a.png")
    save_checkpoint(tmp_path, tmp_path)
    scores = {}
    for unit in (0.001, 0.01, None):
        words = ["--checkpoint", tmp_path / "best.pt", "--images", tmp_path, "--device", "cpu"]
        words += ["--annotations", tmp_path / "a.json", "--json", tmp_path / "scores.json"]
        words += ["--depth", tmp_path / "depth"]
        if unit is None:  # as predict says it
            (tmp_path / "depth/legend.json").write_text('{"unit": 0.01}')
            assert run("evaluate", *words, "--depth-unit", 0.001) == 2
            told = capsys.readouterr().err
            assert "--depth-unit 0.001: " in told and "a value of 1 means 0.01 m" in told
        else:
            words += ["--depth-unit", unit]
        assert run("evaluate", *words) == 0
        scores[unit] = json.loads((tmp_path / "scores.json").read_text())
    assert 0 <= scores[0.001]["color/on_truth/accuracy"] <= 1
    depth = [scores[unit]["depth/RMSE"] for unit in scores]
    assert None not in depth and abs(depth[0] - depth[1]) > 1  # meters
    assert depth[1] == depth[2]


def test_evaluate_writes_nothing_beside_a_checkpoint_that_lies_alone(tmp_path, monkeypatch):
    write(tmp_path)
    (annotations,) = tmp_path.glob("*.json")
    share = tmp_path / "share"
    save_checkpoint(share, tmp_path)
    words = ["--checkpoint", share / "best.pt", "--images", tmp_path, "--device", "cpu"]
    words += ["--annotations", annotations]
    assert run("evaluate", *words) == 0
    assert [p.name for p in share.iterdir()] == ["best.pt"]
    (share / "cache").mkdir()  # of the run that it is in: used, unless it is somebody else's
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda p, mode: share not in Path(p).parents and access(p, mode)
    )
    assert run("evaluate", *words) == 0
    assert not [*(share / "cache").iterdir()]
    monkeypatch.undo()
    assert run("evaluate", *words) == 0
    assert [*(share / "cache").iterdir()]
    assert run("evaluate", *words, "--cache", tmp_path / "mine") == 0
    assert [*(tmp_path / "mine/cache").iterdir()]
    assert run("evaluate", *words, "--cache", annotations) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--checkpoint", "a.pt"],
        ["--trust"],
        ["--images", "a"],
        ["--maps", "a", "--categories", "a.json"],
        ["--tags", "a.json"],
        ["--depth", "a", "--depth-unit", "1"],
        ["--faults", "drop"],
        ["--cache", "a"],
        ["--device", "cpu"],
        ["--precision", "fp32"],
        ["--flip"],
        ["--scales", "1", "1.5"],
        ["--tile", "640", "--overlap", "0.1"],
        ["--set", "nms=0.5"],
    ],
)
def test_evaluate_refuses_what_a_results_file_has_no_use_for(words, capsys):
    assert run("evaluate", "--detections", "r.json", "--annotations", "a.json", *words) == 2
    options = ", ".join(word for word in words if word.startswith("--"))
    assert f"error: {options}: would change nothing beside --detections" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--overlap", "0.1"], "--overlap: is that of --tile"),
        (["--categories", "a.json"], "--categories: is of --maps"),
        (["--depth-unit", "1"], "--depth-unit: is of --depth"),
    ],
)
def test_evaluate_refuses_an_option_without_the_one_that_it_is_of(tmp_path, words, told, capsys):
    save_checkpoint(tmp_path, tmp_path)
    model = ["--checkpoint", tmp_path / "best.pt", "--images", tmp_path]
    assert run("evaluate", *model, "--annotations", tmp_path / "a.json", *words) == 2
    assert f"error: {told}" in capsys.readouterr().err


def test_evaluate_refuses_gold_that_no_task_is_scored_on(tmp_path, capsys):
    save_checkpoint(tmp_path / "depth", tmp_path, tasks={"far": {"kind": "depth", "at": "p3"}})
    save_checkpoint(tmp_path / "boxes", tmp_path, tasks={"boxes": {"kind": "detection"}})
    for which, option in (("depth", "annotations"), ("boxes", "tags"), ("boxes", "depth")):
        model = ["--checkpoint", tmp_path / which / "best.pt", "--images", tmp_path]
        assert run("evaluate", *model, f"--{option}", tmp_path / "a.json") == 2
        told = capsys.readouterr().err
        assert f"error: --{option}: no task of " in told
        assert ("boxes (boxes)" if which == "boxes" else "far (depth)") in told


def test_predict_refuses_a_precision_that_an_exported_file_has_not(tmp_path, capsys):
    path, out = tmp_path / "m.torchscript", tmp_path / "out"
    with deprecation_expected():
        torch.jit.script(torch.nn.Identity()).save(str(path))
    words = ["predict", "--model", path, "--source", tmp_path, "--out", out]
    assert run(*words, "--precision", "bf16") == 2
    assert f"error: --precision: {path} is an exported file" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["evaluate", "--detections", "r.json", "--annotations", "a.json"], "--json"),
        (["export", "--checkpoint", "a.pt"], "--out"),
        (["import", "--sent", "a.json", "--back", "b.json"], "--out"),
        (["import", "--sent", "a.json", "--back", "b.json", "--out", "c.json"], "--rest"),
    ],
)
def test_a_folder_in_place_of_a_file_is_refused_before_the_work(
    tmp_path, monkeypatch, capsys, words, option
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    assert run(*words, option, "old") == 2
    assert capsys.readouterr().err == f"error: {option} old: is a folder; give the name of a file\n"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("verb", "called", "goes_on"),
    [
        (["train", "--config", "coco"], "verbs.perform.run", True),
        (["compare", "--config", "coco"], "verbs.perform.compare", True),
        (["transfer", "--config", "coco"], "verbs.perform.transfer", True),
        (["annotate", "--teacher", "a.pt", "--images", "a"], "verbs.silver.teacher_settings", True),
        (["predict", "--model", "a.pt", "--source", "a"], "verbs.model.load_predictor", False),
        (["export", "--checkpoint", "a.pt"], "verbs.model.export", False),
    ],
)
def test_who_stops_a_verb_is_told_whether_it_goes_on(
    tmp_path, monkeypatch, capsys, verb, called, goes_on
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"detmtl.{called}", stop)
    monkeypatch.setattr(perform, "read_settings", lambda *_: None)
    monkeypatch.setattr(perform, "find_config", lambda _: tmp_path / "a.yaml")
    assert run(*verb, "--out", tmp_path / "out") == 130
    told = capsys.readouterr().err
    assert "stopped" in told and ("the same command goes on" in told) == goes_on


def test_one_broken_picture_does_not_stop_a_verb_that_may_drop_it(tmp_path, capsys):
    save_coco(tmp_path, coco_data())
    (tmp_path / "images" / "2.png").write_text("no picture")
    words = ["check", "--annotations", tmp_path / "coco.json", "--images", tmp_path / "images"]
    words += ["--cache", tmp_path / "runs"]
    assert run(*words) == 2
    assert "2.png: is not a picture" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status = run(*words, "--faults", "drop")
    told = capsys.readouterr()
    assert status == 0 and "2 pictures" in told.out
    assert "1 fault left out" in told.err and "2.png: is not a picture" in told.err


@pytest.mark.parametrize("name", ["[/x]", "[unlabeled]"])
def test_check_prints_names_with_brackets(tmp_path, capsys, name):
    data = coco_data()
    data["categories"][0]["name"] = name
    folder = tmp_path / "[v2]"
    save_coco(folder, data)
    words = ["--annotations", folder / "coco.json", "--images", folder / "images"]
    assert run("check", *words, "--cache", tmp_path / "runs") == 0
    told = capsys.readouterr().out
    assert name in told and "[v2]" in told.replace("\n", "")


def test_plan_and_summary_print_names_with_brackets(tmp_path):
    row = PlanRow("[/x]", Grade.GOLD, 1, 1, 1, 1, 1, (1, 1), 1, "source '[/x]' is repeated")
    summary = Summary({"[t]/AP": 0.5}, {"scores": tmp_path / "[/v2]"}, "val", "gold")
    console = Console(width=300, record=True, file=StringIO())
    for table in (plan_table("Mix", [row], ["note [/n]"]), *summary.tables()):
        console.print(table)
    console.print(told_files(summary.files))
    told = console.export_text()
    for name in ("[/x]", "source '[/x]'", "note [/n]", "[t]", "[/v2]"):
        assert name in told


def test_check_reads_every_source_of_a_config(tmp_path, capsys):
    save_coco(tmp_path, coco_data())
    for i, name in enumerate("abc"):
        save_picture(tmp_path / "yolo" / f"{name}.png", seed=10 + i)
        (tmp_path / "yolo" / f"{name}.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    yolo = {"kind": "yolo", "images": "yolo", "labels": "yolo", "names": ["cat", "dog", "bird"]}
    yolo["weight"] = 0.5
    save_picture(tmp_path / "pool" / "p.png", seed=20)
    settings = settings_of(
        tmp_path,
        classes=["cat", "dog", "bird"],
        details=None,
        sources={"own": yolo, "pool": {"kind": "folder", "images": "pool"}},
        val={"kind": "coco", "images": "images", "annotations": "coco.json"},
    )
    settings["tasks"] = {"boxes": {"kind": "detection"}}
    with (tmp_path / "c.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(settings, file)
    words = ["check", "--config", tmp_path / "c.yaml", "--cache", tmp_path / "runs"]
    assert run(*words) == 0
    told = capsys.readouterr().out
    for words_told in ("own: 3 pictures", "pool: 1 pictures without boxes", "val: 3 pictures"):
        assert words_told in told
    assert "source 'own': its weight changes nothing but at 0 for boxes" in told
    (tmp_path / "yolo" / "a.txt").write_text("7 0.5 0.5 0.25 0.5\n")
    (tmp_path / "images" / "1.png").write_text("no picture")
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert "a.txt line 1: the class is 7" in told and "1.png: is not a picture" in told


def test_check_compares_the_sources_of_a_config(tmp_path, capsys):
    save_coco(tmp_path, coco_data())
    data = coco_data(1) | {"annotations": [annotation(7, 10, 9, [1, 2, 10, 20])]}
    data["info"] = {"grade": "silver"}
    (tmp_path / "held.json").write_text(json.dumps(data))
    own = {"kind": "coco", "images": "images", "annotations": "coco.json"}
    tree = settings_of(
        tmp_path,
        classes=["cat", "dog", "bird"],
        details={"attributes": {"color": ["red", "blue"]}},
        sources={"own": own},
        val={"kind": "coco", "images": "images", "annotations": "held.json"},
    )
    tree["tasks"] = {"boxes": {"kind": "detection"}, "color": {"kind": "attributes", "at": "p3"}}
    with (tmp_path / "c.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(tree, file)
    words = ["check", "--config", tmp_path / "c.yaml", "--cache", tmp_path / "runs"]
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert "data.details.attributes.color: none of data.sources says anything of it" in told
    assert "data.val: its labels were written by a model" in told
    assert "0.png: a training picture that is also held out" in told
    # What cannot be read is told alone: of the rest nobody knows yet.
    (tmp_path / "held.json").write_text("{}")
    assert run(*words) == 2
    told = capsys.readouterr()
    assert "compared with each other once 'val' can be read" in told.out
    assert "held out" not in told.err and "has no list 'images'" in told.err


def test_check_tells_of_classes_of_which_a_source_knows_some_members(tmp_path, capsys):
    data = coco_data()
    data["categories"][2]["name"] = "cow"
    save_coco(tmp_path, data)
    own = {"kind": "coco", "images": "images", "annotations": "coco.json"}
    classes = {"pet": ["cat", "dog"], "animal": ["cow", "goat"]}
    for i in range(3):
        save_picture(tmp_path / "val" / f"{i}.png", seed=10 + i)
    val = own | {"images": "val", "covers": ["pet"]}
    tree = settings_of(tmp_path, classes=classes, details=None, sources={"[own]": own}, val=val)
    tree["tasks"] = {"boxes": {"kind": "detection"}}
    with (tmp_path / "c.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(tree, file)
    assert run("check", "--config", tmp_path / "c.yaml", "--cache", tmp_path / "runs") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "source '[own]': has of class 'animal' the categories cow but not goat" in told
    assert told.count("but not") == 1  # val says what it covers


def test_check_of_nothing_says_what_it_needs(tmp_path, capsys):
    assert run("check", "--cache", tmp_path) == 2
    assert "--annotations and --images" in capsys.readouterr().err


def test_a_narrow_terminal_cuts_neither_names_nor_paths(tmp_path):
    long = "a_name_" * 10
    row = PlanRow(long, Grade.GOLD, 1, 1, 1, 1, 1, (1, 1), 1, None)
    path = tmp_path / long / "best.pt"
    summary = Summary(
        {f"{long}/AP": 0.5, f"boxes/AP/{long}": 0.5}, {"model": path}, "val", "electrum"
    )
    console = Console(width=60, record=True, file=StringIO())
    for table in (plan_table("Mix", [row], []), *summary.tables()):
        console.print(table)
    console.print(told_files(summary.files), soft_wrap=True)
    told = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in told and str(path) in told


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["predict", "--modle", "a"]])
def test_who_asks_how_waits_for_no_torch(words):
    code = (
        "import sys; sys.modules['torch'] = None; from detmtl.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == (2 if "--modle" in words else 0)
    assert "usage:" in done.stdout + done.stderr and "Traceback" not in done.stderr
