"""The command line: `detmtl VERB ...`, and the same from `python tools/VERB.py ...`.

Exit status: 0 done; 1 the run failed; 2 what the user gave is wrong, told in a sentence each.
"""

import argparse
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from detmtl import __version__
from detmtl.compare import Request, compare
from detmtl.comparing.settings import parse_seeds
from detmtl.config import find_config, read_settings, settings_schema
from detmtl.data.coco import CocoSource, category_names, read_labels
from detmtl.data.faults import check_source, class_rows
from detmtl.data.fit import InputSettings
from detmtl.data.folder import FolderSource
from detmtl.data.loader import evaluation_batches
from detmtl.data.maps import Legend, MapClasses, MapFolder
from detmtl.data.source import Source
from detmtl.data.sources import AnySource
from detmtl.data.tags import TagClasses, TagFile
from detmtl.data.voc import write_voc
from detmtl.data.yolo import write_yolo
from detmtl.engine import distributed
from detmtl.engine.evaluator import evaluate
from detmtl.engine.trainer import TrainingDiverged
from detmtl.inference.export import FORMATS, ExportError, export
from detmtl.inference.predictor import Predictor, change_test, load_checkpoint, load_predictor
from detmtl.inference.results import predict_to_files
from detmtl.inference.scoring import evaluate_predictor
from detmtl.inference.torchscript import is_torchscript
from detmtl.inference.views import ViewSettings
from detmtl.inference.views_predictor import ViewsPredictor
from detmtl.metrics.coco import evaluate_files
from detmtl.models.fpn import FPNSettings
from detmtl.pools import calibrated, show_others
from detmtl.recipe import bar, run, truth_of, write_json
from detmtl.report.audit_boxes import boxes_page
from detmtl.report.audit_page import write_audit_page
from detmtl.report.page import require
from detmtl.silver.audit import audit, audit_folder
from detmtl.silver.corrections import take_back, write_rest, write_verified
from detmtl.silver.held_out import refuse_seen
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.others import Others
from detmtl.silver.selection import SelectionSettings, resolve_band, resolve_thresholds, select
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.tasks.anchor_coverage import coverage_table
from detmtl.tasks.detection import DetectionConfig
from detmtl.teachers.annotate import annotate
from detmtl.teachers.teachers import AnyTeacher
from detmtl.transfer import transfer


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    warnings.showwarning = _one_line  # type: ignore[assignment]
    args = _parser().parse_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return args.verb(args) or 0
    except InputError as error:
        for line in str(error).splitlines():
            errors.print(f"error: {line}", markup=False)
        return 2
    except (TrainingDiverged, ExportError) as error:
        errors.print(f"failed: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from the last checkpoint")
        return 130
    finally:
        distributed.stop()


def _train(args: argparse.Namespace) -> None:
    path = find_config(args.config)
    out = args.resume or args.out or Path("runs") / path.stem
    if args.resume and not (args.resume / "settings.yaml").is_file():
        raise InputError(f"--resume {args.resume}: holds no run (no settings.yaml in it)")
    run(read_settings(path, args.set), out)


def _compare(args: argparse.Namespace) -> int:
    return _many_runs(args, compare)


def _transfer(args: argparse.Namespace) -> int:
    return _many_runs(args, transfer)


def _many_runs(args: argparse.Namespace, function: Callable[[Request], int]) -> int:
    path = find_config(args.config)
    request = Request(
        config=path,
        out=args.out or Path("runs") / path.stem,
        overrides=args.set,
        seeds=parse_seeds(args.seeds) if args.seeds else None,
        only=args.only,
        parallel=args.jobs,
        threads=args.threads,
        report_only=args.report_only,
    )
    try:
        return function(request)
    except KeyboardInterrupt:
        Console(stderr=True).print("--report-only reports what is finished")
        raise


def _annotate(args: argparse.Namespace) -> None:
    process = distributed.start(args.device)
    teacher = _teacher(args.teacher).load(Path.cwd(), str(process.device))
    cache = _cache(args.out)
    pool = FolderSource(images=str(args.images.absolute())).load(
        "images", Path("/"), LabelSpace.of(["object"]), cache
    )
    store = annotate(
        teacher,
        [pool],
        args.out,
        floor=args.floor,
        batch_size=args.batch_size,
        rank=process.rank,
        world=process.world,
        progress=process.rank == 0,
        root=args.images,
    )
    distributed.barrier()
    if process.rank == 0:
        Console().print(
            f"{args.out}: {len(Store.open(store.path, store.card.name))} pictures labelled"
        )


