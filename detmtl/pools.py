"""How the pools of a run get their silver labels: teachers, store, audit, selection."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from detmtl.config import RunSettings
from detmtl.data.coco import CocoSource, read_labels
from detmtl.data.coco_writer import written_details
from detmtl.data.joined import with_boxes
from detmtl.data.source import Source
from detmtl.data.tags import BoxTags, TagClasses, Tags
from detmtl.engine import distributed
from detmtl.report.audit_boxes import boxes_page
from detmtl.report.audit_others import others_page
from detmtl.report.audit_page import write_audit_page
from detmtl.report.page import available
from detmtl.run_folder import OpenRun
from detmtl.run_teachers import audit_source, load_teachers, of_one_task
from detmtl.silver.audit import Audit, audit, audit_folder
from detmtl.silver.audit_gates import problems_alone
from detmtl.silver.audit_measures import Calibrate
from detmtl.silver.audit_summary import box_summary, map_summary, tag_summary, write_summary
from detmtl.silver.audit_table import shown
from detmtl.silver.calibration import CalibrationSettings, cross_fitted
from detmtl.silver.chosen import Chosen, chosen_of, stack
from detmtl.silver.ensemble import Ensemble
from detmtl.silver.evidence import Judged
from detmtl.silver.held_out import given_gold
from detmtl.silver.map_audit import MapAudit
from detmtl.silver.map_measures import MapMeasures
from detmtl.silver.overlay import OverlaySettings, with_gold
from detmtl.silver.policy import Policy, resolve
from detmtl.silver.selection import SelectionSettings, select
from detmtl.silver.share_table import left_out, unsearched_words
from detmtl.silver.store import Store
from detmtl.silver.tag_audit import TagAudit
from detmtl.silver.tag_measures import TagMeasures
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.teachers.annotate import annotate
from detmtl.teachers.teacher import Teacher


def label_pools(
    run: OpenRun,
    sources: Mapping[str, Source],
    val: Source,
    teacher: Teacher | None = None,
) -> tuple[dict[str, Source], Path]:
    """Returns the pools with silver labels, and the store that the labels come from.

    Args:
        teacher: the only one of the run, loaded; None: they are loaded here.
    """
    settings, console = run.settings, run.console
    silver, space = settings.silver, settings.data.label_space()
    assert silver is not None
    store_path = run.store
    gold = audit_source(settings, sources, val)
    pools = [sources[name] for name in settings.offline_pools()]
    teachers = [teacher] if teacher else load_teachers(run)
    names = write_silver(run, teachers, [*pools, gold], store_path)
    stores = [Store.open(store_path, name) for name in names]
    if of_one_task(stores) != "boxes":
        return _label_others(run, pools, gold, stores), store_path
    if gold.annotations is not None:
        gold = with_boxes(gold)
    trained = [sources[name] for name in settings.mix_sources()]
    by_people: dict[str, Source] = {}
    for pool in pools:
        others = [source for source in trained if source.name != pool.name]
        # another model's labels, of an earlier run say, give way to the new ones
        by_people[pool.name], told = given_gold(pool.boxes_by_people(), others)
        for sentence in told:
            console.print(sentence, markup=False)
    labelled: dict[str, Source] = {}
    if run.process.rank == 0:
        stores = [Store.open(store_path, name) for name in names]
        problems = judge_each(stores, gold, space, silver.select, console)
        _pass_gates(problems, f"{store_path} on '{gold.name}'", silver.gates)
        labels, checked = fused_labels(stores, gold, space, silver.select)
        files, problems = show_audit(
            labels, checked, gold, space, silver.select, console, available()
        )
        _tell_page(files[-1] if available() else None, console)
        _pass_gates(problems, f"{store_path} on '{gold.name}'", silver.gates)
        for pool in pools:
            chosen = select(labels, [pool], space, silver.select, checked)
            _with_people(pool, by_people[pool.name], chosen, silver.overlay)
    distributed.barrier()
    stores = [Store.open(store_path, name) for name in names]
    labels, checked = fused_labels(stores, gold, space, silver.select)
    for pool in pools:
        chosen = select(labels, [pool], space, silver.select, checked)
        file = _with_people(pool, by_people[pool.name], chosen, silver.overlay)
        labelled[pool.name] = read_selection(pool, file, settings, run.folder.cache)
    return labelled, store_path


def _with_people(pool: Source, by_people: Source, chosen: Path, settings: OverlaySettings) -> Path:
    """Returns the COCO file of a selection under all that people said of a pool's pictures."""
    if pool.boxes_by_people().annotations is None and by_people.annotations is not None:
        # As without people's labels: what the selection leaves out is left out.
        there = set(read_labels(chosen, pool.classes).files.paths())
        paths = enumerate(by_people.files.paths())
        by_people = by_people.subset([i for i, path in paths if path in there])
    return with_gold(by_people, chosen, settings)


