"""Silver maps: a teacher's maps measured against gold, and chosen as labels.

What is chosen is written as a folder of PNG files with a legend, and read like any other folder of
maps (`detmtl.data.maps`): whatever becomes a label can be looked at.
Letters: C classes, H and W pixels.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from pydantic import Field

from detmtl.data.maps import FilledMaps, Legend, MapClasses, MapFolder, write_values
from detmtl.data.source import Source
from detmtl.silver.map_audit import MapAudit, Tally
from detmtl.silver.pictures import Pictures
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade, MapLabels
from detmtl.structures.settings import Settings

VERSION = 1
"""Part of every policy's hash: raise it when the same policy gives other labels."""


class MapRecord(Protocol):
    """What a store holds of one picture: see `detmtl.silver.map_record`."""

    content_hash: str
    height: int
    width: int
    classes: np.ndarray
    confidence: np.ndarray | None


class MapSelection(Settings):
    """Which of a teacher's pixels become labels, and how much they count."""

    background: list[str] = ["background"]
    """Classes of the teacher that mean none of its others. Their pixels may be of any class that it
    does not know."""
    confidence: float = Field(default=0.0, ge=0, le=1)
    """Pixels of which the teacher is less sure are unknown."""
    border: int = Field(default=0, ge=0)
    """Pixels no farther than this from an edge between labels are unknown: teachers of low
    resolution misplace edges."""
    least_precision: float = Field(default=0.0, ge=0, le=1)
    """Classes of which gold confirms less than this share of the pixels give no labels: their pixels
    are unknown."""
    weight: Literal["precision", "one"] = "precision"
    """Of a class's pixels in the loss: the share that gold confirms, 1 without an audit; or 1."""
    coverage: float | None = Field(default=None, ge=0, le=1)
    """How far a background pixel is not of a class that the teacher knows; None: the audited share of
    the class's pixels that it does not take for background, 1 without an audit."""


@dataclass(frozen=True, eq=False)
class Meaning:
    """What a teacher's pixel values mean in the label space.

    Attributes:
        lookup: (256,) uint8: a class, `OTHER` or `UNKNOWN` for each class of the teacher.
        known: (C,) bool, which classes the teacher knows.
        gives: (C,) bool, which classes it can give: those, and that of what is unmapped.
        settings: what else decides.
    """

    lookup: np.ndarray
    known: np.ndarray
    gives: np.ndarray
    settings: MapSelection

    @classmethod
    def of(cls, store: Store, classes: MapClasses, settings: MapSelection) -> "Meaning":
        """Builds it for a store's teacher.

        Raises:
            InputError: a class of the teacher is unmapped, or none is mapped.
        """
        names = store.card.classes
        own = [name for name in names if name not in settings.background]
        codes = dict(zip(own, classes.codes(own, f"teacher '{store.card.name}'"), strict=True))
        lookup = np.full(256, UNKNOWN, np.uint8)
        lookup[: len(names)] = [codes.get(name, OTHER) for name in names]
        lookup[OTHER] = OTHER
        space = classes.label_space()
        gives = np.isin(np.arange(len(space)), list(codes.values()))
        return cls(lookup, np.array(space.known(own)), gives, settings)

    def __call__(self, record: MapRecord) -> np.ndarray:
        """Returns the classes (H, W) uint8 of a picture.

        Raises:
            InputError: a confidence is asked for that the teacher did not give.
        """
        classes = self.lookup[record.classes]
        if self.settings.confidence:
            if record.confidence is None:
                raise InputError(
                    "select_maps.confidence: the teacher gave hard maps, without confidence; set it to 0"
                )
            sure = record.confidence >= np.float32(self.settings.confidence * 255)
            classes = np.where(sure, classes, np.uint8(UNKNOWN))
        if self.settings.border:
            classes = np.where(
                _near_edges(classes, self.settings.border), np.uint8(UNKNOWN), classes
            )
        return classes


def audit_maps(store: Store, gold: Source, classes: MapClasses, settings: MapSelection) -> MapAudit:
    """Compares a store with gold maps, pixel by pixel, before classes are left out by precision; kept as
    `audit/<gold hash>/maps.json` in the store.

    Args:
        store: has labels of gold's pictures.
        gold: maps by people, in the same classes.
        classes: what the teacher's classes mean.
        settings: of the selection that the audit is for.

    Raises:
        InputError: none of gold's pictures with a map is in the store, or gold has no maps.
    """
    if gold.maps is None:
        raise InputError(f"source '{gold.name}': has no maps to audit against")
    meaning, names = Meaning.of(store, classes, settings), classes.label_space().names
    hashes = gold.hashes()
    wanted = {hashes[i]: i for i in np.flatnonzero(gold.maps.present()).tolist()}
    gold_hash = _gold_hash(gold, sorted(wanted), classes, settings)
    path = store.path / "audit" / gold_hash / "maps.json"
    if path.is_file():
        kept = MapAudit.load(path)
        if kept.store_digest == store.digest():
            return kept
    tally = Tally(len(names))
    for record in _records(store):
        if record.content_hash in wanted:
            i = wanted[record.content_hash]
            truth = gold.maps.labels(i, *(int(n) for n in gold.sizes[i]))
            assert truth is not None
            found = MapLabels(torch.from_numpy(meaning(record)), None, truth.coverage)
            tally.add(truth, found)
    if not tally.pictures:
        raise InputError(
            f"{store.path}: has none of the {len(wanted)} pictures of source '{gold.name}' that have a "
            "map; let the teacher annotate them into this store first"
        )
    result = tally.audit(
        names, meaning.known, meaning.gives, len(wanted), gold_hash, store.digest()
    )
    result.save(path)
    return result


