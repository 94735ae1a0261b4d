"""The task of docs/add_a_task.md, from a file outside of the package: trained, scored, exported."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from detmtl.config import settings_from
from detmtl.data.scenes import SCENE_CLASSES
from detmtl.engine.drawing import draw
from detmtl.inference.export import export
from detmtl.inference.predictor import load_predictor
from detmtl.recipe import run
from detmtl.structures.checkpoint import read_checkpoint
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_task.md"


def block(mark):
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, mark
    return found[1]


@pytest.fixture
def module(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "busy.py").write_text(block("the task"))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("busy", None)


def settings(root, tasks):
    def source(split):
        return {
            "kind": "coco",
            "images": f"images/{split}",
            "annotations": f"annotations/{split}.json",
        }

    return settings_from(
        {
            "data": {
                "root": str(root),
                "scenes": {"gold": 4, "pool": 0, "val": 4, "test": 0, "size": [64, 96]},
                "classes": list(SCENE_CLASSES),
                "sources": {"gold": source("gold")},
                "val": source("val"),
                "batch_size": 2,
            },
            "input": {"short": 64, "long": 96},
            "model": {"backbone": {"name": "resnet10t"}, "fpn": {"channels": 16, "levels": 3}},
            "tasks": tasks,
            "mix": {"mode": "gold"},
            "device": "cpu",
            "train": {"steps": 3, "precision": "fp32", "log_every": 1, "pictures_every": 2},
            "balancing": {"kind": "famo"},
        }
    )


@pytest.mark.slow
def test_the_page_s_task_trains_is_scored_and_exported(module, tmp_path, monkeypatch):
    drawn = set()

    def noted(image, labels, names, colors="grade", least=0.0):
        drawn.add((type(labels).__name__, tuple(names)))
        return draw(image, labels, names, colors, least)

    monkeypatch.setattr("detmtl.engine.recorder.draw", noted)
    tasks = YAML(typ="safe").load(block("its settings"))["tasks"]
    tasks["boxes"]["head"] = {"depth": 1}
    summary = run(settings(tmp_path / "data", tasks), tmp_path / "run")
    assert 0 <= summary.metrics["busy/accuracy"] <= 1 and "boxes/AP" in summary.metrics
    # its tags have its own name; the truth that it learns from are boxes
    assert drawn == {("BoxLabels", tuple(SCENE_CLASSES)), ("TagLabels", ("busy",))}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("train/busy/busy") for line in lines]
    assert any(x is not None and x > 0 for x in losses)
    file, checkpoint = (
        load_predictor(tmp_path / "run" / n, trust=True) for n in ("model.torchscript", "best.pt")
    )
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    a, b = file.predict([image])[0]["busy"], checkpoint.predict([image])[0]["busy"]
    torch.testing.assert_close(a.targets, b.targets, rtol=1e-4, atol=1e-5)
    assert file.names["busy"] == ("busy",)
    export(tmp_path / "run" / "best.pt", tmp_path / "m.onnx", "onnx", trust=True)
    c = load_predictor(tmp_path / "m.onnx").predict([image])[0]["busy"]
    torch.testing.assert_close(c.targets, b.targets, rtol=1e-4, atol=1e-5)
    # it learns from boxes, whose classes say nothing of its own: as a teacher it abstains from none
    teacher = CheckpointTeacherSettings(path="best.pt", task="busy", trust=True)
    assert teacher.load(tmp_path / "run").card.searched == ("busy",)
    assert read_checkpoint(tmp_path / "run" / "best.pt")["searched"] == {
        "boxes": list(SCENE_CLASSES)
    }


def test_pictures_that_nobody_looked_at_mean_no_term(module):
    config = importlib.import_module("busy").BusyConfig(kind="busy:BusyConfig")
    task = config.build("busy", [8], [32], 2, ["a", "b"])
    nobody = replace(
        BoxLabels.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2),
        coverage=torch.zeros(2),
    )
    picture, info = torch.zeros(3, 64, 64, dtype=torch.uint8), ImageInfo(0, "0.jpg", 64, 64, "s")
    batch = Batch.of([Sample(picture, {"boxes": nobody}, info)])
    assert task.loss(task([torch.zeros(1, 8, 2, 2)]), batch) == {}


def test_it_is_found_in_the_folder_that_a_script_is_called_from(module, monkeypatch):
    of_a_script = [p for p in sys.path if p not in ("", str(module))]
    monkeypatch.setattr(sys, "path", of_a_script)
    monkeypatch.chdir(module)
    found = settings(module, {"busy": {"kind": "busy:BusyConfig", "most": 2}})
    assert found.tasks["busy"].most == 2
    assert sys.path[-1] == str(module)  # nothing in it hides what is installed


OWN_DETECTION = """
from detmtl.tasks.detection import DetectionConfig

class Config(DetectionConfig):
    kind: str
