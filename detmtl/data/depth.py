"""Depth of a source: a folder of PNG files, one for each picture that has one.

Letters: I pictures, H and W pixels.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from detmtl.data.flat import FileNames, Flat
from detmtl.data.json_file import read_json
from detmtl.data.map_files import existing_folder, map_files, read_of_size
from detmtl.structures.depth import DepthLabels
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.settings import Settings

LEGEND = "legend.json"
"""Name of the file that says in which unit the depths of a folder are."""

MILLIMETERS = 0.001
"""The unit, in meters, of depths of which nothing says another."""

FARTHEST = 65534
"""The highest value that is a depth; the next one means as far or farther."""


class DepthFolder(Settings):
    """Where the depths of a source are.

    The depth of `a/b.jpg` is `a/b.png` in `folder`: one channel of 8 or 16 bits, as large as the picture.

    Attributes:
        folder: of the PNG files; relative to the settings' root.
        unit: meters that a pixel value of 1 means; millimeters by default, KITTI has 1 / 256. What `predict`
            wrote says its own in `legend.json`, and has to be read with that.
        unknown: pixel values that mean that nobody knows. 0 is what sensors write, and 65535 is
            where 16 bits end: as far or farther.
        missing: what a picture without a file is: an `error`; `absent`, nobody measured it; or it is left
            out of the source, `drop`, after any subset was taken.
    """

    folder: str
    unit: Annotated[float, Field(gt=0)] = MILLIMETERS
    unknown: list[Annotated[int, Field(ge=0, le=65535)]] = [0, 65535]
    missing: Literal["error", "absent", "drop"] = "error"

    def load(self, pictures: FileNames, root: Path, where: str, grade: Grade) -> "Depths":
        """Returns the depths of `pictures`.

        Raises:
            InputError: the folder or files in it are missing, or it says that another unit is right.
        """
        folder = existing_folder(root / self.folder, f"{where}: depth.folder")
        told = unit_told(folder)
        if told is not None and told != self.unit:
            raise InputError(
                f"{where}: depth.unit: {folder / LEGEND} says that a value of 1 means {told} m, and the "
                f"settings that it means {self.unit} m; set unit: {told}"
            )
        files = map_files(pictures, folder, where, "depth", self.missing)
        return Depths(files, self.unit, tuple(self.unknown), int(grade))


def unit_told(folder: Path) -> float | None:
    """Returns the unit, in meters, that a folder of depths says of itself; None: it says none.

    Raises:
        InputError: the file that says it is broken, or its unit is no number above 0.
    """
    legend = folder / LEGEND
    told = read_json(legend, str(legend)) if legend.is_file() else None
    unit = told.get("unit") if isinstance(told, dict) else None
    if unit is None:
        return None
    if isinstance(unit, bool) or not isinstance(unit, int | float) or not 0 < unit < math.inf:
        raise InputError(
            f"{legend}: unit: is {json.dumps(unit)}, and needs to be a number above 0: the meters that a "
            "value of 1 means"
        )
    return unit


def unit_for(farthest: float) -> float:
    """Returns the unit, in meters, of 16 bits that hold depths of up to `farthest` meters: the first that
    suffices of millimeters and KITTI's 1 / 256, or else one that just does."""
    known = (unit for unit in (MILLIMETERS, 1 / 256) if farthest <= unit * FARTHEST)
    return next(known, farthest / FARTHEST)


@dataclass(frozen=True, eq=False)
class Depths(Flat):
    """The depths of I pictures.

    Attributes:
        files: of the depths; an empty name: nobody measured the picture.
        unit: meters of a pixel value of 1.
        unknown: pixel values that mean unknown.
        grade: a `Grade`.
    """

    files: FileNames
    unit: float
    unknown: tuple[int, ...]
    grade: int

    def present(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a depth."""
        return np.diff(self.files.offsets) > 0

    def take(self, indices: np.ndarray) -> "Depths":
        """Returns the depths of the pictures at `indices`."""
        return Depths(self.files.take(indices), self.unit, self.unknown, self.grade)

    def labels(self, i: int, height: int, width: int) -> DepthLabels | None:
        """Returns the depth of picture i, of that size; None where there is none.

        Raises:
            InputError: the file is broken or of another size.
        """
        if not self.files.name(i):
            return None
        path = self.files[i]
        values = read_of_size(path, height, width, "depth")
        meters = values.astype(np.float32) * np.float32(self.unit)
        meters[np.isin(values, self.unknown)] = 0
        return DepthLabels(torch.from_numpy(meters), self.grade)
