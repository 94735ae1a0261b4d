"""What is written is read by tools that nobody here wrote, and comes back from them.

Most tests need their tool; those that the extra `test` does not install: pip install datumaro lvis.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import NAMES, annotation, coco_data, save_coco, save_picture

from detmtl.data.coco import CocoSource, read_labels
from detmtl.data.coco_writer import CocoImage, write_coco
from detmtl.data.voc import write_voc
from detmtl.data.yolo import write_yolo
from detmtl.silver.corrections import take_back, write_verified
from detmtl.structures.classes import LabelSpace
from detmtl.structures.labels import BoxLabels, Grade, Ignore

DATUMARO = Path(__file__).with_name("returned_by_datumaro.json")
"""The selection that `sent` writes, as datumaro 1.13.12 read and wrote it."""
LVIS_WRONG = {(10, 1), (10, 9), (20, 1), (20, 9), (30, 5)}
"""Picture and category of the detections in the pictures of `lvis_file` that lvis 0.5.3 counts as wrong."""


def tool(name):
    """Returns a package, its own warnings aside, or skips the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def sent(root, folder="images"):
    """Writes a selection of four pictures as `sent.json`: gold and silver, doubtful ones, nothing found."""
    labels = BoxLabels.of(
        torch.tensor([[1.125, 2, 11.5, 22], [20, 10, 64, 48], [5, 5, 16, 16], [30.25, 2, 40, 9]]),
        torch.tensor([2, 0, 0, 1]),
        num_classes=3,
        scores=torch.tensor([0.5, 0.875, 1, 0.625]),
        weights=torch.tensor([[1, 0.5], [1, 1], [1, 1], [0.25, 1]]),
        ignore=torch.tensor([Ignore.NO, Ignore.CLASS, Ignore.NO, Ignore.NO]),
        grade=torch.tensor([1, 1, 0, 1]),
        coverage=torch.tensor([0.75, 0.5, 1]),
    )
    said = [{"teacher": "t", "teacher_score": 0.75}] * 4
    images = [
        CocoImage(f"{i}.png", 48, 64, 10 + i, labels[torch.arange(4) >= i], said[i:])
        for i in range(4)
    ]
    images.append(CocoImage("4.png", 48, 64, 20, BoxLabels.empty(3)))
    for i in range(5):
        save_picture(root / folder / f"{i}.png", seed=i)
    write_coco(root / "sent.json", images, NAMES, {"grade": "silver"})
    return root / "sent.json"


def same(a, b, names=("boxes", "classes", "scores", "weights", "ignore", "grade")):
    """Compares the labels of two sources, pictures matched by their names."""
    place = {b.files.name(i): i for i in range(len(b))}
    assert len(a) == len(b)
    for i in range(len(a)):
        ours, theirs = a.labels(i)["boxes"], b.labels(place[a.files.name(i)])["boxes"]
        one, other = (x.boxes[:, 0].argsort() for x in (ours, theirs))
        for name in names:
            mine, its = getattr(ours, name)[one], getattr(theirs, name)[other]
            torch.testing.assert_close(
                mine, its, atol=0.01, rtol=0, msg=f"{name} of {a.files.name(i)}"
            )


def datumaro_of(root):
    dm = tool("datumaro")
    path = sent(root)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_all.json").write_bytes(path.read_bytes())
    return dm, dm.Dataset.import_from(str(root), "coco_instances")


def exported(data, folder):
    data.export(str(folder), "coco_instances", save_media=False)
    (file,) = (folder / "annotations").glob("*.json")
    return file


def lost_doubts():
    """datumaro writes every plain box with `iscrowd: 0`."""
    return pytest.warns(UserWarning, match="2 of 2 boxes that were sent as doubtful")


