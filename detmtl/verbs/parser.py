"""The verbs of the command line and their options; what they do stands beside."""

import argparse
from collections.abc import Callable
from pathlib import Path

from detmtl import __version__
from detmtl.inference.formats import FORMATS
from detmtl.structures.shown import SURE


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs; what it parses has the verb's name as `verb`, and as `default_of` what
    returns the default of one of its options."""
    parser = argparse.ArgumentParser(
        prog="detmtl", description="Object detection from scarce labels."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, (options, summary) in _VERBS.items():
        made = verbs.add_parser(name, help=summary, description=summary)
        made.set_defaults(verb=name, default_of=made.get_default)
        options(made)
    return parser


def _train(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--config", help="a path, or a name in configs/; by default the settings of --resume"
    )
    _set_option(p, "A.B=VALUE", "override a setting")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="run folder; by default runs/<config's name>")
    where.add_argument("--resume", type=Path, metavar="DIR", help="a run folder to go on with")


def _many_runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--config", required=True, help="a path, or a name in configs/")
    _set_option(p, "A.B=VALUE", "a setting of all runs")
    p.add_argument("--seeds", help="a count (5), a range (0-4) or a list (0,3,7)")
    p.add_argument("--only", action="append", default=[], metavar="ARM", help="runs this arm alone")
    p.add_argument(
        "--jobs", type=_count, default=1, help="runs at once; they take the GPUs in turn"
    )
    p.add_argument("--threads", type=_count, help="of each run")
    p.add_argument("--out", type=Path, help="folder; by default runs/<config's name>")
    p.add_argument(
        "--report-only", action="store_true", help="runs nothing, reports what is finished"
    )


def _annotate(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--teacher",
        required=True,
        help="a checkpoint, a TorchScript file, a YAML file of settings, or the settings themselves",
    )
    _trust_option(p)
    p.add_argument("--images", required=True, type=Path, help="a folder")
    _faults_option(p)
    p.add_argument("--out", required=True, type=Path, help="the store's folder")
    p.add_argument("--floor", type=_share, default=0.05, help="lowest score to keep")
    p.add_argument("--batch-size", type=_count, default=8)
    p.add_argument("--device", default="auto")


def _audit(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--store",
        required=True,
        type=Path,
        help="where it lies in the folder of its run: with that run's classes and policy, where the other "
        "options do not say otherwise",
    )
    p.add_argument("--annotations", type=Path, help="gold, a COCO file (of boxes)")
    p.add_argument("--images", required=True, type=Path)
    _teachers_option(p)
    p.add_argument("--html", action="store_true", help="writes a page with plots and pictures too")
    _set_option(p, "A=VALUE", "of the policy")
    p.add_argument(
        "--learned-from",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="pictures that the teacher was trained on; gold must not have any of them",
    )
    _gold_options(p)
    _faults_option(p)
    _class_options(p)


def _select(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--store",
        required=True,
        type=Path,
        help="where it lies in the folder of its run: with that run's classes, policy and gold, where the "
        "other options do not say otherwise",
    )
    _teachers_option(p)
    p.add_argument(
        "--out", required=True, type=Path, help="a COCO file; of maps and tags, a new folder"
    )
    _set_option(p, "A=VALUE", "of the policy")
    p.add_argument(
        "--annotations",
        type=Path,
        help="gold for the audit that a wanted precision and several teachers need",
    )
    p.add_argument(
        "--format",
        default="coco",
        choices=["coco", "yolo", "voc"],
        help="yolo, voc: --out is a folder",
    )
    p.add_argument("--images", type=Path, help="of --annotations; of maps and tags, those wanted")
    p.add_argument(
        "--pool",
        type=Path,
        metavar="DIR",
        help="of boxes: those of its pictures alone, under the names that they have there now; by default "
        "all that the store holds, of a run those of its audit too, under the names that they had",
    )
    p.add_argument(
        "--without",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE",
        help="COCO files whose pictures are left out of --pool, such as those that people have verified",
    )
    _gold_options(p)
    _faults_option(p)
    _class_options(p)


def _import(p: argparse.ArgumentParser) -> None:
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


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--checkpoint", type=Path)
    _trust_option(p)
    p.add_argument("--detections", type=Path, help="a COCO results file, or what predict wrote")
    p.add_argument("--annotations", type=Path, help="gold boxes, a COCO file")
    p.add_argument("--images", type=Path)
    _gold_options(p)
    p.add_argument("--depth", type=Path, help="gold depths: a folder of PNG files")
    p.add_argument(
        "--depth-unit",
        type=_positive,
        metavar="METERS",
        help="of a value of 1; by default what the folder says, or 0.001",
    )
    _faults_option(p)
    p.add_argument(
        "--mistakes",
        action="store_true",
        help="of --detections: how many mistakes of each kind, and what AP50 would gain without them",
    )
    p.add_argument("--json", type=Path, help="writes the numbers there too")
    p.add_argument(
        "--cache",
        type=Path,
        help="folder for what was computed; by default that of the checkpoint's run, or a temporary one",
    )
    _device_options(p)
    _view_options(p)


def _predict(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", required=True, type=Path, help="a checkpoint or an exported file")
    _trust_option(p)
    p.add_argument("--source", required=True, nargs="+", help="pictures, folders or videos")
    p.add_argument("--out", required=True, type=Path)
    _device_options(p)
    p.add_argument(
        "--batch-size",
        type=_count,
        default=1,
        help="pictures, or views of one, at once: 1 is the fastest on a CPU, more suit a GPU",
    )
    _view_options(p)
    p.add_argument(
        "--draw-from",
        type=_share,
        default=SURE,
        metavar="SCORE",
        help=f"boxes from this score on are drawn ({SURE}); the results file has all",
    )
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the network of a checkpoint: slow to start, for many pictures of few sizes",
    )


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("--checkpoint", required=True, type=Path)
    _trust_option(p)
    p.add_argument("--format", default="torchscript", choices=FORMATS)
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    p.add_argument("--out", required=True, type=Path)


def _check(p: argparse.ArgumentParser) -> None:
    p.add_argument("--annotations", type=Path, help="a COCO file; without one, all of --config")
    p.add_argument("--images", type=Path, help="of --annotations")
    p.add_argument("--cache", type=Path, default=Path("runs"), help="folder for what was computed")
    p.add_argument("--config", help="of a run, whose sources, anchors and input size are looked at")
    _faults_option(p)
    _set_option(p, "A.B=VALUE", "of --config")


def _schema(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=Path)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; it lies in [0, 1)")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}; it is above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; it is at least 1")
    return value


# argparse tells them to the user
_share.__name__ = _positive.__name__ = "number"
_count.__name__ = "whole number"


def _set_option(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=help)


def _device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "winograd", "bf16", "fp16"]
    )


def _view_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is looked at in a picture, and which boxes come out."""
    parser.add_argument("--flip", action="store_true", help="looks at the mirrored picture too")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SCALE",
        help="looks at each of them; above 1 cuts tiles, and test.detections is then of each tile",
    )
    parser.add_argument(
        "--tile",
        type=_count,
        metavar="PIXELS",
        help="looks at tiles of that side too; test.detections is then of each tile",
    )
    parser.add_argument("--overlap", type=_share, default=0.2, help="of neighboring tiles")
    _set_option(
        parser,
        "A=VALUE",
        "of the task's test settings, such as class_agnostic=true or score_threshold=0.3",
    )


