"""Parts of a source that are the same on every machine."""

import hashlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings


class Subset(Settings):
    """A part of a source, the same on every machine: pictures in the order of
    sha256(seed, content hash), of which the first are taken. A smaller part of the same seed lies
    within a larger one.

    Attributes:
        count: how many pictures; or
        share: which share of them, in (0, 1].
        seed: another seed, another part.
        rest: takes the pictures that the same settings without `rest` leave.
        of: a part that this is a part of; None: the whole source.
    """

    count: PositiveInt | None = None
    share: float | None = Field(default=None, gt=0, le=1)
    seed: int = 0
    rest: bool = False
    of: "Subset | None" = None

    @model_validator(mode="after")
    def _one_size(self) -> "Subset":
        if (self.count is None) == (self.share is None):
            raise ValueError("give either count or share")
        return self

    def pick(self, hashes: Sequence[str], where: str) -> np.ndarray:
        """Returns the positions (int64, ascending) of the pictures that are taken.

        Args:
            hashes: content hash of each picture.
            where: the source, for the error.

        Raises:
            InputError: there are fewer pictures than `count`, or none is left.
        """
        if self.of is not None:
            within = self.of.pick(hashes, where)
            part = self.model_copy(update={"of": None})
            return within[part.pick([hashes[int(i)] for i in within], where)]
        wanted = self.count if self.count is not None else round(len(hashes) * (self.share or 0))
        if wanted > len(hashes):
            raise InputError(
                f"{where}: subset.count is {wanted}, but there are only {len(hashes)} pictures"
            )
        ranks = [hashlib.sha256(f"{self.seed}:{h}".encode()).digest() for h in hashes]
        order = sorted(range(len(hashes)), key=lambda i: (ranks[i], i))
        taken = order[wanted:] if self.rest else order[:wanted]
        if not taken:
            raise InputError(f"{where}: subset leaves none of {len(hashes)} pictures")
        return np.sort(np.asarray(taken, dtype=np.int64))
