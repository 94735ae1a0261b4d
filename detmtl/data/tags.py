"""Image tags of a source: from a file, or derived from its boxes.

Letters: I pictures, T tags, C classes of boxes.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from detmtl.data.coverage import class_mask, partly_known
from detmtl.data.flat import FileNames, Flat
from detmtl.data.json_file import read_json
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore, TagLabels
from detmtl.structures.settings import Settings


class TagClasses(Settings):
    """The tags.

    Attributes:
        classes: the tags in order, or tag -> names by which sources call its members.
        unmapped: what happens to a name that belongs to no tag: an `error`, or `drop` it.
        from_boxes: whether sources that have boxes and no file of tags get their tags from the boxes:
            the names are then those of data.classes.
    """

    classes: list[str] | dict[str, list[str]]
    unmapped: Literal["error", "drop"] = "error"
    from_boxes: bool = False

    def label_space(self) -> LabelSpace:
        """Returns the tags with their members."""
        drop = self.unmapped == "drop"
        return LabelSpace.of(self.classes, drop_unmapped=drop, setting="data.tags")


class TagFile(Settings):
    """Where the tags of a source are: a JSON object with `tags`, a list of all names that were looked
    for, and `images`, a list of objects with `file_name` (relative to the source's pictures) and `tags`,
    those that the picture shows. COCO files may carry the same two keys.

    An image may also have `scores`, name -> probability that it shows the tag, and `weights`, name ->
    number in [0, 1], 0 for what nobody could tell. The file may have `grade`, gold or silver,
    else the source's holds.
    Pictures that are not listed, or without `tags`, nobody looked at.

    Attributes:
        file: the JSON file; relative to the settings' root.
        covers: the tags that were looked for; None: those of which the file's `tags` name a member.
        missing: what a picture without tags is: an `error`; `absent`, nobody looked at it; or it is left
            out of the source, `drop`, after any subset was taken.
    """

    file: str
    covers: list[str] | None = None
    missing: Literal["error", "absent", "drop"] = "error"

    def load(
        self,
        pictures: FileNames,
        root: Path,
        classes: TagClasses,
        where: str,
        grade: Grade = Grade.GOLD,
    ) -> "Tags":
        """Returns the tags of `pictures`; `grade` says who wrote them where the file does not.

        Warns if there are pictures without tags, and tags without a picture, be it one that the folder of
        `pictures` has besides: names may differ by mistake.

        Raises:
            InputError: with everything that is wrong with the file.
        """
        path = root / self.file
        data = _object(path)
        space = classes.label_space()
        names = data["tags"]
        found = space.class_of(names, f"{path}: tags")
        rows, problems = _rows(data["images"], pictures.folder, path)
        targets = np.zeros((len(pictures), len(space)), np.float32)
        weights = np.zeros((len(pictures), len(space)), np.float32)
        present = np.zeros(len(pictures), dtype=bool)
        of_name = dict(zip(names, found, strict=True))
        looked, notes = np.array(space.known(names), dtype=np.float32), ()
        if self.covers is None:
            notes = partly_known(space.partly(names), "tag", "tags.covers")
        else:
            looked = class_mask(self.covers, space, f"{where}: tags.covers").astype(np.float32)
        places = [os.path.normpath(path) for path in pictures.paths()]
        for i, place in enumerate(places):
            row = rows.get(place)
            if row is not None:
                present[i] = True
                weights[i] = looked
                problems += _fill(row, of_name, targets[i], weights[i], path)
            elif self.missing == "error":
                problems.append(
                    f"{path}: has no tags of {pictures.name(i)}; set tags.missing: absent where nobody "
                    "looked at such pictures"
                )
        if not present.any():
            problems = [
                f"{path}: has tags of none of the {len(pictures)} pictures of {where}, the first is "
                f"{pictures.name(0)}; file_name is relative to the source's images"
            ]
        if problems:
            raise InputError(problems)
        missing, more = int((~present).sum()), rows.keys() - {*places}
        others = [rows[place] for place in more if not os.path.isfile(place)] if missing else []
        if others:
            first = min(row["file_name"] for row in others)
            warnings.warn(
                f"{path}: has no tags of {missing} of the {len(pictures)} pictures of {where}, but tags of "
                f"{len(others)} others, such as {first}; file_name is relative to the source's images",
                stacklevel=2,
            )
        if data.get("grade"):
            grade = Grade[data["grade"].upper()]
        grades = np.full(len(pictures), grade, np.uint8)
        return Tags(targets, weights, present, grades, notes)


@dataclass(frozen=True, eq=False)
class Tags(Flat):
    """The tags of I pictures.

    Attributes:
        targets, weights: (I, T) float32, see `TagLabels`.
        present: (I,) bool: which pictures somebody looked at.
        grade: (I,) uint8, a `Grade`.
        notes: sentences on what the file leaves open.
    """

    targets: np.ndarray
    weights: np.ndarray
    present: np.ndarray
    grade: np.ndarray
    notes: tuple[str, ...] = ()

    def by_people(self) -> np.ndarray:
        """Returns (I,) bool: of which pictures people told tags."""
        return self.present & (self.grade == Grade.GOLD)

    def searched(self, boxes: np.ndarray | None) -> np.ndarray:
        """Returns (T,) bool: which tags somebody looked for in some picture; `boxes` are not asked."""
        return np.asarray((self.weights[self.present] > 0).any(axis=0))

    def filled(self, other: "Tags") -> "Tags":
        """Returns these tags, and those of `other` of the same pictures where nobody told any."""
        missing = ~self.present & other.present
        return Tags(
            np.where(missing[:, None], other.targets, self.targets),
            np.where(missing[:, None], other.weights, self.weights),
            self.present | other.present,
            np.where(missing, other.grade, self.grade).astype(np.uint8),
        )

    def completed(self, other: "Tags") -> "Tags":
        """Returns these tags, and those of `other` where nobody looked for a tag of a picture; a picture of
        which both tell something has the higher grade."""
        told = self.present[:, None] & (self.weights > 0)
        more = ~told & other.present[:, None] & (other.weights > 0)
        both = np.where(more.any(1), np.maximum(self.grade, other.grade), self.grade)
        return Tags(
            np.where(told, self.targets, np.where(more, other.targets, 0)).astype(np.float32),
            np.where(told, self.weights, np.where(more, other.weights, 0)).astype(np.float32),
            self.present | other.present,
            np.where(told.any(1), both, other.grade).astype(np.uint8),
        )

    def take(self, indices: np.ndarray) -> "Tags":
        """Returns the tags of the pictures at `indices`."""
        arrays = ("targets", "weights", "present", "grade")
        return replace(self, **{name: getattr(self, name)[indices] for name in arrays})

    def labels(self, i: int, boxes: BoxLabels | None) -> TagLabels | None:
        """Returns the tags of picture i, None where nobody looked; `boxes` are not asked."""
        if not self.present[i]:
            return None
        targets, weights = (torch.from_numpy(np.array(x[i])) for x in (self.targets, self.weights))
        return TagLabels(targets, weights, int(self.grade[i]))


@dataclass(frozen=True, eq=False)
class BoxTags(Flat):
    """Tags that follow from boxes.

    Attributes:
        members: (T, C) bool: which classes of boxes mean which tag.
        grade: a `Grade`, of who looked for the boxes: that there is none is that one's word.
    """

    members: np.ndarray
    grade: int = int(Grade.GOLD)

    @classmethod
    def of(
        cls, box_classes: Sequence[str], classes: TagClasses, grade: Grade = Grade.GOLD
    ) -> "BoxTags":
        """Finds out which tag each class of boxes means; `grade` says who looked for the boxes.

        Raises:
            InputError: a class means no tag and `unmapped` is `error`, or no class means one.
        """
        space = classes.label_space()
        found = np.array(space.class_of(box_classes, "data.classes"))
        return cls(found[None] == np.arange(len(space))[:, None], int(grade))

    def take(self, indices: np.ndarray) -> "BoxTags":
        """Returns itself: it is of no picture."""
        return self

    def searched(self, boxes: np.ndarray | None) -> np.ndarray:
        """Returns (T,) bool: which tags follow from boxes that were looked for, `boxes` (C,) bool; None:
        none were."""
        looked = np.zeros(self.members.shape[1], bool) if boxes is None else boxes
        return np.asarray(self.members.any(axis=1) & (looked | ~self.members).all(axis=1))

    def labels(self, i: int, boxes: BoxLabels | None) -> TagLabels | None:
        """Returns the tags of a picture with these boxes, None where nobody looked for boxes.

        They are silver where a box is.

        A tag's target is the score of its best box. Where there is none, it is 0, weighted by the
        coverage of its classes, the least of them; and unknown where a box gives no loss, since it
        may be what the tag asks for.
        """
        if boxes is None:
            return None
        members = torch.from_numpy(np.array(self.members))
        ordinary = boxes.ignore == Ignore.NO
        own = members[:, boxes.classes]  # (T, N)
        best = (boxes.scores * ordinary * own).amax(1) if len(boxes) else torch.zeros(len(members))
        shown, doubtful = (own & ordinary).any(1), (own & ~ordinary).any(1)
        covered = torch.where(members, boxes.coverage, torch.ones(())).amin(1) * members.any(1)
        weights = torch.where(shown, 1.0, torch.where(doubtful, 0.0, covered))
        silver = self.grade == Grade.SILVER or bool((boxes.grade == Grade.SILVER).any())
        return TagLabels(best, weights, int(Grade.SILVER if silver else Grade.GOLD))


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path, str(path))
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: is {type(data).__name__}; it needs to be an object with tags and images"
        )
    problems = []
    names, images = data.get("tags"), data.get("images")
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        problems.append(
            f"{path}: 'tags' is {names!r:.80}; it needs the list of all names looked for"
        )
    elif len(set(names)) < len(names):
        problems.append(f"{path}: 'tags' lists a name twice")
    if not (isinstance(images, list) and all(map(_is_image, images))):
        problems.append(f"{path}: 'images' needs a list of objects with file_name")
    if data.get("grade") not in (None, "gold", "silver"):
        problems.append(f"{path}: 'grade' is {data['grade']!r}; it is gold or silver")
    if problems:
        raise InputError(problems)
    return data


def _rows(images: Sequence[Any], folder: str, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns path of the picture -> row, of the rows of `images` that have tags, and a sentence for each
    picture below `folder` of which several do: which of them is right, nobody can tell."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(images):
        if "tags" in row:
            picture = os.path.normpath(os.path.join(folder, row["file_name"]))
            places.setdefault(picture, []).append(i)
    problems = [
        f"{path}: {images[at[0]]['file_name']} has tags in the images at positions "
        f"{', '.join(map(str, at))}; keep one of them"
        for at in places.values()
        if len(at) > 1
    ]
    return {picture: images[at[0]] for picture, at in places.items()}, problems


def _is_image(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("file_name"), str)
        and isinstance(row.get("tags", []), list)
        and all(isinstance(row.get(key, {}), dict) for key in ("scores", "weights"))
    )


def _fill(
    row: Mapping[str, Any],
    tag_of: Mapping[str, int],
    targets: np.ndarray,
    weights: np.ndarray,
    path: Path,
) -> list[str]:
    """Puts what an image says into targets and weights (T,); returns what is wrong with it.

    Of several names of one tag the likeliest decides; of those equally likely the least sure.
    """
    shown, scores, given = row["tags"], row.get("scores", {}), row.get("weights", {})
    where = f"{path}: {row['file_name']}"
    problems = [
        f"{where}: {key} has {name!r}, which is not in 'tags'"
        for key, names in (("tags", shown), ("scores", scores), ("weights", given))
        for name in names
        if name not in tag_of
    ]
    problems += [
        f"{where}: {key} of {name!r} is {value!r}; it lies in [0, 1]"
        for key, numbers in (("scores", scores), ("weights", given))
        for name, value in numbers.items()
        if not (isinstance(value, int | float) and 0 <= value <= 1)
    ]
    if problems:
        return problems
    best: dict[int, tuple[float, float]] = {}
    for name in {*shown, *scores, *given}:
        target = scores.get(name, float(name in shown))
        likelier = (target, -given.get(name, 1.0))
        best[tag_of[name]] = max(best.get(tag_of[name], likelier), likelier)
    for t, (target, doubt) in best.items():
        if t >= 0:
            targets[t], weights[t] = target, -doubt
    return []
