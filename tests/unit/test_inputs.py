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
from detmtl.inputs import input_hashes

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
