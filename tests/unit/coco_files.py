"""Small COCO folders for the tests of readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ["cat", "dog", "bird"]


def save_picture(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> None:
    """Saves a flat picture whose color depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = np.random.default_rng(seed).integers(0, 255, 3, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(color, (height, width, 3)).copy()).save(path)


def annotation(id: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    """Returns a COCO annotation with an xywh box."""
    return {"id": id, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


def coco_data(num_images: int = 3) -> dict[str, Any]:
    """Returns annotations of pictures 10, 20, ... of 64 x 48 pixels, with gappy category ids 1, 5, 9."""
    return {
        "images": [
            {"id": 10 * (i + 1), "file_name": f"{i}.png", "height": 48, "width": 64}
            for i in range(num_images)
        ],
        "annotations": [
            annotation(7, 20, 9, [1, 2, 10, 20]),
            annotation(3, 10, 1, [4, 4, 8.5, 8.25]),
            annotation(5, 20, 5, [0, 0, 64, 48]),
        ],
        "categories": [{"id": k, "name": n} for k, n in zip((1, 5, 9), NAMES, strict=True)],
    }


def save_coco(root: Path, data: Any, num_images: int = 3) -> Path:
    """Writes the folder `images` and the file `coco.json` below `root`, and returns `root`."""
    for i in range(num_images):
        save_picture(root / "images" / f"{i}.png", seed=i)
    (root / "coco.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return root
