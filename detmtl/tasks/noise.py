"""A control: another task with labels that say nothing of the picture.

Any second loss may help by regularizing, or hurt by its weight alone. What a task does beyond that shows
against itself with the labels of another picture: the same head, the same loss, the same kind of labels as
often, and nothing to learn from the picture. One about boxes learns what is said of the next picture's, at
their places. In YAML: {kind: detmtl.tasks.noise:NoiseConfig, of: {kind: semantic}}.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from detmtl.structures.errors import InputError
from detmtl.structures.labels import Labels
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.structures.tensors import Tensors
from detmtl.tasks.task import Metric, Task
from detmtl.tasks.tasks import TaskConfig

KIND = "detmtl.tasks.noise:NoiseConfig"


class NoiseConfig(Settings):
    """Settings of a task that learns, from each picture, the labels of the batch's next one.

    Attributes:
        of: the task whose labels these are.
    """

    kind: str = KIND
    of: TaskConfig

    @property
    def labels(self) -> str:
        """Returns the key of the labels."""
        return getattr(self.of, "labels", "boxes")

    @property
    def at(self) -> str:
        """Returns where the task hangs."""
        return getattr(self.of, "at", "fpn")

    @property
    def learns(self) -> str | None:
        """Returns what it learns of boxes, if they are what it is about."""
        return getattr(self.of, "learns", None)

    @property
    def vocabulary(self) -> str | None:
        """Returns the key of the names that `build` needs, if it needs some."""
        return getattr(self.of, "vocabulary", None)

    def build(
        self,
        name: str,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        class_names: Sequence[str],
        **names: Sequence[str],
    ) -> "NoiseTask":
        """Makes the task; see `BuildsTask.build`."""
        return NoiseTask(self.of.build(name, channels, strides, num_classes, class_names, **names))


class NoiseTask(Task):
    """A task whose loss sees the labels of the next picture.

    Its scores, on labels as they are, say nothing; they are there because every task has some.
    """

    def __init__(self, task: Task):
        """Takes the task itself."""
        super().__init__()
        self.name, self.labels, self.levels = task.name, task.labels, task.levels
        self.of, self.terms = task.of, task.terms
        self.task = task
        self.class_names = getattr(task, "class_names", ())

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns what the task itself returns."""
        return self.task(features)

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the task's own terms; see `Task.loss`.

        Raises:
            InputError: there is no other picture.
        """
        if len(batch) == 1:
            raise InputError(
                f"tasks.{self.name}: noise takes each picture's labels from another one of the batch, and "
                "there is only one; set data.batch_size to at least 2 for each process"
            )
        labels = batch.labels.get(self.labels)
        if labels is not None:
            batch = replace(batch, labels={**batch.labels, self.labels: rolled(labels)})
        return self.task.loss(outputs, batch)

    @torch.no_grad()
    def decode(self, outputs: list[Tensor], sizes: Tensor, *boxes: Any) -> Sequence[Labels]:
        """Returns the task's own predictions; one about boxes gets them."""
        return self.task.decode(outputs, sizes, *boxes)

    def metric(self) -> Metric:
        """Returns the task's own metric."""
        return self.task.metric()


def rolled(labels: Any) -> Any:
    """Returns padded labels in which each picture has those of the next one, details of boxes included."""
    if isinstance(labels, Tensor):
        return labels.roll(-1, 0)
    values = {f.name: getattr(labels, f.name) for f in fields(labels)}
    parts = {name: rolled(x) for name, x in values.items() if isinstance(x, Tensor | Tensors)}
    return replace(labels, **parts)
