"""Pictures that come twice: none that measures the result may be among those that train, and none
that people labelled gets labels of a model beside theirs."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations

import numpy as np

from detmtl.data.flat import Annotations, FileNames
from detmtl.data.maps import FilledMaps, Maps, SomeMaps
from detmtl.data.source import Source
from detmtl.data.tags import BoxTags, Tags
from detmtl.silver.overlay import OverlaySettings, overlay
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade


def overlap(a: Sequence[Source], b: Sequence[Source]) -> list[tuple[str, str]]:
    """Returns pairs of files, one of `a` and one of `b`, that are the same picture byte by byte."""
    first: dict[str, str] = {}
    for source in a:
        for i, content_hash in enumerate(source.hashes()):
            first.setdefault(content_hash, source.path(i))
    return [
        (first[content_hash], source.path(i))
        for source in b
        for i, content_hash in enumerate(source.hashes())
        if content_hash in first
    ]


def refuse_overlap(training: Sequence[Source], held_out: Sequence[Source]) -> None:
    """Refuses training pictures that are also among those that measure the result.

    Raises:
        InputError: names the pairs.
    """
    pairs = overlap(training, held_out)
    if pairs:
        raise InputError(
            [
                f"{a}: a training picture that is also held out as {b}; take it out of one of them"
                for a, b in pairs
            ]
        )


def unlabelled_apart(pool: Source, held_out: Sequence[Source]) -> np.ndarray | None:
    """Returns the positions of pictures of which nobody said anything without those that measure the result,
    and each once; warns of what is left out. None: all stay, as in a source with labels: of these somebody
    has to say what they are for.

    Args:
        pool: a source.
        held_out: those that measure.

    Raises:
        InputError: none is left.
    """
    if pool.labelled():
        return None
    measured = {h: source.path(i) for source in held_out for i, h in enumerate(source.hashes())}
    first: dict[str, int] = {}
    held, again = [], []
    for i, content_hash in enumerate(pool.hashes()):
        if content_hash in measured:
            held.append((i, measured[content_hash]))
        elif first.setdefault(content_hash, i) != i:
            again.append((i, pool.path(first[content_hash])))
    for which, why in ((held, "they measure the result"), (again, "the pool has them already")):
        if which:
            warnings.warn(
                f"source '{pool.name}': {len(which)} of {len(pool)} pictures are left out, because {why}: "
                f"{pool.path(which[0][0])} is {which[0][1]}",
                stacklevel=2,
            )
    left_out = [i for i, _ in held + again]
    if len(left_out) == len(pool):
        raise InputError(f"source '{pool.name}': all of its pictures are held out; give others")
    return np.setdiff1d(np.arange(len(pool)), left_out) if left_out else None


def refuse_seen(learned_from: Sequence[Source], gold: Source) -> None:
    """Refuses to audit a teacher on pictures that it learned from: it is better there than elsewhere.

    Raises:
        InputError: names the pairs.
    """
    pairs = overlap(learned_from, [gold])
    if pairs:
        raise InputError(
            [
                f"{a}: the teacher learned from it, and is audited on it in '{gold.name}' ({b}); audit on "
                "pictures that it has not seen (of sources that share pictures, silver.audit: "
                "{part: [0, 0.2]} takes the same ones)"
                for a, b in pairs
            ]
        )


def without_doubles(sources: Sequence[Source], pools: Collection[str]) -> list[Source]:
    """Returns the sources, those that a model labels without pictures of the others in which people
    looked for every class.

    Such a picture would come with people's labels at one time and with a model's at another. Where
    people looked for some classes alone, a model's labels may tell of the others, and it stays: see
    `given_gold`; so does one of which the pool has other labels than boxes, and they have none. Warns of
    what is left out, and of pictures that two of the pools have.

    Args:
        sources: all that a run trains on.
        pools: names of those that a model labels.
    """
    by_people: dict[str, str] = {}
    beside: set[tuple[str, str]] = set()
    for source in sources:
        if source.name in pools or source.grade != Grade.GOLD:
            continue
        hashes = source.hashes()
        if source.annotations is not None:
            whole = np.broadcast_to(source.coverage.min(axis=1) >= 1, len(source))
            for i in np.flatnonzero(whole).tolist():
                by_people.setdefault(hashes[i], f"{source.path(i)} of source '{source.name}'")
        for kind, told in told_beside_boxes(source, by_people=True).items():
            beside |= {(kind, hashes[i]) for i in np.flatnonzero(told).tolist()}
    kept = [_without(s, by_people, beside) if s.name in pools else s for s in sources]
    for a, b in combinations([s for s in kept if s.name in pools], 2):
        if pairs := overlap([a], [b]):
            warnings.warn(
                f"sources '{a.name}' and '{b.name}': {len(pairs)} pictures are in both and are trained on "
                f"in both, such as {pairs[0][0]}, which is {pairs[0][1]}; take them out of one of the two",
                stacklevel=2,
            )
    return kept


def told_beside_boxes(source: Source, by_people: bool = False) -> dict[str, np.ndarray]:
    """Returns "maps", "tags", "depth" and each kind of `FlatDetails.known` -> (I,) bool: of which pictures
    the source has such labels; of people's alone if asked for."""
    told: dict[str, np.ndarray] = {}
    a, maps, tags, depth = source.annotations, source.maps, source.tags, source.depth
    if a is not None and a.details is not None:
        place = a.image_index()
        for kind, known in a.details.known().items():
            told[kind] = np.bincount(place[known], minlength=len(source)) > 0
    if maps is not None:
        told["maps"] = maps.by_people() if by_people else maps.present()
    if isinstance(tags, Tags):
        told["tags"] = tags.by_people() if by_people else tags.present
    if depth is not None and not (by_people and depth.grade != Grade.GOLD):
        told["depth"] = depth.present()
    return told


