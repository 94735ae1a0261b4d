"""The verbs that use a model: evaluate, predict, export."""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detmtl.data.loader import evaluation_batches
from detmtl.engine import distributed
from detmtl.engine.evaluator import evaluate
from detmtl.engine.memory import keep_freed_memory
from detmtl.inference.export import export
from detmtl.inference.formats import SUFFIXES
from detmtl.inference.predictor import (
    LoadedModel,
    Predictor,
    change_test,
    load_checkpoint,
    load_predictor,
)
from detmtl.inference.results import predict_to_files
from detmtl.inference.scoring import evaluate_predictor
from detmtl.inference.views import ViewSettings
from detmtl.inference.views_predictor import ViewsPredictor
from detmtl.metrics.coco import boxes_of_files, numbered, score
from detmtl.metrics.coco_files import warn_of_silver
from detmtl.metrics.mistakes import KINDS, Mistakes, mistakes
from detmtl.report.progress import bar
from detmtl.report.run_summary import OF_CLASSES
from detmtl.run_training import truth_of
from detmtl.silver.share_table import MOST
from detmtl.structures.errors import InputError
from detmtl.structures.exported import exported_format
from detmtl.structures.labels import Grade
from detmtl.structures.whole import write_json
from detmtl.tasks.task import Task
from detmtl.verbs.options import (
    assignments,
    cache_beside,
    gold_source,
    refuse_given,
    writable,
    writable_file,
)
from detmtl.yaml_settings import checked

_OF_A_MODEL = (
    "checkpoint",
    "trust",
    "images",
    "maps",
    "categories",
    "tags",
    "depth",
    "depth_unit",
    "faults",
    "cache",
    "device",
    "precision",
    "flip",
    "scales",
    "tile",
    "overlap",
    "set",
)
"""Options of `evaluate` that say which model sees what, and how."""


_OF_A_CLASS = re.compile(rf"(?:[^/]+/)?(?:{'|'.join(OF_CLASSES)})/(.+)", re.DOTALL)
"""A number of one class, perhaps of a task; the class in a group."""


def evaluate_verb(args: argparse.Namespace) -> None:
    """Prints the numbers of a model, or of a results file, on gold."""
    console, made = Console(), None
    if args.json:
        writable_file(args.json, f"--json {args.json}")
    if args.detections:
        refuse_given(
            args,
            _OF_A_MODEL,
            "would change nothing beside --detections, whose boxes are compared with --annotations as they "
            "are; leave it out, or give --checkpoint and --images in place of --detections",
        )
        if args.annotations is None:
            raise InputError("evaluate needs --annotations beside --detections")
        boxes = truth, _, _, names = boxes_of_files(args.detections, args.annotations)
        scores = score(*boxes)
        gold_boxes = Counter(names[c] for c in truth.categories[~truth.crowd].tolist())
        if args.mistakes:
            truth, found, _, _ = numbered(*boxes)
            made = mistakes(truth, found, len(names))
    else:
        refuse_given(
            args,
            ["mistakes"],
            "is told of a file: let predict write one of these pictures, and give it as --detections",
        )
        if not (args.checkpoint and args.images):
            raise InputError("evaluate needs --checkpoint and --images, or --detections")
        if not (args.annotations or args.maps or args.tags or args.depth):
            raise InputError("evaluate needs gold: --annotations, --maps, --tags or --depth")
        process = distributed.start(args.device)
        console = Console(quiet=process.rank > 0)
        with cache_beside(args.checkpoint, args.cache) as cache:
            scores, gold_boxes = _scores(args, cache, process, console)
    gold = args.annotations or args.maps or args.tags or args.depth
    table = Table(title=escape(str(gold)), title_justify="left")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right")
    rare = _of_rare_classes(scores, gold_boxes)
    for name, value in scores.items():
        if name not in rare:
            table.add_row(escape(name), _told(value))
    console.print(table)
    if rare:
        console.print(
            f"{len(rare)} numbers of further classes, which have fewer boxes in gold, are in the file of "
            f"{args.json or '--json'}",
            markup=False,
            soft_wrap=True,
        )
    if made is not None:
        console.print(_mistakes_table(made))
        scores |= {f"lost/{kind}": value for kind, value in made.lost.items()}
    if args.json and distributed.rank() == 0:
        write_json(args.json, scores)


