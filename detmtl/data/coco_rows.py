"""The annotations of a COCO file as columns: read block by block, before anything else of the file is known.

Letters: N annotations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.faults import number_column, positions
from detmtl.data.json_file import read_in_blocks
from detmtl.structures.labels import Grade, Ignore

GRADES = {"gold": Grade.GOLD, "silver": Grade.SILVER}
_UNSAID = 255
"""The grade of annotations that do not say it, until the whole file has been read."""
_IGNORES = {"class": Ignore.CLASS, "region": Ignore.REGION}
_FLAGS = (0, 1, None)


@dataclass(frozen=True, eq=False)
class Columns:
    """What N annotations say, as arrays of N; where a number is missing or none, 0 stands.

    Attributes:
        ids, images, kinds: int64, the ids of annotation, picture and category. boxes: (N, 4) float64 xywh.
        no_id, no_image, no_kind, no_box: bool, where these cannot be used.
        scores: float64. weights: (N, 2) float64 of class and box. ignore, grade: uint8.
        bad: bool, where one of these four makes no sense.
        faults: what is wrong with ids, categories and boxes, a sentence each.
        given_faults: position -> what is wrong with the rest.
    """

    ids: np.ndarray
    images: np.ndarray
    kinds: np.ndarray
    boxes: np.ndarray
    no_id: np.ndarray
    no_image: np.ndarray
    no_kind: np.ndarray
    no_box: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    ignore: np.ndarray
    grade: np.ndarray
    bad: np.ndarray
    faults: list[str]
    given_faults: dict[int, list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, i: int, where: str) -> str:
        """Returns how sentences call annotation i of a file."""
        return f"{where}: annotation {self.ids[i]} of image {self.images[i]}"

    @classmethod
    def of(cls, rows: Sequence[Any], first: int, where: str, grade: int) -> "Columns":
        """Returns the columns of a block of annotations.

        Args:
            rows: their JSON objects.
            first: the position of the first of them.
            where: the file, for sentences.
            grade: of those that do not say.
        """
        ids, no_id, p1 = number_column(
            rows, "id", lambda i: f"{where}: annotation at position {first + i}", whole=True
        )
        images, no_image, p2 = number_column(
            rows, "image_id", lambda i: f"{where}: annotation {ids[i]}", whole=True
        )

        def name(i: int) -> str:
            return f"{where}: annotation {ids[i]} of image {images[i]}"

        kinds, no_kind, p3 = number_column(rows, "category_id", name, whole=True)
        boxes, no_box, p4 = _boxes(rows, name)
        objects = [row if isinstance(row, dict) else {} for row in rows]
        scores, bad, p5 = number_column(objects, "score", name, default=1.0)
        given = dict(zip(positions(bad), ([sentence] for sentence in p5), strict=True))
        for i in positions(~bad & ~((scores >= 0) & (scores <= 1))):
            given[i] = [f"{name(i)}: score is {scores[i]:g}; scores lie in [0, 1]"]
        n = len(rows)
        out = cls(
            *(ids, images, kinds, boxes, no_id, no_image, no_kind, no_box, scores),
            weights=np.ones((n, 2)),
            ignore=np.zeros(n, np.uint8),
            grade=np.full(n, grade, np.uint8),
            bad=bad,
            faults=[*p1, *p2, *p3, *p4],
            given_faults=given,
        )
        for i, row in enumerate(objects):
            crowd = row.get("iscrowd")
            if crowd or row.get("ignore"):
                out.ignore[i] = Ignore.REGION
            for key in ("iscrowd", "ignore"):
                if (value := row.get(key)) not in _FLAGS:  # NaN and "0" would be true
                    sentence = f"{name(i)}: {key} is {value!r:.60}; it needs 0 or 1"
                    given.setdefault(i, []).append(sentence)
            attributes = row.get("attributes")
            if isinstance(attributes, dict) and attributes:
                sentences = [f"{name(i)}: {problem}" for problem in _attributes(attributes, i, out)]
                if sentences:
                    given.setdefault(i, []).extend(sentences)
            if crowd is not None and not (crowd or row.get("ignore")):
                # Cleared in a tool that knows `iscrowd` and keeps `attributes` as they were.
                out.ignore[i] = Ignore.NO
        out.bad[list(given)] = True
        return out

    @classmethod
    def joined(cls, blocks: Sequence["Columns"]) -> "Columns":
        """Returns the columns of at least one block, in their order."""
        arrays = {
            f.name: np.concatenate([getattr(block, f.name) for block in blocks])
            for f in fields(cls)
            if f.name not in ("faults", "given_faults")
        }
        firsts = np.cumsum([0, *map(len, blocks)]).tolist()
        return cls(
            **arrays,
            faults=[sentence for block in blocks for sentence in block.faults],
            given_faults={
                first + i: sentences
                for first, block in zip(firsts, blocks, strict=False)
                for i, sentences in block.given_faults.items()
            },
        )


def _boxes(
    rows: Sequence[Any], name: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the boxes (N, 4) xywh of annotations, where they have none (N,) bool, and a sentence for each
    of those. One that says no box has that around its polygons: some converters write these alone.

    Args:
        rows: their JSON objects.
        name: how sentences call each.
    """
    boxes, missing, problems = number_column(rows, "bbox", name, width=4)
    told = []
    for i, problem in zip(positions(missing), problems, strict=True):
        around = _around(rows[i])
        if around is None:
            told.append(problem)
        else:
            boxes[i], missing[i] = around, False
    return boxes, missing, told


