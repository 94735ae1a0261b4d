"""A small data set with attributes, shapes and keypoints, and its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from detmtl.data.coco import CocoSource
from detmtl.data.details import DetailClasses
from detmtl.data.source import Source
from detmtl.structures.classes import LabelSpace

HEIGHT, WIDTH = 60, 80
CLASSES = ["man", "cup"]
WANTED = DetailClasses(
    attributes={"color": ["red", "blue"], "size": {"big": ["big", "huge"], "small": ["small"]}},
    keypoints={"man": ["nose", "left_hand", "right_hand"]},
    masks=True,
)


def drawn_mask() -> np.ndarray:
    """Returns a shape (H, W) with a hole, in the box 40..70 x 20..50."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:50, 40:70] = 1
    mask[30:36, 50:60] = 0
    return mask


def annotations() -> list[dict[str, Any]]:
    """Returns a triangle with everything, an encoding with a hole, and a box of which nothing is known."""
    encoding = coco_mask.encode(np.asfortranarray(drawn_mask()))
    counts = encoding["counts"]
    return [
        {
            "id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 30], "area": 300, "iscrowd": 0,
            "attributes": {"color": "blue", "size": "huge"},
            "segmentation": [[10, 10, 30, 10, 10, 40]],
            "keypoints": [12, 12, 2, 28, 11, 2, 11, 38, 1], "num_keypoints": 3,
        },
        {
            "id": 2, "image_id": 1, "category_id": 9, "bbox": [40, 20, 30, 30], "iscrowd": 0,
            "area": int(drawn_mask().sum()), "attributes": {"color": "red"},
            "segmentation": {"size": [HEIGHT, WIDTH],
                             "counts": counts.decode() if isinstance(counts, bytes) else counts},
        },
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
    ]  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]] | None = None, **changed: Any) -> Path:
    """Writes a picture and its annotations, and returns the folder."""
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    picture[drawn_mask() > 0] = 220
    Image.fromarray(picture).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations() if rows is None else rows,
        "categories": [
            # in another order than the settings name them
            {"id": 9, "name": "cup"},
            {"id": 7, "name": "man", "keypoints": ["left_hand", "nose", "right_hand"]},
        ],
    }
    (folder / "a.json").write_text(json.dumps(content | changed))
    return folder


def load(folder: Path, wanted: DetailClasses | None = WANTED, **settings: Any) -> Source:
    """Returns the source that `write` wrote."""
    source = CocoSource(images=".", annotations="a.json", **settings)
    space = LabelSpace.of(CLASSES)
    return source.load("own", folder, space, folder / "cache", details=wanted)
