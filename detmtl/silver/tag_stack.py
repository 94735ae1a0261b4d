"""Tags of several teachers as one: the mean of what they say, calibrated.

Letters: N teachers, T tags.
"""

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from detmtl.silver.calibration import Calibration
from detmtl.silver.card import TeacherCard
from detmtl.silver.some_store import together
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagMeaning
from detmtl.silver.tag_record import TagRecord


@dataclass(frozen=True, eq=False)
class TagStack:
    """Stores of N teachers of tags, to be read like one store.

    Attributes:
        stores: of the teachers.
        meanings: of their classes.
        calibrations: of their scores, which have nothing in common before.
        names: of the T tags.
    """

    stores: tuple[Store, ...]
    meanings: tuple[TagMeaning, ...]
    calibrations: tuple[Calibration, ...]
    names: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where audits and selections are kept."""
        return self.stores[0].path / "fused" / self.digest()

    @property
    def known(self) -> np.ndarray:
        """(T,) bool, which tags any teacher knows."""
        return np.any([meaning.known for meaning in self.meanings], axis=0)

    @property
    def card(self) -> TeacherCard:
        """One for all together; its classes are the tags that any teacher knows."""
        return TeacherCard(
            name="+".join(store.card.name for store in self.stores),
            weights_sha256=hashlib.sha256(self.digest().encode()).hexdigest(),
            classes=tuple(n for n, known in zip(self.names, self.known, strict=True) if known),
            preprocessing="mean of calibrated scores",
            task="tags",
        )

    def digest(self) -> str:
        """Returns a hash of all that the labels depend on."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        facts = [
            [store.digest() for store in self.stores],
            [calibration.digest() for calibration in self.calibrations],
            [meaning.members.astype(int).tolist() for meaning in self.meanings],
            self.names,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def records_of(self, hashes: Container[str]) -> Iterator[TagRecord]:
        """Yields the records of those pictures that all teachers have labelled: of each tag the mean
        over the teachers that speak of all of it, NaN where none does."""
        tags, known = np.arange(len(self.names)), self.known
        for records in together(self.stores, hashes):
            rows = []
            layers = zip(self.meanings, self.calibrations, records, strict=True)
            for meaning, calibration, record in layers:
                said, whole = meaning(record)
                worth = calibration(np.nan_to_num(said), tags)
                rows.append(np.where(whole, worth, np.nan))
            speak = (~np.isnan(rows)).sum(axis=0)
            mean = np.nansum(rows, axis=0) / np.where(speak, speak, np.nan)
            yield replace(records[0], scores=np.round(mean[known], 5).astype(np.float32))
