"""A model's tasks, and how its network and they are written as one TorchScript file, unchecked.

Letters: B pictures, H and W pixels.
"""

import copy
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

import detmtl
from detmtl.inference.detector import BoxedDecoder, Detector, TaskDecoder
from detmtl.inference.frozen import in_dtype
from detmtl.inference.predictor import LoadedModel, kind_of
from detmtl.inference.torchscript import deprecation_expected, save_torchscript
from detmtl.structures.errors import InputError
from detmtl.structures.sample import DIVISOR
from detmtl.tasks.box_task import BoxTask
from detmtl.tasks.detection import DetectionTask
from detmtl.tasks.multitask import MultiTask
from detmtl.tasks.task import Task

ExportDtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Method = Literal["traced", "scripted"]
"""How a network is captured."""


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
        others: those that have an exporter.
        boxed: tasks about the boxes.
    """

    detection: DetectionTask | None
    others: tuple[Task, ...]
    boxed: tuple[BoxTask, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names in the order of the network's outputs."""
        first = [] if self.detection is None else [self.detection.name]
        return first + [task.name for task in (*self.others, *self.boxed)]


def exported(model: MultiTask, path: Path) -> Exported:
    """Returns the tasks that are exported: all of the model's.

    Raises:
        InputError: one of them cannot be.
    """
    tasks = list(model.tasks.values())
    boxes = [task for task in tasks if isinstance(task, DetectionTask)]
    boxed = tuple(task for task in tasks if isinstance(task, BoxTask))
    others = tuple(task for task in tasks if isinstance(task, Task) and task.exporter() is not None)
    if len(boxes) > 1 or len(boxes) + len(others) + len(boxed) < len(tasks):
        raise InputError(
            f"{path}: a TorchScript file holds at most one detection task and what describes its boxes, "
            "semantic tasks, tags, and tasks that have an `exporter`; the model's tasks are "
            f"{', '.join(model.tasks)}; train without the others, or give them one"
        )
    if taken := {"boxes", "labels", "scores"} & {task.name for task in (*others, *boxed)}:
        raise InputError(
            f"{path}: tasks named {', '.join(sorted(taken))} would hide what detection gives; rename them"
        )
    return Exported(boxes[0] if boxes else None, others, boxed)


def write_script(
    loaded: LoadedModel, tasks: Exported, path: Path, method: Method, dtype: ExportDtype
) -> None:
    """Writes the file that `detmtl.inference.export.export_torchscript` describes.

    Args:
        loaded: the model.
        tasks: from `exported`.
        path: of the file, which is overwritten.
        method: how the network is captured.
        dtype: that it computes in.

    Raises:
        Exception: of any kind, by torch, where the network or a task cannot be captured so.
    """
    names = list(loaded.class_names)
    network = _captured(
        RawOutputs(in_dtype(loaded.model, DTYPES[dtype]), tasks.names), method, loaded.short
    )
    first = places_of(loaded.model, tasks)
    boxes = 0 if tasks.detection is None else first[tasks.detection.name][1]
    exporters = {task.name: task.exporter() for task in tasks.others}
    others = [
        TaskDecoder(name, *first[name], exporter.decoder)
        for name, exporter in exporters.items()
        if exporter is not None
    ]
    decoder = None if tasks.detection is None else tasks.detection.decoder
    boxed = []
    for task in tasks.boxed:  # their heads stay in float32 whatever the network computes in
        head = copy.deepcopy(task.head).requires_grad_(False)
        points = task.kind == "keypoints"
        boxed.append(BoxedDecoder(task.name, *first[task.name], head, task.form, points))
    detector = Detector(
        network,
        decoder,
        names,
        loaded.short,
        loaded.long,
        DIVISOR,
        boxes,
        others,
        boxed,
    ).eval()
    about = {
        "format": 1,
        "detmtl": detmtl.__version__,
        "task": None if tasks.detection is None else tasks.detection.name,
        "tasks": {
            task.name: {
                "kind": kind_of(task),
                "classes": list(getattr(task, "class_names", ())),
            }
            for task in tasks.others
        }
        | {task.name: {"kind": task.kind, "classes": list(task.names)} for task in tasks.boxed},
        "classes": names,
        "searched": {task: list(found) for task, found in loaded.searched.items()},
        "dtype": dtype,
        "input": {"short": loaded.short, "long": loaded.long},
        "settings": loaded.settings,
    }
    with deprecation_expected():
        scripted = torch.jit.script(detector)
    save_torchscript(scripted, path, about)


@torch.no_grad()
def places_of(model: MultiTask, tasks: Exported) -> dict[str, tuple[int, int]]:
    """Returns task -> the position of its first output among the network's, and how many it has."""
    found = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    places, first = {}, 0
    for name in tasks.names:
        places[name] = (first, len(found[name]))
        first += len(found[name])
    return places


def _captured(network: nn.Module, method: Method, side: int) -> torch.jit.ScriptModule:
    """Returns the network with its weights as constants.

    Only the network is frozen: the decoder's thresholds can still be set in the loaded file.
    """
    height = (side + DIVISOR - 1) // DIVISOR * DIVISOR
    example = torch.zeros(2, 3, height, height + DIVISOR, dtype=torch.uint8)
    with deprecation_expected(), torch.no_grad(), warnings.catch_warnings():
        # whether a size became a constant is found out by comparing, not guessed from advice
        warnings.simplefilter("ignore", TracerWarning)
        if method == "traced":
            captured = torch.jit.trace(network, example, strict=False, check_trace=False)
        else:
            captured = torch.jit.script(network)
        frozen = torch.jit.freeze(captured)
        buffer = io.BytesIO()  # script() takes a frozen module as a part only after a round trip
        torch.jit.save(frozen, buffer)
        buffer.seek(0)
        return torch.jit.load(buffer)
