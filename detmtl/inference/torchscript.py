"""Reading and writing TorchScript files, with what belongs to the model inside."""

import io
import json
import warnings
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