def _faults_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faults",
        default="error",
        choices=["error", "drop"],
        help="drop: goes on without faulty pictures and labels, and counts them",
    )


def _trust_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="runs code outside of detmtl and timm that the checkpoint names, such as a task of yours",
    )


def _teachers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        nargs="+",
        default=[],
        metavar="NAME",
        help="whose labels, where the store holds several teachers'; of several names their fused labels",
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


_VERBS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "train": (_train, "Runs a whole recipe; the same command again goes on where it stopped."),
    "compare": (_many_runs, "Trains several arms over the same seeds and says which is better."),
    "transfer": (
        _many_runs,
        "Trains tasks alone and together and says whether they help each other.",
    ),
    "annotate": (_annotate, "Writes a teacher's labels of pictures to a store, or continues one."),
    "audit": (_audit, "Compares a store of silver labels with gold."),
    "select": (_select, "Turns a store into labels, a COCO file."),
    "import": (
        _import,
        "Takes back what people corrected in another tool: as gold, and as an audit.",
    ),
    "evaluate": (_evaluate, "Prints the COCO numbers of a checkpoint or of a results file."),
    "predict": (_predict, "Finds objects in pictures and videos, draws them and writes a file."),
    "export": (_export, "Writes a file to deploy, after checking that it agrees."),
    "check": (_check, "Tells whether a data set is fit for training."),
    "schema": (_schema, "Writes the JSON schema of the settings, for editors."),
}
"""Verb -> what adds its options, and what it does, in a sentence."""
