"""Sources: flat arrays, the cache, subsets, folders without labels."""

import json
import pickle
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_files import NAMES, coco_data, save_coco, save_picture
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from detmtl.data.coco import CocoSource
from detmtl.data.flat import Annotations, FileNames, gather, save_arrays
from detmtl.data.folder import FolderSource
from detmtl.data.sources import AnySource
from detmtl.data.subset import Subset
from detmtl.data.voc import VocSource
from detmtl.data.yolo import YoloSource
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

CLASSES = LabelSpace.of(NAMES)


def load(root, **settings):
    return CocoSource(images="images", annotations="coco.json", **settings).load(
        "here", root, CLASSES, root / "cache"
    )


def test_file_names_are_flat_and_pickled_small():
    names = FileNames.of("/pictures", ["a.png", "ü/b c.jpg", "/elsewhere/d.png"])
    assert [names[i] for i in range(3)] == [
        "/pictures/a.png",
        "/pictures/ü/b c.jpg",
        "/elsewhere/d.png",
    ]
    assert list(names.paths()) == [names[i] for i in range(3)]
    assert names[-1] == "/elsewhere/d.png" and names.name(1) == "ü/b c.jpg"
    with pytest.raises(IndexError):
        names[3]
    picked = names.take(np.array([2, 0]))
    assert [picked.name(i) for i in range(2)] == ["/elsewhere/d.png", "a.png"]


def test_gather_picks_ragged_rows():
    offsets = np.array([0, 2, 2, 5])
    rows, picked = gather(offsets, np.array([2, 1, 0]))
    assert rows.tolist() == [2, 3, 4, 0, 1] and picked.tolist() == [0, 3, 3, 5]


def test_annotations_sort_by_picture_and_keep_their_order():
    boxes = np.arange(12).reshape(3, 4)
    a = Annotations.of(3, np.array([2, 0, 2]), boxes, np.array([5, 6, 7]))
    assert a.offsets.tolist() == [0, 1, 1, 3] and a.classes.tolist() == [6, 5, 7]
    assert a.boxes.dtype == np.float32 and a.image_index().tolist() == [0, 2, 2]
    part = a.take(np.array([2, 1]))
    assert part.offsets.tolist() == [0, 2, 2] and part.classes.tolist() == [5, 7]


def test_a_second_load_parses_nothing_and_maps_the_arrays(tmp_path, monkeypatch):
    first = load(save_coco(tmp_path, coco_data()))
    monkeypatch.setattr(CocoSource, "parse", lambda *_: pytest.fail("parsed again"))
    second = load(tmp_path, weight=0.5)
    assert second.weight == 0.5
    assert isinstance(second.annotations.boxes, np.memmap)
    for i in range(3):
        a, b = first.labels(i)["boxes"], second.labels(i)["boxes"]
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.classes, b.classes)
    monkeypatch.undo()
    data = coco_data()
    data["annotations"] = data["annotations"][:1]
    (tmp_path / "coco.json").write_text(json.dumps(data))
    assert len(load(tmp_path).annotations) == 1


def test_other_settings_and_classes_are_other_cache_entries(tmp_path):
    save_coco(tmp_path, coco_data())
    assert load(tmp_path).grade is Grade.GOLD
    silver = load(tmp_path, grade="silver")
    assert silver.grade is Grade.SILVER and silver.labels(0)["boxes"].grade.tolist() == [1]
    other = CocoSource(images="images", annotations="coco.json").load(
        "x", tmp_path, LabelSpace.of(NAMES[::-1]), tmp_path / "cache"
    )
    assert other.labels(0)["boxes"].classes.tolist() == [2]


