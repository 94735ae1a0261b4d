"""The tags of one picture, raw, in memory and as a line of a store.

Letters: T tags.
"""

import json
from dataclasses import dataclass

import numpy as np

from detmtl.silver.record_line import Head, line_of


@dataclass(frozen=True, eq=False)
class TagRecord:
    """What a teacher says that one picture shows.

    Attributes:
        content_hash: sha256 of the picture's file, 64 hex digits: the key.
        height, width: pixels of the picture as a person sees it.
        scores: (T,) float32 in [0, 1], of each of the teacher's classes; NaN where it does not say;
            on disk rounded to 1e-5.
        file: a name for people; no part of the record's identity.
    """

    content_hash: str
    height: int
    width: int
    scores: np.ndarray
    file: str = ""


def encode(record: TagRecord) -> bytes:
    """Returns the record as a line, newline included; equal records give equal bytes."""
    scores = np.round(np.asarray(record.scores, dtype=np.float64), 5)
    return line_of(
        Head(record.content_hash, record.height, record.width, record.file),
        # NaN, the only number that differs from itself, is no JSON.
        {"scores": [s if s == s else None for s in scores.tolist()]},
    )


def decode(line: bytes) -> TagRecord:
    """Returns the record of a line."""
    fields = json.loads(line)
    return TagRecord(
        content_hash=fields["hash"],
        height=fields["size"][0],
        width=fields["size"][1],
        scores=np.asarray(fields["scores"], dtype=np.float32),  # null becomes NaN
        file=fields["file"],
    )
