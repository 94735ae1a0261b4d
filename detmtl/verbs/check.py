"""The verb `check`: tells whether data are fit for training."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detmtl.config import RunSettings, find_config, read_settings
from detmtl.data.coco import category_names
from detmtl.data.faults import check_source, class_rows
from detmtl.data.fit import InputSettings
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.models.fpn import FPNSettings
from detmtl.report.progress import bar
from detmtl.run_sources import (
    faults_between,
    idle_weights,
    labelled_already,
    pools_apart,
    render,
    sources_read,
)
from detmtl.silver.contradictions import contradictions
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.tasks.anchor_coverage import coverage_table
from detmtl.tasks.anchor_learners import learners
from detmtl.tasks.detection import DetectionConfig
from detmtl.verbs.options import cache_of, coco_source, refuse_given

FEW_CANDIDATES = 18
"""Anchors of a level among which ATSS chooses, up to which nothing is said; the paper has 9."""


def check_verb(args: argparse.Namespace) -> None:
    """Tells of one COCO file, or of every source of a run's settings, and then all that is wrong."""
    console, cache = Console(), cache_of(args.cache)
    settings = read_settings(find_config(args.config), args.set) if args.config else None
    if settings is None and args.set:
        raise InputError("--set: changes the settings of --config, which is not given")
    if args.annotations is not None:
        space = LabelSpace.of(category_names(args.annotations))
        source = coco_source(args, space, cache)
        problems = _told(source, str(args.annotations), console)
        _print_coverage(source, settings, console)
    elif settings is not None:
        refuse_given(
            args, ["images"], "goes with --annotations; --config says where its pictures are"
        )
        problems = _all_told(settings, args.faults == "drop", cache, console)
    else:
        raise InputError(
            "check needs --annotations and --images, a COCO file and its pictures, or --config, whose "
            "sources may be of any kind"
        )
    if problems:
        raise InputError(list(dict.fromkeys(problems)))  # two sources may share a file
    console.print("no faults")


def _all_told(settings: RunSettings, drop: bool, cache: Path, console: Console) -> list[str]:
    """Tells of every source of a run; returns what is wrong with them, and between them."""
    render(settings, distributed.start("cpu"), console)
    data, problems, loaded = settings.data, [], {}
    splits = {"val": data.val} | ({} if data.test is None else {"test": data.test})
    for name, source in [*data.sources.items(), *splits.items()]:
        if drop:
            source = source.model_copy(update={"faults": "drop"})
        try:
            loaded[name] = source.load(
                name, data.root, data.label_space(), cache, data.maps, data.tags, data.details
            )
        except InputError as error:
            problems += error.problems
            continue
        problems += _told(loaded[name], name, console)
        if name not in splits:  # anchors that fit what is measured on would be fitted to it
            _print_coverage(loaded[name], settings, console)
    try:
        needed = [*sources_read(settings), *splits]
    except InputError as error:
        return problems + error.problems
    if unread := [name for name in needed if name not in loaded]:
        names = " and ".join(f"'{name}'" for name in unread)
        console.print(
            f"sources are compared with each other once {names} can be read",
            markup=False,
            soft_wrap=True,
        )
        return problems
    drawn = [loaded[name] for name in settings.mix_sources()]
    for note in idle_weights(settings, drawn, labelled=False):
        console.print(note, markup=False, soft_wrap=True)
    try:
        for note in contradictions(labelled_already(settings, loaded)):
            console.print(note, markup=False, soft_wrap=True)
        read = {name: loaded[name] for name in needed}
        return problems + faults_between(settings, read | pools_apart(read))
    except InputError as error:
        return problems + error.problems


def _told(source: Source, title: str, console: Console) -> list[str]:
    """Tells what a source has; returns what is wrong with its pictures."""
    table = Table(title=escape(f"{title}: {len(source)} pictures"), title_justify="left")
    for column in ("class", "boxes", "pictures", "ignored", "median side (px)", "coverage"):
        justify = "left" if column == "class" else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in class_rows(source):
        side = f"{row.side:.0f}" if row.side == row.side else "-"
        table.add_row(
            escape(row.name),
            str(row.boxes),
            str(row.pictures),
            str(row.ignored),
            side,
            f"{row.coverage:.2f}",
        )
    if source.annotations is None:
        console.print(f"{title}: {len(source)} pictures without boxes", markup=False)
    else:
        console.print(table)
    for note in source.notes:
        console.print(note, markup=False)
    with bar(console) as progress:
        task = progress.add_task("Reading every picture", total=None)
        return check_source(
            source,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _print_coverage(source: Source, settings: RunSettings | None, console: Console) -> None:
    """Prints how many anchors learn a box and how well anchors reach the boxes: those of a run's settings, or
    the usual ones; of a matching without a threshold that there is nothing to reach."""
    if source.annotations is None:
        return
    size, task, levels = InputSettings(), DetectionConfig(), FPNSettings().levels
    if settings is not None:
        detections = [t for t in settings.tasks.values() if isinstance(t, DetectionConfig)]
        if not detections:
            return
        size, task, levels = settings.input, detections[0], settings.model.fpn.levels
    strides = [8 * 2**i for i in range(levels)]
    told = learners(source, size, task, strides)
    if told is not None:
        console.print(told.told(), markup=False, soft_wrap=True)
    if task.matching.kind == "atss":
        console.print(
            "anchors: matching.kind is atss, by which each box finds its own threshold; there is no overlap "
            "that its boxes must reach, and no anchors are proposed",
            markup=False,
            soft_wrap=True,
        )
        number = task.anchors.num_anchors
        if number > 1 and number * task.matching.candidates > FEW_CANDIDATES:
            console.print(
                f"anchors: {number} a place at {task.matching.candidates} places of a level give a box many "
                "poor anchors; atss does better with one, anchors: {octaves: 1, ratios: [1]}, or with "
                f"matching.candidates: {max(1, round(FEW_CANDIDATES / 2 / number))}",
                markup=False,
                soft_wrap=True,
            )
        return
    found = coverage_table(source, size, task.anchors, strides, task.matching.foreground)
    if found is None:
        return
    table, proposal = found
    console.print(table)
    changes = proposal.model_dump(include={"base_scale", "octaves", "ratios"})
    console.print(f"proposed: anchors: {json.dumps(changes)}".replace('"', ""), markup=False)
