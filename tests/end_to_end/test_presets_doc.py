"""docs/presets.md: its table is what the code does, its settings load, its commands run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from test_readme import run
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from detmtl.config import find_config, read_settings
from detmtl.models.fpn import FPNSettings
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.presets import PRESETS, detection, pyramid

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "presets.md").read_text()
COLUMNS = ["detmtl", *PRESETS]


def block(name: str, kind: str) -> str:
    found = re.search(rf"<!-- {name} -->\s*```{kind}\n(.*?)\n```", PAGE, re.S)
    assert found, name
    return found.group(1)


def in_force(column: str, setting: str):
    """Returns what a setting is under a preset."""
    section, name = setting.split(".")
    own = column == "detmtl"
    if section == "fpn":
        return getattr(FPNSettings() if own else pyramid(column), name)
    return getattr(getattr(DetectionConfig() if own else detection(column), section), name)


def rows() -> dict[str, list[str]]:
    """Returns the cells of the table of details by setting."""
    lines = re.findall(r"^\| `(\w+\.\w+)` \|(.*)\|$", PAGE, re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


@pytest.mark.parametrize("setting", rows())
def test_every_cell_is_what_the_code_does(setting):
    for column, cell in zip(COLUMNS, rows()[setting], strict=True):
        if cell == "-":
            assert setting == "loss.beta" and in_force(column, "loss.box") != "smooth_l1"
            continue
        wanted, value = YAML(typ="safe", pure=True).load(cell), in_force(column, setting)
        if isinstance(value, float | tuple | list):
            assert value == pytest.approx(wanted, abs=1e-3), column
        else:
            assert value == wanted, column


def test_a_row_is_missing_only_where_all_agree():
    assert re.search(r"^\| setting \| (.*) \|$", PAGE, re.M)[1].split(" | ") == COLUMNS
    preset = PRESETS["torchvision"]
    known = [f"fpn.{k}" for k in preset.fpn]
    known += [f"{section}.{k}" for section, of in preset.task.items() for k in of]
    for setting in set(known) - rows().keys():
        assert len({str(in_force(column, setting)) for column in COLUMNS}) == 1, setting


def test_the_snippet_of_a_start_is_the_configs():
    snippets = re.findall(r"```yaml\n(.*?)\n```", PAGE, re.S)
    given = YAML(typ="safe", pure=True).load(snippets[1])
    config = YAML(typ="safe", pure=True).load(find_config("coco_start").read_text())
    assert given == {key: config[key] for key in given}
    settings = read_settings(find_config("coco_start"))
    assert settings.preset == "torchvision_v2" and settings.model.fpn.p6_from == "c5"


@pytest.mark.slow
def test_commands(own_data, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copytree(own_data / "images" / "gold", mine / "gold")
    text = (own_data / "gold.json").read_text()
    names = re.findall(r'"name": "(\w+)"', text)
    for name, new in zip(names, ("person", "dog", "gnome"), strict=False):
        text = text.replace(f'"name": "{name}"', f'"name": "{new}"')
    (mine / "gold.json").write_text(text)
    torch.manual_seed(0)
    weights = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    torch.save(weights, tmp_path / "coco.pth")
    train, export = block("start", "sh").splitlines()
    small = ["--set", f"model.start.path={tmp_path / 'coco.pth'}"]
    small += ["--set", "input={short: 64, long: 64}", "--set", "train.steps=1"]
    small += ["--set", "data.batch_size=1", "--set", "train.evaluate_every=null"]
    small += ["--set", "export.format=null", "--set", "data.unmapped=drop"]
    # in bfloat16 a 1x1 map, as P6 of 64 pixels is, gets a weight gradient of NaN from oneDNN at times
    small += ["--set", "train.precision=fp32"]
    told = run(train, tmp_path, small)
    assert "class rows of person, dog; fresh: gnome" in " ".join(told.split())
    assert "retinanet_resnet50_fpn_v2(" in " ".join(run(export, tmp_path).split())
    code = block("torchvision", "python").replace("mine/", f"{mine}/")
    inside: dict[str, object] = {}
    exec(code, inside)
    assert inside["network"].head.classification_head.num_classes == 4


@pytest.mark.slow
def test_a_run_starts_from_another_one(own_data, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("gold", "pool"):
        shutil.copytree(own_data / "images" / name, mine / name)
    text = (own_data / "gold.json").read_text().replace('"red"', '"cat"').replace('"blue"', '"dog"')
    (mine / "gold.json").write_text(text)
    small = ["--set", "input={short: 64, long: 64}", "--set", "train.steps=1"]
    small += ["--set", "data.batch_size=1", "--set", "train.evaluate_every=null"]
    small += ["--set", "train.precision=fp32", "--set", "mix={mode: gold}", "--set", "silver=null"]
    small += ["--set", "export.format=null"]
    first = "python tools/train.py --config own_data.yaml --set data.root=mine"
    first += " --set 'data.classes=[cat, dog]' --set model.backbone.pretrained=false"
    assert "Starting from" not in run(first, tmp_path, small)
    told = " ".join(run(block("again", "sh"), tmp_path, small).split())
    assert (
        "Starting from runs/own_data/best.pt: backbone, pyramid, boxes (class rows of cat, dog; fresh: bird)"
        in told
    )
    refused = (
        block("again", "sh")
        .replace("--set model.backbone.pretrained=false ", "")
        .replace("birds", "hens")
    )
    words = [
        sys.executable,
        str(REPOSITORY / "tools" / "train.py"),
        *shlex.split(refused)[2:],
        *small,
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode and "model.start has them too" in done.stdout + done.stderr
