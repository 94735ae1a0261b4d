"""Semantic maps of a source: a folder of PNG files, one for each picture that has one.

Letters: I pictures, C classes, H and W pixels.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import model_validator

from detmtl.data.coverage import class_mask
from detmtl.data.flat import FileNames, Flat
from detmtl.data.json_file import read_json
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade, MapLabels
from detmtl.structures.settings import Settings

UNLABELLED = (0, 255)
"""Pixel values that mean unknown where the categories don't say otherwise."""

_HIGHEST = (1 << 16) - 1
"""The highest value of a pixel of 16 bits."""

_ERROR, _UNKNOWN = "error", "unknown"


class MapClasses(Settings):
    """The classes of maps.

    Attributes:
        classes: the classes in order, or class -> names by which sources call its members.
        unmapped: what happens to the pixels of a category that belongs to no class: an `error`,
            `unknown` (no loss there), or the name of the class that takes them, as a background does.
    """

    classes: list[str] | dict[str, list[str]]
    unmapped: str = _ERROR

    @model_validator(mode="after")
    def _consistent(self) -> "MapClasses":
        names = list(self.classes)
        if taken := {_ERROR, _UNKNOWN} & set(names):
            raise ValueError(f"classes: {', '.join(sorted(taken))} is no name for a class of maps")
        if self.unmapped not in (_ERROR, _UNKNOWN, *names):
            close = get_close_matches(self.unmapped, names, n=1)
            hint = f" (nearest: {close[0]})" if close else ""
            raise ValueError(
                f"unmapped: '{self.unmapped}' is no class{hint}; give {_ERROR}, {_UNKNOWN} or a class"
            )
        return self

    def label_space(self) -> LabelSpace:
        """Returns the classes with their members."""
        drop = self.unmapped != _ERROR
        return LabelSpace.of(self.classes, drop_unmapped=drop, setting="data.maps")

    def codes(self, names: Iterable[str], where: str) -> list[int]:
        """Returns for each category name what its pixels become: a class, or `UNKNOWN`.

        Raises:
            InputError: a name belongs to no class and `unmapped` is `error`, or none does.
        """
        unmapped = UNKNOWN if self.rest is None else self.rest
        return [unmapped if c < 0 else c for c in self.label_space().class_of(names, where)]

    @property
    def rest(self) -> int | None:
        """The class that takes what is unmapped; None: none does."""
        names = list(self.classes)
        return names.index(self.unmapped) if self.unmapped in names else None


class MapFolder(Settings):
    """Where the maps of a source are.

    The map of `a/b.jpg` is `a/b.png` in `folder`: one channel (gray or palette, 8 or 16 bits) of
    category ids, as large as the picture. Ids 0 and 255 mean unknown, unless they are categories.

    Attributes:
        folder: of the PNG files; relative to the settings' root.
        categories: id -> name, or a JSON file: a list of objects with `id` and `name`, or an object
            with such a list. It may say more, as the selection of silver does, see `Legend`.
        other: ids, 0 to 65535 as all, of pixels that are none of the classes that were looked for.
        covers: the classes that were looked for; None: those that the categories name.
        missing: what a picture without a map is: an `error`; `absent`, nobody looked at it; or it is left
            out of the source, `drop`, after any subset was taken.
    """

    folder: str
    categories: str | dict[int, str]
    other: list[int] = []
    covers: list[str] | None = None
    missing: Literal["error", "absent", "drop"] = "error"

    @model_validator(mode="after")
    def _values(self) -> "MapFolder":
        own = self.categories if isinstance(self.categories, dict) else {}
        for setting, ids in (("categories", own), ("other", self.other)):
            if wrong := [i for i in ids if not 0 <= i <= _HIGHEST]:
                raise ValueError(
                    f"{setting}: {', '.join(map(str, wrong))} is no value of a pixel; ids lie between 0 and "
                    f"{_HIGHEST}"
                )
        return self

    def load(
        self,
        pictures: FileNames,
        root: Path,
        classes: MapClasses,
        where: str,
        grade: Grade = Grade.GOLD,
    ) -> "Maps":
        """Returns the maps of `pictures`; `grade` says who wrote them where their legend does not.

        Raises:
            InputError: with everything that is wrong, but for what only decoding shows.
        """
        folder = existing_folder(root / self.folder, f"{where}: maps.folder")
        legend = self._legend(root, where)
        files = map_files(pictures, folder, where, "map", self.missing)
        space = classes.label_space()
        codes = classes.codes(legend.categories.values(), f"{where}: maps.categories")
        coverage = _coverage(legend, codes, space)
        if self.covers is not None:
            coverage = class_mask(self.covers, space, f"{where}: maps.covers").astype(np.float32)
        return Maps(
            files=files,
            lookup=_lookup(legend, codes),
            coverage=coverage,
            weights=_weights(legend, codes),
            grade=int(grade if legend.grade is None else legend.grade),
            rest=classes.rest,
        )

    def _legend(self, root: Path, where: str) -> "Legend":
        if isinstance(self.categories, dict):
            legend = Legend(dict(self.categories))
        else:
            legend = Legend.read(root / self.categories)
        other = (*legend.other, *self.other)
        if double := sorted(set(other) & set(legend.categories)):
            raise InputError(
                f"{where}: maps.other: {double} are ids of categories; keep one meaning"
            )
        return Legend(legend.categories, other, legend.weights, legend.coverage, legend.grade)


