"""Which of a model's tasks an exported file holds, and what it says of them; of every format.

Letters: B pictures, H and W pixels.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import detmtl
from detmtl.inference.detector import BoxedDecoder
from detmtl.inference.predictor import LoadedModel, kind_of
from detmtl.structures.errors import InputError
from detmtl.tasks.box_task import BoxTask
from detmtl.tasks.detection import DetectionTask
from detmtl.tasks.multitask import MultiTask
from detmtl.tasks.task import Exporter, Task

ExportDtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RawOutputs(nn.Module):
    """(B, 3, H, W) uint8 -> raw outputs of the tasks, one after the other."""

    def __init__(self, model: MultiTask, tasks: Sequence[str]):
        super().__init__()
        self.eval()
        self.model = model
        self.tasks = tuple(tasks)

    def forward(self, images: Tensor) -> list[Tensor]:
        found = self.model(images)
        return [output for task in self.tasks for output in found[task]]


@dataclass(frozen=True)
class Exported:
    """The tasks of a file.

    Attributes:
        detection: None where there is none.
        others: those that have an exporter, each with it.
        boxed: tasks about the boxes.
    """

    detection: DetectionTask | None
    others: tuple[tuple[Task, Exporter], ...]
    boxed: tuple[BoxTask, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names in the order of the network's outputs."""
        first = [] if self.detection is None else [self.detection.name]
        return first + [task.name for task in (*(task for task, _ in self.others), *self.boxed)]

    def about(self, loaded: LoadedModel) -> dict[str, Any]:
        """Returns what a file of any format says of itself, as JSON; read by `FileTasks`."""
        others = {
            task.name: {
                "kind": kind_of(task),
                "classes": list(getattr(task, "class_names", ())),
            }
            for task, _ in self.others
        }
        boxed = {task.name: {"kind": task.kind, "classes": list(task.names)} for task in self.boxed}
        return {
            "format": 1,
            "detmtl": detmtl.__version__,
            "task": None if self.detection is None else self.detection.name,
            "tasks": others | boxed,
            "classes": list(loaded.class_names),
            "searched": {task: list(found) for task, found in loaded.searched.items()},
            "settings": dict(loaded.settings),
        }

    def of_boxes(self, places: Mapping[str, tuple[int, int]]) -> list[BoxedDecoder]:
        """Returns what decodes the tasks about the boxes; `places`: see `places_of`."""
        decoders = []
        for task in self.boxed:  # their heads stay in float32 whatever the network computes in
            head = copy.deepcopy(task.head).requires_grad_(False)
            points = task.kind == "keypoints"
            decoders.append(BoxedDecoder(task.name, *places[task.name], head, task.form, points))
        return decoders


def exported(model: MultiTask, path: Path, format: str = "torchscript") -> Exported:
    """Returns the tasks that are exported: all of the model's.

    Args:
        model: whose tasks they are.
        path: of the file, for errors.
        format: see `detmtl.inference.formats.FORMATS`.

    Raises:
        InputError: one of them cannot be.
    """
    tasks = list(model.tasks.values())
    boxes = [task for task in tasks if isinstance(task, DetectionTask)]
    boxed = tuple(task for task in tasks if isinstance(task, BoxTask))
    others = tuple(
        (task, exporter)
        for task in tasks
        if isinstance(task, Task) and (exporter := task.exporter()) is not None
    )
    if len(boxes) > 1 or len(boxes) + len(others) + len(boxed) < len(tasks):
        raise InputError(
            f"{path}: an exported file holds at most one detection task and what describes its boxes, "
            "semantic tasks, tags, and tasks that have an `exporter`; the model's tasks are "
            f"{', '.join(model.tasks)}; train without the others, or give them one"
        )
    names = {task.name for task in (*(task for task, _ in others), *boxed)}
    if taken := names & {"boxes", "labels", "scores"}:
        raise InputError(
            f"{path}: tasks named {', '.join(sorted(taken))} would hide what detection gives; rename them"
        )
    if format != "torchscript":
        _refuse_unfixed(others, path, format)
    return Exported(boxes[0] if boxes else None, others, boxed)


def _refuse_unfixed(others: Sequence[tuple[Task, Exporter]], path: Path, format: str) -> None:
    unfixed = [t.name for t, exporter in others if exporter.kind != "tags" and not exporter.whole]
    if unfixed:
        raise InputError(
            f"{path}: {format} files have fixed shapes, and the exporter of {', '.join(unfixed)} does not "
            "say what it gives of a whole canvas; give it `whole` (detmtl.tasks.task.Exporter), or use "
            "--format torchscript"
        )


@torch.no_grad()
def places_of(model: MultiTask, tasks: Exported) -> dict[str, tuple[int, int]]:
    """Returns task -> the position of its first output among the network's, and how many it has."""
    found = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    places, first = {}, 0
    for name in tasks.names:
        places[name] = (first, len(found[name]))
        first += len(found[name])
    return places
