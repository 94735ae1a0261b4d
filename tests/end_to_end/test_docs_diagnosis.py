"""Every command of docs/diagnosis.md runs, cut down to two steps on small pictures."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "diagnosis.md").read_text()
SMALL = {
    "train.steps": 2,
    "model.backbone": {"name": "resnet10t"},
    "data.scenes": {"gold": 16, "pool": 0, "val": 2, "test": 4, "size": [64, 96]},
    "input": {"short": 64, "long": 96},
    "device": "cpu",
}


def command(name):
    found = re.search(rf"<!-- {name} -->\s*```sh\n(.*?)\n```", PAGE, re.S)
    assert found, f"docs/diagnosis.md has no block '{name}'"
    return found.group(1)


def run(name, folder, **changes):
    words = shlex.split(command(name))
    assert words[0] == "python" and (REPOSITORY / words[1]).is_file()
    changed = [w for k, v in (SMALL | changes).items() for w in ("--set", f"{k}={json.dumps(v)}")]
    more = ["--seeds", "1"] if "transfer" in words[1] else []
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / words[1]), *words[2:], *changed, *more],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_shell_block_is_named_and_tested():
    assert len(re.findall(r"```sh\n", PAGE)) == 2


def test_files_and_settings_of_the_page_are_there():
    for name in re.findall(r"`(transfer_\w+\.yaml|benchmarks/\w+\.py)`", PAGE):
        found = [REPOSITORY / name, REPOSITORY / "configs" / name]
        assert any(path.is_file() for path in found), name


@pytest.mark.slow
def test_gradients(tmp_path):
    run("gradients", tmp_path, **{"diagnosis.every": 1})
    folder = tmp_path / "runs" / "scenes_small_tasks"
    lines = [json.loads(x) for x in (folder / "diagnosis.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and "boxes/map" in lines[0]["cosine"]["fpn"]


@pytest.mark.slow
def test_transfer(tmp_path):
    few = {f"data.sources.{name}.subset.count": 4 for name in ("few", "many")}
    out = run("transfer", tmp_path, **few)
    found = json.loads((tmp_path / "runs" / "transfer_imbalanced" / "report.json").read_text())
    assert found["finished"] == found["planned"] == 3
    assert "Whether boxes helps map cannot be told" in out
    assert (tmp_path / "runs" / "transfer_imbalanced" / "report.html").is_file()
