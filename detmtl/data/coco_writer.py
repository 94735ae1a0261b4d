"""COCO annotation files: writing them, picture by picture, in a form that other tools read too."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detmtl.data.details import DetailClasses
from detmtl.data.outlines import encoded, signed_area
from detmtl.data.source import Source
from detmtl.structures.details import Outlines, value_groups
from detmtl.structures.labels import BoxLabels, Grade, Ignore

_LEAST = 0.001
"""Pixels: coordinates are written with three decimals, and no box may vanish by that."""

_SAME = 1e-6
"""Coverage is written with six decimals."""

_ESCAPED = "backslashreplace"
"""What becomes of bytes of a file name that are no UTF-8, which Python keeps as lone surrogates: `\\udce9`,
as JSON writes one. So the file stays UTF-8 for all its readers, and the name is the same again."""


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
    details: DetailClasses | None = None,
) -> int:
    """Writes a COCO annotation file in bounded memory, all or nothing, and returns the number of
    annotations. Category ids are 1 to C in the order of `class_names`, annotation ids 1 to N.

    Labels that are not plain gold have `score` and `attributes` (grade, ignore, class_weight,
    box_weight), and gold ones their grade too where `info` says that the file is silver; what is to be
    ignored has `iscrowd: 1` for other tools. Coverage that differs from what `info` states for the whole
    file stands with the picture: 0 as in LVIS, other numbers in the image's `coverage`. Details of boxes
    that people gave are written as they are read: attributes among `attributes`, outlines as
    `segmentation`, keypoints and areas under their own names.

    Args:
        path: of the file; its folder is made.
        images: of the file, in order.
        class_names: the C classes.
        info: `info` of the file; its `coverage` {class name: recall in [0, 1]} holds for pictures
            that say nothing else.
        details: of the boxes, see `written_details`; None: they have none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = dict(info or {})
    stated = info.get("coverage", {})
    assert set(stated) <= set(class_names), f"info.coverage names other classes: {sorted(stated)}"
    usual = {name: float(stated.get(name, 1)) for name in class_names}
    silver = info.get("grade") == "silver"
    count, comma = 0, ""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with (
            os.fdopen(descriptor, "w", encoding="utf-8", errors=_ESCAPED) as out,
            tempfile.TemporaryFile(
                "w+", encoding="utf-8", errors=_ESCAPED, dir=path.parent
            ) as later,
        ):
            categories = [
                {"id": i + 1, "name": name} | _keypoints(name, details)
                for i, name in enumerate(class_names)
            ]
            out.write(f'{{"info": {_json(info)},\n"categories": {_json(categories)},\n"images": [')
            for image in images:
                out.write(f"{comma}\n{_json(_image(image, usual))}")
                comma = ","
                for row in _annotations(image, class_names, silver):
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


def _keypoints(name: str, details: DetailClasses | None) -> dict[str, Any]:
    points = None if details is None else details.keypoints.get(name)
    return {} if points is None else {"keypoints": points}


def _annotations(
    image: CocoImage, class_names: Sequence[str], silver: bool
) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of a picture's boxes; `silver` is the file by its `info`."""
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
    said, drawn = _said(labels), _drawn(image, labels, class_names)
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
        if grade == Grade.SILVER or silver:
            attributes["grade"] = Grade(grade).name.lower()
        if ignore != Ignore.NO:
            attributes["ignore"] = Ignore(ignore).name.lower()
        attributes |= said[i]
        row |= drawn[i]
        for key, weight in zip(("class_weight", "box_weight"), weights, strict=True):
            if weight != 1:
                attributes[key] = round(weight, 6)
        if grade == Grade.SILVER or score != 1:
            row["score"] = round(score, 6)
        yield row | {"attributes": attributes} if attributes else row


def _said(labels: BoxLabels) -> list[dict[str, str]]:
    """Returns the attributes of each box that are known."""
    details = labels.details
    if details is None or details.attributes is None:
        return [{} for _ in range(len(labels))]
    values = value_groups(details.attribute_names)
    return [
        {name: of[k] for (name, of), k in zip(values.items(), own, strict=True) if k >= 0}
        for own in details.attributes.tolist()
    ]


def _drawn(image: CocoImage, labels: BoxLabels, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the shape, the area and the keypoints of each box, of those that somebody looked for."""
    details = labels.details
    rows: list[dict[str, Any]] = [{} for _ in range(len(labels))]
    if details is None:
        return rows
    if details.outlines is not None:
        for row, shape in zip(rows, _segmentations(details.outlines, image), strict=True):
            row["segmentation"] = shape
    if details.areas is not None:
        for row, own in zip(rows, details.areas.tolist(), strict=True):
            row["area"] = round(own, 3)
    if details.keypoints is not None:
        owners = [name.partition("/")[0] for name in details.keypoint_names]
        points = details.keypoints.tolist()
        for row, c, of_box in zip(rows, labels.classes.tolist(), points, strict=True):
            own = [p for p, owner in zip(of_box, owners, strict=True) if owner == class_names[c]]
            if own:
                row["keypoints"] = [
                    v for x, y, s in own for v in (round(x, 3), round(y, 3), int(s))
                ]
                row["num_keypoints"] = sum(seen > 0 for *_, seen in own)
    return rows


def _segmentations(outlines: Outlines, image: CocoImage) -> Iterator[Any]:
    """Yields each shape as polygons or, if it has holes, as a run-length encoding; []: nobody drew it."""
    points = outlines.points.double().numpy()
    rings = [points[a:b] for a, b in pairwise(outlines.rings.tolist())]
    for i, (first, last) in enumerate(pairwise(outlines.boxes.tolist())):
        own = rings[first:last]
        if any(signed_area(ring) < 0 for ring in own):  # a hole, which polygons cannot have
            (found,) = encoded(outlines[torch.tensor([i])], image.height, image.width)
            assert found is not None
            yield {"size": [image.height, image.width], "counts": found["counts"].decode()}
        else:
            yield [np.round(ring.ravel(), 3).tolist() for ring in own]


def written_details(source: Source) -> DetailClasses | None:
    """Returns which details of a source's boxes a file of them has, by which it is read again."""
    details = None if source.annotations is None else source.annotations.details
    if details is None:
        return None
    return DetailClasses(
        attributes=dict(value_groups(details.attribute_names)),
        keypoints=value_groups(details.keypoint_names),
        masks=details.shapes is not None,
    )


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
    images, info, details = coco_images(source), coco_info(source), written_details(source)
    return write_coco(path, images, source.classes, info, details)
