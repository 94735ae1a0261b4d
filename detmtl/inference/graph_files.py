"""ONNX and pt2 files of a checkpoint, written only if they find what the model finds.

What a file takes and gives: `detmtl.inference.graph.GraphModel`. Class names and settings travel inside under
the key of `EXTRA_FILE`.
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

from detmtl.inference.canvas import canvas_size, on_canvas
from detmtl.inference.exported import Exported, RawOutputs, places_of
from detmtl.inference.formats import SUFFIXES
from detmtl.inference.graph import GraphModel, with_area
from detmtl.inference.graph_predictor import INPUTS, GraphPredictor, load_graph
from detmtl.inference.parity import (
    BFLOAT16,
    FLOAT32,
    Difference,
    Predict,
    boxes_of,
    compare_details,
    compare_detections,
    compare_maps_and_tags,
    compare_outputs,
    keeping_every_score,
    trial_pictures,
)
from detmtl.inference.predictor import LoadedModel
from detmtl.inference.torchscript import EXTRA_FILE
from detmtl.structures.errors import missing_package
from detmtl.structures.labels import BoxLabels, Grade, Labels
from detmtl.tasks.detection import DetectionTask

SHOWN = ("score_threshold", "candidates", "nms", "detections", "class_agnostic", "quality_power")
"""Settings of `test` that are written beside the graph."""


def graph_of(network: nn.Module, tasks: Exported, loaded: LoadedModel) -> GraphModel:
    """Returns the graph of a network, which has the model's weights in any dtype; see `GraphModel`."""
    sides = canvas_size(loaded.short, loaded.long)
    return GraphModel(network, tasks, places_of(loaded.model, tasks), *sides).eval()


def write_graph(
    graph: GraphModel, tasks: Exported, loaded: LoadedModel, path: Path, format: str
) -> None:
    """Writes a graph, unchecked.

    Args:
        graph: see `graph_of`.
        tasks: the model's.
        loaded: class names, sizes and settings.
        path: of the file.
        format: "onnx" or "pt2".

    Raises:
        InputError: ONNX is asked for and its packages are not installed.
    """
    height, width = canvas_size(loaded.short, loaded.long)
    example: tuple[Tensor, ...] = on_canvas(
        torch.zeros(3, height, width, dtype=torch.uint8), loaded.short, loaded.long
    )
    about = tasks.about(loaded) | {
        "input": {"short": loaded.short, "long": loaded.long, "height": height, "width": width},
        "outputs": graph.names,
    }
    if tasks.detection is not None:
        decoder = tasks.detection.decoder
        example = (*example, torch.tensor([decoder.score_threshold]))
        about["test"] = {name: getattr(decoder, name) for name in SHOWN}
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
        input_names=list(INPUTS[: 3 if about["task"] is not None else 2]),
        output_names=about["outputs"],
        opset_version=18,
        verbose=False,
    )
    assert written is not None
    model = written.model_proto
    onnx.helper.set_model_props(model, {EXTRA_FILE: json.dumps(about)})
    onnx.save(model, str(path))


