"""Semantic maps of a source: a folder of PNG files, one for each picture that has one.

Letters: I pictures, C classes, H and W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import model_validator

from detmtl.data.coverage import class_mask, partly_known
from detmtl.data.flat import FileNames, Flat
from detmtl.data.map_files import existing_folder, map_files, read_of_size
from detmtl.data.map_legend import HIGHEST, Legend
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import UNKNOWN, Grade, MapLabels
from detmtl.structures.settings import Settings

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
            if wrong := [i for i in ids if not 0 <= i <= HIGHEST]:
                raise ValueError(
                    f"{setting}: {', '.join(map(str, wrong))} is no value of a pixel; ids lie between 0 and "
                    f"{HIGHEST}"
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
        coverage, notes = legend.covered(codes, space), ()
        if self.covers is None:
            partly = space.partly(legend.categories.values())
            notes = partly_known(partly, "class", "maps.covers")
        else:
            coverage = class_mask(self.covers, space, f"{where}: maps.covers").astype(np.float32)
        return Maps(
            files=files,
            lookup=legend.lookup(codes),
            coverage=coverage,
            weights=legend.weighted(codes),
            grade=int(grade if legend.grade is None else legend.grade),
            rest=classes.rest,
            notes=notes,
        )

    def _legend(self, root: Path, where: str) -> Legend:
        if isinstance(self.categories, dict):
            legend = Legend(dict(self.categories))
        else:
            legend = Legend.read(root / self.categories)
        other = (*legend.other, *self.other)
        if double := sorted(set(other) & set(legend.categories)):
            raise InputError(
                f"{where}: maps.other: {double} are ids of categories; keep one meaning"
            )
        return replace(legend, other=other)


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
        notes: sentences on what the legend leaves open.
    """

    files: FileNames
    lookup: np.ndarray
    coverage: np.ndarray
    weights: np.ndarray | None
    grade: int
    rest: int | None = None
    notes: tuple[str, ...] = ()

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
        values = read_of_size(path, height, width, "map")
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