def _audit(args: argparse.Namespace) -> None:
    if args.html:
        require()
    store = Store.open(args.store, args.teacher)
    if store.card.task != "boxes":
        others, gold = _others(args, store, args.set)
        _refuse_seen(args, gold, LabelSpace.of(["object"]))
        checked = others.audit(gold)
        problems = show_others(others, checked, gold, Console(), args.html)
        _stop_at_gates(args.store, problems)
        return
    if args.annotations is None:
        raise InputError("--annotations is needed: gold, a COCO file")
    space = _space(args, args.annotations)
    gold = _coco(args.annotations, args.images, space, _cache(args.store))
    _refuse_seen(args, gold, space)
    policy = _values(SelectionSettings, _assignments(args.set), "--set")
    checked = audit(store, gold, space, policy.nms)
    thresholds = resolve_thresholds(store, space, policy, checked)
    band = resolve_band(store, space, policy, checked)
    Console().print(checked.table(thresholds))
    files = [audit_folder(store.path, checked.gold_hash) / "audit.json"]
    if args.html:
        calibrate = calibrated(checked, Console())
        html = boxes_page(checked, gold, store.card.name, thresholds, band, calibrate)
        files.append(write_audit_page(store.path, checked.gold_hash, html))
    for path in files:
        Console(soft_wrap=True).print(str(path), markup=False)
    _stop_at_gates(args.store, checked.problems(thresholds))


def _refuse_seen(args: argparse.Namespace, gold: Source, space: LabelSpace) -> None:
    for folder in args.learned_from:
        seen = FolderSource(images=str(folder.absolute()))
        refuse_seen([seen.load(str(folder), Path("/"), space, _cache(args.store))], gold)


def _stop_at_gates(store: Path, problems: Sequence[str]) -> None:
    if problems:
        raise InputError([f"{store}: {problem}" for problem in problems])


def _others(args: argparse.Namespace, store: Store, policy: Sequence[str]) -> tuple[Others, Source]:
    """Returns what a store of maps or tags means, and its pictures with the gold that there is."""
    task, values = store.card.task, _assignments(policy)
    if args.images is None:
        raise InputError(f"--images is needed: the folder of the pictures whose {task} are wanted")
    maps, tags, map_gold, tag_gold = None, None, None, None
    if task == "maps":
        names = list(store.card.classes)
        map_gold = _map_gold(args)
        if map_gold:
            names = list(Legend.read(args.categories).categories.values())
        classes = _yaml(args.classes, "--classes") if args.classes else names
        unmapped = "unknown" if args.drop_unmapped or not args.classes else "error"
        maps = _values(MapClasses, {"classes": classes, "unmapped": unmapped}, "--classes")
    else:
        tag_gold = _tag_gold(args)
        classes = _yaml(args.classes, "--classes") if args.classes else list(store.card.classes)
        unmapped = "drop" if args.drop_unmapped or not args.classes else "error"
        tags = _values(TagClasses, {"classes": classes, "unmapped": unmapped}, "--classes")
    source = FolderSource(images=str(args.images.absolute()), maps=map_gold, tags=tag_gold)
    loaded = source.load(
        args.images.name, Path("/"), LabelSpace.of(["object"]), _cache(args.store), maps, tags
    )
    others = Others.of(
        store,
        maps,
        tags,
        _values(MapSelection, values if task == "maps" else {}, "--set"),
        _values(TagSelection, values if task == "tags" else {}, "--set"),
    )
    return others, loaded


