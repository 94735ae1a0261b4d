"""The union of all tasks' settings: the only list of tasks there is."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Tag, WithJsonSchema

from detmtl.silver.card import Written
from detmtl.structures.outside import imported
from detmtl.structures.settings import Settings
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

_ELSEWHERE = "package.module:Config"


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return _ELSEWHERE if isinstance(kind, str) and ":" in kind else kind


def class_elsewhere(kind: str) -> type[Settings]:
    """Returns the settings class that a `kind`, `package.module:Config`, names.

    Raises:
        ValueError: there is none, or it is none of settings.
    """
    module, _, name = kind.partition(":")
    try:
        config = getattr(imported(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot import '{kind}': {error}") from error
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise ValueError(f"'{kind}' is no subclass of detmtl.structures.settings.Settings")
    return config


def _from_elsewhere(value: Any) -> Settings:
    """Returns the settings of a task that lives outside of this package.

    Args:
        value: settings already built, or a mapping whose `kind` is `package.module:Config`; the
            class is a `Settings` with a field `kind: str` and DetectionConfig's method `build`.
    """
    if isinstance(value, Settings):
        return value
    task: Any = class_elsewhere(value["kind"]).model_validate(value)
    finds = getattr(task, "finds", None)
    if finds not in (None, *get_args(Written)):
        raise ValueError(
            f"'{value['kind']}' has finds {finds!r}; silver is of {', '.join(get_args(Written))}; leave it "
            "out where its labels are others"
        )
    return task


_SCHEMA_ELSEWHERE = {
    "type": "object",
    "properties": {"kind": {"type": "string", "pattern": "^[^:]+:[^:]+$"}},
    "required": ["kind"],
}

TaskConfig = Annotated[
    Annotated[DetectionConfig, Tag("detection")]
    | Annotated[SemanticConfig, Tag("semantic")]
    | Annotated[TagsConfig, Tag("tags")]
    | Annotated[DepthConfig, Tag("depth")]
    | Annotated[AttributesConfig, Tag("attributes")]
    | Annotated[MasksConfig, Tag("masks")]
    | Annotated[KeypointsConfig, Tag("keypoints")]
    | Annotated[
        Any,
        BeforeValidator(_from_elsewhere),
        WithJsonSchema(_SCHEMA_ELSEWHERE),
        Tag(_ELSEWHERE),
    ],
    Discriminator(_kind),
]
"""Settings of one task, told apart by `kind`: a name of ours, or `package.module:Config`."""
