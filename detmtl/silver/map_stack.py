"""Maps of several teachers as one: laid one under the other, the most trusted on top.

Letters: T teachers, C classes, H and W pixels.
"""

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from detmtl.silver.card import TeacherCard
from detmtl.silver.map_policy import MapPolicy, Meaning
from detmtl.silver.map_record import MapRecord
from detmtl.silver.some_store import together
from detmtl.silver.store import Store
from detmtl.structures.labels import OTHER, UNKNOWN


@dataclass(frozen=True, eq=False)
class MapStack:
    """Stores of T teachers of maps, to be read like one store of hard maps in the label space's classes.

    Attributes:
        stores: the most trusted teacher's first.
        policies: which pixels of each are labels.
        names: of the C classes.
    """

    stores: tuple[Store, ...]
    policies: tuple[MapPolicy, ...]
    names: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where audits and selections are kept."""
        return self.stores[0].path / "fused" / self.digest()

    @property
    def card(self) -> TeacherCard:
        """One for all together."""
        return TeacherCard(
            name="+".join(store.card.name for store in self.stores),
            weights_sha256=hashlib.sha256(self.digest().encode()).hexdigest(),
            classes=self.names,
            preprocessing="laid one under the other",
            task="maps",
        )

    @property
    def meaning(self) -> Meaning:
        """What the pixels mean: classes are the label space's already."""
        lookup = np.full(256, UNKNOWN, np.uint8)
        lookup[: len(self.names)] = np.arange(len(self.names))
        lookup[OTHER] = OTHER
        meanings = [policy.meaning for policy in self.policies]
        known = np.any([m.known for m in meanings], axis=0)
        return Meaning(lookup, known, np.any([m.gives for m in meanings], axis=0), 0)

    def digest(self) -> str:
        """Returns a hash of all that the labels depend on."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        facts = [[store.digest(), policy.digest()] for store, policy in self._layers()]
        return hashlib.sha256(json.dumps([facts, self.names]).encode()).hexdigest()[:16]

    def _layers(self) -> Iterator[tuple[Store, MapPolicy]]:
        return zip(self.stores, self.policies, strict=True)

    def records_of(self, hashes: Container[str]) -> Iterator[MapRecord]:
        """Yields the records of those pictures that all teachers have labelled."""
        known = np.stack([policy.meaning.known for policy in self.policies])
        for records in together(self.stores, hashes):
            said = [policy(record) for policy, record in zip(self.policies, records, strict=True)]
            yield replace(records[0], classes=stacked(said, known), confidence=None)


def stacked(said: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    """Returns the classes (H, W) uint8 of a picture that several teachers say.

    Of those who give a pixel a class the most trusted counts, unless a teacher whom we trust more knows
    the class and takes the pixel for background: then it is unknown. It is background if all say so.

    Args:
        said: T of (H, W) uint8, a class, `OTHER` or `UNKNOWN`; the most trusted first.
        known: (T, C) bool, which classes each teacher knows.
    """
    out = np.full(said[0].shape, UNKNOWN, np.uint8)
    denies = np.zeros((len(said), 256), dtype=bool)
    denies[:, : known.shape[1]] = known
    waiting = np.ones(out.shape, dtype=bool)
    for t, own in enumerate(said):
        named = waiting & (own < OTHER)
        denied = np.zeros(out.shape, dtype=bool)
        for u in range(t):
            denied |= (said[u] == OTHER) & denies[u][own]
        out = np.where(named & ~denied, own, out)
        waiting &= ~named
    return np.where(np.all([own == OTHER for own in said], axis=0), np.uint8(OTHER), out)
