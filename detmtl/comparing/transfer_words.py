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
from dataclasses import dataclass
from typing import Literal

from detmtl.comparing.statistics import Estimate, Word

Name = Literal["helps", "hurts", "trunk too narrow", "duplicate", "cannot tell"]

LOUD = 5.0
"""A gradient so many times another one's drowns it."""
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
        mean: of the differences.
        needed: seeds that would tell an effect of this size; NaN: not known.
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
    mean: float = math.nan
    needed: float = math.nan
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
    if found.needed <= 100:
        advice = f"About {math.ceil(found.needed)} seeds would tell an effect of this size."
    elif not math.isnan(found.needed):
        advice = "It would take more than 100 seeds: for practice there is no effect."
    return Named("cannot tell", "", advice)


def seeds_needed(values: list[float]) -> float:
    """Returns how many seeds tell a mean of this size from 0 at level .05 in four cases of five, if the
    spread is what it is among these; NaN for fewer than two.

    Source: the usual formula ((z_.975 + z_.8) sd / mean)^2; with so few values a rough guide.
    """
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    if mean == 0:
        return math.inf if variance else math.nan
    return max(2.0, 7.85 * variance / mean**2)
