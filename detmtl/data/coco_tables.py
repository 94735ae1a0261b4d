"""The tables of a COCO annotation file as arrays, checked: categories, pictures, annotations.

Letters: I pictures, K categories of the file, N annotations, C classes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.coco_rows import Columns
from detmtl.data.faults import (
    Faults,
    annotation_faults,
    lost_labels,
    number_column,
    positions,
    repeated,
)
from detmtl.data.flat import FileNames
from detmtl.data.images import image_sizes
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

SPLITS = ("train2014", "val2014", "train2017", "val2017", "test2015", "test2017", "unlabeled2017")
"""COCO's, by which its addresses and the folders of its pictures are named."""


@dataclass(frozen=True)
class Categories:
    """The K categories of the file: the JSON object of each, ids (K,) int64, names, and the class of each
    (K,), -1: dropped."""

    rows: Sequence[Any]
    ids: np.ndarray
    names: list[str]
    classes: np.ndarray

    def members(self) -> dict[int, list[int]]:
        """Returns for each class the positions of the categories that mean it."""
        out: dict[int, list[int]] = {}
        for k, c in enumerate(self.classes.tolist()):
            if c >= 0:
                out.setdefault(c, []).append(k)
        return out


def read_categories(listed: Sequence[Any], classes: LabelSpace, where: str) -> Categories:
    """Returns the categories of a file.

    Raises:
        InputError: ids or names are missing or repeated, or a name belongs to no class.
    """
    ids, _, problems = number_column(
        listed, "id", lambda i: f"{where}: category at position {i}", whole=True
    )
    names = []
    for i, category in enumerate(listed):
        name = category.get("name") if isinstance(category, dict) else None
        if isinstance(name, str) and name:
            names.append(name)
        else:
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
    of = np.asarray(classes.class_of(names, where), dtype=np.int64)
    return Categories(listed, ids, names, of)


@dataclass(frozen=True)
class Pictures:
    """The pictures that are kept, the JSON object of each, all ids that were listed, the names of the
    pictures whose size was read from the picture, and the names of those that are not kept."""

    files: FileNames
    ids: np.ndarray
    sizes: np.ndarray
    rows: list[dict[str, Any]]
    listed: np.ndarray
    measured: tuple[str, ...]
    unused: tuple[str, ...]


def read_pictures(images: Sequence[Any], folder: Path, where: str, faults: Faults) -> Pictures:
    """Returns the pictures that are fit for use, relative to `folder`; what is wrong with the others
    is collected in `faults`."""
    ids, bad, problems = number_column(
        images, "id", lambda i: f"{where}: image at position {i}", whole=True
    )

    def name(i: int) -> str:
        return f"{where}: image {ids[i]}"

    faults.add(*problems)
    names = file_names(images, bad, folder)
    for i in positions(~bad & (np.array(names, dtype=object) == "")):
        faults.add(
            f"{name(i)}: has no 'file_name', nor the 'coco_url' of LVIS; it needs a text, the "
            "picture's name below `images`"
        )
        bad[i] = True
    good = np.flatnonzero(~bad)
    again = good[repeated(ids[good])].tolist()
    faults.add(*(f"{where}: the image id {ids[i]} is listed twice; ids must differ" for i in again))
    bad[again] = True
    for name_twice, places in _several(names, bad).items():
        # Each would teach what the others have as background, and which of them is right nobody can tell.
        listed = ", ".join(str(ids[i]) for i in places)
        faults.add(
            f"{where}: the images {listed} are all {name_twice}; keep one of them, or join their annotations "
            "under one id"
        )
        bad[places] = True
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    good = np.flatnonzero(~bad)
    stated = np.array([bool({"height", "width"} & images[i].keys()) for i in good.tolist()], bool)
    _stated_sizes(images, good[stated], sizes, bad, name, faults)
    unstated = good[~stated]
    paths = FileNames.of(folder, [names[i] for i in unstated.tolist()])
    sizes[unstated], unreadable = image_sizes(list(paths.paths()))
    faults.add(*(f"{text}; its size is not in {where} either" for _, text in unreadable))
    bad[unstated[[i for i, _ in unreadable]]] = True
    keep = np.flatnonzero(~bad)
    if not len(keep):
        raise InputError([f"{where}: none of its pictures can be used", *faults.problems])
    return Pictures(
        files=FileNames.of(folder, [names[i] for i in keep.tolist()]),
        ids=ids[keep],
        sizes=sizes[keep].astype(np.int32),
        rows=[images[i] for i in keep.tolist()],
        listed=ids,
        measured=tuple(names[i] for i in unstated.tolist()),
        unused=tuple(names[i] for i in positions(bad) if names[i]),
    )


