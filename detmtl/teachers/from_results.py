"""A teacher whose answers are already in a file: COCO results or annotations of any other system.

Letters: N boxes of all pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detmtl.data.coco_rows import is_object
from detmtl.data.json_file import read_json
from detmtl.silver.card import TeacherCard
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.slots import read_names
from detmtl.teachers.teacher import Teacher, existing, file_sha256
from detmtl.teachers.teacher_settings import LookedUpSettings


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures that the other system looked at.

    Attributes:
        names: file name, as the files have it -> image id.
        sizes: image id -> height, width; None: not known.
        loose: whether a picture is also known by its name without the ending, or by the number that
            this name is: results without an annotation file have nothing else.
    """

    names: Mapping[str, int]
    sizes: Mapping[int, tuple[int, int]] | None
    loose: bool

    def find(self, path: str) -> int | None:
        """Returns the id of the picture whose file name is the longest end of `path`."""
        parts = PurePosixPath(Path(path).as_posix()).parts
        ends = ["/".join(parts[i:]).replace("//", "/") for i in range(len(parts))]
        if self.loose:
            stem = PurePosixPath(path).stem
            ends = [name for end in ends for name in (end, str(PurePosixPath(end).with_suffix("")))]
            ends += [str(int(stem))] if stem.isdecimal() else []
        return next((self.names[end] for end in ends if end in self.names), None)