def check_graph(
    loaded: LoadedModel,
    tasks: Exported,
    graph: GraphModel,
    path: Path,
    format: str,
    pictures: Sequence[Tensor] = (),
) -> Difference:
    """Compares a file with the model in float32: at the file's usual threshold, and at 0.

    In bfloat16 scores have so few values that many are equal, and which of these comes first is nobody's to
    say. There the network's raw outputs are compared with the model's, the file with the graph that it was
    written from, and what this graph makes of a network in float32 with the model.

    Args:
        loaded: the model.
        tasks: the model's.
        graph: that was written.
        path: of the file.
        format: of the file.
        pictures: (3, H, W) uint8 each, for which the model was made; compared beside the built-in ones.
    """
    batches = [
        [image]
        for images in (*trial_pictures(loaded.short, loaded.long), pictures)
        for image in images
    ]
    computes, about = load_graph(path, format)
    file, problems, outputs = GraphPredictor(computes, about), [], None
    predictors = [file]
    model = _model_on_canvas(loaded, tasks)
    pairs = [(model, _on_canvas(file, loaded))]
    if graph.network.model is not loaded.model:
        plain = RawOutputs(loaded.model, tasks.names)
        canvases = [on_canvas(images[0], loaded.short, loaded.long)[0] for images in batches]
        with torch.inference_mode():
            outputs, problems = compare_outputs(plain, graph.network, canvases, BFLOAT16)
        predictors += [GraphPredictor(x, about) for x in (graph, graph_of(plain, tasks, loaded))]
        written, in_float32 = (_on_canvas(x, loaded) for x in predictors[1:])
        pairs = [(written, _on_canvas(file, loaded)), (model, in_float32)]
    found = [_difference(*pair, tasks, batches) for pair in pairs]
    if tasks.detection is not None:
        decoders = [d for x in predictors for d in x.decoders().values()]
        with keeping_every_score([tasks.detection.decoder, *decoders]):
            at_zero = [_difference(*pair, tasks, batches) for pair in pairs]
        found = at_zero + found
        if not at_zero[0].detections:
            problems.append(f"{tasks.detection.name}: nothing was found to compare, at any score")
    for difference in found:
        problems += difference.problems
    return replace(found[0], outputs=outputs, problems=tuple(problems))


def _difference(
    expected: Predict, found: Predict, tasks: Exported, batches: Sequence[list[Tensor]]
) -> Difference:
    problems = compare_maps_and_tags(expected, found, batches, FLOAT32)
    if tasks.detection is None:
        return Difference(len(batches), 0, None, 0.0, 0.0, 1.0, tuple(problems))
    name = tasks.detection.name
    problems += compare_details(expected, found, batches, FLOAT32)
    boxes = compare_detections(boxes_of(expected, name), boxes_of(found, name), batches, FLOAT32)
    return replace(boxes, problems=(*problems, *boxes.problems))


def _on_canvas(predictor: GraphPredictor, loaded: LoadedModel) -> Predict:
    """Returns what predicts one picture in pixels of its canvas, with a file or the like."""
    return lambda images: [predictor.on_canvas(*on_canvas(images[0], loaded.short, loaded.long))]


def _model_on_canvas(loaded: LoadedModel, tasks: Exported) -> Predict:
    """Returns what predicts one picture in pixels of its canvas, with the model's own decoders."""

    def predict(images: list[Tensor]) -> list[dict[str, Labels]]:
        canvas, size = on_canvas(images[0], loaded.short, loaded.long)
        with torch.inference_mode():
            outputs = loaded.model(canvas)
            found: dict[str, Labels] = {
                task.name: task.decode(outputs[task.name], size[None])[0]
                for task, _ in tasks.others
            }
            if tasks.detection is not None:
                boxes = _with_area(tasks.detection, outputs[tasks.detection.name], size)
                found[tasks.detection.name] = boxes
                for task in tasks.boxed:
                    found[task.name] = task.decode(outputs[task.name], size[None], [boxes])[0]
        return [found]

    return predict


def _with_area(task: DetectionTask, outputs: list[Tensor], size: Tensor) -> BoxLabels:
    """Returns what the model's decoder finds, without the boxes that a graph leaves out, see
    `detmtl.inference.graph.GraphBoxes`."""
    every = copy.copy(task.decoder)
    every.detections = sys.maxsize
    boxes, scores, classes = every(outputs, size[None])[0]
    kept = torch.nonzero(with_area(boxes)).squeeze(1)[: task.decoder.detections]
    grade, num_classes = Grade.SILVER, len(task.class_names)
    return BoxLabels.of(boxes[kept], classes[kept], num_classes, scores=scores[kept], grade=grade)


def unfinished_name(path: Path, format: str) -> Path:
    """Returns where a file lies till it is complete and checked."""
    return path.with_name(f".{path.stem}.{os.getpid()}{SUFFIXES[format]}")
