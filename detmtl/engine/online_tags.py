"""Mode online's tags: those of the averaged model, chosen as those of a store are."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detmtl.data.source import Source
from detmtl.data.tags import TagClasses, Tags
from detmtl.engine.online_kind import ONLINE, Choice, Kind
from detmtl.silver.audit_gates import LEAST_PICTURES
from detmtl.silver.calibration import TooLittleEvidence, require_package
from detmtl.silver.store import Store
from detmtl.silver.tag_audit import TagAudit
from detmtl.silver.tag_measures import SHOWN
from detmtl.silver.tag_policy import TagPolicy, TagSelection
from detmtl.silver.tag_record import TagRecord
from detmtl.silver.tags import audit_tags, word_weights
from detmtl.structures.labels import Grade, Labels, TagLabels
from detmtl.structures.sample import ImageInfo


class OnlineTags(Kind):
    """Tags.

    Args:
        task: name of the task of tags.
        classes: the T names.
        select: the policy.
        known: the tags of which the model has learned; None: all.
    """

    written = "tags"

    def __init__(
        self,
        task: str,
        classes: Sequence[str],
        select: TagSelection,
        known: Collection[str] | None = None,
    ):
        super().__init__(task, classes, known=known)
        self.select = select

    def judged(self, gold: Source) -> np.ndarray:
        """Returns (I,) bool, of which pictures people told tags."""
        if not isinstance(gold.tags, Tags):
            return np.zeros(len(gold), dtype=bool)
        return np.asarray(gold.tags.by_people() & (gold.tags.weights > 0).any(axis=1))

    def refuse(self, chosen: Source, gold: Source) -> None:
        """Raises InputError where a package is missing."""
        if self.select.needs_probability(self.classes):
            require_package(self.select.calibration.method)

    def record(self, found: Labels, picture: Mapping[str, Any]) -> TagRecord:
        """Returns the probability of each tag."""
        assert isinstance(found, TagLabels)
        return TagRecord(scores=found.targets.numpy(), **picture)

    def audit(self, store: Store, gold: Source) -> TagAudit:
        """Returns the tags against gold's."""
        return audit_tags(store, gold, TagClasses(classes=list(self.classes)))

    def choice(self, audit: TagAudit | None) -> Choice:
        """Returns what makes labels of probabilities: shown, absent or unknown, each with its weight."""
        known = self.known
        if audit is not None and not known.all():
            high = TagPolicy.of(ONLINE, self.classes, self.select, audit).high
            right = ((audit.truth == 1) & (audit.said >= high)).sum(axis=0)
            known = known | (right >= LEAST_PICTURES)
            audit = audit.limited_to(known)  # what it makes of the others says nothing of these
        policy = TagPolicy.of(ONLINE, self.classes, self.select, audit)
        if audit is not None and audit.tells_nothing and self.select.weight == "audit":
            raise TooLittleEvidence(f"online.select_tags.weight: audit: {audit.found}")
        weights = word_weights(policy, audit) * known
        everything, tags = np.ones(len(self.classes), dtype=bool), np.arange(len(self.classes))

        def choose(found: Labels, info: ImageInfo) -> TagLabels:
            assert isinstance(found, TagLabels)
            said = found.targets.numpy()
            words = policy.words(said, everything)
            targets = policy.targets(said) if self.select.soft_targets else words == SHOWN
            return TagLabels(
                torch.from_numpy(np.asarray(targets, dtype=np.float32)),
                torch.from_numpy(weights[words, tags].astype(np.float32)),
                Grade.SILVER,
            )

        return choose
