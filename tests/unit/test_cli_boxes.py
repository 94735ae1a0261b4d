"""The verbs, for a store of boxes."""

import json
from dataclasses import replace

import pytest
from audit_stand_ins import moved, scenes, stored
from PIL import Image
from silver_stand_ins import gold, pictures, store_of

from detmtl.cli import main
from detmtl.data.coco_writer import write_coco_annotations
from detmtl.data.flat import FileNames
from detmtl.data.source import Source
from detmtl.silver.audit import Audit

A, B = [1, 1, 11, 11], [1, 2, 11, 12]  # IoU .82


def test_select_audits_with_the_suppression_that_it_selects_with(tmp_path):
    source = gold(pictures(tmp_path / "p", 2), [(0, A, 0, 0)])
    write_coco_annotations(tmp_path / "gold.json", source)
    found = [[(A, 0, 0.9), (B, 0, 0.8)], []]
    store_of(tmp_path / "store", ("person", "car"), source, found)
    words = ["--store", tmp_path / "store", "--set", "nms=0.9"]
    words += ["--annotations", tmp_path / "gold.json", "--images", tmp_path / "p"]
    assert main([str(w) for w in ("select", *words, "--out", tmp_path / "out.json")]) == 0
    (path,) = (tmp_path / "store").rglob("audit.json")
    assert len(Audit.load(path).boxes) == 2


def test_what_select_wrote_is_no_gold(tmp_path, capsys):
    source = gold(pictures(tmp_path / "p", 2), [(0, A, 0, 0)])
    store_of(tmp_path / "store", ("person", "car"), source, [[(A, 0, 0.9)], []])
    store, out = ("--store", tmp_path / "store"), tmp_path / "silver.json"
    assert main([str(w) for w in ("select", *store, "--out", tmp_path)]) == 2
    assert f"--out {tmp_path}: is a folder" in capsys.readouterr().err
    assert main([str(w) for w in ("select", *store, "--out", out)]) == 0
    asked = [*store, "--annotations", out, "--images", tmp_path / "p"]
    for words in (["audit", *asked], ["select", *asked, "--out", tmp_path / "again.json"]):
        assert main([str(word) for word in words]) == 2
        assert "source 'silver': a model wrote its labels" in capsys.readouterr().err


def test_options_that_would_change_nothing_are_refused(tmp_path, capsys):
    source = gold(pictures(tmp_path / "p", 2), [(0, A, 0, 0)])
    write_coco_annotations(tmp_path / "gold.json", source)
    store_of(tmp_path / "store", ("person", "car"), source, [[(A, 0, 0.9)], []])
    select = ["select", "--store", tmp_path / "store", "--out", tmp_path / "out.json"]
    audit = ["audit", "--store", tmp_path / "store", "--images", tmp_path / "p"]
    audit += ["--annotations", tmp_path / "gold.json"]
    for words, told in (
        ([*select, "--maps", "m"], "--maps: would change nothing, since"),
        ([*audit, "--maps", "m", "--categories", "c"], "--maps, --categories: would change"),
        ([*audit, "--tags", "t"], "--tags: would change nothing"),
        (
            [*select, "--images", tmp_path / "p"],
            "--images: is of --annotations, which is not given",
        ),
        ([*select, "--faults", "drop"], "--faults: is of --annotations"),
    ):
        assert main([str(word) for word in words]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


GATES = {
    None: (12, {}),
    "classes permuted": (12, {"change": lambda r: replace(r, classes=(r.classes + 1) % 6)}),
    "wrong format": (12, {"change": moved(lambda b, w, h: b[:, [1, 0, 3, 2]])}),
    "too many boxes": (12, {"extra": 40}),
    "too little gold": (2, {}),
}


@pytest.mark.parametrize("gate", GATES)
def test_audit_ends_with_status_2_at_a_gate(tmp_path, capsys, gate):
    count, faults = GATES[gate]
    made = scenes(count=count)
    for i, (height, width) in enumerate(made.sizes.tolist()):
        Image.new("RGB", (width, height), (10 * i, 90, 60)).save(tmp_path / f"{i}.jpg")
    files = FileNames.of(tmp_path, [f"{i}.jpg" for i in range(count)])
    source = Source(**{**vars(made), "files": files})
    write_coco_annotations(tmp_path / "gold.json", source)
    stored(tmp_path / "store", source, **faults)
    words = ["audit", "--store", tmp_path / "store", "--images", tmp_path]
    words += ["--annotations", tmp_path / "gold.json"]
    words += ["--set", "threshold=0.05", "--set", "ignore_from=null"]
    status = main([str(word) for word in words])
    told = capsys.readouterr().err
    if gate is None:
        assert status == 0 and told == ""
    else:
        assert status == 2 and f"error: {tmp_path / 'store'}: audit: {gate}: " in told


def _sent(out):
    return [image["file_name"] for image in json.loads(out.read_text())["images"]]


@pytest.mark.filterwarnings("default::UserWarning")
def test_select_takes_the_pictures_of_a_folder_as_it_is_now(tmp_path, capsys):
    folder = tmp_path / "pool" / "a"
    pool, val = pictures(folder, 4), pictures(tmp_path / "val", 2, first=20)
    store_of(tmp_path / "store", ("person", "car"), pool, [[(A, 0, 0.9)]] * 4)
    store_of(tmp_path / "store", ("person", "car"), val, [[(B, 1, 0.9)]] * 2)
    (folder / "000.png").rename(folder / "renamed.png")
    (folder / "001.png").unlink()
    (folder / "again.png").write_bytes((folder / "002.png").read_bytes())
    (folder / "003.png").write_bytes((tmp_path / "val/000.png").read_bytes())  # replaced
    out = tmp_path / "sent.json"
    words = ["select", "--store", tmp_path / "store", "--out", out]
    assert main([str(word) for word in words]) == 2
    assert "names for two pictures each" in (told := capsys.readouterr().err)
    assert "select --pool" in told

    words += ["--pool", tmp_path / "pool"]
    assert main([str(word) for word in words]) == 0
    assert "the pool has them already" in capsys.readouterr().err
    assert _sent(out) == ["a/002.png", "a/003.png", "a/renamed.png"]
    found = json.loads(out.read_text())["annotations"]
    assert [(a["image_id"], a["category_id"]) for a in found] == [(1, 1), (2, 2), (3, 1)]


def test_select_leaves_out_what_people_have_verified(tmp_path, capsys):
    pool, out = pictures(tmp_path / "pool", 3), tmp_path / "sent.json"
    store_of(tmp_path / "store", ("person", "car"), pool, [[(A, 0, 0.9)]] * 3)
    done = tmp_path / "verified.json"
    write_coco_annotations(done, gold(pool, [(0, A, 0, 0)]).subset([0, 2]))
    words = ["select", "--store", tmp_path / "store", "--out", out, "--without", done]
    assert main([str(word) for word in words]) == 2
    assert "--without: is of --pool" in capsys.readouterr().err
    assert main([str(word) for word in (*words, "--pool", tmp_path / "pool")]) == 0
    assert _sent(out) == ["001.png"]

    pictures(tmp_path / "other" / "b", 3)
    assert main([str(word) for word in (*words, "--pool", tmp_path / "other")]) == 2
    assert "names none of the pictures" in (told := capsys.readouterr().err)
    assert "'000.png', and there 'b/000.png'" in told