def _select(args: argparse.Namespace) -> None:
    store = Store.open(args.store, args.teacher)
    if store.card.task != "boxes":
        others, pool = _others(args, store, args.set)
        judged = pool.maps is not None or pool.tags is not None
        chosen = others.select(pool, others.audit(pool) if judged else None)
        try:
            shutil.copytree(chosen, args.out)
        except OSError as error:
            raise InputError(f"--out {args.out}: cannot be written ({error})") from None
        Console().print(f"labels: {args.out}")
        return
    space = _space(args, None, store.card.classes)
    policy = _values(SelectionSettings, _assignments(args.set), "--set")
    checked = None
    if args.annotations:
        gold = _coco(args.annotations, args.images, space, _cache(args.store))
        checked = audit(store, gold, space, policy.nms)
    chosen = select(store, None, space, policy, checked)
    _write_labels(args.out, args.format, chosen, space)
    counts = json.loads((chosen.parent / "stats.json").read_text())
    Console().print_json(data=counts)
    Console().print(f"labels: {args.out}")


def _write_labels(out: Path, format: str, chosen: Path, space: LabelSpace) -> None:
    """Writes a selection as a COCO file, or as a folder of label files."""
    if format == "coco":
        _write_text(out, chosen.read_text())
        return
    _writable(out, f"--out {out}")
    labels = read_labels(chosen, space.names)
    {"yolo": write_yolo, "voc": write_voc}[format](out, labels)


def _import(args: argparse.Namespace) -> None:
    reviewed = None if args.reviewed is None else _yaml(args.reviewed, "--reviewed")
    if reviewed is not None and not isinstance(reviewed, list):
        raise InputError(f"--reviewed {args.reviewed}: must be a list in YAML")
    for out in filter(None, (args.out, args.rest)):
        _writable(out.parent, str(out))
    corrections = take_back(args.sent, args.back, reviewed, args.finished)
    write_verified(corrections, args.sent, args.out)
    console = Console()
    console.print(corrections.table())
    console.print(f"verified: {args.out}")
    if args.rest:
        console.print(f"not finished: {write_rest(corrections, args.sent, args.rest)}: {args.rest}")


def _evaluate(args: argparse.Namespace) -> None:
    console = Console()
    if args.json:
        _writable(args.json.parent, f"--json {args.json}")
    if args.detections:
        if args.annotations is None:
            raise InputError("evaluate needs --annotations beside --detections")
        scores = evaluate_files(args.detections, args.annotations)
    else:
        if not (args.checkpoint and args.images):
            raise InputError("evaluate needs --checkpoint and --images, or --detections")
        if not (args.annotations or args.maps or args.tags):
            raise InputError("evaluate needs gold: --annotations, --maps or --tags")
        process = distributed.start(args.device)
        console = Console(quiet=process.rank > 0)
        scores = _scores(args, process, console)
    gold = args.annotations or args.maps or args.tags
    table = Table(title=str(gold), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}" if value == value else "-")
    console.print(table)
    if args.json and distributed.rank() == 0:
        write_json(args.json, scores)


def _scores(
    args: argparse.Namespace, process: distributed.Process, console: Console
) -> dict[str, float]:
    """Returns the numbers of a checkpoint on the gold that the options name."""
    loaded = load_checkpoint(args.checkpoint)
    source = _gold(args, loaded.settings["data"], _cache(args.checkpoint.parent))
    predictor, seen = Predictor(loaded, process.device, args.precision), _views(args)
    change_test(predictor, _assignments(args.set), "--set")
    with bar(console) as progress:
        task = progress.add_task("Scoring", total=len(source))

        def done(pictures: int) -> None:
            progress.advance(task, pictures * process.world)

        if not seen.plain:
            return evaluate_predictor(
                ViewsPredictor(predictor, seen),
                predictor.tasks,
                source,
                process.rank,
                process.world,
                done,
            )
        return evaluate(
            predictor.model,
            evaluation_batches(
                source, loaded.short, loaded.long, 1, 0, process.rank, process.world
            ),
            process.device,
            args.precision,
            truth=truth_of(source),
            on_batch=lambda batch, _: done(len(batch)),
        )


def _views(args: argparse.Namespace) -> ViewSettings:
    values = {"flip": args.flip, "tile": args.tile, "tile_overlap": args.overlap}
    return _values(ViewSettings, values | {"scales": tuple(args.scales)}, "views of a picture")


