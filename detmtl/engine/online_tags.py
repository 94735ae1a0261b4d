"""Mode online's tags: those of the averaged model, chosen as those of a store are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detmtl.data.source import Source
from detmtl.data.tags import TagClasses, Tags
from detmtl.engine.online_kind import Choice, Kind
from detmtl.silver.calibration import require_package
from detmtl.silver.store import Store
from detmtl.silver.tag_audit import TagAudit
from detmtl.silver.tag_measures import SHOWN
from detmtl.silver.tag_policy import TagPolicy, TagSelection
from detmtl.silver.tag_record import TagRecord
from detmtl.silver.tags import audit_tags, word_weights
from detmtl.structures.labels import Grade, Labels, TagLabels


class OnlineTags(Kind):
    """Tags.

    Args:
        task: name of the task of tags.
        classes: the T names.
        select: the policy.
    """

    written = "tags"

    def __init__(self, task: str, classes: Sequence[str], select: TagSelection):
        super().__init__(task, classes)
        self.select = select

    def judged(self, gold: Source) -> np.ndarray:
        """Returns (I,) bool, of which pictures people told tags."""
        return gold.tags.present if isinstance(gold.tags, Tags) else np.zeros(len(gold), dtype=bool)

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
        path = Path("the online teacher")
        policy = TagPolicy.of(path, self.classes, self.select, audit)
        weights = word_weights(policy, audit)
        everything, tags = np.ones(len(self.classes), dtype=bool), np.arange(len(self.classes))

        def choose(found: Labels) -> TagLabels:
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
