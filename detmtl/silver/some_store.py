"""What audits and selections of maps and tags need of a store: one teacher's labels, or those of several
read as one.
"""

import tempfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from detmtl.silver.card import TeacherCard
from detmtl.silver.record_line import content_hash_of
from detmtl.silver.records import FORMATS
from detmtl.silver.store import Store


class SomeStore(Protocol):
    """Labels by picture, and who wrote them."""

    @property
    def path(self) -> Path:
        """Where audits and selections are kept."""
        ...

    @property
    def card(self) -> TeacherCard:
        """The teacher's, or one for all together."""
        ...

    def digest(self) -> str:
        """Returns a hash of the labels."""
        ...

    def records_of(self, hashes: Container[str]) -> Iterator[Any]:
        """Yields the record of each picture of those content hashes that is labelled."""
        ...


def single(store: SomeStore) -> Store:
    """Returns a store that is known to be of one teacher."""
    assert isinstance(store, Store), "stacks are of single teachers"
    return store


def together(stores: Sequence[Store], hashes: Container[str]) -> Iterator[list[Any]]:
    """Yields the records of each picture that all stores have, one of each store in their order.

    Parts of a store lie in no common order: the labels of all stores but the first wait in a file, and
    memory holds their pictures' keys alone. The file lies in a store: folders for temporary files may be
    memory.

    Args:
        stores: of one task.
        hashes: of the pictures that are wanted.
    """
    decode = FORMATS[stores[0].card.task].decode
    with tempfile.TemporaryFile(dir=stores[0].path) as file:
        places: list[dict[bytes, tuple[int, int]]] = []
        for store in stores[1:]:
            own = {}
            for line in store.lines_of(hashes):
                own[bytes.fromhex(content_hash_of(line))] = (file.tell(), len(line))
                file.write(line)
            places.append(own)
        for line in stores[0].lines_of(hashes):
            key = bytes.fromhex(content_hash_of(line))
            if all(key in own for own in places):
                records = [decode(line)]
                for own in places:
                    at, length = own[key]
                    file.seek(at)
                    records.append(decode(file.read(length)))
                yield records