def unlabelled(sources: Sequence[Source], learned: Mapping[str, str]) -> list[str]:
    """Returns the tasks for which no picture of some sources has a label.

    Args:
        learned: task -> what it learns, see `RunSettings.learned`.
    """
    there: set[str] = set()
    for source in sources:
        told = source.searched() | told_beside_boxes(source)
        there |= {kind.partition(".")[0] for kind, of in told.items() if of.any()}
        if source.annotations is not None and len(source.annotations):
            there.add("boxes")
    return [task for task, kind in learned.items() if kind not in there]


def given_gold(pool: Source, others: Sequence[Source]) -> tuple[Source, list[str]]:
    """Returns a pool whose pictures have the boxes that people drew in them as pictures of other sources,
    so that silver will be laid under these as under the pool's own; and a sentence for each source that
    had some. Details of these boxes stay behind.

    Args:
        pool: pictures that a teacher labels, whatever people know of them.
        others: in the same classes; those that people did not label are passed over.
    """
    told, hashes = [], pool.hashes()
    for other in others:
        if other.annotations is None or other.grade != Grade.GOLD:
            continue
        place = {content_hash: i for i, content_hash in enumerate(other.hashes())}
        twice = np.array([i for i, h in enumerate(hashes) if h in place], dtype=np.int64)
        if not len(twice):
            continue
        theirs = other.subset([place[hashes[i]] for i in twice])
        assert theirs.annotations is not None
        plain = replace(theirs.annotations, details=None)
        same = replace(theirs, files=pool.files.take(twice), annotations=plain)
        # Of two people neither is wrong because the other calls the place otherwise.
        pool = overlay(_by_people(pool), same, OverlaySettings(conflict=None)).source
        told.append(
            f"source '{pool.name}': people labelled {len(twice)} of its {len(pool)} pictures in source "
            f"'{other.name}'; there silver fills in what they did not look for"
        )
    return pool, told


