"""Silver tags: a teacher's tags measured against gold, and chosen as labels.

What is chosen is written as a file of tags and read like any other (`detmtl.data.tags`).
Letters: I pictures, T tags, K classes of the teacher.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field, model_validator
from rich.table import Table

from detmtl.data.source import Source
from detmtl.data.tags import BoxTags, TagClasses, TagFile, Tags
from detmtl.silver.audit import wilson
from detmtl.silver.parts import atomic_write
from detmtl.silver.pictures import Pictures
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.settings import Settings

VERSION = 1
"""Part of every policy's hash: raise it when the same policy gives other labels."""

LEAST = 10
"""A tag judged in fewer pictures is judged by all tags together."""


class TagRecord(Protocol):
    """What a store holds of one picture: see `detmtl.silver.tag_record`."""

    content_hash: str
    scores: np.ndarray


class TagSelection(Settings):
    """Which of a teacher's tags become labels, and how much they count.

    A score from `shown_from` on means that the picture shows the tag, one below `absent_below` that it
    does not; between, and where the teacher says nothing, the tag is unknown.
    """

    shown_from: float = Field(default=0.6, ge=0, le=1)
    absent_below: float = Field(default=0.2, ge=0, le=1)
    per_tag: dict[str, tuple[float, float]] = {}
    """Tag -> its own absent_below and shown_from, in this order."""
    soft_targets: bool = False
    """Whether the target is the score, rather than 0 or 1."""
    weight: Literal["audit", "one"] = "audit"
    """Of a label in the loss: the share of such labels that gold confirms, 1 without an audit; or 1."""

    @model_validator(mode="after")
    def _ordered(self) -> "TagSelection":
        for name, (low, high) in {
            "absent_below": (self.absent_below, self.shown_from),
            **self.per_tag,
        }.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"{name}: absent_below is {low} and shown_from {high}; both lie in [0, 1], and the first "
                    "is not the higher one"
                )
        return self

    def thresholds(self, tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (T,) absent_below and (T,) shown_from.

        Raises:
            InputError: `per_tag` names something that is no tag.
        """
        if wrong := [name for name in self.per_tag if name not in tags]:
            raise InputError(f"select_tags.per_tag: {', '.join(wrong)}: no such tag in data.tags")
        default = (self.absent_below, self.shown_from)
        pairs = np.array([self.per_tag.get(name, default) for name in tags], dtype=np.float32)
        return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True, eq=False)
class TagAudit:
    """How a teacher's tags agree with gold's, at the thresholds of a selection.

    Attributes:
        tags: the T names.
        known: (T,) bool, which tags the teacher knows.
        pictures, missing: gold pictures that were compared, and that the store does not have.
        counts: (T, 3, 2) int64: pictures by the teacher's word (absent, unknown, shown) and by gold's
            (absent, shown).
        gold_hash: of gold's pictures and tags.
        store_digest: of the labels that were judged.
    """

    tags: tuple[str, ...]
    known: np.ndarray
    pictures: int
    missing: int
    counts: np.ndarray
    gold_hash: str
    store_digest: str

    def confirmed(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (T,) the share of the teacher's `absent` and (T,) of its `shown` that gold confirms.

        Of tags with fewer than 10 such words that of all tags together.
        """
        return self._share(0, 0), self._share(2, 1)

    def _share(self, word: int, truth: int) -> np.ndarray:
        right, all_words = self.counts[:, word, truth], self.counts[:, word].sum(1)
        pooled = right.sum() / max(1, all_words.sum())
        return np.where(all_words >= LEAST, right / np.maximum(1, all_words), pooled)

    def table(self) -> Table:
        """Returns precision and recall of each tag, with 95 % intervals."""
        left_out = f", {self.missing} more are not labelled" if self.missing else ""
        table = Table(title=f"Silver tags against gold: {self.pictures} pictures{left_out}")
        for column in ("tag", "precision", "recall", "absent and right", "unknown"):
            table.add_column(column, justify="left" if column == "tag" else "right")
        for t, name in enumerate(self.tags):
            counts = self.counts[t]
            if self.known[t] and counts.sum():
                table.add_row(
                    name,
                    _with_interval(counts[2, 1], counts[2].sum()),
                    _with_interval(counts[2, 1], counts[:, 1].sum()),
                    _with_interval(counts[0, 0], counts[0].sum()),
                    f"{counts[1].sum() / counts.sum():.0%}",
                )
        return table

    def problems(self) -> list[str]:
        """Returns reasons not to trust these tags, a sentence each; [] where there are none."""
        shown = self.counts[self.known][:, :, 1].sum()
        if shown < LEAST:
            return [
                f"audit: gold shows the teacher's tags {shown} times; at least {LEAST} are needed to judge"
            ]
        right, words = self.counts[:, 2, 1].sum(), self.counts[:, 2].sum()
        base = shown / max(1, self.counts[self.known].sum())
        if words >= LEAST and right / words <= base:
            return [
                f"audit: of the tags that the teacher calls shown gold confirms {right / words:.0%}, no more "
                f"than chance ({base:.0%}); its tags may be in another order"
            ]
        return []

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        return hashlib.sha256(self._json()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self._json())

    def _json(self) -> bytes:
        fields = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True, eq=False)
