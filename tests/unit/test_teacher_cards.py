"""What tells two teachers of one file apart: which output they take for which class, and which task."""

from types import SimpleNamespace

import pytest
import torch

from detmtl.inference.predictor import kind_of
from detmtl.inference.torchscript import deprecation_expected, save_torchscript
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER
from detmtl.structures.sample import ImageInfo
from detmtl.teachers import from_checkpoint
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings


class Nothing(torch.nn.Module):
    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return []


def test_a_torchscript_file_with_its_classes_at_other_labels(tmp_path):
    with deprecation_expected():
        torch.jit.save(torch.jit.script(Nothing()), tmp_path / "t.pt")
    one, other = (
        TorchScriptTeacherSettings(path="t.pt", classes=classes).load(tmp_path).card
        for classes in (["a", "N/A", "b"], ["a", "b", "N/A"])
    )
    assert one.classes == other.classes and one.identity() != other.identity()


def _task(labels, of=None, gives=None, names=("a",)):
    exporter = None if gives is None else SimpleNamespace(kind=gives)
    return SimpleNamespace(labels=labels, of=of, exporter=lambda: exporter, class_names=names)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Returns the card of a checkpoint of these tasks as teacher."""

    def card(tasks, searched=None, **settings):
        loaded = SimpleNamespace(tasks=tasks, short=64, long=96, searched=searched or {})
        names = {name: task.class_names for name, task in tasks.items()}
        kinds = {name: kind_of(task) for name, task in tasks.items()}
        describing = tuple(name for name, task in tasks.items() if task.of)
        predictor = SimpleNamespace(tasks=tasks, names=names, kinds=kinds, describing=describing)
        monkeypatch.setattr(from_checkpoint, "load_checkpoint", lambda file, trust: loaded)
        monkeypatch.setattr(from_checkpoint, "Predictor", lambda loaded, device: predictor)
        (tmp_path / "last.pt").write_bytes(b"weights")
        return CheckpointTeacherSettings(path="last.pt", **settings).load(tmp_path).card

    return card


def test_a_checkpoint_with_another_of_its_tasks(load):
    tasks = {"near": _task("boxes"), "far": _task("boxes")}
    one, other = (load(tasks, task=task) for task in ("near", "far"))
    assert one.identity() != other.identity()


SEVERAL = {
    "boxes": _task("boxes", names=("car",)),
    "colors": _task("boxes", of="boxes"),
    "map": _task("maps", names=("sky", "car")),
    "depth": _task("depth", gives="depth"),
    "busy": _task("boxes", gives="tags", names=("busy",)),
}


def test_the_card_says_what_the_task_gives_and_of_which_classes(load):
    cards = {name: load(SEVERAL, task=name) for name in ("boxes", "map", "busy")}
    assert {n: c.task for n, c in cards.items()} == {
        "boxes": "boxes",
        "map": "maps",
        "busy": "tags",
    }
    assert cards["map"].classes == ("sky", "car") and cards["busy"].classes == ("busy",)


def test_the_only_task_need_not_be_named(load):
    alone = {name: SEVERAL[name] for name in ("map", "depth")}
    assert load(alone).task == "maps"
    assert load(SEVERAL).task == "boxes", "the only one of boxes before all others"


def test_the_card_says_which_classes_nobody_looked_for(load):
    searched = {"map": ["sky"], "boxes": []}
    cards = {name: load(SEVERAL, searched, task=name) for name in ("boxes", "map", "busy")}
    assert {n: c.unsearched for n, c in cards.items()} == {
        "boxes": ("car",),
        "map": ("car",),
        "busy": (),  # the file does not say it
    }
    assert cards["map"].searched == ("sky",) and cards["busy"].searched == ("busy",)
    assert cards["map"].identity() != load(SEVERAL, task="map").identity()


@pytest.mark.parametrize("task", [None, "colors", "depth", "night"])
def test_a_task_that_is_not_clear_is_told_with_those_that_there_are(load, task):
    two = SEVERAL | {"cars": SEVERAL["boxes"]}
    told = (
        rf"is {task!r}, .*: boxes \(boxes\), map \(maps\), busy \(tags\), cars \(boxes\); name one"
    )
    with pytest.raises(InputError, match=told):
        load(two, task=task)
    with pytest.raises(InputError, match=r"that write boxes, maps or tags are: none$"):
        load({"depth": SEVERAL["depth"]})


class Both(torch.nn.Module):
    """What a file of a map and of tags gives."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found: list[dict[str, torch.Tensor]] = []
        for image in images:
            classes = torch.zeros_like(image[0])
            classes[0, 0] = 1
            found.append({"map": classes, "weather": torch.tensor([0.25, 0.5, 0.75])})
        return found


@pytest.fixture
def exported(tmp_path):
    """Returns the teacher of a file such as `export` writes."""
    of = {"map": ("maps", ["sky", "car"]), "weather": ("tags", ["night", "rain", "snow"])}
    tasks = {name: {"kind": kind, "classes": names} for name, (kind, names) in of.items()}
    about = {"task": None, "classes": [], "tasks": tasks}
    with deprecation_expected():
        save_torchscript(torch.jit.script(Both()), tmp_path / "both.pt", about)
    return lambda **settings: TorchScriptTeacherSettings(path="both.pt", **settings).load(tmp_path)


def _shown(teacher):
    image = torch.zeros(3, 2, 3, dtype=torch.uint8)
    (found,) = teacher.annotate([image], [ImageInfo(0, "0.jpg", 2, 3, "s")])
    return found


def test_classes_that_a_file_s_task_has_may_be_left_out(exported):
    night, sky = exported(task="weather", classes=["night", "N/A", "snow"]), exported(task="map")
    assert night.card.classes == ("night", "snow") and night.card.task == "tags"
    assert _shown(night).targets.tolist() == [0.25, 0.75]
    assert _shown(sky).classes.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert _shown(sky).weights is None, "a file of an earlier version"
    cars = exported(task="map", classes=["__background__", "car"])
    assert cars.card.identity() != sky.card.identity() != night.card.identity()
    assert _shown(cars).classes.tolist() == [[0, OTHER, OTHER], [OTHER] * 3]


def test_mistakes_about_a_file_s_tasks(exported, tmp_path):
    with pytest.raises(InputError, match=r"is None, .*: map \(maps\), weather \(tags\); name one"):
        exported()
    with pytest.raises(InputError, match=r"gave 3 tags, but teacher.classes names 2"):
        _shown(exported(task="weather", classes=["night", "rain"]))
    with pytest.raises(InputError, match=r"gave the class 1, but teacher.classes names 1"):
        _shown(exported(task="map", classes=["sky"]))
    with pytest.raises(InputError, match=r"task map of .* writes maps; leave them out"):
        exported(task="map", scale=1 / 255)
    with deprecation_expected():
        torch.jit.save(torch.jit.script(Nothing()), tmp_path / "t.pt")
    with pytest.raises(InputError, match="are: none"):
        TorchScriptTeacherSettings(path="t.pt", classes=["a"], task="map").load(tmp_path)
