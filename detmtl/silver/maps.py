"""Silver maps: a teacher's maps measured against gold, and chosen as labels.

What is chosen is written as a folder of PNG files with a legend, and read like any other folder of
maps (`detmtl.data.maps`): whatever becomes a label can be looked at.
Letters: C classes, H and W pixels.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detmtl.data.flat import draft_of
from detmtl.data.joined import JoinedMaps
from detmtl.data.map_files import write_values
from detmtl.data.map_legend import Legend
from detmtl.data.maps import FilledMaps, MapClasses, MapFolder, Maps, SomeMaps
from detmtl.data.source import Source
from detmtl.silver.audit import audit_folder
from detmtl.silver.held_out import parted, stacked
from detmtl.silver.map_audit import SCHEMA, MapAudit, Tally
from detmtl.silver.map_measures import MapMeasures
from detmtl.silver.map_policy import MapPolicy, MapSelection, Meaning, confidence_of
from detmtl.silver.map_stack import MapStack
from detmtl.silver.pictures import Pictures
from detmtl.silver.some_store import SomeStore, single
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade, MapLabels

VERSION = 2
"""Part of every policy's hash: raise it when the same policy gives other labels."""


def audit_maps(
    store: SomeStore, gold: Source, classes: MapClasses, settings: MapSelection
) -> MapAudit:
    """Compares a store with gold maps, pixel by pixel; kept as `audit/<gold hash>/maps.json` in the store.

    Memory grows with gold, not with the store.

    Args:
        store: has labels of gold's pictures.
        gold: maps by people, in the same classes.
        classes: what the teacher's classes mean.
        settings: of the selection that the audit is for; its thresholds do not matter here.

    Raises:
        InputError: none of gold's pictures with a map is in the store, or gold has no maps.
    """
    if gold.maps is None:
        raise InputError(f"source '{gold.name}': has no maps to audit against")
    meaning = ChosenMaps(store, classes, settings).meaning()
    hashes = gold.hashes()
    wanted = {hashes[i]: i for i in np.flatnonzero(gold.maps.by_people()).tolist()}
    if not wanted:
        raise InputError(f"source '{gold.name}': has no maps by people to audit against")
    gold_hash = _gold_hash(gold, hashes, store.card.name, classes, settings)
    path = audit_folder(store.path, gold_hash) / "maps.json"
    if path.is_file():
        kept = MapAudit.load(path)
        if kept.store_digest == store.digest():
            return kept
    tally = Tally()
    for record in store.records_of(wanted):
        i = wanted[record.content_hash]
        truth = gold.maps.labels(i, *(int(n) for n in gold.sizes[i]))
        assert truth is not None
        given = meaning(record)
        if given.shape != truth.classes.shape:
            (h, w), (height, width) = given.shape, truth.classes.shape
            raise InputError(
                f"{store.path}: the map of {gold.path(i)} is {w} x {h} pixels (width x height), its picture "
                f"{width} x {height}; annotate again"
            )
        tally.add(i, truth, given, confidence_of(record))
    if not tally.pictures:
        raise InputError(
            f"{store.path}: has none of the {len(wanted)} pictures of source '{gold.name}' that have a "
            "map; let the teacher annotate them into this store first"
        )
    result = MapAudit(
        classes=classes.label_space().names,
        known=meaning.known,
        gives=meaning.gives,
        pictures=tally.pictures,
        missing=len(wanted) - tally.pictures,
        rows=tally.rows(),
        gold_hash=gold_hash,
        store_digest=store.digest(),
    )
    result.save(path)
    return result


