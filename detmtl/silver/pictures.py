"""The pictures that a selection is about.

Letters: I pictures.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.data.source import Source
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError


@dataclass(frozen=True, eq=False)
class Pictures:
    """The I pictures of a selection, in the order of the file.

    Attributes:
        hashes: content hashes as 32 bytes each; several files may have one content.
        names: for the annotation file.
        ids: (I,) int64. sizes: (I, 2) height, width.
    """

    hashes: np.ndarray
    names: list[str]
    ids: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of_sources(cls, sources: Sequence[Source], root: Path | None) -> "Pictures":
        """Returns the pictures of sources, named relative to `root`; None: by their absolute paths."""
        hexes = [h for source in sources for h in source.hashes()]
        paths = [source.path(i) for source in sources for i in range(len(source))]
        names = paths if root is None else [os.path.relpath(p, root) for p in paths]
        if not hexes:
            raise InputError("selection: the sources have no pictures")
        ids = np.concatenate([source.ids for source in sources]).astype(np.int64)
        if len(np.unique(ids)) < len(ids):  # several sources count from 1
            ids = np.arange(1, len(ids) + 1)
        sizes = np.concatenate([source.sizes for source in sources])
        return cls(as_digests(hexes), names, ids, sizes)

    @classmethod
    def of_store(cls, store: Store) -> "Pictures":
        """Returns all pictures of a store, in the order of their content hashes."""
        found = sorted((r.content_hash, r.file, r.height, r.width) for r in store.records())
        if not found:
            raise InputError(f"{store.path}: holds no labelled pictures")
        hexes, names, heights, widths = (list(column) for column in zip(*found, strict=True))
        sizes = np.stack([heights, widths], axis=1)
        return cls(as_digests(hexes), names, np.arange(1, len(names) + 1), sizes)

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Returns a hash of all that the annotation file says of the pictures."""
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape"))
        for array in (self.hashes, self.ids, self.sizes.astype(np.int64)):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]


def as_digests(hexes: Sequence[str]) -> np.ndarray:
    """Returns hashes of 64 hex digits as (I,) of 32 bytes."""
    return np.frombuffer(bytes.fromhex("".join(hexes)), dtype="S32")