def _predict(args: argparse.Namespace) -> None:
    _writable(args.out, f"--out {args.out}")
    device = str(distributed.pick_device(args.device))
    predictor = load_predictor(args.model, device, args.precision, args.compile)
    seen = _views(args)
    change_test(predictor, _assignments(args.set), "--set")
    if not seen.plain:
        predictor = ViewsPredictor(predictor, seen)
    with bar(Console()) as progress:
        task = progress.add_task("Predicting", total=None)
        results = predict_to_files(
            predictor,
            args.source,
            args.out,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    Console().print(f"drawings: {args.out / 'drawn'}\nresults: {results}")


def _export(args: argparse.Namespace) -> None:
    _writable(args.out.parent, f"--out {args.out}")
    Console().print(str(export(args.checkpoint, args.out, args.format, args.dtype)))


def _check(args: argparse.Namespace) -> None:
    space = LabelSpace.of(category_names(args.annotations))
    source = _coco(args.annotations, args.images, space, _cache(args.cache))
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


def _schema(args: argparse.Namespace) -> None:
    if args.out:
        _write_text(args.out, settings_schema())
    else:
        sys.stdout.write(settings_schema())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detmtl", description="Object detection from scarce labels."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Callable[[argparse.Namespace], int | None], summary: str) -> Any:
        made = verbs.add_parser(name, help=summary, description=summary)
        made.set_defaults(verb=function)
        return made

    _run_verbs(verb)
    _silver_verbs(verb)
    _model_verbs(verb)
    return parser


def _run_verbs(verb: Callable[..., Any]) -> None:
    """Adds what trains."""
    p = verb(
        "train", _train, "Runs a whole recipe; the same command again goes on where it stopped."
    )
    p.add_argument("--config", required=True, help="a path, or a name in configs/")
    p.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="override a setting"
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="run folder; by default runs/<config's name>")
    where.add_argument("--resume", type=Path, metavar="DIR", help="a run folder to go on with")

    p = verb(
        "compare", _compare, "Trains several arms over the same seeds and says which is better."
    )
    _options_of_many_runs(p)
    p = verb(
        "transfer",
        _transfer,
        "Trains tasks alone and together and says whether they help each other.",
    )
    _options_of_many_runs(p)


def _options_of_many_runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--config", required=True, help="a path, or a name in configs/")
    p.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="a setting of all runs"
    )
    p.add_argument("--seeds", help="a count (5), a range (0-4) or a list (0,3,7)")
    p.add_argument("--only", action="append", default=[], metavar="ARM", help="runs this arm alone")
    p.add_argument("--jobs", type=_count, default=1, help="runs at once")
    p.add_argument("--threads", type=_count, help="of each run")
    p.add_argument("--out", type=Path, help="folder; by default runs/<config's name>")
    p.add_argument(
        "--report-only", action="store_true", help="runs nothing, reports what is finished"
    )


def _silver_verbs(verb: Callable[..., Any]) -> None:
    """Adds what makes, judges and chooses silver labels."""
    p = verb(
        "annotate", _annotate, "Writes a teacher's labels of pictures to a store, or continues one."
    )
    p.add_argument(
        "--teacher",
        required=True,
        help="a checkpoint, a TorchScript file, a YAML file of settings, or the settings themselves",
    )
    p.add_argument("--images", required=True, type=Path, help="a folder")
    p.add_argument("--out", required=True, type=Path, help="the store's folder")
    p.add_argument("--floor", type=_share, default=0.05, help="lowest score to keep")
    p.add_argument("--batch-size", type=_count, default=8)
    p.add_argument("--device", default="auto")

    p = verb("audit", _audit, "Compares a store of silver labels with gold.")
    p.add_argument("--store", required=True, type=Path)
    p.add_argument("--annotations", type=Path, help="gold, a COCO file (of boxes)")
    p.add_argument("--images", required=True, type=Path)
    p.add_argument("--teacher", help="whose labels, where the store holds several teachers'")
    p.add_argument("--html", action="store_true", help="writes a page with plots and pictures too")
    p.add_argument("--set", action="append", default=[], metavar="A=VALUE", help="of the policy")
    p.add_argument(
        "--learned-from",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="pictures that the teacher was trained on; gold must not have any of them",
    )
    _gold_options(p)
    _class_options(p)

    p = verb("select", _select, "Turns a store into labels, a COCO file.")
    p.add_argument("--store", required=True, type=Path)
    p.add_argument("--teacher", help="whose labels, where the store holds several teachers'")
    p.add_argument(
        "--out", required=True, type=Path, help="a COCO file; of maps and tags, a new folder"
    )
    p.add_argument("--set", action="append", default=[], metavar="A=VALUE", help="of the policy")
    p.add_argument(
        "--annotations", type=Path, help="gold for the audit that a wanted precision needs"
    )
    p.add_argument(
        "--format",
        default="coco",
        choices=["coco", "yolo", "voc"],
        help="yolo, voc: --out is a folder",
    )
    p.add_argument("--images", type=Path, help="of --annotations; of maps and tags, those wanted")
    _gold_options(p)
    _class_options(p)

    p = verb(
        "import",
        _import,
        "Takes back what people corrected in another tool: as gold, and as an audit.",
    )
    p.add_argument("--sent", required=True, type=Path, help="the COCO file that they got")
    p.add_argument("--back", required=True, type=Path, help="the COCO file that their tool wrote")
    p.add_argument("--out", required=True, type=Path, help="COCO file of the finished pictures")
    p.add_argument("--rest", type=Path, help="COCO file of the others, as they were sent")
    p.add_argument(
        "--finished",
        type=Path,
        help="text file that names them, one a line; by default all of --back",
    )
    p.add_argument(
        "--reviewed", help="YAML list of the classes that were gone through; by default all"
    )


