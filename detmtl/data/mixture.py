"""Which pictures make up the batch of a step, and the exact plan of a whole run.

Nothing here has a state: the picks of a step follow from the seed and the step alone, so every rank
and every worker finds the same, and a run resumes at any step.
Letters: S sources, B pictures of a global batch (all ranks together), T steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field
from rich.table import Table

from detmtl.data.plan import PlanRow, plan_table
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.settings import Settings

if TYPE_CHECKING:
    from detmtl.data.source import Source

Mode = Literal["gold", "silver", "concat", "batch", "alternate", "weighted"]

LONGEST_CYCLE = 100
"""Steps of the longest cycle into which shares of mode `alternate` are cast."""


class MixSettings(Settings):
    """How the sources share the batches and the loss.

    gold, silver: the sources of that grade alone. concat: all, each by its number of pictures.
    weighted: as concat, but `weights` decide how much each source counts. batch: every batch holds
    `shares` of each source, never rounded to none. alternate: every step holds one source, and
    `shares` of the steps are each source's (whole numbers a and b: a steps of one, then b of the
    other).
    """

    mode: Mode = "concat"
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Source name -> share of every batch or of the steps, in any unit; empty: equal shares."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Source name -> weight of its loss, times the source's own weight; not named: 1."""


class Pick(NamedTuple):
    """One picture of a batch.

    Attributes:
        source: index of the source in the mix.
        index: of the picture in its source.
        draw: how often this very picture was drawn before.
    """

    source: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index is not called)
    draw: int


class _Stream:
    """An endless sequence of 0..length-1: one random permutation after the other."""

    def __init__(self, length: int, seed: int, key: int):
        self.length, self.seed, self.key = length, seed, key
        self._recent: dict[int, np.ndarray] = {}

    def permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._recent:
            if len(self._recent) > 1:  # a batch touches two epochs at most, or the source is small
                del self._recent[min(self._recent)]
            # no mixing of the three numbers into one: (1, 23) and (12, 3) must differ
            rng = np.random.default_rng([self.seed, self.key, epoch])
            self._recent[epoch] = rng.permutation(self.length)
        return self._recent[epoch]

    def at(self, first: int, count: int) -> list[tuple[int, int]]:
        """Returns (item, epoch) of `count` places from place `first` on."""
        places = (divmod(place, self.length) for place in range(first, first + count))
        return [(int(self.permutation(epoch)[i]), epoch) for epoch, i in places]


