"""Endless orders of a source's pictures, of which any place can be looked up without the places before.

Letters: I pictures, L places of an epoch.
"""

from collections.abc import Iterator

import numpy as np

ONE = 1 << 20
"""A repeat of 1 in the whole numbers in which repeats are added up, so that no sum is rounded."""

BLOCK = 1 << 20
"""Places that are counted at once."""


class Stream:
    """An endless sequence of pictures 0..I-1, one random epoch after the other.

    Without `repeats` an epoch is a permutation. With them picture i comes repeats[i] times an epoch on
    average, floor or ceil of it in each: a comb of distance 1 and random offset is laid over the repeats,
    added up in a random order. So every epoch has the same length, and where it begins is known
    without looking at those before.
    Source: systematic sampling, Madow and Madow 1944, On the theory of systematic sampling.

    Args:
        count: I, at least 1.
        seed, key: of the order; streams of different keys are independent.
        repeats: (I,) float, at least 1 each; all are raised a little, alike, until they sum up to a
            whole number. None: 1 each.

    Attributes:
        length: L, places of an epoch.
    """

    def __init__(self, count: int, seed: int, key: int, repeats: np.ndarray | None = None):
        self.count, self.seed, self.key = count, seed, key
        self._parts = None if repeats is None or np.ptp(repeats) == 0 else _whole(repeats)
        self.length = count if self._parts is None else int(self._parts.sum()) // ONE
        self._recent: dict[int, np.ndarray] = {}

    def epoch(self, number: int) -> np.ndarray:
        """Returns the pictures (L,) of epoch 0, 1, ..., in their order."""
        if number not in self._recent:
            if len(self._recent) > 1:  # a batch touches two epochs at most, or the source is small
                del self._recent[min(self._recent)]
            # no mixing of the three numbers into one: (1, 23) and (12, 3) must differ
            rng = np.random.default_rng([self.seed, self.key, number])
            order = rng.permutation(self.count)
            if self._parts is not None:
                ends = np.cumsum(self._parts[order]) + rng.integers(ONE)
                order = rng.permutation(np.repeat(order, np.diff(ends // ONE, prepend=0)))
            self._recent[number] = order
        return self._recent[number]

    def at(self, first: int, count: int) -> list[tuple[int, int]]:
        """Returns (picture, epoch) of `count` places from place `first` on."""
        places = (divmod(place, self.length) for place in range(first, first + count))
        return [(int(self.epoch(epoch)[i]), epoch) for epoch, i in places]

    def blocks(self, first: int, end: int) -> Iterator[np.ndarray]:
        """Yields the pictures at places first, ..., end - 1, in parts that need little memory."""
        while first < end:
            number, start = divmod(first, self.length)
            part = self.epoch(number)[start : start + min(end - first, BLOCK)]
            yield part
            first += len(part)

    def counts(self, first: int, end: int) -> np.ndarray:
        """Returns how often each picture (I,) comes at places first, ..., end - 1."""
        counts, ranges = np.zeros(self.count, dtype=np.int64), [(first, end)]
        start, stop = -(-first // self.length) * self.length, end // self.length * self.length
        if self._parts is None and start < stop:  # whole epochs have each picture once
            counts += (stop - start) // self.length
            ranges = [(first, start), (stop, end)]
        for part in (part for places in ranges for part in self.blocks(*places)):
            counts += np.bincount(part, minlength=self.count)
        return counts


def _whole(repeats: np.ndarray) -> np.ndarray:
    """Returns repeats (I,) in units of 1 / ONE, int64, raised alike to a sum of a whole number."""
    assert repeats.min() >= 1
    scale = np.ceil(repeats.sum()) / repeats.sum()
    parts = np.floor(repeats * (scale * ONE)).astype(np.int64)
    lack = -int(parts.sum()) % ONE  # of flooring: less than one unit for each picture
    parts += lack // len(parts)
    parts[: lack % len(parts)] += 1
    return parts
