"""Every command of the README runs, on small data."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from detmtl.config import find_config, read_settings, settings_from
from detmtl.data.scenes import ScenesSettings, render_scenes
from detmtl.inference.torchscript import deprecation_expected

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
SMALL = ["--set", "train.steps=2", "--set", "model.backbone.pretrained=false"]


def block(name: str) -> list[str]:
    """Returns the lines of the shell block that follows `<!-- name -->`."""
    found = re.search(rf"<!-- {name} -->\s*```sh\n(.*?)\n```", README, re.S)
    assert found, f"the README has no block '{name}'"
    return found.group(1).splitlines()


def run(command: str, folder: Path, extra: list[str] = ()) -> str:
    """Runs one `python tools/...` command of the README from `folder`."""
    words = shlex.split(command)
    assert words[0] == "python" and words[1].startswith("tools/"), command
    script = str(REPOSITORY / words[1])
    done = subprocess.run(
        [sys.executable, script, *words[2:], *extra], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_shell_block_is_named_and_tested():
    assert len(re.findall(r"```sh\n", README)) == 3


def test_install_commands_name_files_that_exist():
    for name, ending in (("main job", "retina_electrum.yaml"), ("test command", "pytest")):
        (line,) = block(name)
        steps = [step.strip() for step in line.split("&&")]
        assert steps[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
        assert steps[2].startswith("pip install -e ")
        assert ending in steps[3]
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "test command" in ci and "README.md" in ci


def test_the_teacher_of_the_page_is_a_setting():
    (text,) = re.findall(r"```yaml\n(.*?)\n```", README, re.S)
    shown = YAML(typ="safe", pure=True).load(text)
    settings = read_settings(find_config("own_data.yaml"), [])
    raw = settings.resolved()
    raw["silver"] |= shown["silver"]
    silver = settings_from(raw).silver
    assert silver.teacher.adapter.kind == "yolox"
    assert silver.select.class_weight == silver.select.box_weight == "probability"


def test_configs_of_the_page_exist():
    table = README.partition("## Which config")[2].partition("\n## ")[0]
    names = re.findall(r"`(\w+\.yaml)`", table)
    assert len(names) >= 9
    for name in names:
        find_config(name)


@pytest.mark.slow
def test_main_job(tmp_path):
    command = block("main job")[0].split("&&")[-1].strip()
    sizes = [f"data.scenes.{s}={n}" for s, n in (("gold", 8), ("pool", 8), ("val", 6), ("test", 6))]
    extra = [w for s in sizes for w in ("--set", s)]
    # a teacher of two steps finds nothing worth a label, and the audit rightly says so
    extra += ["--set", "silver.select.threshold=0.05", "--set", "silver.select.ignore_from=null"]
    extra += ["--set", "silver.floor=0.001", "--set", "silver.gates=warn"]
    extra += ["--set", "tasks.boxes.head.prior=0.2"]
    extra += ["--set", "silver.teacher.train={steps: 2}"]
    out = run(command, tmp_path, [*SMALL, *extra])
    for what in ("teacher", "AP50", "best.pt", "model.torchscript", "silver", "tensorboard"):
        assert what in out
    folder = tmp_path / "runs" / "retina_electrum"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"boxes/AP", "teacher/boxes/AP"} <= set(metrics)


@pytest.mark.slow
def test_own_data_in_three_commands(tmp_path):
    scenes = tmp_path / "scenes"
    render_scenes(scenes, ScenesSettings(gold=10, pool=4, val=0, test=0), processes=1)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copytree(scenes / "images" / "gold", mine / "gold")
    shutil.copytree(scenes / "images" / "pool", mine / "pool")
    truth = json.loads((scenes / "annotations" / "gold.json").read_text())
    kept = {c["id"] for c in truth["categories"] if c["name"] in ("person", "dog")}
    truth["categories"] = [c for c in truth["categories"] if c["id"] in kept]
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] in kept]
    (mine / "gold.json").write_text(json.dumps(truth))
    check, train, predict = block("own data")
    assert "no faults" in run(check, tmp_path)
    extra = ["--set", "silver.floor=0.001", "--set", "silver.select.threshold=0.05"]
    extra += ["--set", "silver.gates=warn"]
    extra += ["--set", "silver.select.ignore_from=null", "--set", "tasks.boxes.head.prior=0.2"]
    run(train, tmp_path, [*SMALL, *extra])
    run(predict, tmp_path)
    assert (mine / "predicted" / "results.json").is_file()
    assert len(list((mine / "predicted" / "drawn").rglob("*.jpg"))) == 4
    shutil.copy(next((mine / "pool").iterdir()), tmp_path / "picture.jpg")
    shutil.copy(tmp_path / "runs" / "own_data" / "model.torchscript", tmp_path)
    assert {line.split()[0] for line in deployed(tmp_path)} <= {"person", "dog"}


def deployed(folder: Path) -> list[str]:
    """Returns the lines that the page's Python prints of `model.torchscript` and `picture.jpg`."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code = f"import sys; sys.modules['detmtl'] = None\n{code}"  # it shall not need us
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class Shape(torch.nn.Module):
    """Says whether a picture is upright, in the manner of an exported file."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        upright = torch.tensor([int(images[0].shape[1] > images[0].shape[2])])
        return [{"labels": upright, "scores": torch.ones(1)}]

    @torch.jit.export
    def class_names(self) -> list[str]:
        return ["lying", "upright"]


def test_the_deployed_file_sees_pictures_as_people_do(tmp_path):
    """As in training, a picture that its EXIF says to turn is turned."""
    with deprecation_expected():
        torch.jit.script(Shape()).save(str(tmp_path / "model.torchscript"))
    for orientation, seen in ((1, "lying"), (6, "upright")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (40, 20)).save(tmp_path / "picture.jpg", exif=exif)
        assert deployed(tmp_path) == [f"{seen} 1.0"]
