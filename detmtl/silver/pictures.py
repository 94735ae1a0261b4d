"""The pictures that a selection is about.

Letters: I pictures.
"""

import hashlib
import os
from array import array
from collections import Counter
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
        hashes, names, sizes = bytearray(), [], array("q")
        for head in store.heads():
            hashes += bytes.fromhex(head.content_hash)
            names.append(head.file)
            sizes.extend((head.height, head.width))
        if not names:
            raise InputError(f"{store.path}: holds no labelled pictures")
        digests, first = np.unique(np.frombuffer(hashes, dtype="S32"), return_index=True)
        chosen = [names[i] for i in first]
        twice = [name for name, count in Counter(chosen).items() if count > 1]
        if twice:
            raise InputError(
                f"{store.path}: holds {len(twice)} names for two pictures each, as {twice[0]}, and the "
                "labels of one would be given to the other; name the folder of those that are meant, as it "
                "is now: select --pool"
            )
        return cls(
            digests,
            chosen,
            np.arange(1, len(first) + 1),
            np.frombuffer(sizes, dtype=np.int64).reshape(-1, 2)[first],
        )

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Returns a hash of all that the annotation file says of the pictures."""
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape"))
        for values in (self.hashes, self.ids, self.sizes.astype(np.int64)):
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]


def as_digests(hexes: Sequence[str]) -> np.ndarray:
    """Returns hashes of 64 hex digits as (I,) of 32 bytes."""
    return np.frombuffer(bytes.fromhex("".join(hexes)), dtype="S32")
