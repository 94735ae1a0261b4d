"""COCO annotation files: reading them as a source. Writing: coco_writer.py.

Beyond COCO, all optional: an annotation's `score` (a probability) and `attributes` {"grade": "gold" or
"silver", "ignore": "class" or "region", "class_weight": number, "box_weight": number}; an image's
`neg_category_ids` and `not_exhaustive_category_ids` as LVIS has them; `info.coverage` {category name:
recall in [0, 1]} and `info.grade`.
Letters: I pictures, N annotations, C classes.
"""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detmtl.data.coco_writer import (
    CocoImage,
    coco_images,
    coco_info,
    write_coco,
    write_coco_annotations,
)
from detmtl.data.faults import Faults, annotation_faults, number_column, repeated
from detmtl.data.images import content_hashes, image_sizes
from detmtl.data.source import Annotations, FileNames, Parsed, SourceSettings, missing_problems
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

__all__ = [
    "CocoImage",
    "CocoSource",
    "coco_images",
    "coco_info",
    "read_json",
    "write_coco",
    "write_coco_annotations",
]

_GRADES = {"gold": Grade.GOLD, "silver": Grade.SILVER}
_IGNORES = {"class": Ignore.CLASS, "region": Ignore.REGION}


class CocoSource(SourceSettings):
    """Pictures with a COCO annotation file; `images` is the folder that its file names start from.

    Crowds (`iscrowd: 1`) and annotations with `ignore: 1` become regions that give no loss.

    Attributes:
        annotations: the JSON file.
    """

    kind: Literal["coco"] = "coco"
    annotations: str

    def fingerprint(self, root: Path, cache: Path) -> Any:
        """Returns the hash of the annotation file."""
        return content_hashes([str(root / self.annotations)], cache)

    def parse(self, root: Path, classes: LabelSpace) -> Parsed:
        """Reads and checks the annotation file."""
        where, faults = self.annotations, Faults(self.annotations)
        data = read_json(root / where, where)
        images, rows, listed = _lists(data, where, nothing_found=self.covers is not None)
        categories = _categories(listed, classes, where)
        pictures = _pictures(images, root / self.images, where, faults)
        if self.faults == "error":  # missing ones are left out by `load`, which looks every time
            faults.add(*missing_problems(pictures.files, where))
        found = _Found.of(rows, pictures, categories, where, faults)
        given = _given(rows, found.keep, found.name, _GRADES[self.grade], faults)
        info = data.get("info") if isinstance(data.get("info"), dict) else {}
        coverage = self.covered(classes, classes.known(categories.names), where)[None]
        coverage = coverage * _recall(info, categories, len(classes), where)
        coverage = _lvis(pictures, found, categories, coverage, self.covers, classes, faults, where)
        dropped = faults.settle(self.faults)
        silver = self.grade == "silver" or info.get("grade") == "silver"
        k = np.flatnonzero(found.keep & ~given.bad)
        return Parsed(
            files=pictures.files,
            ids=pictures.ids,
            sizes=pictures.sizes,
            annotations=Annotations.of(
                num_images=len(pictures.ids),
                image=found.image[k],
                boxes=found.boxes[k],
                classes=found.classes[k],
                scores=given.scores[k],
                weights=given.weights[k],
                ignore=given.ignore[k],
                grade=given.grade[k],
            ),
            coverage=coverage.astype(np.float32),
            silver=silver or bool((given.grade[k] == Grade.SILVER).any()),
            dropped=dropped,
        )