def select_maps(
    store: Store,
    pool: Source,
    classes: MapClasses,
    settings: MapSelection,
    audit: MapAudit | None = None,
) -> Path:
    """Returns the folder (`select/<policy hash>/` in the store) of the chosen maps: `maps/<picture>.png`,
    `legend.json`, `policy.json`, `stats.json`.

    Raises:
        InputError: a class of the teacher is unmapped, the settings need an audit, or no picture of the
            pool is in the store.
    """
    if settings.least_precision and audit is None:
        raise InputError("select_maps.least_precision: needs an audit; give gold maps")
    meaning = Meaning.of(store, classes, settings)
    names = classes.label_space().names
    trusted = meaning.gives.copy()
    if audit is not None:
        trusted &= audit.precision() >= settings.least_precision
    legend = _legend(names, meaning, trusted, settings, audit)
    policy = {
        "version": VERSION,
        "teacher": store.card.name,
        "store": store.digest(),
        "classes": classes.model_dump(mode="json"),
        "pictures": Pictures.of_sources([pool], Path(pool.files.folder)).digest(),
        "audit": None if audit is None else audit.digest(),
        "legend": legend.json(),
        "settings": settings.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()[:16]
    folder = store.path / "select" / key
    if not folder.is_dir():
        _write(folder, policy, legend, _chosen(store, pool, meaning, trusted), names)
    return folder


def with_silver_maps(pool: Source, folder: Path, classes: MapClasses) -> Source:
    """Returns the pool with what `select_maps` wrote: silver where it has no maps of its own."""
    written = MapFolder(folder="maps", categories="legend.json", missing="absent")
    names = MapClasses(classes=list(classes.label_space().names))
    silver = written.load(pool.files, folder, names, f"silver of source '{pool.name}'")
    maps = silver if pool.maps is None else FilledMaps(pool.maps, silver)
    return replace(pool, maps=maps, grade=Grade.SILVER)


def _chosen(
    store: Store, pool: Source, meaning: Meaning, trusted: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the file name and the classes of each picture of the pool that the store has."""
    pictures: dict[str, list[int]] = {}
    for i, content_hash in enumerate(pool.hashes()):
        pictures.setdefault(content_hash, []).append(i)
    keep = np.arange(256, dtype=np.uint8)
    keep[np.flatnonzero(meaning.gives & ~trusted)] = UNKNOWN
    for record in _records(store):
        for i in pictures.get(record.content_hash, ()):
            name = Path(pool.files.name(i).lstrip("/"))
            if ".." in name.parts:
                raise InputError(
                    f"source '{pool.name}': {name}: lies outside of the source's folder of pictures; its "
                    "map would lie outside of the store"
                )
            yield str(name.with_suffix(".png")), keep[meaning(record)]


def _write(
    folder: Path,
    policy: dict[str, Any],
    legend: Legend,
    maps: Iterator[tuple[str, np.ndarray]],
    names: Sequence[str],
) -> None:
    """Writes a selection, all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    pixels = np.zeros(256, np.int64)
    count = 0
    try:
        for name, classes in maps:
            path = draft / "maps" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_values(path, classes)
            pixels += np.bincount(classes.ravel(), minlength=256)
            count += 1
        if not count:
            raise InputError(
                f"{folder.parent.parent}: has none of the pictures of the pool; let the teacher annotate "
                "them into this store first"
            )
        shares = pixels / pixels.sum()
        stats = {
            "pictures": count,
            "share": dict(zip(names, shares.tolist(), strict=False)),
            "other": shares[OTHER],
            "unknown": shares[UNKNOWN],
        }
        for name, content in (("policy", policy), ("legend", legend.json()), ("stats", stats)):
            (draft / f"{name}.json").write_text(json.dumps(content, indent=1))
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _legend(
    names: Sequence[str],
    meaning: Meaning,
    trusted: np.ndarray,
    settings: MapSelection,
    audit: MapAudit | None,
) -> Legend:
    """Returns what the values of the chosen maps mean, with the weight and the coverage of each class.

    A class that is not trusted gives no labels, but the teacher's background still denies it.
    """
    weights, coverage = np.ones(len(names)), np.ones(len(names))
    if audit is not None and settings.weight == "precision":
        weights = audit.precision()
    if settings.coverage is not None:
        coverage[:] = settings.coverage
    elif audit is not None:
        coverage = audit.found()
    coverage = np.where(meaning.known, coverage, 0)
    return Legend(
        dict(enumerate(names)),
        (OTHER,),
        {c: round(float(weights[c]), 4) for c in np.flatnonzero(trusted).tolist()},
        {c: round(float(coverage[c]), 4) for c in range(len(names))},
        Grade.SILVER,
    )


def _records(store: Store) -> Iterator[MapRecord]:
    return iter(store.records())  # type: ignore[return-value]


def _near_edges(classes: np.ndarray, distance: int) -> np.ndarray:
    """Returns (H, W) bool: within `distance` pixels, in rows or columns, of another label."""
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return cv2.dilate(classes, kernel) != cv2.erode(classes, kernel)


def _gold_hash(
    gold: Source, hashes: Sequence[str], classes: MapClasses, settings: MapSelection
) -> str:
    """Returns a hash of the pictures, of what their files of maps hold, and of what decides beside."""
    assert gold.maps is not None
    digest = hashlib.sha256(
        json.dumps(
            [
                VERSION,
                list(hashes),
                classes.model_dump(mode="json"),
                settings.model_dump(include={"background", "confidence", "border"}),
            ]
        ).encode()
    )
    for path in gold.maps.paths():
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]
