"""The boxes of one picture, raw, in memory and as a line of a store."""

import json
from dataclasses import dataclass

import numpy as np

from detmtl.silver.record_line import Head, line_of

SCORE_DIGITS = 5
"""Decimals of a score on disk."""


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
    return line_of(
        Head(record.content_hash, record.height, record.width, record.file),
        {
            "boxes": np.round(np.asarray(record.boxes, dtype=np.float64), 2).tolist(),
            "classes": np.asarray(record.classes).tolist(),
            "scores": np.round(np.asarray(record.scores, dtype=np.float64), SCORE_DIGITS).tolist(),
        },
    )


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
