"""Folders with a PNG file for each picture that has one, of maps or of depths: their names and values.

Letters: H and W pixels.
"""

import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from detmtl.data.flat import FileNames
from detmtl.data.images import list_pictures
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN


def existing_folder(folder: Path, setting: str) -> Path:
    """Returns `folder`.

    Raises:
        InputError: it does not exist; `setting` says who names it.
    """
    if not folder.is_dir():
        raise InputError(f"{setting}: {folder} does not exist")
    return folder


def map_files(
    pictures: FileNames, folder: Path, where: str, what: Literal["map", "depth"], missing: str
) -> FileNames:
    """Returns the files of the pictures' maps, or depths, in `folder`; an empty name where there is none.

    Warns if there are pictures without one, and files without a picture, be it one that the folder of
    `pictures` has besides: their names may differ by mistake.

    Raises:
        InputError: no picture has one, or `missing` is `error` and some have none.
    """
    names, others = _map_names(pictures, folder)
    without = [pictures.name(i) for i, name in enumerate(names) if not name]
    if len(without) == len(pictures):
        raise InputError(
            f"{where}: none of its {len(pictures)} pictures has a {what} in {folder}; the {what} of "
            f"{without[0]} would be {_map_name(without[0])}"
        )
    if without and missing == "error":
        key = "maps" if what == "map" else "depth"
        raise InputError(
            [
                f"{where}: {name} has no {what} in {folder}; set {key}.missing: absent where nobody "
                "looked at such pictures"
                for name in without
            ]
        )
    if without and others:
        there = {_map_name(name) for name in list_pictures(pictures.folder)}
        others = [name for name in others if os.path.normpath(name) not in there]
    if without and others:
        warnings.warn(
            f"{where}: {len(without)} of its {len(pictures)} pictures have no {what} in {folder}, where "
            f"{len(others)} files are the {what} of none of them, such as {others[0]}; that of {without[0]} "
            f"would be {_map_name(without[0])}",
            stacklevel=2,
        )
    return FileNames.of(folder, names)


def _map_names(pictures: FileNames, folder: Path) -> tuple[list[str], list[str]]:
    """Returns for each picture the name of its map in `folder`, "" where it has none; and the names of the
    other PNG files beside them."""
    listed: dict[str, set[str]] = {}
    names = []
    for i in range(len(pictures)):
        name = _map_name(pictures.name(i)).lstrip("/")
        below, file = os.path.split(name)
        if below not in listed:
            at = folder / below
            listed[below] = set(os.listdir(at)) if at.is_dir() else set()
        names.append(name if file in listed[below] else "")
    beside = {os.path.join(below, file) for below, files in listed.items() for file in files}
    others = sorted(name for name in beside - {*names} if name.lower().endswith(".png"))
    return names, others


def _map_name(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".png"


def read_of_size(path: str, height: int, width: int, what: Literal["map", "depth"]) -> np.ndarray:
    """Returns the pixel values of a map, or a depth, see `read_values`.

    Raises:
        InputError: it cannot be read, has several channels, or is not as large as its picture.
    """
    values = read_values(path)
    if values.shape != (height, width):
        raise InputError(
            f"{path}: the {what} is {values.shape[1]} x {values.shape[0]} pixels (width x height), its "
            f"picture {width} x {height}; a {what} is as large as its picture"
        )
    return values


def read_values(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the pixel values of a map (H, W), uint8 or uint16; of a palette the indices.

    Raises:
        InputError: it cannot be read, or has several channels.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.array(picture)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as problem:
        raise InputError(f"{path}: cannot be read as a map ({problem})") from None
    if values.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise InputError(
            f"{path}: is {mode} with {values.shape[2] if values.ndim > 2 else 1} channels; a map has one, "
            "gray or palette"
        )
    return values.astype(np.uint8) if values.dtype == bool else values


def write_values(path: Path, values: np.ndarray) -> None:
    """Writes pixel values (H, W) uint8 as a PNG with a palette, so that a viewer shows colors: of classes
    hues a golden angle apart, `OTHER` gray, `UNKNOWN` white."""
    hues = (np.arange(256) * 0.618034 * 255).astype(np.int64) % 256
    hsv = np.stack([hues, np.full(256, 190), np.full(256, 255)], axis=1).astype(np.uint8)
    palette = np.array(Image.fromarray(hsv[None], mode="HSV").convert("RGB"))[0]
    palette[OTHER], palette[UNKNOWN] = 128, 255
    picture = Image.fromarray(values)
    picture.putpalette(palette.tobytes())
    picture.save(path, format="PNG")
