"""A checkpoint to a file that runs without this package.

Letters: B pictures, H and W pixels.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from detmtl.data.fit import fit
from detmtl.inference.detector import pad_images
from detmtl.inference.errors import ExportError
from detmtl.inference.exported import (
    DTYPES,
    ExportDtype,
    Exported,
    RawOutputs,
    exported,
    places_of,
)
from detmtl.inference.formats import FORMATS, SUFFIXES
from detmtl.inference.frozen import in_dtype
from detmtl.inference.graph_files import check_graph, graph_of, unfinished_name, write_graph
from detmtl.inference.parity import (
    BFLOAT16,
    FLOAT32,
    Difference,
    Tolerance,
    boxes_of,
    compare_details,
    compare_detections,
    compare_maps_and_tags,
    compare_outputs,
    keeping_every_score,
    trial_pictures,
)
from detmtl.inference.predictor import (
    LoadedModel,
    Predictor,
    ScriptPredictor,
    load_checkpoint,
)
from detmtl.inference.script_file import Method, write_script
from detmtl.inference.torchvision_file import TorchvisionReport, export_torchvision
from detmtl.structures.errors import InputError
from detmtl.structures.sample import DIVISOR
from detmtl.tasks.detection import DetectionTask
from detmtl.tasks.multitask import MultiTask

METHODS: tuple[Method, ...] = ("traced", "scripted")
"""How a network is captured, in the order in which they are tried."""

ENOUGH = 20
"""Detections from which on those of bfloat16 say something of the file."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how closely it agrees with the model.

    Attributes:
        path: the file.
        dtype: type that the network computes in.
        method: how the network was captured.
        difference: the largest found between the file and the model in float32.
    """

    path: Path
    dtype: ExportDtype
    method: Method | Literal["exported"]
    difference: Difference

    def __str__(self) -> str:
        return f"{self.path}: network {self.method}, {self.dtype}; {self.difference}"


def export(
    checkpoint: str | Path,
    path: str | Path,
    format: str,
    dtype: ExportDtype = "float32",
    pictures: Sequence[Tensor] = (),
    trust: bool = False,
) -> ExportReport | TorchvisionReport:
    """Writes a deployable file of one of `FORMATS`. `trust`: see `load_checkpoint`.

    Raises:
        InputError: the format isn't available or not in this `dtype`, or the checkpoint is wrong.
        ExportError: the file doesn't agree with the model.
    """
    if format not in FORMATS:
        raise InputError(f"format: '{format}' can't be exported; available: {', '.join(FORMATS)}")
    if format == "torchvision":
        if dtype != "float32":
            raise InputError(
                f"dtype: {dtype} is for torchscript and pt2; torchvision's weights are float32"
            )
        return export_torchvision(load_checkpoint(checkpoint, trust), path)
    if format == "torchscript":
        return export_torchscript(checkpoint, path, dtype, pictures, trust)
    return export_graph(load_checkpoint(checkpoint, trust), path, format, dtype, pictures)


def export_graph(
    loaded: LoadedModel,
    path: str | Path,
    format: str,
    dtype: ExportDtype = "float32",
    pictures: Sequence[Tensor] = (),
) -> ExportReport:
    """Writes an ONNX or pt2 file, after checking it; what it takes and gives: see
    `detmtl.inference.graph.GraphModel`.

    Raises:
        InputError: the model's tasks can't be exported so, the name ends in another way than the format
            wants, a package is missing, or bfloat16 is asked of ONNX.
        ExportError: the file doesn't agree with the model; says at which pictures. Or a part cannot be
            captured as a graph.
    """
    path, problems = Path(path), []
    if path.suffix != SUFFIXES[format]:
        problems.append(f"{path}: a file of format {format} has to end in {SUFFIXES[format]}")
    if format == "onnx" and dtype != "float32":
        problems.append(
            f"{path}: ONNX runtimes for CPUs have no convolutions in {dtype}; use --dtype float32, or "
            "--format torchscript or pt2"
        )
    if problems:
        raise InputError(problems)
    tasks = exported(loaded.model, path, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path, format)
    try:
        network = RawOutputs(in_dtype(loaded.model, DTYPES[dtype]), tasks.names)
        graph = graph_of(network, tasks, loaded)
        try:
            write_graph(graph, tasks, loaded, unfinished, format)
        except (InputError, OSError):
            raise
        except Exception as error:  # torch's exporters raise many kinds
            raise ExportError(
                f"{path}: not written, since the network or the decoder of a task cannot be captured as a "
                f"graph: {type(error).__name__}: {_gist(error)}; --format torchscript may hold it"
            ) from error
        difference = check_graph(loaded, tasks, graph, unfinished, format, pictures)
        if difference.problems:
            raise ExportError(
                "\n".join(
                    [f"{path}: not written, since it disagrees with the model"]
                    + [f"exported: {problem}" for problem in difference.problems]
                )
            )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return ExportReport(path, dtype, "exported", difference)


def export_torchscript(
    checkpoint: str | Path,
    path: str | Path,
    dtype: ExportDtype = "float32",
    pictures: Sequence[Tensor] = (),
    trust: bool = False,
) -> ExportReport:
    """Writes a TorchScript file that needs torch and torchvision alone, after checking it.

    The file takes a list of (3, H, W) uint8 RGB pictures of any sizes and returns for each a dict of
    `boxes` (N, 4) xyxy in the picture's pixels, `labels` (N,) int64 and `scores` (N,), best first; a
    semantic map (H, W) uint8 and its confidence (H, W), the probabilities (T,) of tags, a depth (H, W)
    float32 in meters, and what tasks say of each box under the names of their tasks, see
    `Detector.forward`. Its
    method `class_names()` returns the names, `detmtl.json` inside holds them and the settings.

    Args:
        checkpoint: written by training.
        path: of the file to write; it appears only when complete and checked.
        dtype: `bfloat16` computes the network in bfloat16, for CPUs with AMX and for GPUs; scores
            and boxes stay float32.
        pictures: (3, H, W) uint8 each, some that the model was made for, to compare on beside the
            built-in ones.
        trust: see `load_checkpoint`.

    Raises:
        InputError: the checkpoint is wrong, or its tasks can't be exported.
        ExportError: the file doesn't agree with the model; says at which pictures.
    """
    return export_model(load_checkpoint(checkpoint, trust), path, dtype, pictures)


def export_model(
    loaded: LoadedModel,
    path: str | Path,
    dtype: ExportDtype = "float32",
    pictures: Sequence[Tensor] = (),
) -> ExportReport:
    """Does what `export_torchscript` does, for a model that is loaded already."""
    path = Path(path)
    tasks = exported(loaded.model, path)
    found: list[str] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        for method in METHODS:
            try:
                write_script(loaded, tasks, unfinished, method, dtype)
                difference = check_parity(loaded, tasks, unfinished, dtype, pictures)
            except Exception as error:  # compiler and compiled code raise many kinds
                found.append(f"{method}: {type(error).__name__}: {_gist(error)}")
                continue
            if not difference.problems:
                os.replace(unfinished, path)
                return ExportReport(path, dtype, method, difference)
            found += [f"{method}: {problem}" for problem in difference.problems]
    finally:
        unfinished.unlink(missing_ok=True)
    raise ExportError(
        "\n".join([f"{path}: not written, since it disagrees with the model", *found])
    )


def check_parity(
    loaded: LoadedModel,
    tasks: Exported,
    path: Path,
    dtype: ExportDtype = "float32",
    pictures: Sequence[Tensor] = (),
) -> Difference:
    """Compares a file with the model in float32, on pictures of many sizes.

    Raw outputs and detections are compared; in float32 with a score threshold of 0, so that a model
    that finds nothing yet is compared as thoroughly. In bfloat16, scores that are all alike would change
    places at such a threshold. Where the pictures show the model too little, it is compared what model and
    file make of one thing, the file's raw outputs, at a threshold of 0 and as exactly as in float32.

    Args:
        pictures: (3, H, W) uint8 each, for which the model was made; compared beside the built-in ones,
            and alone where detections of bfloat16 are counted: noise has none that are sure.
    """
    model, file = Predictor(loaded), ScriptPredictor(path)
    exact = dtype == "float32"
    tolerance = FLOAT32 if exact else BFLOAT16
    given = [[picture] for picture in pictures]
    batches = trial_pictures(loaded.short, loaded.long) + given
    padded = [
        pad_images([fit(image, loaded.short, loaded.long) for image in images], DIVISOR)[0]
        for images in batches
    ]
    eager = RawOutputs(loaded.model, tasks.names)
    with torch.inference_mode():
        outputs, problems = compare_outputs(eager, file.module.network, padded, tolerance)
    compared = batches if exact else given or batches
    problems += compare_maps_and_tags(model.predict, file.predict, compared, tolerance)
    difference = Difference(sum(map(len, compared)), 0, None, 0.0, 0.0, 1.0, ())
    if tasks.detection is not None:
        difference = _compare_boxes(model, file, tasks.detection, compared, tolerance, exact)
        if not exact and difference.detections < ENOUGH:
            problems += difference.problems
            own = Predictor(replace(loaded, model=_Decoding(loaded.model, tasks, file)))
            difference = _compare_boxes(own, file, tasks.detection, batches, FLOAT32, True)
    return replace(difference, outputs=outputs, problems=(*problems, *difference.problems))


def _compare_boxes(
    model: Predictor,
    file: ScriptPredictor,
    task: DetectionTask,
    batches: Sequence[list[Tensor]],
    tolerance: Tolerance,
    every_score: bool,
) -> Difference:
    """Compares detections and what is said of them; `outputs` of the result is None."""
    decoders = [task.decoder, file.module.decoder]
    with keeping_every_score(decoders) if every_score else nullcontext():
        problems = compare_details(model.predict, file.predict, batches, tolerance)
        difference = compare_detections(
            boxes_of(model.predict, task.name),
            boxes_of(file.predict, task.name),
            batches,
            tolerance,
        )
    if every_score and not difference.detections:
        problems.append(f"{task.name}: nothing was found to compare, at any score")
    return replace(difference, problems=(*problems, *difference.problems))


def _gist(error: Exception) -> str:
    """Returns the line of an error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "TorchScript interpreter" in lines[0]:  # its call stack comes first
        lines.reverse()
    return lines[0] if lines else "no message"


class _Decoding(nn.Module):
    """A model's tasks behind a file's network."""

    def __init__(self, model: MultiTask, tasks: Exported, file: ScriptPredictor):
        super().__init__()
        self.tasks = model.tasks
        self.network = file.module.network
        self.places = places_of(model, tasks)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        outputs = self.network(images)
        return {name: outputs[at : at + count] for name, (at, count) in self.places.items()}
