"""How a model's network and tasks are written as one TorchScript file, unchecked."""

import io
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from detmtl.inference.detector import Detector, TaskDecoder
from detmtl.inference.exported import DTYPES, ExportDtype, Exported, RawOutputs, places_of
from detmtl.inference.frozen import in_dtype
from detmtl.inference.predictor import LoadedModel
from detmtl.inference.torchscript import deprecation_expected, save_torchscript
from detmtl.structures.sample import DIVISOR

Method = Literal["traced", "scripted"]
"""How a network is captured."""


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
    network = _captured(
        RawOutputs(in_dtype(loaded.model, DTYPES[dtype]), tasks.names), method, loaded.short
    )
    places = places_of(loaded.model, tasks)
    boxes = 0 if tasks.detection is None else places[tasks.detection.name][1]
    others = [
        TaskDecoder(task.name, *places[task.name], exporter.decoder)
        for task, exporter in tasks.others
    ]
    detector = Detector(
        network,
        None if tasks.detection is None else tasks.detection.decoder,
        list(loaded.class_names),
        loaded.short,
        loaded.long,
        DIVISOR,
        boxes,
        others,
        tasks.of_boxes(places),
    ).eval()
    about = tasks.about(loaded) | {
        "dtype": dtype,
        "input": {"short": loaded.short, "long": loaded.long},
    }
    with deprecation_expected():
        scripted = torch.jit.script(detector)
    save_torchscript(scripted, path, about)


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
