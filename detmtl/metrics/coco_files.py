"""COCO annotation files as flat arrays, checked; and what results files share with them.

Letters: I pictures, K categories.
"""

import json
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.coco_fields import Searched, stated_recall
from detmtl.data.coco_rows import Columns, info_of
from detmtl.data.coco_tables import Categories, positions_of
from detmtl.data.faults import Faults
from detmtl.metrics.box_arrays import Boxes
from detmtl.structures.errors import InputError, first_few
from detmtl.structures.labels import Grade, Ignore


@dataclass(frozen=True, eq=False)
class Truth:
    """What an annotation file says.

    Attributes:
        boxes: of truth, with the file's ids.
        image_ids: (I,) in the file's order.
        pictures: the JSON object of each.
        names: category id -> name, in the file's order.
        coverage: (I, K) or (1, K) in [0, 1], in these orders, see `BoxLabels`.
    """

    boxes: Boxes
    image_ids: list[int]
    pictures: list[dict[str, Any]]
    names: dict[int, str]
    coverage: np.ndarray

    def unseen(self, found: Boxes) -> tuple[np.ndarray, np.ndarray]:
        """Returns picture and category ids of what was found though nobody looked for it, each pair once."""
        if self.coverage.all():
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        images, categories = (np.array(ids) for ids in (self.image_ids, list(self.names)))
        pairs = np.stack(
            [positions_of(found.images, images), positions_of(found.categories, categories)]
        )
        image, category = np.unique(pairs, axis=1)
        coverage = self.coverage[image if len(self.coverage) > 1 else image * 0, category]
        return images[image[coverage == 0]], categories[category[coverage == 0]]


def read_annotations(path: Path) -> Truth:
    """Returns what an annotation file says, by the rules of `CocoSource` for what is ignored and what was
    looked for.

    Pictures need no more than an id, boxes may reach out of them. A missing `area` is width x height, a
    missing `iscrowd` 0. A segmentation is not read.

    Raises:
        InputError: every problem found.
    """
    content = read_json(path)
    if not has_lists(content):
        raise InputError(
            f"{path}: not a COCO annotation file; it needs the lists images, annotations, categories"
        )
    problems: list[str] = []
    image_ids = ids_of(content["images"], f"{path}: images", problems)
    category_ids = ids_of(content["categories"], f"{path}: categories", problems)
    names = names_of(content["categories"], category_ids, str(path), problems)
    boxes = columns_of(content["annotations"], str(path), "annotation", False, problems)
    if not problems:
        check_known(boxes, image_ids, category_ids, str(path), "annotation", problems)
    if not problems:
        coverage = _coverage(content, boxes, image_ids, names, str(path), problems)
        if info_of(content).get("grade") == "silver":
            warn_of_silver(str(path))
        if not problems:
            return Truth(boxes, image_ids, content["images"], names, coverage)
    raise InputError(problems)


def warn_of_silver(where: str) -> None:
    """Warns that scores are measured on a model's labels."""
    warnings.warn(
        f"{where}: a model wrote these labels, or some of them (grade silver): scores tell how far two "
        "models agree, not how good one is",
        stacklevel=3,
    )


def has_lists(content: Any) -> bool:
    """Returns whether a file's content is an object with the lists of an annotation file."""
    return isinstance(content, dict) and all(
        isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
    )


def names_of(listed: list[Any], ids: list[int], where: str, problems: list[str]) -> dict[int, str]:
    """Returns category id -> name; one without a name is called by its id."""
    names = {
        i: str(c.get("name", i)) for i, c in zip(ids, listed, strict=False) if isinstance(c, dict)
    }
    twice = [n for n, count in Counter(names.values()).items() if count > 1]
    problems += [f"{where}: categories: the name '{n}' is listed twice; rename one" for n in twice]
    return names


def _coverage(
    content: Mapping[str, Any],
    boxes: Boxes,
    image_ids: list[int],
    names: Mapping[int, str],
    where: str,
    problems: list[str],
) -> np.ndarray:
    """Returns how far each category was looked for in each picture, (I, K) or (1, K) in [0, 1]."""
    ids, faults = np.array(list(names)), Faults(where)
    listed = Categories(content["categories"], ids, list(names.values()), np.arange(len(names)))
    searched = Searched(
        where=where,
        faults=faults,
        categories=listed,
        rows=content["images"],
        ids=image_ids,
        image=positions_of(boxes.images, np.array(image_ids)),
        category=positions_of(boxes.categories, ids),
    )
    coverage = searched.coverage(
        stated_recall(info_of(content), listed, len(names), where), covers=None
    )
    problems += faults.problems
    return coverage


def read_json(path: Path) -> Any:
    """Returns what a file holds.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def ids_of(entries: list[Any], where: str, problems: list[str]) -> list[int]:
    """Returns the ids of pictures or categories; entries without one, and repeated ones, become problems."""
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


def columns_of(
    entries: list[Any],
    where: str,
    kind: str,
    with_score: bool,
    problems: list[str],
    at: Sequence[int] | None = None,
) -> Boxes:
    """Returns the boxes of the entries that are well formed; the others become problems.

    Args:
        at: where the entries stand in their list; None: they are the whole list.
    """
    keys = ("image_id", "category_id", "bbox") + (("score",) if with_score else ())
    good = []
    for i, entry in enumerate(entries):
        place = i if at is None else at[i]
        name = f"{where}: {kind} {place if with_score else _name(entry, place)}"
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
        said = Columns.of(good, 0, where, Grade.GOLD)
        problems += [sentence for of_one in said.given_faults.values() for sentence in of_one]
        crowd = said.ignore != Ignore.NO
    return Boxes(
        images=np.array([e["image_id"] for e in good], dtype=np.int64),
        categories=np.array([e["category_id"] for e in good], dtype=np.int64),
        boxes_xywh=boxes,
        areas=np.asarray(areas, dtype=np.float64),
        scores=np.array([e["score"] if with_score else 1 for e in good], dtype=np.float64),
        crowd=crowd,
    )


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


def check_known(
    boxes: Boxes,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    where: str,
    kind: str,
    problems: list[str],
    lists: str = "the annotation file",
    at: Sequence[int] | None = None,
) -> None:
    """Adds a sentence for each id of a picture or a category that boxes have and `lists` has not; `at` as in
    `columns_of`."""
    for given, key, known in (
        (boxes.images, "image_id", image_ids),
        (boxes.categories, "category_id", category_ids),
    ):
        unknown = ~np.isin(given, np.asarray(known, dtype=np.int64))
        for value in np.unique(given[unknown])[:20].tolist():
            rows = np.flatnonzero(given == value)
            place = rows[0] if at is None else at[rows[0]]
            problems.append(
                f"{where}: {kind} at position {place}: the {key} {value} is not in {lists} "
                f"({len(rows)} such), which has {len(known)} ids ({first_few(known)})"
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