@dataclass(frozen=True)
class Legend:
    """What the values of a folder of maps mean.

    As a JSON file: `categories`, a list of objects with `id` and `name` and perhaps `weight` (of the
    loss of their pixels) and `coverage` (how far `other` means that a pixel is not of it; else 1);
    `other`, a list of ids; `grade`, gold or silver, else the source's holds.

    Attributes:
        categories: id -> name.
        other: ids of pixels that are none of the categories.
        weights, coverage: id -> number, where it is not 1.
        grade: who wrote the maps; None: it does not say.
    """

    categories: Mapping[int, str]
    other: Sequence[int] = ()
    weights: Mapping[int, float] | None = None
    coverage: Mapping[int, float] | None = None
    grade: Grade | None = None

    @classmethod
    def read(cls, path: Path) -> "Legend":
        """Reads a JSON file.

        Raises:
            InputError: it cannot be read, or holds no categories.
        """
        data = read_json(path, str(path))
        rows = _rows(data, path)
        facts = data if isinstance(data, dict) else {}
        other, grade = facts.get("other", []), facts.get("grade")
        if not (isinstance(other, list) and all(map(_is_id, other))):
            raise InputError(
                f"{path}: 'other' is {other!r}; it needs a list of ids, whole numbers from 0 to {_HIGHEST}"
            )
        if grade not in (None, "gold", "silver"):
            raise InputError(f"{path}: 'grade' is {grade!r}; it is gold or silver")
        return cls(
            {row["id"]: row["name"] for row in rows},
            tuple(other),
            _numbers(rows, "weight", 1e6, path),
            _numbers(rows, "coverage", 1.0, path),
            None if grade is None else Grade[grade.upper()],
        )

    def json(self) -> dict[str, Any]:
        """Returns what `read` reads."""
        rows = [
            {"id": i, "name": name}
            | ({"weight": self.weights[i]} if self.weights and i in self.weights else {})
            | ({"coverage": self.coverage[i]} if self.coverage and i in self.coverage else {})
            for i, name in self.categories.items()
        ]
        grade = {} if self.grade is None else {"grade": self.grade.name.lower()}
        return {"categories": rows, "other": list(self.other)} | grade


