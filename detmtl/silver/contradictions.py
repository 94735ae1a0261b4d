"""Pictures that two sources have, and of whose boxes they say different things.

Letters: I pictures that both have, N boxes in them.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from detmtl.data.source import Source
from detmtl.silver.overlay import area, pairs_of, rows_on, shared
from detmtl.structures.labels import Ignore

SAME = 0.5
"""IoU from which two boxes are of one object; and the share of a box inside a crowd from which the crowd says
nothing against it."""


def contradictions(sources: Sequence[Source]) -> list[str]:
    """Returns a sentence for each two sources that contradict each other: one has a box of a class that the
    other looked for in the same picture, by its content, without finding it there. A training on both is
    told that the place is an object and that it is background.

    Args:
        sources: in the same classes; those without boxes say nothing.
    """
    boxed = [source for source in sources if source.annotations is not None]
    if len(boxed) < 2:
        return []
    told = []
    for (a, own), (b, theirs) in combinations([(s, s.hashes()) for s in boxed], 2):
        place = {content_hash: i for i, content_hash in enumerate(own)}
        both = [(place[h], i) for i, h in enumerate(theirs) if h in place]
        if both:
            at_a, at_b = np.array(both, dtype=np.int64).T
            told += _told(a, b, at_a, at_b)
    return told


def _told(a: Source, b: Source, at_a: np.ndarray, at_b: np.ndarray) -> list[str]:
    """Returns the sentence on two sources, whose pictures at `at_a` and `at_b` (I,) are the same, if there is
    something to say."""
    of_a, otherwise_a = _denied(a, b, at_a, at_b)
    of_b, otherwise_b = _denied(b, a, at_b, at_a)
    pictures = np.union1d(of_a, of_b)
    if not len(pictures):
        return []
    names = ", ".join(a.files.name(int(at_a[i])) for i in pictures[:3])
    otherwise = otherwise_a + otherwise_b
    return [
        f"sources '{a.name}' and '{b.name}' contradict each other in {len(pictures)} of the {len(at_a)} "
        f"pictures that both have, such as {names}: of classes that the other looked for there, '{a.name}' "
        f"has {len(of_a)} boxes that '{b.name}' has not, and '{b.name}' {len(of_b)} that '{a.name}' has not"
        + (f" ({otherwise} of them it calls otherwise)" if otherwise else "")
        + "; such a place is learned as object and as background: correct one of the two, take these "
        "pictures out of it, or say in its `covers` what it looked for"
    ]


def _denied(a: Source, b: Source, at_a: np.ndarray, at_b: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns for each box (N,) of `a` that `b` denies its place among the pictures (I,), and how many of
    these boxes are another class's in `b`. What one of the two doubts is no contradiction."""
    mine, theirs = a.annotations, b.annotations
    assert mine is not None and theirs is not None
    rows, image = rows_on(mine, at_a)
    looked = np.broadcast_to(b.coverage, (len(b), len(b.classes)))[at_b[image], mine.classes[rows]]
    said = (mine.ignore[rows] == Ignore.NO) & (looked > 0)
    rows, image = rows[said], image[said]
    settled, otherwise = np.zeros((2, len(rows)), dtype=bool)
    for at, other, overlaps in pairs_of(mine, theirs, rows, at_b[image]):
        same = mine.classes[rows[at]] == theirs.classes[other]
        on = overlaps >= SAME
        settled[at[same & on]] = True
        otherwise[at[~same & on & (theirs.ignore[other] == Ignore.NO)]] = True
        crowd = theirs.ignore[other] == Ignore.REGION
        boxes, regions = mine.boxes[rows[at[crowd]]], theirs.boxes[other[crowd]]
        inside = shared(boxes, regions) >= SAME * area(boxes)
        settled[at[crowd][inside]] = True
    return image[~settled], int((otherwise & ~settled).sum())
