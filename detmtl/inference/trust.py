"""Whose code a checkpoint asks for: its settings name a backbone and tasks, and names can be imported."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detmtl.models.backbone import is_of_timm
from detmtl.structures.errors import InputError


def refuse_foreign(settings: Mapping[str, Any], path: Path) -> None:
    """Refuses the settings of a checkpoint that run other code than detmtl's and timm's.

    Args:
        settings: as the checkpoint has them, not checked yet: checking imports tasks.
        path: of the checkpoint.

    Raises:
        InputError: names what asks for other code.
    """
    foreign = list(_foreign(settings))
    if foreign:
        raise InputError(
            f"{path}: opening it would run code that neither detmtl nor timm brings along: "
            f"{', '.join(foreign)}; if you know that code and who made this file, say so with --trust "
            "(Python: trust=True; a teacher's settings: trust: true)"
        )


def _foreign(settings: Mapping[str, Any]) -> Iterator[str]:
    backbone = _mapping(_mapping(settings.get("model")).get("backbone"))
    name, args = backbone.get("name"), _mapping(backbone.get("args"))
    if isinstance(name, str) and not is_of_timm(name, args):
        yield f"model.backbone {name}" + (f" with {dict(args)}" if args else "")
    for where, kind in _kinds(_mapping(settings.get("tasks")), "tasks"):
        if ":" in kind and not kind.startswith("detmtl."):
            yield f"{where} {kind}"


def _kinds(tree: Any, where: str) -> Iterator[tuple[str, str]]:
    """Returns every `kind` in a tree of settings, and where it stands.

    A task of ours may have settings of others inside, and checking those imports them too.
    """
    if isinstance(tree, Mapping):
        if isinstance(tree.get("kind"), str):
            yield where, tree["kind"]
        parts = tree.items()
    else:
        parts = enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, part in parts:
        yield from _kinds(part, f"{where}.{key}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
