"""Several sources as one, each picture with what is known of it in its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detmtl.data.flat import Annotations, FileNames, Flat
from detmtl.data.maps import SomeMaps
from detmtl.data.source import Source
from detmtl.data.tags import BoxTags, Tags
from detmtl.structures.labels import MapLabels, TagLabels


def joined(name: str, sources: Sequence[Source]) -> Source:
    """Returns the pictures of labelled sources (at least one) one after the other, with their boxes, maps
    and tags and with ids of their own from 1 on, but without details and depths, which nobody audits;
    grade SILVER if one of them has it.

    Beside sources with boxes the pictures of others cover no class of boxes.
    """
    assert sources, "at least one source is joined"
    boxes = any(source.annotations is not None for source in sources)
    return Source(
        name=name,
        classes=sources[0].classes,
        files=FileNames.of("/", [path for source in sources for path in source.files.paths()]),
        ids=np.arange(1, sum(map(len, sources)) + 1),
        sizes=np.concatenate([source.sizes for source in sources]),
        annotations=_annotations(sources) if boxes else None,
        coverage=np.concatenate([_coverage(source) for source in sources]),
        grade=max(source.grade for source in sources),
        cache=sources[0].cache,
        maps=_maps(sources),
        tags=_tags(sources),
    )


def with_boxes(source: Source) -> Source:
    """Returns the pictures in which somebody looked for a class of boxes."""
    looked = np.broadcast_to(source.coverage, (len(source), len(source.classes))).any(axis=1)
    return source if looked.all() else source.subset(np.flatnonzero(looked))


def searched_classes(
    sources: Sequence[Source], names: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Returns "boxes", "maps" and "tags" -> the classes that somebody looked for in some picture of some
    source; of nothing else can a model learn where it is not.

    Args:
        names: of the classes, by the same keys.
    """
    found = [source.searched() for source in sources]
    return {
        kind: [
            name
            for i, name in enumerate(names[kind])
            if any(f[kind][i] for f in found if kind in f)
        ]
        for kind in ("boxes", "maps", "tags")
        if kind in names
    }


@dataclass(frozen=True, eq=False)
class JoinedMaps(Flat):
    """The maps of I pictures of several sources.

    Attributes:
        parts: of each source that has maps.
        part: (I,) int64, which of them has the picture; -1: none.
        place: (I,) int64, where in that part.
    """

    parts: tuple[SomeMaps, ...]
    part: np.ndarray
    place: np.ndarray

    def present(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map."""
        return self._gathered([maps.present() for maps in self.parts])

    def by_people(self) -> np.ndarray:
        """Returns (I,) bool: which pictures have a map that people made."""
        return self._gathered([maps.by_people() for maps in self.parts])

    def _gathered(self, of_parts: Sequence[np.ndarray]) -> np.ndarray:
        found = np.zeros(len(self.part), dtype=bool)
        for k, values in enumerate(of_parts):
            own = self.part == k
            found[own] = values[self.place[own]]
        return found

    def searched(self) -> np.ndarray:
        """Returns (C,) bool: which classes were looked for in some map."""
        return np.any([maps.searched() for maps in self.parts], axis=0)

    def paths(self) -> list[str]:
        """Returns the files of the maps."""
        own = [maps.take(self.place[self.part == k]) for k, maps in enumerate(self.parts)]
        return [path for maps in own for path in maps.paths()]

    def take(self, indices: np.ndarray) -> "JoinedMaps":
        """Returns the maps of the pictures at `indices`."""
        return JoinedMaps(self.parts, self.part[indices], self.place[indices])

    def labels(self, i: int, height: int, width: int) -> MapLabels | None:
        """Returns the map of picture i, see `Maps.labels`."""
        if self.part[i] < 0:
            return None
        return self.parts[self.part[i]].labels(int(self.place[i]), height, width)


def _annotations(sources: Sequence[Source]) -> Annotations:
    nothing = (np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    parts = [
        Annotations.of(len(s), *nothing) if s.annotations is None else s.annotations
        for s in sources
    ]
    ends = np.cumsum([len(part) for part in parts])
    offsets = [part.offsets[1:] + end - len(part) for part, end in zip(parts, ends, strict=True)]
    per_box = {
        name: np.concatenate([part.arrays()[name] for part in parts])
        for name in parts[0].arrays()
        if name != "offsets"
    }
    return Annotations(offsets=np.concatenate([[0], *offsets]), **per_box)


def _coverage(source: Source) -> np.ndarray:
    shape = (len(source), len(source.classes))
    if source.annotations is None:
        return np.zeros(shape, np.float32)
    return np.broadcast_to(source.coverage, shape)


def _maps(sources: Sequence[Source]) -> JoinedMaps | None:
    parts = [source.maps for source in sources if source.maps is not None]
    if not parts:
        return None
    has = np.array([source.maps is not None for source in sources])
    lengths = [len(source) for source in sources]
    number = np.where(has, np.cumsum(has) - 1, -1)
    place = np.concatenate([np.arange(n) for n in lengths])
    return JoinedMaps(tuple(parts), np.repeat(number, lengths), place)


def _tags(sources: Sequence[Source]) -> Tags | BoxTags | None:
    follow = {s.tags.grade for s in sources if isinstance(s.tags, BoxTags)}
    if len(follow) == 1 and all(isinstance(source.tags, BoxTags) for source in sources):
        return sources[0].tags
    return _as_tags([label for source in sources for label in _tags_of(source)])


def told_tags(source: Source) -> Tags | None:
    """Returns the tags of a source; those that follow from its boxes as they are now."""
    if isinstance(source.tags, BoxTags):
        return _as_tags(list(_tags_of(source)))
    return source.tags


def _as_tags(found: Sequence[TagLabels | None]) -> Tags | None:
    """Returns the tags of pictures, None where nobody looked; None where nobody did at any."""
    some = next((label for label in found if label is not None), None)
    if some is None:
        return None
    targets, weights = np.zeros((2, len(found), len(some.targets)), np.float32)
    grade = np.zeros(len(found), np.uint8)
    for i, label in enumerate(found):
        if label is not None:
            targets[i], weights[i], grade[i] = label.targets, label.weights, label.grade
    return Tags(targets, weights, np.array([label is not None for label in found]), grade)


def _tags_of(source: Source) -> Iterator[TagLabels | None]:
    """Yields the tags of each picture; those that follow from boxes as they are now."""
    for i in range(len(source)):
        boxes = source.boxes(i) if isinstance(source.tags, BoxTags) else None
        yield None if source.tags is None else source.tags.labels(i, boxes)
