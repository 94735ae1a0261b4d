"""YOLO labels: one text file a picture, a line per box. Reading them as a source, and writing them.

A line is `class x y width height [score]`, fractions of the picture with x, y the center, or
`class x1 y1 x2 y2 x3 y3 ...`, a polygon of which the surrounding box is taken. With keypoints it is
`class x y width height` and the keypoints, which are not read.
Letters: I pictures, N boxes of all pictures, C classes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from detmtl.data.details import DetailClasses
from detmtl.data.faults import Faults, lost_labels, positions
from detmtl.data.flat import FileNames
from detmtl.data.folder import file_hashes, file_sizes, require_labels, require_pictures, stamps
from detmtl.data.images import image_sizes, list_files, list_pictures
from detmtl.data.label_files import (
    ReadLabels,
    listed_pictures,
    picture_names,
    tell_losses,
    write_coverage,
)
from detmtl.data.parsed import Parsed
from detmtl.data.source import Source
from detmtl.data.source_settings import SourceSettings
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore


class YoloSource(SourceSettings):
    """Pictures with YOLO label files: images/a/b.jpg belongs to labels/a/b.txt.

    Attributes:
        labels: folder of the text files.
        names: the class names in the order of their numbers; or a file that has them: YAML with `names`
            (list, or number -> name), or text with a name on each line.
        list: text file (train.txt) with the path of a picture on each line: those are taken; None: all.
        unlabelled: what a picture without a text file is: "empty", as YOLO's tools write no file where
            there is nothing; or "skip": nobody looked, and the picture is left aside.
        kpt_shape: number of keypoints and of numbers of each that stand behind every box, as in YOLO's
            data.yaml; where `names` is such a file, it is read from there. Lines with keypoints look like
            polygons otherwise.
    """

    kind: Literal["yolo"] = "yolo"
    labels: str
    names: str | list[str]
    unlabelled: Literal["empty", "skip"] = "empty"
    kpt_shape: tuple[int, int] | None = None
    list: str | None = None

    def has_labels(self) -> bool:
        """Returns True: the boxes."""
        return True

    def fingerprint(self, root: Path, cache: Path) -> Any:
        """Returns the names, and name, size and time of change of pictures and text files."""
        pictures = list_pictures(root / self.images)
        texts = [_text_name(name) for name in pictures]
        return [
            self._class_names(root),
            self._numbers_of_keypoints(root),
            list_files(root / self.labels, {".txt"}),
            stamps(root / self.images, pictures),
            stamps(root / self.labels, texts),
            *([] if self.list is None else [stamps(root, [self.list])]),
        ]

    def contents(self, root: Path, cache: Path) -> Any:
        """Returns the names, name and size of pictures, and the hashes of their text files."""
        pictures = list_pictures(root / self.images)
        return [
            self._class_names(root),
            self._numbers_of_keypoints(root),
            file_sizes(root / self.images, pictures),
            file_hashes(root / self.labels, [_text_name(name) for name in pictures], cache),
            *([] if self.list is None else [file_hashes(root, [self.list], cache)]),
        ]

    def parse(
        self, root: Path, classes: LabelSpace, details: DetailClasses | None = None
    ) -> Parsed:
        """Reads and checks the text files."""
        faults, folder = Faults(self.labels), root / self.images
        names = self._class_names(root)
        class_of = np.array(classes.class_of(names, where=f"names of {self.labels}"))
        pictures = self._pictures(root, faults)
        lines = _Lines.read(
            root / self.labels, pictures, self.labels, faults, self._numbers_of_keypoints(root)
        )
        require_labels(len(lines.rows) + len(faults.problems), self.covers, self.labels)
        sizes, problems = image_sizes([str(folder / p) for p in pictures])
        faults.add(*(text for _, text in problems))
        grade = Grade.SILVER if self.grade == "silver" else Grade.GOLD
        labels = lines.labels(sizes, class_of, faults)
        annotations, lost = labels.kept(sizes, grade, lines.name, faults)
        dropped = faults.settle(self.faults)
        readable = np.flatnonzero(sizes.min(axis=1) > 0)
        if not len(readable):
            raise InputError([f"{self.images}: no picture can be read", *faults.problems])
        place = np.full(len(pictures), -1)
        place[readable] = np.arange(len(readable))
        unread = lost_labels(place[lines.unread], np.full(len(lines.unread), -1))
        return Parsed(
            files=FileNames.of(folder, [pictures[i] for i in readable.tolist()]),
            ids=np.arange(len(readable)),
            sizes=sizes[readable],
            annotations=annotations,
            coverage=self.covered(classes, classes.known(names), self.labels)[None],
            silver=self.grade == "silver",
            dropped=dropped,
            lost=np.concatenate([lost, unread]),
            notes=self.doubts(classes, names),
        )

    def _pictures(self, root: Path, faults: Faults) -> Sequence[str]:
        """Returns the names of the pictures that are taken; text files without a picture, or with several,
        are faults."""
        folder = root / self.images
        pictures = require_pictures(folder)
        faults.add(*self._without_picture(root, {_text_name(p) for p in pictures}))
        if self.list is not None:
            pictures = listed_pictures(pictures, root / self.list, self.list, folder, faults)
        there = [(root / self.labels / _text_name(p)).is_file() for p in pictures]
        if not any(there):
            raise InputError(
                f"{root / self.labels}: no picture of {folder} has a text file there; {pictures[0]} would "
                f"have {_text_name(pictures[0])}"
            )
        of_text: dict[str, list[str]] = {}
        for picture, here in zip(pictures, there, strict=True):
            if here:
                of_text.setdefault(_text_name(picture), []).append(picture)
        several = {text: of for text, of in of_text.items() if len(of) > 1}
        faults.add(
            *(
                f"{self.labels}/{text}: {' and '.join(of)} may be its picture; rename all but one"
                for text, of in several.items()
            )
        )
        return [
            picture
            for picture, here in zip(pictures, there, strict=True)
            if (here or self.unlabelled == "empty") and _text_name(picture) not in several
        ]

    def _without_picture(self, root: Path, known: set[str]) -> Sequence[str]:
        """Returns a sentence for each text file that belongs to no picture."""
        names = root / self.names if isinstance(self.names, str) else None
        return [
            f"{self.labels}/{name}: no picture has this label file; that of b.jpg is b.txt"
            for name in list_files(root / self.labels, {".txt"})
            if name not in known
            and name != "classes.txt"  # which labelling tools write there
            and root / self.labels / name != names
        ]

    def _numbers_of_keypoints(self, root: Path) -> int:
        """Returns how many numbers stand behind each box."""
        shape: Any = self.kpt_shape
        if shape is None and isinstance(self.names, str):
            shape = _yaml_of(root / self.names, self.names).get("kpt_shape")
        if shape is None:
            return 0
        try:
            points, numbers = map(int, shape)
        except (TypeError, ValueError):
            raise InputError(
                f"{self.names}: kpt_shape is {shape!r}; it needs two numbers, as [17, 3]"
            ) from None
        return points * numbers

    def _class_names(self, root: Path) -> Sequence[str]:
        if not isinstance(self.names, str):
            return self.names
        return read_names(root / self.names, self.names)


def _yaml_of(path: Path, where: str) -> dict[str, Any]:
    """Returns what a YAML file says; nothing if it is no YAML file."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return {}
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, YAMLError) as problem:
        raise InputError(f"{where}: class names cannot be read from it ({problem})") from problem
    return tree if isinstance(tree, dict) else {}