def test_what_datumaro_returned_comes_back_but_for_doubts_which_is_told(tmp_path):
    path = sent(tmp_path)
    same(
        read_labels(path), read_labels(DATUMARO), ("boxes", "classes", "scores", "weights", "grade")
    )
    with lost_doubts():
        counts = take_back(path, DATUMARO).counts
    assert counts["accepted"].tolist() == counts["sent"].tolist() == [3, 4, 1]
    assert counts["rescued"].tolist() == counts["doubted"].tolist() == [2, 0, 0]


def test_datumaro_reads_and_returns_a_selection(tmp_path):
    _, data = datumaro_of(tmp_path)
    items = {item.id: item for item in data}
    first = sorted(items["0"].annotations, key=lambda a: a.x)
    assert first[0].label == 2
    assert list(first[0].points) == pytest.approx([1.125, 2, 11.5, 22], abs=0.006)  # it rounds
    assert first[0].attributes["score"] == 0.5 and first[0].attributes["teacher"] == "t"
    assert [a.attributes["grade"] for a in first[:2]] == ["silver", "gold"]
    assert [a.attributes["is_crowd"] for a in first] == [False, False, True, False]
    back = exported(data, tmp_path / "back")
    kept, found = (json.loads(file.read_text())["annotations"] for file in (DATUMARO, back))
    for row in (*kept, *found):
        row.pop("id")
    assert sorted(map(str, found)) == sorted(map(str, kept))


def test_corrections_in_datumaro_come_back(tmp_path):
    _, data = datumaro_of(tmp_path)
    for item in list(data):
        if item.id == "0":
            kept = sorted(item.annotations, key=lambda a: a.x)
            kept[1] = kept[1].wrap(label=1)  # the cat is a dog
            kept[0] = kept[0].wrap(label=0, x=50, y=26, attributes={})  # another object
            data.put(item.wrap(annotations=kept))
        if item.id == "3":
            data.put(item.wrap(annotations=[]))
    back = exported(data, tmp_path / "back")
    with lost_doubts():
        counts = take_back(tmp_path / "sent.json", back).counts
    assert {
        k: v.tolist() for k, v in counts.items() if k not in ("accepted", "doubted", "rescued")
    } == {
        "sent": [3, 4, 1],
        "moved": [0, 0, 0],
        "renamed": [1, 0, 0],
        "deleted": [0, 1, 1],
        "ignored": [0, 0, 0],
        "added": [1, 0, 0],
    }


