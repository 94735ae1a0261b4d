"""COCO annotation and results files as flat arrays, checked."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.structures.errors import InputError


def read_annotations(path: Path) -> tuple[dict[str, np.ndarray], list[int], dict[int, str]]:
    """Returns the columns of all boxes of truth, the image ids, and category id -> name.

    Columns: images, categories, boxes_xywh (N, 4), areas, scores (1), crowd; (N,) each. A missing
    `area` is width x height, a missing `iscrowd` 0. A segmentation is not read.

    Raises:
        InputError: every problem found.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
    ):
        raise InputError(
            f"{path}: not a COCO annotation file; it needs the lists images, annotations, categories"
        )
    problems: list[str] = []
    image_ids = _ids(content["images"], f"{path}: images", problems)
    category_ids = _ids(content["categories"], f"{path}: categories", problems)
    names = {
        i: str(c.get("name", i))
        for i, c in zip(category_ids, content["categories"], strict=False)
        if isinstance(c, dict)
    }
    twice = [n for n, count in Counter(names.values()).items() if count > 1]
    problems += [f"{path}: categories: the name '{n}' is listed twice; rename one" for n in twice]
    columns = _columns(content["annotations"], str(path), "annotation", False, problems)
    if not problems:
        _check_known(columns, image_ids, category_ids, str(path), "annotation", problems)
    if problems:
        raise InputError(problems)
    return columns, image_ids, names


def read_results(
    path: Path, image_ids: Sequence[int], names: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """Returns the columns of all detections as `read_annotations` does; none at all are fine.

    A result may have a `category_name`, as those of our own runs do; it must be the name that the
    annotation file gives to its `category_id`.

    Args:
        path: the results file.
        image_ids: of the annotation file.
        names: category id -> name of the annotation file.

    Raises:
        InputError: every problem found.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise InputError(
            f"{path}: not a COCO results file; it is a list of objects with image_id, category_id, "
            "bbox [x, y, width, height] and score"
        )
    problems: list[str] = []
    columns = _columns(content, str(path), "result", True, problems)
    if not problems:
        _check_known(columns, image_ids, list(names), str(path), "result", problems)
        problems += _renamed(content, names, str(path))
    if problems:
        raise InputError(problems)
    return columns


def _renamed(entries: list[Any], names: Mapping[int, str], where: str) -> list[str]:
    """Returns a sentence for each category of results that the annotation file calls otherwise."""
    stated = Counter(
        (e["category_id"], e["category_name"]) for e in entries if "category_name" in e
    )
    return [
        f"{where}: {count} results of category_id {i} are '{name}', but the annotation file's category "
        f"{i} is '{names[i]}'; score against a file with the run's own classes, or translate the ids"
        for (i, name), count in stated.items()
        if i in names and names[i] != name
    ]


def _read_json(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def _ids(entries: list[Any], where: str, problems: list[str]) -> list[int]:
    ids = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_integer(entry.get("id")):
            problems.append(f"{where}[{i}]: needs an integer id of 64 bits at most")
        else:
            ids.append(entry["id"])
    problems += [
        f"{where}: the id {i} is there {count} times; ids are unique"
        for i, count in Counter(ids).items()
        if count > 1
    ]
    return ids


def _columns(
    entries: list[Any], where: str, kind: str, with_score: bool, problems: list[str]
) -> dict[str, np.ndarray]:
    """Returns the columns of the entries that are well formed; the others become problems."""
    keys = ("image_id", "category_id", "bbox") + (("score",) if with_score else ())
    good = []
    for i, entry in enumerate(entries):
        name = f"{where}: {kind} {i if with_score else _name(entry, i)}"
        if not isinstance(entry, dict):
            problems.append(f"{name}: is no object with {', '.join(keys)}")
            continue
        missing = [k for k in keys if k not in entry]
        if missing:
            problems.append(f"{name}: has no {', '.join(missing)}; it needs {', '.join(keys)}")
            continue
        problem = _entry_problem(entry, with_score)
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            good.append(entry)
    boxes = np.array([e["bbox"] for e in good], dtype=np.float64).reshape(-1, 4)
    areas = boxes[:, 2] * boxes[:, 3]
    crowd = np.zeros(len(good), dtype=bool)
    if not with_score:
        given = [e.get("area") for e in good]
        areas = np.array([a if g is None else g for a, g in zip(areas, given, strict=True)])
        crowd = np.array([bool(e.get("iscrowd", 0)) for e in good], dtype=bool)
    return {
        "images": np.array([e["image_id"] for e in good], dtype=np.int64),
        "categories": np.array([e["category_id"] for e in good], dtype=np.int64),
        "boxes_xywh": boxes,
        "areas": np.asarray(areas, dtype=np.float64),
        "scores": np.array([e["score"] if with_score else 1 for e in good], dtype=np.float64),
        "crowd": crowd,
    }


def _entry_problem(entry: dict[str, Any], with_score: bool) -> str | None:
    """Returns what is wrong with one entry that has all keys."""
    for key in ("image_id", "category_id"):
        if not _is_integer(entry[key]):
            return f"{key} is {entry[key]!r}; it is an integer of 64 bits at most"
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(x) for x in box):
        return f"bbox is {box!r}; it is four finite numbers x, y, width, height"
    if box[2] < 0 or box[3] < 0:
        return f"bbox is {box!r}; width and height are not negative (x, y, width, height)"
    if with_score and not _is_finite(entry["score"]):
        return f"score is {entry['score']!r}; it is a finite number"
    called = entry.get("category_name", "")
    if with_score and not isinstance(called, str):
        return f"category_name is {called!r}; it is text, or left out"
    area = entry.get("area")
    if not with_score and area is not None and not _is_finite(area):
        return f"area is {area!r}; it is a finite number"
    return None


def _check_known(
    columns: dict[str, np.ndarray],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    where: str,
    kind: str,
    problems: list[str],
) -> None:
    for column, key, known in (
        ("images", "image_id", image_ids),
        ("categories", "category_id", category_ids),
    ):
        unknown = ~np.isin(columns[column], np.asarray(known, dtype=np.int64))
        for value in np.unique(columns[column][unknown])[:20].tolist():
            rows = np.flatnonzero(columns[column] == value)
            problems.append(
                f"{where}: {kind} at position {rows[0]}: the {key} {value} is not in the annotation "
                f"file ({len(rows)} such); it has {len(known)} ids ({_some(known)})"
            )


def _name(entry: Any, position: int) -> str:
    if isinstance(entry, dict) and "id" in entry:
        return f"{entry['id']} of image {entry.get('image_id', '?')}"
    return f"at position {position}"


def _is_integer(value: Any) -> bool:
    """Returns whether a value is an integer that a column holds."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_finite(value: Any) -> bool:
    """Returns whether a value is a number that a column holds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # also of integers of any length


def _some(values: Sequence[int], shown: int = 5) -> str:
    return ", ".join(map(str, values[:shown])) + (" ..." if len(values) > shown else "")
