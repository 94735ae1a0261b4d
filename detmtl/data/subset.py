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
        part: looks only at the pictures whose hash falls between these two shares of all hashes:
            [0, 0.6], [0.6, 0.8] and [0.8, 1] cut a source into three parts, and a picture's part stays
            the same whatever other pictures come and go. Without count and share: all of the part.
        of: a part that this is a part of; None: the whole source.
        without: a part whose pictures are not looked at. Without any other setting: all of the rest.
    """

    count: PositiveInt | None = None
    share: float | None = Field(default=None, gt=0, le=1)
    seed: int = 0
    rest: bool = False
    part: tuple[float, float] | None = None
    of: "Subset | None" = None
    without: "Subset | None" = None

    @model_validator(mode="after")
    def _one_size(self) -> "Subset":
        sizes = (self.count is not None) + (self.share is not None)
        if self.part is not None and not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(f"part: {list(self.part)} is no range within [0, 1]")
        whole = self.part is None and self.without is None
        if sizes == 2 or (sizes == 0 and (whole or self.rest)):
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
        ranks = [hashlib.sha256(f"{self.seed}:{h}".encode()).digest() for h in hashes]
        order = sorted(range(len(hashes)), key=lambda i: (ranks[i], i))
        among = f"{len(hashes)} pictures"
        if self.without is not None:
            gone = set(self.without.pick(hashes, where).tolist())
            order = [i for i in order if i not in gone]
            among = f"the {len(order)} of {among} that are not in another part"
        if self.part is not None:
            low, high = (share * 2.0**64 for share in self.part)
            order = [i for i in order if low <= int.from_bytes(ranks[i][:8], "big") < high]
            among = f"{len(order)} pictures of the part {list(self.part)} of {among}"
        share = 1.0 if self.share is None else self.share
        wanted = self.count if self.count is not None else round(len(order) * share)
        if wanted > len(order):
            raise InputError(f"{where}: subset.count is {wanted}, but there are only {among}")
        taken = order[wanted:] if self.rest else order[:wanted]
        if not taken:
            raise InputError(f"{where}: subset leaves none of {among}")
        return np.sort(np.asarray(taken, dtype=np.int64))