def test_corrections_in_supervision_come_back_as_gold(tmp_path):
    path, back, verified = (tmp_path / name for name in ("sent.json", "back.json", "gold.json"))
    sent(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = tool("supervision").DetectionDataset.from_coco(str(tmp_path / "images"), str(path))
        found = {name.rsplit("/", 1)[-1]: boxes for name, boxes in data.annotations.items()}
        corner = found["0.png"].xyxy[:, 0]
        found["0.png"].class_id[corner == 1.125] = NAMES.index("dog")
        found["0.png"].xyxy[corner == 5] += [2, 0, 0, 0]
        data.annotations[str(tmp_path / "images" / "3.png")] = found["3.png"][:0]
        data.as_coco(annotations_path=str(back))
    corrections = take_back(path, back)
    counts = {name: of.tolist() for name, of in corrections.counts.items()}
    assert counts["sent"] == [3, 4, 1] and counts["renamed"] == [0, 0, 1]
    assert counts["moved"] == [1, 0, 0] and counts["deleted"] == [0, 1, 0]
    assert counts["doubted"] == [2, 0, 0] and not any(counts["rescued"])
    assert not any(counts["added"])

    write_verified(corrections, path, verified)
    source = CocoSource(images="images", annotations="gold.json").load(
        "s", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache"
    )
    assert source.grade == Grade.GOLD and (source.coverage == 1).all()
    for i in range(5):
        labels = source.labels(i)["boxes"]
        assert (labels.grade == Grade.GOLD).all() and (labels.scores[labels.ignore == 0] == 1).all()
    first, last = source.labels(0)["boxes"], source.labels(3)["boxes"]
    assert len(last) == 0
    boxes = {
        tuple(box): NAMES[c] for box, c in zip(first.boxes.tolist(), first.classes, strict=True)
    }
    assert boxes[1.125, 2, 11.5, 22] == "dog" and boxes[7, 5, 16, 16] == "cat"


def test_supervision_reads_coco_yolo_and_voc(tmp_path):
    sv = tool("supervision")
    source = CocoSource(annotations=str(sent(tmp_path)), images="images").load(
        "s", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache"
    )
    images = str(tmp_path / "images")
    with pytest.warns(
        UserWarning, match=r"YOLO files have no place for: boxes that give no loss \(2\)"
    ):
        write_yolo(tmp_path / "yolo", source)
    with pytest.warns(UserWarning, match="VOC files have no place for"):
        write_voc(tmp_path / "voc", source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of = sv.DetectionDataset
        found = {
            "coco": of.from_coco(images, str(tmp_path / "sent.json")),
            "yolo": of.from_yolo(
                images, str(tmp_path / "yolo"), str(tmp_path / "yolo" / "data.yaml")
            ),
            "voc": of.from_pascal_voc(images, str(tmp_path / "voc")),
        }
    for format, data in found.items():
        labels = {path.rsplit("/", 1)[-1]: boxes for path, _, boxes in data}
        assert len(labels) == 5, format
        for i in range(5):
            ours, theirs = source.labels(i)["boxes"], labels[f"{i}.png"]
            if format == "yolo":
                ours = ours[ours.ignore == 0]
            expected = ours.boxes.numpy()
            np.testing.assert_allclose(theirs.xyxy.reshape(-1, 4), expected, atol=0.01)
            names = [data.classes[c] for c in theirs.class_id]
            assert names == [NAMES[c] for c in ours.classes.tolist()], format


def lvis_file(root):
    """Writes `coco.json` with what LVIS's files say of what was searched; returns the source of it."""
    data = coco_data()
    data["annotations"] = [
        annotation(n + 1, i, c, [1, 1, 9, 9], area=81, segmentation=[[1, 1, 9, 1, 9, 9]])
        for n, (i, c) in enumerate([(10, 1), (10, 5), (20, 9)])
    ]
    searched = {10: ([9], [5]), 20: ([1], []), 30: ([5], [])}
    for row in data["images"]:
        row["neg_category_ids"], row["not_exhaustive_category_ids"] = searched[row["id"]]
    data["categories"] = [{**row, "frequency": "f"} for row in data["categories"]]
    save_coco(root, data)
    return CocoSource(images="images", annotations="coco.json").load(
        "s", root, LabelSpace.of(NAMES), root / "cache"
    )


def test_coverage_is_what_the_judge_of_lvis_said(tmp_path):
    source = lvis_file(tmp_path)
    covered = np.argwhere(source.coverage)
    assert {(int(source.ids[i]), (1, 5, 9)[c]) for i, c in covered} == LVIS_WRONG


def test_the_judge_of_lvis_says_it_still(tmp_path):
    lvis = tool("lvis")
    lvis_file(tmp_path)
    data = json.loads((tmp_path / "coco.json").read_text())
    everything = [  # a detection of each class in each picture, where no object is
        {"image_id": row["id"], "category_id": c, "bbox": [30, 30, 9, 9], "score": 0.9}
        for row in data["images"]
        for c in (1, 5, 9)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = lvis.LVIS(str(tmp_path / "coco.json"))
        judge = lvis.LVISEval(truth, lvis.LVISResults(truth, everything), "bbox")
        judge.evaluate()
    # Where the judge counts a detection of nothing as wrong, somebody has looked.
    wrong = {
        (e["image_id"], e["category_id"])
        for e in judge.eval_imgs
        if e is not None and len(e["dt_ids"]) and not e["dt_ignore"][0].any()
    }
    assert wrong == LVIS_WRONG
