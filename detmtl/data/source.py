"""Sources: pictures of one origin with what is known of each.

A source is read once from its files (COCO, VOC, YOLO, a plain folder), checked, and kept as flat
arrays in the run's cache folder; from then on the arrays are mapped, and no file is parsed again.
Letters: I pictures, N boxes of all pictures, C classes.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat

from detmtl.data.coverage import class_mask, cover_pictures, keep_classes, without_lost
from detmtl.data.depth import DepthFolder, Depths
from detmtl.data.details import DetailClasses
from detmtl.data.flat import Annotations, FileNames, Flat
from detmtl.data.images import (
    Progress,
    content_hashes,
    decoded,
    read_image,
    read_reduced,
    reduction,
    unusable_pictures,
    wrong_size,
)
from detmtl.data.maps import MapClasses, MapFolder, SomeMaps
from detmtl.data.parsed import (
    Parsed,
    digest,
    keep_for_later,
    kept_before,
    left_out,
    load_parsed,
    missing_files,
    missing_problems,
    nothing_covered,
    save_parsed,
)
from detmtl.data.subset import Subset
from detmtl.data.tags import BoxTags, TagClasses, TagFile, Tags
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Labels
from detmtl.structures.sample import ImageInfo
from detmtl.structures.settings import Settings

__all__ = [
    "Annotations",
    "FileNames",
    "Parsed",
    "Source",
    "SourceSettings",
    "Subset",
    "missing_files",
    "missing_problems",
    "nothing_covered",
]

_ARRAYS = ("files", "ids", "sizes", "annotations", "coverage")

READER_VERSION = 7
"""Part of every cache key: raise it when a reader gives other arrays for the same files."""


@dataclass(frozen=True, eq=False)
class Source(Flat):
    """Pictures of one origin with what is known of each.

    Attributes:
        name: of the source in the settings.
        classes: the C names of the label space.
        files: of the pictures; `files[i]` is an absolute path.
        ids: (I,) int64, the annotation file's image ids, or positions where there are none.
        sizes: (I, 2) int32, height and width as a person sees the picture (EXIF applied).
        annotations: the boxes; None: nobody looked for boxes in these pictures.
        coverage: (I, C) float32 in [0, 1], or (1, C) shared by all pictures; see `BoxLabels`.
        weight: of its loss.
        grade: SILVER if a model wrote its labels, or some of them.
        cache: folder in which content hashes are kept; None: they are computed at each call.
        maps: the semantic maps; None: nobody looked at any pixel.
        tags: the image tags; None: nobody looked for any.
        depth: the pixels' depths; None: nobody measured any.
        notes: sentences on what its files leave open, for who reads the plan of a run.
    """

    name: str
    classes: tuple[str, ...]
    files: FileNames
    ids: np.ndarray
    sizes: np.ndarray
    annotations: Annotations | None
    coverage: np.ndarray
    weight: float = 1.0
    grade: Grade = Grade.GOLD
    cache: str | None = None
    maps: SomeMaps | None = None
    tags: Tags | BoxTags | None = None
    depth: Depths | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Returns the number of pictures I."""
        return len(self.ids)

    def path(self, i: int) -> str:
        """Returns the absolute path of picture i."""
        return self.files[i]

    def info(self, i: int) -> ImageInfo:
        """Returns where picture i comes from (without its content hash: see `hashes`)."""
        height, width = self.sizes[i].tolist()
        return ImageInfo(int(self.ids[i]), self.files[i], height, width, self.name)

    def read(self, i: int, data: bytes | None = None, room: np.ndarray | None = None) -> np.ndarray:
        """Returns picture i as (H, W, 3) uint8 RGB.

        Args:
            i: which.
            data: the file's bytes, where they are known already.
            room: of the picture's size, where it may be put; None: somewhere new.

        Raises:
            InputError: the file is missing or broken, or its size is not what the annotations say.
        """
        image = None if data is None else decoded(data, room)
        if image is None:
            image = read_image(self.files[i], data)
        self._check_size(i, (image.shape[0], image.shape[1]))
        return image

    def read_reduced(self, i: int, short: int, long: int, data: bytes | None = None) -> np.ndarray:
        """Returns picture i as (h, w, 3) uint8 RGB, perhaps already smaller than its file's; see
        `detmtl.data.images.read_reduced`.

        Raises:
            InputError: as `read`.
        """
        height, width = self.sizes[i].tolist()
        if reduction(height, width, short, long) == 1:
            return self.read(i, data)
        image, size = read_reduced(self.files[i], short, long, data)
        self._check_size(i, size)
        return image

    def _check_size(self, i: int, found: tuple[int, int]) -> None:
        height, width = self.sizes[i].tolist()
        if found != (height, width):
            who = f"source '{self.name}'"
            raise InputError(wrong_size(self.files[i], found, (height, width), who))

    def labels(self, i: int) -> dict[str, Labels]:
        """Returns what is known of picture i: "boxes", "maps", "tags" and "depth", without an entry where
        nobody looked.

        Raises:
            InputError: the file of the map or of the depth is broken or does not fit.
        """
        out: dict[str, Labels] = {}
        boxes = self.boxes(i)
        if boxes is not None:
            out["boxes"] = boxes
        if self.maps is not None:
            found = self.maps.labels(i, int(self.sizes[i, 0]), int(self.sizes[i, 1]))
            if found is not None:
                out["maps"] = found
        if self.tags is not None:
            tags = self.tags.labels(i, boxes)
            if tags is not None:
                out["tags"] = tags
        if self.depth is not None:
            depth = self.depth.labels(i, int(self.sizes[i, 0]), int(self.sizes[i, 1]))
            if depth is not None:
                out["depth"] = depth
        return out

    def labelled(self) -> bool:
        """Whether somebody, a person or a model, said anything of the pictures."""
        said = (self.annotations, self.maps, self.depth)
        return any(x is not None for x in said) or isinstance(self.tags, Tags)

    def boxes(self, i: int) -> BoxLabels | None:
        """Returns the boxes of picture i; None if nobody looked for boxes."""
        if self.annotations is None:
            return None
        a, rows = self.annotations, self.annotations.rows(i)
        coverage = self.coverage[i if len(self.coverage) > 1 else 0]
        return BoxLabels(
            boxes=_tensor(a.boxes[rows]),
            classes=torch.from_numpy(a.classes[rows].astype(np.int64)),
            scores=_tensor(a.scores[rows]),
            weights=_tensor(a.weights[rows]),
            ignore=_tensor(a.ignore[rows]),
            grade=_tensor(a.grade[rows]),
            coverage=_tensor(coverage),
            details=None if a.details is None else a.details.labels(rows),
        )

    def derived(self, i: int, labels: dict[str, Labels]) -> dict[str, Labels]:
        """Returns the labels of picture i with those that follow from others brought up to date: what was
        cropped away is not shown any more."""
        boxes = labels.get("boxes")
        if isinstance(self.tags, BoxTags) and isinstance(boxes, BoxLabels):
            tags = self.tags.labels(i, boxes)
            assert tags is not None
            return labels | {"tags": tags}
        return labels

    def grades(self) -> set[Grade]:
        """Returns who wrote its labels: on one picture both may have."""
        own = () if self.annotations is None else np.unique(self.annotations.grade).tolist()
        return {self.grade, *map(Grade, own)}

    def searched(self) -> dict[str, np.ndarray]:
        """Returns for "boxes" (C,), "maps" and "tags" bool, of which classes some picture tells where they
        are and where not; without an entry where nobody looked."""
        out = {}
        if self.annotations is not None:
            out["boxes"] = (self.coverage > 0).any(axis=0)
        if self.maps is not None:
            out["maps"] = self.maps.searched()
        if self.tags is not None:
            out["tags"] = self.tags.searched(out.get("boxes"))
        return out

    def boxes_by_people(self) -> "Source":
        """Returns the source with the boxes of people alone. Where a model wrote the source, what was looked
        for is the model's word, and nobody else's."""
        a = self.annotations
        if a is None or self.grade is not Grade.SILVER:
            return self
        own = a.grade == Grade.GOLD
        nothing = np.zeros((1, len(self.classes)), dtype=np.float32)
        return replace(self, annotations=a.where(own) if own.any() else None, coverage=nothing)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """Returns a source of the pictures at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=self.files.take(indices),
            ids=self.ids[indices],
            sizes=self.sizes[indices],
            annotations=None if self.annotations is None else self.annotations.take(indices),
            coverage=self.coverage if len(self.coverage) == 1 else self.coverage[indices],
            maps=None if self.maps is None else self.maps.take(indices),
            tags=None if self.tags is None else self.tags.take(indices),
            depth=None if self.depth is None else self.depth.take(indices),
        )

    def hashes(self, progress: Progress | None = None) -> list[str]:
        """Returns the sha256 of each picture's bytes; files that did not change since the last call
        are not read again.

        Args:
            progress: called with (pictures done, pictures in all).
        """
        return content_hashes(
            list(self.files.paths()), None if self.cache is None else Path(self.cache), progress
        )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy: mapped arrays are read-only


class SourceSettings(Settings):
    """What all kinds of sources have in common; a kind adds `kind`, `fingerprint` and `parse`.

    Attributes:
        images: folder of the pictures; relative to the settings' root, as are all other paths.
        grade: who wrote the labels, where the files do not say it themselves.
        weight: of the source's loss.
        covers: the classes (names of data.classes) that were looked for in every picture; None: those
            that the source's categories name.
        covers_file: a CSV or JSON file that says it picture by picture; see `cover_pictures`.
        keep: takes the labels of these classes alone (names of data.classes), as if nobody had looked
            for the others; None: of all. With `covers`, that decides what was looked for.
        subset: takes a part of the pictures.
        faults: "error": anything wrong in the files ends the run; "drop": it goes on without, with a
            warning that counts the faults. Pictures that cannot be used are left out; boxes over the
            edge are cut; a box that is faulty otherwise is a region without loss, and where not even
            its place or its class is known, that class (or every class) counts as not looked for in
            its picture: nothing faulty becomes background.
        maps: the semantic maps of the pictures.
        tags: the image tags of the pictures.
        depth: the depth of the pictures' pixels.
    """

    images: str
    grade: Literal["gold", "silver"] = "gold"
    weight: PositiveFloat = 1.0
    covers: list[str] | None = None
    covers_file: str | None = None
    keep: list[str] | None = None
    subset: Subset | None = None
    faults: Literal["error", "drop"] = "error"
    maps: MapFolder | None = None
    tags: TagFile | None = None
    depth: DepthFolder | None = None

    def has_labels(self) -> bool:
        """Returns whether anybody looked at these pictures."""
        return not (self.maps is None and self.tags is None and self.depth is None)

    @abstractmethod
    def fingerprint(self, root: Path, cache: Path) -> Any:
        """Returns JSON-able facts of the files that change whenever the files do, quickly."""

    @abstractmethod
    def contents(self, root: Path, cache: Path) -> Any:
        """Returns JSON-able facts of what is in the files, whenever they were written: labels by their
        content hash; pictures, where no label file lists them, by name and size in bytes."""

    @abstractmethod
    def parse(self, root: Path, classes: LabelSpace) -> Parsed:
        """Reads and checks the files.

        Raises:
            InputError: with everything that is wrong.
        """

    def parse_details(self, root: Path, classes: LabelSpace, details: DetailClasses) -> Parsed:
        """Does what `parse` does, and reads details of the boxes where the files can have some."""
        return self.parse(root, classes)

    def load(
        self,
        name: str,
        root: Path,
        classes: LabelSpace,
        cache: Path,
        maps: MapClasses | None = None,
        tags: TagClasses | None = None,
        details: DetailClasses | None = None,
    ) -> Source:
        """Returns the source, parsed only if the files or the settings changed since the last time.

        Args:
            name: of the source in the settings.
            root: folder that relative paths start from.
            classes: the label space of the boxes.
            cache: folder for parsed arrays and content hashes; made if it is not there.
            maps: the classes of semantic maps; None: maps are not read.
            tags: the image tags; None: tags are not read.
            details: attributes, masks and keypoints of boxes; None: they are not read.

        Raises:
            InputError: with everything that is wrong with the files.
        """
        root, cache = Path(root).absolute(), Path(cache).absolute()
        folder = root / self.images
        if not folder.is_dir():
            raise InputError(f"source '{name}': the folder of pictures {folder} does not exist")
        key = digest(
            [
                READER_VERSION,
                self.model_dump(exclude={"weight", "subset", "maps", "tags", "depth"}),
                str(root),
                classes.digest(),
                self.fingerprint(root, cache),
                content_hashes([str(root / self.covers_file)], cache) if self.covers_file else None,
                *([] if details is None else [details.model_dump()]),
            ]
        )
        kept = kept_before(cache / "sources", key)
        if kept is None:
            read = (
                self.parse(root, classes)
                if details is None
                else self.parse_details(root, classes, details)
            )
            read = without_lost(self._restricted(read, root, classes))
            if self.faults == "drop":
                read = self._readable(read)
            kept = keep_for_later(cache / "sources", key, read)
        parsed, key = kept
        if parsed.dropped:
            warnings.warn(f"source '{name}': {parsed.dropped}", stacklevel=2)
        source = Source(
            name=name,
            classes=classes.names,
            files=parsed.files,
            ids=parsed.ids,
            sizes=parsed.sizes,
            annotations=parsed.annotations,
            coverage=parsed.coverage,
            weight=self.weight,
            grade=Grade.SILVER if parsed.silver else Grade.GOLD,
            cache=str(cache),
            notes=tuple(f"source '{name}': {note}" for note in parsed.notes),
        )
        source = self._present(source)
        if self.subset is not None:
            source = self._part(source, key, self.subset)
        return self._with_others(source, root, maps, tags)

    def _with_others(
        self, source: Source, root: Path, maps: MapClasses | None, tags: TagClasses | None
    ) -> Source:
        where = f"source '{source.name}'"
        # What a boxes' file says of itself says nothing of maps and tags: their own files say it.
        grade = Grade[self.grade.upper()]
        drop = np.zeros(len(source), dtype=bool)
        if self.maps is not None and maps is not None:
            found = self.maps.load(source.files, root, maps, where, grade)
            source = replace(source, maps=found)
            if self.maps.missing == "drop":
                drop |= ~found.present()
        if self.tags is not None and tags is not None:
            told = self.tags.load(source.files, root, tags, where, grade)
            source = replace(source, tags=told)
            if self.tags.missing == "drop":
                drop |= ~told.present
        elif tags is not None and tags.from_boxes and source.annotations is not None:
            source = replace(source, tags=BoxTags.of(source.classes, tags, source.grade))
        if self.depth is not None:
            # Of depth no file says who wrote it: `predict` puts it beside a boxes' file that does.
            measured = self.depth.load(source.files, root, where, source.grade)
            source = replace(source, depth=measured)
            if self.depth.missing == "drop":
                drop |= ~measured.present()
        return source.subset(np.flatnonzero(~drop)) if drop.any() else source

    def _present(self, source: Source) -> Source:
        """Returns the source without the pictures whose files are not there any more, or refuses it."""
        missing = missing_files(source.files)
        if not missing:
            return source
        problems = missing_problems(source.files, f"source '{source.name}'")
        if self.faults == "error" or len(missing) == len(source):
            raise InputError(problems)
        warnings.warn(
            f"source '{source.name}': {len(missing)} pictures left out: {problems[0]}", stacklevel=3
        )
        return source.subset(np.setdiff1d(np.arange(len(source)), missing))

    def _part(self, source: Source, key: str, subset: Subset) -> Source:
        indices = subset.pick(source.hashes(), f"source '{source.name}'")
        picked = source.subset(indices)  # by its names: other pictures may be missing next time
        folder = Path(str(source.cache)) / "sources" / digest([key, [*picked.files.paths()]])
        part = load_parsed(folder)
        if part is None:
            save_parsed(folder, Parsed(**{name: getattr(picked, name) for name in _ARRAYS}))
            part = load_parsed(folder)
            assert part is not None
        return replace(source, **{name: getattr(part, name) for name in _ARRAYS})

    def _readable(self, parsed: Parsed) -> Parsed:
        """Returns what was read without the pictures that would be refused when they are read."""
        paths = list(parsed.files.paths())
        unusable = unusable_pictures(paths, parsed.sizes, "the annotation")
        problems = [text for _, text in unusable]
        good = np.setdiff1d(np.arange(len(paths)), [i for i, _ in unusable])
        if not len(good):
            raise InputError([f"{self.images}: none of its pictures can be used", *problems])
        told = [text for text in (parsed.dropped, left_out(self.images, problems)) if text]
        names = [parsed.files.name(i) for i in range(len(paths))]
        looked = tuple(dict.fromkeys([*parsed.looked_into, *names]))
        return replace(parsed.take(good), dropped="; ".join(told), looked_into=looked)

    def covered(self, classes: LabelSpace, known: Sequence[bool], where: str) -> np.ndarray:
        """Returns the (C,) float32 coverage that holds for every picture: of `covers`, or of the
        classes that are `known` to the source's categories.

        Raises:
            InputError: `covers` names something that is no class.
        """
        if self.covers is None:
            return np.asarray(known, dtype=np.float32)
        return class_mask(self.covers, classes, f"{where}: covers").astype(np.float32)

    def doubts(self, classes: LabelSpace, names: Iterable[str]) -> tuple[str, ...]:
        """Returns a sentence for each class that counts as looked for though the source's categories
        are some of its members only, where the user does not say what was looked for."""
        if self.covers is not None or self.covers_file is not None:
            return ()
        return tuple(
            f"has of class '{name}' the categories {', '.join(some)} but not {', '.join(rest)}, and "
            "counts as searched for the class; unless they are words for the same, give `covers` "
            f"without '{name}', so that they do not become background"
            for name, (some, rest) in classes.partly(names).items()
            if self.keep is None or name in self.keep
        )

    def _restricted(self, parsed: Parsed, root: Path, classes: LabelSpace) -> Parsed:
        """Returns what was read, cut down to what `keep` and `covers_file` say."""
        if self.keep is not None:
            kept = class_mask(self.keep, classes, "keep")
            parsed = keep_classes(parsed, kept, covered=self.covers is not None)
        if self.covers_file is not None:
            parsed = cover_pictures(parsed, root / self.covers_file, self.covers_file, classes)
        return parsed