class ResultsTeacher(Teacher):
    """Looks up what somebody's detector said; pictures are told by the end of their path.

    Args:
        card: who it is.
        pictures: those that were looked at.
        starts: image id -> its rows, first and end.
        boxes: (N, 4) xyxy. classes: (N,). scores: (N,); by picture and falling score.
    """

    def __init__(
        self,
        card: TeacherCard,
        pictures: Pictures,
        starts: Mapping[int, tuple[int, int]],
        boxes: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
    ):
        self.card = card
        self._pictures, self._starts = pictures, starts
        self._boxes, self._classes, self._scores = boxes, classes, scores

    def expect(self, pictures: Iterable[tuple[str, str]]) -> None:
        """Looks up all pictures.

        Raises:
            InputError: the file has one picture for several: their names end alike, and it leaves out the
                folders that tell them apart.
        """
        found: dict[int, dict[str, str]] = {}
        for path, content_hash in pictures:
            number = self._pictures.find(path)
            if number is not None:
                found.setdefault(number, {}).setdefault(content_hash, path)
        twice = [list(paths.values()) for paths in found.values() if len(paths) > 1]
        if twice:
            raise InputError(
                f"{' and '.join(paths[:2])}{' and others' if len(paths) > 2 else ''}: are one picture in the "
                f"file of teacher '{self.card.name}', by the end of their paths; name the pictures there "
                "with the folders that tell them apart"
                for paths in twice
            )

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the file's boxes of each picture; only `infos` and the pictures' sizes are used.

        Raises:
            InputError: the file does not have a picture, or has it in another size.
        """
        return [
            self._of(info, (int(image.shape[1]), int(image.shape[2])), floor)
            for image, info in zip(images, infos, strict=True)
        ]

    def _of(self, info: ImageInfo, size: tuple[int, int], floor: float) -> BoxLabels:
        number = self._pictures.find(info.path)
        if number is None:
            raise InputError(
                f"{info.path}: the file of teacher '{self.card.name}' has no picture of this name; a "
                "picture that it does not have was not looked at, which is not the same as empty"
            )
        said = size if self._pictures.sizes is None else self._pictures.sizes[number]
        if said != size:
            raise InputError(
                f"{info.path}: is {size[1]} x {size[0]} pixels, but the results' annotation file says "
                f"{said[1]} x {said[0]}; the boxes are of another picture"
            )
        first, end = self._starts.get(number, (0, 0))
        end = first + int(np.count_nonzero(self._scores[first:end] >= floor))
        boxes = self._boxes[first:end].clip(0, np.array([size[1], size[0]] * 2))
        real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return BoxLabels.of(
            torch.from_numpy(boxes[real]),
            torch.from_numpy(self._classes[first:end][real]),
            len(self.card.classes),
            scores=torch.from_numpy(self._scores[first:end][real]),
            grade=Grade.SILVER,
        )


class ResultsTeacherSettings(LookedUpSettings):
    """A COCO results file, a list of image_id, category_id, bbox and score; or an annotation file.

    A list alone says neither which names its classes have nor which pictures were looked at and found
    empty: it needs `annotations`, or `classes`, and then a picture without a row is an error. Crowds
    of an annotation file are no objects, and are left out.
    """

    kind: Literal["results"] = "results"
    path: str
    """The file."""
    annotations: str | None = None
    """The COCO file whose image ids, file names and categories the results speak of; not needed where
    `path` is one itself."""
    classes: dict[int, str] | list[str] | str | None = None
    """Names by category id; a list, or a file with one a line, counts from 0. None: the categories of
    the annotation file."""
    score: float | None = Field(default=None, gt=0, le=1)
    """Of a box that has none; None: such a box is an error."""

    def build(self, root: Path, device: str) -> ResultsTeacher:
        """Reads the files, relative to `root`.

        Raises:
            InputError: everything that is wrong in them.
        """
        file = existing(root, self.path, "teacher.path")
        content = read_json(file, str(file))
        about_file, about = file, content
        if isinstance(content, list):
            about = None
            if self.annotations is not None:
                about_file = existing(root, self.annotations, "teacher.annotations")
                about = read_json(about_file, str(about_file))
            elif self.classes is None:
                raise InputError(
                    f"{file}: is a list of results, which has neither class names nor file names; set "
                    "teacher.annotations to the COCO file that it speaks of, or teacher.classes"
                )
        elif self.annotations is not None:
            raise InputError(
                f"{file}: is an annotation file itself, not a list of results; leave teacher.annotations "
                "out"
            )
        rows = content if isinstance(content, list) else _annotations(content, file)
        names = self._names(root, about, about_file)
        pictures = _listed(about, about_file) if about is not None else _named_by(rows)
        numbers = {number: c for c, number in enumerate(sorted(names))}
        columns = _columns(file, rows, pictures, numbers, self.score)
        card = TeacherCard(
            name=self.named(file.stem),
            weights_sha256=file_sha256(*dict.fromkeys([file, about_file])),
            classes=tuple(names[number] for number in numbers),
            preprocessing=f"results of {file.name}; a box without a score has {self.score}; categories "
            f"{list(numbers)}",
        )
        return ResultsTeacher(card, pictures, *columns)

    def _names(self, root: Path, about: Any, about_file: Path) -> dict[int, str]:
        """Returns the class names by category id."""
        where = "teacher.classes"
        if isinstance(self.classes, dict):
            names = self.classes
        elif self.classes is not None:
            listed, where = read_names(root, self.classes)
            names = dict(enumerate(listed))
        else:
            where = str(about_file)
            try:
                names = {int(c["id"]): str(c["name"]) for c in about["categories"]}
            except (KeyError, TypeError, ValueError) as problem:
                raise InputError(
                    f"{where}: needs categories, a list of id and name; {problem} is missing or wrong"
                ) from None
        found = list(names.values())
        twice = sorted({n for n in found if found.count(n) > 1 or not n})
        if twice or not names:
            raise InputError(
                [f"{where}: the class name '{name}' is empty or there twice" for name in twice]
                or f"{where}: no class names"
            )
        return names


def _annotations(content: Any, file: Path) -> list[Any]:
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise InputError(
            f"{file}: is neither a list of results nor an annotation file with a list 'annotations'"
        )
    return [row for row in rows if not isinstance(row, dict) or is_object(row)]


def _listed(about: Any, where: Path) -> Pictures:
    """Returns the pictures of an annotation file."""
    try:
        names = {str(row["file_name"]): int(row["id"]) for row in about["images"]}
        sizes = {int(row["id"]): (row["height"], row["width"]) for row in about["images"]}
    except (KeyError, TypeError, ValueError) as problem:
        raise InputError(
            f"{where}: needs images (id, file_name, height, width); {problem} is missing or wrong"
        ) from None
    return Pictures(names, sizes, loose=False)


def _named_by(rows: Sequence[Any]) -> Pictures:
    """Returns the pictures that results name, by number or by file name."""
    named = (str(row["image_id"]) for row in rows if isinstance(row, dict) and "image_id" in row)
    return Pictures({name: i for i, name in enumerate(dict.fromkeys(named))}, None, loose=True)


def _columns(
    file: Path,
    rows: Sequence[Any],
    pictures: Pictures,
    classes: Mapping[int, int],
    score: float | None,
) -> tuple[dict[int, tuple[int, int]], np.ndarray, np.ndarray, np.ndarray]:
    """Returns where each picture's rows lie, and boxes, classes and scores of all rows."""
    by_name = dict(pictures.names)
    if not pictures.loose:  # results that name files, perhaps without the ending
        for name, number in pictures.names.items():
            by_name.setdefault(str(PurePosixPath(name).with_suffix("")), number)
    kept, problems = [], []
    for i, row in enumerate(rows):
        try:
            kept.append(_row(row, pictures, by_name, classes, score))
        except ValueError as problem:
            problems.append(f"{file}: result {i}: {problem}")
    if problems:
        raise InputError(problems)
    numbers = np.array([row[0] for row in kept], dtype=np.int64)
    of = np.array([row[1] for row in kept], dtype=np.int64)
    boxes = np.array([row[2] for row in kept], dtype=np.float64).reshape(-1, 4)
    scores = np.array([row[3] for row in kept], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    order = np.lexsort((-scores, numbers))
    found, first, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    ends = first + counts
    starts = {int(n): (int(a), int(b)) for n, a, b in zip(found, first, ends, strict=True)}
    return starts, boxes[order].astype(np.float32), of[order], scores[order]


def _row(
    row: Any,
    pictures: Pictures,
    by_name: Mapping[str, int],
    classes: Mapping[int, int],
    score: float | None,
) -> tuple[int, int, list[float], float]:
    """Returns image, class, box (xywh) and score of a result; ValueError says what is wrong."""
    try:
        number, category = row["image_id"], row["category_id"]
        box = [float(x) for x in row["bbox"]]
        given = row.get("score", score)
        value = None if given is None else float(given)
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(
            f"needs image_id, category_id, bbox (4 numbers) and score ({problem})"
        ) from None
    if pictures.sizes is None or isinstance(number, str):
        found = by_name.get(str(number))
    else:
        found = number if number in pictures.sizes else None
    if found is None:
        raise ValueError(f"image_id {number!r} is no image of the annotation file")
    if not isinstance(category, int) or category not in classes:
        known = ", ".join(str(n) for n in sorted(classes)[:8])
        raise ValueError(f"category_id {category!r} is no category; the categories are {known} ...")
    if value is None:
        raise ValueError("has no score; set teacher.score to what such a box is to count")
    if not 0 <= value <= 1:
        raise ValueError(f"score is {value}; it lies in [0, 1]")
    if len(box) != 4 or not np.isfinite(box).all() or box[2] < 0 or box[3] < 0:
        raise ValueError(f"bbox is {box}; it is left, top, width >= 0 and height >= 0")
    return found, classes[category], box, value