def read_names(path: Path, where: str) -> list[str]:
    """Returns the class names of a YAML file with `names`, or of a text file with one a line.

    Raises:
        InputError: it cannot be read, or has no names.
    """
    try:
        if path.suffix.lower() == ".json":
            raise InputError(
                f"{where}: is JSON; class names are read from YAML with `names`, as data.yaml, or from text "
                "with one name a line, as classes.txt"
            )
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() not in (".yaml", ".yml"):
            names = [line.strip() for line in text.rstrip().splitlines()]
            if "" in names:  # tools differ in whether it counts
                raise InputError(
                    f"{where}: line {names.index('') + 1} is blank, so that nobody can tell the numbers of "
                    "the classes after it; remove the line, or write a name there"
                )
        else:
            listed = _yaml_of(path, where).get("names")
            if isinstance(listed, dict):
                if sorted(listed) != list(range(len(listed))):
                    raise InputError(
                        f"{where}: the numbers of `names` need to be 0, 1, 2 and so on"
                    )
                listed = [listed[i] for i in range(len(listed))]
            names = [str(name) for name in listed or []]
    except (OSError, UnicodeDecodeError, YAMLError, AttributeError, TypeError) as problem:
        raise InputError(f"{where}: class names cannot be read from it ({problem})") from problem
    if not names:
        raise InputError(
            f"{where}: has no class names; it needs `names` (YAML), or one name a line"
        )
    return names