def test_labels_do_not_write_through_to_the_cache(tmp_path):
    source = load(save_coco(tmp_path, coco_data()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.labels(0)["boxes"].boxes.zero_()
    assert source.labels(0)["boxes"].boxes.abs().sum() > 0


def test_a_pickled_source_does_not_grow_with_its_boxes(tmp_path):
    data = coco_data()
    few = len(pickle.dumps(load(save_coco(tmp_path / "few", data))))
    data["annotations"] = [
        {"id": i, "image_id": 10, "category_id": 1, "bbox": [1, 1, 2, 2]} for i in range(5000)
    ]
    source = load(save_coco(tmp_path / "many", data))
    text = pickle.dumps(source)
    assert len(text) < few + 200
    again = pickle.loads(text)
    assert isinstance(again.annotations.boxes, np.memmap) and len(again.labels(0)["boxes"]) == 5000
    part = pickle.loads(pickle.dumps(source.subset([1, 0])))  # not mapped, and still whole
    assert part.ids.tolist() == [20, 10] and len(part.labels(1)["boxes"]) == 5000


def test_subset_of_a_source_keeps_pictures_and_labels_together(tmp_path):
    data = coco_data()
    data["images"][0]["neg_category_ids"] = []
    source = load(save_coco(tmp_path, data))
    part = source.subset([2, 0])
    assert part.ids.tolist() == [30, 10] and part.path(1) == source.path(0)
    assert len(part.labels(0)["boxes"]) == 0 and part.labels(1)["boxes"].classes.tolist() == [0]
    assert part.labels(1)["boxes"].coverage.tolist() == [1, 0, 0]
    assert part.hashes() == [source.hashes()[2], source.hashes()[0]]


def test_subset_and_rest_are_complements_that_nest(tmp_path):
    save_coco(tmp_path, coco_data(20), 20)
    few = load(tmp_path, subset={"count": 5})
    more = load(tmp_path, subset={"share": 0.5})
    rest = load(tmp_path, subset={"count": 5, "rest": True})
    assert len(few) == 5 and len(more) == 10 and len(rest) == 15
    assert set(few.ids) < set(more.ids)
    assert sorted([*few.ids, *rest.ids]) == list(range(10, 210, 10))
    assert isinstance(few.ids, np.memmap) and few.ids.tolist() == sorted(few.ids.tolist())
    assert set(load(tmp_path, subset={"count": 5, "seed": 1}).ids) != set(few.ids)
    assert len(few.annotations) == sum(len(few.labels(i)["boxes"]) for i in range(5))


def test_subset_depends_on_the_bytes_alone():
    hashes = [f"{i:064x}" for i in range(10)]
    taken = Subset(count=4).pick(hashes, "x")
    shuffled = Subset(count=4).pick(hashes[::-1], "x")
    assert {hashes[i] for i in taken} == {hashes[::-1][i] for i in shuffled}


def test_subset_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match=r"subset.count is 3, but there are only 2 pictures"):
        Subset(count=3).pick(["a", "b"], "source 'x'")
    with pytest.raises(InputError, match="leaves none of 2 pictures"):
        Subset(count=2, rest=True).pick(["a", "b"], "source 'x'")
    for wrong in ({}, {"count": 1, "share": 0.5}, {"share": 0.0}, {"count": 0}):
        with pytest.raises(ValidationError):
            Subset(**wrong)


def test_a_missing_picture_is_left_out_only_if_asked(tmp_path):
    save_coco(tmp_path, coco_data())
    load(tmp_path, faults="drop")
    (tmp_path / "images" / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"1 pictures left out: .*1\.png: no such picture"):
        source = load(tmp_path, faults="drop")
    assert source.ids.tolist() == [10, 30] and source.annotations.classes.tolist() == [0]
    save_picture(tmp_path / "images" / "1.png", seed=1)
    assert len(load(tmp_path, faults="drop")) == 3


def test_a_part_never_has_a_picture_that_is_missing(tmp_path):
    save_coco(tmp_path, coco_data())
    there = {}
    for gone in (0, 1, 2):  # two of three are left each time, at the places 0 and 1
        path = tmp_path / "images" / f"{gone}.png"
        content = path.read_bytes()
        path.unlink()
        with pytest.warns(UserWarning, match="1 pictures left out"):
            source = load(tmp_path, faults="drop", subset={"count": 2})
        there[gone] = sorted(source.ids.tolist())
        path.write_bytes(content)
    assert there == {0: [20, 30], 1: [10, 30], 2: [10, 20]}


def test_folder_is_unlabelled(tmp_path):
    for i, name in enumerate(("b/2.png", "a.jpg", "c.png")):
        save_picture(tmp_path / "pool" / name, 20 + i, 30)
    source = FolderSource(images="pool").load("pool", tmp_path, CLASSES, tmp_path / "cache")
    assert [source.files.name(i) for i in range(3)] == ["a.jpg", "b/2.png", "c.png"]
    assert source.sizes.tolist() == [[21, 30], [20, 30], [22, 30]]
    assert source.labels(0) == {} and source.annotations is None
    assert source.coverage.tolist() == [[0, 0, 0]] and source.classes == tuple(NAMES)
    assert len(source.subset([1]).labels(0)) == 0
    save_picture(tmp_path / "pool" / "d.png")
    assert len(FolderSource(images="pool").load("pool", tmp_path, CLASSES, tmp_path / "cache")) == 4


def test_pictures_of_telephones_that_a_pool_leaves_out_are_told(tmp_path):
    """At every start, also where they come after the others have been read."""
    settings = FolderSource(images="pool")
    for i, name in enumerate(("a.jpg", "b.jpg")):
        save_picture(tmp_path / "pool" / name, seed=i)
    (tmp_path / "pool/b.jpg").rename(tmp_path / "pool/b.JFIF")  # a JPEG
    assert len(settings.load("pool", tmp_path, CLASSES, tmp_path / "cache")) == 2
    for name in ("c.HEIC", "d.heic", "e.dng"):
        (tmp_path / "pool" / name).write_bytes(b"")
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"3 pictures are passed over, as \.dng and \.heic are"
        ):
            assert len(settings.load("pool", tmp_path, CLASSES, tmp_path / "cache")) == 2


