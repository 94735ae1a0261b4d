"""YAML 1.2 to checked settings of any kind; every mistake is told with file and line."""

import json
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from detmtl.structures.errors import InputError
from detmtl.structures.outside import class_elsewhere, is_elsewhere
from detmtl.structures.settings import Settings

Kind = TypeVar("Kind")


def read_yaml(path: Path) -> tuple[dict, dict[tuple, str]]:
    """Returns the plain values of a YAML file, and `file:line` of every key path in it."""
    try:
        node = YAML(typ="rt", pure=True).load(path.read_text())
    except DuplicateKeyError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {str(error.problem).strip()}; keep one of them") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML 1.2: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise InputError(f"{path}: must hold a mapping of settings, found {type(node).__name__}")
    lines: dict[tuple, str] = {}
    return _plain(node, (), lines, str(path)), lines


def override(tree: dict, lines: dict[tuple, str], text: str, place: str = "--set") -> None:
    """Changes one setting of a tree, and says in `lines` where it comes from.

    Args:
        text: `a.b.c=value`, the value read as YAML.
        place: where the text stands.

    Raises:
        InputError: it is not of that form, or there is nothing at that place.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"{place} {text}: must be NAME.NAME=VALUE, such as train.steps=500")
    try:
        parsed = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise InputError(
            f"{place} {text}: the value is not YAML: {' '.join(str(error).split())}"
        ) from None
    at: Any = tree
    for i, key in enumerate(keys[:-1]):
        if isinstance(at, list):
            at = at[_position(at, key, f"{place} {text}")]
            continue
        if not isinstance(at, dict):
            break
        if not isinstance(at.get(key), dict | list):
            at[key] = {}
            lines[tuple(keys[: i + 1])] = f"{place} {path}"
        at = at[key]
    if not isinstance(at, dict | list):
        raise InputError(f"{place} {text}: '{'.'.join(keys[:-1])}' is {at!r}, which has no parts")
    if isinstance(at, list):
        at[_position(at, keys[-1], f"{place} {text}")] = parsed
    else:
        at[keys[-1]] = parsed
    for old in [k for k in lines if k[: len(keys)] == tuple(keys)]:
        del lines[old]
    lines[tuple(keys)] = f"{place} {path}"


def checked(
    kind: type[Kind] | Any,
    tree: Any,
    lines: Mapping[tuple, str] | None = None,
    where: str = "settings",
) -> Kind:
    """Returns the settings that plain values tell.

    Args:
        kind: of the settings: a class, or a union of some.
        tree, lines: see `read_yaml`.
        where: told of mistakes that no line is known of.

    Raises:
        InputError: with every mistake.
    """
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise InputError(list(_sentences(error, lines or {}, where, kind, tree))) from None


def listed(names: Any) -> str:
    """Returns names as a sentence lists them."""
    return ", ".join(sorted(names)) or "none"


def _plain(node: Any, at: tuple, lines: dict[tuple, str], file: str) -> Any:
    if isinstance(node, dict):
        out = {}
        for key, value in node.items():
            place = (node.lc.data or {}).get(key)  # type: ignore[attr-defined]  # none if merged
            lines[(*at, str(key))] = f"{file}:{place[0] + 1}" if place else file
            out[str(key) if isinstance(key, str) else key] = _plain(
                value, (*at, str(key)), lines, file
            )
        return out
    if isinstance(node, list):
        out_list = []
        for i, value in enumerate(node):
            lines[(*at, str(i))] = f"{file}:{node.lc.item(i)[0] + 1}"  # type: ignore[attr-defined]
            out_list.append(_plain(value, (*at, str(i)), lines, file))
        return out_list
    for plain in (bool, int, float, str):  # ruamel's scalars remember their spelling
        if isinstance(node, plain):
            return plain(node)
    return node


def _position(items: list, key: str, text: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise InputError(f"{text}: '{key}' must be a position in a list of {len(items)}")
    return int(key)


def _sentences(
    error: ValidationError,
    lines: Mapping[tuple, str],
    where: str,
    kind: Any,
    tree: Any,
) -> Iterator[str]:
    """Yields one sentence per mistake: file and line, setting, what was found, what is allowed."""
    for e in error.errors():
        loc = tuple(str(part) for part in e["loc"])
        path, line = _locate(loc, lines, where)
        name = ".".join(path)
        at = f"{line}: {name}" if name else line
        if e["type"] == "extra_forbidden":
            known = _fields_elsewhere(loc[:-1], tree) or _fields_at(loc[:-1], kind)
            hint = _nearest(loc[-1], known) or f"known here: {listed(known)}"
            yield f"{at}: unknown setting; {hint}"
        elif e["type"] == "missing":
            missing = path if path == loc else (*path, loc[-1])
            yield f"{line}: {'.'.join(missing)}: is required and missing"
        elif e["type"] == "union_tag_invalid":
            tag, known = e.get("ctx", {}).get("tag"), _kinds_at(loc, kind)
            hint = f"{_nearest(str(tag), known)} there are {listed(known)}".strip()
            yield f"{at}: there is no kind '{tag}'; {hint}"
        elif e["type"] == "union_tag_not_found":
            yield f"{at}: has no `kind`; it needs one of {listed(_kinds_at(loc, kind))}"
        elif loc[-1:] == ("[key]",):
            yield f"{at.removesuffix('.[key]')}: a name must be text; put {json.dumps(e['input'])} in quotes"
        elif e["type"] == "value_error" or e["type"] == "assertion_error":
            for problem in str(e.get("ctx", {}).get("error", e["msg"])).splitlines():
                yield f"{at}: {problem}"
        else:
            found = json.dumps(e["input"], default=str)
            yield f"{at}: {e['msg']}; found {found if len(found) < 80 else found[:77] + '...'}"


def _nearest(name: str, known: Collection[str]) -> str:
    """Returns a question for the known name that is most like another, "" if none is."""
    close = get_close_matches(name, sorted(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _locate(loc: tuple, lines: Mapping[tuple, str], where: str) -> tuple[tuple, str]:
    """Returns the key path of an error in the file, and the line of its deepest part there.

    Pydantic's location also names the member of a union, which the file does not.
    """
    at: tuple = ()
    for part in loc:
        if (*at, part) in lines:
            at = (*at, part)
    if not lines:
        at = loc
    return at, lines.get(at, where)


def _fields_at(loc: tuple, kind: Any) -> set[str]:
    """Returns the names of the settings that are known at a location."""
    return {name for model in _models_at(loc, kind) for name in model.model_fields}


def _fields_elsewhere(loc: tuple, tree: Any) -> set[str]:
    """Returns the names of the settings of a class outside of this package, if one is at a location."""
    for part in loc:
        if (
            isinstance(tree, Mapping) and part in tree
        ):  # pydantic's location has tags of unions, too
            tree = tree[part]
        elif isinstance(tree, list | tuple) and part.isdecimal():
            tree = tree[int(part)]
    kind = tree.get("kind") if isinstance(tree, Mapping) else None
    return {*class_elsewhere(str(kind), Settings).model_fields} if is_elsewhere(kind) else set()


def _kinds_at(loc: tuple, kind: Any) -> set[str]:
    """Returns the kinds of settings that there may be at a location."""
    fields = [model.model_fields.get("kind") for model in _models_at(loc, kind)]
    return {name for field in fields if field for name in get_args(field.annotation)}


def _models_at(loc: tuple, kind: Any) -> list[type[BaseModel]]:
    found: list[Any] = [kind]
    for part in loc:
        found = [inner for annotation in found for inner in _descend(annotation, part)]
    return [model for annotation in found for model in _models(annotation)]


def _descend(annotation: Any, part: str) -> Iterator[Any]:
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if part in annotation.model_fields:
            yield annotation.model_fields[part].annotation
        elif "kind" in annotation.model_fields and part in get_args(
            annotation.model_fields["kind"].annotation
        ):
            yield annotation  # the tag of a union, not a field
    elif origin in (dict, Mapping):
        yield get_args(annotation)[1]
    elif origin in (list, Sequence):
        yield get_args(annotation)[0]
    elif origin in (Annotated, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _descend(inner, part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _models(inner)
