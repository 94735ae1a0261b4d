"""Teachers given as ONNX files.

Letters: B pictures, N candidate boxes, S places for classes (see slots.py).
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.silver.mapping import suppress
from detmtl.structures.errors import InputError, missing_package
from detmtl.structures.labels import BoxLabels, Grade, MapLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.maps import map_of_places, map_of_probabilities, require_few
from detmtl.teachers.onnx_adapters import AnyAdapter, BoxAdapter, MapAdapter
from detmtl.teachers.onnx_files import external_files
from detmtl.teachers.onnx_input import NetworkInput, Preparation, network_input
from detmtl.teachers.onnx_maps import MapFormat
from detmtl.teachers.onnx_outputs import Format
from detmtl.teachers.slots import BACKGROUND, REST, ClassSlots, class_slots
from detmtl.teachers.teacher import Teacher, existing, file_sha256
from detmtl.teachers.teacher_settings import TeacherSettings

CANDIDATES = 3000
"""The most boxes of a picture that go into suppression, the best of them."""


class Network:
    """A network in onnxruntime with what goes in and comes out.

    Args:
        session: of onnxruntime.
        into: its input.
        prepare: makes the input of a picture.
        form: what its outputs are.
        who: the teacher, for errors.
    """

    def __init__(
        self,
        session: Any,
        into: NetworkInput,
        prepare: Preparation,
        form: Format | MapFormat,
        who: str,
    ):
        self.prepare = prepare
        self._session, self._into, self._form, self._who = session, into, form, who

    def __call__(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs (B, ...) that the form reads, for pictures (h, w, 3) uint8 RGB.

        Raises:
            InputError: an output has another shape than the form's, or is not finite.
        """
        batch = np.stack([self.prepare(p) for p in pixels])
        size = self._into.batch or len(batch)
        parts = []
        for first in range(0, len(batch), size):
            part = batch[first : first + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            outputs = self._session.run(list(self._form.outputs), {self._into.name: filled})
            parts.append([output[: len(part)] for output in outputs])
        outputs = [np.concatenate(of_one) for of_one in zip(*parts, strict=True)]
        if not self._form.accepts(*(output.shape for output in outputs)):
            raise InputError(
                f"{self._who}: gave {[output.shape for output in outputs]}, needs {self._form.needs}"
            )
        if not all(np.isfinite(output).all() for output in outputs):
            raise InputError(f"{self._who}: gave a number that is not finite")
        return [o.astype(np.float32) if o.dtype == np.float16 else o for o in outputs]


class OnnxTeacher(Teacher):
    """A detector in onnxruntime.

    Args:
        network: that runs.
        form: what its outputs mean.
        slots: the classes.
        card: who it is.
        adapter: how boxes are chosen.
    """

    def __init__(
        self,
        network: Network,
        form: Format,
        slots: ClassSlots,
        card: TeacherCard,
        adapter: BoxAdapter,
    ):
        self.card = card
        self._network, self._form, self._adapter = network, form, adapter
        self._places = np.flatnonzero(slots.classes >= 0)

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the boxes of each picture, see `Teacher.annotate`."""
        if not images:
            return []
        pixels = pixels_of(images)
        sizes = np.array([p.shape[:2] for p in pixels])
        boxes, scores = self._form.decode(*self._network(pixels))
        boxes = self._network.prepare.in_pictures(boxes, sizes)
        return [
            self._choose(b, s[:, self._places], size, floor)
            for b, s, size in zip(boxes, scores, sizes, strict=True)
        ]

    def _choose(
        self, boxes: np.ndarray, scores: np.ndarray, size: np.ndarray, floor: float
    ) -> BoxLabels:
        """Returns the labels of candidates (N, 4) with scores (N, K) in a picture of `size`."""
        boxes = boxes.clip(0, np.tile(size[::-1], 2))
        real = np.all(boxes[:, 2:] > boxes[:, :2], axis=1, keepdims=True)
        wanted = real & (scores >= floor)
        if self._adapter.best_class:
            wanted &= np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]
        rows, classes = np.nonzero(wanted)
        values = scores[rows, classes]
        best = np.argsort(-values, kind="stable")[:CANDIDATES]
        boxes, values, classes = boxes[rows[best]], values[best], classes[best]
        keep = np.arange(len(boxes))
        if self._adapter.nms is not None:
            keep = suppress(boxes, values, classes, self._adapter.nms)
        keep = keep[: self._adapter.max_boxes]
        return BoxLabels.of(
            torch.from_numpy(boxes[keep].astype(np.float32)),
            torch.from_numpy(classes[keep]),
            len(self.card.classes),
            scores=torch.from_numpy(values[keep].clip(0, 1)),
            grade=Grade.SILVER,
        )


class OnnxMapTeacher(Teacher):
    """A segmenter in onnxruntime.

    Args:
        network: that runs.
        form: what its output means.
        slots: the classes.
        card: who it is.
    """

    def __init__(self, network: Network, form: MapFormat, slots: ClassSlots, card: TeacherCard):
        self.card = card
        self._network, self._form, self._slots = network, form, slots

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[MapLabels]:
        """Returns the map of each picture, see `Teacher.annotate`."""
        if not images:
            return []
        maps, hard = self._form.decode(*self._network(pixels_of(images)))
        return [
            self._in_picture(one, (int(image.shape[1]), int(image.shape[2])), hard, floor)
            for one, image in zip(maps, images, strict=True)
        ]

    def _in_picture(
        self, one: np.ndarray, size: tuple[int, int], hard: bool, floor: float
    ) -> MapLabels:
        """Returns a picture's map of the network's, (h, w) or (S, h, w), without the padding."""
        prepare = self._network.prepare
        top, left, height, width = prepare.frame(*size)
        y, x = one.shape[-2] / prepare.size[0], one.shape[-1] / prepare.size[1]
        first_y, first_x = round(top * y), round(left * x)
        end_y = max(first_y + 1, round((top + height) * y))
        end_x = max(first_x + 1, round((left + width) * x))
        one = one[..., first_y:end_y, first_x:end_x]
        if hard:
            return map_of_places(one, size, self._slots, f"teacher '{self.card.name}'")
        return map_of_probabilities(one, size, self._slots, floor)


class OnnxTeacherSettings(TeacherSettings):
    """An ONNX network of a known or a declared kind."""

    kind: Literal["onnx"] = "onnx"
    path: str
    """The ONNX file."""
    classes: str | list[str]
    """Class names in the order of the network's outputs, or a text file with one a line; N/A where
    an output means nothing."""
    adapter: AnyAdapter
    """What goes in and what comes out."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of the network's input; needed only where the file does not fix them."""
    threads: PositiveInt | None = None
    """Of onnxruntime; None: one for each core that this process may use."""

    def build(self, root: Path, device: str) -> OnnxTeacher | OnnxMapTeacher:
        """Builds the teacher; files are taken relative to `root`.

        Raises:
            InputError: onnxruntime or a file is missing, or the network is not of the adapter's kind.
        """
        try:
            import onnxruntime
        except ImportError:
            raise missing_package("onnxruntime", "onnx", "a teacher of kind 'onnx'") from None
        file = existing(root, self.path, "teacher.path")
        adapter = self.adapter
        maps = isinstance(adapter, MapAdapter)
        slots = class_slots(root, self.classes, adapter.background if maps else (BACKGROUND,))
        session = _session(onnxruntime, file, self.threads or _cores(), device)
        into = network_input(session, self.size, file)
        shapes = {output.name: tuple(output.shape) for output in session.get_outputs()}
        if isinstance(adapter, MapAdapter):
            require_few(slots, "teacher.classes")
            form = adapter.build(shapes, len(slots), bool((slots.classes == REST).any()))
        else:
            form = adapter.build(shapes, into.size, len(slots))
        read = [shapes[name] for name in form.outputs]
        if not form.accepts(*read):
            raise InputError(
                f"{file}: its output has the shape {read}, but the adapter '{adapter.kind}' with "
                f"{len(slots)} classes needs {form.needs}; choose the adapter of this network and give "
                "all its classes"
            )
        prepare = Preparation(into, adapter, adapter.usual)
        card = TeacherCard(
            name=self.named(file.stem),
            weights_sha256=file_sha256(file, *external_files(file)),
            classes=slots.names,
            preprocessing=f"{into.size[0]} x {into.size[1]}, {prepare.values.model_dump()}, "
            f"{adapter.model_dump(mode='json')}, {slots}",
            task="maps" if maps else "boxes",
            versions={"onnxruntime": onnxruntime.__version__},
        )
        network = Network(session, into, prepare, form, f"teacher '{card.name}'")
        if isinstance(form, MapFormat):
            return OnnxMapTeacher(
                network, form, slots.with_rest() if form.adds_rest else slots, card
            )
        assert isinstance(adapter, BoxAdapter)
        return OnnxTeacher(network, form, slots, card, adapter)


def pixels_of(images: Sequence[Tensor]) -> list[np.ndarray]:
    """Returns pictures (3, h, w) as arrays (h, w, 3)."""
    return [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]


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


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