"""


@pytest.mark.slow
def test_a_detection_task_of_ones_own_labels_its_pool_online(module, tmp_path):
    (module / "busy.py").write_text((module / "busy.py").read_text() + OWN_DETECTION)
    tasks = {"busy": {"kind": "busy:BusyConfig"}, "boxes": {"kind": "busy:Config"}}
    own = settings(tmp_path / "data", tasks).resolved()
    own["data"]["scenes"]["pool"] = 2
    own["data"]["sources"]["pool"] = {"kind": "folder", "images": "images/pool"}
    own["mix"], own["train"]["steps"] = {"mode": "online"}, 1
    online = settings_from(own).when_online()
    assert online is not None and online.finders == {"boxes": "boxes"}
    run(settings_from(own), tmp_path / "run")
    own["tasks"].pop("boxes")
    with pytest.raises(InputError, match=r"no task finds boxes.*says by `finds` what it writes"):
        settings_from(own)


def test_only_tasks_that_say_what_they_find_write_silver(module, tmp_path):
    tasks = {"busy": {"kind": "busy:BusyConfig"}, "boxes": {"kind": "detection"}}
    assert settings(tmp_path, tasks).silver_tasks() == {"boxes": "boxes"}
    text = (module / "busy.py").read_text()
    (module / "busy.py").write_text(
        text.replace("    kind: str\n", '    finds: str = "tag"\n    kind: str\n')
    )
    sys.modules.pop("busy")
    with pytest.raises(InputError, match="has finds 'tag'; silver is of boxes, maps, tags"):
        settings(tmp_path, tasks)


def test_a_setting_of_it_that_is_unknown_is_told(module, tmp_path):
    with pytest.raises(InputError, match="mots"):
        settings(tmp_path, {"busy": {"kind": "busy:BusyConfig", "mots": 3}})


def test_a_module_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot import 'nowhere\.busy:Config'"):
        settings(tmp_path, {"busy": {"kind": "nowhere.busy:Config"}})


@pytest.mark.slow
def test_one_without_an_exporter_is_told_before_the_training(module, tmp_path):
    text = (module / "busy.py").read_text()
    start = text.index("    def exporter")
    (module / "busy.py").write_text(text[:start] + text[text.index("class BusyDecoder") - 2 :])
    with pytest.raises(InputError, match=r"have an `exporter`.*boxes, busy.*export.format: null"):
        run(
            settings(
                tmp_path / "data",
                {"boxes": {"kind": "detection"}, "busy": {"kind": "busy:BusyConfig"}},
            ),
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "last.pt").exists()


def refused(module, tmp_path, old, new, told):
    """Runs with a part of the page's task replaced, and sees that it is told."""
    text = (module / "busy.py").read_text()
    assert old in text
    (module / "busy.py").write_text(text.replace(old, new))
    tasks = {"busy": {"kind": "busy:BusyConfig"}}
    with pytest.raises(InputError, match=told):
        run(settings(tmp_path / "data", tasks), tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("return Busy(", "Busy(", "tasks.busy: `build` gave NoneType, which is no"),
        ("self.name, self.labels", "_, self.labels", "tasks.busy: its task has no `name`"),
        ("self.name, self.labels", "self.name, _", "tasks.busy: its task has no `labels`"),
        ("= name, labels", '= "b", labels', "tasks.busy: its task has the name 'b'; give it that"),
        ("return Accuracy(self.most)", "pass", "its `metric` gives, NoneType, has no update()"),
        ('"busy": losses', '"bsy": losses', "its loss gave 'bsy', and its `terms` are busy"),
        (
            'LossTerms.of({"busy": losses * scale})',
            "losses.sum()",
            "its loss gave Tensor; it must be",
        ),
        (
            "return LossTerms.of(",
            "return dict(",
            r"for 'busy' no scalar tensor but one of shape \(2,\)",
        ),
        (
            "self, name, channels,",
            "self, channels,",
            "tasks.busy: build of its settings does not take",
        ),
        ("class Busy(Task):", "class Busy(Task:", r"cannot import 'busy:BusyConfig': .*line 3\d"),
    ],
)
def test_a_promise_that_a_task_breaks_is_told_with_its_name(module, tmp_path, old, new, told):
    refused(module, tmp_path, old, new, told)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("for p in found]", "for p in found[:1]]", r"tasks.busy: its decode gave 1 for 2 pictures"),
        (
            "return [TagLabels(p",
            "return; [TagLabels(p",
            r"tasks.busy: its decode gave NoneType for 2 p",
        ),
        ('return {"accuracy"', '{"accuracy"', r"tasks.busy: its metric's compute gave NoneType"),
    ],
)
def test_what_a_task_gives_when_it_is_scored_is_told_with_its_name(
    module, tmp_path, old, new, told
):
    refused(module, tmp_path, old, new, told)