def file_names(images: Sequence[Any], bad: np.ndarray, folder: Path) -> list[str]:
    """Returns each picture's name below `folder`, "" of one that has none or is `bad` (I,), as what is no
    JSON object has to be.

    LVIS (from its version 1 on) has no file names, but COCO's addresses, .../train2017/1.jpg: the
    picture is `train2017/1.jpg` where `folder` has such a folder, `1.jpg` otherwise. Tools on Windows write
    `images\\1.jpg`: that is `images/1.jpg` where `folder` has this and no file of the very name.
    """

    @cache
    def has(split: str) -> bool:
        return split in SPLITS and (folder / split).is_dir()

    def named(row: dict[str, Any]) -> str:
        if (given := row.get("file_name")) is not None:
            if not isinstance(given, str):
                return ""
            ours = given.replace("\\", "/")
            foreign = ours != given and (folder / ours).exists() and not (folder / given).exists()
            return ours if foreign else given
        url = row.get("coco_url")
        *_, split, last = ["", *url.split("/")] if isinstance(url, str) else ["", ""]
        return f"{split}/{last}" if last and has(split) else last

    return ["" if b else named(row) for row, b in zip(images, bad.tolist(), strict=True)]


def _several(names: Sequence[str], bad: np.ndarray) -> dict[str, list[int]]:
    """Returns name -> positions, of each name that several pictures have which are not `bad` (I,)."""
    places: dict[str, list[int]] = {}
    for i in np.flatnonzero(~bad).tolist():
        name = names[i]
        if "./" in name or "//" in name:  # `a/./b.jpg` is `a/b.jpg`
            name = os.path.normpath(name)
        places.setdefault(name, []).append(i)
    return {name: at for name, at in places.items() if len(at) > 1}


def _stated_sizes(
    images: Sequence[Any],
    at: np.ndarray,
    sizes: np.ndarray,
    bad: np.ndarray,
    name: Callable[[int], str],
    faults: Faults,
) -> None:
    """Fills in the sizes that the file states, and marks the pictures whose size makes no sense."""
    rows = [images[i] for i in at.tolist()]
    for column, key in enumerate(("height", "width")):
        values, wrong, problems = number_column(rows, key, lambda i: name(at[i]))
        faults.add(*problems)
        small = ~wrong & ~((values >= 1) & (values < 2**31) & (values == np.round(values)))
        faults.add(
            *(
                f"{name(at[i])}: {key} is {values[i]:g}; it needs a whole number of pixels > 0"
                for i in positions(small)
            )
        )
        bad[at[wrong | small]] = True
        sizes[at, column] = np.where(wrong | small, 0, values)


def positions_of(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns for each value its position in `table`, -1 if it is not there."""
    if not len(table):
        return np.full(len(values), -1)
    order = np.argsort(table, kind="stable")
    at = np.searchsorted(table[order], values).clip(max=len(table) - 1)
    return np.where(table[order][at] == values, order[at], -1)


@dataclass(frozen=True)
class Found:
    """The N annotations: positions of picture and category (N,), class (N,), -1: not known; boxes (N, 4)
    xyxy, those of known class and place `keep` (N,), among them `faulty` (N,) ones, the `lost` ones
    (see `Parsed`), and how sentences call them."""

    image: np.ndarray
    category: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    keep: np.ndarray
    faulty: np.ndarray
    lost: np.ndarray
    name: Callable[[int], str]

    @classmethod
    def of(
        cls,
        columns: Columns,
        pictures: Pictures,
        categories: Categories,
        where: str,
        faults: Faults,
    ) -> "Found":
        """Finds picture, class and place of all annotations and notes what is wrong with them."""

        def name(i: int) -> str:
            return columns.name(i, where)

        kinds, no_image, no_kind = columns.kinds, columns.no_image, columns.no_kind
        boxes, no_box = columns.boxes.copy(), columns.no_box
        faults.add(*columns.faults)
        sound = np.flatnonzero(~columns.no_id)
        again = np.zeros(len(columns), dtype=bool)
        again[sound] = repeated(columns.ids[sound])
        faults.add(*(f"{name(i)}: the annotation id is used twice" for i in positions(again)))
        unlisted = ~no_image & ~np.isin(columns.images, pictures.listed)
        faults.add(*(f"{name(i)}: there is no such image in 'images'" for i in positions(unlisted)))
        image = np.where(no_image, -1, positions_of(columns.images, pictures.ids))
        category = np.where(no_kind, -1, positions_of(kinds, categories.ids))
        unknown = category < 0
        strange = unknown & ~no_kind
        faults.add(*_strange_categories(kinds, strange, name, categories.ids))
        classes = np.where(unknown, -1, categories.classes[category])
        boxes[:, 2:] += boxes[:, :2]
        checked = np.flatnonzero(~no_box & (image >= 0) & ((classes >= 0) | strange))
        boxes[checked], wrong, problems = annotation_faults(
            boxes[checked], image[checked], pictures.sizes, lambda i: name(checked[i])
        )
        faults.add(*problems)
        placed = ~no_box
        placed[checked[wrong]] = False
        keep = placed & (image >= 0) & (classes >= 0)
        gone = unknown | (~placed & (classes >= 0))
        lost = lost_labels(image[gone], classes[gone])
        faulty = columns.no_id | again
        return cls(image, category, classes, boxes, keep, faulty, lost, name)


@dataclass(frozen=True)
class CocoTables:
    """The tables of a file, its name for sentences, and where what is wrong in it is collected."""

    where: str
    faults: Faults
    categories: Categories
    pictures: Pictures
    found: Found


def _strange_categories(
    kinds: np.ndarray, strange: np.ndarray, name: Callable[[int], str], listed: np.ndarray
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
