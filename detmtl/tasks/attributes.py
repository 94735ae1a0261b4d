"""Attributes of each box, such as the color of a car.

Output of the head: logits (R, T) of all values of all attributes, one attribute's after the other's; of
the form: probabilities (N, T).
Letters: R, N boxes, A attributes, T values of all attributes, B pictures, M the most boxes of a picture.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.metrics.attributes import AttributeMetric
from detmtl.models.box_head import BoxHeadSettings
from detmtl.structures.details import value_groups
from detmtl.structures.labels import PaddedBoxes
from detmtl.tasks.box_rois import Rois
from detmtl.tasks.box_task import BoxTask, BoxTaskSettings
from detmtl.tasks.task import Metric


class AttributesConfig(BoxTaskSettings):
    """Settings of a task that tells the attributes of `data.details.attributes` of each box.

    Attributes:
        kind: names the task.
        head: of 7 x 7 cells and 2 convolutions, and a mean over the cells.
    """

    kind: Literal["attributes"] = "attributes"
    head: BoxHeadSettings = BoxHeadSettings(side=7, depth=2)
    learns: ClassVar[str] = "attributes"
    vocabulary: ClassVar[str] = "attributes"

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
        names: Sequence[str] = (),
    ) -> "AttributesTask":
        """Makes the task with random weights; see `BuildsTask.build`.

        Args:
            names: the T values as `attribute/value`.
        """
        place = self.place(name, channels, strides)
        head = self.head.build(place.channels, place.strides, len(names), up=False, mean=True)
        sizes = [len(values) for values in value_groups(names).values()]
        return AttributesTask(place, head, Probabilities(sizes), class_names, self, names)


class Probabilities(nn.Module):
    """Softmax within each attribute.

    Args:
        sizes: how many values each of the A attributes has.
    """

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.sizes = sizes

    def forward(self, raw: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """Returns (N, T) from logits (N, T); of boxes and classes nothing is needed."""
        parts: list[Tensor] = []
        for logits in raw.split(self.sizes, dim=1):
            parts.append(torch.softmax(logits, dim=1))
        return torch.cat(parts, dim=1)


class AttributesTask(BoxTask):
    """See the module; `names` are the T values as `attribute/value`."""

    kind, term = "attributes", "value"

    def losses(self, raw: Tensor, rois: Rois, labels: PaddedBoxes) -> Tensor:
        """Returns the sum over a box's known attributes of cross entropy."""
        assert labels.details is not None and labels.details.attributes is not None
        targets = labels.details.attributes[rois.picture, rois.row]
        total = raw.new_zeros(len(raw))
        for a, logits in enumerate(raw.split(self.form.sizes, dim=1)):
            total = total + F.cross_entropy(
                logits, targets[:, a], ignore_index=-1, reduction="none"
            )
        return total

    def metric(self) -> Metric:
        """Returns accuracies."""
        return AttributeMetric(self.names)
