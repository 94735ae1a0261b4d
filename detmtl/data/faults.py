"""What can be wrong with annotations and pictures, each told in a sentence.

Letters: I pictures, N boxes of all pictures, C classes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from detmtl.data.images import Progress
from detmtl.data.parsed import left_out
from detmtl.data.source import Source
from detmtl.data.tags import Tags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Ignore

OUTSIDE = 1.0
"""Pixels by which a box may reach over the edge of its picture; so much is rounding, and is cut off."""

MANY_BOXES = 1000
"""A picture with more boxes than this is worth a word in `check`."""


class Faults:
    """Collects what is wrong in the files of one source, and settles it as the user chose.

    Attributes:
        where: the file or folder.
        problems: a sentence each.
    """

    def __init__(self, where: str, may_drop: bool = True):
        """Takes the place, and whether the user may choose to drop what is faulty."""
        self.where = where
        self._may_drop = may_drop
        self.problems: list[str] = []

    def add(self, *problems: str) -> None:
        """Notes problems that leaving out what is faulty removes."""
        self.problems += problems

    def settle(self, choice: Literal["error", "drop"]) -> str:
        """Returns a sentence on what is left out, "" if nothing was wrong.

        Raises:
            InputError: something is wrong and the choice is "error".
        """
        if self.problems and choice == "error":
            count = f"{len(self.problems)} fault" + ("s" if len(self.problems) > 1 else "")
            hint = f"{self.where}: {count}; correct them"
            if self._may_drop:
                hint += ", or set `faults: drop` (--faults drop) to leave out what is faulty"
            raise InputError([hint, *self.problems])
        return left_out(self.where, self.problems)


def positions(mask: np.ndarray) -> list[int]:
    """Returns where a mask (N,) is true."""
    return np.flatnonzero(mask).tolist()


def annotation_faults(
    boxes: np.ndarray,
    image: np.ndarray,
    sizes: np.ndarray,
    names: Callable[[int], str],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Finds boxes that are not numbers, empty, inverted or outside their picture.

    Args:
        boxes: (N, 4) float64 xyxy, pixels.
        image: (N,) int64, position of each box's picture.
        sizes: (I, 2), height and width of the pictures; a picture of 0 x 0 is not known, and its
            boxes are not compared with it.
        names: gives the name of a box for a sentence: file, annotation, picture.

    Returns:
        The boxes (N, 4) cut at the edges of their pictures, a mask (N,) of those of which nothing usable
        is left, and a sentence for each of those and for each that reached too far over the edge.
    """
    height, width = np.moveaxis(sizes[image].astype(np.float64), 1, 0)
    known = (height > 0) & (width > 0)
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    safe = np.where(finite[:, None], boxes, 0)
    sides = safe[:, 2:] - safe[:, :2]
    empty = finite & (sides <= 0).any(axis=1)
    limit = np.stack([width, height, width, height], axis=1)
    inside = np.where(known[:, None], np.clip(safe, 0, limit), safe)
    beyond = finite & ~empty & (np.abs(inside - safe) > OUTSIDE).any(axis=1)
    # In float32, in which they are kept, a box cut at the edge may have nothing left.
    kept = inside.astype(np.float32)
    nothing: np.ndarray = (kept[:, 2:] <= kept[:, :2]).any(axis=1) & finite & ~empty
    problems = {}
    for i in positions(~finite):
        problems[i] = f"{names(i)}: {_box(boxes[i])} is not finite; boxes need finite numbers"
    for i in positions(empty):
        side, value = ("width", sides[i, 0]) if sides[i, 0] <= 0 else ("height", sides[i, 1])
        inverted = " (inverted corners?)" if value < 0 else ""
        problems[i] = f"{names(i)}: {side} is {value:g}{inverted}; boxes need width and height > 0"
    for i in positions(beyond | nothing):
        problems[i] = (
            f"{names(i)}: {_box(boxes[i])} lies outside its picture of {width[i]:g} x {height[i]:g} "
            f"pixels (width x height); boxes may reach over the edge by at most {OUTSIDE:g} pixel"
        )
    useless: np.ndarray = ~finite | empty | nothing
    return inside, useless, [problems[i] for i in positions(useless | beyond)]


