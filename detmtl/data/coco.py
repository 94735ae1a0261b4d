"""COCO annotation files: reading them as a source. Writing: coco_writer.py.

Beyond COCO, all optional: an annotation's `score` (a probability) and `attributes` {"grade": "gold" or
"silver", "ignore": "class" or "region", "class_weight": number, "box_weight": number}; an image's
`neg_category_ids` and `not_exhaustive_category_ids` as LVIS has them; `info.coverage` {category name:
recall in [0, 1]} and `info.grade`, which holds for annotations that do not say theirs; an image's own
`coverage`, written alike, in place of all of these. In a file of grade silver, `info.reviewed` [category
name, ...]: what people looked for everywhere in all of its pictures.
`attributes.ignore` says how an annotation is ignored; where `iscrowd: 0` stands beside it, it is not.
Letters: I pictures, N annotations, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detmtl.data.coco_details import read_details
from detmtl.data.coco_fields import Searched, stated_recall
from detmtl.data.coco_rows import GRADES, Columns, info_of, read_columns
from detmtl.data.coco_tables import (
    SPLITS,
    Categories,
    CocoTables,
    Found,
    read_categories,
    read_pictures,
)
from detmtl.data.details import DetailClasses, FlatDetails
from detmtl.data.faults import Faults
from detmtl.data.flat import Annotations
from detmtl.data.images import content_hashes
from detmtl.data.json_file import read_in_blocks
from detmtl.data.parsed import Parsed, missing_problems
from detmtl.data.source import Source
from detmtl.data.source_settings import SourceSettings
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

_CROWDS = (
    "crowds (`iscrowd: 1`) or ignored (`ignore: 1`), which give no loss: nothing learns the class from them, "
    "or is scored on them. CVAT writes masks as crowds; where they are single objects, set `iscrowd: 0`"
)


class CocoSource(SourceSettings):
    """Pictures with a COCO annotation file; `images` is the folder that its file names start from.

    Crowds (`iscrowd: 1`) and annotations with `ignore: 1` become regions that give no loss. `keep` of classes
    that people have reviewed (`info.reviewed`) leaves people's labels of a silver file alone, which are gold.

    Attributes:
        annotations: the JSON file.
    """

    kind: Literal["coco"] = "coco"
    annotations: str

    def has_labels(self) -> bool:
        """Returns True: the boxes."""
        return True

    def fingerprint(self, root: Path, cache: Path) -> Any:
        """Returns the hash of the annotation file, and the folders of COCO's splits that there are: they
        decide the names of pictures that have addresses alone."""
        splits = [name for name in SPLITS if (root / self.images / name).is_dir()]
        return [*content_hashes([str(root / self.annotations)], cache), *splits]

    def contents(self, root: Path, cache: Path) -> Any:
        """Returns the same: the annotation file names the pictures; nobody looks at their files."""
        return self.fingerprint(root, cache)

    def parse(
        self, root: Path, classes: LabelSpace, details: DetailClasses | None = None
    ) -> Parsed:
        """Reads and checks the annotation file."""
        return self.read(root, classes, self.faults == "error", details)

    def read(
        self,
        root: Path,
        classes: LabelSpace,
        pictures_needed: bool,
        details: DetailClasses | None = None,
    ) -> Parsed:
        """Reads and checks the annotation file; a missing picture is a fault if `pictures_needed`."""
        where = self.annotations
        faults = Faults(where, may_drop=pictures_needed or self.faults == "drop")
        data, columns, rows = read_columns(
            root / where, where, GRADES[self.grade], keep_rows=details is not None
        )
        info = info_of(data)
        if info.get("grade") not in (None, *GRADES):
            raise InputError(
                f"{where}: info.grade is {info['grade']!r}; it is {' or '.join(GRADES)}"
            )
        looked = self.covers is not None or "coverage" in info
        images, listed = _lists(data, where, len(columns), nothing_found=looked)
        categories = read_categories(listed, classes, where)
        pictures = read_pictures(images, root / self.images, where, faults)
        if pictures_needed:  # missing ones are left out by `load`, which looks every time
            faults.add(*missing_problems(pictures.files, where))
        found = Found.of(columns, pictures, categories, where, faults)
        tables = CocoTables(where, faults, categories, pictures, found)
        kept = np.flatnonzero(found.keep)
        _refuse_fractions(found.boxes[kept], where)
        faults.add(*(s for i in kept[columns.bad[kept]].tolist() for s in columns.given_faults[i]))
        coverage = self._coverage(tables, info, classes)
        people = kept[columns.grade[kept] == Grade.GOLD]
        crowds = self.regions_alone(
            classes, found.classes[people], columns.ignore[people] == Ignore.REGION, _CROWDS
        )
        known = None if details is None else read_details(tables, rows, kept, details, classes)
        dropped = faults.settle(self.faults)
        return Parsed(
            files=pictures.files,
            ids=pictures.ids,
            sizes=pictures.sizes,
            annotations=_annotations(tables, columns, kept, known),
            coverage=coverage.astype(np.float32),
            silver=self._silver(
                info, categories, classes, found.classes[kept], columns.grade[kept]
            ),
            dropped=dropped,
            lost=found.lost,
            notes=self.doubts(classes, categories.names) + crowds,
            looked_into=pictures.measured,
            unused=pictures.unused,
        )

    def _coverage(
        self, tables: CocoTables, info: Mapping[str, Any], classes: LabelSpace
    ) -> np.ndarray:
        """Returns what the settings, `info` and the pictures say of it, (I, C) or (1, C)."""
        where, categories = tables.where, tables.categories
        usual = self.covered(classes, classes.known(categories.names), where)[None]
        usual = usual * stated_recall(info, categories, len(classes), where)
        covers = None if self.covers is None else [classes.names.index(n) for n in self.covers]
        searched = Searched(
            where=where,
            faults=tables.faults,
            categories=categories,
            rows=tables.pictures.rows,
            ids=tables.pictures.ids,
            image=tables.found.image,
            category=tables.found.category,
        )
        return searched.coverage(usual, covers)

    def _silver(
        self,
        info: Mapping[str, Any],
        categories: Categories,
        classes: LabelSpace,
        of: np.ndarray,
        grade: np.ndarray,
    ) -> bool:
        """Returns whether a model wrote some of the labels that the source takes, or what was looked for.

        Args:
            info: of the file.
            categories: of the file.
            classes: the label space.
            of, grade: class and grade (N,) of each annotation.
        """
        if self.grade == "silver":
            return True
        said, reviewed = info.get("grade") == "silver", info.get("reviewed")
        if said and self.keep is not None and isinstance(reviewed, list):
            # Gold boxes alone would not do: a model's word that there is nothing leaves no box at all.
            wanted = {*self.keep, *(self.covers or ())}
            members = categories.members().items()
            taken = {c: places for c, places in members if classes.names[c] in wanted}
            if all(categories.names[n] in reviewed for places in taken.values() for n in places):
                said, grade = False, grade[np.isin(of, [*taken])]
        return said or bool((grade == Grade.SILVER).any())


def _annotations(
    tables: CocoTables, columns: Columns, kept: np.ndarray, details: FlatDetails | None
) -> Annotations:
    """Returns the annotations at `kept` (N,), to which `details` belong; what is faulty of them is a region
    without loss."""
    found = tables.found
    faulty = (found.faulty | columns.bad)[kept]
    return Annotations.of(
        num_images=len(tables.pictures.ids),
        image=found.image[kept],
        boxes=found.boxes[kept],
        classes=found.classes[kept],
        scores=np.where(faulty, 1, columns.scores[kept]),
        weights=columns.weights[kept],
        ignore=np.where(faulty, Ignore.REGION, columns.ignore[kept]),
        grade=columns.grade[kept],
        details=details,
    )


def _refuse_fractions(boxes: np.ndarray, where: str) -> None:
    """Refuses boxes (N, 4) xyxy that all lie within the first pixel of their pictures.

    Raises:
        InputError: they do.
    """
    if len(boxes) and boxes.max() <= 1:
        raise InputError(
            f"{where}: all of its boxes lie within the first pixel of their pictures, as fractions of width "
            "and height do; COCO's are pixels: multiply x and width by the picture's width, y and height by "
            "its height"
        )


def read_labels(
    annotations: Path, classes: Sequence[str] | None = None, drop_others: bool = False
) -> Source:
    """Returns what an annotation file says, as a source whose pictures need not be there.

    Args:
        annotations: the file; file names that are not absolute are relative to its folder.
        classes: the categories' names in the wanted order; None: the file's own.
        drop_others: whether the file may have other categories, whose boxes are left out.

    Raises:
        InputError: with everything that is wrong in the file.
    """
    names = list(classes) if classes is not None else category_names(annotations)
    settings = CocoSource(annotations=annotations.name, images=".", covers=None)
    folder = annotations.absolute().parent
    parsed = settings.read(folder, LabelSpace.of(names, drop_others), pictures_needed=False)
    return Source(
        name=annotations.stem,
        classes=tuple(names),
        files=parsed.files,
        ids=parsed.ids,
        sizes=parsed.sizes,
        annotations=parsed.annotations,
        coverage=parsed.coverage,
        grade=Grade.SILVER if parsed.silver else Grade.GOLD,
    )


def category_names(annotations: Path) -> list[str]:
    """Returns the category names of an annotation file in its order, each once.

    Raises:
        InputError: the file is no annotation file.
    """
    where = str(annotations)
    data = read_in_blocks(annotations, where, "annotations", lambda rows: None)
    _, listed = _lists(data, where, 0, nothing_found=True)
    names = [c.get("name") if isinstance(c, dict) else None for c in listed]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _lists(data: Any, where: str, count: int, nothing_found: bool) -> tuple[list[Any], list[Any]]:
    """Returns pictures and categories of a file with `count` annotations."""
    if isinstance(data, list):
        raise InputError(
            f"{where}: is a list, perhaps of detections (COCO results); an annotation file is an object "
            "with images, annotations and categories"
        )
    if not isinstance(data, dict):
        raise InputError(f"{where}: is {type(data).__name__}; it needs to be a JSON object")
    problems = []
    for key in ("images", "annotations", "categories"):
        value = data.get(key)
        if key not in data:
            problems.append(f"{where}: has no list '{key}'; a COCO annotation file needs it")
        elif not isinstance(value, list):
            problems.append(f"{where}: '{key}' is {type(value).__name__}; it needs to be a list")
        elif not value and key != "annotations":
            problems.append(f"{where}: the list '{key}' is empty; it needs at least one entry")
        elif key == "annotations" and not count and not nothing_found:
            problems.append(
                f"{where}: has no annotations at all; pictures without labels are a source of `kind: "
                "folder`; if somebody looked and found nothing, name the classes in `covers`"
            )
    if problems:
        raise InputError(problems)
    return data["images"], data["categories"]