def _model_verbs(verb: Callable[..., Any]) -> None:
    """Adds what uses a model, and what looks at data and settings."""
    p = verb("evaluate", _evaluate, "Prints the COCO numbers of a checkpoint or of a results file.")
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--detections", type=Path, help="a COCO results file")
    p.add_argument("--annotations", type=Path, help="gold boxes, a COCO file")
    p.add_argument("--images", type=Path)
    _gold_options(p)
    p.add_argument("--json", type=Path, help="writes the numbers there too")
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    _view_options(p)

    p = verb(
        "predict", _predict, "Finds objects in pictures and videos, draws them and writes a file."
    )
    p.add_argument("--model", required=True, type=Path, help="a checkpoint or a TorchScript file")
    p.add_argument("--source", required=True, nargs="+", help="pictures, folders or videos")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    _view_options(p)
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the network of a checkpoint: slow to start, for many pictures of few sizes",
    )

    p = verb("export", _export, "Writes a file to deploy, after checking that it agrees.")
    p.add_argument("--checkpoint", required=True, type=Path)
    p.add_argument("--format", default="torchscript", choices=FORMATS)
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    p.add_argument("--out", required=True, type=Path)

    p = verb("check", _check, "Tells whether a data set is fit for training.")
    p.add_argument("--annotations", required=True, type=Path)
    p.add_argument("--images", required=True, type=Path)
    p.add_argument("--cache", type=Path, default=Path("runs"), help="folder for what was computed")
    p.add_argument("--config", help="of a run, whose anchors and input size are looked at")
    p.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="of --config")

    p = verb("schema", _schema, "Writes the JSON schema of the settings, for editors.")
    p.add_argument("--out", type=Path)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; it lies in [0, 1)")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; it is at least 1")
    return value


_share.__name__, _count.__name__ = "number", "whole number"  # argparse tells them to the user


