"""ONNX and pt2 files of a checkpoint, written only if they find what the model finds.

What a file takes and gives: `detmtl.inference.graph.GraphDetector`. Class names and settings travel
inside under the key of `EXTRA_FILE`.
"""

import copy
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import detmtl
from detmtl.inference.graph import (
    INPUTS,
    OUTPUTS,
    Graph,
    GraphDetector,
    canvas_size,
    detections_of,
    on_canvas,
    with_area,
)
from detmtl.inference.parity import (
    BFLOAT16,
    FLOAT32,
    Detect,
    Difference,
    compare_detections,
    compare_outputs,
    keeping_every_score,
    trial_pictures,
)
from detmtl.inference.predictor import LoadedModel
from detmtl.inference.script_file import RawOutputs
from detmtl.inference.torchscript import EXTRA_FILE
from detmtl.structures.errors import InputError, missing_package
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.tasks.detection import DetectionTask

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
"""Format -> the end that torch wants of the file's name."""

SHOWN = ("score_threshold", "candidates", "nms", "detections", "class_agnostic", "quality_power")
"""Settings of `test` that are written beside the graph."""


def write_graph(
    network: nn.Module, task: DetectionTask, loaded: LoadedModel, path: Path, format: str
) -> None:
    """Writes the graph of a network, unchecked.

    Args:
        network: (1, 3, H, W) uint8 -> raw outputs of the detection task, of any dtype.
        task: the detection task.
        loaded: class names, sizes and settings.
        path: of the file.
        format: "onnx" or "pt2".

    Raises:
        InputError: ONNX is asked for and its packages are not installed.
    """
    height, width = canvas_size(loaded.short, loaded.long)
    graph = GraphDetector(network, task.decoder, height, width).eval()
    image, size = on_canvas(
        torch.zeros(3, height, width, dtype=torch.uint8), loaded.short, loaded.long
    )
    example = (image, size, torch.tensor([task.decoder.score_threshold]))
    about = {
        "format": 1,
        "detmtl": detmtl.__version__,
        "task": task.name,
        "classes": list(loaded.class_names),
        "input": {"short": loaded.short, "long": loaded.long, "height": height, "width": width},
        "test": {name: getattr(task.decoder, name) for name in SHOWN},
        "settings": dict(loaded.settings),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about their own future
        program = torch.export.export(graph, example, strict=False)
        if format == "pt2":
            torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(about)})
        else:
            _write_onnx(program, path, about)


def _write_onnx(program: Any, path: Path, about: Mapping[str, Any]) -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "onnx", "writing ONNX files")
    import onnx

    written = torch.onnx.export(
        program,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        opset_version=18,
        verbose=False,
    )
    assert written is not None
    model = written.model_proto
    onnx.helper.set_model_props(model, {EXTRA_FILE: json.dumps(about)})
    onnx.save(model, str(path))


def load_graph(path: Path, format: str) -> tuple[Graph, dict[str, Any]]:
    """Returns what a file computes, on the CPU, and what was written beside it.

    Raises:
        InputError: ONNX files need a package that is not installed, or the file is not one of ours.
    """
    if format == "pt2":
        extra = {EXTRA_FILE: ""}
        with warnings.catch_warnings():  # torch 2.11 warns of its own buffers
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            module = torch.export.load(path, extra_files=extra).module()
        return module, _about(extra[EXTRA_FILE], path)
    if importlib.util.find_spec("onnxruntime") is None:
        raise missing_package("onnxruntime", "onnx", "running ONNX files")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map.get(EXTRA_FILE, "")

    def run(*given: Tensor) -> Sequence[Any]:
        feed = {name: x.numpy() for name, x in zip(INPUTS, given, strict=True)}
        return session.run(list(OUTPUTS), feed)

    return run, _about(about, path)


def _about(text: str, path: Path) -> dict[str, Any]:
    if not text:
        raise InputError(f"{path}: holds no {EXTRA_FILE}; give a file written by `detmtl export`")
    return json.loads(text)


def check_graph(
    loaded: LoadedModel,
    task: DetectionTask,
    network: RawOutputs,
    path: Path,
    format: str,
    pictures: Sequence[Tensor] = (),
) -> Difference:
    """Compares a file with the model in float32: at the file's usual threshold, and at 0.

    In bfloat16 scores have so few values that many are equal, and which of these comes first is nobody's to
    say. There the network's raw outputs are compared with the model's, the file with the graph that it was
    written from, and this graph's decoding, of a network in float32, with the model's.

    Args:
        network: which the file holds, of the detection task alone; the model's own, or in bfloat16.
        pictures: (3, H, W) uint8 each, for which the model was made; compared beside the built-in ones.
    """
    decoder, num_classes = task.decoder, len(task.class_names)
    batches = [
        [image]
        for images in (*trial_pictures(loaded.short, loaded.long), pictures)
        for image in images
    ]

    def of(graph: Graph) -> Detect:
        def detect(images: list[Tensor]) -> list[BoxLabels]:
            canvas, size = on_canvas(images[0], loaded.short, loaded.long)
            with torch.no_grad():
                outputs = graph(canvas, size, torch.tensor([decoder.score_threshold]))
            return [detections_of(outputs, num_classes)]

        return detect

    model = _model_on_canvas(loaded, task)
    file, problems, outputs = of(load_graph(path, format)[0]), [], None
    pairs = [(model, file)]
    if network.model is not loaded.model:
        plain = RawOutputs(loaded.model, network.tasks)
        sides = canvas_size(loaded.short, loaded.long)
        graphs = [of(GraphDetector(x, decoder, *sides).eval()) for x in (network, plain)]
        pairs = [(graphs[0], file), (model, graphs[1])]
        canvases = [on_canvas(images[0], loaded.short, loaded.long)[0] for images in batches]
        with torch.inference_mode():
            outputs, problems = compare_outputs(plain, network, canvases, BFLOAT16)
    differences = [compare_detections(a, b, batches, FLOAT32) for a, b in pairs]
    with keeping_every_score([decoder]):
        at_zero = [compare_detections(a, b, batches, FLOAT32) for a, b in pairs]
    for difference in (*differences, *at_zero):
        problems += difference.problems
    if not at_zero[0].detections:
        problems.append(f"{task.name}: nothing was found to compare, at any score")
    return replace(at_zero[0], outputs=outputs, problems=tuple(problems))


def _model_on_canvas(loaded: LoadedModel, task: DetectionTask) -> Detect:
    """Returns what finds in one picture on its canvas what the model's decoder finds, without the boxes that
    a graph leaves out, see `GraphDetector`."""
    decoder = task.decoder

    def detect(images: list[Tensor]) -> list[BoxLabels]:
        canvas, size = on_canvas(images[0], loaded.short, loaded.long)
        every = copy.copy(decoder)
        every.detections = sys.maxsize
        with torch.inference_mode():
            boxes, scores, classes = every(loaded.model(canvas)[task.name], size[None])[0]
        kept = torch.nonzero(with_area(boxes)).squeeze(1)[: decoder.detections]
        grade, num_classes = Grade.SILVER, len(task.class_names)
        return [
            BoxLabels.of(boxes[kept], classes[kept], num_classes, scores=scores[kept], grade=grade)
        ]

    return detect


def unfinished_name(path: Path, format: str) -> Path:
    """Returns where a file lies till it is complete and checked."""
    return path.with_name(f".{path.stem}.{os.getpid()}{SUFFIXES[format]}")
