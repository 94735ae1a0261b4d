"""The map of one picture, raw, in memory and as a line of a store.

Letters: H and W pixels of the picture.
"""

import base64
import json
import zlib
from dataclasses import dataclass

import numpy as np

from detmtl.silver.record_line import Head, line_of


@dataclass(frozen=True, eq=False)
class MapRecord:
    """Which class a teacher saw in each pixel of one picture.

    Attributes:
        content_hash: sha256 of the picture's file, 64 hex digits: the key.
        height, width: pixels of the picture as a person sees it, H and W.
        classes: (H, W) uint8, the teacher's; 254 none of them, 255 unknown.
        confidence: (H, W) uint8, 255 for certainty; None where the teacher has none.
        file: a name for people; no part of the record's identity.
    """

    content_hash: str
    height: int
    width: int
    classes: np.ndarray
    confidence: np.ndarray | None = None
    file: str = ""


def encode(record: MapRecord) -> bytes:
    """Returns the record as a line, newline included; nothing is lost."""
    size = (record.height, record.width)
    maps = {"classes": record.classes, "confidence": record.confidence}
    for name, pixels in maps.items():
        assert pixels is None or (pixels.shape == size and pixels.dtype == np.uint8), name
    return line_of(
        Head(record.content_hash, record.height, record.width, record.file),
        {name: None if pixels is None else _pack(pixels) for name, pixels in maps.items()},
    )


def decode(line: bytes) -> MapRecord:
    """Returns the record of a line."""
    fields = json.loads(line)
    height, width = fields["size"]
    confidence = fields["confidence"]
    return MapRecord(
        content_hash=fields["hash"],
        height=height,
        width=width,
        classes=_unpack(fields["classes"], height, width),
        confidence=None if confidence is None else _unpack(confidence, height, width),
        file=fields["file"],
    )


def _pack(pixels: np.ndarray) -> str:
    # The difference to the row above, modulo 256: zeros wherever a region goes on.
    rises = np.diff(pixels, axis=0, prepend=np.zeros((1, pixels.shape[1]), dtype=np.uint8))
    return base64.b64encode(zlib.compress(rises.tobytes(), 6)).decode()


def _unpack(text: str, height: int, width: int) -> np.ndarray:
    rises = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.cumsum(rises.reshape(height, width), axis=0, dtype=np.uint8)
