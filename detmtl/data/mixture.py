"""Which pictures make up the batch of a step, and the exact plan of a whole run.

Nothing here has a state: the picks of a step follow from the seed and the step alone, so every rank
and every worker finds the same, and a run resumes at any step.
Letters: S sources, B pictures of a global batch (all ranks together), T steps.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field
from rich.table import Table

from detmtl.data.draws import Draws, EachTurn, Jointly, Pick, TakingTurns, apportion, cycle_of
from detmtl.data.plan import PlanRow, plan_table
from detmtl.data.repeat_factor import BalanceSettings, repeat_factors
from detmtl.data.schedule import Curriculum, Points, factors_at
from detmtl.data.streams import Stream
from detmtl.data.tags import Tags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.settings import Settings

if TYPE_CHECKING:
    from detmtl.data.source import Source

__all__ = ["SHARED", "MixSettings", "Mixture", "Pick"]

Mode = Literal[
    "gold", "silver", "concat", "batch", "alternate", "weighted", "curriculum", "finetune", "online"
]

SHARED = ("batch", "alternate", "curriculum", "finetune", "online")
"""Modes in which `shares` count."""

BLOCK = 1 << 20
"""Pictures that are planned at once."""


class MixSettings(Settings):
    """How the sources share the batches and the loss.

    gold, silver: the sources of that grade alone. concat: all, each by its number of pictures.
    weighted: as concat, but `weights` decide how much each source counts. batch: every batch holds
    `shares` of each source, never rounded to none. alternate: every step holds one source, and
    `shares` of the steps are each source's (whole numbers a and b: a steps of one, then b of the
    other). curriculum: as batch, and the weight of the silver sources ramps. finetune: as batch, then
    gold alone. online: gold alone, then as batch, with pictures that nobody labelled, or not for all
    classes: the averaged model labels them as they come. Gold, too, is a pool in each of whose pictures
    people have looked for some class.
    """

    mode: Mode = "concat"
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Source name -> share of every batch or of the steps, in any unit; empty: equal shares."""
    weights: dict[str, Annotated[float, Field(ge=0)] | Points] = {}
    """Source name -> weight of its loss, times the source's own weight; not named: 1. Over time: a list
    of [share of the steps, weight], straight between and level outside of them. Weights are those of an
    average over the sources that label a task: where one source alone does, its weight changes nothing but at
    0, and `balancing.weights` is what weighs the task."""
    balance: BalanceSettings = BalanceSettings()
    """What is drawn more often because it is rare."""
    curriculum: Curriculum = Curriculum()
    """How silver's weight ramps in mode curriculum."""
    gold_from: float = Field(default=0.8, gt=0, lt=1)
    """Share of the steps from which on mode finetune takes gold alone."""
    burn_in: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps up to which mode online takes gold alone: its teacher has to know something
    before it teaches."""


class Mixture:
    """Draws the pictures of each step.

    No picture comes twice before all of its order have come once, unless `balance` repeats it. A
    source smaller than its share starts its next epoch at once.

    Args:
        sources: all sources of the run, in the settings' order.
        settings: see `MixSettings`.
        batch_size: B, of all ranks together.
        seed: not negative; the same on every rank.
        steps: batches of the whole run; needed where the settings speak of shares of it.

    Attributes:
        sources, batch_size: as given.
        people: of mode online, the sources that it draws alone until its teacher labels; else [].
        notes: settings that change nothing in this mode, and what the sources' files leave open, one
            sentence each.

    Raises:
        InputError: no source for the mode, a source without pictures, a name that is no source, a
            batch smaller than the number of sources it must hold.
    """

    def __init__(
        self,
        sources: "Sequence[Source]",
        settings: MixSettings,
        batch_size: int,
        seed: int = 0,
        steps: int | None = None,
    ):
        assert batch_size > 0 and seed >= 0
        self.sources = list(sources)
        self.batch_size, self.seed, self.steps = batch_size, seed, steps
        self.mode, self._settings = settings.mode, settings
        drawn = self._drawn = _drawn(self.sources, settings, batch_size)
        self.notes = _notes(settings, self.sources)
        gold = [s for s in drawn if self.sources[s].grade == Grade.GOLD]
        self.people: list[Source] = []
        self._phases: list[tuple[int, Draws]]
        if self.mode == "finetune":
            turn = self._step_of(settings.gold_from)
            self._phases = [(0, self._each_turn(drawn)), (turn, self._jointly(gold))]
        elif self.mode == "online":
            turn = self._step_of(settings.burn_in)
            people = [s for s in drawn if _labelled_by_people(self.sources[s])]
            self.people = [self.sources[s] for s in people]
            self._phases = [(0, self._jointly(people)), (turn, self._each_turn(drawn))]
        elif self.mode == "alternate":
            self._phases = [(0, self._taking_turns(drawn))]
        elif self.mode in SHARED:
            self._phases = [(0, self._each_turn(drawn))]
        else:
            self._phases = [(0, self._jointly(drawn))]

    def picks(self, step: int) -> list[Pick]:
        """Returns the B pictures of step 0, 1, ...; a rank r of w takes picks[r::w]."""
        assert step >= 0
        start, draws = next(phase for phase in reversed(self._phases) if phase[0] <= step)
        out = draws.picks(step - start)
        assert len(out) == self.batch_size
        return out

    def weights_at(self, step: int) -> list[float]:
        """Returns what the loss of each of the S sources counts at a step."""
        return self._weights(step, step + 1)[0].tolist()

    def first_step_of_last_phase(self) -> int:
        """Returns the step at which the mode changes from one way to draw to the other; else 0."""
        return self._phases[-1][0]

    def plan(self, steps: int | None = None) -> list[PlanRow]:
        """Returns what the first `steps` steps (None: all) draw, exactly, a row for each source."""
        steps = steps or self.steps
        assert steps is not None and steps > 0
        num = len(self.sources)
        drawn, loss = np.zeros(num, dtype=np.int64), np.zeros(num)
        per_picture = [np.zeros(len(source), dtype=np.int64) for source in self.sources]
        ends = [start for start, _ in self._phases[1:]] + [steps]
        for (start, draws), end in zip(self._phases, ends, strict=True):
            end = min(end, steps)
            if start >= end:
                continue
            for source, counts in draws.per_picture(end - start).items():
                per_picture[source] += counts
            size = max(1, BLOCK // self.batch_size)
            for first in range(start, end, size):
                last = min(first + size, end)
                counts = draws.per_source(first - start, last - start)
                drawn += counts.sum(axis=0)
                loss += loss_shares(counts, self._weights(first, last)).sum(axis=0)
        most = [int(counts.max()) if len(counts) else 0 for counts in per_picture]
        weights = self._weights(0, 1)[0], self._weights(steps - 1, steps)[0]
        return [
            PlanRow.of(
                source,
                drawn=int(drawn[s]),
                most=most[s],
                steps=steps,
                batch_size=self.batch_size,
                weights=(float(weights[0][s]), float(weights[1][s])),
                loss_share=float(loss[s] / steps),
                wanted=s in self._drawn,
            )
            for s, source in enumerate(self.sources)
        ]

    def plan_table(self, steps: int | None = None) -> Table:
        """Returns the plan for printing, warnings and notes below it."""
        rows = self.plan(steps)
        title = f"Mix {self.mode}: {steps or self.steps} steps of {self.batch_size} pictures"
        return plan_table(title, rows, self.notes)

    def _weights(self, first: int, end: int) -> np.ndarray:
        """Returns the sources' weights at steps first, ..., end - 1, (T, S)."""
        done = np.arange(first, end) / (self.steps or 1)
        columns = []
        for source in self.sources:
            wanted = self._settings.weights.get(source.name, 1.0)
            column = source.weight * factors_at(wanted, done)
            if self.mode == "curriculum" and source.grade == Grade.SILVER:
                column = column * factors_at(self._settings.curriculum.points(), done)
            columns.append(column)
        return np.stack(columns, axis=1)

    def _step_of(self, share: float) -> int:
        assert self.steps is not None, f"mode {self.mode} needs to know the steps of the run"
        return round(share * self.steps)

    def _jointly(self, drawn: list[int]) -> Draws:
        lengths = [len(self.sources[s]) for s in drawn]
        repeats = repeat_factors([self.sources[s] for s in drawn], self._settings.balance, True)
        num = len(self.sources)
        return Jointly(drawn, lengths, num, self.batch_size, self.seed, repeats)

    def _each_turn(self, drawn: list[int]) -> Draws:
        counts = apportion(self._shares(drawn), self.batch_size)
        return EachTurn(drawn, self._streams(drawn), counts, len(self.sources))

    def _taking_turns(self, drawn: list[int]) -> Draws:
        cycle = cycle_of(self._shares(drawn))
        streams = self._streams(drawn)
        return TakingTurns(drawn, streams, cycle, len(self.sources), self.batch_size)

    def _shares(self, drawn: list[int]) -> list[float]:
        return [self._settings.shares.get(self.sources[s].name, 1.0) for s in drawn]

    def _streams(self, drawn: list[int]) -> list[Stream]:
        sources = [self.sources[s] for s in drawn]
        repeats = repeat_factors(sources, self._settings.balance, False) or [None] * len(drawn)
        return [
            Stream(len(source), self.seed, s, own)
            for s, source, own in zip(drawn, sources, repeats, strict=True)
        ]


