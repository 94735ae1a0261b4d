"""What a COCO annotation file says of where people looked: coverage.

Letters: I pictures, K categories of the file, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detmtl.data.coco_tables import Categories, positions_of
from detmtl.data.faults import Faults
from detmtl.structures.errors import InputError

_BLOCK = 4096
"""Pictures whose searched categories are looked at together: LVIS has 100,000 times 1,203."""


def stated_recall(
    info: Mapping[str, Any], categories: Categories, num_classes: int, where: str
) -> np.ndarray:
    """Returns the factor (1, C) of `info.coverage`; of several categories of a class the least."""
    stated = info.get("coverage") or {}
    values, problems, _ = _stated(stated, categories, "info.coverage")
    if problems:
        raise InputError([f"{where}: {problem}" for problem in problems])
    factor = np.ones((1, num_classes), dtype=np.float32)
    for k, recall in values.items():
        if (c := categories.classes[k]) >= 0:
            factor[0, c] = min(factor[0, c], recall)
    return factor


def _stated(
    stated: Any, categories: Categories, name: str
) -> tuple[dict[int, float], Sequence[str], bool]:
    """Returns position of the category -> coverage, 0 where it makes no sense; what is wrong with it; and
    whether something is said of a category that nobody knows."""
    if not isinstance(stated, dict):
        return {}, [f"{name} is {stated!r}; it needs category names and recalls"], True
    values, problems, strange = {}, [], False
    place = {category: k for k, category in enumerate(categories.names)}
    for category, recall in stated.items():
        if category not in place:
            problems.append(f"{name} names '{category}', which is not in 'categories'")
            strange = True
        elif isinstance(recall, bool) or not (isinstance(recall, int | float) and 0 <= recall <= 1):
            problems.append(f"{name} of '{category}' is {recall!r}; it lies in [0, 1]")
            values[place[category]] = 0.0
        else:
            values[place[category]] = float(recall)
    return values, problems, strange


@dataclass(frozen=True)
class Searched:
    """What a file says of where people looked.

    Attributes:
        where: the file, for sentences.
        faults: what makes no sense is collected there, and taken for the least that it may have meant: as
            far as nobody can tell for which classes a picture was searched, it was for none.
        categories: of the file.
        rows, ids: the JSON object of each picture, and its id.
        image, category: positions of picture and category of each annotation, -1: of none.
    """

    where: str
    faults: Faults
    categories: Categories
    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[int] | np.ndarray
    image: np.ndarray
    category: np.ndarray

    def coverage(self, usual: np.ndarray, covers: Sequence[int] | None) -> np.ndarray:
        """Returns coverage (I, C) where pictures say for which classes they were searched, else `usual`.

        As in LVIS (Gupta et al. 2019, arXiv 1908.03195): a picture with `neg_category_ids` was
        searched for those categories, which are not in it, and for those it has annotations of (the
        federated data set's negative and positive set), and for no other; for the categories of
        `not_exhaustive_category_ids` there are objects without annotations. A class of several
        categories was searched for if all of them were. Beyond LVIS, a picture's `coverage` {category
        name: number} is this picture's coverage in place of all else that the file says.

        Args:
            usual: (1, C), of pictures that say nothing.
            covers: classes that the user says were looked for in every picture, and no other; None: the
                user says nothing.
        """
        has_negatives, negatives, _ = self._listed("neg_category_ids")
        has_partial, partial, unclear = self._listed("not_exhaustive_category_ids")
        stating = [i for i, row in enumerate(self.rows) if row.get("coverage") is not None]
        if not (has_negatives.any() or has_partial.any() or stating):
            return usual
        out = np.repeat(usual, len(self.rows), axis=0)
        present = np.stack([self.image, self.category], axis=1)
        searched = np.concatenate([negatives, present[(present >= 0).all(axis=1)]])
        searched = searched[np.argsort(searched[:, 0], kind="stable")]
        members, num_categories = self.categories.members(), len(self.categories.ids)
        always = np.zeros(out.shape[1], dtype=bool)
        always[list(covers or ())] = True
        for first in range(0, len(out), _BLOCK):
            last = min(first + _BLOCK, len(out))
            looked = _whole(_marks(searched, first, last, num_categories), members, len(always))
            exact = _whole(~_marks(partial, first, last, num_categories), members, len(always))
            unsearched = has_negatives[first:last, None] & ~looked & ~always
            out[first:last][unsearched | ~exact] = 0
        out[unclear] = 0
        for i in stating:
            values, problems, strange = _stated(
                self.rows[i]["coverage"], self.categories, "coverage"
            )
            if strange:
                out[i] = 0
            self._tell(i, problems)
            for c, places in members.items():
                own = [values[k] for k in places if k in values]
                if own and (covers is None or always[c]):
                    out[i, c] = min(own) if len(own) == len(places) else min(*own, out[i, c])
        return out

    def _tell(self, i: int, problems: Iterable[str]) -> None:
        self.faults.add(*(f"{self.where}: image {self.ids[i]}: {problem}" for problem in problems))

    def _listed(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns which pictures have a list of category ids (I,) bool; all entries, rising by picture, as
        position of picture and of category (P, 2) int64; and in which pictures some of them make no sense
        (I,) bool."""
        has, unclear = np.zeros((2, len(self.rows)), dtype=bool)
        image: list[int] = []
        named: list[int] = []
        for i, row in enumerate(self.rows):
            if (value := row.get(key)) is None:
                continue
            has[i] = True
            given = value if isinstance(value, list) else []
            known = [k for k in given if type(k) is int and abs(k) < 2**63]
            if given is not value or len(known) < len(given):
                self._tell(i, [f"{key} is {value!r}; it needs a list of category ids"])
                unclear[i] = True
            image += [i] * len(known)
            named += known
        at = positions_of(np.asarray(named, dtype=np.int64), self.categories.ids)
        entries = np.stack([np.asarray(image, dtype=np.int64), at], axis=1)
        strange: dict[int, set[int]] = {}
        for n in np.flatnonzero(at < 0).tolist():
            strange.setdefault(image[n], set()).add(named[n])
        for i, unknown in strange.items():
            unclear[i] = True
            self._tell(i, [f"{key} has {sorted(unknown)}, which are not in 'categories'"])
        return has, entries[at >= 0], unclear


def _marks(entries: np.ndarray, first: int, last: int, num_categories: int) -> np.ndarray:
    """Returns (last - first, K) bool, true at the entries (P, 2) of the pictures from first to last."""
    marks = np.zeros((last - first, num_categories), dtype=bool)
    start, end = np.searchsorted(entries[:, 0], [first, last])
    marks[entries[start:end, 0] - first, entries[start:end, 1]] = True
    return marks


def _whole(marks: np.ndarray, members: Mapping[int, list[int]], num_classes: int) -> np.ndarray:
    """Returns (I, C) bool: whether all categories of a class are marked (I, K); a class without
    categories has none that is not."""
    out = np.ones((len(marks), num_classes), dtype=bool)
    for c, places in members.items():
        out[:, c] = marks[:, places].all(axis=1)
    return out