@dataclass(frozen=True)
class ChosenMaps:
    """What a store of maps means, and which of its pixels become labels.

    Attributes:
        store: of a teacher of maps, or those of several as one.
        classes: what the teacher's classes mean.
        policy: of the selection; of stacked maps what is left to do once each teacher's maps are cut down.
    """

    store: SomeStore
    classes: MapClasses
    policy: MapSelection

    @property
    def settings(self) -> MapSelection:
        """The policy as the user gave it."""
        return self.store.policies[0].settings if isinstance(self.store, MapStack) else self.policy

    @property
    def names(self) -> tuple[str, ...]:
        """Of the C classes."""
        return self.classes.label_space().names

    def meaning(self) -> Meaning:
        """Returns what the pixels of the store mean.

        Raises:
            InputError: a class of its teacher is unmapped, or none is mapped.
        """
        if isinstance(self.store, MapStack):
            return self.store.meaning
        return Meaning.of(self.store.card, self.classes, self.policy)

    def resolved(self, audit: MapAudit | None) -> MapPolicy:
        """Returns the policy, resolved for the store.

        Raises:
            InputError: as `MapPolicy.of` and `meaning`.
        """
        return MapPolicy.of(self.store.path, self.meaning(), self.names, self.policy, audit)

    def audit(self, gold: Source) -> MapAudit:
        """Compares the store with gold; see `audit_maps`."""
        return audit_maps(self.store, gold, self.classes, self.policy)

    def abstains(self, audit: MapAudit) -> bool:
        """Returns whether the teacher has no say among others, because gold tells nothing of it.

        With calibration `none` what teachers say is taken as it is, whatever gold tells, as boxes are.
        """
        return self.policy.calibration.method != "none" and audit.tells_nothing

    def measures(self, audit: MapAudit) -> MapMeasures:
        """Returns what the audit says at the policy's thresholds.

        Raises:
            InputError: as `resolved`.
        """
        return MapMeasures(audit, self.resolved(audit).limits)

    def labels(
        self, gold: Source, positions: Sequence[int], audit: MapAudit
    ) -> dict[int, MapLabels]:
        """Returns the labels that the policy takes of some pictures, by their positions in `gold`.

        Raises:
            InputError: as `resolved`.
        """
        policy = self.resolved(audit)
        hashes = gold.hashes()
        wanted = {hashes[i]: i for i in positions}
        coverage = torch.from_numpy(policy.meaning.known.astype(np.float32))
        return {
            wanted[record.content_hash]: MapLabels(
                torch.from_numpy(policy(record)), None, coverage, Grade.SILVER
            )
            for record in self.store.records_of(wanted)
        }

    def select(self, pool: Source, audit: MapAudit | None = None) -> Path:
        """Returns the folder (`select/<policy hash>/` in the store) of the chosen maps:
        `maps/<picture>.png`, `legend.json`, `policy.json`, `stats.json`.

        Raises:
            InputError: a class of the teacher is unmapped, the settings need an audit, gold is too little
                to calibrate, no picture of the pool is in the store, or the map of one has no place of its
                own.
        """
        files = _map_files(pool)
        store, policy = self.store, self.resolved(audit)
        legend, trusted = worth_of(self.names, policy, audit)
        facts = {
            "version": VERSION,
            "teacher": store.card.name,
            "store": store.digest(),
            "classes": self.classes.model_dump(mode="json"),
            "pictures": Pictures.of_sources([pool], Path(pool.files.folder)).digest(),
            "audit": None if audit is None else audit.digest(),
            "legend": legend.json(),
            "limits": _written(policy.limits),
            "settings": self.settings.model_dump(mode="json"),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder = store.path / "select" / key
        if not folder.is_dir():
            chosen = _chosen(store, pool, files, policy, trusted)
            _write(folder, facts, legend, chosen, self.names)
        return folder

    def read(self, pool: Source, folder: Path) -> Source:
        """Returns the pool with what `select` wrote: silver where it has no maps of people. Maps of a model
        that it came with are left where the teacher has none."""
        written = MapFolder(folder="maps", categories="legend.json", missing="absent")
        own = MapClasses(classes=list(self.names))
        silver = written.load(pool.files, folder, own, f"silver of source '{pool.name}'")
        people, by_model = parted(pool.maps)
        return replace(pool, maps=stacked(people, silver, by_model), grade=Grade.SILVER)

    def over(self, others: Sequence["ChosenMaps"], audits: Sequence[MapAudit]) -> "ChosenMaps":
        """Returns the maps of this teacher and, under them, those of others, each cut down by its own
        thresholds.

        Args:
            others: of the same classes and policy, the most trusted first.
            audits: of this teacher and of each other.

        Raises:
            InputError: as `resolved`.
        """
        layers = [self, *others]
        policies = [one.resolved(audit) for one, audit in zip(layers, audits, strict=True)]
        stores = tuple(single(one.store) for one in layers)
        # What is left of them are labels, whatever their confidence was.
        rest = self.policy.model_copy(update={"confidence": 0.0, "per_class": {}, "border": 0})
        return ChosenMaps(MapStack(stores, tuple(policies), self.names), self.classes, rest)


def _chosen(
    store: SomeStore,
    pool: Source,
    files: Sequence[str],
    policy: MapPolicy,
    trusted: np.ndarray,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name, of `files`, and the classes of each picture of the pool that the store has."""
    pictures: dict[str, list[int]] = {}
    for i, content_hash in enumerate(pool.hashes()):
        pictures.setdefault(content_hash, []).append(i)
    keep = trusted_only(policy, trusted)
    for record in store.records_of(pictures):
        classes = keep[policy(record)]
        for i in pictures[record.content_hash]:
            yield files[i], classes


def _map_files(pool: Source) -> list[str]:
    """Returns the name of each picture's map, as it is read again.

    Raises:
        InputError: a picture lies outside of the folder, or two have a map of one name.
    """
    files, owners, problems = [], {}, []
    for i in range(len(pool)):
        picture = pool.files.name(i)
        name = Path(picture.lstrip("/"))
        file = str(name.with_suffix(".png"))
        files.append(file)
        if ".." in name.parts:
            problems.append(
                f"source '{pool.name}': {name}: lies outside of the source's folder of pictures; its "
                "map would lie outside of the store"
            )
        elif owners.setdefault(file, picture) != picture:
            problems.append(
                f"source '{pool.name}': {owners[file]} and {picture} differ in their ending alone, and "
                f"the map of both would be {file}; rename one of them"
            )
    if problems:
        raise InputError(problems)
    return files


def _write(
    folder: Path,
    facts: dict[str, Any],
    legend: Legend,
    maps: Iterator[tuple[str, np.ndarray]],
    names: Sequence[str],
) -> None:
    """Writes a selection, all or nothing."""
    with draft_of(folder) as draft:
        try:
            _fill(draft, str(folder.parent.parent), facts, legend, maps, names)
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise


def _fill(
    folder: Path,
    where: str,
    facts: dict[str, Any],
    legend: Legend,
    maps: Iterator[tuple[str, np.ndarray]],
    names: Sequence[str],
) -> None:
    """Writes the files of a selection; `where` is the store, for the error."""
    pixels = np.zeros(256, np.int64)
    count = 0
    for name, classes in maps:
        path = folder / "maps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_values(path, classes)
        pixels += np.bincount(classes.ravel(), minlength=256)
        count += 1
    if not count:
        raise InputError(
            f"{where}: has none of the pictures of the pool; let the teacher annotate them into this store "
            "first"
        )
    shares = pixels / pixels.sum()
    stats = {
        "pictures": count,
        "share": dict(zip(names, shares.tolist(), strict=False)),
        "other": shares[OTHER],
        "unknown": shares[UNKNOWN],
    }
    for name, content in (("policy", facts), ("legend", legend.json()), ("stats", stats)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))


def worth_of(
    names: Sequence[str], policy: MapPolicy, audit: MapAudit | None
) -> tuple[Legend, np.ndarray]:
    """Returns what the values of chosen maps mean, with the weight and the coverage of each class, and
    (C,) bool: which classes give labels. Of those that do not, the teacher's pixels are unknown, but its
    background still denies them.
    """
    settings, known = policy.settings, policy.meaning.known
    measures = None if audit is None else MapMeasures(audit, policy.limits)
    trusted = policy.meaning.gives & np.isfinite(policy.limits[:-1])
    weights, coverage = np.ones(len(names)), np.ones(len(names))
    if measures is not None:
        precision = measures.precision()
        trusted &= precision >= settings.least_precision
        if settings.weight == "precision":
            weights = precision
    if settings.coverage is not None:
        coverage[:] = settings.coverage
    elif measures is not None:
        coverage = measures.found()
    coverage = np.where(known, coverage, 0)
    legend = Legend(
        dict(enumerate(names)),
        (OTHER,),
        {c: round(float(weights[c]), 4) for c in np.flatnonzero(trusted).tolist()},
        {c: round(float(coverage[c]), 4) for c in range(len(names))},
        Grade.SILVER,
    )
    return legend, trusted


def trusted_only(policy: MapPolicy, trusted: np.ndarray) -> np.ndarray:
    """Returns (256,) uint8: what each value of a chosen map becomes, see `worth_of`."""
    keep = np.arange(256, dtype=np.uint8)
    keep[np.flatnonzero(policy.meaning.gives & ~trusted)] = UNKNOWN
    return keep


def _written(limits: np.ndarray) -> list[float | None]:
    """Returns limits for JSON; None: no pixel is sure enough."""
    return [round(float(x), 6) if np.isfinite(x) else None for x in limits]


def _gold_hash(
    gold: Source,
    hashes: Sequence[str],
    teacher: str,
    classes: MapClasses,
    settings: MapSelection,
) -> str:
    """Returns a hash of the pictures, of what their maps hold and mean, and of what decides beside."""
    assert gold.maps is not None
    facts = [
        SCHEMA,
        [hashes[i] for i in np.flatnonzero(gold.maps.by_people()).tolist()],
        teacher,
        classes.model_dump(mode="json"),
        settings.model_dump(include={"background", "border"}),
    ]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in gold.maps.paths():
        digest.update(Path(path).read_bytes())
    for array in _meanings(gold.maps):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _meanings(maps: SomeMaps) -> Iterator[np.ndarray]:
    """Yields what decides, beside the files, what maps say: of which picture each file is, what its
    pixel values mean, and which classes were looked for."""
    match maps:
        case Maps():
            yield from (maps.present(), maps.lookup, maps.coverage)
        case FilledMaps():
            yield from (array for part in (maps.first, maps.second) for array in _meanings(part))
        case JoinedMaps():
            yield from (maps.part, maps.place)
            yield from (array for part in maps.parts for array in _meanings(part))
        case _:
            raise AssertionError(f"no kind of maps that is known here: {type(maps)}")
