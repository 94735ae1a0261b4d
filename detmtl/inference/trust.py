"""Whose code a checkpoint asks for: its settings name a backbone and tasks, and names can be imported."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detmtl.models.backbone import is_of_timm
from detmtl.structures.errors import InputError
from detmtl.structures.outside import kinds_elsewhere


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
    for where, kind in kinds_elsewhere(_mapping(settings.get("tasks")), "tasks"):
        yield f"{where} {kind}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
