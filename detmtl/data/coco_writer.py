"""COCO annotation files: writing them, picture by picture, in a form that other tools read too."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.source import Source
from detmtl.structures.labels import BoxLabels, Grade, Ignore

_LEAST = 0.001
"""Pixels: coordinates are written with three decimals, and no box may vanish by that."""

_SAME = 1e-6
"""Coverage is written with six decimals."""


@dataclass(frozen=True, eq=False)
class CocoImage:
    """A picture for `write_coco`.

    Attributes:
        file_name: relative to the folder of pictures.
        height, width: pixels.
        id: differs from that of all other pictures of the file.
        labels: its boxes; None: nobody looked at it (written as covered for no class).
        attributes: further `attributes` of each annotation, as many as there are boxes; or none.
        fields: further keys of the image's JSON object.
    """

    file_name: str
    height: int
    width: int
    id: int
    labels: BoxLabels | None
    attributes: Sequence[Mapping[str, Any]] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def write_coco(
    path: str | os.PathLike[str],
    images: Iterable[CocoImage],
    class_names: Sequence[str],
    info: Mapping[str, Any] | None = None,
) -> int:
    """Writes a COCO annotation file in bounded memory, all or nothing, and returns the number of
    annotations. Category ids are 1 to C in the order of `class_names`, annotation ids 1 to N.

    Labels that are not plain gold have `score` and `attributes` (grade, ignore, class_weight,
    box_weight); what is to be ignored has `iscrowd: 1` for other tools. Coverage that differs from what
    `info` states for the whole file stands with the picture: 0 as in LVIS, other numbers in the
    image's `coverage`.

    Args:
        path: of the file; its folder is made.
        images: of the file, in order.
        class_names: the C classes.
        info: `info` of the file; its `coverage` {class name: recall in [0, 1]} holds for pictures
            that say nothing else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = dict(info or {})
    stated = info.get("coverage", {})
    assert set(stated) <= set(class_names), f"info.coverage names other classes: {sorted(stated)}"
    usual = {name: float(stated.get(name, 1)) for name in class_names}
    count, comma = 0, ""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with (
            os.fdopen(descriptor, "w", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as later,
        ):
            categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
            out.write(f'{{"info": {_json(info)},\n"categories": {_json(categories)},\n"images": [')
            for image in images:
                out.write(f"{comma}\n{_json(_image(image, usual))}")
                comma = ","
                for row in _annotations(image):
                    count += 1
                    start = ",\n" if count > 1 else "\n"
                    later.write(start + _json({"id": count, **row}))
            out.write('\n],\n"annotations": [')
            later.seek(0)
            while block := later.read(1 << 20):
                out.write(block)
            out.write("\n]}\n")
            out.flush()
            os.fsync(out.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    return count


_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _image(image: CocoImage, usual: Mapping[str, float]) -> dict[str, Any]:
    row = {
        "id": int(image.id),
        "file_name": image.file_name,
        "height": int(image.height),
        "width": int(image.width),
        **image.fields,
    }
    if image.labels is None:
        return row | {"neg_category_ids": []}
    coverage, stated = image.labels.coverage.numpy(), np.array(list(usual.values()), np.float32)
    blank, covered = (coverage == 0) & (stated > 0), coverage > 0
    present = np.zeros(len(blank), dtype=bool)
    present[image.labels.classes.numpy()] = True
    if 2 * blank.sum() > len(blank):  # the shorter of LVIS' two ways to say it
        row["neg_category_ids"] = (np.flatnonzero(covered & ~present) + 1).tolist()
        blank = blank & present
    if blank.any():
        row["not_exhaustive_category_ids"] = (np.flatnonzero(blank) + 1).tolist()
    own = covered & (np.abs(coverage - stated) > _SAME)
    if own.any():
        names = list(usual)
        row["coverage"] = {names[c]: round(float(coverage[c]), 6) for c in np.flatnonzero(own)}
    return row


def _annotations(image: CocoImage) -> Iterator[dict[str, Any]]:
    labels = image.labels
    if labels is None:
        return
    assert image.attributes is None or len(image.attributes) == len(labels)
    columns = (
        labels.boxes,
        labels.classes,
        labels.scores,
        labels.weights,
        labels.ignore,
        labels.grade,
    )
    for i, (box, c, score, weights, ignore, grade) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        x, y = round(box[0], 3), round(box[1], 3)
        width, height = (max(round(b - a, 3), _LEAST) for a, b in ((x, box[2]), (y, box[3])))
        row: dict[str, Any] = {
            "image_id": int(image.id),
            "category_id": c + 1,
            "bbox": [x, y, width, height],
            "area": round(width * height, 3),
            "iscrowd": int(ignore != Ignore.NO),
            "segmentation": [],  # some readers complain where there is none
        }
        attributes = dict(image.attributes[i]) if image.attributes is not None else {}
        if grade == Grade.SILVER:
            attributes["grade"] = "silver"
        if ignore != Ignore.NO:
            attributes["ignore"] = Ignore(ignore).name.lower()
        for key, weight in zip(("class_weight", "box_weight"), weights, strict=True):
            if weight != 1:
                attributes[key] = round(weight, 6)
        if grade == Grade.SILVER or score != 1:
            row["score"] = round(score, 6)
        yield row | {"attributes": attributes} if attributes else row


def coco_images(source: Source) -> Iterator[CocoImage]:
    """Returns the pictures of a source for `write_coco`."""
    for i in range(len(source)):
        info = source.info(i)
        labels = source.boxes(i)
        yield CocoImage(source.files.name(i), info.height, info.width, info.id, labels)


def coco_info(source: Source) -> dict[str, Any]:
    """Returns `info` for `write_coco`: the grade, and the coverage of each class that is below 1 in
    every picture: its highest."""
    highest = source.coverage.max(axis=0, initial=0)
    coverage = {
        name: round(float(value), 6)
        for name, value in zip(source.classes, highest, strict=True)
        if value < 1
    }
    info: dict[str, Any] = {"grade": source.grade.name.lower()}
    return info | {"coverage": coverage} if coverage else info


def write_coco_annotations(path: str | os.PathLike[str], source: Source) -> int:
    """Writes a source as a COCO annotation file, and returns the number of annotations; file names
    stay relative to the source's folder of pictures."""
    return write_coco(path, coco_images(source), source.classes, coco_info(source))
