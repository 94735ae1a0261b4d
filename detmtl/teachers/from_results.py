"""A teacher whose answers are already in a file: COCO results or annotations of any other system.

Letters: N boxes of all pictures, I pictures that have some.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detmtl.data.coco_rows import is_object
from detmtl.data.json_file import garbage_kept, holds_list, read_in_blocks
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


@dataclass(frozen=True, eq=False)
class Results:
    """Boxes by picture, those of one picture by falling score.

    Attributes:
        pictures: (I,) int64, rising image ids.
        offsets: (I+1,) int64, where the boxes of each begin.
        boxes: (N, 4) float32 xyxy. classes: (N,) int32. scores: (N,) float32.
    """

    pictures: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def rows(self, picture: int) -> slice:
        """Returns where the boxes of a picture lie."""
        i = int(np.searchsorted(self.pictures, picture))
        if i == len(self.pictures) or self.pictures[i] != picture:
            return slice(0, 0)
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


class ResultsTeacher(Teacher):
    """Looks up what somebody's detector said; pictures are told by the end of their path.

    Args:
        card: who it is.
        pictures: those that were looked at.
        results: what was found in them.
    """

    def __init__(self, card: TeacherCard, pictures: Pictures, results: Results):
        self.card = card
        self._pictures, self._results = pictures, results

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
        found, rows = self._results, self._results.rows(number)
        boxes = found.boxes[rows].clip(0, np.array([size[1], size[0]] * 2, np.float32))
        scores = found.scores[rows]
        good = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (scores >= floor)
        return BoxLabels.of(
            torch.from_numpy(boxes[good]),
            torch.from_numpy(found.classes[rows][good].astype(np.int64)),
            len(self.card.classes),
            scores=torch.from_numpy(scores[good]),
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
        listed = holds_list(file, str(file))
        about_file, about = self._about(root, file, listed)
        names = self._names(root, about, about_file)
        pictures = None if about is None else _listed(about, about_file)
        del about
        numbers = {number: c for c, number in enumerate(sorted(names))}
        found = _Reader(str(file), pictures, numbers, self.score, crowds=listed)
        read_in_blocks(file, str(file), "annotations", found.take, bare=True)
        results = found.results()
        card = TeacherCard(
            name=self.named(file.stem),
            weights_sha256=file_sha256(*dict.fromkeys([file, about_file])),
            classes=tuple(names[number] for number in numbers),
            preprocessing=f"results of {file.name}; a box without a score has {self.score}; categories "
            f"{list(numbers)}",
        )
        return ResultsTeacher(card, found.pictures, results)

    def _about(self, root: Path, file: Path, listed: bool) -> tuple[Path, Any]:
        """Returns the annotation file that says what the results speak of, and what it holds but for its
        annotations; None where `file`, a list (`listed`), stands for itself."""
        if not listed:
            about = read_in_blocks(file, str(file), "annotations", lambda rows: None)
            if self.annotations is not None:
                raise InputError(
                    f"{file}: is an annotation file itself, not a list of results; leave "
                    "teacher.annotations out"
                )
            if not isinstance(about, dict) or not isinstance(about.get("annotations"), list):
                raise InputError(
                    f"{file}: is neither a list of results nor an annotation file with a list "
                    "'annotations'"
                )
            return file, about
        if self.annotations is not None:
            about_file = existing(root, self.annotations, "teacher.annotations")
            return about_file, read_in_blocks(
                about_file, str(about_file), "annotations", lambda rows: None
            )
        if self.classes is None:
            raise InputError(
                f"{file}: is a list of results, which has neither class names nor file names; set "
                "teacher.annotations to the COCO file that it speaks of, or teacher.classes"
            )
        return file, None

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
                rows = [(int(c["id"]), str(c["name"])) for c in about["categories"]]
            except (KeyError, TypeError, ValueError) as problem:
                raise InputError(
                    f"{where}: needs categories, a list of id and name; {problem} is missing or wrong"
                ) from None
            names = dict(rows)
            if len(names) < len(rows):
                number = Counter(number for number, _ in rows).most_common(1)[0][0]
                raise InputError(f"{where}: two categories have the id {number}; give each its own")
        found = list(names.values())
        twice = sorted({n for n in found if found.count(n) > 1 or not n})
        if twice or not names:
            raise InputError(
                [f"{where}: the class name '{name}' is empty or there twice" for name in twice]
                or f"{where}: no class names"
            )
        return names


def _listed(about: Any, where: Path) -> Pictures:
    """Returns the pictures of an annotation file.

    Raises:
        InputError: something is missing, or what should tell pictures apart does not: boxes would be lost.
    """
    try:
        rows = [
            (str(row["file_name"]), int(row["id"]), (row["height"], row["width"]))
            for row in about["images"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise InputError(
            f"{where}: needs images (id, file_name, height, width); {problem} is missing or wrong"
        ) from None
    wide = [i for _, i, _ in rows if not -(2**63) <= i < 2**63]
    if wide:
        raise InputError(f"{where}: the image id {wide[0]} has more than 64 bits; give others")
    problems = [
        f"{where}: the file_name '{name}' stands in {count} images; list each picture once"
        for name, count in Counter(name for name, _, _ in rows).items()
        if count > 1
    ]
    problems += [
        f"{where}: {count} images have the id {number}; give each its own"
        for number, count in Counter(number for _, number, _ in rows).items()
        if count > 1
    ]
    if problems:
        raise InputError(problems)
    names = {name: number for name, number, _ in rows}
    return Pictures(names, {number: size for _, number, size in rows}, loose=False)


class _Reader:
    """Takes results block by block, and keeps their numbers alone.

    Args:
        where: the file, for sentences.
        pictures: those that were looked at; None: those that the results name, by number or by file name.
        classes: category id -> class.
        score: of a box that has none.
        crowds: whether crowds are taken for boxes: results have none, whatever they say.
    """

    def __init__(
        self,
        where: str,
        pictures: Pictures | None,
        classes: Mapping[int, int],
        score: float | None,
        crowds: bool,
    ):
        self._where, self._classes, self._score = where, classes, score
        self._crowds = crowds
        self._by_name: dict[str, int] = {}
        self.pictures = pictures or Pictures(self._by_name, None, loose=True)
        if pictures is not None:
            # Of results, perhaps without the ending, where that tells which picture is meant.
            stems = [str(PurePosixPath(name).with_suffix("")) for name in pictures.names]
            counts = Counter(stems)
            numbers = zip(stems, pictures.names.values(), strict=True)
            self._by_name |= {stem: n for stem, n in numbers if counts[stem] == 1}
            self._by_name |= pictures.names
        self._count = 0
        self._problems: list[str] = []
        self._images = [np.zeros(0, np.int64)]
        self._boxes = [np.zeros((0, 4), np.float32)]
        self._of = [np.zeros(0, np.int32)]
        self._scores = [np.zeros(0, np.float32)]

    def take(self, rows: list[Any]) -> None:
        """Adds results."""
        with garbage_kept():
            self._keep(self._checked(rows))

    def _checked(self, rows: Sequence[Any]) -> list[tuple[int, int, list[float], float]]:
        """Returns what `_row` returns of those that are results; notes what is wrong with the others."""
        kept = []
        for row in rows:
            if isinstance(row, dict):
                if not self._crowds and not is_object(row):
                    continue
                if self.pictures.loose and "image_id" in row:
                    self._by_name.setdefault(str(row["image_id"]), len(self._by_name))
            try:
                kept.append(_row(row, self.pictures, self._by_name, self._classes, self._score))
            except ValueError as problem:
                self._problems.append(f"{self._where}: result {self._count}: {problem}")
            self._count += 1
        return kept

    def _keep(self, kept: Sequence[tuple[int, int, list[float], float]]) -> None:
        images, of, boxes, scores = zip(*kept, strict=True) if kept else ((), (), (), ())
        boxes = np.array(boxes, np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        self._images.append(np.array(images, np.int64))
        self._of.append(np.array(of, np.int32))
        self._boxes.append(boxes.astype(np.float32))
        self._scores.append(np.array(scores, np.float32))

    def results(self) -> Results:
        """Returns everything taken; may be called once.

        Raises:
            InputError: everything that is wrong.
        """
        if self._problems:
            raise InputError(self._problems)
        images, scores = _whole(self._images), _whole(self._scores)
        order = np.lexsort((-scores, images))
        images, scores = images[order], scores[order]
        # One column after the other: a second copy of all of them would double the memory.
        boxes = _whole(self._boxes)[order]
        classes = _whole(self._of)[order]
        first = np.flatnonzero(np.diff(images, prepend=images[:1] - 1))
        return Results(images[first], np.append(first, len(images)), boxes, classes, scores)


def _whole(parts: list[np.ndarray]) -> np.ndarray:
    """Returns parts as one array, and lets go of them."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


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
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
        raise ValueError(f"bbox is {box}; it is left, top, width >= 0 and height >= 0")
    return found, classes[category], box, value
