"""Mode online's maps: pixels of the averaged model, chosen as those of a store are."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from detmtl.data.maps import MapClasses
from detmtl.data.source import Source
from detmtl.engine.online_kind import ONLINE, Choice, Kind
from detmtl.silver.calibration import TooLittleEvidence, require_package
from detmtl.silver.card import TeacherCard
from detmtl.silver.map_audit import LEAST_MAPS, MapAudit
from detmtl.silver.map_measures import MapMeasures
from detmtl.silver.map_policy import MapPolicy, MapSelection, Meaning
from detmtl.silver.map_record import MapRecord
from detmtl.silver.maps import audit_maps, trusted_only, worth_of
from detmtl.silver.store import Store
from detmtl.silver.thresholds import wants_probability
from detmtl.structures.labels import Grade, Labels, MapLabels
from detmtl.structures.sample import ImageInfo


class OnlineMaps(Kind):
    """Maps.

    Args:
        task: name of the semantic task.
        classes: the C names of its classes.
        select: the policy.
        known: names of the classes of which the model has learned; None: of all.
    """

    written = "maps"

    def __init__(
        self,
        task: str,
        classes: Sequence[str],
        select: MapSelection,
        known: Collection[str] | None = None,
    ):
        super().__init__(task, classes, known=known)
        self.select, self._space = select, MapClasses(classes=list(classes))

    def judged(self, gold: Source) -> np.ndarray:
        """Returns (I,) bool, which pictures have a map by people."""
        return np.zeros(len(gold), dtype=bool) if gold.maps is None else gold.maps.by_people()

    def refuse(self, chosen: Source, gold: Source) -> None:
        """Raises InputError where a package is missing."""
        if wants_probability(self.select.thresholds()):
            require_package(self.select.calibration.method)

    def record(self, found: Labels, picture: Mapping[str, Any]) -> MapRecord:
        """Returns the map with its confidence."""
        assert isinstance(found, MapLabels)
        confidence = None
        if found.weights is not None:
            confidence = np.round(found.weights.numpy() * 255).astype(np.uint8)
        return MapRecord(classes=found.classes.numpy(), confidence=confidence, **picture)

    def audit(self, store: Store, gold: Source) -> MapAudit:
        """Returns the maps against gold's, pixel by pixel."""
        return audit_maps(store, gold, self._space, self.select)

    def choice(self, audit: MapAudit | None) -> Choice:
        """Returns what makes labels of a map: a class for each pixel that is sure enough, its weight, and
        how far background denies each class."""
        known = self.known
        if audit is not None and not known.all():
            policy = MapPolicy.of(ONLINE, self._meaning(), self.classes, self.select, audit)
            # Of fewer pictures what is measured would be that of the other classes.
            known = known | (MapMeasures(audit, policy.limits).confirmed >= LEAST_MAPS)
            audit = audit.limited_to(known)  # what it makes of the others says nothing of these
        policy = MapPolicy.of(ONLINE, self._meaning(known), self.classes, self.select, audit)
        if audit is not None and audit.tells_nothing and self._weighs_by_audit():
            raise TooLittleEvidence(
                f"online.select_maps: weight and coverage: audit: {audit.found}"
            )
        legend, trusted = worth_of(self.classes, policy, audit)
        keep, weights = trusted_only(policy, trusted), np.ones(256, dtype=np.float32)
        for c, weight in (legend.weights or {}).items():
            weights[c] = weight
        coverage = np.array([(legend.coverage or {})[c] for c in legend.categories], np.float32)

        def choose(found: Labels, info: ImageInfo) -> MapLabels:
            assert isinstance(found, MapLabels)
            height, width = found.classes.shape
            picture = {"content_hash": "", "height": height, "width": width}
            scaled = _with_border(policy, max(height / info.height, width / info.width))
            classes = keep[scaled(self.record(found, picture))]
            return MapLabels(
                torch.from_numpy(classes),
                torch.from_numpy(weights[classes]),
                torch.from_numpy(coverage),
                Grade.SILVER,
            )

        return choose

    def _meaning(self, known: np.ndarray | None = None) -> Meaning:
        """Returns what pixels mean of a model that knows these classes (C,) bool; None: all."""
        unsearched = () if known is None else np.array(self.classes)[~known].tolist()
        card = TeacherCard(
            name="averaged",
            weights_sha256="",
            classes=self.classes,
            unsearched=tuple(unsearched),
            preprocessing="",
            task="maps",
        )
        return Meaning.of(card, self._space, self.select)

    def _weighs_by_audit(self) -> bool:
        return self.select.weight == "precision" or self.select.coverage is None


def _with_border(policy: MapPolicy, scale: float) -> MapPolicy:
    """Returns the policy for a map of another size: a border is given in pixels of the picture's file."""
    border = policy.meaning.border
    if border == 0:
        return policy
    return replace(policy, meaning=replace(policy.meaning, border=max(1, round(border * scale))))
