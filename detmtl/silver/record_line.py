"""A record as a line of JSON: what the lines of all tasks have in common.

    {"hash":"<64 hex digits>","size":[height,width], ... the task's own ... ,"file":"<name>"}

The order of the fields is part of the format: key, head and labels are cut out without parsing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

_HASH_AT = slice(len('{"hash":"'), len('{"hash":"') + 64)
_SIZE_AT = _HASH_AT.stop + len('","size":')
_FILE = b',"file":'


class Head(NamedTuple):
    """What a line says of the picture.

    Attributes:
        content_hash: sha256 of the picture's file, 64 hex digits: the key.
        height, width: pixels of the picture as a person sees it.
        file: a name for people; no part of the record's identity.
    """

    content_hash: str
    height: int
    width: int
    file: str


def line_of(head: Head, labels: Mapping[str, Any]) -> bytes:
    """Returns a line, newline included; equal heads and labels give equal bytes."""
    assert len(head.content_hash) == 64, "a content hash has 64 hex digits"
    fields = {
        "hash": head.content_hash,
        "size": [int(head.height), int(head.width)],
        **labels,
        "file": head.file,
    }
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def content_hash_of(line: bytes) -> str:
    """Returns a line's key without parsing the rest."""
    return line[_HASH_AT].decode()


def head_of(line: bytes) -> Head:
    """Returns what a line says of the picture, without parsing the labels."""
    height, width = json.loads(line[_SIZE_AT : line.index(b"]", _SIZE_AT) + 1])
    # Quotes inside of a name are escaped, so that the last match is the field.
    file = json.loads(line[line.rindex(_FILE) + len(_FILE) : -len(b"}\n")])
    return Head(content_hash_of(line), height, width, file)


def line_sum(line: bytes) -> int:
    """Returns a 256-bit number of a line's labels; numbers of many lines are added up.

    A sum does not depend on the order, nor on how lines are cut into parts.
    """
    labels, _, _ = line.rpartition(_FILE)
    return int.from_bytes(hashlib.sha256(labels).digest())
