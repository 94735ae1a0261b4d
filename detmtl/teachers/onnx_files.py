"""Which files an ONNX network is made of: large weights lie in files beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detmtl.structures.errors import InputError, missing_package


def external_files(file: Path) -> list[Path]:
    """Returns the files, beside an ONNX file, that hold weights of its network, sorted.

    Raises:
        InputError: the package onnx is missing, the file is not ONNX, or a file of weights is missing.
    """
    if file.suffix == ".ort":  # onnxruntime's own format, which has all in one file
        return []
    try:
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    except ImportError:
        raise missing_package("onnx", "onnx", f"the network {file}") from None
    try:
        model = onnx.load(str(file), format="protobuf", load_external_data=False)
    except Exception as problem:  # protobuf's own, which is no dependency of ours
        raise InputError(f"{file}: is no readable ONNX file ({problem})") from None
    tensors = filter(uses_external_data, _tensors(model, onnx.TensorProto))
    found = sorted({file.parent / ExternalDataInfo(tensor).location for tensor in tensors})
    if missing := [path for path in found if not path.is_file()]:
        raise InputError(
            f"{file}: its weights are in {path}, which is not there; keep both where the exporter "
            "wrote them"
            for path in missing
        )
    return found


def _tensors(message: Any, wanted: type) -> Iterator[Any]:
    """Yields the tensors of a network: weights and constants, those of its subgraphs and functions too."""
    if isinstance(message, wanted):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(one, wanted)
