"""What the user may not expect of a selection: sentences about what it came to.

Letters: C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from detmtl.silver.audit import Audit
from detmtl.silver.card import TeacherCard
from detmtl.silver.ensemble import Ensemble
from detmtl.silver.policy import Policy, SelectionSettings
from detmtl.structures.classes import LabelSpace

_MOST = 5
"""Classes that a sentence names."""
_EXPECTED = 10
"""That so many boxes of a class are all missing is no chance."""


def remarks(
    stats: Mapping[str, Any],
    ensemble: Ensemble,
    settings: SelectionSettings,
    audit: Audit | None,
) -> Iterator[str]:
    """Yields what is missing in a selection, or rests on less than it seems; a sentence each.

    Args:
        stats: the selection's `stats.json`.
        ensemble: what was chosen from.
        settings: the policy.
        audit: of just that.
    """
    if left_out := stats["pictures_not_labelled"]:
        yield (
            f"{left_out} of {_asked_for(stats)} pictures have not been labelled by {who(ensemble)} and "
            "are left out"
        )
    names, known = np.array(ensemble.classes.names), ensemble.looked_for
    silent = known & [stats["per_class"][name]["ignored_from"] is None for name in names]
    if silent.any():
        yield (
            f"no score is enough for a label of {_listed(names[silent])}: silver says neither where such "
            "objects are nor where not (coverage 0); ask for less, or let doubtful boxes be ignored "
            "(ignore_from)"
        )
    cards = [store.card for store in ensemble.stores]
    yield from _unlearned(cards, ensemble.classes)
    if audit is None or settings.coverage is not None:
        yield from _partly(cards, ensemble.classes)
    if audit is None:
        return
    rows = stats["per_class"].values()
    cover = np.array([row["coverage"] for row in rows])
    missed = np.array([row["labels"] + row["ignored"] == 0 for row in rows])
    missed &= stats["pictures"] * audit.density * cover >= _EXPECTED
    if missed.any():
        yield (
            f"not one box of {_listed(names[missed])} in {stats['pictures']} pictures, where gold lets "
            f"expect {_EXPECTED} or more: unless there are none, silver teaches them as background; lower "
            "the threshold (per_class)"
        )
    unsearched = known & (audit.searched == 0)
    if unsearched.any() and (settings.coverage is None or settings.needs_audit()):
        yield (
            f"in none of gold's {audit.pictures} pictures has anybody looked for "
            f"{_listed(names[unsearched])}: what gold would say of it is taken from all classes "
            "together; audit with gold that was searched for it, or give thresholds and coverage as "
            "numbers"
        )


def _unlearned(cards: Sequence[TeacherCard], classes: LabelSpace) -> Iterator[str]:
    """Yields which classes a teacher has by name alone."""
    for card in cards:
        asked, looked = classes.known(card.unsearched), classes.known(card.searched)
        never = [n for n, a, b in zip(classes.names, asked, looked, strict=True) if a and not b]
        if never:
            yield (
                f"teacher '{card.name}' has the class {_listed(never)}, but nobody looked for such objects "
                "in what it learned from: it abstains (coverage 0)"
            )


def _partly(cards: Sequence[TeacherCard], classes: LabelSpace) -> Iterator[str]:
    """Yields which classes teachers, all together, know a part of: gold alone tells how much they miss."""
    names = " and ".join(f"teacher '{card.name}'" for card in cards)
    know, count = ("know", "count") if len(cards) > 1 else ("knows", "counts")
    for name, (some, rest) in classes.partly(n for card in cards for n in card.searched).items():
        if name in rest:  # words for one class, as a class that lists its own name has
            continue
        yield (
            f"of class '{name}' {names} {know} {', '.join(some)} but not {', '.join(rest)}, and {count} as "
            "looking for the class; unless they are words for the same, give gold to audit with, whose "
            "recall tells how much is missed"
        )


def nothing_left(stats: Mapping[str, Any], ensemble: Ensemble, policy: Policy) -> str:
    """Returns why a policy leaves no picture, and what to change."""
    settings, reasons, remedies = policy.settings, [], []
    if dense := stats["pictures_too_dense"]:
        assert policy.expected is not None
        reasons.append(
            f"{dense} have more labels than max_density ({settings.max_density:g}) times the "
            f"{np.nansum(policy.expected):.3g} boxes that gold has in a picture"
        )
        remedies.append("selection.max_density")
    if empty := stats["empty_pictures_left_out"]:
        reasons.append(
            f"{empty} have no label at these thresholds, and max_empty ({settings.max_empty:g}) keeps "
            "only so many per picture with one"
        )
        remedies.append("selection.max_empty")
    if left_out := stats["pictures_not_labelled"]:
        reasons.append(f"{left_out} have not been labelled by {who(ensemble)}")
    return (
        f"{ensemble.path}: of {_asked_for(stats)} pictures none is left: {'; '.join(reasons)}; raise or "
        f"leave out {' and '.join(remedies)}, or see whether the thresholds fit"
    )


def who(ensemble: Ensemble) -> str:
    """Returns what to call those who label."""
    return "every teacher" if ensemble.several else "the teacher"


def _asked_for(stats: Mapping[str, Any]) -> int:
    parts = ("", "_not_labelled", "_too_dense")
    return sum(stats[f"pictures{p}"] for p in parts) + stats["empty_pictures_left_out"]


def _listed(names: np.ndarray | Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more classes" if len(names) > _MOST else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST]) + more
