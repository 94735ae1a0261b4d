"""What makes the files behind a run other files: what is in them, not when and where they were written."""

import os
import shutil
from pathlib import Path

import pytest
from coco_files import NAMES, coco_data, save_coco, save_picture

from detmtl.config import RunSettings
from detmtl.data.coco import CocoSource
from detmtl.data.folder import FolderSource
from detmtl.data.maps import MapFolder
from detmtl.data.source_settings import SourceSettings
from detmtl.data.voc import VocSource
from detmtl.data.yolo import YoloSource
from detmtl.inputs import input_hashes, named_files

XML = "<annotation><object><name>cat</name></object></annotation>"
FILES = {
    "labels/0.txt": "0 0.5 0.5 0.5 0.5\n",
    "xml/0.xml": XML,
    "list.txt": "0\n",
    "listed.json": '{"images": [{"file_name": "0.png"}]}',
    "categories.json": "[]",
}
SOURCES = {
    "folder": FolderSource(images="images", listed="listed.json"),
    "coco": CocoSource(images="images", annotations="coco.json"),
    "yolo": YoloSource(images="images", labels="labels", names=NAMES),
    "voc": VocSource(images="images", annotations="xml", list="list.txt"),
    "maps": CocoSource(
        images="images",
        annotations="coco.json",
        maps=MapFolder(folder="maps", categories="categories.json"),
    ),
}
LABELS = {  # what is changed, byte for byte as long as before
    "folder": "listed.json",
    "coco": "coco.json",
    "yolo": "labels/0.txt",
    "voc": "xml/0.xml",
    "maps": "maps/0.png",
}


@pytest.fixture
def root(tmp_path) -> Path:
    root = save_coco(tmp_path / "data", coco_data())
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    save_picture(root / "maps" / "0.png")
    return root


def found(root: Path, source: SourceSettings) -> str:
    gold = SOURCES["coco"]
    data = {"root": str(root), "classes": NAMES, "sources": {"one": source, "gold": gold}}
    data |= {"val": gold, "batch_size": 1, "maps": {"classes": ["cat"]} if source.maps else None}
    rest = {"model": {"backbone": {"name": "resnet18"}}, "tasks": {"boxes": {"kind": "detection"}}}
    rest |= {"train": {"steps": 1}, "mix": {"mode": "gold"}}
    settings = RunSettings.model_validate({"data": data, **rest})
    return input_hashes(settings, root.parent / "cache")["data.one"]


@pytest.mark.parametrize("kind", SOURCES)
def test_files_are_known_by_what_is_in_them(root, kind):
    source, before = SOURCES[kind], found(root, SOURCES[kind])
    stamped = source.fingerprint(root, root.parent / "cache")
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    assert found(root, source) == before, "touched"
    if not isinstance(source, CocoSource):
        assert source.fingerprint(root, root.parent / "cache") != stamped, (
            "parsed anew all the same"
        )
    shutil.copytree(root, root.parent / "copy")
    assert found(root.parent / "copy", source) == before, "copied"

    labels = root / LABELS[kind]
    content = bytearray(labels.read_bytes())
    content[-3] ^= 1
    labels.write_bytes(content)
    assert found(root, source) != before, "one bit of a label"


@pytest.mark.parametrize("kind", ["folder", "yolo", "voc"])
def test_another_picture_is_another_input(root, kind):
    before = found(root, SOURCES[kind])
    save_picture(root / "images" / "1.png", height=480)
    changed = found(root, SOURCES[kind])
    assert changed != before
    (root / "images" / "2.png").unlink()
    assert found(root, SOURCES[kind]) not in (before, changed)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_a_model_that_is_a_folder_is_known_by_its_files(tmp_path):
    model = tmp_path / "hf" / "tuned"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "vocab.txt", "optimizer.pt"):
        (model / name).write_text("1")
    tree = {"teacher": {"kind": "transformers", "model": "hf/tuned", "prompt": ""}, "root": "hf"}

    def named():
        return named_files(tree, tmp_path, tmp_path / "cache")

    before = named()
    assert {*before} == {f"hf/tuned: tuned/{n.name}" for n in model.iterdir()} - {
        "hf/tuned: tuned/optimizer.pt"
    }
    (model / "model.safetensors").write_text("other weights")
    assert changed(before, named()) == {"hf/tuned: tuned/model.safetensors"}


def test_a_name_of_two_files_stands_for_both(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    here, below = tmp_path / "names.txt", tmp_path / "data" / "names.txt"

    def named(root):
        return named_files(["names.txt"], root, tmp_path / "cache")

    here.write_text("cat")
    alone = named(tmp_path / "data")
    assert {*alone} == {"names.txt"} and alone == named(tmp_path) == named(Path("."))
    below.write_text("dog")
    both = named(tmp_path / "data")
    assert both["names.txt here"] == alone["names.txt"] != both["names.txt"] and len(both) == 2
    for path, text in ((here, "a bird"), (below, "a fish")):
        before = named(tmp_path / "data")
        path.write_text(text)
        assert len(changed(before, named(tmp_path / "data"))) == 1


def test_a_copy_of_the_data_holds_the_same_files(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for folder in ("data", "copy"):
        (tmp_path / folder / "names.txt").write_text("cat")

    def named(root):
        return named_files(["names.txt"], root, tmp_path / "cache")

    assert {*named(Path("."))} == {"names.txt"}
    assert named(Path(".")) == named(tmp_path / "copy"), "where both are in reach"
    for folder, name in (("data", "names.txt here"), ("copy", "names.txt")):
        before = named(tmp_path / "copy")
        (tmp_path / folder / "names.txt").write_text(f"cat of {folder}")
        assert name in changed(before, named(tmp_path / "copy"))
