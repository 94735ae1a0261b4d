"""By what runs and stores are known: equal results have equal keys, whatever does not touch a result."""

import hashlib
import json
from typing import Any

from detmtl.config import RunSettings, settings_from
from detmtl.run_folder import without_effect

VERSION = 3
"""Part of every run's key: raise it when the same settings give another result."""
ROUNDS = {"device", "train.compile"}
"""Settings that may change while a run is trained, but make it round otherwise: its key knows them."""


def canonical(settings: RunSettings) -> RunSettings:
    """Returns settings without what does not touch the result, so that equal runs look equal: gold alone
    needs neither teacher nor pool."""
    if settings.mix.mode != "gold":
        return settings
    names = settings.mix_sources()
    tree = settings.resolved()
    tree["silver"] = None
    tree["data"]["sources"] = {n: tree["data"]["sources"][n] for n in names}
    tree["mix"] = settings.mix_for(names).model_dump(mode="json")
    return settings_from(tree)


def makes_silver(settings: RunSettings) -> bool:
    """Returns whether a run has pools labelled before it trains."""
    return bool(settings.offline_pools())


def teachers_of(settings: RunSettings) -> dict[str, Any]:
    """Returns what decides what a run's teachers write, as plain values; without what teachers of these kinds
    could not be told before, where it is not told: stores of then keep their names."""
    assert settings.silver is not None
    told = settings.silver.model_dump(mode="json", include={"teacher", "teachers", "floor"})
    for teacher in [told["teacher"], *told["teachers"]]:
        if teacher and teacher["kind"] in ("gold", "torchscript") and teacher["task"] is None:
            del teacher["task"]
    return told


def store_name(settings: RunSettings, teacher: str | None, files: Any = None) -> str:
    """Returns the name of the store that runs of one teacher share.

    Args:
        teacher: key of the run that trains the teacher, or None.
        files: hashes of the files of a teacher that nobody trains here.
    """
    what = teachers_of(settings)
    if teacher is None:
        return digest([what, files])
    task = what["teacher"].get("task")
    return digest([teacher, what["floor"], *([] if task is None else [task])])


def digest(facts: Any) -> str:
    """Returns a short hash of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def run_key(settings: RunSettings, fingerprints: Any) -> str:
    """Returns the key of a training: everything but what may change while it is trained, see
    `without_effect`; of that, only `ROUNDS`. Gates count as little (a training that ended trained alike
    either way) as the place of the data, whose files `fingerprints` know."""
    tree = settings.resolved()
    if not tree["model"]["frozen"]:  # which could not be said before: runs of then keep their keys
        del tree["model"]["frozen"]
    for name in {name.rstrip(" .") for name in without_effect(settings)} - ROUNDS:
        section, _, key = name.partition(".")
        if not key:
            del tree[section]
        elif tree[section] is not None:
            del tree[section][key]
    return digest([VERSION, tree, fingerprints])


def teacher_key(settings: RunSettings, fingerprints: Any) -> str:
    """Returns the key of the scoring of a teacher that nobody trains here."""
    assert settings.silver is not None
    told = {"classes", "unmapped", "maps", "tags"}
    data = settings.data.model_dump(mode="json", include=told)
    final = settings.data.test or settings.data.val
    used = {"teacher", "teachers", "floor", "audit"}
    silver = settings.silver.model_dump(mode="json", include=used)
    fused = {"nms", "fusion", "calibration"}
    select = settings.silver.select.model_dump(mode="json", include=fused)
    maps = settings.silver.model_dump(mode="json", include={"select_maps", "select_tags"})
    tasks = {name: getattr(task, "subsets", {}) for name, task in settings.tasks.items()}
    facts = [data, final.model_dump(mode="json"), silver, select, maps, tasks, fingerprints]
    if len(settings.silver.teachers) > 1:  # they are fused as gold says, subsets of it included
        facts.append(settings.data.model_dump(mode="json", include={"sources", "val"}))
    return digest([VERSION, *facts])
