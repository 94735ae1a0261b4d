"""A model of maps and tags teaches another: its silver is written, audited, chosen and trained on."""

import json

import numpy as np
import pytest

from detmtl.config import settings_from
from detmtl.data.map_files import read_values
from detmtl.data.scenes import SCENE_CLASSES, TAGS
from detmtl.recipe import run
from detmtl.silver.store import Store

CLASSES = ("background", *SCENE_CLASSES)
TASKS = {"map": {"kind": "semantic"}, "weather": {"kind": "tags"}}
GATES = "ignore:.*on 'val':UserWarning"
"""A model of a few steps is no good teacher, and the audit's gates say so."""


def _settings(root, **changed):
    def source(split, kind, **more):
        maps = {"folder": f"semantic/{split}", "categories": "semantic/categories.json"}
        tags = {"file": f"annotations/{split}.json"}
        labels = {} if kind == "folder" else {"maps": maps, "tags": tags}
        return {"kind": kind, "images": f"images/{split}", **labels, **more}

    def gold(split):
        return source(split, "coco", annotations=f"annotations/{split}.json")

    tree = {
        "device": "cpu",
        "data": {
            "root": str(root),
            "scenes": {"gold": 4, "pool": 4, "val": 4, "test": 0, "size": [64, 96]},
            "classes": list(SCENE_CLASSES),
            "maps": {"classes": list(CLASSES)},
            "tags": {"classes": list(TAGS)},
            "sources": {"gold": gold("gold")},
            "val": gold("val"),
            "batch_size": 2,
        },
        "input": {"short": 64, "long": 96},
        "model": {"backbone": {"name": "test_efficientnet"}, "fpn": {"channels": 8, "levels": 3}},
        "tasks": TASKS,
        "mix": {"mode": "gold"},
        "train": {"steps": 4, "precision": "fp32", "log_every": 1, "pictures_every": None},
    }
    if "silver" in changed:
        tree["data"]["sources"]["pool"] = source("pool", "folder")
        tree["mix"], tree["export"] = {"mode": "silver"}, {"format": None}
    return settings_from(tree | changed)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of the pictures and of a run that made a model of maps and tags, and its file."""
    root = tmp_path_factory.mktemp("dense")
    run(_settings(root / "data"), root / "teacher")
    return root


def _silver(root, folder, teacher, **select):
    """Runs a recipe whose student has silver alone; returns the teacher's store and what was learned."""
    teacher = teacher | {"name": "t"}
    silver = {"teacher": teacher, "pools": ["pool"], "gates": "warn", **select}
    run(_settings(root / "data", silver=silver), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {k: v for line in lines for k, v in line.items() if k.startswith("train/")}
    return Store.open(folder / "silver", "t"), losses


@pytest.mark.slow
@pytest.mark.filterwarnings(GATES)
def test_maps_of_a_checkpoint(taught, tmp_path):
    teacher = {"kind": "checkpoint", "path": str(taught / "teacher/best.pt"), "task": "map"}
    store, losses = _silver(taught, tmp_path, teacher, select_maps={"weight": "one"})
    assert store.card.task == "maps" and store.card.classes == CLASSES
    records = {record.file: record for record in store.records()}
    assert len(records) == 8 and all(r.confidence is not None for r in records.values())
    assert len(list(store.path.glob("audit/*/maps.json"))) == 1
    (folder,) = store.path.glob("select/*")
    names = sorted(path.name for path in (folder / "maps").iterdir())
    assert len(names) == 4
    record = records[f"images/pool/{names[0].replace('.png', '.jpg')}"]
    chosen = read_values(folder / "maps" / names[0])
    known = chosen < len(CLASSES)
    assert known.any() and (chosen == record.classes)[known].all()
    assert np.isfinite(losses["train/map/pixel"]) and losses["train/map/pixel"] > 0
    assert "train/weather/tag" not in losses, "the pool has no other labels"


@pytest.mark.slow
@pytest.mark.filterwarnings(GATES)
def test_tags_of_an_exported_file(taught, tmp_path):
    path = str(taught / "teacher/model.torchscript")
    teacher = {"kind": "torchscript", "path": path, "task": "weather"}
    select = {"absent_below": 0.1, "shown_from": 0.1, "weight": "one"}
    store, losses = _silver(taught, tmp_path, teacher, select_tags=select)
    assert store.card.task == "tags" and store.card.classes == TAGS
    records = {record.file: record for record in store.records()}
    assert len(records) == 8 and len(list(store.path.glob("audit/*/tags.json"))) == 1
    (folder,) = store.path.glob("select/*")
    chosen = json.loads((folder / "tags.json").read_text())
    assert len(chosen["images"]) == 4
    for row in chosen["images"]:
        scores = records[f"images/pool/{row['file_name']}"].scores
        assert row["tags"] == [tag for tag, score in zip(TAGS, scores, strict=True) if score >= 0.1]
    assert np.isfinite(losses["train/weather/tag"]) and losses["train/weather/tag"] > 0
    assert "train/map/pixel" not in losses, "the pool has no other labels"


@pytest.mark.slow
@pytest.mark.filterwarnings(GATES)
def test_tags_of_a_teacher_that_the_run_trains_itself(taught, tmp_path):
    teacher = {"kind": "gold", "task": "weather", "train": {"steps": 2}}
    silver = {"teacher": teacher, "pools": ["pool"], "gates": "warn"}
    run(_settings(taught / "data", silver=silver), tmp_path)
    store = Store.open(tmp_path / "silver")
    assert (store.card.task, store.card.classes, len(store)) == ("tags", TAGS, 8)


@pytest.mark.slow
def test_maps_and_tags_of_the_average_of_the_moment(taught, tmp_path):
    """Mode online, whose audits are kept by batch and kind."""
    tree = _settings(taught / "data").resolved()
    folder = {"kind": "folder", "images": "images/pool"}
    tree["data"]["sources"]["pool"] = folder
    changed = {
        "data": tree["data"],
        "mix": {"mode": "online", "burn_in": 0.3},
        "online": {
            "labels": ["maps", "tags"],
            "audit_every": 2,
            "select_tags": {"shown_from": 0.2},
        },
        "train": {"steps": 6, "precision": "fp32", "ema": 0.5, "log_every": 1, "save_every": 2},
        "export": {"format": None},
    }
    settings = _settings(taught / "data", **changed)
    run(settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    shares = {r["step"]: r["loss_share/pool"] for r in lines if "loss_share/pool" in r}
    assert shares[1] == shares[2] == 0 and all(shares[step] > 0 for step in (3, 4, 5, 6))
    weak = [f"online/weak_audits_of_{kind}" for kind in ("maps", "tags")]
    assert all(r[name] == 0 for r in lines for name in weak if name in r)
    made = sorted(
        str(p.relative_to(tmp_path / "run/online")) for p in tmp_path.glob("run/online/*/*")
    )
    assert made == [f"{n:08d}/{kind}" for n in (2, 4) for kind in ("maps", "tags")]
    store = Store.open(tmp_path / "run/online/00000002/maps")
    assert (store.card.task, store.card.classes, len(store)) == ("maps", CLASSES, 4)
    assert len(list(store.path.glob("audit/*/maps.json"))) == 1
