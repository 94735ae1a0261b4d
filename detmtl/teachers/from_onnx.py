"""Teachers given as ONNX files."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.silver.mapping import suppress
from detmtl.structures.errors import InputError, missing_package
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.onnx_outputs import AnyAdapter, Format
from detmtl.teachers.teacher import Teacher, TeacherSettings, class_names, existing, file_sha256

CANDIDATES = 3000
"""The most boxes of a picture that go into suppression, the best of them."""


class OnnxTeacher(Teacher):
    """A network that runs in onnxruntime.

    Args:
        session: of onnxruntime, with one input (B or 1, 3, H, W) and its detections as first output.
        form: what goes in and comes out.
        card: who it is.
        nms: IoU above which the worse of two boxes of one class goes.
        best_class: whether a candidate has only its best class.
        max_boxes: the most boxes of a picture.
    """

    def __init__(
        self,
        session: Any,
        form: Format,
        card: TeacherCard,
        nms: float,
        best_class: bool,
        max_boxes: int,
    ):
        self.card = card
        self._session, self._form = session, form
        self._nms, self._best_class, self._max_boxes = nms, best_class, max_boxes
        self._input = session.get_inputs()[0]
        self._output = session.get_outputs()[0].name

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the boxes of each picture, see `Teacher.annotate`."""
        if not images:
            return []
        pixels = [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        sizes = np.array([p.shape[:2] for p in pixels], dtype=np.float32)
        output = self._run(np.stack([self._form.prepare(p) for p in pixels]))
        boxes, scores = self._form.decode(output, sizes)
        return [
            self._choose(b, s, size, floor) for b, s, size in zip(boxes, scores, sizes, strict=True)
        ]

    def _run(self, batch: np.ndarray) -> np.ndarray:
        fixed = self._input.shape[0]
        if not isinstance(fixed, int) or fixed == len(batch):
            return self._session.run([self._output], {self._input.name: batch})[0]
        outputs = [
            self._session.run([self._output], {self._input.name: batch[i : i + 1]})[0]
            for i in range(len(batch))
        ]
        return np.concatenate(outputs)

    def _choose(
        self, boxes: np.ndarray, scores: np.ndarray, size: np.ndarray, floor: float
    ) -> BoxLabels:
        """Returns the labels of candidates (N, 4) with scores (N, K) in a picture of `size`."""
        if self._best_class:
            scores = np.where(scores == scores.max(axis=1, keepdims=True), scores, -1)
        rows, classes = np.nonzero(scores >= floor)
        values = scores[rows, classes]
        best = np.argsort(-values, kind="stable")[:CANDIDATES]
        boxes, values, classes = boxes[rows[best]], values[best], classes[best]
        keep = suppress(boxes, values, classes, self._nms)[: self._max_boxes]
        limits = np.tile(size[::-1], 2)
        return BoxLabels.of(
            torch.from_numpy(boxes[keep].clip(0, limits).astype(np.float32)),
            torch.from_numpy(classes[keep]),
            len(self.card.classes),
            scores=torch.from_numpy(values[keep].clip(0, 1)),
            grade=Grade.SILVER,
        )


class OnnxTeacherSettings(TeacherSettings):
    """A network in an ONNX file."""

    kind: Literal["onnx"] = "onnx"
    classes: str | list[str]
    """A text file with a class name a line, or the names, in the order of the network's scores."""
    adapter: AnyAdapter
    """How pictures go in and what the outputs mean."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of the input, for a network that does not say it."""
    threads: int = Field(default=0, ge=0)
    """Threads of onnxruntime; 0: as many as this process may use cores."""

    def load(self, root: Path, device: str = "cpu") -> OnnxTeacher:
        """Builds the teacher; files are taken relative to `root`.

        Raises:
            InputError: onnxruntime or a file is missing, or the network is not of the adapter's kind.
        """
        try:
            import onnxruntime
        except ImportError:
            raise missing_package("onnxruntime", "onnx", "a teacher of kind 'onnx'") from None
        file = existing(root, self.path, "teacher.path")
        names = class_names(root, self.classes)
        session = _session(onnxruntime, file, self.threads or _cores(), device)
        size = _input_size(session, self.size, file)
        form = self.adapter.build(size, len(names))
        shape = tuple(session.get_outputs()[0].shape)
        static = all(isinstance(n, int) for n in shape[1:])
        if static and not form.accepts(shape):
            raise InputError(
                f"{file}: its output has the shape {shape}, but the adapter '{self.adapter.kind}' with "
                f"{len(names)} classes needs {form.needs}; choose the adapter of this network and give "
                "all its classes"
            )
        rules = self.adapter.model_dump(mode="json")
        card = TeacherCard(
            name=self.name or file.stem,
            weights_sha256=file_sha256(file),
            classes=names,
            preprocessing=f"{size[0]} x {size[1]}, {self.adapter.words}; {rules}",
            versions={"onnxruntime": onnxruntime.__version__},
        )
        a = self.adapter
        return OnnxTeacher(session, form, card, a.nms, a.best_class, a.max_boxes)


def _session(onnxruntime: Any, file: Path, threads: int, device: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            index = int(device.partition(":")[2] or 0)
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))  # type: ignore[arg-type]
        else:
            warnings.warn(
                f"{file}: this onnxruntime has no CUDA, the teacher runs on the CPU "
                "(pip install onnxruntime-gpu in place of onnxruntime)",
                stacklevel=3,
            )
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as problem:  # onnxruntime's own classes have no common base but this
        raise InputError(f"{file}: onnxruntime cannot read it: {problem}") from None


def _input_size(session: Any, given: tuple[int, int] | None, file: Path) -> tuple[int, int]:
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if (
        len(inputs) != 1
        or len(shape) != 4
        or shape[1] not in (3, "3")
        or "float" not in inputs[0].type
    ):
        raise InputError(
            f"{file}: the adapters feed one float input (batch, 3, height, width); this network has "
            f"{[(i.name, i.shape, i.type) for i in inputs]}"
        )
    fixed = [n for n in shape[2:] if isinstance(n, int)]
    if len(fixed) < 2 and given is None:
        raise InputError(
            f"{file}: its input has no fixed size {shape}; give teacher.size: [height, width]"
        )
    if given is not None and any(
        isinstance(n, int) and n != g for n, g in zip(shape[2:], given, strict=True)
    ):
        raise InputError(f"{file}: teacher.size is {list(given)}, but its input is {shape}")
    return given or (fixed[0], fixed[1])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
