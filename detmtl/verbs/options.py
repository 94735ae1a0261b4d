"""What the options of several verbs mean: label spaces, gold, values, folders to write in."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from detmtl.data.coco import CocoSource, category_names
from detmtl.data.depth import LEGEND, MILLIMETERS, DepthFolder, unit_told
from detmtl.data.details import DetailClasses
from detmtl.data.folder import FolderSource
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.data.source import Source
from detmtl.data.sources import AnySource
from detmtl.data.tags import TagClasses, TagFile
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.whole import whole
from detmtl.yaml_settings import checked


def refuse_given(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuses options that would do nothing, and that have another value than by default.

    Args:
        args: of the options.
        names: of those that would do nothing.
        why: what the error says of them.

    Raises:
        InputError: names those that are given.
    """
    given = [name for name in names if getattr(args, name) != args.default_of(name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{options}: {why}")


def label_space(
    args: argparse.Namespace, annotations: Path | None, names: Sequence[str] | None = None
) -> LabelSpace:
    """Returns the classes of --classes; or those that `annotations` names; or `names`."""
    if args.classes:
        classes = yaml_value(args.classes, "--classes")
        if not isinstance(classes, list | dict):
            raise InputError(f"--classes {args.classes}: must be a list or a mapping in YAML")
        return LabelSpace.of(classes, args.drop_unmapped)
    if annotations is not None:
        return LabelSpace.of(category_names(annotations), drop_unmapped=True)
    return LabelSpace.of(names or [])


def gold_maps(args: argparse.Namespace) -> MapFolder | None:
    """Returns what --maps and --categories name."""
    if args.maps is None:
        refuse_given(args, ["categories"], "is of --maps, which is not given; give it, too")
        return None
    if args.categories is None:
        raise InputError("--categories is needed beside --maps: a JSON file of ids and names")
    folder, categories = str(args.maps.absolute()), str(args.categories.absolute())
    return MapFolder(folder=folder, categories=categories, missing="absent")


def gold_tags(args: argparse.Namespace) -> TagFile | None:
    """Returns what --tags names."""
    return TagFile(file=str(args.tags.absolute()), missing="absent") if args.tags else None


def gold_depth(args: argparse.Namespace) -> DepthFolder | None:
    """Returns what --depth and --depth-unit name; without the latter the folder's own unit holds."""
    if args.depth is None:
        refuse_given(args, ["depth_unit"], "is of --depth, which is not given; give it, too")
        return None
    told, unit = unit_told(args.depth), args.depth_unit
    if None not in (told, unit) and told != unit:
        raise InputError(
            f"--depth-unit {unit}: {args.depth / LEGEND} says that a value of 1 means {told} m; leave it out"
        )
    unit = unit or told or MILLIMETERS
    return DepthFolder(folder=str(args.depth.absolute()), unit=unit, missing="absent")


def gold_source(args: argparse.Namespace, data: Mapping[str, Any], cache: Path) -> Source:
    """Returns the pictures and the gold labels that the options name, in a trained model's classes.

    Args:
        args: of the options.
        data: the model's settings of its data.
        cache: folder for what was computed.
    """
    classes = data.get("classes")
    space = LabelSpace((), ())
    if classes:
        space = LabelSpace.of(classes, drop_unmapped=data["unmapped"] == "drop")
    kinds: dict[str, Any] = {
        "images": str(args.images.absolute()),
        "maps": gold_maps(args),
        "tags": gold_tags(args),
        "depth": gold_depth(args),
        "faults": args.faults,
    }
    if args.annotations is None:
        source: AnySource = FolderSource(**kinds)
    else:
        source = CocoSource(annotations=str(args.annotations.absolute()), **kinds)
    others: list[Any] = [
        checked(kind, data[key], where=f"data.{key}") if data.get(key) else None
        for key, kind in (("maps", MapClasses), ("tags", TagClasses), ("details", DetailClasses))
    ]
    return source.load("gold", Path("/"), space, cache, *others)


def coco_source(args: argparse.Namespace, space: LabelSpace, cache: Path) -> Source:
    """Returns the pictures of --images with the boxes of --annotations."""
    if args.images is None:
        raise InputError("--images is needed beside --annotations")
    source = CocoSource(
        annotations=str(args.annotations.absolute()),
        images=str(args.images.absolute()),
        faults=args.faults,
    )
    return source.load(args.annotations.stem, Path("/"), space, cache)


def cache_of(folder: Path) -> Path:
    """Returns the cache below a folder, made and writable."""
    cache = Path(folder) / "cache"
    writable(cache, str(folder))
    return cache


@contextmanager
def cache_beside(checkpoint: Path, chosen: Path | None) -> Iterator[Path]:
    """Gives the cache below a chosen folder; without one that of the checkpoint's run; or, where the
    checkpoint lies alone or nothing may be written beside it, a folder that is gone afterwards.

    Raises:
        InputError: the chosen folder cannot be written.
    """
    own = checkpoint.parent / "cache"
    if chosen is not None:
        yield cache_of(chosen)
    elif (
        own.is_dir()
        and os.access(own, os.R_OK | os.W_OK | os.X_OK)
        and all(os.access(path, os.W_OK) for path in own.iterdir())
    ):
        yield own
    else:
        with tempfile.TemporaryDirectory(prefix="detmtl-") as folder:
            yield Path(folder)


def writable(folder: Path, where: str) -> None:
    """Makes a folder for what a verb writes: before its work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{where}: cannot be written ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{where}: cannot be written (no permission)")


def writable_file(path: Path, where: str) -> None:
    """Makes the folder of a file that a verb writes: before its work, not after it."""
    if path.is_dir():
        raise InputError(f"{where}: is a folder; give the name of a file")
    writable(path.parent, where)


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Returns name -> value of each NAME=VALUE, the value read as YAML."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: must be NAME=VALUE, such as threshold=0.4")
        values[name] = yaml_value(value, f"--set {name}")
    return values


def yaml_value(text: str, where: str) -> Any:
    """Returns a text read as YAML."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{where}: is not YAML: {' '.join(str(error).split())}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file that --out names, whole or not at all."""
    with _replaced(path) as part:
        part.write_text(text, encoding="utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copies a file to where --out names, whole or not at all."""
    with _replaced(path) as part:
        shutil.copyfile(source, part)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Gives a file that takes the place of `path` once the block is left."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            yield part
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from None
