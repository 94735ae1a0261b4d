"""The verb `check`: tells whether data are fit for training."""

import argparse
import json

from rich.console import Console
from rich.table import Table

from detmtl.config import find_config, read_settings
from detmtl.data.coco import category_names
from detmtl.data.faults import check_source, class_rows
from detmtl.data.fit import InputSettings
from detmtl.data.source import Source
from detmtl.models.fpn import FPNSettings
from detmtl.report.progress import bar
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.tasks.anchor_coverage import coverage_table
from detmtl.tasks.detection import DetectionConfig
from detmtl.verbs.options import cache_of, coco_source


def check_verb(args: argparse.Namespace) -> None:
    space = LabelSpace.of(category_names(args.annotations))
    source = coco_source(args.annotations, args.images, space, cache_of(args.cache))
    table = Table(title=f"{args.annotations}: {len(source)} pictures", title_justify="left")
    for column in ("class", "boxes", "pictures", "ignored", "median side (px)", "coverage"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in class_rows(source):
        side = f"{row.side:.0f}" if row.side == row.side else "-"
        table.add_row(
            row.name,
            str(row.boxes),
            str(row.pictures),
            str(row.ignored),
            side,
            f"{row.coverage:.2f}",
        )
    console = Console()
    console.print(table)
    _print_coverage(args, source, console)
    with bar(console) as progress:
        task = progress.add_task("Reading every picture", total=None)
        problems = check_source(
            source,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if problems:
        raise InputError(problems)
    console.print("no faults")


def _print_coverage(args: argparse.Namespace, source: Source, console: Console) -> None:
    """Prints how well anchors reach the boxes: those of a run's settings, or the usual ones."""
    size, task, levels = InputSettings(), DetectionConfig(), FPNSettings().levels
    if args.config:
        settings = read_settings(find_config(args.config), args.set)
        detections = [t for t in settings.tasks.values() if isinstance(t, DetectionConfig)]
        if not detections:
            return
        size, task, levels = settings.input, detections[0], settings.model.fpn.levels
    elif args.set:
        raise InputError("--set: changes the settings of --config, which is not given")
    strides = [8 * 2**i for i in range(levels)]
    found = coverage_table(source, size, task.anchors, strides, task.matching.foreground)
    if found is None:
        return
    table, proposal = found
    console.print(table)
    changes = proposal.model_dump(include={"base_scale", "octaves", "ratios"})
    console.print(f"proposed: anchors: {json.dumps(changes)}".replace('"', ""), markup=False)
