"""What formats with a label file for each picture (YOLO, VOC) have in common: which of the labels that were
read are kept; and when they are written, the files' names, and what such files cannot say.

Letters: I pictures, N boxes of all pictures, C classes.
"""

import csv
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.data.faults import Faults, annotation_faults, lost_labels
from detmtl.data.flat import Annotations
from detmtl.data.source import Source
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

COVERAGE = "coverage.csv"
"""The file that `covers_file` reads."""


@dataclass(frozen=True)
class ReadLabels:
    """The N labels of all files as they were read.

    Attributes:
        image: (N,) int64, position of the picture.
        boxes: (N, 4) float64 xyxy, pixels.
        classes: (N,) int64, -1: not known, or of no class that is wanted.
        unknown: (N,) bool, whose class is not known.
        unplaced: (N,) bool, whose place is not known.
        ignore: (N,) an `Ignore`.
        scores: (N,) in [0, 1]; None: 1 throughout.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    unknown: np.ndarray
    unplaced: np.ndarray
    ignore: np.ndarray
    scores: np.ndarray | None = None

    def kept(
        self, sizes: np.ndarray, grade: Grade, name: Callable[[int], str], faults: Faults
    ) -> tuple[Annotations, np.ndarray]:
        """Returns the labels of known class and place in the pictures whose size is known, and the lost ones,
        see `Parsed`; positions are among those pictures.

        Args:
            sizes: (I, 2), height and width; 0 x 0 is not known.
            grade: of all labels.
            name: gives the name of a label for a sentence.
            faults: what is wrong with boxes is collected there.
        """
        readable = sizes.min(axis=1) > 0
        place = np.where(readable, np.cumsum(readable) - 1, -1)[self.image]
        checked = np.flatnonzero(((self.classes >= 0) | self.unknown) & ~self.unplaced)
        inside, bad, problems = annotation_faults(
            self.boxes[checked], self.image[checked], sizes, lambda n: name(int(checked[n]))
        )
        faults.add(*problems)
        good = ~bad & (self.classes[checked] >= 0) & (place[checked] >= 0)
        kept = checked[good]
        gone = self.unknown | (self.unplaced & (self.classes >= 0))
        gone[checked[bad]] = True
        annotations = Annotations.of(
            num_images=int(readable.sum()),
            image=place[kept],
            boxes=inside[good],
            classes=self.classes[kept],
            scores=None if self.scores is None else self.scores[kept],
            ignore=self.ignore[kept],
            grade=int(grade),
        )
        return annotations, lost_labels(place[gone], self.classes[gone])


def listed_lines(file: Path, where: str) -> Sequence[str]:
    """Returns the lines of a list of pictures, without blank ones.

    Args:
        file: the list.
        where: it is, for sentences.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{where}: cannot be read ({problem})") from problem
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{where}: is empty; it needs the name of a picture on each line")
    return lines


def listed_pictures(
    pictures: Sequence[str], file: Path, where: str, folder: Path, faults: Faults
) -> list[str]:
    """Returns those of `pictures` in `folder` that a list names, by paths that end in their names: of
    `images/train/a.jpg` the longest such end counts, so that the list may start from another folder.

    Raises:
        InputError: it names none of them.
    """
    known, taken = set(pictures), set()
    for line in listed_lines(file, where):
        parts = line.replace("\\", "/").split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((end for end in ends if end in known), None)
        if found is None:
            faults.add(f"{where}: {line} is no picture below {folder}")
        else:
            taken.add(found)
    if not taken:
        raise InputError([f"{where}: names no picture below {folder}", *faults.problems])
    return [picture for picture in pictures if picture in taken]


def picture_names(source: Source, suffix: str) -> list[str]:
    """Returns the names of the pictures relative to the source's folder, or to their common one where
    names are absolute; a label file has its picture's name with the suffix.

    Raises:
        InputError: two pictures would have one file.
    """
    names = [source.files.name(i) for i in range(len(source))]
    if any(os.path.isabs(name) for name in names):
        paths = list(source.files.paths())
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [os.path.relpath(path, folder) for path in paths]
    of: dict[str, str] = {}
    problems = []
    for name in names:
        label = os.path.splitext(name)[0] + suffix
        if label in of or label.startswith(".."):
            other = f"as {of[label]} has" if label in of else "which lies outside of the folder"
            problems.append(
                f"{name}: its labels would stand in {label}, {other}; rename the picture"
            )
        of[label] = name
    if problems:
        raise InputError(problems)
    return names


def write_coverage(folder: Path, source: Source, names: Sequence[str]) -> int:
    """Writes what was looked for in which picture as a file that `covers_file` reads, unless everything
    was everywhere, and returns the number of pictures in which something was not."""
    coverage = np.broadcast_to(source.coverage, (len(source), len(source.classes)))
    partial = (coverage < 1).any(axis=1) if source.annotations is not None else np.zeros(0, bool)
    if not partial.any():
        return 0
    with (folder / COVERAGE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "class", "coverage"])
        for i in np.flatnonzero(partial).tolist():
            covered = np.flatnonzero(coverage[i])
            rows.writerows([names[i], source.classes[c], f"{coverage[i, c]:.6g}"] for c in covered)
            if not len(covered):
                rows.writerow([names[i], "", ""])
    return int(partial.sum())


def tell_losses(source: Source, format: str, scores: bool, ignored: bool, partial: int) -> None:
    """Warns of what the written files do not say, counted; says nothing if they say it all.

    Args:
        source: what was written.
        format: its name.
        scores: whether the files have scores.
        ignored: whether boxes that give no loss are written, as difficult ones; otherwise they are left out.
        partial: pictures whose coverage is in a file of its own.
    """
    a = source.annotations
    assert a is not None
    plain = np.asarray(a.ignore) == Ignore.NO
    written = np.ones_like(plain) if ignored else plain
    doubtful = np.asarray(a.ignore) == Ignore.CLASS if ignored else ~plain
    fate = (
        "that are ignored for their class (written as difficult)"
        if ignored
        else "that give no loss"
    )
    counts = {
        f"boxes {fate}": doubtful,
        "scores below 1": written & (np.asarray(a.scores) < 1) & (not scores),
        "weights other than 1": written & (np.asarray(a.weights) != 1).any(axis=1),
        "silver grades": written & (np.asarray(a.grade) == Grade.SILVER),
    }
    lost = [f"{what} ({int(mask.sum())})" for what, mask in counts.items() if mask.any()]
    if partial:
        lost.append(f"coverage ({partial} pictures; see {COVERAGE}, for `covers_file`)")
    if lost:
        warnings.warn(f"{format} files have no place for: {', '.join(lost)}", stacklevel=3)
