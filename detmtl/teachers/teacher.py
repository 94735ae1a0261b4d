"""What a teacher is: a pretrained model that writes silver labels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import ImageInfo
from detmtl.structures.settings import Settings

__all__ = [
    "Teacher",
    "TeacherCard",
    "TeacherSettings",
    "as_silver",
    "class_names",
    "existing",
    "file_sha256",
]


class Teacher(ABC):
    """A detector that somebody else trained.

    Attributes:
        card: who it is.
    """

    card: TeacherCard

    @abstractmethod
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns for each picture the boxes that the teacher sees in it.

        Args:
            images: B pictures (3, H, W) uint8 RGB, of any sizes.
            infos: of the same pictures.
            floor: the lowest score that is wanted, in [0, 1].

        Returns:
            B labels: boxes in pixels of the given picture and inside it, classes that index
            `card.classes`, scores as the teacher gave them and >= `floor`, grade silver; sorted by
            falling score.
        """


class TeacherSettings(Settings):
    """The base of the kinds of teachers."""

    path: str
    """The file with the weights (or the results)."""
    name: str | None = None
    """Names the teacher in stores and tables; None: the file's name without its ending."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        """Builds the teacher; `path` and other files are taken relative to `root`."""
        raise NotImplementedError


def existing(root: Path, path: str, setting: str) -> Path:
    """Returns the file at `path` relative to `root`.

    Raises:
        InputError: there is no such file.
    """
    file = root / path
    if not file.is_file():
        raise InputError(f"{setting}: {file}: no such file")
    return file


def class_names(root: Path, classes: str | Sequence[str]) -> tuple[str, ...]:
    """Returns class names given as such, or as a text file with one a line.

    Raises:
        InputError: there is no such file, or a name is missing or listed twice.
    """
    if isinstance(classes, str):
        where = existing(root, classes, "teacher.classes")
        names = tuple(line.strip() for line in where.read_text("utf-8").rstrip().splitlines())
    else:
        where, names = "teacher.classes", tuple(classes)
    problems = [f"{where}: class {i} has no name" for i, name in enumerate(names) if not name]
    problems += [
        f"{where}: '{name}' is listed twice"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if problems or not names:
        raise InputError(problems or f"{where}: no class names")
    return names


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_silver(labels: BoxLabels, floor: float) -> BoxLabels:
    """Returns predictions of at least `floor` on the CPU, as silver, by falling score."""
    labels = replace(labels, **{f.name: getattr(labels, f.name).cpu() for f in fields(labels)})
    order = torch.argsort(labels.scores, descending=True, stable=True)
    labels = labels[order[labels.scores[order] >= floor]]
    return replace(labels, grade=torch.full_like(labels.grade, int(Grade.SILVER)))
