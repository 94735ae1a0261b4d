"""What is said of two tasks on one trunk, and what to do about it: from numbers to words.

The word follows from these questions in this order:

1. Is the task worse with the other one than alone? Then the trunk is too narrow, if a wider one surely takes
   harm away and the task is not worse on it; otherwise it hurts.
2. Does a head on the task's own frozen trunk solve the other task already? Then it is a duplicate: it can
   tell the trunk nothing new, and a gain is one of weight.
3. Is the task better? Then it helps; unless random labels help too, and the true ones not surely more.
4. Otherwise one cannot tell.

Beside the word: is the task better on the wide trunk, with the same others? Then the trunk is narrow,
whatever the tasks do to each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from detmtl.comparing.statistics import LEVEL, Estimate, Word, over_seeds

Name = Literal["helps", "hurts", "trunk too narrow", "duplicate", "cannot tell"]

LOUD = 5.0
"""A gradient so many times another one's drowns it."""
MANY = 100
"""Seeds beyond which an effect is none for practice."""
WIDER = "model.fpn.channels, or a larger backbone"
AGAINST = -0.05
"""Mean cosine from which on two gradients are said to pull against each other: in a detector they are
near 0 whatever happens, and chance makes +-.01 of some million weights."""


@dataclass(frozen=True)
class Evidence:
    """What is known of the effect of other tasks on one; positive is better, whatever the metric.

    Attributes:
        task, others: names.
        word: whether the task is better or worse with them than alone (after correction).
        needed: seeds that would tell an effect of this size; 0: those there are do; NaN: not known.
        few_pictures: whether chance in the test pictures leaves the effect open, alone or too.
        noise: the word on the task beside random labels against alone; None: not asked.
        beyond_noise: the word on the true labels against random ones.
        wide: the word on the wide trunk; None: not asked.
        widened: whether the wide trunk makes the effect better.
        width: the word on the task with the others on the wide trunk against the same on the trunk as it is.
        overlap: share of what the other task's own training gives that a head on this task's frozen
            trunk has; None: not asked.
        cosine: mean over the run, on all of the trunk that was looked at; NaN: not looked.
        loudness: the others' mean gradient norm, as weighted, as a multiple of this task's.
    """

    task: str
    others: tuple[str, ...]
    word: Word
    needed: float = math.nan
    few_pictures: bool = False
    noise: Word | None = None
    beyond_noise: Word | None = None
    wide: Word | None = None
    widened: Word | None = None
    width: Word | None = None
    overlap: Estimate | None = None
    cosine: float = math.nan
    loudness: float = math.nan

    @property
    def other(self) -> str:
        """Returns the others in words."""
        return " and ".join(self.others)


@dataclass(frozen=True)
class Named:
    """What is said.

    Attributes:
        word: see the top of this file.
        because: a sentence; "" where the numbers say it all.
        advice: what to do about it.
    """

    word: Name
    because: str
    advice: str


def named(found: Evidence, duplicate: float = 0.9) -> Named:
    """Returns the word on an effect, and what to do.

    Args:
        found: what is known.
        duplicate: the share from which on a frozen trunk solves the other task.
    """
    said = _named(found, duplicate)
    if found.width != "better" or said.word == "trunk too narrow":
        return said
    narrow = f"the trunk is narrow: on the wide one {found.task} is better with the same tasks"
    because = f"{said.because}; {narrow}" if said.because else narrow
    return Named(said.word, because, f"Widen the trunk ({WIDER}). {said.advice}")


def _named(found: Evidence, duplicate: float) -> Named:
    if found.word == "worse":
        return _harm(found)
    if solved(found.overlap, duplicate):
        return _duplicate(found)
    if found.word == "better":
        return _help(found)
    return _unknown(found)


def solved(overlap: Estimate | None, duplicate: float) -> bool:
    """Returns whether a share of overlap, and most of its interval, says that the task is solved."""
    return overlap is not None and overlap.mean >= duplicate and overlap.low >= duplicate / 2


