"""Ways to draw the batches of consecutive turns from several sources; none has a state.

Letters: S sources of the mix, B pictures of a batch, T turns.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from detmtl.data.streams import Stream

LONGEST_CYCLE = 100
"""Turns of the longest cycle into which shares of turns are cast."""


class Pick(NamedTuple):
    """One picture of a batch.

    Attributes:
        source: index of the source in the mix.
        index: of the picture in its source.
        epoch: how many times its order had been gone through before.
    """

    source: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index is not called)
    epoch: int


class Draws(Protocol):
    """How turns 0, 1, ... draw their pictures."""

    def picks(self, turn: int) -> list[Pick]:
        """Returns the B pictures of a turn."""
        ...

    def per_source(self, first: int, end: int) -> np.ndarray:
        """Returns how many pictures of each source turns first, ..., end - 1 draw, (T, S) int64."""
        ...

    def per_picture(self, turns: int) -> dict[int, np.ndarray]:
        """Returns source -> how often each of its pictures (I,) is drawn in the first `turns` turns."""
        ...


class Jointly:
    """All sources as one: each turn takes the next B places of one order over all their pictures."""

    def __init__(
        self,
        drawn: Sequence[int],
        lengths: Sequence[int],
        num_sources: int,
        batch_size: int,
        seed: int,
        repeats: Sequence[np.ndarray] | None,
    ):
        """Takes which sources are drawn, the pictures of each, S, B, and the repeats of each."""
        self._drawn, self._num, self._batch = np.asarray(drawn), num_sources, batch_size
        self._starts = np.cumsum([0, *lengths])
        joined = None if repeats is None else np.concatenate(list(repeats))
        # its key is no source's index, so that it is independent of the sources' own orders
        self._stream = Stream(sum(lengths), seed, num_sources, joined)

    def picks(self, turn: int) -> list[Pick]:
        """See `Draws`."""
        places = self._stream.at(turn * self._batch, self._batch)
        owners = self._owners(np.array([item for item, _ in places]))
        return [
            Pick(int(self._drawn[k]), int(item - self._starts[k]), epoch)
            for k, (item, epoch) in zip(owners, places, strict=True)
        ]

    def per_source(self, first: int, end: int) -> np.ndarray:
        """See `Draws`."""
        items = list(self._stream.blocks(first * self._batch, end * self._batch))
        owners = self._drawn[self._owners(np.concatenate(items))]
        cells = np.repeat(np.arange(end - first), self._batch) * self._num + owners
        counts = np.bincount(cells, minlength=(end - first) * self._num)
        return counts.reshape(end - first, self._num)

    def per_picture(self, turns: int) -> dict[int, np.ndarray]:
        """See `Draws`."""
        counts = self._stream.counts(0, turns * self._batch)
        parts = np.split(counts, self._starts[1:-1])
        return dict(zip(self._drawn.tolist(), parts, strict=True))

    def _owners(self, items: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, items, side="right") - 1


class EachTurn:
    """A fixed number of every source's pictures in each turn, never none.

    Pictures of a source are neighbors, so that ranks get equal parts of it.
    """

    def __init__(
        self, drawn: Sequence[int], streams: Sequence[Stream], counts: list[int], num_sources: int
    ):
        """Takes the sources that are drawn, the order and number of pictures of each, and S."""
        self._drawn, self._streams, self._counts = list(drawn), list(streams), counts
        self._row = np.zeros(num_sources, dtype=np.int64)
        self._row[self._drawn] = counts

    def picks(self, turn: int) -> list[Pick]:
        """See `Draws`."""
        return [
            Pick(source, item, epoch)
            for source, stream, count in zip(self._drawn, self._streams, self._counts, strict=True)
            for item, epoch in stream.at(turn * count, count)
        ]

    def per_source(self, first: int, end: int) -> np.ndarray:
        """See `Draws`."""
        return np.tile(self._row, (end - first, 1))

    def per_picture(self, turns: int) -> dict[int, np.ndarray]:
        """See `Draws`."""
        return {
            source: stream.counts(0, turns * count)
            for source, stream, count in zip(self._drawn, self._streams, self._counts, strict=True)
        }


class TakingTurns:
    """Every turn holds one source; a cycle gives each source some turns in a row."""

    def __init__(
        self,
        drawn: Sequence[int],
        streams: Sequence[Stream],
        cycle: list[int],
        num_sources: int,
        batch_size: int,
    ):
        """Takes the sources that are drawn, the order and turns in a row of each, S and B."""
        self._drawn, self._streams, self._cycle = list(drawn), list(streams), cycle
        self._num, self._batch = num_sources, batch_size
        self._owners = np.repeat(np.arange(len(cycle)), cycle)  # of each turn of a cycle

    def picks(self, turn: int) -> list[Pick]:
        """See `Draws`."""
        k = int(self._owners[turn % len(self._owners)])
        places = self._streams[k].at(self._before(turn)[k] * self._batch, self._batch)
        return [Pick(self._drawn[k], item, epoch) for item, epoch in places]

    def per_source(self, first: int, end: int) -> np.ndarray:
        """See `Draws`."""
        owners = self._owners[np.arange(first, end) % len(self._owners)]
        counts = np.zeros((end - first, self._num), dtype=np.int64)
        counts[np.arange(end - first), np.asarray(self._drawn)[owners]] = self._batch
        return counts

    def per_picture(self, turns: int) -> dict[int, np.ndarray]:
        """See `Draws`."""
        return {
            source: stream.counts(0, n * self._batch)
            for source, stream, n in zip(
                self._drawn, self._streams, self._before(turns), strict=True
            )
        }

    def _before(self, turn: int) -> list[int]:
        """Returns how many turns before this one each source had."""
        cycles, place = divmod(turn, len(self._owners))
        of_this = np.bincount(self._owners[:place], minlength=len(self._cycle))
        return (cycles * np.asarray(self._cycle) + of_this).tolist()


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Returns whole numbers that sum to `total`, in proportion to `shares`, each at least 1.

    Largest remainders, the first of equal ones; what a share lacks to 1 is taken from those with
    the most above their due.
    """
    assert len(shares) <= total and min(shares) > 0
    due = np.asarray(shares, dtype=np.float64) / sum(shares) * total
    # 1e-9: a due of 2.9999999999999996 is 3
    counts = np.maximum(np.floor(due + 1e-9).astype(np.int64), 1)
    while counts.sum() < total:
        counts[np.argmax(due - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, counts - due, -np.inf))] -= 1
    return counts.tolist()


def cycle_of(shares: Sequence[float]) -> list[int]:
    """Returns how many turns in a row each source has in a cycle of `TakingTurns`, as few as can be."""
    if all(float(x).is_integer() for x in shares):
        whole = [int(x) for x in shares]
        return [x // math.gcd(*whole) for x in whole]
    for length in range(len(shares), LONGEST_CYCLE):
        counts = apportion(shares, length)
        off = np.asarray(counts) / length - np.asarray(shares) / sum(shares)
        if np.abs(off).max() < 1e-3:
            return counts
    return apportion(shares, max(LONGEST_CYCLE, len(shares)))