class Mixture:
    """Draws the pictures of each step.

    Each source is a stream of independent permutations: no picture comes twice before all of the
    source have come once. A source smaller than its share starts its next permutation at once.

    Args:
        sources: all sources of the run, in the settings' order.
        settings: see `MixSettings`.
        batch_size: B, of all ranks together.
        seed: not negative; the same on every rank.

    Attributes:
        sources, batch_size: as given.
        weights: per source, of its loss.
        notes: settings that change nothing in this mode, one sentence each.

    Raises:
        InputError: no source for the mode, a source without pictures, a name that is no source, a
            batch smaller than the number of sources it must hold.
    """

    def __init__(
        self, sources: "Sequence[Source]", settings: MixSettings, batch_size: int, seed: int = 0
    ):
        assert batch_size > 0 and seed >= 0
        self.sources = list(sources)
        self.batch_size, self.seed, self.mode = batch_size, seed, settings.mode
        self._drawn = _drawn(self.sources, settings, batch_size)
        self.weights = [s.weight * settings.weights.get(s.name, 1.0) for s in self.sources]
        self.notes = self._notes(settings)
        lengths = [len(self.sources[s]) for s in self._drawn]
        self._starts = np.cumsum([0, *lengths])
        shares = [settings.shares.get(self.sources[s].name, 1.0) for s in self._drawn]
        if self.mode == "batch":
            self._counts = apportion(shares, batch_size)
            self._streams = [_Stream(n, seed, s) for n, s in zip(lengths, self._drawn, strict=True)]
        elif self.mode == "alternate":
            self._counts = _cycle(shares)
            self._streams = [_Stream(n, seed, s) for n, s in zip(lengths, self._drawn, strict=True)]
        else:
            # its key is no source's index, so that the streams of other modes are independent of it
            self._streams = [_Stream(sum(lengths), seed, len(self.sources))]

    def picks(self, step: int) -> list[Pick]:
        """Returns the B pictures of step 0, 1, ...; a rank r of w takes picks[r::w].

        In mode batch the pictures of a source are neighbors, so that ranks get equal parts of it.
        """
        assert step >= 0
        if self.mode == "batch":
            out = [
                Pick(self._drawn[k], item, epoch)
                for k, count in enumerate(self._counts)
                for item, epoch in self._streams[k].at(step * count, count)
            ]
        elif self.mode == "alternate":
            k, turn = self._turn(step)
            pairs = self._streams[k].at(turn * self.batch_size, self.batch_size)
            out = [Pick(self._drawn[k], item, epoch) for item, epoch in pairs]
        else:
            pairs = self._streams[0].at(step * self.batch_size, self.batch_size)
            owners = np.searchsorted(self._starts, [item for item, _ in pairs], side="right") - 1
            out = [
                Pick(self._drawn[k], int(item - self._starts[k]), epoch)
                for k, (item, epoch) in zip(owners, pairs, strict=True)
            ]
        assert len(out) == self.batch_size
        return out

    def _turn(self, step: int) -> tuple[int, int]:
        """Returns the source (place among the drawn ones) of a step and how many it had before."""
        cycle, place = divmod(step, sum(self._counts))
        for k, count in enumerate(self._counts):
            if place < count:
                return k, cycle * count + place
            place -= count
        raise AssertionError("the cycle is as long as the sum of its parts")

    def plan(self, steps: int) -> list[PlanRow]:
        """Returns what a run of `steps` steps (at least 1) draws, exactly, a row for each source."""
        assert steps > 0
        drawn = np.zeros(len(self.sources), dtype=np.int64)
        loss = np.zeros(len(self.sources))
        weights = np.array(self.weights)
        for counts, times in self._batch_counts(steps):
            drawn += times * counts.sum(0)
            total = counts @ weights
            loss += times * (counts * weights / np.where(total > 0, total, 1)[:, None]).sum(0)
        return [
            PlanRow.of(source, int(n), steps, self.batch_size, weight, float(part))
            for source, n, weight, part in zip(
                self.sources, drawn, self.weights, loss / steps, strict=True
            )
        ]

    def plan_table(self, steps: int) -> Table:
        """Returns the plan for printing, warnings and notes below it."""
        title = f"Mix {self.mode}: {steps} steps of {self.batch_size} pictures"
        return plan_table(title, self.plan(steps), self.notes)

    def _batch_counts(self, steps: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yields pictures per source of some steps, (T, S), and how often these steps occur."""
        if self.mode == "batch":
            one = np.zeros((1, len(self.sources)), dtype=np.int64)
            one[0, self._drawn] = self._counts
            yield one, steps
        elif self.mode == "alternate":
            full, rest = divmod(steps, sum(self._counts))
            owners = np.repeat(self._drawn, self._counts)
            whole = np.zeros((len(owners), len(self.sources)), dtype=np.int64)
            whole[np.arange(len(owners)), owners] = self.batch_size
            yield whole, full
            yield whole[:rest], 1
        else:
            yield from self._natural_counts(steps)

    def _natural_counts(self, steps: int) -> Iterator[tuple[np.ndarray, int]]:
        stream, batch, num = self._streams[0], self.batch_size, len(self.sources)
        block = max(1, 2**20 // batch)
        for first in range(0, steps, block):
            size = min(block, steps - first)
            start, end = first * batch, (first + size) * batch
            epochs = range(start // stream.length, (end - 1) // stream.length + 1)
            items = np.concatenate(
                [
                    stream.permutation(e)[
                        max(0, start - e * stream.length) : end - e * stream.length
                    ]
                    for e in epochs
                ]
            )
            owners = np.asarray(self._drawn)[np.searchsorted(self._starts, items, side="right") - 1]
            cells = np.repeat(np.arange(size), batch) * num + owners
            yield np.bincount(cells, minlength=size * num).reshape(size, num), 1

    def _notes(self, settings: MixSettings) -> list[str]:
        notes = []
        if settings.shares and self.mode not in ("batch", "alternate"):
            notes.append(f"mix.shares change nothing in mode {self.mode}")
        if self.mode == "alternate" and len(set(self.weights)) > 1:
            notes.append(
                "weights change nothing in mode alternate, because every step holds one source and its "
                "loss is normalized; set mix.shares instead"
            )
        return notes


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


def _cycle(shares: Sequence[float]) -> list[int]:
    """Returns how many steps in a row each source has in a cycle of mode alternate."""
    if all(float(x).is_integer() for x in shares):
        return [int(x) for x in shares]
    for length in range(len(shares), LONGEST_CYCLE):
        counts = apportion(shares, length)
        off = np.asarray(counts) / length - np.asarray(shares) / sum(shares)
        if np.abs(off).max() < 1e-3:
            return counts
    return apportion(shares, max(LONGEST_CYCLE, len(shares)))


def _drawn(sources: "Sequence[Source]", settings: MixSettings, batch_size: int) -> list[int]:
    """Returns the indices of the sources that the mode draws from, after checking the settings."""
    names = [s.name for s in sources]
    mode = settings.mode
    problems = [
        f"data.sources: the name '{name}' is given to two sources; names must differ"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    problems += _unknown("mix.shares", settings.shares, names)
    problems += _unknown("mix.weights", settings.weights, names)
    grade = {"gold": Grade.GOLD, "silver": Grade.SILVER}.get(mode)
    drawn = [i for i, s in enumerate(sources) if grade is None or s.grade == grade]
    if not drawn:
        problems.append(
            f"mix.mode: {mode} draws from {mode if grade is not None else 'all'} sources, but there is "
            f"none among {', '.join(names) or 'no sources at all'}"
        )
    problems += [
        f"source '{names[i]}': it has no pictures; remove it or correct its folder and subset"
        for i in drawn
        if len(sources[i]) == 0
    ]
    if settings.shares and mode in ("batch", "alternate"):
        problems += [
            f"mix.shares: the source '{names[i]}' has no share; mode {mode} needs one for each source"
            for i in drawn
            if names[i] not in settings.shares
        ]
    if mode == "batch" and batch_size < len(drawn):
        problems.append(
            f"mix.mode: a batch of {batch_size} cannot hold each of {len(drawn)} sources; raise the "
            "batch size or use mode alternate"
        )
    if not any(sources[i].weight * settings.weights.get(names[i], 1.0) > 0 for i in drawn):
        problems.append(
            "mix.weights: every source that is drawn has weight 0; nothing would be learned"
        )
    if mode == "weighted" and not settings.weights and len({s.weight for s in sources}) < 2:
        problems.append(
            "mix.weights: mode weighted needs them, as {silver: 0.5}; without any use mode concat"
        )
    if problems:
        raise InputError(problems)
    return drawn


def _unknown(where: str, given: Mapping[str, float], names: Sequence[str]) -> list[str]:
    problems = []
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f" (nearest: '{close[0]}')" if close else ""
            problems.append(
                f"{where}: '{name}' is no source{hint}; the sources are {', '.join(names)}"
            )
    return problems
