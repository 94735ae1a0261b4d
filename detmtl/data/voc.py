"""Pascal VOC annotations: one XML file a picture. Reading them as a source, and writing them.

Letters: I pictures, N boxes of all pictures, C classes.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from detmtl.data.details import DetailClasses
from detmtl.data.faults import Faults
from detmtl.data.flat import FileNames
from detmtl.data.folder import file_hashes, file_sizes, require_labels, require_pictures, stamps
from detmtl.data.images import image_sizes, list_files, list_pictures
from detmtl.data.label_files import (
    ReadLabels,
    listed_lines,
    picture_names,
    tell_losses,
    write_coverage,
)
from detmtl.data.parsed import Parsed
from detmtl.data.source import Source
from detmtl.data.source_settings import SourceSettings
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NUMBER = re.compile(r"\s+-?\d+$")
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")
_ALL_DIFFICULT = (
    "`difficult`, which gives no loss: nothing learns the class from them, or is scored on them; where they "
    "are ordinary objects, set `difficult` to 0"
)
_DIFFICULT = {"": False, "0": False, "false": False, "1": True, "true": True}


class VocSource(SourceSettings):
    """Pictures with VOC annotations; a picture belongs to the XML file of the same name, and pictures
    without one are left aside. Difficult objects become regions that give no loss.

    VOC has no list of categories: unless `covers` names them, the classes that were looked for are
    those that occur anywhere in the files.

    Attributes:
        annotations: folder of the XML files.
        list: text file (ImageSets/Main/*.txt) that names the pictures to take, one a line; None: all.
        first_pixel: the coordinate of the first pixel: 1 as in VOC itself, whose boxes include their
            last pixel, or 0 for tools that write corners counted from 0.
    """

    kind: Literal["voc"] = "voc"
    annotations: str
    list: str | None = None
    first_pixel: Literal[0, 1] = 1

    def has_labels(self) -> bool:
        """Returns True: the boxes."""
        return True

    def fingerprint(self, root: Path, cache: Path) -> Any:
        """Returns name, size and time of change of the XML files, of the list and of the pictures."""
        folder = root / self.annotations
        listing = [] if self.list is None else stamps(root, [self.list])
        return [
            stamps(folder, list_files(folder, {".xml"})),
            listing,
            stamps(root / self.images, list_pictures(root / self.images)),
        ]

    def contents(self, root: Path, cache: Path) -> Any:
        """Returns the hashes of the XML files and of the list, and name and size of the pictures."""
        folder = root / self.annotations
        return [
            file_hashes(folder, list_files(folder, {".xml"}), cache),
            file_hashes(root, [self.list] if self.list else [], cache),
            file_sizes(root / self.images, list_pictures(root / self.images)),
        ]

    def parse(
        self, root: Path, classes: LabelSpace, details: DetailClasses | None = None
    ) -> Parsed:
        """Reads and checks the XML files."""
        faults, folder = Faults(self.annotations), root / self.images
        pictures: dict[str, list[str]] = {}
        for name in require_pictures(folder):
            pictures.setdefault(os.path.splitext(name)[0], []).append(name)
        found = _Found()
        names: list[str] = []
        sizes: list[tuple[int, int]] = []
        owners: dict[str, str] = {}
        twice: list[str] = []
        for stem, file in self._files(root, faults).items():
            where = f"{self.annotations}/{file}"
            try:
                tree = _tree(root / self.annotations / file, where)
                picture = _picture(tree, stem, pictures, where)
                objects = _objects(tree, where, faults)
            except InputError as problem:
                faults.add(*problem.problems)
                continue
            owner = owners.setdefault(picture, where)
            if owner != where:
                twice.append(
                    f"{owner} and {where}: are both of the picture {picture} in {folder}; keep one of them, "
                    "or set `list` to a file that names the one to take"
                )
            found.add(objects, len(names))
            names.append(picture)
            sizes.append(_size(tree))
        if twice:  # which of them is right, or whether both are together, nobody can tell
            raise InputError([*twice, *faults.problems])
        if not names:
            raise InputError([f"{self.annotations}: no picture has annotations", *faults.problems])
        return self._parsed(folder, names, np.array(sizes, np.int64), found, classes, faults)

    def _files(self, root: Path, faults: Faults) -> dict[str, str]:
        """Returns name without suffix -> name of the XML files to take."""
        files = list_files(root / self.annotations, {".xml"})
        named: dict[str, list[str]] = {}  # several where endings differ, as a.xml and a.XML do
        for name in files:
            named.setdefault(os.path.splitext(name)[0], []).append(name)
        if not named:
            raise InputError(
                f"{root / self.annotations}: there are no XML files; it needs one a picture"
            )
        if self.list is None:
            return self._single(named)
        lines = listed_lines(root / self.list, self.list)
        stems = [_listed(line, named) for line in lines]
        faults.add(*(f"{self.list}: '{s}' has no XML file" for s in stems if s not in named))
        return self._single({s: named[s] for s in stems if s in named})

    def _single(self, named: dict[str, "list[str]"]) -> dict[str, str]:
        """Returns name without suffix -> the only file of this name.

        Raises:
            InputError: a name has several; which of them is right, nobody can tell.
        """
        problems = [
            f"{self.annotations}: {' and '.join(sorted(files))} are both of one picture; keep one of them"
            for files in named.values()
            if len(files) > 1
        ]
        if problems:
            raise InputError(problems)
        return {stem: files[0] for stem, files in named.items()}

    def _parsed(
        self,
        folder: Path,
        names: Sequence[str],
        sizes: np.ndarray,
        found: "_Found",
        classes: LabelSpace,
        faults: Faults,
    ) -> Parsed:
        where = self.annotations
        listed = sorted(set(found.names) - {""})
        require_labels(len(listed), self.covers, where)
        class_of = dict(zip(listed, classes.class_of(listed, where), strict=True)) | {"": -1}
        unknown = np.flatnonzero(sizes.min(axis=1) <= 0)
        measured, problems = image_sizes([str(folder / names[i]) for i in unknown.tolist()])
        sizes[unknown] = measured
        faults.add(*(text for _, text in problems))
        grade = Grade.SILVER if self.grade == "silver" else Grade.GOLD
        annotations, lost = found.labels(class_of, self.first_pixel).kept(
            sizes, grade, lambda i: found.where[i], faults
        )
        notes = self.doubts(classes, listed) + self._counted_from(found)
        if grade == Grade.GOLD:
            region = annotations.ignore == Ignore.REGION
            notes += self.regions_alone(classes, annotations.classes, region, _ALL_DIFFICULT)
        dropped = faults.settle(self.faults)
        readable = np.flatnonzero(sizes.min(axis=1) > 0)
        return Parsed(
            files=FileNames.of(folder, [names[i] for i in readable.tolist()]),
            ids=np.arange(len(readable)),
            sizes=sizes[readable].astype(np.int32),
            annotations=annotations,
            coverage=self.covered(classes, classes.known(listed), where)[None],
            silver=grade == Grade.SILVER,
            dropped=dropped,
            lost=lost,
            notes=notes,
        )

    def _counted_from(self, found: "_Found") -> tuple[str, ...]:
        """Returns a sentence if boxes begin before what is said to be the first pixel."""
        corners = zip(found.boxes, found.faulty, strict=True)
        before = sum(min(box[:2]) < self.first_pixel for box, faulty in corners if not faulty)
        if not before or self.first_pixel == 0:  # before 0 they lie outside
            return ()
        return (
            f"has {before} boxes whose xmin or ymin is below 1, from which VOC counts pixels; if your tool "
            "counts from 0, as CVAT and Label Studio do, set `first_pixel: 0`: as it is, every box begins a "
            "pixel too early",
        )


def _listed(line: str, known: Collection[str]) -> str:
    """Returns the name on a line of a list, quoted or not: all of it if that is `known`, as names may have
    blanks; otherwise without the number that VOC's lists of a class have behind each name."""
    name, bare = (form.strip('"') for form in (line, _NUMBER.sub("", line)))
    return name if name in known else bare


_Object = tuple[str, list[float] | None, bool, str]
"""Name ("" if it has none), box (None if it has none), difficult, and how sentences call it."""


@dataclass
class _Found:
    """The objects of all files, a list each; `faulty` ones lack a name or a box."""

    image: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    faulty: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    where: list[str] = field(default_factory=list)

    def add(self, objects: Sequence["_Object"], image: int) -> None:
        for name, box, difficult, where in objects:
            self.image.append(image)
            self.names.append(name)
            self.boxes.append(box or [0.0] * 4)
            self.faulty.append(not (name and box))
            self.difficult.append(difficult)
            self.where.append(where)

    def labels(self, class_of: Mapping[str, int], first_pixel: int) -> ReadLabels:
        """Returns the objects as labels; of those that lack something there is a sentence already.

        Args:
            class_of: the class of each name, -1: of none.
            first_pixel: its coordinate.
        """
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        boxes[:, :2] -= first_pixel
        return ReadLabels(
            image=np.array(self.image, dtype=np.int64),
            boxes=boxes,
            classes=np.array([class_of[name] for name in self.names], dtype=np.int64),
            unknown=np.array([not name for name in self.names], dtype=bool),
            unplaced=np.array(self.faulty, dtype=bool),
            ignore=np.where(np.array(self.difficult, dtype=bool), Ignore.REGION, Ignore.NO),
        )


def _tree(path: Path, where: str) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        if not data.strip():
            raise InputError(f"{where}: the file is empty; it needs to be XML")
        declared = _DECLARED.match(data)
        # The parser itself knows no encoding of several bytes but Unicode's, such as gb2312.
        text = data.decode(declared[1].decode()) if declared else data
        return ElementTree.fromstring(text)
    except OSError as problem:
        raise InputError(f"{where}: cannot be read ({problem.strerror})") from problem
    except (LookupError, UnicodeDecodeError) as problem:
        raise InputError(
            f"{where}: is not in the encoding that it names ({problem}); save it as UTF-8"
        ) from problem
    except ElementTree.ParseError as problem:
        raise InputError(f"{where}: is not XML ({problem})") from problem


def _picture(
    tree: ElementTree.Element, stem: str, pictures: dict[str, list[str]], where: str
) -> str:
    named = os.path.basename(tree.findtext("filename", "").strip())
    for candidate in (stem, os.path.basename(stem), os.path.splitext(named)[0]):
        found = pictures.get(candidate, [])
        exact = [name for name in found if os.path.basename(name) == named] or found
        if len(exact) == 1:
            return exact[0]
        if found:
            raise InputError(
                f"{where}: {' and '.join(found)} may be its picture; say which in <filename>"
            )
    raise InputError(f"{where}: there is no picture named '{stem}' in the folder of pictures")


def _size(tree: ElementTree.Element) -> tuple[int, int]:
    """Returns height and width, or zeros where the file does not say."""
    try:
        return int(tree.findtext("size/height", "0")), int(tree.findtext("size/width", "0"))
    except ValueError:
        return 0, 0


def _objects(tree: ElementTree.Element, where: str, faults: Faults) -> Sequence[_Object]:
    found: list[_Object] = []
    for i, element in enumerate(tree.findall("object"), start=1):
        here = f"{where}: object {i}"
        name = element.findtext("name", "").strip()
        texts = [element.findtext(f"bndbox/{corner}", "").strip() for corner in _CORNERS]
        if not name:
            faults.add(f"{here}: has no name")
            found.append(("", None, False, here))
            continue
        try:
            box = [float(text) for text in texts]
        except ValueError:
            said = ", ".join(f"{c} '{t}'" for c, t in zip(_CORNERS, texts, strict=True))
            faults.add(f"{here} ({name}): has the box {said}; it needs four numbers")
            found.append((name, None, False, here))
            continue
        said = element.findtext("difficult", "").strip()
        if said.lower() not in _DIFFICULT:
            faults.add(f"{here} ({name}): difficult is '{said}'; it needs 0 or 1")
        found.append((name, box, _DIFFICULT.get(said.lower(), True), f"{here} ({name})"))
    return found


def write_voc(folder: str | os.PathLike[str], source: Source) -> int:
    """Writes one VOC file a picture into `folder`, and returns the number of objects; coordinates
    count from 1 as VOC's do, with decimals where boxes do not end on pixels. What gives no loss is
    written as difficult. What VOC has no place for is told in a warning that counts it; coverage
    stands in `coverage.csv`.

    Raises:
        InputError: two pictures would have one file.
    """
    folder = Path(folder)
    assert source.annotations is not None
    names = picture_names(source, ".xml")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for i, name in enumerate(names):
        info, labels = source.info(i), source.boxes(i)
        assert labels is not None
        path = folder / f"{os.path.splitext(name)[0]}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = _element(name, info.height, info.width, labels, source.classes)
        ElementTree.indent(tree)
        path.write_bytes(ElementTree.tostring(tree, encoding="utf-8"))
        count += len(labels)
    partial = write_coverage(folder, source, names)
    tell_losses(source, "VOC", scores=False, ignored=True, partial=partial)
    return count


def _element(
    name: str, height: int, width: int, labels: BoxLabels, classes: Sequence[str]
) -> ElementTree.Element:
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = name
    size = ElementTree.SubElement(tree, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    rows = zip(labels.boxes.tolist(), labels.classes.tolist(), labels.ignore.tolist(), strict=True)
    for box, c, ignore in rows:
        element = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(element, "name").text = classes[int(c)]
        ElementTree.SubElement(element, "difficult").text = str(int(ignore != Ignore.NO))
        corners = ElementTree.SubElement(element, "bndbox")
        for key, value, first in zip(_CORNERS, box, (1, 1, 0, 0), strict=True):
            ElementTree.SubElement(corners, key).text = f"{round(value + first, 3):.10g}"
    return tree
