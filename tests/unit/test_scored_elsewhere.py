"""Detections of sources that are no COCO files, scored against the gold that is written of them as one."""

import json

import pytest
from coco_files import NAMES, coco_data, save_coco

from detmtl.data.coco import CocoSource
from detmtl.data.coco_writer import write_coco_annotations
from detmtl.data.voc import VocSource, write_voc
from detmtl.data.yolo import YoloSource, write_yolo
from detmtl.metrics.coco import evaluate_files
from detmtl.structures.classes import LabelSpace

SPACE = LabelSpace.of(NAMES)
COCO = CocoSource(images="images", annotations="coco.json")
FORMATS = {
    "coco": (COCO, None, [10, 20, 30]),
    "yolo": (YoloSource(images="images", labels="labels", names=NAMES), write_yolo, [0, 1, 2]),
    "voc": (VocSource(images="images", annotations="labels", covers=NAMES), write_voc, [0, 1, 2]),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:.*files have no place for")
def test_detections_are_scored_by_id_and_by_name(tmp_path, kind):
    settings, write, ids = FORMATS[kind]
    save_coco(tmp_path, coco_data())
    if write is not None:
        write(tmp_path / "labels", COCO.load("own", tmp_path, SPACE, tmp_path / "cache"))
    source = settings.load("gold", tmp_path, SPACE, tmp_path / "cache")
    assert source.ids.tolist() == ids and len(source.annotations) == 3
    gold, found = tmp_path / "gold.json", tmp_path / "found.json"
    write_coco_annotations(gold, source)
    rows = [  # as a run writes them: categories count from 1, in the order of the classes
        {
            "image_id": int(source.ids[i]),
            "category_id": c + 1,
            "category_name": NAMES[c],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.9,
        }
        for i in range(len(source))
        for (x1, y1, x2, y2), c in zip(
            source.boxes(i).boxes.tolist(), source.boxes(i).classes.tolist(), strict=True
        )
    ]
    found.write_text(json.dumps(rows))
    assert evaluate_files(found, gold)["AP"] == pytest.approx(1)

    # as `predict` writes them: pictures and categories by their names, and with numbers of its own
    number = {int(own): 7 - i for i, own in enumerate(source.ids)}
    data = {
        "images": [
            {"id": 7 - i, "file_name": source.files.name(i), "height": 48, "width": 64}
            for i in range(len(source))
        ],
        "annotations": [
            row
            | {
                "id": n + 1,
                "image_id": number[row["image_id"]],
                "category_id": 4 - row["category_id"],
            }
            for n, row in enumerate(rows)
        ],
        "categories": [{"id": 3 - c, "name": name} for c, name in enumerate(NAMES)],
    }
    found.write_text(json.dumps(data))
    assert evaluate_files(found, gold)["AP"] == pytest.approx(1)
