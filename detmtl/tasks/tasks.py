"""The union of all tasks' settings: the only list of tasks there is."""

from typing import Annotated, Any, get_args

from pydantic import Discriminator

from detmtl.silver.card import Written
from detmtl.structures.outside import OrElsewhere
from detmtl.structures.settings import Settings
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig


def _builds_and_finds(task: Any) -> None:
    """Refuses settings of a task from elsewhere that lack `build`, or whose `finds` silver does not know."""
    if not callable(getattr(task, "build", None)):
        raise ValueError(
            f"'{task.kind}' lacks build; it builds the task, as DetectionConfig's does"
        )
    finds = getattr(task, "finds", None)
    if finds not in (None, *get_args(Written)):
        raise ValueError(
            f"'{task.kind}' has finds {finds!r}; silver is of {', '.join(get_args(Written))}; leave it "
            "out where its labels are others"
        )


TaskConfig = Annotated[
    DetectionConfig
    | SemanticConfig
    | TagsConfig
    | DepthConfig
    | AttributesConfig
    | MasksConfig
    | KeypointsConfig,
    Discriminator("kind"),
    OrElsewhere(Settings, _builds_and_finds),
]
"""Settings of one task, told apart by `kind`: a name of ours, or `package.module:Config`."""
