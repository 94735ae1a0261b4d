"""A checkpoint to a file that runs without this package.

Letters: B pictures, H and W pixels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import detmtl
from detmtl.inference.detector import Detector
from detmtl.inference.parity import Difference, Tolerance, compare_detectors, compare_networks
from detmtl.inference.predictor import DIVISOR, LoadedModel, load_checkpoint
from detmtl.inference.torchscript import deprecation_expected, load_torchscript, save_torchscript
from detmtl.structures.errors import InputError

ExportDtype = Literal["float32", "bfloat16"]

FORMATS = ("torchscript",)
"""What `export` can write."""


class ExportError(RuntimeError):
    """The exported file doesn't do what the model does; nothing was written."""


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
    method: Literal["traced", "scripted"]
    difference: Difference

    def __str__(self) -> str:
        return f"{self.path}: network {self.method}, {self.dtype}; {self.difference}"


def export(
    checkpoint: str | Path, path: str | Path, format: str, dtype: ExportDtype = "float32"
) -> ExportReport:
    """Writes a deployable file of one of `FORMATS`.

    Raises:
        InputError: the format isn't available, or the checkpoint is wrong.
        ExportError: the file doesn't agree with the model.
    """
    if format not in FORMATS:
        raise InputError(f"format: '{format}' can't be exported; available: {', '.join(FORMATS)}")
    return export_torchscript(checkpoint, path, dtype)


def export_torchscript(
    checkpoint: str | Path, path: str | Path, dtype: ExportDtype = "float32"
) -> ExportReport:
    """Writes a TorchScript file that needs torch and torchvision alone, after checking it.

    The file takes a list of (3, H, W) uint8 RGB pictures of any sizes and returns for each a dict of
    `boxes` (N, 4) xyxy in the picture's pixels, `labels` (N,) int64 and `scores` (N,), best first. Its
    method `class_names()` returns the names, `detmtl.json` inside holds them and the settings.

    Args:
        checkpoint: written by training.
        path: of the file to write; it appears only when complete and checked.
        dtype: `bfloat16` computes the network in bfloat16, for CPUs with AMX and for GPUs; scores
            and boxes stay float32.

    Raises:
        InputError: the checkpoint is wrong, or its tasks can't be exported.
        ExportError: the file doesn't agree with the model; says at which pictures.
    """
    return export_model(load_checkpoint(checkpoint), path, dtype)


def export_model(
    loaded: LoadedModel, path: str | Path, dtype: ExportDtype = "float32"
) -> ExportReport:
    """Does what `export_torchscript` does, for a model that is loaded already."""
    path = Path(path)
    task = _detection_task(loaded)
    eager = _detector(_Network(loaded.model, task), loaded, task)
    about = _about(loaded, task, dtype)
    found: list[str] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        for method in ("traced", "scripted"):
            try:
                network = _capture(eager.network, method, dtype)
            except (RuntimeError, torch.jit.Error) as error:
                found.append(f"{method}: {_last_line(error)}")
                continue
            save_torchscript(_scripted(_detector(network, loaded, task)), unfinished, about)
            module, _ = load_torchscript(unfinished)
            difference = _compare(eager, module, loaded, dtype)
            if not difference.problems:
                os.replace(unfinished, path)
                return ExportReport(path, dtype, method, difference)
            found += [f"{method}: {problem}" for problem in difference.problems]
    finally:
        unfinished.unlink(missing_ok=True)
    raise ExportError("\n".join([f"{path}: not written, it disagrees with the model", *found]))