def _around(row: Any) -> list[float] | None:
    """Returns the box xywh around an annotation's polygons, None if it has others than polygons, or a box."""
    shape = row.get("segmentation") if isinstance(row, dict) and not row.get("bbox") else None
    if not isinstance(shape, list) or not shape:
        return None
    rings = shape if isinstance(shape[0], list) else [shape]
    try:
        points = np.concatenate([np.array(ring, np.float64).reshape(-1, 2) for ring in rings])
    except (TypeError, ValueError):
        return None
    if not len(points):
        return None
    first, last = points.min(axis=0), points.max(axis=0)
    return [*first.tolist(), *(last - first).tolist()]


def is_object(row: Mapping[str, Any]) -> bool:
    """Returns whether an annotation is one, and not a crowd or a region without loss; by the rules of
    `Columns.of`."""
    crowd = row.get("iscrowd")
    if crowd or row.get("ignore"):
        return False
    attributes = row.get("attributes")
    said = attributes.get("ignore") if isinstance(attributes, dict) else None
    return crowd is not None or not (isinstance(said, str) and said in _IGNORES)


def _attributes(attributes: Mapping[str, Any], i: int, out: Columns) -> Iterator[str]:
    """Puts an annotation's attributes into row i of `out`; yields what is wrong with them."""
    for key, known, array in (("grade", GRADES, out.grade), ("ignore", _IGNORES, out.ignore)):
        value = attributes.get(key)
        if isinstance(value, str) and value in known:
            array[i] = known[value]
        elif value not in (None, False):
            yield (
                f"attributes.{key} is {value!r:.60}; allowed are {' and '.join(known)}, and an attribute of "
                "your own needs another name"
            )
    for column, key in enumerate(("class_weight", "box_weight")):
        value = attributes.get(key, 1.0)
        if isinstance(value, int | float) and 0 <= value < 1e6:
            out.weights[i, column] = value
        else:
            yield f"attributes.{key} is {value!r}; it needs a number >= 0"


def read_columns(
    path: Path, where: str, grade: Grade, keep_rows: bool
) -> tuple[Any, Columns, list[Any]]:
    """Returns what an annotation file holds but for its annotations, their columns, and their JSON objects
    if they are kept.

    Args:
        path: of the file.
        where: the file, for sentences.
        grade: of annotations that do not say it, in a file whose `info.grade` does not say silver.
        keep_rows: whether the objects are kept.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    kept: list[Any] = []
    blocks = [Columns.of([], 0, where, _UNSAID)]
    count = 0

    def take(rows: list[Any]) -> None:
        nonlocal count
        blocks.append(Columns.of(rows, count, where, _UNSAID))
        count += len(rows)
        if keep_rows:
            kept.extend(rows)

    data = read_in_blocks(path, where, "annotations", take)
    columns = Columns.joined(blocks)
    of_file = Grade.SILVER if info_of(data).get("grade") == "silver" else grade
    columns.grade[columns.grade == _UNSAID] = of_file
    return data, columns, kept


def info_of(data: Any) -> dict[str, Any]:
    """Returns `info` of what an annotation file holds; where there is none, an empty one."""
    info = data.get("info") if isinstance(data, dict) else None
    return info if isinstance(info, dict) else {}


def read_said(path: Path) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Returns `info` and the `attributes` of each annotation of a file that has been read before."""
    said: list[Mapping[str, Any]] = []

    def take(rows: list[Any]) -> None:
        said.extend(row.get("attributes", {}) for row in rows)

    data = read_in_blocks(path, str(path), "annotations", take)
    return data.get("info", {}), said
