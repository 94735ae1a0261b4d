"""What a COCO annotation file says of each box beyond its place and class.

Attributes stand in an annotation's `attributes` {name: value}; shapes in `segmentation`; keypoints in
`keypoints` [x, y, visibility, ...] in the order of its category's `keypoints`.
Letters: N annotations, A attributes, K keypoints.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from detmtl.data.coco_tables import Categories, CocoTables
from detmtl.data.details import DetailClasses, FlatDetails
from detmtl.data.faults import Faults
from detmtl.data.outlines import packed, rings_of
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

Name = Callable[[int], str]


def read_details(
    tables: CocoTables,
    rows: Sequence[Any],
    kept: np.ndarray,
    wanted: DetailClasses,
    classes: LabelSpace,
) -> FlatDetails:
    """Returns the details of the annotations at `kept` (N,); what is faulty is unknown.

    Args:
        tables: of the file.
        rows: the JSON objects of all its annotations.
        kept: positions of those that are kept.
        wanted: what is read.
        classes: of the boxes.

    Raises:
        InputError: a value of an attribute, or what `wanted` says of a class, is unknown.
    """
    where, faults, found = tables.where, tables.faults, tables.found
    chosen = [rows[i] for i in kept.tolist()]

    def name(k: int) -> str:
        return found.name(int(kept[k]))

    parts: dict[str, Any] = {}
    if wanted.attributes:
        parts["attributes"] = _attributes(chosen, wanted, name, where, faults)
    if wanted.keypoints:
        places = _places(tables.categories, wanted, classes, where)
        category = found.category[kept].tolist()
        total = len(wanted.keypoint_names())
        parts["keypoints"] = _keypoints(chosen, category, places, total, name, faults)
    if wanted.masks:
        sizes = tables.pictures.sizes[found.image[kept]].tolist()
        points, rings, shapes = packed(_shapes(chosen, sizes, name, faults))
        parts |= {"points": points, "rings": rings, "shapes": shapes}
    if wanted.masks or wanted.keypoints:
        parts["areas"] = _areas(chosen, found.boxes[kept])
    return FlatDetails(
        **parts,
        attribute_names=wanted.attribute_names(),
        keypoint_names=wanted.keypoint_names(),
    )


def _attributes(
    rows: Sequence[Any], wanted: DetailClasses, name: Name, where: str, faults: Faults
) -> np.ndarray:
    """Returns (N, A) int16."""
    out = np.full((len(rows), len(wanted.attributes)), -1, dtype=np.int16)
    given = [r.get("attributes") if isinstance(r.get("attributes"), dict) else {} for r in rows]
    for column, (attribute, space) in enumerate(wanted.spaces().items()):
        said: dict[int, str] = {}
        for k, values in enumerate(given):
            value = values.get(attribute)
            if isinstance(value, str | bool | int):
                said[k] = value if isinstance(value, str) else str(value).lower()
            elif value is not None:
                faults.add(f"{name(k)}: attributes.{attribute} is {value!r:.60}; it needs a text")
        texts = sorted(set(said.values()))
        if not texts:
            continue
        code = dict(
            zip(texts, space.class_of(texts, f"{where}: attribute '{attribute}'"), strict=True)
        )
        out[list(said), column] = [code[text] for text in said.values()]
    return out


def _places(
    categories: Categories, wanted: DetailClasses, classes: LabelSpace, where: str
) -> list[list[int]]:
    """Returns for each category where its keypoints stand among all K; -1: nowhere."""
    place = {name: k for k, name in enumerate(wanted.keypoint_names())}
    problems = [
        f"data.details.keypoints: '{c}' is no class of data.classes ({', '.join(classes.names[:8])})"
        for c in wanted.keypoints
        if c not in classes.names
    ]
    places: list[list[int]] = []
    for category, c in zip(categories.rows, categories.classes.tolist(), strict=True):
        own = category.get("keypoints") or []
        own_class = classes.names[c] if c >= 0 else ""
        places.append([place.get(f"{own_class}/{point}", -1) for point in own])
        missing = [p for p in wanted.keypoints.get(own_class, []) if own and p not in own]
        problems += [
            f"{where}: category '{category['name']}' has no keypoint '{p}'; it has {', '.join(own)}"
            for p in missing
        ]
    if problems:
        raise InputError(problems)
    return places


def _keypoints(
    rows: Sequence[Any],
    category: Sequence[int],
    places: Sequence[Sequence[int]],
    total: int,
    name: Name,
    faults: Faults,
) -> np.ndarray:
    """Returns (N, K, 3) float32."""
    out = np.zeros((len(rows), total, 3), dtype=np.float32)
    for k, row in enumerate(rows):
        given = row.get("keypoints")
        at = places[category[k]]
        if not given or not at:
            continue
        try:
            values = np.asarray(given, dtype=np.float64).reshape(len(at), 3)
        except (TypeError, ValueError):
            values = np.full((len(at), 3), np.nan)
        if not (np.isfinite(values).all() and np.isin(values[:, 2], (0, 1, 2)).all()):
            faults.add(
                f"{name(k)}: keypoints are {given!r:.60}; they need {len(at)} times x, y and "
                "visibility (0, 1 or 2), as its category lists them"
            )
            continue
        mine = [j for j, p in enumerate(at) if p >= 0]
        out[k, [at[j] for j in mine]] = values[mine] * (values[mine, 2:] > 0)
    return out


def _shapes(
    rows: Sequence[Any], sizes: Sequence[Sequence[int]], name: Name, faults: Faults
) -> list[list[np.ndarray]]:
    """Returns the rings of each annotation's shape."""
    shapes: list[list[np.ndarray]] = []
    for k, (row, (height, width)) in enumerate(zip(rows, sizes, strict=True)):
        rings: list[np.ndarray] = []
        try:
            rings = rings_of(row.get("segmentation") or [], height, width)
        except ValueError as problem:
            faults.add(f"{name(k)}: segmentation {problem}")
        shapes.append(rings)
    return shapes


def _areas(rows: Sequence[Mapping[str, Any]], boxes: np.ndarray) -> np.ndarray:
    """Returns (N,) float32 the stated areas, and that of the box where none is stated."""
    sides = boxes[:, 2:] - boxes[:, :2]
    stated = [row.get("area") for row in rows]
    given = [float(a) if isinstance(a, int | float) and a > 0 else np.nan for a in stated]
    areas = np.array(given, dtype=np.float64)
    return np.where(np.isnan(areas), sides.prod(axis=1), areas).astype(np.float32)
