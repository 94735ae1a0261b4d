"""The legend of a folder of maps: what the values of their pixels mean.

Letters: C classes, K pixel values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detmtl.data.json_file import read_json
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade

UNLABELLED = (0, 255)
"""Pixel values that mean unknown where the categories don't say otherwise."""

HIGHEST = (1 << 16) - 1
"""The highest value of a pixel of 16 bits."""


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
                f"{path}: 'other' is {other!r}; it needs a list of ids, whole numbers from 0 to {HIGHEST}"
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

    def lookup(self, codes: Sequence[int]) -> np.ndarray:
        """Returns (K,) int16 what each pixel value means, see `Maps.lookup`.

        Args:
            codes: what the pixels of each category become: a class or `UNKNOWN`.
        """
        lookup = np.full(max([255, *self.categories, *self.other]) + 1, -1, np.int16)
        lookup[list(UNLABELLED)] = UNKNOWN
        lookup[list(self.categories)] = codes
        lookup[list(self.other)] = OTHER
        return lookup

    def covered(self, codes: Sequence[int], space: LabelSpace) -> np.ndarray:
        """Returns the coverage (C,) float32: 0 for a class that no category belongs to, of several categories
        the least.

        The class that takes what is unmapped is not covered by that: there is always more of the rest.
        """
        coverage = np.array(space.known(self.categories.values()), dtype=np.float32)
        for i, c in zip(self.categories, codes, strict=True):
            if c != UNKNOWN and self.coverage:
                coverage[c] = min(coverage[c], self.coverage.get(i, 1.0))
        return coverage

    def weighted(self, codes: Sequence[int]) -> np.ndarray | None:
        """Returns the loss weight of each meaning (256,) float32, of several categories of a class the least;
        None: 1 throughout."""
        if not self.weights:
            return None
        weights = np.ones(256, np.float32)
        for i, c in zip(self.categories, codes, strict=True):
            weights[c] = min(weights[c], self.weights.get(i, 1.0))
        return weights


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
            f"whole number from 0 to {HIGHEST}) and name"
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
    return type(value) is int and 0 <= value <= HIGHEST


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