class _Meaning:
    """A teacher's scores as tags.

    Attributes:
        members: (T, K) bool.
        low, high: (T,) thresholds.
    """

    members: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, store: Store, classes: TagClasses, settings: TagSelection) -> "_Meaning":
        space = classes.label_space()
        found = space.class_of(store.card.classes, f"teacher '{store.card.name}'")
        members = np.array(found)[None] == np.arange(len(space))[:, None]
        return cls(members, *settings.thresholds(space.names))

    def scores(self, record: TagRecord) -> np.ndarray:
        """Returns (T,) the highest score of each tag's members; NaN where the teacher says nothing, or,
        below `high`, does not say it of all members."""
        own = np.where(self.members, record.scores, -np.inf)
        silent = np.isnan(own).any(1) | ~self.members.any(1)
        best = np.where(np.isnan(own), -np.inf, own).max(1, initial=-np.inf)
        return np.where(silent & ~(best >= self.high), np.nan, best)

    def words(self, scores: np.ndarray) -> np.ndarray:
        """Returns (T,) 0 absent, 1 unknown, 2 shown."""
        return np.where(scores >= self.high, 2, np.where(scores < self.low, 0, 1))


def audit_tags(store: Store, gold: Source, classes: TagClasses, settings: TagSelection) -> TagAudit:
    """Compares a store with gold tags at the selection's thresholds; kept as
    `audit/<gold hash>/tags.json` in the store.

    Raises:
        InputError: none of gold's pictures is in the store, or gold has no tags.
    """
    if gold.tags is None:
        raise InputError(f"source '{gold.name}': has no tags to audit against")
    meaning = _Meaning.of(store, classes, settings)
    names = classes.label_space().names
    hashes = gold.hashes()
    truths = {}
    for i, content_hash in enumerate(hashes):
        truth = gold.tags.labels(i, gold.boxes(i) if isinstance(gold.tags, BoxTags) else None)
        if truth is not None:
            truths[content_hash] = (truth.targets.numpy() >= 0.5, truth.weights.numpy() > 0)
    counts = np.zeros((len(names), 3, 2), np.int64)
    seen = 0
    for record in _records(store):
        if record.content_hash in truths:
            shown, looked = truths[record.content_hash]
            words = meaning.words(meaning.scores(record))
            np.add.at(counts, (np.flatnonzero(looked), words[looked], shown[looked].astype(int)), 1)
            seen += 1
    if not seen:
        raise InputError(
            f"{store.path}: has none of the {len(truths)} pictures of source '{gold.name}' that have tags; "
            "let the teacher annotate them into this store first"
        )
    digest = hashlib.sha256(json.dumps(settings.model_dump(mode="json")).encode())
    for content_hash in sorted(truths):
        digest.update(content_hash.encode())
        digest.update(np.stack(truths[content_hash]).tobytes())
    known = np.asarray(meaning.members.any(axis=1))
    result = TagAudit(
        names, known, seen, len(truths) - seen, counts, digest.hexdigest()[:16], store.digest()
    )
    result.save(store.path / "audit" / result.gold_hash / "tags.json")
    return result