def test_folder_with_faults(tmp_path):
    (tmp_path / "pool").mkdir()
    settings = FolderSource(images="pool")
    with pytest.raises(InputError, match="pool: has no pictures"):
        settings.load("pool", tmp_path, CLASSES, tmp_path / "cache")
    with pytest.raises(InputError, match="`covers` is set, but a folder has no labels"):
        FolderSource(images="pool", covers=["cat"]).load("p", tmp_path, CLASSES, tmp_path / "c")
    (tmp_path / "pool" / "a.jpg").write_text("no picture")
    for faults in ("error", "drop"):
        with pytest.raises(InputError, match=r"a\.jpg: is not a picture"):
            FolderSource(images="pool", faults=faults).load("p", tmp_path, CLASSES, tmp_path / "c")
    save_picture(tmp_path / "pool" / "b.png")
    with pytest.warns(UserWarning, match=r"1 fault left out: .*a\.jpg"):
        source = FolderSource(images="pool", faults="drop").load(
            "p", tmp_path, CLASSES, tmp_path / "c"
        )
    assert len(source) == 1


def test_two_writers_of_one_cache_entry_do_not_disturb_each_other(tmp_path):
    for value in (1, 2):
        save_arrays(tmp_path / "deep" / "entry", {"a": np.full(3, value)}, {"n": value})
    assert np.load(tmp_path / "deep" / "entry" / "a.npy").tolist() == [1, 1, 1]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["entry"]
    mode = (tmp_path / "deep").stat().st_mode
    assert (tmp_path / "deep" / "entry").stat().st_mode == mode, "as open as any other folder"


