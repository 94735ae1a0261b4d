"""Audit and selection of maps and tags, for stores whose teacher does not write boxes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detmtl.data.maps import MapClasses
from detmtl.data.source import Source
from detmtl.data.tags import TagClasses
from detmtl.silver.calibration import Calibration, fit_calibration
from detmtl.silver.map_audit import MapAudit
from detmtl.silver.map_measures import MapMeasures
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.map_stack import MapStack
from detmtl.silver.maps import (
    audit_maps,
    maps_of,
    measure_maps,
    policy_of,
    select_maps,
    settings_of,
    with_silver_maps,
)
from detmtl.silver.some_store import SomeStore
from detmtl.silver.store import Store
from detmtl.silver.tag_audit import TagAudit
from detmtl.silver.tag_measures import TagMeasures
from detmtl.silver.tag_policy import TagMeaning, TagSelection
from detmtl.silver.tag_stack import TagStack
from detmtl.silver.tags import audit_tags, measure_tags, select_tags, with_silver_tags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import MapLabels


@dataclass(frozen=True)
class Others:
    """What a store of maps or of tags means, and which of it becomes labels.

    Attributes:
        store: of a teacher of maps or tags, or those of several as one.
        classes: what the teacher's classes mean.
        policy: of the selection.
    """

    store: SomeStore
    classes: MapClasses | TagClasses
    policy: MapSelection | TagSelection

    @classmethod
    def of(
        cls,
        store: Store,
        maps: MapClasses | None,
        tags: TagClasses | None,
        map_policy: MapSelection,
        tag_policy: TagSelection,
    ) -> "Others":
        """Picks what is of the store's task.

        Raises:
            InputError: the classes of the task are not given.
        """
        task = store.card.task
        classes, policy = (maps, map_policy) if task == "maps" else (tags, tag_policy)
        if classes is None:
            raise InputError(
                f"teacher '{store.card.name}': writes {task}, but data.{task} is not given; list its classes"
            )
        return cls(store, classes, policy)

    @property
    def settings(self) -> MapSelection | TagSelection:
        """The policy as the user gave it; of stacked maps `policy` is what is left of it."""
        if isinstance(self.policy, MapSelection):
            return settings_of(self.store, self.policy)
        return self.policy

    def abstains(self, audit: MapAudit | TagAudit) -> bool:
        """Returns whether the teacher has no say among others, because gold tells nothing of it.

        With calibration `none` what teachers say is taken as it is, whatever gold tells, as boxes are.
        """
        return self.policy.calibration.method != "none" and audit.tells_nothing

    def audit(self, gold: Source) -> MapAudit | TagAudit:
        """Compares the store with gold; see `audit_maps` and `audit_tags`."""
        if isinstance(self.classes, MapClasses):
            assert isinstance(self.policy, MapSelection)
            return audit_maps(self.store, gold, self.classes, self.policy)
        return audit_tags(self.store, gold, self.classes)

    def measures(self, audit: MapAudit | TagAudit) -> MapMeasures | TagMeasures:
        """Returns what the audit says at the policy's thresholds.

        Raises:
            InputError: gold is too little to calibrate, or the policy names what is no class.
        """
        if isinstance(audit, MapAudit):
            assert isinstance(self.classes, MapClasses) and isinstance(self.policy, MapSelection)
            return measure_maps(self.store, self.classes, self.policy, audit)
        assert isinstance(self.policy, TagSelection)
        return measure_tags(self.store, self.policy, audit)

    def maps(self, gold: Source, positions: Sequence[int], audit: MapAudit) -> dict[int, MapLabels]:
        """Returns the maps that the policy makes of some of gold's pictures, by their positions."""
        assert isinstance(self.classes, MapClasses) and isinstance(self.policy, MapSelection)
        return maps_of(self.store, gold, positions, self.classes, self.policy, audit)

    def read(self, pool: Source, folder: Path) -> Source:
        """Returns the pool with the labels that `select` wrote, where it has none of its own."""
        if isinstance(self.classes, MapClasses):
            return with_silver_maps(pool, folder, self.classes)
        return with_silver_tags(pool, folder, self.classes)

    def select(self, pool: Source, audit: MapAudit | TagAudit | None) -> Path:
        """Returns the folder of the chosen labels; see `select_maps` and `select_tags`."""
        if isinstance(self.classes, MapClasses):
            assert isinstance(self.policy, MapSelection) and not isinstance(audit, TagAudit)
            return select_maps(self.store, pool, self.classes, self.policy, audit)
        assert isinstance(self.policy, TagSelection) and not isinstance(audit, MapAudit)
        return select_tags(self.store, pool, self.classes, self.policy, audit)


def stack(
    stores: Sequence[Store], alone: Sequence[Others], audits: Sequence[MapAudit | TagAudit]
) -> Others:
    """Returns the labels of several teachers as those of one.

    Maps are laid one under the other in the order of the teachers, each cut down by its own thresholds;
    tags are the mean of the teachers' calibrated scores, to which the thresholds apply. A teacher of which
    gold tells nothing abstains, and a warning says so; nobody looks for what it alone knows.

    Args:
        stores: of the teachers, the most trusted first.
        alone: what each store means by itself.
        audits: of each store.

    Raises:
        InputError: gold tells nothing of any teacher or is too little to calibrate, or the policy names
            what is no class.
    """
    stores, audits = _with_a_say(stores, alone, audits)
    classes, settings = alone[0].classes, alone[0].policy
    names = classes.label_space().names
    if isinstance(classes, MapClasses):
        assert isinstance(settings, MapSelection)
        policies = [
            policy_of(store, classes, settings, audit)
            for store, audit in zip(stores, audits, strict=True)
            if isinstance(audit, MapAudit)
        ]
        # What is left of them are labels, whatever their confidence was.
        rest = settings.model_copy(update={"confidence": 0.0, "per_class": {}, "border": 0})
        return Others(MapStack(tuple(stores), tuple(policies), names), classes, rest)
    assert isinstance(settings, TagSelection)
    meanings = [TagMeaning.of(store.card, classes) for store in stores]
    calibrations = [
        Calibration.none(len(names))
        if settings.calibration.method == "none"
        else fit_calibration(audit.evidence, settings.calibration, f"teacher '{store.card.name}'")
        for store, audit in zip(stores, audits, strict=True)
    ]
    own = TagClasses(classes=list(names), unmapped="drop")
    fused = TagStack(tuple(stores), tuple(meanings), tuple(calibrations), names)
    return Others(fused, own, settings)


def _with_a_say(
    stores: Sequence[Store], alone: Sequence[Others], audits: Sequence[MapAudit | TagAudit]
) -> tuple[list[Store], list[MapAudit | TagAudit]]:
    """Returns the stores and audits of the teachers that do not abstain; warns of the others.

    Raises:
        InputError: all abstain.
    """
    told, kept = [], []
    for store, others, audit in zip(stores, alone, audits, strict=True):
        if others.abstains(audit):
            told.append(
                f"teacher '{store.card.name}' abstains: {audit.found}; that does not tell what its "
                f"{store.card.task} are worth: give the audit gold of these, or set calibration: none"
            )
        else:
            kept.append((store, audit))
    if not kept:
        raise InputError(told)
    for sentence in told:
        warnings.warn(sentence, stacklevel=3)
    return [store for store, _ in kept], [audit for _, audit in kept]
