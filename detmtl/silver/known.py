"""Which pictures are labelled.

Letters: I pictures that are asked about.
"""

from collections.abc import Sequence

import numpy as np

from detmtl.silver.parts import HASH_BYTES

_SHA = f"S{HASH_BYTES}"


class Known:
    """The content hashes of labelled pictures: a sorted array of 32 bytes each."""

    def __init__(self, digests: bytes):
        """Takes the hashes one after the other, 32 bytes each, in any order, repeats allowed."""
        # Comparing fixed-width S32 pads with zeros, which is exact; only reading an item would strip.
        own = np.array(np.frombuffer(digests, dtype=_SHA))
        own.sort()  # in place: np.unique would need three copies of a million hashes
        repeated = own[1:] == own[:-1]
        self._sorted = own[np.append(True, ~repeated)] if repeated.any() else own

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, content_hash: str) -> bool:
        return bool(self.mask([content_hash])[0])

    def places(self, digests: bytes) -> np.ndarray:
        """Returns (I,) int64: each 32-byte hash's place in the sorted order, -1 where it is not known."""
        asked = np.frombuffer(digests, dtype=_SHA)
        if not len(self) or not len(asked):
            return np.full(len(asked), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, asked), len(self) - 1)
        return np.where(self._sorted[at] == asked, at, -1)

    def mask(self, content_hashes: Sequence[str]) -> np.ndarray:
        """Returns (I,) bool: which of the hashes (64 hex digits each) are known."""
        digests = bytes.fromhex("".join(content_hashes))
        assert len(digests) == HASH_BYTES * len(content_hashes), "a content hash has 64 hex digits"
        return self.places(digests) >= 0