def _text_name(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"


@dataclass(frozen=True)
class _Lines:
    """The N lines of all files.

    Attributes:
        files: name of each picture's file, for sentences.
        rows: (N, 6) class, x1, y1, x2, y2 (fractions) and score. image: (N,) position of the picture.
        numbers: (N,) of the lines.
        unread: positions of pictures of which something could not be read.
    """

    files: Sequence[str]
    rows: np.ndarray
    image: np.ndarray
    numbers: Sequence[int]
    unread: np.ndarray

    @classmethod
    def read(
        cls, folder: Path, pictures: Sequence[str], where: str, faults: Faults, keypoints: int
    ) -> "_Lines":
        """Reads the files of `pictures` in `folder`, `where` for sentences, in which so many numbers of
        `keypoints` stand behind each box."""
        needs = (
            f"`class x y width height` and {keypoints} numbers of keypoints"
            if keypoints
            else "`class x y width height [score]` or `class` and a polygon of three points or more (for "
            "keypoints behind boxes set `kpt_shape`)"
        )
        names = [_text_name(picture) for picture in pictures]
        rows: list[list[float]] = []
        image: list[int] = []
        numbers: list[int] = []
        unread: list[int] = []
        for i, name in enumerate(names):
            try:
                text = (folder / name).read_text(encoding="utf-8-sig")
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as problem:
                faults.add(f"{where}/{name}: cannot be read ({problem})")
                unread.append(i)
                continue
            for number, line in enumerate(text.splitlines(), start=1):
                if not line.strip():
                    continue
                row = _row(line.split(), keypoints)
                if row is None:
                    faults.add(
                        f"{where}/{name} line {number}: is '{line.strip()[:60]}'; it needs {needs}, all "
                        "numbers"
                    )
                    unread.append(i)
                    continue
                rows.append(row)
                image.append(i)
                numbers.append(number)
        return cls(
            [f"{where}/{name}" for name in names],
            np.array(rows).reshape(-1, 6),
            np.array(image, np.int64),
            numbers,
            np.array(unread, np.int64),
        )

    def name(self, n: int) -> str:
        """Returns how sentences call a line."""
        return f"{self.files[self.image[n]]} line {self.numbers[n]}"

    def labels(self, sizes: np.ndarray, class_of: np.ndarray, faults: Faults) -> ReadLabels:
        """Returns the lines as labels.

        Args:
            sizes: (I, 2) of the pictures, height and width; of those of 0 x 0 there is a sentence already.
            class_of: the class of each number in the files, -1: of none.
            faults: numbers that are none, and strange scores, are collected there.
        """
        kind = self.rows[:, 0].astype(np.int64)
        count = len(class_of)
        strange = (self.rows[:, 0] != kind) | (kind < 0) | (kind >= count)
        faults.add(
            *(
                f"{self.name(n)}: the class is {self.rows[n, 0]:g}; there are {count} names, so it lies "
                f"between 0 and {count - 1}"
                for n in positions(strange)
            )
        )
        scores = self.rows[:, 5]
        far = ~((scores >= 0) & (scores <= 1))
        faults.add(
            *(
                f"{self.name(n)}: the score is {scores[n]:g}; scores lie in [0, 1]"
                for n in positions(far)
            )
        )
        height, width = np.moveaxis(sizes[self.image], 1, 0)
        return ReadLabels(
            image=self.image,
            boxes=self.rows[:, 1:5] * np.stack([width, height, width, height], axis=1),
            classes=np.where(strange, -1, class_of[np.where(strange, 0, kind)]),
            unknown=strange,
            unplaced=(height == 0) | (width == 0),
            ignore=np.where(far, Ignore.REGION, Ignore.NO),
            scores=np.where(far, 1, scores),
        )


def _row(texts: Sequence[str], keypoints: int) -> list[float] | None:
    """Returns class, x1, y1, x2, y2 and score of a line, or None if it makes no sense."""
    try:
        numbers = [float(text) for text in texts]
        int(numbers[0])
    except (ValueError, OverflowError):
        return None
    if keypoints:
        if len(numbers) != 5 + keypoints:
            return None
        numbers = numbers[:5]
    if len(numbers) in (5, 6):
        kind, x, y, w, h = numbers[:5]
        score = numbers[5] if len(numbers) == 6 else 1.0
        return [kind, x - w / 2, y - h / 2, x + w / 2, y + h / 2, score]
    if len(numbers) < 7 or len(numbers) % 2 == 0:
        return None
    xs, ys = numbers[1::2], numbers[2::2]
    return [numbers[0], min(xs), min(ys), max(xs), max(ys), 1.0]


def write_yolo(folder: str | os.PathLike[str], source: Source, scores: bool = False) -> int:
    """Writes one label file a picture into `folder` (empty ones too) and `data.yaml` with the class
    names, and returns the number of boxes. What YOLO's format has no place for is told in a warning
    that counts it: boxes that give no loss are left out; coverage stands in `coverage.csv`.

    Args:
        folder: is made.
        source: of labelled pictures.
        scores: adds the score to each line, which the tools that train on such files do not read.

    Raises:
        InputError: two pictures would have one label file.
    """
    folder = Path(folder)
    assert source.annotations is not None
    names = picture_names(source, ".txt")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump({"names": dict(enumerate(source.classes))}, file)
    count = 0
    for i, name in enumerate(names):
        labels = source.boxes(i)
        assert labels is not None
        labels = labels[labels.ignore == 0]
        height, width = (int(n) for n in source.sizes[i])
        lines = []
        for (x1, y1, x2, y2), c, score in zip(
            labels.boxes.tolist(), labels.classes.tolist(), labels.scores.tolist(), strict=True
        ):
            center = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
            numbers = (*center, (x2 - x1) / width, (y2 - y1) / height)
            scored = f" {score:.6g}" if scores else ""
            lines.append(f"{c} " + " ".join(f"{n:.8f}" for n in numbers) + scored)
        path = folder / _text_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        count += len(lines)
    partial = write_coverage(folder, source, names)
    tell_losses(source, "YOLO", scores, ignored=False, partial=partial)
    return count
