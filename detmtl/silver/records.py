"""The records of all tasks: a task is a file of its own and an entry here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detmtl.silver import map_record, record, tag_record
from detmtl.silver.map_record import MapRecord
from detmtl.silver.record import Record
from detmtl.silver.tag_record import TagRecord

AnyRecord = Record | MapRecord | TagRecord


@dataclass(frozen=True)
class Format:
    """How a task's records are written.

    Attributes:
        type: of the records.
        encode: from a record to its line.
        decode: from a line to its record.
    """

    type: type[AnyRecord]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], AnyRecord]


FORMATS: Mapping[str, Format] = {
    "boxes": Format(Record, record.encode, record.decode),
    "maps": Format(MapRecord, map_record.encode, map_record.decode),
    "tags": Format(TagRecord, tag_record.encode, tag_record.decode),
}
"""By the `task` of a teacher's card."""