def _view_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is looked at in a picture, and which boxes come out."""
    parser.add_argument("--flip", action="store_true", help="looks at the mirrored picture too")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SCALE",
        help="looks at each of them",
    )
    parser.add_argument(
        "--tile", type=_count, metavar="PIXELS", help="looks at tiles of that side too"
    )
    parser.add_argument("--overlap", type=_share, default=0.2, help="of neighboring tiles")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A=VALUE",
        help="of the task's test settings, such as class_agnostic=true or score_threshold=0.3",
    )


def _gold_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--maps", type=Path, help="gold maps: a folder of PNG files")
    parser.add_argument("--categories", type=Path, help="ids and names of --maps, a JSON file")
    parser.add_argument("--tags", type=Path, help="gold tags: a JSON file")


def _class_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        help="YAML: a list of classes, or class: [names that count as it]; by default all names",
    )
    parser.add_argument("--drop-unmapped", action="store_true", help="drop names of no class")


def _space(
    args: argparse.Namespace, annotations: Path | None, names: Sequence[str] | None = None
) -> LabelSpace:
    if args.classes:
        classes = _yaml(args.classes, "--classes")
        if not isinstance(classes, list | dict):
            raise InputError(f"--classes {args.classes}: must be a list or a mapping in YAML")
        return LabelSpace.of(classes, args.drop_unmapped)
    if annotations is not None:
        return LabelSpace.of(category_names(annotations), drop_unmapped=True)
    return LabelSpace.of(names or [])


def _map_gold(args: argparse.Namespace) -> MapFolder | None:
    if args.maps is None:
        return None
    if args.categories is None:
        raise InputError("--categories is needed beside --maps: a JSON file of ids and names")
    folder, categories = str(args.maps.absolute()), str(args.categories.absolute())
    return MapFolder(folder=folder, categories=categories, missing="absent")


def _tag_gold(args: argparse.Namespace) -> TagFile | None:
    return TagFile(file=str(args.tags.absolute()), missing="absent") if args.tags else None


def _gold(args: argparse.Namespace, data: Mapping[str, Any], cache: Path) -> Source:
    """Returns the pictures and the gold labels that the options name, in a trained model's classes."""
    classes, images = data.get("classes"), str(args.images.absolute())
    space = LabelSpace((), ())
    if classes:
        space = LabelSpace.of(classes, drop_unmapped=data["unmapped"] == "drop")
    kinds: dict[str, Any] = {"images": images, "maps": _map_gold(args), "tags": _tag_gold(args)}
    if args.annotations is None:
        source: AnySource = FolderSource(**kinds)
    else:
        source = CocoSource(annotations=str(args.annotations.absolute()), **kinds)
    maps, tags = (
        _values(kind, data[key], f"data.{key}") if data.get(key) else None
        for key, kind in (("maps", MapClasses), ("tags", TagClasses))
    )
    return source.load("gold", Path("/"), space, cache, maps, tags)


def _coco(annotations: Path, images: Path | None, space: LabelSpace, cache: Path) -> Source:
    if images is None:
        raise InputError("--images is needed beside --annotations")
    source = CocoSource(annotations=str(annotations.absolute()), images=str(images.absolute()))
    return source.load(annotations.stem, Path("/"), space, cache)


def _cache(folder: Path) -> Path:
    cache = Path(folder) / "cache"
    _writable(cache, str(folder))
    return cache


def _writable(folder: Path, where: str) -> None:
    """Makes a folder for what a verb writes: before its work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{where}: cannot be written ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{where}: cannot be written (no permission)")


def _teacher(spec: str) -> Any:
    """Returns a teacher's settings from the path of a model, of a YAML file, or from YAML."""
    path = Path(spec)
    if path.suffix in (".pt", ".pth"):
        scripted = path.is_file() and is_torchscript(path)
        tree: Any = {"kind": "torchscript" if scripted else "checkpoint", "path": spec}
    elif path.suffix in (".torchscript", ".ts"):
        tree = {"kind": "torchscript", "path": spec}
    else:
        is_file = path.suffix in (".yaml", ".yml")
        if is_file and not path.is_file():
            raise InputError(f"--teacher {spec}: no such file")
        tree = _yaml(path.read_text() if is_file else spec, "--teacher")
        if not isinstance(tree, dict):
            raise InputError(
                f"--teacher {spec}: is neither a checkpoint (.pt) nor a TorchScript file nor settings; "
                "an ONNX file needs settings such as '{kind: onnx, path: F, classes: NAMES.txt, "
                "adapter: {kind: yolox}}', torchvision's models '{kind: torchvision, model: "
                "retinanet_resnet50_fpn_v2, weights: DEFAULT}', results of another system '{kind: "
                "results, path: F, annotations: COCO_FILE}'"
            )
    return _values(AnyTeacher, tree, "--teacher")


def _values(kind: Any, tree: Any, where: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise InputError(
            [f"{where}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        ) from None


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: must be NAME=VALUE, such as threshold=0.4")
        values[name] = _yaml(value, f"--set {name}")
    return values


def _yaml(text: str, where: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{where}: is not YAML: {' '.join(str(error).split())}") from None


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from None


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
