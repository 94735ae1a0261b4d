"""One picture's raw labels, in memory and as a line of JSON."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

_HASH_AT = slice(len('{"hash":"'), len('{"hash":"') + 64)


@dataclass(frozen=True, eq=False)
class Record:
    """What a teacher saw in one picture; no boxes means that it looked and saw nothing.

    Attributes:
        content_hash: sha256 of the picture's file, 64 hex digits: the key.
        height, width: pixels of the picture as a person sees it.
        boxes: (N, 4) float32 xyxy, pixels; on disk rounded to 1/100.
        classes: (N,) int32, the teacher's.
        scores: (N,) float32 in [0, 1], falling; on disk rounded to 1e-5.
        file: a name for people; no part of the record's identity.
    """

    content_hash: str
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    file: str = ""


def encode(record: Record) -> bytes:
    """Returns the record as a line, newline included; equal records give equal bytes."""
    assert len(record.content_hash) == 64, "a content hash has 64 hex digits"
    fields = {
        "hash": record.content_hash,
        "size": [int(record.height), int(record.width)],
        "boxes": np.round(np.asarray(record.boxes, dtype=np.float64), 2).tolist(),
        "classes": np.asarray(record.classes).tolist(),
        "scores": np.round(np.asarray(record.scores, dtype=np.float64), 5).tolist(),
        "file": record.file,
    }
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Record:
    """Returns the record of a line."""
    fields = json.loads(line)
    return Record(
        content_hash=fields["hash"],
        height=fields["size"][0],
        width=fields["size"][1],
        boxes=np.asarray(fields["boxes"], dtype=np.float32).reshape(-1, 4),
        classes=np.asarray(fields["classes"], dtype=np.int32),
        scores=np.asarray(fields["scores"], dtype=np.float32),
        file=fields["file"],
    )


def content_hash_of(line: bytes) -> str:
    """Returns a line's key without parsing the rest."""
    return line[_HASH_AT].decode()


def line_sum(line: bytes) -> int:
    """Returns a 256-bit number of a line's labels; numbers of many lines are added up.

    A sum does not depend on the order, nor on how lines are cut into parts.
    """
    labels, _, _ = line.rpartition(b',"file":')
    return int.from_bytes(hashlib.sha256(labels).digest())
