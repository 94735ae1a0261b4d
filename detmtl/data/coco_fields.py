"""What a COCO annotation file says beyond boxes: scores, weights, what to ignore, coverage.

Letters: I pictures, N annotations, C classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detmtl.data.coco_tables import Categories, Found, Pictures
from detmtl.data.faults import Faults, number_column, positions
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

GRADES = {"gold": Grade.GOLD, "silver": Grade.SILVER}
_IGNORES = {"class": Ignore.CLASS, "region": Ignore.REGION}


@dataclass(frozen=True)
class Given:
    """What annotations say beyond class and box: arrays of N, and which of them make no sense."""

    scores: np.ndarray
    weights: np.ndarray
    ignore: np.ndarray
    grade: np.ndarray
    bad: np.ndarray


def read_given(
    rows: Sequence[Any], keep: np.ndarray, name: Callable[[int], str], grade: Grade, faults: Faults
) -> Given:
    """Returns what the annotations at `keep` (N,) say of themselves beyond box and category; faults
    are collected in `faults`."""
    n = len(rows)
    scores, wrong, problems = number_column(_kept(rows, keep), "score", name, default=1.0)
    faults.add(*problems)
    out = Given(scores, np.ones((n, 2)), np.zeros(n, np.uint8), np.full(n, grade, np.uint8), wrong)
    far = positions(keep & ~((scores >= 0) & (scores <= 1)))
    faults.add(*(f"{name(i)}: score is {scores[i]:g}; scores lie in [0, 1]" for i in far))
    out.bad[far] = True
    for i in positions(keep):
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


def _attributes(attributes: Mapping[str, Any], i: int, out: Given) -> Iterator[str]:
    """Puts an annotation's attributes into row i of `out`; yields what is wrong with them."""
    for key, known, array in (("grade", GRADES, out.grade), ("ignore", _IGNORES, out.ignore)):
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


def stated_recall(
    info: Mapping[str, Any], categories: Categories, num_classes: int, where: str
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


def picture_coverage(
    pictures: Pictures,
    found: Found,
    categories: Categories,
    coverage: np.ndarray,
    always: Sequence[int],
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
            covered += always
            out[i, covered] = coverage[0, covered]
        for c, ids in members.items():
            if ids & stated["not_exhaustive_category_ids"]:
                out[i, c] = 0
    return out
