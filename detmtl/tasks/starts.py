"""The union of all starts' settings: the only list of starts there is."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from detmtl.tasks.checkpoint_start import CheckpointStartSettings
from detmtl.tasks.torchvision_start import TorchvisionStartSettings


def _kind(value: Any) -> str | None:
    """Returns the kind that settings mean: `torchvision` where they do not say."""
    if isinstance(value, Mapping):
        return value.get("kind", "torchvision")
    return getattr(value, "kind", None)


StartSettings = Annotated[
    Annotated[TorchvisionStartSettings, Tag("torchvision")]
    | Annotated[CheckpointStartSettings, Tag("checkpoint")],
    Discriminator(_kind),
]
"""Settings of a start, told apart by `kind`; without one they are those of torchvision's weights."""