def _harm(found: Evidence) -> Named:
    task, other = found.task, found.other
    if found.widened == "better" and found.wide != "worse":
        return Named(
            "trunk too narrow",
            "on the wide trunk the harm is surely less, and no harm is left to be seen",
            f"Widen the trunk ({WIDER}), or leave {other} out.",
        )
    because, todo = [], []
    if found.wide is not None:
        because.append(
            "a wider trunk takes some of the harm away, but not all"
            if found.widened == "better"
            else "a wider trunk does not surely take the harm away"
        )
    if found.noise == "worse" and found.beyond_noise in ("cannot tell", None):
        because.append("random labels hurt no less, so it is the weight of a second loss")
    if found.loudness >= LOUD:
        because.append(f"its gradient on the trunk is {found.loudness:.0f} times that of {task}")
        todo.append(
            f"lower the weight of {other} (balancing.weights), or let a balancer bring the losses to one "
            "scale (balancing.kind)"
        )
    if found.cosine <= AGAINST:
        because.append(f"the gradients pull against each other (cosine {found.cosine:+.2f})")
        todo.append(f"let {other} hang lower and reach only the layers below it, or try pcgrad")
    if found.beyond_noise == "worse":
        because.append("it hurts more than random labels do")
        todo.append(f"look at the labels of {other} (do they belong to these pictures?)")
    todo.append(f"or train {other} in a run of its own")
    advice = "; ".join(todo).removeprefix("or ")
    return Named("hurts", "; ".join(because), advice[0].upper() + advice[1:] + ".")


def _duplicate(found: Evidence) -> Named:
    assert found.overlap is not None
    gain = f"; what {found.task} gains is had by its own weight or more steps" * (
        found.word == "better"
    )
    return Named(
        "duplicate",
        f"a head on the frozen trunk of {found.task} alone has {100 * found.overlap.mean:.0f} % of what "
        f"{found.other} gains by training of its own{gain}",
        f"As an auxiliary task {found.other} tells the trunk nothing new: leave it out; where its output is "
        "wanted, a head on the frozen trunk is enough.",
    )


def _help(found: Evidence) -> Named:
    if found.noise == "better" and found.beyond_noise != "better":
        return Named(
            "cannot tell",
            "it is better than alone, but so it is beside random labels, and true ones are not surely better "
            "than those: any second loss may do it",
            "Regularize (augmentation, weight decay, fewer steps) and ask again.",
        )
    more = "and better than beside random labels" if found.beyond_noise == "better" else ""
    return Named("helps", more, f"Keep {found.other}, if its time per step is worth it.")


def _unknown(found: Evidence) -> Named:
    advice = "More seeds."
    if found.needed == 0 and found.few_pictures:
        advice = (
            "More test pictures are needed; of seeds there are enough for an effect of this size."
        )
    elif found.needed == 0:
        advice = (
            "More seeds or more test pictures: each alone does not explain it, both together may."
        )
    elif found.needed > MANY:
        advice = f"It would take more than {MANY} seeds: for practice there is no effect."
    elif found.needed > 0:
        more = ", and more test pictures," if found.few_pictures else ""
        advice = f"About {found.needed:.0f} seeds{more} would tell an effect of this size."
    return Named("cannot tell", "", advice)


def seeds_needed(values: Sequence[float], level: float = LEVEL) -> float:
    """Returns how many seeds in all, at least one more than these, tell a mean of this size from 0 in four
    cases of five, if the spread is what it is among these; 0 where these tell it, infinity for more than
    `MANY`, NaN for fewer than two values.

    Args:
        values: a difference in each seed.
        level: what the probability must reach, see `level_left`.

    Source: the usual formula, n >= ((t_{1 - level / 2} + t_.8) sd / mean)^2, with Student's t of n - 1
    degrees of freedom; with so few values a rough guide.
    """
    from scipy.stats import t as student  # slow to import, and of no use to other verbs

    seeds = over_seeds(values)
    if math.isnan(seeds.p):
        return math.nan
    if seeds.p <= level:
        return 0.0
    n = np.arange(len(values) + 1, MANY + 1)
    wanted = student.ppf(1 - level / 2, n - 1) + student.ppf(0.8, n - 1)
    enough = n[abs(seeds.mean) * np.sqrt(n) >= wanted * np.std(values, ddof=1)]
    return float(enough[0]) if seeds.mean and len(enough) else math.inf
