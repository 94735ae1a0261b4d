"""Audit and selection of maps and tags, for stores whose teacher does not write boxes."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from detmtl.data.maps import MapClasses
from detmtl.data.source import Source
from detmtl.data.tags import TagClasses
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.some_store import SomeStore
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import ChosenTags
from detmtl.structures.errors import InputError


class Chosen(Protocol):
    """What a store means, and which of it becomes labels: `ChosenMaps` or `ChosenTags`. What one has made,
    an audit say, goes back to one of the same kind."""

    @property
    def store(self) -> SomeStore:
        """Of a teacher, or those of several as one."""
        ...

    @property
    def policy(self) -> MapSelection | TagSelection:
        """Of the selection."""
        ...

    @property
    def settings(self) -> MapSelection | TagSelection:
        """The policy as the user gave it."""
        ...

    def audit(self, gold: Source) -> Any:
        """Compares the store with gold."""
        ...

    def abstains(self, audit: Any) -> bool:
        """Returns whether the teacher has no say among others, because gold tells nothing of it."""
        ...

    def measures(self, audit: Any) -> Any:
        """Returns what the audit says at the policy's thresholds."""
        ...

    def select(self, pool: Source, audit: Any) -> Path:
        """Returns the folder of the chosen labels; `audit` may be None."""
        ...

    def read(self, pool: Source, folder: Path) -> Source:
        """Returns the pool with the labels that `select` wrote, where it has none of its own."""
        ...

    def over(self, others: Sequence[Any], audits: Sequence[Any]) -> Any:
        """Returns the labels of this teacher and of others, less trusted ones, as those of one."""
        ...


def chosen_of(
    store: Store,
    maps: MapClasses | None,
    tags: TagClasses | None,
    map_policy: MapSelection,
    tag_policy: TagSelection,
) -> Chosen:
    """Returns what a store of maps or tags means, and which of it becomes labels.

    Raises:
        InputError: the classes of its task are not given.
    """
    task = store.card.task
    if task == "maps" and maps is not None:
        return ChosenMaps(store, maps, map_policy)
    if task != "maps" and tags is not None:
        return ChosenTags(store, tags, tag_policy)
    raise InputError(
        f"teacher '{store.card.name}': writes {task}, but data.{task} is not given; list its classes"
    )


def stack(alone: Sequence[Chosen], audits: Sequence[Any]) -> Chosen:
    """Returns the labels of several teachers as those of one.

    Maps are laid one under the other in the order of the teachers, each cut down by its own thresholds;
    tags are the mean of the teachers' calibrated scores, to which the thresholds apply. A teacher of which
    gold tells nothing abstains, and a warning says so; nobody looks for what it alone knows.

    Args:
        alone: of each teacher, the most trusted first; all of one task.
        audits: of each.

    Raises:
        InputError: gold tells nothing of any teacher or is too little to calibrate, or the policy names
            what is no class.
    """
    told, kept = [], []
    for chosen, audit in zip(alone, audits, strict=True):
        if chosen.abstains(audit):
            card = chosen.store.card
            told.append(
                f"teacher '{card.name}' abstains: {audit.found}; that does not tell what its {card.task} "
                "are worth: give the audit gold of these, or set calibration: none"
            )
        else:
            kept.append((chosen, audit))
    if not kept:
        raise InputError(told)
    for sentence in told:
        warnings.warn(sentence, stacklevel=2)
    (first, _), *others = kept
    return first.over([chosen for chosen, _ in others], [audit for _, audit in kept])