def show_audit(
    labels: Store | Ensemble,
    checked: Audit,
    gold: Source,
    space: LabelSpace,
    select: SelectionSettings,
    console: Console,
    page: bool,
) -> tuple[list[Path], list[str]]:
    """Prints the tables of an audit of boxes, and writes its summary, and its page if it is wanted; returns
    the files of the audit and the reasons not to trust the labels."""
    several = isinstance(labels, Ensemble)
    resolved = resolve(labels, space, select, checked, several)
    thresholds, lower = (
        dict(zip(space.names, scores.tolist(), strict=True))
        for scores in (resolved.limits, resolved.lower)
    )
    band = None if select.ignore_from is None else lower
    # first: it shows why a policy cannot be had of this gold
    for part in shown(checked.measures(thresholds), band):
        console.print(part)
    policy = Policy.of(labels, space, checked.known, select, checked, several, resolved)
    calibrate = calibrated(checked, select.calibration, console)
    files = [
        audit_folder(labels.path, checked.gold_hash) / "audit.json",
        write_summary(labels.path, checked.gold_hash, box_summary(checked, policy, calibrate)),
    ]
    if page:
        html = boxes_page(checked, gold, labels.card.name, thresholds, band, calibrate, policy)
        files.append(write_audit_page(labels.path, checked.gold_hash, html))
    return files, checked.problems(thresholds)


def _tell_page(page: Path | None, console: Console) -> None:
    told = "No page of the audit: pip install 'detmtl[report]'"
    if page is not None:
        told = f"Page of the audit: {page}"
    console.print(told, markup=False, soft_wrap=True)


def calibrated(checked: Audit, settings: CalibrationSettings, console: Console) -> Calibrate | None:
    """Returns what calibrates an audit's own boxes, each without its own part; None, and a sentence on
    the console, where it cannot be fitted."""
    by_class = fitted(checked, settings, console)
    if by_class is None:
        return None
    together = np.concatenate(by_class)
    return lambda scores, classes: together


def fitted(
    judged: Judged, settings: CalibrationSettings | None, console: Console
) -> list[np.ndarray] | None:
    """Returns the probabilities of judged labels by class, each without its own part; None, and a sentence
    on the console, where they cannot be fitted."""
    try:
        return cross_fitted(judged, settings)
    except InputError as error:
        console.print(f"No calibrated scores in the audit's summary: {error}", markup=False)
        return None


def show_others(
    others: Chosen, checked: MapAudit | TagAudit, gold: Source, console: Console, page: bool
) -> MapMeasures | TagMeasures:
    """Prints the table of an audit of maps or tags and what to know beside it, and writes its summary, and
    its page if it is wanted; returns what the audit says."""
    measures = others.measures(checked)
    console.print(measures.table())
    for words in left_out(len(measures.classes()), "classes that gold shows less"):
        console.print(words)
    if isinstance(measures, MapMeasures):
        for sentence in measures.remarks():
            console.print(sentence, markup=False)
    elif words := unsearched_words(measures.audit.tags, measures.audit.known):
        console.print(words, markup=False)
    calibrated = fitted(checked.evidence, others.policy.calibration, console)
    plain = others.settings.model_dump(mode="json")
    if isinstance(measures, MapMeasures):
        summary = map_summary(measures, plain, calibrated)
    else:
        summary = tag_summary(measures, plain, calibrated)
    write_summary(others.store.path, checked.gold_hash, summary)
    if page:
        html = others_page(others, checked, gold, calibrated)
        path = write_audit_page(others.store.path, checked.gold_hash, html)
        _tell_page(path, console)
    return measures


def _label_others(
    run: OpenRun, pools: list[Source], gold: Source, stores: list[Store]
) -> dict[str, Source]:
    """Returns the pools with silver maps or silver tags."""
    silver, console = run.settings.silver, run.console
    assert silver is not None
    alone = [others_of(run.settings, store) for store in stores]
    if run.process.rank == 0:
        problems = judge_each_other(alone, gold, console, available())
        _pass_gates(problems, f"{stores[0].path} on '{gold.name}'", silver.gates)
        others = fused_others(alone, gold)
        checked = others.audit(gold)
        problems = show_others(others, checked, gold, console, available()).problems()
        if not available():
            _tell_page(None, console)
        _pass_gates(problems, f"{others.store.path} on '{gold.name}'", silver.gates)
        for pool in pools:
            others.select(pool, checked)
    distributed.barrier()
    others = fused_others(alone, gold)
    checked = others.audit(gold)
    return {pool.name: others.read(pool, others.select(pool, checked)) for pool in pools}


