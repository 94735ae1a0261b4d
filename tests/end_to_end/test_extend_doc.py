"""docs/extend.md: its teacher, its data format and its balancer, from files outside of the package."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from detmtl.config import settings_from, settings_schema
from detmtl.data.coco import CocoSource
from detmtl.data.scenes import SCENE_CLASSES, ScenesSettings, render_scenes
from detmtl.inference.predictor import load_predictor
from detmtl.inputs import own_code
from detmtl.recipe import run
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend.md"
MODULES = {"blobs": "a teacher", "table": "a data format", "turns": "a balancer"}


def block(mark):
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, mark
    return found[1]


def page_settings():
    """Returns the settings under the page's examples, joined."""
    joined = {}
    for text in re.findall(
        r"<!-- its settings -->\n```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL
    ):
        joined |= YAML(typ="safe").load(text)
    return joined


@pytest.fixture
def modules(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, mark in MODULES.items():
        (folder / f"{name}.py").write_text(block(mark))
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in MODULES:
        sys.modules.pop(name, None)


def tree(root):
    """Returns settings of a tiny run on scenes, with all that the page shows."""
    page, coco = page_settings(), {"kind": "coco", "annotations": "annotations/val.json"}
    return {
        "data": {
            "root": str(root),
            "scenes": {"gold": 4, "pool": 4, "val": 4, "test": 0, "size": [64, 96]},
            "classes": list(SCENE_CLASSES),
            "sources": {
                **page["data"]["sources"],
                "pool": {"kind": "folder", "images": "images/pool"},
            },
            "val": coco | {"images": "images/val"},
            "tags": {"classes": list(SCENE_CLASSES), "from_boxes": True},
            "batch_size": 2,
        },
        "input": {"short": 64, "long": 96},
        "model": {"backbone": {"name": "resnet10t"}, "fpn": {"channels": 16, "levels": 3}},
        "tasks": {"boxes": {"kind": "detection", "head": {"depth": 1}}, "shown": {"kind": "tags"}},
        "silver": {"pools": ["pool"], "gates": "warn"} | page["silver"],
        "balancing": page["balancing"],
        "mix": {"mode": "concat"},
        "device": "cpu",
        "train": {"steps": 4, "precision": "fp32", "log_every": 1, "pictures_every": None},
        "export": {"format": None},
    }


def table_of(coco_file, table):
    """Writes the boxes of a COCO file as the page's table."""
    coco = json.loads(coco_file.read_text())
    names = {row["id"]: row["name"] for row in coco["categories"]}
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "class", "x1", "y1", "x2", "y2"])
        for image in coco["images"]:
            own = [row for row in coco["annotations"] if row["image_id"] == image["id"]]
            for row in own:
                x, y, w, h = row["bbox"]
                rows.writerow([image["file_name"], names[row["category_id"]], x, y, x + w, y + h])
            if not own:
                rows.writerow([image["file_name"], "", "", "", "", ""])


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    render_scenes(root, ScenesSettings(**tree(root)["data"]["scenes"]))
    table_of(root / "annotations" / "gold.json", root / "gold.csv")
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*audit.*:UserWarning")
def test_the_page_s_parts_train_together_and_are_asked_for_no_more_after(modules, data, tmp_path):
    summary = run(settings_from(tree(data)), tmp_path / "run")
    assert "boxes/AP" in summary.metrics
    store = Store.open(tmp_path / "run" / "silver")
    assert store.card.name == "blobs" and store.card.classes == ("ball",)
    # a step trains one task: the total is its loss, twice
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [x for x in map(json.loads, lines) if "train/loss" in x]
    assert len(steps) == 4 and all(x["train/loss"] > 0 for x in steps)
    saved = (tmp_path / "run" / "settings.yaml").read_text()
    assert "blobs:BlobSettings" in saved and "contrast: 80" in saved
    for name in MODULES:  # who deploys the model has none of these files
        (modules / f"{name}.py").unlink()
        sys.modules.pop(name)
    load_predictor(tmp_path / "run" / "best.pt")