def _told(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"


def _mistakes_table(made: Mistakes) -> Table:
    """Returns what is told of mistakes, the dearest kind first."""
    table = Table(title="mistakes, and what AP50 would gain without them", title_justify="left")
    table.add_column("kind")
    table.add_column("what it is", overflow="fold")
    table.add_column("how many", justify="right")
    table.add_column("AP50 lost", justify="right")
    for kind in sorted(KINDS, key=lambda kind: -made.lost[kind]):
        table.add_row(kind, KINDS[kind], f"{made.counts[kind]:,}", _told(made.lost[kind]))
    return table


def _of_rare_classes(scores: Iterable[str], gold_boxes: Mapping[str, int]) -> set[str]:
    """Returns the names of the numbers that are left out of the table where it would be too long: those of
    all but `MOST` classes, the ones with the most boxes in gold."""
    of_class = {name: found[1] for name in scores if (found := _OF_A_CLASS.fullmatch(name))}
    order = sorted(dict.fromkeys(of_class.values()), key=lambda name: -gold_boxes.get(name, 0))
    return {name for name, of in of_class.items() if of in order[MOST:]}


def _scores(
    args: argparse.Namespace, cache: Path, process: distributed.Process, console: Console
) -> tuple[dict[str, float], Mapping[str, int]]:
    """Returns the numbers of a checkpoint on the gold that the options name, and how many boxes of each class
    that has."""
    seen = _views(args)
    keep_freed_memory()
    loaded = load_checkpoint(args.checkpoint, args.trust)
    _refuse_unscored(args, loaded)
    source = gold_source(args, loaded.settings["data"], cache)
    if source.annotations is not None and source.grade == Grade.SILVER:
        warn_of_silver(str(args.annotations))
    predictor = Predictor(loaded, process.device, args.precision)
    change_test(predictor, assignments(args.set), "--set")
    with bar(console) as progress:
        task = progress.add_task("Scoring", total=len(source))

        def done(pictures: int) -> None:
            progress.advance(task, pictures * process.world)

        if not seen.plain:
            several = ViewsPredictor(predictor, seen)
            scores = evaluate_predictor(
                several,
                {n: task for n, task in predictor.tasks.items() if n not in several.left_out},
                source,
                process.rank,
                process.world,
                done,
            )
        else:
            scores = evaluate(
                predictor.model,
                evaluation_batches(
                    source, loaded.short, loaded.long, 1, 0, process.rank, process.world
                ),
                process.device,
                args.precision,
                truth=truth_of(source),
                on_batch=lambda batch, _: done(len(batch)),
            )
    boxes = [] if source.annotations is None else source.annotations.classes.tolist()
    return scores, Counter(source.classes[c] for c in boxes)


def _refuse_unscored(args: argparse.Namespace, loaded: LoadedModel) -> None:
    """Refuses gold on which no task of the model is scored."""
    read = {
        name: task.labels for name, task in loaded.model.tasks.items() if isinstance(task, Task)
    }
    told = ", ".join(f"{name} ({labels})" for name, labels in read.items())
    why = f"no task of {args.checkpoint} is scored on it; its tasks, and what they read, are {told}"
    refuse_given(
        args, [kind for kind in ("maps", "tags", "depth") if kind not in read.values()], why
    )
    tags = loaded.settings["data"].get("tags") or {}
    alone = not (
        args.maps or args.tags or args.depth
    )  # beside them it says which pictures there are
    if alone and "boxes" not in read.values() and not tags.get("from_boxes"):
        refuse_given(args, ["annotations"], why)


def _views(args: argparse.Namespace) -> ViewSettings:
    if args.tile is None:
        refuse_given(args, ["overlap"], "is that of --tile, which is not given; give it, too")
    values = {"flip": args.flip, "tile": args.tile, "tile_overlap": args.overlap}
    scales = {"scales": tuple(args.scales)}
    return checked(ViewSettings, values | scales, where="views of a picture")


def predict_verb(args: argparse.Namespace) -> None:
    """Predicts pictures and videos into files."""
    format = exported_format(args.model)
    if format is not None:
        refuse_given(
            args,
            ["precision"],
            f"{args.model} is an exported file, whose precision is its own; leave it out, export another "
            "with --dtype, or give the checkpoint (best.pt)",
        )
    if format in SUFFIXES and args.device == "auto":
        args.device = "cpu"  # where alone such files run
    seen, device = _views(args), str(distributed.pick_device(args.device))
    writable(args.out, f"--out {args.out}")
    keep_freed_memory()
    predictor = load_predictor(args.model, device, args.precision, args.compile, args.trust)
    change_test(predictor, assignments(args.set), "--set")
    if not seen.plain:
        predictor = ViewsPredictor(predictor, seen, args.batch_size)
    with bar(Console()) as progress:
        task = progress.add_task("Predicting", total=None)
        results = predict_to_files(
            predictor,
            args.source,
            args.out,
            args.batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            draw_from=args.draw_from,
        )
    Console(soft_wrap=True).print(
        f"drawings: {args.out / 'drawn'} (boxes from a score of {args.draw_from:g} on: --draw-from)\n"
        f"results: {results}",
        markup=False,
    )


def export_verb(args: argparse.Namespace) -> None:
    """Writes a file to deploy."""
    writable_file(args.out, f"--out {args.out}")
    report = export(args.checkpoint, args.out, args.format, args.dtype, trust=args.trust)
    Console(soft_wrap=True).print(str(report), markup=False)