def lost_labels(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns `Parsed.lost` (P, 2) of labels of which nothing usable is left, each once.

    Args:
        image: (N,) position of the picture; labels of none (-1) are passed over.
        classes: (N,) class, -1 where it is not known.
    """
    pairs = np.stack([image, classes], axis=1).astype(np.int64)[image >= 0]
    return np.unique(pairs, axis=0)


def _box(box: np.ndarray) -> str:
    return "the box (x1, y1, x2, y2) = (" + ", ".join(f"{v:.6g}" for v in box) + ")"


def number_column(
    rows: Sequence[dict[str, Any]],
    key: str,
    names: Callable[[int], str],
    width: int | None = None,
    whole: bool = False,
    default: float | None = None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads one number (or `width` numbers) of each JSON object.

    Args:
        rows: the objects.
        key: of the number.
        names: gives the name of a row for a sentence.
        width: how many numbers; None: one.
        whole: takes integers only.
        default: stands for a missing key; None: the key is needed.

    Returns:
        (N,) or (N, width) float64 or int64, a mask (N,) of the rows where it is missing or no number
        (0 stands there), and a sentence for each of those.
    """
    kind = np.dtype(np.int64 if whole else np.float64)
    shape = (len(rows),) if width is None else (len(rows), width)
    bad = np.zeros(len(rows), dtype=bool)
    if not rows:
        return np.zeros(shape, kind), bad, []
    try:
        values = [r[key] for r in rows] if default is None else [r.get(key, default) for r in rows]
        array = np.array(values)
        if array.shape == shape and array.dtype.kind in ("i" if whole else "iuf"):
            return array.astype(kind), bad, []
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        pass
    return _careful_column(rows, key, names, width, whole, default)


def _careful_column(
    rows: Sequence[Any],
    key: str,
    names: Callable[[int], str],
    width: int | None,
    whole: bool,
    default: float | None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`number_column` where something is wrong somewhere: row by row."""
    kind = np.dtype(np.int64 if whole else np.float64)
    out = np.zeros((len(rows),) if width is None else (len(rows), width), kind)
    bad = np.zeros(len(rows), dtype=bool)
    problems = []
    need = f"{width} numbers" if width else "a whole number below 2**63" if whole else "a number"
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(f"{names(i)}: is {_short(row)}; it needs to be a JSON object")
        elif key not in row and default is None:
            problems.append(f"{names(i)}: has no '{key}'; it needs {need}")
        else:
            value = row.get(key, default)
            parts = value if width and isinstance(value, list) else [value]
            if len(parts) == (width or 1) and all(_is_number(p, whole) for p in parts):
                out[i] = parts if width else parts[0]
                continue
            problems.append(f"{names(i)}: '{key}' is {_short(value)}; it needs {need}")
        bad[i] = True
    return out, bad, problems


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if whole:
        return isinstance(value, int) and abs(value) < 2**63
    return not isinstance(value, int) or abs(value) < 2**1000


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def repeated(values: np.ndarray) -> np.ndarray:
    """Returns a mask (N,) of the values that stood earlier in the array already."""
    order = np.argsort(values, kind="stable")
    mask = np.zeros(len(values), dtype=bool)
    mask[order[1:]] = values[order[1:]] == values[order[:-1]]
    return mask


@dataclass(frozen=True)
class ClassRow:
    """What a source has of one class.

    Attributes:
        name: of the class.
        boxes: ordinary boxes.
        pictures: with at least one of them.
        ignored: boxes that take losses away.
        side: median square root of the ordinary boxes' area in pixels; nan without boxes.
        coverage: mean over the pictures.
    """

    name: str
    boxes: int
    pictures: int
    ignored: int
    side: float
    coverage: float


def class_rows(source: Source) -> list[ClassRow]:
    """Returns a row for each class: the table that `check` prints."""
    a = source.annotations
    if a is None:
        return []
    image, plain = a.image_index(), np.asarray(a.ignore) == Ignore.NO
    sides = np.sqrt(np.prod(a.boxes[:, 2:] - a.boxes[:, :2], axis=1))
    coverage = source.coverage.mean(axis=0)
    rows = []
    for c, name in enumerate(source.classes):
        mine = np.asarray(a.classes) == c
        some = mine & plain
        rows.append(
            ClassRow(
                name=name,
                boxes=int(some.sum()),
                pictures=len(np.unique(image[some])),
                ignored=int((mine & ~plain).sum()),
                side=float(np.median(sides[some])) if some.any() else float("nan"),
                coverage=float(coverage[c]),
            )
        )
    return rows


def check_source(
    source: Source, decode: bool = True, progress: Progress | None = None
) -> list[str]:
    """Returns a sentence for everything that is wrong with the pictures, maps and depths of a source, or
    between them and its annotations. What is wrong within the annotations, `load` has told before.

    Args:
        source: to be checked.
        decode: decodes every picture with its map and depth and compares their sizes and values; without,
            only the files of pictures are hashed.
        progress: called with (pictures done, pictures in all), in each of the two passes.
    """
    found: dict[str, None] = {}  # a missing picture is told once, though both passes meet it
    try:
        source.hashes(progress)
        found |= dict.fromkeys(same_pictures(source))
    except InputError as problem:
        found |= dict.fromkeys(problem.problems)
    for i in range(len(source)) if decode else ():
        found |= dict.fromkeys(_undecodable(source, i))
        if progress is not None:
            progress(i + 1, len(source))
    problems = [*found]
    a = source.annotations
    if a is not None and len(source):
        problems += _same_boxes(source)
        counts = np.diff(a.offsets)
        problems += [
            f"{source.path(i)}: has {counts[i]} boxes, more than {MANY_BOXES}; is that meant?"
            for i in positions(counts > MANY_BOXES)
        ]
    return problems


def _undecodable(source: Source, i: int) -> list[str]:
    """Returns what is wrong with picture i, with its map and with its depth, as far as each file tells."""
    height, width = source.sizes[i].tolist()
    parts: list[Callable[[], Any]] = [lambda: source.read(i)]
    parts += [
        partial(known.labels, i, height, width)
        for known in (source.maps, source.depth)
        if known is not None
    ]
    problems = []
    for part in parts:
        try:
            part()
        except InputError as problem:
            problems += problem.problems
    return problems


def same_pictures(source: Source) -> list[str]:
    """Returns a sentence for each picture that a labelled source has twice; of a pool without labels a run
    takes each once, and says so.

    Raises:
        InputError: pictures cannot be read.
    """
    first: dict[str, int] = {}
    problems = []
    for i, h in enumerate(source.hashes() if source.labelled() else ()):
        if h in first:
            problems.append(
                f"{source.path(i)}: is the same picture, byte for byte, as {source.path(first[h])}; "
                "keep one, or it counts twice and may stand in training and test at once"
            )
        first.setdefault(h, i)
    return problems


def one_copy_each(source: Source) -> Source:
    """Returns a labelled source with one copy of each picture, that of which people say most (boxes first,
    then classes that they looked for, then maps, tags and depths): what was drawn in one copy is no
    background in another. Warns of what is left out.

    Raises:
        InputError: a picture cannot be read.
    """
    if not source.labelled():
        return source
    count = len(source)
    boxes, searched, beside = np.zeros(count), np.zeros(count), np.zeros(count)
    if (a := source.annotations) is not None:
        boxes = np.bincount(a.image_index()[np.asarray(a.ignore) == Ignore.NO], minlength=count)
        searched = np.broadcast_to(source.coverage.sum(axis=1), count)
    for dense in (source.maps, source.depth):
        beside += 0 if dense is None else dense.present()
    beside += source.tags.present if isinstance(source.tags, Tags) else 0
    hashes, best = source.hashes(), {}
    for i in np.lexsort((-beside, -searched, -boxes)).tolist():  # stable: the first of equals
        best.setdefault(hashes[i], i)
    if len(best) == count:
        return source
    kept = np.sort(list(best.values()))
    i = int(np.setdiff1d(np.arange(count), kept)[0])
    warnings.warn(
        f"source '{source.name}': {count - len(kept)} of {count} pictures are left out, because another has "
        f"the same bytes: {source.path(i)} is {source.path(best[hashes[i]])}",
        stacklevel=2,
    )
    return source.subset(kept)


def _same_boxes(source: Source) -> list[str]:
    a = source.annotations
    assert a is not None
    key = np.column_stack([a.image_index(), a.classes, a.boxes]).astype(np.float64)
    _, group = np.unique(key, axis=0, return_inverse=True)
    again = positions(repeated(group.reshape(-1)))
    image = a.image_index()
    return [
        f"{source.path(image[n])}: the class {source.classes[a.classes[n]]} has "
        f"{_box(np.asarray(a.boxes[n]))} twice; keep one"
        for n in again
    ]
