"""Silver maps: a teacher's maps measured against gold, and chosen as labels.

What is chosen is written as a folder of PNG files with a legend, and read like any other folder of
maps (`detmtl.data.maps`): whatever becomes a label can be looked at.
Letters: C classes, H and W pixels.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from detmtl.silver.some_store import SomeStore
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
    meaning, names = meaning_of(store, classes, settings), classes.label_space().names
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
        classes=names,
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


def measure_maps(
    store: SomeStore, classes: MapClasses, settings: MapSelection, audit: MapAudit
) -> MapMeasures:
    """Returns what an audit says at the thresholds of a selection.

    Raises:
        InputError: as `MapPolicy.of`.
    """
    policy = policy_of(store, classes, settings, audit)
    return MapMeasures(audit, policy.limits)


def maps_of(
    store: SomeStore,
    gold: Source,
    positions: Sequence[int],
    classes: MapClasses,
    settings: MapSelection,
    audit: MapAudit,
) -> dict[int, MapLabels]:
    """Returns the labels that a selection takes of some pictures, by their positions in `gold`.

    Raises:
        InputError: as `MapPolicy.of`.
    """
    policy = policy_of(store, classes, settings, audit)
    hashes = gold.hashes()
    wanted = {hashes[i]: i for i in positions}
    coverage = torch.from_numpy(policy.meaning.known.astype(np.float32))
    return {
        wanted[record.content_hash]: MapLabels(
            torch.from_numpy(policy(record)), None, coverage, Grade.SILVER
        )
        for record in store.records_of(wanted)
    }


def select_maps(
    store: SomeStore,
    pool: Source,
    classes: MapClasses,
    settings: MapSelection,
    audit: MapAudit | None = None,
) -> Path:
    """Returns the folder (`select/<policy hash>/` in the store) of the chosen maps: `maps/<picture>.png`,
    `legend.json`, `policy.json`, `stats.json`.

    Raises:
        InputError: a class of the teacher is unmapped, the settings need an audit, gold is too little to
            calibrate, no picture of the pool is in the store, or the map of one has no place of its own.
    """
    files = _map_files(pool)
    policy = policy_of(store, classes, settings, audit)
    names = classes.label_space().names
    legend, trusted = worth_of(names, policy, audit)
    facts = {
        "version": VERSION,
        "teacher": store.card.name,
        "store": store.digest(),
        "classes": classes.model_dump(mode="json"),
        "pictures": Pictures.of_sources([pool], Path(pool.files.folder)).digest(),
        "audit": None if audit is None else audit.digest(),
        "legend": legend.json(),
        "limits": _written(policy.limits),
        "settings": settings_of(store, settings).model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = store.path / "select" / key
    if not folder.is_dir():
        _write(folder, facts, legend, _chosen(store, pool, files, policy, trusted), names)
    return folder


def with_silver_maps(pool: Source, folder: Path, classes: MapClasses) -> Source:
    """Returns the pool with what `select_maps` wrote: silver where it has no maps of people. Maps of a model
    that it came with are left where the teacher has none."""
    written = MapFolder(folder="maps", categories="legend.json", missing="absent")
    names = MapClasses(classes=list(classes.label_space().names))
    silver = written.load(pool.files, folder, names, f"silver of source '{pool.name}'")
    people, by_model = parted(pool.maps)
    return replace(pool, maps=stacked(people, silver, by_model), grade=Grade.SILVER)


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


def meaning_of(store: SomeStore, classes: MapClasses, settings: MapSelection) -> Meaning:
    """Returns what the pixels of a store mean.

    Raises:
        InputError: a class of its teacher is unmapped, or none is mapped.
    """
    if isinstance(store, MapStack):
        return store.meaning
    return Meaning.of(store.card, classes, settings)


def settings_of(store: SomeStore, settings: MapSelection) -> MapSelection:
    """Returns a selection's settings as the user gave them; of stacked maps `settings` are what is left to
    do once each teacher's maps are cut down."""
    return store.policies[0].settings if isinstance(store, MapStack) else settings


def policy_of(
    store: SomeStore, classes: MapClasses, settings: MapSelection, audit: MapAudit | None
) -> MapPolicy:
    """Returns the settings, resolved for a store.

    Raises:
        InputError: as `MapPolicy.of` and `meaning_of`.
    """
    meaning, names = meaning_of(store, classes, settings), classes.label_space().names
    return MapPolicy.of(store.path, meaning, names, settings, audit)


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
