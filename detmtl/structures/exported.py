"""Which files are exported models: they run, but nothing can be trained from them."""

import zipfile
from pathlib import Path

from detmtl.structures.errors import InputError

NAMES = {"onnx": "ONNX", "pt2": "pt2", "torchscript": "TorchScript"}
"""Format -> what it is called."""


def exported_format(path: Path) -> str | None:
    """Returns the format of a file that `detmtl export` may have written; None: it is no such file."""
    if path.is_file() and path.suffix.lower() == ".onnx":
        return "onnx"
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/models/model.json") for name in names):
        return "pt2"
    return "torchscript" if any("/code/" in name for name in names) else None


def refuse_exported(path: Path, what: str) -> None:
    """Does nothing unless the file is an exported one.

    Args:
        path: the file. what: is wanted of it, and what to do.

    Raises:
        InputError: it is one, of any format.
    """
    if (format := exported_format(path)) is not None:
        raise InputError(f"{path}: an exported file ({NAMES[format]}), {what}")