def read_json(path: Path, where: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        InputError: it cannot be read, is empty or is not JSON.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{where}: cannot be read ({problem.strerror}): {path}") from problem
    if not data.strip():
        raise InputError(f"{where}: the file is empty ({len(data)} bytes); it needs to be JSON")
    collecting = gc.isenabled()
    gc.disable()  # it would look through millions of new objects again and again
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{where}: is not JSON ({problem})") from problem
    finally:
        if collecting:
            gc.enable()


def _lists(data: Any, where: str, nothing_found: bool) -> tuple[list[Any], list[Any], list[Any]]:
    if isinstance(data, list):
        raise InputError(
            f"{where}: is a list, perhaps of detections (COCO results); an annotation file is an object "
            "with images, annotations and categories"
        )
    if not isinstance(data, dict):
        raise InputError(f"{where}: is {type(data).__name__}; it needs to be a JSON object")
    problems = []
    for key in ("images", "annotations", "categories"):
        value = data.get(key)
        if key not in data:
            problems.append(f"{where}: has no list '{key}'; a COCO annotation file needs it")
        elif not isinstance(value, list):
            problems.append(f"{where}: '{key}' is {type(value).__name__}; it needs to be a list")
        elif not value and key != "annotations":
            problems.append(f"{where}: the list '{key}' is empty; it needs at least one entry")
        elif not value and not nothing_found:
            problems.append(
                f"{where}: has no annotations at all; pictures without labels are a source of `kind: "
                "folder`; if somebody looked and found nothing, name the classes in `covers`"
            )
    if problems:
        raise InputError(problems)
    return data["images"], data["annotations"], data["categories"]


@dataclass(frozen=True)
class _Categories:
    """The K categories of the file: ids (K,) int64, names, and the class of each (K,), -1: dropped."""

    ids: np.ndarray
    names: list[str]
    classes: np.ndarray

    def members(self) -> dict[int, set[int]]:
        """Returns for each class the category ids that mean it."""
        out: dict[int, set[int]] = {}
        for k, c in zip(self.ids.tolist(), self.classes.tolist(), strict=True):
            if c >= 0:
                out.setdefault(c, set()).add(k)
        return out


def _categories(listed: Sequence[Any], classes: LabelSpace, where: str) -> _Categories:
    ids, _, problems = number_column(
        listed, "id", lambda i: f"{where}: category at position {i}", whole=True
    )
    names = [c.get("name") if isinstance(c, dict) else None for c in listed]
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name:
            problems.append(f"{where}: category {ids[i]} has no name; it needs a text")
    if not problems:
        again = repeated(ids)
        problems += [f"{where}: the category id {k} is listed twice" for k in ids[again]]
        problems += [
            f"{where}: two categories are named '{name}'; merge them under one id"
            for name in sorted({n for n in names if names.count(n) > 1})
        ]
    if problems:
        raise InputError(problems)
    return _Categories(ids, names, np.asarray(classes.class_of(names, where), dtype=np.int64))


@dataclass(frozen=True)
class _Pictures:
    """The pictures that are kept, the JSON object of each, and all ids that were listed."""

    files: FileNames
    ids: np.ndarray
    sizes: np.ndarray
    rows: list[dict[str, Any]]
    listed: np.ndarray


def _pictures(images: Sequence[Any], folder: Path, where: str, faults: Faults) -> _Pictures:
    ids, bad, problems = number_column(
        images, "id", lambda i: f"{where}: image at position {i}", whole=True
    )

    def name(i: int) -> str:
        return f"{where}: image {ids[i]}"

    faults.add(*problems)
    for i, row in enumerate(images):
        if not bad[i] and not (isinstance(row.get("file_name"), str) and row["file_name"]):
            faults.add(f"{name(i)}: has no 'file_name'; it needs a text")
            bad[i] = True
    good = np.flatnonzero(~bad)
    again = good[repeated(ids[good])]
    faults.add(*(f"{where}: the image id {ids[i]} is listed twice; ids must differ" for i in again))
    bad[again] = True
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    good = np.flatnonzero(~bad)
    stated = np.array([("height" in images[i] or "width" in images[i]) for i in good], dtype=bool)
    _stated_sizes(images, good[stated], sizes, bad, name, faults)
    unstated = good[~stated]
    paths = FileNames.of(folder, [images[i]["file_name"] for i in unstated])
    measured, unreadable = image_sizes([paths[i] for i in range(len(paths))])
    sizes[unstated] = measured
    faults.add(*(text for _, text in unreadable if not text.endswith("no such picture")))
    bad[unstated[[i for i, _ in unreadable]]] = True
    keep = np.flatnonzero(~bad)
    return _Pictures(
        files=FileNames.of(folder, [images[i]["file_name"] for i in keep]),
        ids=ids[keep],
        sizes=sizes[keep].astype(np.int32),
        rows=[images[i] for i in keep],
        listed=ids,
    )


def _stated_sizes(
    images: Sequence[Any], at: np.ndarray, sizes: np.ndarray, bad: np.ndarray, name, faults: Faults
) -> None:
    """Fills in the sizes that the file states, and marks the pictures whose size makes no sense."""
    rows = [images[i] for i in at]
    for column, key in enumerate(("height", "width")):
        values, wrong, problems = number_column(rows, key, lambda i: name(at[i]))
        faults.add(*problems)
        small = ~wrong & ~((values >= 1) & (values < 2**31) & (values == np.round(values)))
        faults.add(
            *(
                f"{name(at[i])}: {key} is {values[i]:g}; it needs a whole number of pixels > 0"
                for i in np.flatnonzero(small)
            )
        )
        bad[at[wrong | small]] = True
        sizes[at, column] = np.where(wrong | small, 0, values)


def _position(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns for each value its position in `table`, -1 if it is not there."""
    if not len(table):
        return np.full(len(values), -1)
    order = np.argsort(table, kind="stable")
    at = np.searchsorted(table[order], values).clip(max=len(table) - 1)
    return np.where(table[order][at] == values, order[at], -1)


@dataclass(frozen=True)
class _Found:
    """The N annotations: position of the picture (N,), category id (N,), class (N,), boxes (N, 4)
    xyxy, the sound ones of known classes `keep` (N,), and how sentences call them."""

    image: np.ndarray
    category: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    keep: np.ndarray
    name: Any

    @classmethod
    def of(
        cls,
        rows: Sequence[Any],
        pictures: _Pictures,
        categories: _Categories,
        where: str,
        faults: Faults,
    ) -> "_Found":
        """Reads ids and boxes of all annotations and notes what is wrong with them."""
        ids, no_id, p1 = number_column(
            rows, "id", lambda i: f"{where}: annotation at position {i}", whole=True
        )
        image_ids, no_image, p2 = number_column(
            rows, "image_id", lambda i: f"{where}: annotation {ids[i]}", whole=True
        )

        def name(i: int) -> str:
            return f"{where}: annotation {ids[i]} of image {image_ids[i]}"

        kinds, no_kind, p3 = number_column(rows, "category_id", name, whole=True)
        boxes, no_box, p4 = number_column(rows, "bbox", name, width=4)
        faults.add(*p1, *p2, *p3, *p4)
        sound = np.flatnonzero(~no_id)
        again = np.zeros(len(rows), dtype=bool)
        again[sound] = repeated(ids[sound])
        faults.add(*(f"{name(i)}: the annotation id is used twice" for i in np.flatnonzero(again)))
        unlisted = ~no_image & ~np.isin(image_ids, pictures.listed)
        faults.add(
            *(f"{name(i)}: there is no such image in 'images'" for i in np.flatnonzero(unlisted))
        )
        image = np.where(no_image, -1, _position(image_ids, pictures.ids))
        at = _position(kinds, categories.ids)
        strange = (at < 0) & ~no_kind
        faults.add(*_strange_categories(kinds, strange, name, categories.ids))
        classes = np.where(at < 0, -1, categories.classes[at])
        boxes[:, 2:] += boxes[:, :2]
        checked = np.flatnonzero(~no_box & (image >= 0) & ((classes >= 0) | strange))
        boxes[checked], wrong, problems = annotation_faults(
            boxes[checked], image[checked], pictures.sizes, lambda i: name(checked[i])
        )
        faults.add(*problems)
        keep = ~(no_id | again | no_box) & (image >= 0) & (classes >= 0)
        keep[checked[wrong]] = False
        return cls(image, kinds, classes, boxes, keep, name)


def _strange_categories(
    kinds: np.ndarray, strange: np.ndarray, name: Any, listed: np.ndarray
) -> list[str]:
    """A sentence for each category id that is not in the list, however many annotations have it."""
    problems = []
    for kind in np.unique(kinds[strange]):
        at = np.flatnonzero(strange & (kinds == kind))
        others = f" (and {len(at) - 1} more annotations)" if len(at) > 1 else ""
        problems.append(
            f"{name(at[0])}{others}: category_id is {kind}, which is not in 'categories'; its ids lie "
            f"between {listed.min()} and {listed.max()}"
        )
    return problems


@dataclass(frozen=True)
class _Given:
    """What annotations say beyond class and box: arrays of N, and which of them make no sense."""

    scores: np.ndarray
    weights: np.ndarray
    ignore: np.ndarray
    grade: np.ndarray
    bad: np.ndarray


def _given(
    rows: Sequence[Any], keep: np.ndarray, name: Any, grade: Grade, faults: Faults
) -> _Given:
    n = len(rows)
    scores, wrong, problems = number_column(_kept(rows, keep), "score", name, default=1.0)
    faults.add(*problems)
    out = _Given(scores, np.ones((n, 2)), np.zeros(n, np.uint8), np.full(n, grade, np.uint8), wrong)
    far = np.flatnonzero(keep & ~((scores >= 0) & (scores <= 1)))
    faults.add(*(f"{name(i)}: score is {scores[i]:g}; scores lie in [0, 1]" for i in far))
    out.bad[far] = True
    for i in np.flatnonzero(keep):
        row = rows[i]
        if row.get("iscrowd") or row.get("ignore"):
            out.ignore[i] = Ignore.REGION
        attributes = row.get("attributes")
        if isinstance(attributes, dict) and attributes:
            problems = list(_attributes(attributes, i, out))
            faults.add(*(f"{name(i)}: {problem}" for problem in problems))
            out.bad[i] |= bool(problems)
    return out


def _kept(rows: Sequence[Any], keep: np.ndarray) -> list[Any]:
    return [row if k else {} for row, k in zip(rows, keep.tolist(), strict=True)]


def _attributes(attributes: Mapping[str, Any], i: int, out: _Given):
    """Puts an annotation's attributes into row i of `out`; yields what is wrong with them."""
    for key, known, array in (("grade", _GRADES, out.grade), ("ignore", _IGNORES, out.ignore)):
        value = attributes.get(key)
        if isinstance(value, str) and value in known:
            array[i] = known[value]
        elif value not in (None, False):
            yield f"attributes.{key} is {value!r}; allowed are {' and '.join(known)}"
    for column, key in enumerate(("class_weight", "box_weight")):
        value = attributes.get(key, 1.0)
        if isinstance(value, int | float) and 0 <= value < 1e6:
            out.weights[i, column] = value
        else:
            yield f"attributes.{key} is {value!r}; it needs a number >= 0"


def _recall(
    info: Mapping[str, Any], categories: _Categories, num_classes: int, where: str
) -> np.ndarray:
    """Returns the factor (1, C) of `info.coverage`; of several categories of a class the least."""
    factor = np.ones((1, num_classes), dtype=np.float32)
    stated = info.get("coverage") or {}
    problems = []
    if not isinstance(stated, dict):
        raise InputError(
            f"{where}: info.coverage is {stated!r}; it needs category names and recalls"
        )
    for name, recall in stated.items():
        if name not in categories.names:
            problems.append(f"{where}: info.coverage names '{name}', which is not in 'categories'")
        elif not (isinstance(recall, int | float) and 0 <= recall <= 1):
            problems.append(f"{where}: info.coverage of '{name}' is {recall!r}; it lies in [0, 1]")
        elif (c := categories.classes[categories.names.index(name)]) >= 0:
            factor[0, c] = min(factor[0, c], recall)
    if problems:
        raise InputError(problems)
    return factor


def _lvis(
    pictures: _Pictures,
    found: _Found,
    categories: _Categories,
    coverage: np.ndarray,
    covers: Sequence[str] | None,
    classes: LabelSpace,
    faults: Faults,
    where: str,
) -> np.ndarray:
    """Returns coverage (I, C) where pictures say for which classes they were searched, else (1, C)."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    stating = [i for i, row in enumerate(pictures.rows) if any(k in row for k in keys)]
    if not stating:
        return coverage
    out = np.repeat(coverage, len(pictures.rows), axis=0)
    members, known = categories.members(), set(categories.ids.tolist())
    always = [classes.names.index(name) for name in covers or ()]
    order = np.argsort(found.image, kind="stable")
    starts = np.searchsorted(found.image[order], np.arange(len(out) + 1))
    for i in stating:
        row = pictures.rows[i]
        stated = {k: set(row.get(k) or ()) for k in keys}
        for key, ids in stated.items():
            if ids - known:
                faults.add(
                    f"{where}: image {pictures.ids[i]}: {key} has {sorted(ids - known)}, which are not "
                    "in 'categories'"
                )
        if "neg_category_ids" in row:
            present = set(found.category[order[starts[i] : starts[i + 1]]].tolist())
            searched = stated["neg_category_ids"] | present
            covered = [c for c, ids in members.items() if ids <= searched]
            out[i] = 0
            out[i, covered + always] = coverage[0, covered + always]
        for c, ids in members.items():
            if ids & stated["not_exhaustive_category_ids"]:
                out[i, c] = 0
    return out
