"""A start from torchvision's RetinaNets.

Letters: A anchors per position, C classes, K rows of torchvision's class layer for each anchor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import model_validator
from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from detmtl.models.backbone import Backbone, BackboneWeights
from detmtl.models.fpn import FPN
from detmtl.models.pretrained import downloaded, read_weights
from detmtl.models.torchvision_weights import (
    BACKGROUND,
    NO_EPSILON,
    RetinaWeights,
    class_rows,
    from_torchvision,
    with_rows,
)
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.detection import DetectionTask
from detmtl.tasks.start import Start, misfits, told_rows
from detmtl.tasks.task import Task

OfficialWeights = Literal[
    "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    "RetinaNet_ResNet50_FPN_Weights.DEFAULT",
    "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1",
    "RetinaNet_ResNet50_FPN_V2_Weights.DEFAULT",
]
"""torchvision's own names, as `torchvision.models.get_weight` takes them."""

_ENUMS: Mapping[str, type[WeightsEnum]] = {
    "RetinaNet_ResNet50_FPN_Weights": RetinaNet_ResNet50_FPN_Weights,
    "RetinaNet_ResNet50_FPN_V2_Weights": RetinaNet_ResNet50_FPN_V2_Weights,
}


_FITS = (
    "preset: torchvision fits retinanet_resnet50_fpn, preset: torchvision_v2 fits "
    "retinanet_resnet50_fpn_v2"
)


class TorchvisionStartSettings(Settings):
    """Weights of a torchvision RetinaNet that backbone, pyramid and detection heads start from.

    `preset: torchvision` or `torchvision_v2` makes the network that they fit.

    Attributes:
        kind: torchvision.
        weights: official ones by torchvision's name, downloaded unless `path` is set.
        path: a state dict; beside `weights` it is the file of those weights, downloaded elsewhere.
        classes: names of the rows of the file's class layer, with or without a first one for the
            background; None: those of `weights`, or unknown.
        class_layer: rows of classes whose names are in both are taken ("by_name"), the others start
            from the prior; or all do ("fresh").
    """

    kind: Literal["torchvision"] = "torchvision"
    weights: OfficialWeights | None = None
    path: str | None = None
    classes: list[str] | None = None
    class_layer: Literal["by_name", "fresh"] = "by_name"

    @model_validator(mode="after")
    def _given(self) -> "TorchvisionStartSettings":
        if self.weights is None and self.path is None:
            raise ValueError(
                "give weights (such as RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1) or the path of a "
                "state dict"
            )
        if self.weights is not None and self.classes is not None:
            raise ValueError(f"classes: those of {self.weights} are known; leave it out")
        return self

    def read(self, root: Path | None = None) -> "TorchvisionStart":
        """Reads the weights, downloading them if they have no path.

        Args:
            root: folder that `path` is relative to; None: the working directory.

        Raises:
            InputError: the file is missing, cannot be downloaded or is not of a RetinaNet.
        """
        official = self._official()
        if self.path is not None:
            file = (root or Path()) / self.path
        else:
            assert official is not None
            file = downloaded(official, "model.start")
        weights = from_torchvision(read_weights(file, "model.start.path"), str(file))
        names = self.classes if official is None else list(official.meta["categories"])
        if self.class_layer == "fresh":
            names = None
        # torchvision runs its first published weights with norms that add nothing to the variance
        first = official is RetinaNet_ResNet50_FPN_Weights.COCO_V1
        return TorchvisionStart(weights, names, str(file), NO_EPSILON if first else None)

    def _official(self) -> WeightsEnum | None:
        if self.weights is None:
            return None
        enum, _, member = self.weights.partition(".")
        return getattr(_ENUMS[enum], member)


@dataclass(frozen=True, eq=False)
class TorchvisionStart(Start):
    """Weights that were read, to be filled into a network.

    Attributes:
        weights: of the parts.
        names: of the rows of the class layer; None: unknown, or not wanted.
        where: the file.
        norm_epsilon: see `BackboneWeights`.
    """

    weights: RetinaWeights
    names: Sequence[str] | None
    where: str
    norm_epsilon: float | None = None

    @property
    def backbone(self) -> BackboneWeights:
        """What the backbone starts from."""
        return BackboneWeights(self.weights.backbone, self.where, self.norm_epsilon)

    def fill(
        self,
        backbone: Backbone,
        fpn: FPN,
        tasks: Mapping[str, Task],
        names: Mapping[str, Sequence[str]],
    ) -> tuple[str, dict[str, list[str]]]:
        """See `Start.fill`; heads of detection tasks are filled, others start as they are."""
        problems = misfits(fpn, self.weights.fpn, "model.fpn", self.where, _FITS)
        told, known = [f"Starting from {self.where}: backbone, pyramid"], {}
        for name, task in tasks.items():
            if isinstance(task, DetectionTask):
                head, sentence, known[name] = self._head(task)
                problems += misfits(task.head, head, f"tasks.{name}.head", self.where, _FITS)
                told.append(f"head of {name} ({sentence})")
        if problems:
            raise InputError(problems)
        return ", ".join(told), known

    def _head(self, task: DetectionTask) -> tuple[dict[str, Tensor], str, list[str]]:
        """Returns what a task's head starts from, what became of the class layer, and the classes that have
        a row of it."""
        own, given = task.head.state_dict(), dict(self.weights.head)
        rows, sentence = self._rows(task)
        for part in ("class_logits.weight", "class_logits.bias"):
            fits = part in own and part in given and own[part].shape[1:] == given[part].shape[1:]
            if fits:  # else it is told with what else doesn't fit
                given[part] = with_rows(own[part], given[part], rows, task.anchors.num_anchors)
        taken = [name for name, row in zip(task.class_names, rows, strict=True) if row >= 0]
        return given, sentence, taken

    def _rows(self, task: DetectionTask) -> tuple[list[int], str]:
        ours = task.class_names
        fresh = [-1] * len(ours)
        outputs = len(self.weights.head["class_logits.bias"])
        if outputs % task.anchors.num_anchors:
            raise InputError(
                f"{self.where}: its class layer has {outputs} outputs, which is no multiple of the "
                f"{task.anchors.num_anchors} anchors per position; preset: torchvision has its anchors"
            )
        if self.names is None:
            return fresh, "class layer fresh"
        count = outputs // task.anchors.num_anchors
        names = list(self.names)
        if len(names) + 1 == count:
            names = [BACKGROUND, *names]
        if len(names) != count:
            raise InputError(
                f"model.start.classes: {len(self.names)} names, but the class layer of {self.where} has "
                f"{count} rows; give {count}, or {count - 1} without the background"
            )
        rows = class_rows(names, ours)
        return rows, told_rows(ours, rows)
