"""Labels that people corrected in another tool come back: as gold, and as an audit of what was sent.

What was sent is a COCO file of ours; what comes back is the COCO file that the tool writes. Tools
renumber pictures, categories and boxes, and lose fields that they do not know: so pictures are
matched by name, categories by name, and boxes by where they are.
Letters: I pictures, N boxes, P pairs, C classes.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from detmtl.data.coco import read_labels
from detmtl.data.coco_rows import read_said
from detmtl.data.coco_writer import write_coco
from detmtl.data.flat import Annotations
from detmtl.data.json_file import read_in_blocks
from detmtl.data.source import Source
from detmtl.silver.audit_estimates import wilson
from detmtl.silver.overlay import Overlay, OverlaySettings, images_of, overlay, pairs_of
from detmtl.silver.returned_names import finder
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore

IOU = 0.5
"""From this overlap on a box that came back is one that was sent."""

UNMOVED = 1.0
"""Pixels: tools round, so a box whose corners are this close is the one that was sent."""

MANY = 10
"""So many pictures may be as they were without a word."""

_RECTANGLE = 8
"""Numbers of a polygon of four corners, which tools write for a plain box."""

COUNTS = (
    "sent",
    "accepted",
    "moved",
    "renamed",
    "deleted",
    "ignored",
    "added",
    "doubted",
    "rescued",
)


@dataclass(frozen=True, eq=False)
class Corrections:
    """What people did to labels that were sent to them.

    Attributes:
        verified: the finished pictures: gold boxes and full coverage for the classes that people
            reviewed, and for others what was sent.
        classes: the C classes.
        pictures: number of finished ones.
        counts: name (see `COUNTS`) -> (C,) int64. Of the boxes that were `sent` as labels some were
            accepted, moved (same class, the box changed), renamed (counted for the class that was
            sent), deleted, or ignored: made a crowd, which says neither that they were right nor that
            they were wrong. Of those that were sent as doubtful (`doubted`: the ignore band), some were
            rescued: made ordinary boxes of their class. All other ordinary boxes were added (counted for
            the new class).
        untouched: how many of the rescued ones are where they were: either people found them right, or
            their tool lost what marked them.
        unchanged: how many of the pictures are just as they were sent: what was sent is right, or nobody
            looked.
        reviewed: those of the classes that people looked through.
    """

    verified: Overlay
    classes: tuple[str, ...]
    pictures: int
    counts: Mapping[str, np.ndarray]
    untouched: int
    unchanged: int
    reviewed: tuple[str, ...]

    def table(self) -> Table:
        """Returns the counts per class, and the precision of what was sent with its 95 % interval."""
        table = Table(title=f"What people did: {self.pictures} pictures", title_justify="left")
        table.add_column("class", overflow="fold")
        for name in (*COUNTS, "precision"):
            table.add_column(name, justify="right")
        rows = [
            (name, {k: int(v[c]) for k, v in self.counts.items()})
            for c, name in enumerate(self.classes)
        ]
        rows.append(("all", {k: int(v.sum()) for k, v in self.counts.items()}))
        for name, row in rows:
            right, judged = row["accepted"] + row["moved"], row["sent"] - row["ignored"]
            low, high = wilson(right, judged)
            share = f"{right / judged:.2f} ({low:.2f}-{high:.2f})" if judged else "-"
            table.add_row(escape(name), *(str(row[k]) for k in COUNTS), share)
        return table


def take_back(
    sent: Path, back: Path, reviewed: Sequence[str] | None = None, finished: Path | None = None
) -> Corrections:
    """Compares what came back with what was sent; warns where all doubts are gone as a tool that knows no
    crowds would lose them, and where most pictures are as they were and nobody said that they are finished.

    Args:
        sent: the COCO file that people got.
        back: the COCO file that their tool wrote.
        reviewed: the classes that people looked through, everywhere in the finished pictures; None: all
            categories of the file that was sent.
        finished: a text file that names the pictures that people have finished, one a line; None: all
            that came back. Others are as they were, whatever was changed in them.

    Raises:
        InputError: a picture, its size, a category or a name fits nothing that was sent.
    """
    was = read_labels(sent)
    strange = _used(back) - set(was.classes)
    if strange:
        raise InputError(
            f"{back}: has the categories {', '.join(sorted(strange))}, which were not sent; {sent} has "
            f"{', '.join(was.classes)}. Rename them if they are these; boxes of a new class are no "
            "corrections: take them out of this file, and into one of their own that a run reads as gold, "
            "with the class in `covers`"
        )
    now = read_labels(back, was.classes, drop_others=True)
    find = finder([was.files.name(i) for i in range(len(was))], str(sent))
    at = find([now.files.name(i) for i in range(len(now))], str(back))
    _same_sizes(was, now, at, back)
    done = np.ones(len(now), dtype=bool)
    if finished is not None:
        done = np.isin(at, find(_lines(finished), str(finished)))
        if not done.any():
            raise InputError(f"{finished}: names no picture that is in {back}")
    mask = _reviewed(was.classes, reviewed)
    corrections = _compare(was, now.subset(np.flatnonzero(done)), at[done], mask)
    _tell_lost_doubts(corrections, now, back)
    if finished is None and corrections.unchanged > max(MANY, corrections.pictures / 2):
        warnings.warn(
            f"{back}: {corrections.unchanged} of {corrections.pictures} pictures came back just as they were "
            "sent. All that is in the file counts as looked at, and the model's boxes in it become gold; if "
            "people have not gone through every picture, name those that they have in a text file, one a "
            "line: --finished",
            stacklevel=2,
        )
    return corrections


def _used(back: Path) -> set[str]:
    """Returns the names of the categories of which a file has boxes: tools write all that they know."""
    used: set[Any] = set()
    data = read_in_blocks(
        back,
        str(back),
        "annotations",
        lambda rows: used.update(r.get("category_id") for r in rows if isinstance(r, dict)),
    )
    listed = data.get("categories") if isinstance(data, dict) else None
    known = [c for c in listed or () if isinstance(c, dict) and isinstance(c.get("name"), str)]
    return {c["name"] for c in known if c.get("id") in used}


def left_behind(back: Path) -> int:
    """Returns how many annotations of what came back say more than a box: a polygon of more than four
    corners, a mask or keypoints. Boxes alone were sent, and boxes alone are taken."""

    def drawn(shape: Any) -> bool:
        if isinstance(shape, list):
            return any(isinstance(part, list) and len(part) > _RECTANGLE for part in shape)
        return bool(shape)

    count = 0

    def take(rows: list[Any]) -> None:
        nonlocal count
        count += sum(drawn(r.get("segmentation")) or any(r.get("keypoints") or ()) for r in rows)

    read_in_blocks(back, str(back), "annotations", take)
    return count


def write_verified(corrections: Corrections, sent: Path, out: Path) -> None:
    """Writes the verified pictures as a COCO file, with the counts in its `info`, and the classes that people
    have reviewed, now or before they were sent, where these are not all."""
    own, said = read_said(sent)
    before = own.get("reviewed") if own.get("grade") == "silver" else None
    looked = {*corrections.reviewed, *(before if isinstance(before, list) else ())}
    reviewed = [name for name in corrections.classes if name in looked]
    grade = corrections.verified.source.grade
    if len(reviewed) == len(corrections.classes):
        grade = Grade.GOLD
    counts = {
        name: {k: int(v[c]) for k, v in corrections.counts.items()}
        for c, name in enumerate(corrections.classes)
    }
    info = {
        "description": f"{corrections.pictures} pictures of {sent.name}, verified by people",
        "grade": grade.name.lower(),
        "corrections": counts,
    }
    if grade is Grade.SILVER:
        info["reviewed"] = reviewed
    write_coco(out, images_of(corrections.verified, said), corrections.classes, info)


def write_rest(corrections: Corrections, sent: Path, out: Path) -> int:
    """Writes what was sent without the verified pictures, and returns how many pictures that are."""
    was = read_labels(sent)
    verified = set(corrections.verified.source.ids.tolist())
    rest = was.subset([i for i, k in enumerate(was.ids.tolist()) if k not in verified])
    assert rest.annotations is not None and was.annotations is not None
    info, said = read_said(sent)
    rows = np.flatnonzero(~np.isin(was.ids, list(verified))[was.annotations.image_index()])
    write_coco(out, images_of(Overlay(rest, rows, {}), said), was.classes, info)
    return len(rest)


def _tell_lost_doubts(corrections: Corrections, now: Source, back: Path) -> None:
    """Warns where no box of what came back is in doubt and most are where they were, as of a tool that knows
    no crowds: who looks at them moves, renames or deletes a good part."""
    doubted = int(corrections.counts["doubted"].sum())
    assert now.annotations is not None
    crowds = (now.annotations.ignore != Ignore.NO).any()
    if 2 * corrections.untouched > doubted and not crowds:
        warnings.warn(
            f"{back}: {corrections.untouched} of {doubted} boxes that were sent as doubtful (iscrowd: 1) "
            "came back as ordinary ones (iscrowd: 0, or without it), in their places and of their classes, "
            "and no box of the file is a crowd. A tool that does not know iscrowd writes that of itself; "
            "then what the teacher was not sure of becomes gold that nobody confirmed. If people looked at "
            "these boxes, all is well; if not, set their iscrowd to 1 again and import again, or send labels "
            "that were selected with ignore_from: null",
            stacklevel=3,
        )


def _compare(was: Source, now: Source, at: np.ndarray, reviewed: np.ndarray) -> Corrections:
    """Compares pictures that came back with those at `at` (I,) that were sent; reviewed: (C,) bool."""
    a, b = was.annotations, now.annotations
    assert a is not None and b is not None
    places = np.full(len(was), -1)
    places[at] = np.arange(len(at))
    sent = np.flatnonzero((places[a.image_index()] >= 0) & reviewed[a.classes])
    kept = np.flatnonzero(reviewed[b.classes])
    match = _matched(a, b, sent, kept, places)
    plain, doubted = a.ignore == Ignore.NO, a.ignore == Ignore.CLASS
    num = len(was.classes)

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num)

    partner = match[sent]
    there = partner >= 0
    mine, theirs = sent[there], partner[there]
    same, ordinary = np.zeros((2, len(sent)), dtype=bool)
    same[there] = a.classes[mine] == b.classes[theirs]
    ordinary[there] = b.ignore[theirs] == Ignore.NO
    shift = np.zeros(len(sent))
    shift[there] = np.abs(a.boxes[mine] - b.boxes[theirs]).max(axis=1)
    usual = np.isin(sent, np.flatnonzero(plain))
    cases = {
        "sent": usual,
        "accepted": usual & same & ordinary & (shift <= UNMOVED),
        "moved": usual & same & ordinary & (shift > UNMOVED),
        "renamed": usual & there & ~same,
        "deleted": usual & ~there,
        "ignored": usual & same & ~ordinary,
        "doubted": doubted[sent],
        "rescued": doubted[sent] & same & ordinary,
    }
    counts = {name: count(a.classes[sent[mask]]) for name, mask in cases.items()}
    told = partner[usual | cases["rescued"]]
    new = np.setdiff1d(kept[b.ignore[kept] == Ignore.NO], told)
    counts["added"] = count(b.classes[new])
    # A doubtful box that a person left as it was, in a tool that knows crowds alone, is no crowd.
    ignore = b.ignore.copy()
    left = partner[doubted[sent] & same]
    ignore[left[ignore[left] != Ignore.NO]] = Ignore.CLASS
    upper = replace(
        was.subset(at),
        annotations=Annotations.of(
            len(now), b.image_index()[kept], b.boxes[kept], b.classes[kept], ignore=ignore[kept]
        ),
        coverage=reviewed[None].astype(np.float32),
        grade=Grade.GOLD,
    )
    verified = Overlay(upper, np.full(len(kept), -1), {})
    if not reviewed.all():
        verified = overlay(upper, was, OverlaySettings())
    untouched = int((cases["rescued"] & (shift <= UNMOVED)).sum())
    # Of every box, those in doubt too: who removes or renames one has looked at its picture.
    done = ~same | (shift > UNMOVED) | (ordinary != usual)
    changed = {*a.image_index()[sent[done]].tolist()}
    changed |= {*at[b.image_index()[np.setdiff1d(kept, partner)]].tolist()}
    unchanged = len(at) - len(changed)
    names = tuple(name for name, own in zip(was.classes, reviewed, strict=True) if own)
    return Corrections(verified, was.classes, len(at), counts, untouched, unchanged, names)


def _matched(
    a: Annotations, b: Annotations, sent: np.ndarray, kept: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Returns for each row of a the row of b that it became, -1: none. Each row is used once: pairs of
    one class first, and among them those that overlap most."""
    found = [np.zeros((0, 3))]
    for mine, theirs, overlaps in pairs_of(a, b, sent, places[a.image_index()[sent]]):
        near = (overlaps >= IOU) & np.isin(theirs, kept)
        found.append(np.stack([sent[mine[near]], theirs[near], overlaps[near]], axis=1))
    rows = np.concatenate(found)
    one, other = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    match = np.full(len(a), -1)
    free = np.ones(len(b), dtype=bool)
    for k in np.lexsort((-rows[:, 2], a.classes[one] != b.classes[other])).tolist():
        if match[one[k]] < 0 and free[other[k]]:
            match[one[k]], free[other[k]] = other[k], False
    return match


def _same_sizes(was: Source, now: Source, at: np.ndarray, back: Path) -> None:
    problems = [
        f"{back}: '{now.files.name(i)}' is {w} x {h} pixels (width x height), but was sent as "
        f"{was.sizes[at[i]][1]} x {was.sizes[at[i]][0]}; its boxes would be misplaced"
        for i, (h, w) in enumerate(now.sizes.tolist())
        if (was.sizes[at[i]] != (h, w)).any()
    ]
    if problems:
        raise InputError(problems)


def _reviewed(classes: Sequence[str], reviewed: Sequence[str] | None) -> np.ndarray:
    if reviewed is None:
        return np.ones(len(classes), dtype=bool)
    if strange := [name for name in reviewed if name not in classes]:
        raise InputError(
            f"--reviewed: {', '.join(strange)} were not sent; the classes are {', '.join(classes)}"
        )
    return np.array([name in reviewed for name in classes], dtype=bool)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read ({problem})") from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