def loss_shares(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns each source's part of the weight of its step's pictures, (T, S).

    Args:
        counts: (T, S) pictures of each source in each step.
        weights: (T, S) of one such picture's loss.
    """
    weighted = counts * weights
    total = weighted.sum(axis=1, keepdims=True)
    return weighted / np.where(total > 0, total, 1)


def _notes(settings: MixSettings, sources: "Sequence[Source]") -> list[str]:
    notes, mode = [note for s in sources for note in s.notes], settings.mode
    if settings.shares and mode not in SHARED:
        notes.append(f"mix.shares change nothing in mode {mode}")
    if settings.balance.sources is not None and mode in SHARED:
        if mode in ("finetune", "online"):
            notes.append(
                f"mix.balance.sources counts in mode {mode} only while gold is drawn alone; for the other "
                "steps set mix.shares"
            )
        else:
            notes.append(
                f"mix.balance.sources changes nothing in mode {mode}; set mix.shares instead"
            )
    weights = [(s.weight, str(settings.weights.get(s.name, 1.0))) for s in sources]
    if mode == "alternate" and len(set(weights)) > 1:
        notes.append(
            "weights change nothing in mode alternate, because every step holds one source and its "
            "loss is normalized; set mix.shares instead"
        )
    return notes


def idle_weights(
    sources: "Sequence[Source]",
    settings: MixSettings,
    learned: Mapping[str, str],
    to_come: Mapping[str, Collection[str]],
) -> list[str]:
    """Returns a sentence for each weight that changes nothing for a task, because no other source labels it.

    Args:
        sources: those that the mix draws from.
        settings: of the mix.
        learned: name of a task -> the kind of labels that it learns from: "boxes", "maps", "tags", "depth".
        to_come: name of a source -> kinds of labels that it has not yet, and gets from a model.
    """
    if settings.mode == "alternate":  # there no weight changes anything, which the plan says
        return []
    told = []
    who = {
        task: [s for s in sources if kind in _kinds(s, to_come)] for task, kind in learned.items()
    }
    for source in sources:
        weight = settings.weights.get(source.name, 1.0)
        ramps = settings.mode == "curriculum" and source.grade == Grade.SILVER
        alone = [task for task, labelled in who.items() if labelled == [source]]
        if alone and (ramps or isinstance(weight, list) or weight * source.weight not in (0, 1)):
            told.append(
                f"source '{source.name}': its weight changes nothing but at 0 for {' and '.join(alone)}, "
                "which no other source labels: a loss is averaged over the sources that label its task; "
                f"weigh the task, as balancing.weights: {{{alone[0]}: 0.5}}"
            )
    return told


def _kinds(source: "Source", to_come: Mapping[str, Collection[str]]) -> set[str]:
    """Returns which kinds of labels a source has, or gets."""
    own = {"boxes": source.annotations, "maps": source.maps, "tags": source.tags}
    own |= {"depth": source.depth}
    has = {kind for kind, labels in own.items() if labels is not None}
    return has.union(to_come.get(source.name, ()))


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
    grades = {sources[i].grade for i in drawn}
    if mode == "online":
        grades |= {Grade.GOLD for i in drawn if _labelled_by_people(sources[i])}
    if not drawn:
        problems.append(
            f"mix.mode: {mode} draws from {mode if grade is not None else 'all'} sources, but there is "
            f"none among {', '.join(names) or 'no sources at all'}"
        )
    elif mode in ("curriculum", "finetune", "online") and len(grades) < 2:
        problems.append(
            f"mix.mode: {mode} needs gold and silver sources, but all of {', '.join(names)} are "
            f"{grades.pop().name.lower()}"
        )
    problems += [
        f"source '{names[i]}': it has no pictures; remove it or correct its folder and subset"
        for i in drawn
        if len(sources[i]) == 0
    ]
    if settings.shares and mode in SHARED:
        problems += [
            f"mix.shares: the source '{names[i]}' has no share; mode {mode} needs one for each source"
            for i in drawn
            if names[i] not in settings.shares
        ]
    if mode in SHARED and mode != "alternate" and batch_size < len(drawn):
        problems.append(
            f"mix.mode: a batch of {batch_size} cannot hold each of {len(drawn)} sources; raise the "
            "batch size or use mode alternate"
        )
    if not any(sources[i].weight * _highest(settings, names[i]) > 0 for i in drawn):
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


def _labelled_by_people(source: "Source") -> bool:
    """Returns whether people have labelled each picture of a source in some way, and no model has yet:
    pools of mode online are of grade SILVER from the start."""
    if source.grade == Grade.GOLD:
        return True
    looked = np.zeros(len(source), dtype=bool)
    if source.annotations is not None:
        if not (source.annotations.grade == Grade.GOLD).all():
            return False
        looked |= source.coverage.any(axis=1)
    for present, by_people in _dense(source):
        if (present & ~by_people).any():
            return False
        looked |= by_people
    return bool(looked.all())


def _dense(source: "Source") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields which pictures (I,) have labels of other kinds than boxes, and which by people."""
    if source.maps is not None:
        yield source.maps.present(), source.maps.by_people()
    if isinstance(source.tags, Tags):
        yield source.tags.present, source.tags.by_people()


def _highest(settings: MixSettings, name: str) -> float:
    weight = settings.weights.get(name, 1.0)
    return max(w for _, w in weight) if isinstance(weight, list) else weight


def _unknown(where: str, given: Mapping[str, object], names: Sequence[str]) -> list[str]:
    problems = []
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f" (nearest: '{close[0]}')" if close else ""
            problems.append(
                f"{where}: '{name}' is no source{hint}; the sources are {', '.join(names)}"
            )
    return problems