def test_kinds_are_told_apart():
    adapter = TypeAdapter(AnySource)
    kinds = {
        "coco": (CocoSource, {"annotations": "a.json"}),
        "voc": (VocSource, {"annotations": "xml"}),
        "yolo": (YoloSource, {"labels": "labels", "names": ["cat"]}),
        "folder": (FolderSource, {}),
    }
    for kind, (cls, more) in kinds.items():
        settings = adapter.validate_python({"kind": kind, "images": "i", **more})
        assert isinstance(settings, cls) and settings.weight == 1.0
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "coco", "images": "i", "annotations": "a", "weigth": 2})
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "folder", "images": "i", "weight": 0})


def test_a_folder_takes_the_pictures_that_a_file_lists(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    space, cache = LabelSpace.of(["cat"]), tmp_path / "cache"

    def load(*names):
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        (tmp_path / "train.json").write_text(json.dumps({"images": images}))
        return FolderSource(images=".", listed="train.json").load("pool", tmp_path, space, cache)

    assert [load("c.png", "a.png").files.name(i) for i in (0, 1)] == ["a.png", "c.png"]
    assert len(load("b.png")) == 1  # another list is no old cache
    with pytest.raises(InputError, match=r"names 1 pictures .* such as d.png"):
        load("a.png", "d.png")
    for text, told in (
        ("[]", "train.json: has no list 'images'"),
        ('{"images": 3}', "train.json: has no list 'images'"),
        (
            '{"images": [{"file_name": "a.png"}, {"id": 2}]}',
            "image at position 1: has no 'file_name'",
        ),
        ('{"images": [3]}', "image at position 0: has no 'file_name'"),
        ("{", "train.json: is not JSON"),
    ):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(InputError, match=told):
            FolderSource(images=".", listed="train.json").load("pool", tmp_path, space, cache)
    with pytest.raises(InputError, match=r"gone\.json: cannot be read"):
        FolderSource(images=".", listed="gone.json").load("pool", tmp_path, space, cache)


def test_a_list_of_lvis_has_addresses_and_its_annotations_are_not_held(tmp_path, monkeypatch):
    for name in ("train2017/1.png", "train2017/2.png", "val2017/1.png"):
        save_picture(tmp_path / name)
    url = "http://images.cocodataset.org/train2017/2.png"
    rows = [{"id": i, "bbox": [1, 1, 2, 2], "segmentation": [[0.5] * 40]} for i in range(40_000)]
    (tmp_path / "lvis.json").write_text(
        json.dumps({"images": [{"id": 2, "coco_url": url}], "annotations": rows})
    )
    monkeypatch.setattr("detmtl.data.json_file.BLOCK", 1000)
    settings = FolderSource(images=".", listed="lvis.json")
    tracemalloc.start()
    source = settings.load("pool", tmp_path, LabelSpace.of(["cat"]), tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [source.files.name(i) for i in range(len(source))] == ["train2017/2.png"]
    assert peak < (tmp_path / "lvis.json").stat().st_size, "parsed, they need several times that"


def test_boxes_by_people_leave_out_a_models_and_what_it_looked_for(tmp_path):
    save_coco(tmp_path, coco_data())
    gold = load(tmp_path)
    assert gold.boxes_by_people() is gold
    grade = np.full(len(gold.annotations), Grade.SILVER, np.uint8)
    written = replace(gold, grade=Grade.SILVER, annotations=replace(gold.annotations, grade=grade))
    none = written.boxes_by_people()
    assert none.annotations is None and none.coverage.shape == (1, len(NAMES))
    assert not none.coverage.any() and none.grade == Grade.SILVER
    grade = grade.copy()
    grade[-1] = Grade.GOLD
    mixed = replace(written, annotations=replace(gold.annotations, grade=grade))
    own = mixed.boxes_by_people()
    assert own.annotations.boxes.tolist() == gold.annotations.boxes[-1:].tolist()
    assert own.annotations.image_index().tolist() == [gold.annotations.image_index()[-1]]
    assert not own.coverage.any() and len(own) == len(gold)
