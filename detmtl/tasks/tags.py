"""Image tags: what a picture as a whole shows.

Output of the task: one list entry, logits (B, T, H, W) of each position; a picture's logits are their
mean over its true size. A linear layer and a mean may change places, and this way round padding
never counts.
Letters: B pictures, T tags, H and W positions.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.losses.normalizer import OfBatch, normalizer, skip_normalizer
from detmtl.losses.terms import LossTerms
from detmtl.metrics.tags import TagMetric
from detmtl.silver.card import Written
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, PaddedTags, TagLabels
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.task import Exporter, Metric, Task, level_names


class TagsConfig(Settings):
    """Settings of a task that tells which tags of `data.tags` a picture has.

    Attributes:
        labels: the key of a picture's labels that the task learns from.
        at: the one level on which the head hangs, such as c5 or p5.
        prior: probability that each tag starts with.
        normalizer: what the sum of losses is divided by, see `detmtl.losses.normalizer`; what counts
            are the tags that are known.
    """

    finds: ClassVar[Written] = "tags"
    kind: Literal["tags"] = "tags"
    labels: Literal["tags"] = "tags"
    at: str = "c5"
    prior: float = Field(default=0.1, gt=0, lt=1)
    normalizer: OfBatch = "source"

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> "TagsTask":
        """Makes the task with random weights; see `BuildsTask.build`.

        Raises:
            InputError: `at` is not one level.
        """
        if len(channels) != 1:
            raise InputError(
                f"tasks.{name}.at: is {self.at}, which is {len(channels)} levels; tags hang on one, "
                "such as c5 or p5"
            )
        head = nn.Conv2d(channels[0], num_classes, 1)
        nn.init.normal_(head.weight, std=0.01)
        assert head.bias is not None
        nn.init.constant_(head.bias, math.log(self.prior / (1 - self.prior)))
        levels = level_names(self.at, strides)
        return TagsTask(name, self.labels, levels, head, class_names, strides[0], self.normalizer)


class TagsTask(Task):
    """A head that tells which tags a picture has.

    Attributes:
        class_names: of the T tags.
        stride: pixels between the positions of the output.
    """

    terms = ("tag",)

    def __init__(
        self,
        name: str,
        labels: str,
        levels: tuple[str, ...],
        head: nn.Module,
        class_names: Sequence[str],
        stride: int,
        normalizer: OfBatch,
    ):
        """Takes the parts that `TagsConfig.build` makes."""
        super().__init__()
        self.name = name
        self.labels = labels
        self.class_layers = {"head": "tags"}
        self.levels = levels
        self.head = head
        self.class_names = tuple(class_names)
        self.stride = stride
        self._decoder = TagDecoder(stride)
        self._normalizer: OfBatch = normalizer

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns [logits (B, T, H, W)]."""
        return [self.head(features[0])]

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the term "tag": binary cross entropy of the tags that are known; see `Task.loss`."""
        labels = batch.labels.get(self.labels)
        assert labels is None or isinstance(labels, PaddedTags)
        if labels is None or not labels.some:
            skip_normalizer(batch)
            return {}
        with torch.autocast(outputs[0].device.type, enabled=False):
            logits = pooled(outputs[0], batch.sizes, self.stride)
            losses = F.binary_cross_entropy_with_logits(
                logits,
                labels.targets.to(logits.dtype),
                labels.weights.to(logits.dtype),
                reduction="none",
            )
            known = (labels.weights > 0).sum(1)
            # Who wrote the tags counts here, not who wrote the picture's other labels.
            scale = normalizer(
                self._normalizer, known, known > 0, replace(batch, grades=labels.grade)
            )
            return LossTerms.of({"tag": losses.sum(1) * scale})

    @torch.no_grad()
    def decode(self, outputs: list[Tensor], sizes: Tensor) -> list[TagLabels]:
        """Returns each picture's probabilities."""
        found = self._decoder(outputs, sizes, sizes)
        return [TagLabels(p, torch.ones_like(p), Grade.SILVER) for p in found]

    def metric(self) -> Metric:
        """Returns mean average precision and F1."""
        return TagMetric(self.class_names)

    def exporter(self) -> Exporter:
        """Returns the decoder."""
        return Exporter("tags", self._decoder)


class TagDecoder(nn.Module):
    """Logits to probabilities; compiles under TorchScript."""

    def __init__(self, stride: int):
        """Takes pixels between positions."""
        super().__init__()
        self.stride = stride

    def forward(self, outputs: list[Tensor], sizes: Tensor, originals: Tensor) -> list[Tensor]:
        """Returns the probabilities (T,) of each picture; its size as given, `originals`, says nothing.

        Args:
            outputs: [logits (B, T, H, W)] of padded pictures.
            sizes: (B, 2) true height and width of each within its padding.
            originals: (B, 2), see `detmtl.tasks.task.Exporter`.
        """
        probabilities = torch.sigmoid(pooled(outputs[0], sizes, self.stride))
        return [probabilities[i] for i in range(len(probabilities))]


def pooled(logits: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """Returns the mean (B, T), at least float32, of logits (B, T, H, W) within the true sizes (B, 2).

    Compiles under TorchScript.
    """
    if logits.dtype == torch.float16 or logits.dtype == torch.bfloat16:
        logits = logits.float()
    rows = torch.arange(logits.shape[2], device=logits.device)
    columns = torch.arange(logits.shape[3], device=logits.device)
    # a position counts if the picture reaches into its cell
    high = (rows * stride < sizes[:, :1]).to(logits.dtype)
    wide = (columns * stride < sizes[:, 1:]).to(logits.dtype)
    inside = high.unsqueeze(2) * wide.unsqueeze(1)
    inside = inside / inside.sum(dim=[1, 2], keepdim=True)
    return (logits * inside.unsqueeze(1)).sum(dim=[2, 3])
