"""Semantic maps: a class for each pixel.

Output of the task: one list entry, logits (B, C, H, W) at the stride of its finest level.
Letters: B pictures, C classes, H and W positions.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.losses.dense import semantic_losses
from detmtl.losses.normalizer import OfBatch, skip_normalizer
from detmtl.losses.terms import LossTerms
from detmtl.metrics.dense import MapMetric
from detmtl.models.semantic_head import SemanticHeadSettings
from detmtl.silver.card import Written
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, MapLabels, PaddedMaps
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.task import Exporter, Metric, Task, at_size, fine_levels, level_names


class SemanticLossSettings(Settings):
    """How the loss is computed.

    Attributes:
        stride: pixels between the positions of the loss. 4 is half of p3's stride: as fine as thin
            objects need, at a sixteenth of the work of every pixel.
        normalizer: what the sum is divided by, see `detmtl.losses.normalizer`; what counts are the
            positions that have a label.
    """

    stride: Literal[1, 2, 4, 8, 16, 32] = 4
    normalizer: OfBatch = "source"


class SemanticConfig(Settings):
    """Settings of a task that gives each pixel a class of `data.maps`.

    Attributes:
        labels: the key of a picture's labels that the task learns from.
        at: where the head hangs: `fpn` (the levels of the pyramid up to stride 32), or one level, such
            as p3 or c4.
        subsets: name -> classes whose mean IoU is reported by itself, as `mIoU/<name>`.
    """

    finds: ClassVar[Written] = "maps"
    kind: Literal["semantic"] = "semantic"
    labels: Literal["maps"] = "maps"
    at: str = "fpn"
    head: SemanticHeadSettings = SemanticHeadSettings()
    loss: SemanticLossSettings = SemanticLossSettings()
    subsets: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _nonempty(self) -> "SemanticConfig":
        if empty := [name for name, classes in self.subsets.items() if not classes]:
            raise ValueError(f"subsets: {', '.join(empty)} has no classes; list at least one")
        return self

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> "SemanticTask":
        """Makes the task with random weights; see `BuildsTask.build`.

        Raises:
            InputError: a subset names something that is no class, there are too many classes, or `at` is too
                coarse.
        """
        problems = [
            f"tasks.{name}.subsets.{subset}: '{c}' is no class of data.{self.labels}"
            for subset, classes in self.subsets.items()
            for c in classes
            if c not in class_names
        ]
        if num_classes > MOST:
            problems.append(f"tasks.{name}: {num_classes} classes; a map holds at most {MOST}")
        if problems:
            raise InputError(problems)
        fine = fine_levels(name, self.at, strides)
        strides = [strides[i] for i in fine]
        head = self.head.build([channels[i] for i in fine], strides, num_classes)
        return SemanticTask(
            name,
            self.labels,
            level_names(self.at, strides),
            head,
            class_names,
            self.subsets,
            strides[0],
            self.loss,
        )


MOST = 254
"""Classes of a map; 254 and 255 mean other and unknown."""


class SemanticTask(Task):
    """A head that gives each pixel a class.

    Attributes:
        class_names: of the C classes.
        stride: pixels between the positions of the output.
    """

    terms = ("pixel",)

    def __init__(
        self,
        name: str,
        labels: str,
        levels: tuple[str, ...],
        head: nn.Module,
        class_names: Sequence[str],
        subsets: Mapping[str, Sequence[str]],
        stride: int,
        loss: SemanticLossSettings,
    ):
        """Takes the parts that `SemanticConfig.build` makes."""
        super().__init__()
        self.name = name
        self.labels = labels
        self.class_layers = {"head.logits": "maps"}
        self.levels = levels
        self.head = head
        self.class_names = tuple(class_names)
        self.stride = stride
        self._subsets = subsets
        self._loss_stride = loss.stride
        self._normalizer: OfBatch = loss.normalizer

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns [logits (B, C, H, W)]."""
        return [self.head(features)]

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the term "pixel"; see `Task.loss` and `detmtl.losses.dense`."""
        labels = batch.labels.get(self.labels)
        assert labels is None or isinstance(labels, PaddedMaps)
        if labels is None or not labels.some:
            skip_normalizer(batch)
            return {}
        with torch.autocast(outputs[0].device.type, enabled=False):
            term = semantic_losses(outputs[0], labels, batch, self._loss_stride, self._normalizer)
        return LossTerms.of({"pixel": term})

    @torch.no_grad()
    def decode(self, outputs: list[Tensor], sizes: Tensor) -> list[MapLabels]:
        """Returns the class of each pixel, its weight being the class's probability."""
        coverage = torch.ones(len(self.class_names), device=outputs[0].device)
        found = []
        for logits, (height, width) in zip(outputs[0], sizes.tolist(), strict=True):
            classes, confidence = decode_map(logits, self.stride, height, width)
            found.append(MapLabels(classes, confidence, coverage, Grade.SILVER))
        return found

    def metric(self) -> Metric:
        """Returns mean IoU and pixel accuracy."""
        return MapMetric(self.class_names, self._subsets)

    def exporter(self) -> Exporter:
        """Returns the decoder to classes and their probabilities."""
        decoder = MapDecoder(self.stride)
        return Exporter("maps", decoder, decoder.whole)


class MapDecoder(nn.Module):
    """Logits to the class of each pixel and its probability; compiles under TorchScript."""

    def __init__(self, stride: int):
        """Takes pixels between positions."""
        super().__init__()
        self.stride = stride

    def forward(self, outputs: list[Tensor], sizes: Tensor, originals: Tensor) -> list[Tensor]:
        """Returns the class of each picture's pixels, (height, width) uint8, then the probabilities of
        each picture's, (height, width) float32.

        Args:
            outputs: [logits (B, C, H, W)] of padded pictures, of any floating point type.
            sizes: (B, 2) true height and width of each within its padding.
            originals: (B, 2) height and width that the result shall have.
        """
        found: list[Tensor] = []
        confidences: list[Tensor] = []
        inside: list[list[int]] = sizes.tolist()  # all at once: each reading waits for the device
        given: list[list[int]] = originals.tolist()
        for i, logits in enumerate(outputs[0]):
            classes, confidence = decode_map(logits, self.stride, inside[i][0], inside[i][1])
            found.append(at_size(classes, given[i][0], given[i][1]))
            confidences.append(at_size(confidence, given[i][0], given[i][1]))
        return found + confidences

    def whole(self, outputs: list[Tensor]) -> list[Tensor]:
        """Returns class and probability of all pixels; see `detmtl.tasks.task.Exporter`."""
        (logits,) = outputs[0]
        height, width = (side * self.stride for side in logits.shape[1:])
        return list(decode_map(logits, self.stride, height, width))


def decode_map(logits: Tensor, stride: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns the likeliest class of each pixel, (height, width) uint8, and its probability,
    (height, width) float32. Compiles under TorchScript.

    Logits are brought to the pixels bilinearly before the likeliest is taken: edges are then not as
    coarse as the stride.

    Args:
        logits: (C, H, W) of a padded picture, of any floating point type.
        stride: pixels between positions.
        height, width: true size of the picture.
    """
    size = [logits.shape[1] * stride, logits.shape[2] * stride]
    full = F.interpolate(logits.unsqueeze(0).float(), size=size, mode="bilinear")[0]
    full = full[:, :height, :width]
    best, classes = full.max(dim=0)
    return classes.to(torch.uint8), torch.exp(best - torch.logsumexp(full, dim=0))
