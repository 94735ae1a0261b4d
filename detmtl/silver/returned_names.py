"""Names of pictures as other tools return them, which may know no folders, and write something before or
behind each name."""

import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from detmtl.structures.errors import InputError

_UPLOADED = re.compile("^[0-9a-f]{8}-")
"""What Label Studio writes before the name of each picture that it is given."""

_EXPORTED = re.compile(r"_(?:jpe?g|png|webp|bmp|tiff?|gif)\.rf\.\w+$", re.IGNORECASE)
"""What Roboflow writes behind the name of each picture, before the ending."""


def finder(names: Sequence[str], sent: str) -> Callable[[Sequence[str], str], np.ndarray]:
    """Returns a function from names to positions in `names`: as they are; without their endings, which
    some tools cut off; or by the last part alone where that is unique, for tools that know no folders, and
    without what a tool has put before or behind it."""

    def forms(name: str) -> list[str]:
        path = name.replace("\\", "/")
        stem = os.path.basename(os.path.splitext(path)[0])
        return [path, os.path.splitext(path)[0], stem, _stored(stem)]

    tables: list[dict[str, int]] = [{}, {}, {}, {}]
    for i, name in enumerate(names):
        for table, form in zip(tables, forms(name), strict=True):
            table[form] = -1 if form in table else i

    def find(asked: Sequence[str], where: str) -> np.ndarray:
        at: list[int] = []
        problems: list[str] = []
        for name in asked:
            given = forms(name)
            keys = [*zip(tables[:3], given[:3], strict=True)]
            keys += [(tables[1], given[0]), (tables[2], given[0])]
            uploaded = _UPLOADED.sub("", given[2])
            keys += [(tables[2], uploaded), (tables[2], _EXPORTED.sub("", given[2]))]
            if uploaded != given[2]:
                keys.append((tables[3], uploaded))
            found = [table[key] for table, key in keys if key in table]
            at.append(next((i for i in found if i >= 0), -1))
            if at[-1] < 0 and found:
                problems.append(
                    f"{where}: the picture '{name}' has a name that fits several of {sent}; give it the "
                    "folder that it has there"
                )
            elif at[-1] < 0:
                problems.append(
                    f"{where}: the picture '{name}' is not among those of {sent}; give it the name that it "
                    "has there, or take it out"
                )
        seen = np.asarray(at, dtype=np.int64)
        single, times = np.unique(seen[seen >= 0], return_counts=True)
        again = [names[i] for i in single[times > 1].tolist()]
        problems += [f"{where}: has the picture '{name}' twice" for name in again]
        if problems:
            raise InputError(problems)
        return seen

    return find


def _stored(stem: str) -> str:
    """Returns a name as Label Studio stores it: blanks become `_`, and most other signs go."""
    return re.sub(r"[^-\w.]", "", stem.replace(" ", "_"))
