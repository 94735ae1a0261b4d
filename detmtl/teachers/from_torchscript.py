"""A TorchScript file as teacher."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detmtl.inference.detector import CONFIDENCE
from detmtl.inference.torchscript import EXTRA_FILE, deprecation_expected
from detmtl.silver.card import TeacherCard, Written
from detmtl.structures.errors import InputError
from detmtl.structures.exported import NAMES, exported_format
from detmtl.structures.labels import BoxLabels, Grade, MapLabels, TagLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.maps import map_of_places, require_few
from detmtl.teachers.slots import ClassSlots, class_slots
from detmtl.teachers.teacher import (
    Teacher,
    chosen_task,
    existing,
    file_sha256,
    let_through,
    map_as_silver,
    not_too_thin,
    same_shape,
    silver_boxes,
    unsearched,
)
from detmtl.teachers.teacher_settings import TeacherSettings


class TorchScriptTeacher(Teacher):
    """A module that takes and gives what torchvision's detectors do.

    Args:
        module: list of (3, H, W) -> list of dicts `boxes`, `labels`, `scores`, or a pair of which
            that list is the second (torchvision's scripted detectors).
        card: who it is.
        slots: what the labels mean, from `first_label` on.
        device: where the module is.
        scale: pictures are given as float, multiplied by it; None: as uint8.
        first_label: the label of the first class.
        padded: whether it pads the pictures that it is given to the largest of them, as torchvision's
            detectors do: scores would depend on the company, so only pictures of one shape go in together.
        decoder: of a file that detmtl exported, what makes boxes of its outputs.
    """

    def __init__(
        self,
        module: Any,
        card: TeacherCard,
        slots: ClassSlots,
        device: torch.device | str,
        scale: float | None = None,
        first_label: int = 0,
        padded: bool = True,
        decoder: Any = None,
    ):
        self.card = card
        self._module, self._device = module, device
        self._scale, self._first_label, self._padded = scale, first_label, padded
        self._decoder = decoder
        self._classes = torch.from_numpy(slots.classes)

    @torch.inference_mode()
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the boxes of each picture, see `Teacher.annotate`.

        Raises:
            InputError: a label is none of the classes.
        """
        if self._decoder is not None:
            let_through(self._decoder, floor)
        shown = [not_too_thin(image) for image in images] if self._padded else images
        given = [image.to(self._device) for image in shown]
        if self._scale is not None:
            given = [image.float() * self._scale for image in given]
        labels: dict[int, BoxLabels] = {}
        for together in same_shape(given) if self._padded else [range(len(given))]:
            found = self._module([given[i] for i in together])
            if isinstance(found, tuple):
                found = found[1]
            for i, one in zip(together, found, strict=True):
                labels[i] = self._labels(one, images[i], floor)
        return [labels[i] for i in range(len(images))]

    def _labels(self, found: dict[str, Tensor], image: Tensor, floor: float) -> BoxLabels:
        places = found["labels"].cpu() - self._first_label
        wrong = (places < 0) | (places >= len(self._classes))
        if wrong.any():
            label = int(places[wrong][0]) + self._first_label
            raise InputError(
                f"teacher '{self.card.name}': gave the label {label}, but its {len(self._classes)} "
                f"classes are the labels from {self._first_label} on; correct teacher.classes or "
                "teacher.first_label"
            )
        classes, count = self._classes[places], len(self.card.classes)
        return silver_boxes(found["boxes"], classes, found["scores"], image, count, floor)


class TorchScriptTaskTeacher(Teacher):
    """The maps or the tags of a file that detmtl exported.

    Args:
        module: see `detmtl.inference.detector.Detector`.
        task: name of the task whose labels are taken.
        card: who it is; `card.task` says what the labels are.
        slots: the classes.
        device: where the module is.
    """

    def __init__(
        self,
        module: Any,
        task: str,
        card: TeacherCard,
        slots: ClassSlots,
        device: torch.device | str,
    ):
        self.card = card
        self._module, self._task, self._slots, self._device = module, task, slots, device

    @torch.inference_mode()
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[MapLabels | TagLabels]:
        """Returns the map or the tags of each picture, see `Teacher.annotate`.

        Raises:
            InputError: `teacher.classes` does not name what comes out.
        """
        found = self._module([image.to(self._device) for image in images])
        if self.card.task == "tags":
            return [self._tags(one[self._task].cpu()) for one in found]
        name = self._task + CONFIDENCE  # not in files of earlier versions
        return [self._map(one[self._task].cpu(), one.get(name), floor) for one in found]

    def _map(self, classes: Tensor, confidence: Tensor | None, floor: float) -> MapLabels:
        size = (int(classes.shape[0]), int(classes.shape[1]))
        who = f"teacher '{self.card.name}'"
        labels = map_of_places(classes.numpy().astype(np.int64), size, self._slots, who)
        return map_as_silver(replace(labels, weights=confidence), floor)

    def _tags(self, probabilities: Tensor) -> TagLabels:
        if len(probabilities) != len(self._slots):
            raise InputError(
                f"teacher '{self.card.name}': gave {len(probabilities)} tags, but teacher.classes names "
                f"{len(self._slots)}; name them all, or leave teacher.classes out"
            )
        targets = probabilities[torch.from_numpy(self._slots.classes >= 0)]
        return TagLabels(targets, torch.ones_like(targets), int(Grade.SILVER))


class TorchScriptTeacherSettings(TeacherSettings):
    """A TorchScript module that takes what torchvision's detectors take, or that detmtl exported."""

    kind: Literal["torchscript"] = "torchscript"
    path: str
    """The TorchScript file."""
    classes: str | list[str] | None = None
    """Class names or a file of them, N/A for a label that means nothing; None: those inside the file."""
    scale: float | None = Field(default=None, gt=0)
    """Pictures are given as float, multiplied by this (1/255 for torchvision's detectors); None: as
    uint8, as the files that this package exports want them."""
    first_label: int = 0
    """The label of the first class; 1 for torchvision's detectors, where 0 is the background."""
    task: str | None = None
    """Of a file that detmtl exported, the name of the task whose labels it writes: boxes, semantic maps
    or tags; None: the only such task."""

    def build(self, root: Path, device: str) -> TorchScriptTeacher | TorchScriptTaskTeacher:
        """Builds the teacher; files are taken relative to `root`.

        Raises:
            InputError: there is no such file, it is no TorchScript, the task is not clear, or class names
                are missing.
        """
        file = existing(root, self.path, "teacher.path")
        if (format := exported_format(file)) in ("onnx", "pt2"):
            raise InputError(
                f"teacher.path: {file} is of format {NAMES[format]}, no TorchScript; of its run give "
                "best.pt (kind checkpoint), or export it with --format torchscript"
            )
        extra = {EXTRA_FILE: ""}
        try:
            with deprecation_expected():
                module = torch.jit.load(str(file), map_location=device, _extra_files=extra).eval()
        except RuntimeError as problem:
            first = str(problem).strip().splitlines()[0]
            raise InputError(f"{file}: no readable TorchScript file ({first})") from None
        about = json.loads(extra[EXTRA_FILE] or "{}")
        task, kind, own = _written(about, self.task, file)
        if kind != "boxes" and (self.scale is not None or self.first_label):
            raise InputError(
                f"teacher: `scale` and `first_label` are of boxes by networks of others, and task {task} of "
                f"{file} writes {kind}; leave them out"
            )
        names = self.classes if self.classes is not None else own
        if not names:
            raise InputError(
                f"teacher.classes: {file} has no class names inside; give them, in the order of its labels"
            )
        slots = class_slots(root, names)
        scaling = "uint8" if self.scale is None else f"float, times {self.scale}"
        what = f"labels from {self.first_label}" if kind == "boxes" else f"task {task}"
        card = TeacherCard(
            name=self.named(file.stem),
            weights_sha256=file_sha256(file),
            classes=slots.names,
            unsearched=_renamed(unsearched(task, own or (), about.get("searched", {})), own, slots),
            preprocessing=f"inside the file; rgb {scaling}; {what}, {slots}",
            task=kind,
            versions={"torch": torch.__version__},
        )
        if task is None or kind == "boxes":
            ours = {"detmtl", "format"} <= about.keys()  # in those no picture depends on another
            return TorchScriptTeacher(
                module,
                card,
                slots,
                device,
                self.scale,
                self.first_label,
                padded=not ours,
                decoder=getattr(module, "decoder", None) if ours else None,
            )
        if kind == "maps":
            require_few(slots, "teacher.classes")
        return TorchScriptTaskTeacher(module, task, card, slots, device)


def _renamed(names: Sequence[str], own: Sequence[str] | None, slots: ClassSlots) -> tuple[str, ...]:
    """Returns those of a file's `own` class names that are among `names`, as the card calls them."""
    classes = [int(c) for name, c in zip(own or (), slots.classes, strict=False) if name in names]
    return tuple(slots.names[c] for c in classes if c >= 0)


def _written(
    about: Mapping[str, Any], task: str | None, file: Path
) -> tuple[str | None, Written, Sequence[str] | None]:
    """Returns name, kind and class names of the task whose labels are taken, from what stands beside the
    module; only files of detmtl have tasks, and others need not have names.

    Raises:
        InputError: as `chosen_task`.
    """
    if task is None and "task" not in about:
        return None, "boxes", about.get("classes")
    others = about.get("tasks", {})
    kinds = {name: of["kind"] for name, of in others.items()}
    if about.get("task"):
        kinds[about["task"]] = "boxes"
    task, kind = chosen_task(task, kinds, file)
    return task, kind, about["classes"] if kind == "boxes" else others[task]["classes"]
