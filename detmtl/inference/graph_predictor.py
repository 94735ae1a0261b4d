"""ONNX and pt2 files, run on a CPU.

What such a file takes and gives: `detmtl.inference.graph.GraphModel`. Letters: H and W pixels of its canvas.
"""

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401 (registers the operators of pt2 files)
from torch import Tensor

from detmtl.inference.canvas import on_canvas
from detmtl.inference.detector import CONFIDENCE, check_images, in_original
from detmtl.inference.file_tasks import FileTasks
from detmtl.inference.torchscript import EXTRA_FILE
from detmtl.models.decoding import least_logit
from detmtl.structures.errors import InputError, missing_package
from detmtl.structures.labels import Labels

INPUTS = ("image", "size", "threshold")
"""Names of what a graph takes; without detection there is no threshold."""

BOXES = ("boxes", "scores", "labels")
"""Names of what detection gives, first of all."""

Graph = Callable[..., Sequence[Tensor | np.ndarray]]
"""(image, size, threshold) -> what `GraphModel.forward` gives."""


class GraphTest:
    """Settings of `test` as a graph has them; but for the threshold, which it takes, they are part of it.

    Args:
        values: from the file's JSON.
    """

    fixed = ("nms", "detections", "class_agnostic")
    """Those that can be read here, to join the boxes of several views, and not changed."""

    def __init__(self, values: Mapping[str, Any]):
        self.score_threshold: float = values["score_threshold"]
        self.least_logit = least_logit(self.score_threshold)
        """Not used: it belongs to a decoder's threshold wherever that is changed."""
        self.nms: float = values["nms"]
        self.detections: int = values["detections"]
        self.class_agnostic: bool = values["class_agnostic"]


class GraphPredictor(FileTasks):
    """Prediction with a graph of fixed shapes, a picture at a time.

    Args:
        graph, about: from `load_graph`.
    """

    def __init__(self, graph: Graph, about: Mapping[str, Any]):
        super().__init__(about)
        self.graph = graph
        self._short, self._long = about["input"]["short"], about["input"]["long"]
        self._outputs = about.get("outputs", BOXES)  # not in files of earlier versions
        self._tests: dict[str, GraphTest] = {}
        if self.task is not None:
            self._tests[self.task] = GraphTest(about["test"])

    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Labels]]:
        """Returns per picture (3, H, W) uint8 RGB the file's tasks -> labels in its own pixels."""
        check_images(list(images))
        results = []
        for image in images:
            canvas, size = on_canvas(image.cpu(), self._short, self._long)
            height, width = size.tolist()
            after = (image.shape[1], image.shape[2])
            found = self.on_canvas(canvas, size)
            results.append({n: in_original(x, (height, width), after) for n, x in found.items()})
        return results

    @torch.no_grad()
    def on_canvas(self, canvas: Tensor, size: Tensor) -> dict[str, Labels]:
        """Returns task -> labels of a picture, in pixels of the canvas (1, 3, H, W) on which it has the
        size (2,)."""
        thresholds = [torch.tensor([x.score_threshold]) for x in self._tests.values()]
        outputs = [torch.as_tensor(x) for x in self.graph(canvas, size, *thresholds)]
        found = dict(zip(self._outputs, outputs, strict=True))
        if self.task is not None:
            there = found["labels"] >= 0
            for name in (*BOXES, *self.describing):
                found[name] = found[name][there]
        height, width = size.tolist()
        whole = [name for name, kind in self.kinds.items() if kind in ("maps", "depth")]
        for name in {*whole, *(name + CONFIDENCE for name in whole)} & {*found}:
            found[name] = found[name][:height, :width]
        return self.labels(found)

    def decoders(self) -> dict[str, Any]:
        """Returns the settings by the name of the detection task, if there is one."""
        return dict(self._tests)


def load_graph(path: Path, format: str) -> tuple[Graph, dict[str, Any]]:
    """Returns what a file computes, on the CPU, and what was written beside it.

    Raises:
        InputError: ONNX files need a package that is not installed, or the file is unreadable or not one of
            ours.
    """
    if format == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise missing_package("onnxruntime", "onnx", "running ONNX files")
    try:
        return _loaded_onnx(path) if format == "onnx" else _loaded_pt2(path)
    except InputError:
        raise
    except Exception as error:  # both libraries have many kinds
        gist = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise InputError(f"{path}: this is no readable {format} file ({gist})") from error


def _loaded_pt2(path: Path) -> tuple[Graph, dict[str, Any]]:
    extra = {EXTRA_FILE: ""}
    with warnings.catch_warnings():  # torch 2.11 warns of its own buffers
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        with path.open("rb") as file:  # of a path torch wants that it ends in .pt2
            module = torch.export.load(file, extra_files=extra).module()
    return module, _about(extra[EXTRA_FILE], path)


def _loaded_onnx(path: Path) -> tuple[Graph, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map.get(EXTRA_FILE, "")

    def run(*given: Tensor) -> Sequence[Any]:
        feed = {name: x.numpy() for name, x in zip(INPUTS, given, strict=False)}
        return session.run(None, feed)

    return run, _about(about, path)


def _about(text: str, path: Path) -> dict[str, Any]:
    if not text:
        raise InputError(
            f"{path}: holds no {EXTRA_FILE}; give a file written by `detmtl export`, or use another's as a "
            "teacher of the kind onnx"
        )
    about = json.loads(text)
    if missing := {"classes", "task", "input", "settings"} - {*about}:
        raise InputError(
            f"{path}: its {EXTRA_FILE} has no {', '.join(sorted(missing))}; export it anew"
        )
    return about