class SomeMaps(Protocol):
    """The maps of I pictures, wherever they come from."""

    def present(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map."""
        ...

    def by_people(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map that people made."""
        ...

    def searched(self) -> np.ndarray:
        """Returns (C,) bool: which classes were looked for in some map."""
        ...

    def paths(self) -> list[str]:
        """Returns the files, of each picture that has a map the one that counts."""
        ...

    def take(self, indices: np.ndarray) -> "SomeMaps":
        """Returns the maps of the pictures at `indices`."""
        ...

    def labels(self, i: int, height: int, width: int) -> MapLabels | None:
        """Returns the map of picture i, see `Maps.labels`."""
        ...


@dataclass(frozen=True, eq=False)
class FilledMaps(Flat):
    """The maps of I pictures, from `first` where it has one and else from `second`."""

    first: SomeMaps
    second: "Maps"

    def present(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map."""
        return self.first.present() | self.second.present()

    def by_people(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map that people made."""
        return np.where(self.first.present(), self.first.by_people(), self.second.by_people())

    def searched(self) -> np.ndarray:
        """Returns (C,) bool: which classes were looked for in some map."""
        return self.first.searched() | self.second.searched()

    def paths(self) -> list[str]:
        """Returns the files, of each picture that has a map the one that counts."""
        first = self.first.present()
        others = np.flatnonzero(self.second.present() & ~first).tolist()
        own = [self.second.files[i] for i in others]
        return self.first.paths() + own

    def take(self, indices: np.ndarray) -> "FilledMaps":
        """Returns the maps of the pictures at `indices`."""
        return FilledMaps(self.first.take(indices), self.second.take(indices))

    def labels(self, i: int, height: int, width: int) -> MapLabels | None:
        """Returns the map of picture i, see `Maps.labels`."""
        found = self.first.labels(i, height, width)
        return self.second.labels(i, height, width) if found is None else found


@dataclass(frozen=True, eq=False)
class Maps(Flat):
    """The maps of I pictures.

    Attributes:
        files: of the maps; an empty name: nobody looked at the picture.
        lookup: (K,) int16: what pixel value k means: a class, `OTHER`, `UNKNOWN`; -1: nothing.
        coverage: (C,) float32, see `MapLabels`.
        weights: (256,) float32, the loss weight of each meaning; None: 1 throughout.
        grade: a `Grade`.
        rest: the class that takes what is unmapped: its pixels say where it is, though no other says where
            it is not.
    """

    files: FileNames
    lookup: np.ndarray
    coverage: np.ndarray
    weights: np.ndarray | None
    grade: int
    rest: int | None = None

    def present(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map."""
        return np.diff(self.files.offsets) > 0

    def by_people(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map that people made."""
        return self.present() & (self.grade == Grade.GOLD)

    def searched(self) -> np.ndarray:
        """Returns (C,) bool: which classes were looked for in some map, `rest` among them."""
        looked = self.coverage > 0
        if self.rest is not None and (self.lookup == self.rest).any():
            looked[self.rest] = True
        return looked & self.present().any()

    def paths(self) -> list[str]:
        """Returns the files of the maps."""
        return [self.files[i] for i in np.flatnonzero(self.present()).tolist()]

    def take(self, indices: np.ndarray) -> "Maps":
        """Returns the maps of the pictures at `indices`."""
        return replace(self, files=self.files.take(indices))

    def labels(self, i: int, height: int, width: int) -> MapLabels | None:
        """Returns the map of picture i, of that size; None where there is none.

        Raises:
            InputError: the file is broken, of another size, or has a value without a meaning.
        """
        if not self.files.name(i):
            return None
        path = self.files[i]
        values = read_values(path)
        if values.shape != (height, width):
            raise InputError(
                f"{path}: the map is {values.shape[1]} x {values.shape[0]} pixels (width x height), its "
                f"picture {width} x {height}; a map is as large as its picture"
            )
        if int(values.max(initial=0)) >= len(self.lookup):
            known = values < len(self.lookup)
            codes = np.full(values.shape, -1, np.int16)
            codes[known] = self.lookup[values[known]]
        else:
            codes = self.lookup[values]
        if codes.min(initial=0) < 0:
            wrong = np.unique(values[codes < 0] if codes.size else values)
            raise InputError(
                f"{path}: has pixels of {', '.join(map(str, wrong[:8].tolist()))}, which are no ids of "
                "maps.categories; correct the map or add the categories"
            )
        classes = codes.astype(np.uint8)
        weights = None if self.weights is None else torch.from_numpy(self.weights[classes])
        coverage = torch.from_numpy(np.array(self.coverage))
        return MapLabels(torch.from_numpy(classes), weights, coverage, self.grade)


def read_values(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the pixel values of a map (H, W), uint8 or uint16; of a palette the indices.

    Raises:
        InputError: it cannot be read, or has several channels.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.array(picture)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as problem:
        raise InputError(f"{path}: cannot be read as a map ({problem})") from None
    if values.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise InputError(
            f"{path}: is {mode} with {values.shape[2] if values.ndim > 2 else 1} channels; a map has one, "
            "gray or palette"
        )
    return values.astype(np.uint8) if values.dtype == bool else values


def write_values(path: Path, values: np.ndarray) -> None:
    """Writes pixel values (H, W) uint8 as a PNG with a palette, so that a viewer shows colors: of classes
    hues a golden angle apart, `OTHER` gray, `UNKNOWN` white."""
    hues = (np.arange(256) * 0.618034 * 255).astype(np.int64) % 256
    hsv = np.stack([hues, np.full(256, 190), np.full(256, 255)], axis=1).astype(np.uint8)
    palette = np.array(Image.fromarray(hsv[None], mode="HSV").convert("RGB"))[0]
    palette[OTHER], palette[UNKNOWN] = 128, 255
    picture = Image.fromarray(values)
    picture.putpalette(palette.tobytes())
    picture.save(path, format="PNG")


def _map_name(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".png"


def existing_folder(folder: Path, setting: str) -> Path:
    """Returns `folder`.

    Raises:
        InputError: it does not exist; `setting` says who names it.
    """
    if not folder.is_dir():
        raise InputError(f"{setting}: {folder} does not exist")
    return folder


def map_files(
    pictures: FileNames, folder: Path, where: str, what: Literal["map", "depth"], missing: str
) -> FileNames:
    """Returns the files of the pictures' maps, or depths, in `folder`; an empty name where there is none.

    Raises:
        InputError: no picture has one, or `missing` is `error` and some have none.
    """
    names = map_names(pictures, folder)
    without = [pictures.name(i) for i, name in enumerate(names) if not name]
    if len(without) == len(pictures):
        raise InputError(
            f"{where}: none of its {len(pictures)} pictures has a {what} in {folder}; the {what} of "
            f"{without[0]} would be {_map_name(without[0])}"
        )
    if without and missing == "error":
        key = "maps" if what == "map" else "depth"
        raise InputError(
            [
                f"{where}: {name} has no {what} in {folder}; set {key}.missing: absent where nobody "
                "looked at such pictures"
                for name in without
            ]
        )
    return FileNames.of(folder, names)


def map_names(pictures: FileNames, folder: Path) -> list[str]:
    """Returns for each picture the name of its map in `folder`, "" where it has none."""
    listed: dict[str, set[str]] = {}
    names = []
    for i in range(len(pictures)):
        name = _map_name(pictures.name(i)).lstrip("/")
        below, file = os.path.split(name)
        if below not in listed:
            at = folder / below
            listed[below] = set(os.listdir(at)) if at.is_dir() else set()
        names.append(name if file in listed[below] else "")
    return names


def _rows(data: Any, path: Path) -> list[dict[str, Any]]:
    """Returns the list of categories in a JSON value: itself, `categories`, or the only list of
    objects with id and name that it has."""
    if isinstance(data, dict):
        lists = [data["categories"]] if "categories" in data else list(data.values())
    else:
        lists = [data]
    fits = [rows for rows in lists if isinstance(rows, list) and rows and all(map(_is_row, rows))]
    if len(fits) != 1:
        raise InputError(
            f"{path}: has {len(fits) or 'no'} lists of categories; it needs one, of objects with id (a "
            f"whole number from 0 to {_HIGHEST}) and name"
        )
    ids, names = [row["id"] for row in fits[0]], [row["name"] for row in fits[0]]
    double = sorted({x for x in ids if ids.count(x) > 1})
    double += sorted({x for x in names if names.count(x) > 1})
    if double:
        raise InputError([f"{path}: the category {x!r} is listed twice" for x in double])
    return fits[0]


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and _is_id(row.get("id")) and isinstance(row.get("name"), str)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _HIGHEST


def _numbers(
    rows: Sequence[Mapping[str, Any]], key: Literal["weight", "coverage"], most: float, path: Path
) -> dict[int, float]:
    found = {row["id"]: row[key] for row in rows if key in row}
    problems = [
        f"{path}: category {i}: {key} is {value!r}; it lies in [0, {most:g}]"
        for i, value in found.items()
        if not (isinstance(value, int | float) and 0 <= value <= most)
    ]
    if problems:
        raise InputError(problems)
    return found


def _coverage(legend: Legend, codes: Sequence[int], space: LabelSpace) -> np.ndarray:
    """Returns (C,): 0 for a class that no category belongs to, of several categories the least.

    The class that takes what is unmapped is not covered by that: there is always more of the rest.
    """
    coverage = np.array(space.known(legend.categories.values()), dtype=np.float32)
    for (i, _), c in zip(legend.categories.items(), codes, strict=True):
        if c != UNKNOWN and legend.coverage:
            coverage[c] = min(coverage[c], legend.coverage.get(i, 1.0))
    return coverage


def _lookup(legend: Legend, codes: Sequence[int]) -> np.ndarray:
    lookup = np.full(max([255, *legend.categories, *legend.other]) + 1, -1, np.int16)
    lookup[list(UNLABELLED)] = UNKNOWN
    lookup[list(legend.categories)] = codes
    lookup[list(legend.other)] = OTHER
    return lookup


def _weights(legend: Legend, codes: Sequence[int]) -> np.ndarray | None:
    """Returns (256,) the weight of each meaning; of several categories of a class the least."""
    if not legend.weights:
        return None
    weights = np.ones(256, np.float32)
    for (i, _), c in zip(legend.categories.items(), codes, strict=True):
        weights[c] = min(weights[c], legend.weights.get(i, 1.0))
    return weights