def judge_each_other(
    alone: Sequence[Chosen], gold: Source, console: Console, page: bool
) -> list[str]:
    """Shows the audit of each of several teachers of maps or tags, and returns the reasons not to trust one;
    of a single teacher nothing, nor of one that abstains."""
    problems = []
    for others in alone if len(alone) > 1 else []:
        checked, name = others.audit(gold), others.store.card.name
        if not others.abstains(checked):
            console.print(f"Teacher {name}:", markup=False)
            measures = show_others(others, checked, gold, console, page)
            problems += [f"teacher '{name}': {found}" for found in measures.problems_alone()]
    return problems


def others_of(settings: RunSettings, store: Store) -> Chosen:
    """Returns what a run makes of a store of maps or tags.

    Raises:
        InputError: `data` does not list the classes.
    """
    data, silver = settings.data, settings.silver
    assert silver is not None
    return chosen_of(store, data.maps, data.tags, silver.select_maps, silver.select_tags)


def fused_others(alone: Sequence[Chosen], gold: Source) -> Chosen:
    """Returns the maps or tags to choose from, those of several stores as one."""
    if len(alone) == 1:
        return alone[0]
    return stack(alone, [others.audit(gold) for others in alone])


def write_silver(
    run: OpenRun, teachers: Iterable[Teacher], sources: list[Source], path: Path
) -> list[str]:
    """Lets each teacher label the sources into the store, and returns the teachers' names."""
    silver, process = run.settings.silver, run.process
    assert silver is not None
    names = []
    for teacher in teachers:
        names.append(teacher.card.name)
        annotate(
            teacher,
            sources,
            path,
            floor=silver.floor,
            batch_size=silver.batch_size,
            rank=process.rank,
            world=process.world,
            root=run.settings.data.root,
            console=run.console,
        )
        distributed.barrier()
    return names


def fused_labels(
    stores: list[Store], gold: Source, space: LabelSpace, select: SelectionSettings
) -> tuple[Store | Ensemble, Audit]:
    """Returns the labels to choose from, fused where there are several stores, and their audit."""
    audits = [audit(store, gold, space, select.nms) for store in stores]
    if len(stores) == 1:
        return stores[0], audits[0]
    fused = Ensemble.of(stores, space, select.nms, select.fusion, select.calibration, audits)
    return fused, fused.audit(gold)


def judge_each(
    stores: Sequence[Store],
    gold: Source,
    space: LabelSpace,
    select: SelectionSettings,
    console: Console,
) -> list[str]:
    """Prints the audit of each of several teachers, and returns the reasons not to trust one; of a
    single teacher nothing: its labels are those that are chosen from."""
    problems = []
    for store in stores if len(stores) > 1 else []:
        alone, name = audit(store, gold, space, select.nms), store.card.name
        console.print(f"Teacher {name}, by its own scores:", markup=False)
        console.print(alone.table())
        problems += [f"teacher '{name}': {problem}" for problem in problems_alone(alone)]
    return problems


def _pass_gates(problems: list[str], where: str, gates: str) -> None:
    problems = [f"{where}: {problem}" for problem in problems]
    if problems and gates == "stop":
        raise InputError([*problems, "set silver.gates: warn to go on all the same"])
    for problem in problems:
        warnings.warn(problem, stacklevel=2)


def read_selection(pool: Source, file: Path, settings: RunSettings, cache: Path) -> Source:
    """Returns the pictures of `pool` that a selection has, with its boxes; what else people have said of
    them (maps, tags, depths, details of their boxes) stays."""
    read = CocoSource(
        kind="coco",
        annotations=str(file.absolute()),
        images="/",
        grade="silver",
        weight=settings.data.sources[pool.name].weight,
    )
    names = LabelSpace.of(settings.data.label_space().names)
    chosen = read.load(pool.name, Path("/"), names, cache, details=written_details(pool))
    place = {path: i for i, path in enumerate(pool.files.paths())}
    at = np.array([place[path] for path in chosen.files.paths()], dtype=np.int64)
    rest = pool.subset(at)
    return replace(chosen, maps=rest.maps, tags=tags_of(rest, settings.data.tags), depth=rest.depth)


def tags_of(pool: Source, classes: TagClasses | None) -> Tags | BoxTags | None:
    """Returns the tags of a pool that gets boxes of a model: its own, or those that follow from boxes."""
    if classes is not None and classes.from_boxes and not isinstance(pool.tags, Tags):
        return BoxTags.of(pool.classes, classes, Grade.SILVER)
    return pool.tags
