"""What a checkpoint tells of its run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from detmtl.data.details import DetailClasses
from detmtl.data.maps import MapClasses
from detmtl.data.tags import TagClasses
from detmtl.structures.errors import InputError


def names_of(
    settings: Mapping[str, Any], class_names: Sequence[str], path: Path
) -> dict[str, Sequence[str]]:
    """Returns key of labels, such as `maps` -> the names of its classes, as a run's settings tell them.

    Args:
        settings: of a checkpoint, unchecked.
        class_names: of its boxes.
        path: of it, for errors.

    Raises:
        InputError: they were written by another version.
    """
    data = settings.get("data") or {}
    names: dict[str, Sequence[str]] = {"boxes": tuple(class_names), "depth": ()}
    for key, kind in (("maps", MapClasses), ("tags", TagClasses)):
        if data.get(key):
            names[key] = validated(kind, data, key, path, "settings.data").label_space().names
    if data.get("details"):
        names |= validated(DetailClasses, data, "details", path, "settings.data").names()
    return names


def validated(
    kind: Any, settings: Mapping[str, Any], key: str, path: Path, where: str = "settings"
) -> Any:
    """Returns a part of a checkpoint's settings as what it was.

    Args:
        kind: of the part. settings: unchecked. key: of the part.
        path: of the checkpoint, for errors.
        where: the settings are in it, for errors.

    Raises:
        InputError: it was written by another version.
    """
    try:
        return TypeAdapter(kind).validate_python(settings.get(key, {}))
    except ValidationError as error:
        raise InputError(
            [
                f"{path}: {where}.{'.'.join(map(str, (key, *e['loc'])))}: {e['msg']}, "
                f"found {e['input']!r}; the checkpoint was written by another version"
                for e in error.errors()
            ]
        ) from error
