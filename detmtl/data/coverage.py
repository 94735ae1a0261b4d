"""What was looked for in which pictures, said beside the files of a source: its settings `covers`,
`keep` and `covers_file`.

Letters: I pictures, N boxes of all pictures, C classes.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.flat import FileNames
from detmtl.data.parsed import Parsed
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError


def class_mask(names: Sequence[str], classes: LabelSpace, where: str) -> np.ndarray:
    """Returns (C,) bool: which classes are named.

    Raises:
        InputError: a name is no class.
    """
    problems = [p for name in names for p in _no_class(name, classes, where)]
    if problems:
        raise InputError(problems)
    return np.array([name in names for name in classes.names], dtype=bool)


def partly_known(
    partly: Mapping[str, tuple[Sequence[str], Sequence[str]]], what: str, setting: str
) -> tuple[str, ...]:
    """Returns a sentence for each class that counts as looked for though a source knows some of its members
    only.

    Args:
        partly: see `LabelSpace.partly`.
        what: class, or tag.
        setting: by which a user says what was looked for.
    """
    return tuple(
        f"has of {what} '{name}' the categories {', '.join(some)} but not {', '.join(rest)}, and "
        f"counts as searched for the {what}; unless they are words for the same, give `{setting}` "
        f"without '{name}', so that they do not become background"
        for name, (some, rest) in partly.items()
    )


def keep_classes(parsed: Parsed, kept: np.ndarray, covered: np.ndarray) -> Parsed:
    """Returns the pictures with the labels of the classes that are `kept` (C,) bool, as if nobody had
    looked for the others: their boxes are gone and their coverage is 0.

    Args:
        covered: (C,) bool, whose coverage stays as it is all the same, because the user has stated it.
    """
    a = parsed.annotations
    assert a is not None
    coverage = parsed.coverage * (kept | covered).astype(np.float32)
    return replace(parsed, annotations=a.where(kept[a.classes]), coverage=coverage)


def cover_pictures(parsed: Parsed, path: Path, where: str, classes: LabelSpace) -> Parsed:
    """Returns the pictures with the coverage that a file states for some or all of them: 0 for each class
    that it does not name with a picture. Pictures that it does not name keep theirs.

    The file is CSV with the columns `file_name`, `class` and, if wanted, `coverage` (in [0, 1]; 1
    where it is empty), a row for each class that was looked for in a picture (an empty class: looked
    for nothing); or JSON {file name: [class, ...] or {class: coverage}}. File names are relative to
    the source's folder of pictures, or absolute; names that lead to one place (`a.jpg`, `./a.jpg`)
    are one. What is said of pictures that were left out of the source is passed over; so is what is
    said of others that are there, but these are counted in `dropped`.

    Raises:
        InputError: the file cannot be read, names a picture or a class that is not there, or names no
            picture of the source.
    """
    folder = parsed.files.folder
    places: dict[str, list[int]] = {}
    for i, picture in enumerate(parsed.files.paths()):
        places.setdefault(os.path.normpath(picture), []).append(i)
    faulty = {_place(folder, name) for name in parsed.unused}
    coverage = np.array(np.broadcast_to(parsed.coverage, (len(parsed.files), len(classes))))
    problems: list[str] = []
    seen: set[str] = set()
    others: set[str] = set()  # there, but not of the source
    strange: dict[str, str] = {}  # their names by entry, which may say several things of a picture
    for line, name, stated, value in _statements(path, where):
        place = _place(folder, name)
        own = places.get(place, [])
        if not own and place not in faulty:
            if place not in others and not os.path.isfile(place):
                problems.append(f"{line}: {_no_picture(name, parsed.files)}")
                continue
            others.add(place)
            strange[line] = name
        elif place not in seen:
            coverage[own] = 0
            seen.add(place)
        if stated is None:
            continue
        wrong = _no_class(stated, classes, line)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            wrong.append(f"{line}: the coverage of '{stated}' is {value!r}; it lies in [0, 1]")
        problems += wrong
        if own and not wrong:
            coverage[own, classes.names.index(stated)] = value
    first = next(iter(strange.values()), "")
    if not problems and not seen:
        # All pictures would keep a coverage that the file was to take from them.
        found = f"the first of its names is '{first}'" if strange else "it is empty"
        problems.append(
            f"{where}: names no picture of the source ({found}); it needs file names relative to {folder}, "
            f"such as '{parsed.files.name(0)}'; correct them, or leave out `covers_file`"
        )
    if problems:
        raise InputError(problems)
    told = [parsed.dropped] if parsed.dropped else []
    if strange:
        told.append(
            f"{where}: entries passed over: {len(strange)}, which name pictures that are not of the source, "
            f"such as '{first}'"
        )
    return replace(parsed, coverage=coverage, dropped="; ".join(told))


def without_lost(parsed: Parsed) -> Parsed:
    """Returns the pictures with coverage 0 of the classes of which labels are `lost` there: what they showed
    is no background."""
    if parsed.lost is None or not len(parsed.lost):
        return replace(parsed, lost=None)
    shape = (len(parsed.ids), parsed.coverage.shape[1])
    coverage = np.array(np.broadcast_to(parsed.coverage, shape))
    picture, of = parsed.lost.T
    coverage[picture[of < 0]] = 0
    coverage[picture[of >= 0], of[of >= 0]] = 0
    return replace(parsed, coverage=coverage, lost=None)


def _no_class(name: str, classes: LabelSpace, where: str) -> list[str]:
    if name in classes.names:
        return []
    close = get_close_matches(name, classes.names, n=1)
    hint = f" (nearest: '{close[0]}')" if close else f"; the classes are {', '.join(classes.names)}"
    return [f"{where} names '{name}', which is no class{hint}"]


def _place(folder: str, name: str) -> str:
    """Returns the one path of all spellings of a picture's name."""
    return os.path.normpath(os.path.join(folder, name))


