"""Reading and writing TorchScript files, with what belongs to the model inside."""

import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detmtl.structures.errors import InputError

EXTRA_FILE = "detmtl.json"
"""Name, inside the file, of the JSON object with class names and settings."""


@contextmanager
def deprecation_expected() -> Iterator[None]:
    """Silences torch's advice to leave TorchScript: the file format is what is wanted here."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", category)
        yield


def is_torchscript(path: Path) -> bool:
    """Tells a TorchScript file from a checkpoint; both are zip archives."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def refuse_exported(path: Path) -> None:
    """Does nothing unless the file is one that `detmtl export` wrote, which is no checkpoint.

    Raises:
        InputError: it is one, of any format.
    """
    kind = "ONNX" if path.is_file() and path.suffix.lower() == ".onnx" else None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/models/model.json") for name in archive.namelist()):
                kind = "pt2"
    instead = "the verb predict takes TorchScript files as well"
    if is_torchscript(path):
        kind = "TorchScript"
        instead = "what it finds predict writes, and evaluate --detections scores"
    if kind is not None:
        raise InputError(
            f"{path}: an exported file ({kind}), no checkpoint; give best.pt of its run; {instead}"
        )


def save_torchscript(module: torch.jit.ScriptModule, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a module with a JSON object beside it in the same file.

    Raises:
        OSError: it cannot be written.
    """
    content = io.BytesIO()  # torch ends the process where it writes to a full disk itself
    with deprecation_expected():
        torch.jit.save(module, content, _extra_files={EXTRA_FILE: json.dumps(about)})
    path.write_bytes(content.getbuffer())


def load_torchscript(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Returns the module on `device`, and what was written beside it.

    Raises:
        InputError: the file is missing, unreadable, or was not exported by this package.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    extra = {EXTRA_FILE: ""}
    try:
        with deprecation_expected():
            module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: this is no readable TorchScript file ({first})") from error
    if not extra[EXTRA_FILE]:
        raise InputError(
            f"{path}: holds no {EXTRA_FILE}; give a file written by `detmtl export`, "
            "or use it as a teacher of the kind torchscript"
        )
    return module, json.loads(extra[EXTRA_FILE])
