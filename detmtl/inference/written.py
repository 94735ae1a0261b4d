"""The files that a prediction reads, and those that it writes: settled before the work."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detmtl.data.folder import passed_over
from detmtl.data.images import PICTURE_SUFFIXES, list_files
from detmtl.structures.errors import InputError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})

WRITABLE = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Kinds of pictures that keep their kind when drawn on; others become JPEG."""


@dataclass(frozen=True)
class Files:
    """What is read, and where it is drawn.

    Attributes:
        root: the folder that all sources have in common.
        pictures, videos: each once, absolute.
        drawn: source -> file of its drawing.
    """

    root: Path
    pictures: list[Path]
    videos: list[Path]
    drawn: dict[Path, Path]


def settled(sources: Sequence[str | Path], out: Path, kinds: Mapping[str, str]) -> Files:
    """Returns the files that are read and written, none of which is in the way of another.

    Args:
        sources: see `find_sources`.
        out: the folder of all that is written.
        kinds: task name -> what its labels are.

    Raises:
        InputError: there is nothing to read, or something that is read or written would be lost.
    """
    root, files = find_sources(sources)
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES]
    pictures = {f: f.relative_to(root) for f in files if f.suffix.lower() not in VIDEO_SUFFIXES}
    drawn = {file: drawn_file(out, file.relative_to(root)) for file in files}
    mapped = [task for task, kind in kinds.items() if kind in ("maps", "depth")]
    maps = [(f, map_file(out, task, name)) for task in mapped for f, name in pictures.items()]
    _refuse_shared([*drawn.items(), *maps])
    _refuse_overwriting([*drawn.items(), *maps], files)
    return Files(root, list(pictures), videos, drawn)


def find_sources(sources: Sequence[str | Path]) -> tuple[Path, list[Path]]:
    """Returns the folder that all sources have in common, and all files, each once.

    Raises:
        InputError: a source does not exist or is neither picture nor video, or a folder is empty.
    """
    folders, files, problems = [], {}, []
    for source in map(Path, sources):
        place = _absolute(source)
        if source.is_dir():
            found = [place / name for name in list_files(place, PICTURE_SUFFIXES | VIDEO_SUFFIXES)]
            if not found:
                problems.append(f"{source}: no pictures and no videos in this folder")
            if unread := passed_over(place):
                warnings.warn(unread, stacklevel=3)
            folders.append(place)
        elif not source.is_file():
            problems.append(f"{source}: there is no such file or folder")
            continue
        elif source.suffix.lower() not in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
            kinds = ", ".join(sorted(PICTURE_SUFFIXES | VIDEO_SUFFIXES))
            problems.append(f"{source}: neither a picture nor a video; known are {kinds}")
            continue
        else:
            found = [place]
            folders.append(place.parent)
        files |= dict.fromkeys(found)
    if not sources:
        problems.append("source: none given; give a picture, a folder or a video")
    if problems:
        raise InputError(problems)
    return Path(os.path.commonpath(folders)), list(files)


def _absolute(path: Path) -> Path:
    """Returns the absolute path without `..`, which would lead what is written out of its folder."""
    plain = Path(os.path.abspath(path))
    if path.exists() and _identity(plain) != _identity(path):
        return path.resolve()  # `..` after a link: the folder above is not that of the name
    return plain


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what is the same under all names of a file or folder, links included; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def drawn_file(out: Path, name: Path) -> Path:
    """Returns the file of the drawing of the source of that name, relative to `Files.root`."""
    kind, path = name.suffix.lower(), out / "drawn" / name
    if kind in VIDEO_SUFFIXES:
        return path if kind == ".mp4" else path.with_name(path.name + ".mp4")
    return path if kind in WRITABLE else path.with_name(path.name + ".jpg")


def map_file(out: Path, task: str, name: str | Path) -> Path:
    """Returns the file of a task's map of the picture of that name, named as sources of maps are read."""
    return (out / task / name).with_suffix(".png")


def _refuse_shared(targets: Iterable[tuple[Path, Path]]) -> None:
    """Raises an InputError where one file would be written twice; targets: (source, target)."""
    owners: dict[Path, Path] = {}
    clashes = []
    for source, target in targets:
        if target in owners:
            clashes.append((owners[target], source, target))
        owners.setdefault(target, source)
    if clashes:
        a, b, target = clashes[0]
        more = f" (and {len(clashes) - 1} more such files)" if len(clashes) > 1 else ""
        told = f"what is found in {a} and in {b} would be one file, {target}{more}; rename one of the two"
        if a == b:
            told = (
                f"the drawing of {a} and its map would be one file, {target}{more}; rename the task"
            )
        raise InputError(told)


def _refuse_overwriting(targets: Iterable[tuple[Path, Path]], sources: Iterable[Path]) -> None:
    """Raises an InputError where what is written would replace a source; targets: (source, target)."""
    known = {_identity(source) for source in sources} - {None}
    for source, target in targets:
        if _identity(target) in known:
            raise InputError(
                f"{target}: is one of the sources, and would be overwritten by what is found in {source}; "
                "choose another --out, outside of the sources"
            )