def _no_picture(name: str, files: FileNames) -> str:
    names = [files.name(i) for i in range(min(len(files), 10_000))]
    close = get_close_matches(name, names, n=1)
    return (
        f"there is no picture '{name}' in {files.folder}"
        + (f" (nearest: '{close[0]}')" if close else "")
        + "; file names are those of the annotations, relative to the source's `images`"
    )


def _statements(path: Path, where: str) -> Iterator[tuple[str, str, str | None, Any]]:
    """Yields place in the file, picture, class (None: nothing was looked for) and coverage."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            yield from _rows(text, where)
            return
        tree = json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(
            f"{where}: cannot be read as {path.suffix or 'JSON'} ({problem})"
        ) from None
    if not isinstance(tree, dict):
        raise InputError(f"{where}: is {type(tree).__name__}; it needs {{file name: [class, ...]}}")
    for name, listed in tree.items():
        if not isinstance(listed, list | dict) or not all(isinstance(c, str) for c in listed):
            raise InputError(
                f"{where}: '{name}' has {listed!r}; it needs a list of classes, or {{class: coverage}}"
            )
        here = f"{where}, picture '{name}'"
        pairs = listed.items() if isinstance(listed, dict) else [(c, 1.0) for c in listed]
        yield from ((here, name, c, value) for c, value in pairs)
        if not listed:
            yield here, name, None, 0.0


def _rows(text: str, where: str) -> Iterator[tuple[str, str, str | None, Any]]:
    reader = csv.DictReader(text.splitlines())
    columns = set(reader.fieldnames or ())
    if not {"file_name", "class"} <= columns <= {"file_name", "class", "coverage"}:
        raise InputError(
            f"{where}: its columns are {', '.join(sorted(columns)) or 'none'}; it needs `file_name`, "
            "`class` and, if wanted, `coverage`"
        )
    for row in reader:
        if any(field.strip() for field in row.get(None, ())):
            raise InputError(
                f"{where} line {reader.line_num}: has more fields than there are columns ({len(columns)}); a "
                "row names one class, and another row another"
            )
        said = (row.get("coverage") or "").strip()
        try:
            value: Any = float(said or 1)
        except ValueError:
            value = said
        name = (row["file_name"] or "").strip()
        yield f"{where} line {reader.line_num}", name, (row["class"] or "").strip() or None, value