def test_the_table_has_the_boxes_of_the_coco_file(modules, data, tmp_path):
    settings = settings_from(tree(data)).data
    coco = CocoSource(images="images/gold", annotations="annotations/gold.json")
    space = settings.label_space()
    table = settings.sources["gold"].load("gold", data, space, tmp_path / "a")
    other = coco.load("gold", data, space, tmp_path / "b")
    by_name = {Path(other.path(i)).name: other.boxes(i) for i in range(len(other))}
    assert len(table) == len(other) == 4
    for i in range(len(table)):
        found, true = table.boxes(i), by_name[Path(table.path(i)).name]
        torch.testing.assert_close(found.boxes, true.boxes, rtol=0, atol=1e-3)
        assert found.classes.tolist() == true.classes.tolist()
    assert table.grade is Grade.GOLD and (table.coverage == (other.annotations is not None)).any()


def test_a_changed_reader_reads_anew(modules, data, tmp_path):
    source, space = settings_from(tree(data)).data.sources["gold"], settings_from(tree(data)).data
    space, file = space.label_space(), modules / "table.py"
    before = source.load("gold", data, space, tmp_path / "cache")
    text = file.read_text()
    file.write_text(text.replace("float(row[name]) for name", "float(row[name]) / 2 for name"))
    assert file.read_text() != text
    sys.modules.pop("table")
    changed = settings_from(tree(data)).data.sources["gold"]
    after = changed.load("gold", data, space, tmp_path / "cache")
    np.testing.assert_allclose(after.annotations.boxes, before.annotations.boxes / 2, rtol=1e-5)


def test_code_from_elsewhere_is_part_of_what_decides_a_result(modules, data, tmp_path):
    resolved = settings_from(tree(data)).resolved()
    first = own_code(resolved, tmp_path)
    assert set(first) == {"blobs:BlobSettings", "table:TableSource", "turns:TurnsSettings"}
    (modules / "turns.py").write_text((modules / "turns.py").read_text() + "# another\n")
    second = own_code(resolved, tmp_path)
    assert {n for n in first if first[n] != second[n]} == {"turns:TurnsSettings"}


@pytest.mark.parametrize(
    ("section", "kind", "told"),
    [
        ("balancing", "nowhere:Config", "balancing: cannot import 'nowhere:Config'"),
        ("balancing", "blobs:BlobSettings", "is no subclass of detmtl.balancing.losses"),
        ("silver.teacher", "turns:TurnsSettings", "is no subclass of detmtl.teachers"),
        ("data.sources.gold", "half:Half", "'half:Half' lacks contents, fingerprint, parse"),
        ("balancing", "turns:TurnsSettings", "balancing.wait: unknown setting; known here: kind"),
        (
            "balancing",
            "dwaa",
            "there is no kind 'dwaa'; did you mean 'dwa'? there are dwa, famo, fixed",
        ),
    ],
)
def test_what_does_not_fit_is_told(modules, tmp_path, section, kind, told):
    (modules / "half.py").write_text(
        "from detmtl.data.source_settings import SourceSettings\n"
        "class Half(SourceSettings):\n    kind: str\n"
    )
    settings = tree(tmp_path)
    at = settings
    for key in section.split(".")[:-1]:
        at = at[key]
    at[section.split(".")[-1]] = {"kind": kind, "images": "i", "wait": 1}
    with pytest.raises(InputError, match=re.escape(told)):
        settings_from(settings)


def test_the_schema_of_editors_knows_the_way_out():
    schema = json.loads(settings_schema())
    parts = {"DataSettings": "val", "SilverSettings": "teacher", "RunSettings": "balancing"}
    for section, name in parts.items():
        of = schema["$defs"].get(section, schema)["properties"][name]
        assert '"pattern": "^[^:]+:[^:]+$"' in json.dumps(of), section
