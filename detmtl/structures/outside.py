"""Code outside of this package that settings name as `package.module:name`."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import isabstract
from types import ModuleType
from typing import Any, TypeGuard

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidatorFunctionWrapHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from detmtl.structures.settings import Settings


def imported(module: str) -> ModuleType:
    """Returns the module of that name, which may lie in the working directory.

    Scripts and installed commands have the folder that they lie in on Python's path, not the one that they
    are called from. It comes last there: nothing in it hides what is installed.

    Raises:
        ImportError: there is none, or it cannot be imported.
        ValueError: it is no name.
    """
    package = module.partition(".")[0]
    if package not in sys.modules and find_spec(package) is None:
        sys.path.append(os.getcwd())
    return import_module(module)


class OrElsewhere:
    """Beside the members of a union of settings, those of a class that lives outside of this package.

    Stands in an `Annotated` after the union's discriminator. A mapping whose `kind` is
    `package.module:Config` is checked by that class, and saved with its fields.

    Args:
        base: the class that it must derive from.
        check: raises a ValueError at settings of such a class that keep a promise of `base` badly.
    """

    def __init__(self, base: type[Settings], check: Callable[[Any], None] | None = None):
        self._base, self._check = base, check

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Returns the union's schema with the way out of it; for pydantic."""
        return core_schema.no_info_wrap_validator_function(
            self._checked, handler(source), serialization=core_schema.simple_ser_schema("any")
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Returns the union's JSON schema, or any mapping of such a kind; for pydantic."""
        elsewhere = {
            "type": "object",
            "properties": {"kind": {"type": "string", "pattern": "^[^:]+:[^:]+$"}},
            "required": ["kind"],
        }
        return {"anyOf": [handler(schema), elsewhere]}

    def _checked(self, value: Any, union: ValidatorFunctionWrapHandler) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if not is_elsewhere(kind):
            return union(value)
        settings = class_elsewhere(kind, self._base).model_validate(value)
        if self._check is not None:
            self._check(settings)
        return settings


def is_elsewhere(kind: Any) -> TypeGuard[str]:
    """Returns whether a `kind` names a class outside of this package."""
    return isinstance(kind, str) and ":" in kind


def class_elsewhere(kind: str, base: type[Settings]) -> type[Settings]:
    """Returns the settings class that a `kind`, `package.module:Config`, names.

    Raises:
        ValueError: there is none, it does not derive from `base`, or it lacks what that asks for.
    """
    module, _, name = kind.partition(":")
    try:
        config = getattr(imported(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"cannot import '{kind}': {error}; is it in the folder that detmtl is called from, or installed?"
        ) from error
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"cannot import '{kind}': {error}") from error
    if not (isinstance(config, type) and issubclass(config, base)):
        raise ValueError(f"'{kind}' is no subclass of {base.__module__}.{base.__qualname__}")
    if isabstract(config):
        missing = ", ".join(sorted(config.__abstractmethods__))
        raise ValueError(f"'{kind}' lacks {missing} of {base.__module__}.{base.__qualname__}")
    return config


def code_files(names: Collection[str]) -> dict[str, str]:
    """Returns names of code, `package.module:name`, with the file that each is in; modules without one, as
    those inside of an archive, are left out."""
    files = {name: imported(name.partition(":")[0]).__file__ for name in sorted(names)}
    return {name: file for name, file in files.items() if file is not None}


def kinds_elsewhere(tree: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yields each `kind` in plain settings that names a class outside of this package, behind where it
    stands; at any depth, for settings of ours may have others inside, and checking those imports them too.
    """
    if isinstance(tree, Mapping):
        kind = tree.get("kind")
        if is_elsewhere(kind) and not kind.startswith("detmtl."):
            yield where, kind
        parts = tree.items()
    else:
        parts = enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, part in parts:
        yield from kinds_elsewhere(part, f"{where}.{key}" if where else str(key))
