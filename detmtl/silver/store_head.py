"""What the files at the head of a store say: that it is one, and whose labels it holds.

    <store>/store.json                  {"schema": 2, ...}
    <store>/raw/<teacher>/teacher.json  {"floor": ..., "card": ...}

Both are written once and never changed: who comes second reads what the first has written.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from detmtl.silver.card import TeacherCard
from detmtl.silver.parts import Part, atomic_write, make_folder
from detmtl.structures.errors import InputError

SCHEMA = 2
_NO_CARD = (
    "has labels, but not the teacher.json that says whose; restore it, or label into a new folder"
)


def begin(path: Path, folder: Path, card: TeacherCard, floor: float) -> None:
    """Writes the heads of a store and of a teacher's labels, where they are not there.

    Args:
        path: the store. folder: of the teacher's labels in it.
        card, floor: the teacher, and the lowest score that is kept.

    Raises:
        InputError: `path` is a store of another schema, or the folder has labels of who knows whom.
    """
    make_folder(path)
    _write_once(path / "store.json", {"schema": SCHEMA, "content": "raw labels of teachers"})
    check_schema(path)
    make_folder(folder)
    # In this order: a part is never there before the card.
    if has_parts(folder) and not (folder / "teacher.json").exists():
        raise InputError(f"{folder}: {_NO_CARD}")
    _write_once(folder / "teacher.json", {"floor": floor, "card": card.model_dump(mode="json")})


def _write_once(file: Path, content: dict[str, Any]) -> None:
    if not file.exists():
        atomic_write(file, json.dumps(content, indent=1).encode(), replace=False)
    # Of one that was killed, or that is just about to see that it comes second.
    for waiting in file.parent.glob(f"{file.name}.*.tmp"):
        with suppress(OSError):
            waiting.unlink(missing_ok=True)


def has_parts(folder: Path) -> bool:
    """Returns whether a teacher's folder has labels."""
    return any(folder.glob("part-*.ok"))


def check_schema(path: Path) -> None:
    """Refuses a folder that is no store, or one of another schema.

    Raises:
        InputError: says which.
    """
    file = path / "store.json"
    try:
        schema = json.loads(file.read_bytes())["schema"]
    except FileNotFoundError:
        found = "the folder is not there" if not path.is_dir() else "it has no store.json"
        raise InputError(f"{path}: {found}; a store of silver labels is made by annotate") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(_unreadable(file, problem)) from None
    if schema != SCHEMA:
        raise InputError(
            f"{file}: schema {schema!r}; this version reads schema {SCHEMA}: label into a new folder"
        )


def read_card(folder: Path) -> tuple[TeacherCard, float]:
    """Returns whose labels a folder holds, and the lowest score that was kept.

    Raises:
        InputError: teacher.json is missing or not readable.
    """
    file = folder / "teacher.json"
    try:
        about = json.loads(file.read_bytes())
        return TeacherCard.model_validate(about["card"]), float(about["floor"])
    except FileNotFoundError:
        raise InputError(f"{folder}: {_NO_CARD}") from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as problem:
        raise InputError(_unreadable(file, problem)) from None


def _unreadable(file: Path, problem: Exception) -> str:
    return (
        f"{file}: not readable as the head of a store ({type(problem).__name__}: {problem}); "
        "restore it, or label into a new folder"
    )


def mark_of(card: TeacherCard, floor: float) -> str:
    """Returns what the parts of a teacher have in common."""
    text = json.dumps([card.identity(), floor], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_strangers(folder: Path, parts: Sequence[Part], mark: str) -> None:
    """Refuses parts that were copied here from another teacher's labels.

    Raises:
        InputError: names them.
    """
    problems = [
        f"{part.path}: was written by another teacher, or with another floor, than "
        f"{folder / 'teacher.json'} says; take it (and its .ok) out of the folder"
        for part in parts
        if part.teacher != mark
    ]
    if problems:
        raise InputError(problems)


def require_same(
    path: Path, found: TeacherCard, found_floor: float, card: TeacherCard, floor: float
) -> None:
    """Refuses another teacher, or another floor, than the one whose labels are there.

    Raises:
        InputError: says in what they differ.
    """
    problems = []
    theirs, ours = found.model_dump(mode="json"), card.model_dump(mode="json")
    for key in card.identity() | found.identity():
        if ours[key] != theirs[key]:
            problems.append(
                f"{path}: the store's teacher '{card.name}' has {key} {_short(theirs[key])}, this one "
                f"{_short(ours[key])}; two teachers need two names (teacher.name), or another folder"
            )
    if found_floor != floor:
        problems.append(
            f"{path}: the store keeps boxes from a score of {found_floor}, asked for is {floor}; "
            "use the same floor or another folder"
        )
    if problems:
        raise InputError(problems)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
