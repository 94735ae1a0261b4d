"""Silver tags: a teacher's tags measured against gold, and chosen as labels.

What is chosen is written as a file of tags and read like any other (`detmtl.data.tags`).
Letters: I pictures, T tags.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detmtl.data.joined import told_tags
from detmtl.data.source import Source
from detmtl.data.tags import BoxTags, TagClasses, TagFile
from detmtl.silver.audit import audit_folder
from detmtl.silver.calibration import Calibration, fit_calibration
from detmtl.silver.parts import atomic_write
from detmtl.silver.pictures import Pictures
from detmtl.silver.some_store import SomeStore, single
from detmtl.silver.tag_audit import SCHEMA, TagAudit
from detmtl.silver.tag_measures import DOUBTFUL, SHOWN, TagMeasures
from detmtl.silver.tag_policy import TagMeaning, TagPolicy, TagSelection
from detmtl.silver.tag_stack import TagStack
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

VERSION = 2
"""Part of every policy's hash: raise it when the same policy gives other labels."""


def audit_tags(store: SomeStore, gold: Source, classes: TagClasses) -> TagAudit:
    """Compares a store with gold tags; kept as `audit/<gold hash>/tags.json` in the store.

    Raises:
        InputError: none of gold's pictures is in the store, or gold has no tags.
    """
    if gold.tags is None:
        raise InputError(f"source '{gold.name}': has no tags to audit against")
    meaning, names = TagMeaning.of(store.card, classes), classes.label_space().names
    truths: dict[str, tuple[int, np.ndarray]] = {}
    for i, content_hash in enumerate(gold.hashes()):
        truth = gold.tags.labels(i, gold.boxes(i) if isinstance(gold.tags, BoxTags) else None)
        if truth is not None and truth.grade == Grade.GOLD:
            shown, looked = truth.targets.numpy() >= 0.5, truth.weights.numpy() > 0
            truths[content_hash] = (i, np.where(looked, shown, -1).astype(np.int8))
    if not truths:
        raise InputError(f"source '{gold.name}': has no tags by people to audit against")
    found = {r.content_hash: meaning(r) for r in store.records_of(truths)}
    if not found:
        raise InputError(
            f"{store.path}: has none of the {len(truths)} pictures of source '{gold.name}' that have tags; "
            "let the teacher annotate them into this store first"
        )
    order = sorted(found, key=lambda content_hash: truths[content_hash][0])
    facts = [SCHEMA, store.card.name, classes.model_dump(mode="json"), sorted(truths)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for content_hash in sorted(truths):
        digest.update(truths[content_hash][1].tobytes())
    result = TagAudit(
        tags=names,
        known=meaning.known,
        missing=len(truths) - len(found),
        places=np.array([truths[h][0] for h in order], dtype=np.int64),
        said=np.stack([found[h][0] for h in order]),
        whole=np.stack([found[h][1] for h in order]),
        truth=np.stack([truths[h][1] for h in order]),
        gold_hash=digest.hexdigest()[:16],
        store_digest=store.digest(),
    )
    result.save(audit_folder(store.path, result.gold_hash) / "tags.json")
    return result


@dataclass(frozen=True)
class ChosenTags:
    """What a store of tags means, and which of its tags become labels.

    Attributes:
        store: of a teacher of tags, or those of several as one.
        classes: what the teacher's classes mean.
        policy: of the selection.
    """

    store: SomeStore
    classes: TagClasses
    policy: TagSelection

    @property
    def settings(self) -> TagSelection:
        """The policy as the user gave it."""
        return self.policy

    @property
    def names(self) -> tuple[str, ...]:
        """Of the T tags."""
        return self.classes.label_space().names

    def audit(self, gold: Source) -> TagAudit:
        """Compares the store with gold; see `audit_tags`."""
        return audit_tags(self.store, gold, self.classes)

    def abstains(self, audit: TagAudit) -> bool:
        """Returns whether the teacher has no say among others, see `ChosenMaps.abstains`."""
        return self.policy.calibration.method != "none" and audit.tells_nothing

    def measures(self, audit: TagAudit) -> TagMeasures:
        """Returns what the audit says at the policy's thresholds.

        Raises:
            InputError: as `TagPolicy.of`.
        """
        return TagMeasures(audit, TagPolicy.of(self.store.path, audit.tags, self.policy, audit))

    def select(self, pool: Source, audit: TagAudit | None = None) -> Path:
        """Returns the folder (`select/<policy hash>/` in the store) of the chosen tags: `tags.json`, with
        `policy.json` beside it.

        Raises:
            InputError: a class of the teacher is unmapped, the settings need an audit, gold is too little
                to calibrate, or no picture of the pool is in the store.
        """
        store, names = self.store, self.names
        meaning = TagMeaning.of(store.card, self.classes)
        policy = TagPolicy.of(store.path, names, self.policy, audit)
        facts = {
            "version": VERSION,
            "teacher": store.card.name,
            "store": store.digest(),
            "classes": self.classes.model_dump(mode="json"),
            "pictures": Pictures.of_sources([pool], Path(pool.files.folder)).digest(),
            "audit": None if audit is None else audit.digest(),
            "settings": self.policy.model_dump(mode="json"),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        path = store.path / "select" / key / "tags.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path.with_name("policy.json"), json.dumps(facts, indent=1).encode())
            chosen = _chosen(store, pool, meaning, policy, names, audit)
            atomic_write(path, json.dumps(chosen).encode())
        return path.parent

    def read(self, pool: Source, folder: Path) -> Source:
        """Returns the pool with what `select` wrote: silver where it has no tags of people; of tags that
        follow from their boxes, silver for those that they did not look for. Tags of a model that it came
        with are left where the teacher has none."""
        written = TagFile(file="tags.json", missing="absent")
        # A teacher that does not know a tag has not looked for it: the file lists those that it knows.
        own_names = TagClasses(classes=list(self.names))
        silver = written.load(pool.files, folder, own_names, f"silver of source '{pool.name}'")
        tags, own = silver, told_tags(pool)
        if own is not None:
            of_people = replace(own, present=own.by_people())
            fill = of_people.completed if isinstance(pool.tags, BoxTags) else of_people.filled
            tags = fill(silver).filled(own)
        return replace(pool, tags=tags, grade=Grade.SILVER)

    def over(self, others: Sequence["ChosenTags"], audits: Sequence[TagAudit]) -> "ChosenTags":
        """Returns the mean of the calibrated scores of this teacher and of others, to which the thresholds
        apply; see `ChosenMaps.over`.

        Raises:
            InputError: gold is too little to calibrate.
        """
        stores = [single(one.store) for one in (self, *others)]
        meanings = [TagMeaning.of(store.card, self.classes) for store in stores]
        method = self.policy.calibration
        calibrations = [
            Calibration.none(len(self.names))
            if method.method == "none"
            else fit_calibration(audit.evidence, method, f"teacher '{store.card.name}'")
            for store, audit in zip(stores, audits, strict=True)
        ]
        fused = TagStack(tuple(stores), tuple(meanings), tuple(calibrations), self.names)
        own = TagClasses(classes=list(self.names), unmapped="drop")
        return ChosenTags(fused, own, self.policy)


def _chosen(
    store: SomeStore,
    pool: Source,
    meaning: TagMeaning,
    policy: TagPolicy,
    names: Sequence[str],
    audit: TagAudit | None,
) -> dict[str, object]:
    """Returns the file of tags."""
    known = np.flatnonzero(meaning.known).tolist()
    weights = word_weights(policy, audit)
    pictures: dict[str, list[int]] = {}
    for i, content_hash in enumerate(pool.hashes()):
        pictures.setdefault(content_hash, []).append(i)
    images = []
    for record in store.records_of(pictures):
        said, whole = meaning(record)
        words = policy.words(said, whole)
        row: dict[str, object] = {
            "tags": [names[t] for t in known if words[t] == SHOWN],
            "weights": {names[t]: round(float(weights[words[t], t]), 4) for t in known},
        }
        if policy.settings.soft_targets:
            targets = policy.targets(said)
            row["scores"] = {
                names[t]: round(float(targets[t]), 5) for t in known if words[t] != DOUBTFUL
            }
        images += [{"file_name": pool.files.name(i), **row} for i in pictures[record.content_hash]]
    if not images:
        raise InputError(
            f"{store.path}: has none of the pictures of source '{pool.name}'; let the teacher annotate "
            "them into this store first"
        )
    images.sort(key=lambda row: row["file_name"])
    return {"grade": "silver", "tags": [names[t] for t in known], "images": images}


def word_weights(policy: TagPolicy, audit: TagAudit | None) -> np.ndarray:
    """Returns (3, T): the loss weight of each tag by what the policy calls it, see `TagPolicy.words`."""
    absent = shown = np.ones(len(policy.low))
    if audit is not None and policy.settings.weight == "audit":
        absent, shown = TagMeasures(audit, policy).confirmed()
    return np.stack([absent, np.zeros(len(absent)), shown])
