"""A folder of pictures without labels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detmtl.data.coco_tables import file_names
from detmtl.data.details import DetailClasses
from detmtl.data.faults import Faults
from detmtl.data.flat import FileNames
from detmtl.data.images import (
    PICTURE_SUFFIXES,
    content_hashes,
    image_sizes,
    list_files,
    list_pictures,
)
from detmtl.data.json_file import read_in_blocks
from detmtl.data.parsed import Parsed, nothing_covered
from detmtl.data.source_settings import SourceSettings
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
)
"""Pictures as telephones and cameras write them, which are not read."""


class FolderSource(SourceSettings):
    """All pictures below a folder, at any depth, sorted by name; nobody looked for anything in them.

    Attributes:
        listed: a COCO file (of LVIS too, which has addresses); only the pictures that it names are taken,
            and of it nothing but the names is read. For folders that also hold other splits.
    """

    kind: Literal["folder"] = "folder"
    listed: str | None = None

    def fingerprint(self, root: Path, cache: Path) -> Any:
        """Returns name, size and time of change of every picture, those that are passed over too."""
        folder = root / self.images
        own = stamps(folder, list_files(folder, PICTURE_SUFFIXES | UNREAD_SUFFIXES))
        return own if self.listed is None else [own, stamps(root, [self.listed])]

    def contents(self, root: Path, cache: Path) -> Any:
        """Returns name and size of every picture, and the hash of the list."""
        own = file_sizes(root / self.images, list_pictures(root / self.images))
        return [own, file_hashes(root, [self.listed] if self.listed else [], cache)]

    def parse(
        self, root: Path, classes: LabelSpace, details: DetailClasses | None = None
    ) -> Parsed:
        """Lists the pictures and reads their sizes."""
        folder, faults = root / self.images, Faults(self.images)
        for name in ("covers", "covers_file", "keep"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{self.images}: `{name}` is set, but a folder has no labels; leave it out"
                )
        names = require_pictures(folder)
        if self.listed is not None:
            names = _listed(names, root / self.listed, self.listed, folder)
        sizes, problems = image_sizes([str(folder / name) for name in names])
        faults.add(*(text for _, text in problems))
        dropped = faults.settle(self.faults)
        keep = np.flatnonzero(sizes.min(axis=1) > 0)
        if not len(keep):
            raise InputError([f"{folder}: none of its pictures can be read", *faults.problems])
        return Parsed(
            files=FileNames.of(folder, [names[i] for i in keep.tolist()]),
            ids=np.arange(len(keep)),
            sizes=sizes[keep],
            annotations=None,
            coverage=nothing_covered(len(classes)),
            silver=self.grade == "silver",
            dropped="; ".join(text for text in (dropped, passed_over(folder)) if text),
        )


def passed_over(folder: Path) -> str:
    """Returns a sentence on pictures below a folder whose formats are not read, "" if there are none."""
    names = list_files(folder, UNREAD_SUFFIXES)
    if not names:
        return ""
    kinds = sorted({os.path.splitext(name)[1].lower() for name in names})
    return (
        f"{folder}: {len(names)} pictures are passed over, as {' and '.join(kinds)} are not read; convert "
        "them to JPEG or PNG"
    )


def pictures_named(file: Path, where: str, folder: Path) -> set[str]:
    """Returns the names of the pictures that a COCO file lists, below `folder`, of which nothing else is
    read; `where` it is, for sentences.

    Raises:
        InputError: the file is missing or no COCO file, or lists a picture without a name.
    """
    # The annotations, nearly all of such a file, are passed over block by block.
    data = read_in_blocks(file, where, "annotations", lambda rows: None)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        raise InputError(f"{where}: has no list 'images'; a COCO file is needed")
    bad = np.array([not isinstance(image, dict) for image in images], dtype=bool)
    found = file_names(images, bad, folder)
    if "" in found:
        raise InputError(
            f"{where}: image at position {found.index('')}: has no 'file_name', nor the 'coco_url' of LVIS; "
            "the name of each is needed"
        )
    return {os.path.normpath(name) for name in found}


def _listed(names: list[str], file: Path, where: str, folder: Path) -> list[str]:
    """Returns those of `names` that a COCO file names; `where` it is, for sentences.

    Raises:
        InputError: see `pictures_named`, or it names pictures that are not there.
    """
    wanted = pictures_named(file, where, folder)
    missing = sorted(wanted - set(names))
    if missing:
        raise InputError(
            f"{where}: names {len(missing)} pictures that {folder} does not have, such as {missing[0]}"
        )
    return [name for name in names if name in wanted]


def require_pictures(folder: Path) -> list[str]:
    """Returns the names of the pictures below a folder.

    Raises:
        InputError: there are none.
    """
    names = list_pictures(folder)
    if not names:
        raise InputError(f"{folder}: has no pictures (JPEG, PNG, WebP, BMP, TIFF, GIF)")
    return names


def require_labels(count: int, covers: Sequence[str] | None, where: str) -> None:
    """Refuses label files without any label, unless `covers` says what was looked for in vain.

    Raises:
        InputError: there are none.
    """
    if not count and covers is None:
        raise InputError(
            f"{where}: has no annotations at all; pictures without labels are a source of `kind: "
            "folder`; if somebody looked and found nothing, name the classes in `covers`"
        )


def stamps(folder: Path, names: list[str]) -> list[list[Any]]:
    """Returns name, size and time of change of files, by which a change is noticed."""
    out: list[list[Any]] = []
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError:
            out.append([name, -1, -1])
        else:
            out.append([name, status.st_size, status.st_mtime_ns])
    return out


def file_sizes(folder: Path, names: list[str]) -> list[list[Any]]:
    """Returns name and bytes of files, by which pictures are known that were copied or unpacked anew."""
    return [[name, size] for name, size, _ in stamps(folder, names)]


def file_hashes(folder: Path, names: list[str], cache: Path) -> list[list[str]]:
    """Returns name and content hash of those of the files that are there."""
    there = [name for name in names if (folder / name).is_file()]
    hashes = content_hashes([str(folder / name) for name in there], cache)
    return [[name, found] for name, found in zip(there, hashes, strict=True)]
