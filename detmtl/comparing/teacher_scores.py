"""A teacher as an arm: scored on the students' pictures, with the students' metrics.

Several teachers are scored as what students learn from: their labels as one.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from detmtl.comparing.bootstrap import PICTURES
from detmtl.config import RunSettings
from detmtl.data.maps import MapClasses
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.evaluator import coco_results
from detmtl.metrics.coco import CocoMetric
from detmtl.metrics.dense import MapMetric
from detmtl.metrics.picture_file import write_pictures
from detmtl.metrics.tags import TagMetric
from detmtl.pools import fused_labels, fused_others, others_of, write_silver
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources
from detmtl.run_teachers import audit_source, load_teachers, of_one_task
from detmtl.silver.chosen import Chosen
from detmtl.silver.ensemble import Ensemble
from detmtl.silver.mapping import ClassMap
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagMeaning
from detmtl.silver.tags import ChosenTags
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, BoxLabels, Grade, MapLabels, TagLabels
from detmtl.tasks.semantic import SemanticConfig


def score_teachers(settings: RunSettings, folder: Path) -> dict[str, float]:
    """Returns `task/metric` -> value of what the teachers say of the pictures that students are scored on;
    `detections.json` or `pictures.npz` in `folder` says it picture by picture.

    Args:
        settings: of a run whose teachers nobody trains.
        folder: of the arm, where the labels go.

    Raises:
        InputError: no task learns from what the teachers write, or a class of theirs is unmapped.
    """
    process, data, silver = distributed.start(settings.device), settings.data, settings.silver
    assert silver is not None
    if len(silver.teachers) > 1:  # fused by what an audit says of each
        sources, val, test = load_sources(settings, folder / "cache", process)
        final, gold = test or val, audit_source(settings, sources, val)
    else:
        name = "val" if data.test is None else "test"
        final = (data.test or data.val).load(
            name, data.root, data.label_space(), folder / "cache", data.maps, data.tags
        )
        gold = None
    quiet = OpenRun(settings, RunFolder(folder), process, Console(quiet=True))
    stores = _labelled(quiet, [final] if gold is None else [final, gold])
    kind = of_one_task(stores)
    task = next((name for name, of in settings.silver_tasks().items() if of == kind), None)
    if task is None:
        raise InputError(
            f"teacher '{stores[0].card.name}': writes {kind}, and no task learns from {kind}; an arm "
            "'teacher' is scored as the students are"
        )
    if kind == "boxes":
        metric, found = _boxes(settings, stores, final, gold)
        (folder / "detections.json").write_text(json.dumps(found))
    else:
        chosen = _chosen(settings, stores, gold)
        if isinstance(chosen, ChosenMaps):
            metric = _maps(settings, task, chosen, final)
        else:
            assert isinstance(chosen, ChosenTags)
            metric = _tags(chosen, final)
    write_pictures(folder / PICTURES, {task: metric})
    return {f"{task}/{name}": value for name, value in metric.compute().items()}


def _labelled(run: OpenRun, sources: list[Source]) -> list[Store]:
    path = run.folder.path / "silver"
    names = write_silver(run, load_teachers(run), sources, path)
    return [Store.open(path, name) for name in names]


def _boxes(
    settings: RunSettings, stores: list[Store], final: Source, gold: Source | None
) -> tuple[CocoMetric, list[dict[str, Any]]]:
    space, select = settings.data.label_space(), settings.silver.select  # type: ignore[union-attr]
    labels = stores[0]
    if gold is not None:
        labels, _ = fused_labels(stores, gold, space, select)
    if isinstance(labels, Ensemble):  # in the label space's classes already, and without doubles
        mapping = ClassMap.of(labels.card, LabelSpace.of(space.names), None)
        records = labels.fused(final.hashes())
    else:
        mapping, records = ClassMap.of(labels.card, space, select.nms), labels.records()
    by_picture = {record.content_hash: mapping(record) for record in records}
    metric, results = CocoMetric(space.names), []
    for i, content_hash in enumerate(final.hashes()):
        record, info = by_picture[content_hash], final.info(i)
        found = BoxLabels.of(
            torch.from_numpy(record.boxes),
            torch.from_numpy(record.classes),
            len(space),
            scores=torch.from_numpy(record.scores),
            grade=Grade.SILVER,
        )
        truth = final.labels(i).get("boxes")
        metric.update([found], [truth if isinstance(truth, BoxLabels) else None], [info])
        results += coco_results(found, info.id, space.names)
    return metric, results


def _chosen(settings: RunSettings, stores: list[Store], gold: Source | None) -> Chosen:
    alone = [others_of(settings, store) for store in stores]
    return alone[0] if gold is None else fused_others(alone, gold)


def _maps(settings: RunSettings, task: str, chosen: ChosenMaps, final: Source) -> MapMetric:
    """Scores every pixel as the teacher's class, sure or not; its background as the class that takes
    what is unmapped, where there is one."""
    names, of_task = chosen.names, settings.tasks[task]
    whole = replace(chosen, policy=chosen.policy.model_copy(update={"border": 0}))
    meaning = whole.meaning()
    subsets = of_task.subsets if isinstance(of_task, SemanticConfig) else {}
    metric, places = MapMetric(names, subsets), _places(final)
    for record in chosen.store.records_of(places):
        for i in places[record.content_hash]:
            said = torch.from_numpy(_with_rest(meaning(record), chosen.classes))
            truth = final.labels(i).get("maps")
            metric.update(
                [MapLabels(said, None, torch.ones(len(names)), Grade.SILVER)],
                [truth if isinstance(truth, MapLabels) else None],
                [final.info(i)],
            )
    return metric


def _with_rest(said: np.ndarray, classes: MapClasses) -> np.ndarray:
    names = classes.label_space().names
    if classes.unmapped not in names:
        return said
    return np.where(said == OTHER, np.uint8(names.index(classes.unmapped)), said)


def _tags(chosen: ChosenTags, final: Source) -> TagMetric:
    """Scores every tag by the teacher's score; of which it says nothing, by 0."""
    meaning, places = TagMeaning.of(chosen.store.card, chosen.classes), _places(final)
    metric = TagMetric(chosen.names)
    for record in chosen.store.records_of(places):
        for i in places[record.content_hash]:
            said = torch.from_numpy(np.nan_to_num(meaning(record)[0]))
            truth = final.labels(i).get("tags")
            metric.update(
                [TagLabels(said, torch.ones(len(said)), Grade.SILVER)],
                [truth if isinstance(truth, TagLabels) else None],
                [final.info(i)],
            )
    return metric


def _places(source: Source) -> dict[str, list[int]]:
    """Returns content hash -> the positions of the pictures that have it."""
    places: dict[str, list[int]] = {}
    for i, content_hash in enumerate(source.hashes()):
        places.setdefault(content_hash, []).append(i)
    return places
