"""A teacher whose answers are already in a COCO results file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.teacher import Teacher, TeacherSettings, existing, file_sha256


class ResultsTeacher(Teacher):
    """Looks up what somebody's detector said; pictures are told by the end of their path.

    Args:
        card: who it is.
        images: the annotation file's `file_name` -> image id.
        sizes: image id -> height, width.
        starts: image id -> its rows, first and end.
        boxes: (N, 4) xyxy. classes: (N,). scores: (N,); by picture and falling score.
    """

    def __init__(
        self,
        card: TeacherCard,
        images: dict[str, int],
        sizes: dict[int, tuple[int, int]],
        starts: dict[int, tuple[int, int]],
        boxes: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
    ):
        self.card = card
        self._images, self._sizes, self._starts = images, sizes, starts
        self._boxes, self._classes, self._scores = boxes, classes, scores

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the file's boxes of each picture; only `infos` and the pictures' sizes are used.

        Raises:
            InputError: the annotation file does not have a picture, or has it in another size.
        """
        return [
            self._of(info, (int(image.shape[1]), int(image.shape[2])), floor)
            for image, info in zip(images, infos, strict=True)
        ]

    def _of(self, info: ImageInfo, size: tuple[int, int], floor: float) -> BoxLabels:
        number = self._find(info.path)
        if self._sizes[number] != size:
            raise InputError(
                f"{info.path}: is {size[1]} x {size[0]} pixels, but the results' annotation file says "
                f"{self._sizes[number][1]} x {self._sizes[number][0]}; the boxes are of another picture"
            )
        first, end = self._starts.get(number, (0, 0))
        end = first + int(np.count_nonzero(self._scores[first:end] >= floor))
        limits = np.array([size[1], size[0], size[1], size[0]])
        return BoxLabels.of(
            torch.from_numpy(self._boxes[first:end].clip(0, limits)),
            torch.from_numpy(self._classes[first:end]),
            len(self.card.classes),
            scores=torch.from_numpy(self._scores[first:end].copy()),
            grade=Grade.SILVER,
        )

    def _find(self, path: str) -> int:
        """Returns the id of the picture whose file name is the longest end of `path`."""
        parts = Path(path).parts
        for first in range(len(parts)):
            found = self._images.get("/".join(parts[first:]).replace("//", "/"))
            if found is not None:
                return found
        raise InputError(
            f"{path}: the results' annotation file has no picture of this name; a picture that it does "
            "not have was not looked at, which is not the same as empty"
        )


class ResultsTeacherSettings(TeacherSettings):
    """A COCO results file (`path`): a list of image_id, category_id, bbox, score."""

    kind: Literal["results"] = "results"
    annotations: str
    """The COCO file whose image ids, file names and categories the results speak of."""

    def load(self, root: Path, device: str = "cpu") -> ResultsTeacher:
        """Reads both files, relative to `root`.

        Raises:
            InputError: everything that is wrong in them.
        """
        file = existing(root, self.path, "teacher.path")
        known_file = existing(root, self.annotations, "teacher.annotations")
        about = _read(known_file, dict, "a COCO annotation file (an object)")
        results = _read(file, list, "a COCO results file (a list)")
        try:
            categories = sorted((c["id"], c["name"]) for c in about["categories"])
            images = {row["file_name"]: row["id"] for row in about["images"]}
            sizes = {row["id"]: (row["height"], row["width"]) for row in about["images"]}
        except (KeyError, TypeError) as problem:
            raise InputError(
                f"{known_file}: needs categories (id, name) and images (id, file_name, height, width); "
                f"{problem} is missing"
            ) from None
        columns = _columns(
            file, results, sizes, {number: c for c, (number, _) in enumerate(categories)}
        )
        card = TeacherCard(
            name=self.name or file.stem,
            weights_sha256=file_sha256(file),
            classes=tuple(name for _, name in categories),
            preprocessing=f"results of {os.path.basename(file)}",
        )
        return ResultsTeacher(card, images, sizes, *columns)


def _read(file: Path, kind: type, expected: str) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as problem:
        raise InputError(f"{file}: no readable JSON ({problem})") from None
    if not isinstance(content, kind):
        raise InputError(f"{file}: not {expected} but {type(content).__name__}")
    return content


def _columns(
    file: Path,
    results: list[dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    classes: dict[int, int],
) -> tuple[dict[int, tuple[int, int]], np.ndarray, np.ndarray, np.ndarray]:
    """Returns where each picture's rows lie, and boxes, classes and scores of all rows."""
    problems = []
    for i, row in enumerate(results):
        problem = _problem(row, sizes, classes)
        if problem:
            problems.append(f"{file}: result {i}: {problem}")
    if problems:
        raise InputError(problems)
    numbers = np.array([row["image_id"] for row in results], dtype=np.int64)
    scores = np.array([row["score"] for row in results], dtype=np.float32)
    boxes = np.array([row["bbox"] for row in results], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    of = np.array([classes[row["category_id"]] for row in results], dtype=np.int64)
    order = np.lexsort((-scores, numbers))
    found, first, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    ends = first + counts
    starts = {int(n): (int(a), int(b)) for n, a, b in zip(found, first, ends, strict=True)}
    return starts, boxes[order].astype(np.float32), of[order], scores[order]


def _problem(row: Any, sizes: dict[int, tuple[int, int]], classes: dict[int, int]) -> str | None:
    try:
        number, category, box, score = (
            row["image_id"],
            row["category_id"],
            [float(x) for x in row["bbox"]],
            float(row["score"]),
        )
    except (KeyError, TypeError, ValueError) as problem:
        return f"needs image_id, category_id, bbox (4 numbers) and score ({problem})"
    if number not in sizes:
        return f"image_id {number!r} is no image of the annotation file"
    if category not in classes:
        return f"category_id {category!r} is no category of the annotation file"
    if not 0 <= score <= 1:
        return f"score is {score}; it lies in [0, 1]"
    if len(box) != 4 or not np.isfinite(box).all() or box[2] < 0 or box[3] < 0:
        return f"bbox is {box}; it is left, top, width >= 0 and height >= 0"
    return None
