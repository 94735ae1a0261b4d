"""The settings of a source, and how its files become one: parsed, checked, kept in the cache.

Letters: I pictures, C classes.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat

from detmtl.data.coverage import (
    class_mask,
    cover_pictures,
    keep_classes,
    partly_known,
    without_lost,
)
from detmtl.data.depth import DepthFolder
from detmtl.data.details import DetailClasses
from detmtl.data.faults import one_copy_each
from detmtl.data.images import content_hashes, unusable_pictures
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.data.parsed import (
    Parsed,
    digest,
    keep_for_later,
    kept_before,
    left_out,
    load_parsed,
    missing_files,
    missing_problems,
    save_parsed,
)
from detmtl.data.source import Source
from detmtl.data.subset import Subset
from detmtl.data.tags import BoxTags, TagClasses, TagFile
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.outside import code_files, is_elsewhere
from detmtl.structures.settings import Settings

_ARRAYS = ("files", "ids", "sizes", "annotations", "coverage")

READER_VERSION = 9
"""Part of every cache key: raise it when a reader gives other arrays for the same files."""


class SourceSettings(Settings):
    """What all kinds of sources have in common; a kind adds `kind`, `fingerprint` and `parse`.

    Attributes:
        images: folder of the pictures; relative to the settings' root, as are all other paths.
        grade: who wrote the labels, where the files do not say it themselves.
        weight: of the source's loss, beside those of other sources; see `MixSettings.weights`.
        covers: the classes (names of data.classes) that were looked for in every picture; None: those
            that the source's categories name.
        covers_file: a CSV or JSON file that says it picture by picture; see `cover_pictures`.
        keep: takes the labels of these classes alone (names of data.classes), as if nobody had looked
            for the others, whatever `covers_file` says of them; None: of all. With `covers`, that decides
            what was looked for.
        subset: takes a part of the pictures.
        faults: "error": anything wrong in the files ends the run; "drop": it goes on without, with a
            warning that counts the faults. Pictures that cannot be used are left out, and copies of
            others; boxes over the edge are cut; a box that is faulty otherwise is a region without loss,
            and where not even its place or its class is known, that class (or every class) counts as not
            looked for in its picture: nothing faulty becomes background.
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
    def parse(
        self, root: Path, classes: LabelSpace, details: DetailClasses | None = None
    ) -> Parsed:
        """Reads and checks the files, with `details` of the boxes where they can have some.

        Raises:
            InputError: with everything that is wrong.
        """

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
            what = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"source '{name}': the folder of pictures {folder} {what}")
        key = digest(
            [
                READER_VERSION,
                self.model_dump(exclude={"weight", "subset", "maps", "tags", "depth"}),
                str(root),
                classes.digest(),
                self.fingerprint(root, cache),
                content_hashes([str(root / self.covers_file)], cache) if self.covers_file else None,
                *([] if details is None else [details.model_dump()]),
                *content_hashes(self._reader(), cache),
            ]
        )
        kept = kept_before(cache / "sources", key)
        if kept is None:
            read = self.parse(root, classes, details)
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
        source = self._with_others(source, root, maps, tags)
        return one_copy_each(source) if self.faults == "drop" else source

    def _reader(self) -> list[str]:
        """Returns the file with the reader, where that is outside of this package: READER_VERSION knows
        nothing of it."""
        kind = getattr(self, "kind", None)
        return [*code_files([kind]).values()] if is_elsewhere(kind) else []

    def _with_others(
        self, source: Source, root: Path, maps: MapClasses | None, tags: TagClasses | None
    ) -> Source:
        where = f"source '{source.name}'"
        # What a boxes' file says of itself says nothing of maps and tags: their own files say it.
        grade = Grade[self.grade.upper()]
        drop = np.zeros(len(source), dtype=bool)

        def told(notes: Sequence[str]) -> list[str]:
            return [f"{where}: {note}" for note in notes]

        if self.maps is not None and maps is not None:
            found = self.maps.load(source.files, root, maps, where, grade)
            source = replace(source, maps=found, notes=(*source.notes, *told(found.notes)))
            if self.maps.missing == "drop":
                drop |= ~found.present()
        if self.tags is not None and tags is not None:
            said = self.tags.load(source.files, root, tags, where, grade)
            source = replace(source, tags=said, notes=(*source.notes, *told(said.notes)))
            if self.tags.missing == "drop":
                drop |= ~said.present
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
        partly = classes.partly(names)
        kept = partly if self.keep is None else self.keep
        return partly_known({n: partly[n] for n in partly if n in kept}, "class", "covers")

    def regions_alone(
        self, classes: LabelSpace, of: np.ndarray, region: np.ndarray, marked: str
    ) -> tuple[str, ...]:
        """Returns a sentence for each class of which people's boxes are regions without loss, every one, as
        are masks that a tool writes as crowds.

        Args:
            classes: the label space.
            of: (N,) class of each box.
            region: (N,) bool, whether it is a region.
            marked: how the files mark regions, and what to do about it.
        """
        boxes, lost = (np.bincount(c, minlength=len(classes)) for c in (of, of[region]))
        return tuple(
            f"has of class '{name}' {n} boxes, all of them {marked}"
            for name, n, gone in zip(classes.names, boxes.tolist(), lost.tolist(), strict=True)
            if n and n == gone and (self.keep is None or name in self.keep)
        )

    def _restricted(self, parsed: Parsed, root: Path, classes: LabelSpace) -> Parsed:
        """Returns what was read, cut down to what `keep` and `covers_file` say."""
        if self.covers_file is not None:
            parsed = cover_pictures(parsed, root / self.covers_file, self.covers_file, classes)
        if self.keep is not None:
            kept = class_mask(self.keep, classes, "keep")
            covered = class_mask(self.covers or (), classes, "covers")
            parsed = keep_classes(parsed, kept, covered)
        return parsed