def given_dense(pool: Source, others: Sequence[Source], kinds: Collection[str]) -> Source:
    """Returns a pool whose pictures have the maps and the tags that people gave them as pictures of other
    sources, before those of a model that it came with.

    Args:
        pool: pictures that a model labels.
        others: sources whose maps and tags are in the same classes.
        kinds: which of "maps" and "tags".
    """
    hashes = pool.hashes()
    for other in others:
        place = {content_hash: i for i, content_hash in enumerate(other.hashes())}
        at = np.array([place.get(h, -1) for h in hashes], dtype=np.int64)
        if "maps" in kinds and isinstance(other.maps, Maps):
            own = np.zeros(len(pool), bool) if pool.maps is None else pool.maps.by_people()
            theirs = other.maps.by_people()
            new = (at >= 0) & ~own & theirs[at]
            names = [other.maps.files[at[i]] if new[i] else "" for i in range(len(pool))]
            if new.any():
                more = replace(other.maps, files=FileNames.of("/", names))
                people, by_model = parted(pool.maps)
                pool = replace(pool, maps=stacked(people, more, by_model))
        if "tags" in kinds and isinstance(other.tags, Tags):
            new = (at >= 0) & other.tags.by_people()[at]
            theirs = replace(other.tags.take(at), present=new)
            if new.any() and not isinstance(pool.tags, BoxTags):
                tags = theirs
                if pool.tags is not None:
                    people = replace(pool.tags, present=pool.tags.by_people())
                    tags = people.filled(theirs).filled(pool.tags)
                pool = replace(pool, tags=tags)
    return pool


def each_once(gold: Source) -> Source:
    """Returns gold with each picture once, the first of its copies, and with all that people said of any of
    them: boxes of the classes that they looked for in one, the first map that there is, and every tag that
    one tells. Details and depths of the other copies stay behind, and so do maps and tags of a model."""
    places: dict[str, list[int]] = {}
    for i, content_hash in enumerate(gold.hashes()):
        places.setdefault(content_hash, []).append(i)
    copies = list(places.values())
    most = max(map(len, copies))
    if most == 1:
        return gold
    first, *others = (gold.subset([c[k] for c in copies if k < len(c)]) for k in range(most))
    once, _ = given_gold(first, others)
    if gold.maps is not None:
        own = gold.maps.by_people()
        with_map = [next((i for i in c if own[i]), c[0]) for c in copies]
        once = replace(once, maps=gold.maps.take(np.array(with_map)))
    if isinstance(gold.tags, Tags):
        people = replace(gold.tags, present=gold.tags.by_people())
        by_copy = [
            people.take(np.array([c[min(k, len(c) - 1)] for c in copies])) for k in range(most)
        ]
        once = replace(once, tags=reduce(Tags.completed, by_copy))
    return once


def parted(maps: SomeMaps | None) -> tuple[SomeMaps | None, Maps | None]:
    """Returns a pool's maps that people made, its own or those that `given_dense` gave it, and those of a
    model that it came with; None where it has none."""
    if isinstance(maps, FilledMaps) and maps.second.grade != Grade.GOLD:
        return maps.first, maps.second
    if isinstance(maps, Maps) and maps.grade != Grade.GOLD:
        return None, maps
    return maps, None


def stacked(first: SomeMaps | None, *others: Maps | None) -> SomeMaps | None:
    """Returns the maps of pictures, of each the first that there is; None: there are none at all."""
    for other in others:
        if other is not None:
            first = other if first is None else FilledMaps(first, other)
    return first


def _by_people(pool: Source) -> Source:
    """Returns a pool in which people looked for nothing, if nobody looked."""
    if pool.annotations is not None:
        return pool
    nothing = (np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    return replace(
        pool,
        annotations=Annotations.of(len(pool), *nothing),
        coverage=np.zeros((1, len(pool.classes)), np.float32),
    )


def _without(
    source: Source, by_people: Mapping[str, str], beside: Collection[tuple[str, str]]
) -> Source:
    hashes = source.hashes() if by_people else []
    told = told_beside_boxes(source)
    doubles = [
        i
        for i, content_hash in enumerate(hashes)
        if content_hash in by_people
        and not any(own[i] and (kind, content_hash) not in beside for kind, own in told.items())
    ]
    if not doubles:
        return source
    warnings.warn(
        f"source '{source.name}': {len(doubles)} of {len(source)} pictures are left out, because people "
        f"labelled them: {source.path(doubles[0])} is {by_people[hashes[doubles[0]]]}",
        stacklevel=3,
    )
    return source.subset(np.setdiff1d(np.arange(len(source)), doubles))