def select_tags(
    store: Store,
    pool: Source,
    classes: TagClasses,
    settings: TagSelection,
    audit: TagAudit | None = None,
) -> Path:
    """Returns the folder (`select/<policy hash>/` in the store) of the chosen tags: `tags.json`, with
    `policy.json` beside it.

    Raises:
        InputError: a class of the teacher is unmapped, or no picture of the pool is in the store.
    """
    meaning, names = _Meaning.of(store, classes, settings), classes.label_space().names
    policy = {
        "version": VERSION,
        "teacher": store.card.name,
        "store": store.digest(),
        "classes": classes.model_dump(mode="json"),
        "pictures": Pictures.of_sources([pool], Path(pool.files.folder)).digest(),
        "audit": None if audit is None else audit.digest(),
        "settings": settings.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()[:16]
    path = store.path / "select" / key / "tags.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path.with_name("policy.json"), json.dumps(policy, indent=1).encode())
        chosen = _chosen(store, pool, meaning, names, settings, audit)
        atomic_write(path, json.dumps(chosen).encode())
    return path.parent


def with_silver_tags(pool: Source, folder: Path, classes: TagClasses) -> Source:
    """Returns the pool with what `select_tags` wrote: silver where it has no tags of its own."""
    written = TagFile(file="tags.json", missing="absent")
    # A teacher that does not know a tag has not looked for it: the file lists those that it knows.
    names = TagClasses(classes=list(classes.label_space().names))
    silver = written.load(pool.files, folder, names, f"silver of source '{pool.name}'")
    tags = _filled(pool.tags, silver) if isinstance(pool.tags, Tags) else silver
    return replace(pool, tags=tags, grade=Grade.SILVER)


def _chosen(
    store: Store,
    pool: Source,
    meaning: _Meaning,
    names: Sequence[str],
    settings: TagSelection,
    audit: TagAudit | None,
) -> dict[str, object]:
    """Returns the file of tags."""
    known = np.flatnonzero(meaning.members.any(1)).tolist()
    absent_weight, shown_weight = np.ones(len(names)), np.ones(len(names))
    if audit is not None and settings.weight == "audit":
        absent_weight, shown_weight = audit.confirmed()
    weights = np.stack([absent_weight, np.zeros(len(names)), shown_weight])  # by word
    pictures: dict[str, list[int]] = {}
    for i, content_hash in enumerate(pool.hashes()):
        pictures.setdefault(content_hash, []).append(i)
    images = []
    for record in _records(store):
        for i in pictures.get(record.content_hash, ()):
            scores = meaning.scores(record)
            words = meaning.words(scores)
            row = {
                "file_name": pool.files.name(i),
                "tags": [names[t] for t in known if words[t] == 2],
                "weights": {names[t]: round(float(weights[words[t], t]), 4) for t in known},
            }
            if settings.soft_targets:
                row["scores"] = {
                    names[t]: round(float(scores[t]), 5) for t in known if words[t] != 1
                }
            images.append(row)
    if not images:
        raise InputError(
            f"{store.path}: has none of the pictures of source '{pool.name}'; let the teacher annotate "
            "them into this store first"
        )
    images.sort(key=lambda row: row["file_name"])
    return {"grade": "silver", "tags": [names[t] for t in known], "images": images}


def _filled(own: Tags, silver: Tags) -> Tags:
    """Returns `own` tags where a picture has some, else silver's."""
    missing = ~own.present & silver.present
    return Tags(
        np.where(missing[:, None], silver.targets, own.targets),
        np.where(missing[:, None], silver.weights, own.weights),
        own.present | silver.present,
        np.where(missing, silver.grade, own.grade).astype(np.uint8),
    )


def _records(store: Store) -> Iterator[TagRecord]:
    return iter(store.records())  # type: ignore[return-value]


def _with_interval(right: int, count: int) -> str:
    if not count:
        return "-"
    low, high = wilson(int(right), int(count))
    return f"{right / count:.2f} ({low:.2f}-{high:.2f})"
