"""Weighted boxes fusion here and in ensemble-boxes: equal values, and how much faster.

    python benchmarks/fusion.py --results benchmarks/results/NAME.md

4 teachers x 100 boxes in each picture, of 1, 3 and 80 classes. Both are timed in turns, A B A B, each
picture by picture, as CPU seconds; here also 64 pictures at once, as the selection calls it. Needs
ensemble-boxes (pip install ensemble-boxes).
"""

import argparse
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ensemble_boxes import weighted_boxes_fusion
from provenance import provenance

from detmtl.silver.fusion import FusionSettings, fuse

TEACHERS, BOXES, OBJECTS = 4, 100, 70
Picture = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def main() -> None:
    """Compares and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    lines = [
        "# Weighted boxes fusion against ensemble-boxes",
        "",
        provenance(),
        f"- ensemble-boxes {importlib.metadata.version('ensemble-boxes')}, "
        f"numba {importlib.metadata.version('numba')}",
        "",
        f"{TEACHERS} teachers x {BOXES} boxes a picture, {OBJECTS} objects, {args.pictures} pictures; "
        f"milliseconds of CPU per picture, median of {args.turns} turns (A B C A B C ...), and the median,",
        "lowest and highest ratio within a turn. Largest difference: of any coordinate (sides are 1)",
        "or score; ensemble-boxes adds up in float32.",
        "",
        "| classes | ensemble-boxes | here, one at a time | times faster | here, all at once | times faster "
        "| largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for classes in (1, 3, 80):
        lines.append(_row(classes, args.pictures, args.turns))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.results:
        args.results.write_text(text)


def _row(classes: int, count: int, turns: int) -> str:
    rng = np.random.default_rng(classes)
    pictures = [_picture(rng, classes) for _ in range(count)]
    known = np.ones((TEACHERS, classes), dtype=bool)
    single, together = [_flat([p]) for p in pictures], _flat(pictures)
    settings = FusionSettings(overlap=0.55)
    theirs = [weighted_boxes_fusion(*_lists(p), iou_thr=0.55) for p in pictures]
    difference = max(_difference(o, t, known) for o, t in zip(single, theirs, strict=True))
    work: list[Callable[[], object]] = [
        lambda: [weighted_boxes_fusion(*_lists(p), iou_thr=0.55) for p in pictures],
        lambda: [fuse(*p, known, settings) for p in single],
        lambda: fuse(*together, known, settings),
    ]
    times = np.array([[_seconds(f) for f in work] for _ in range(turns)]) / count * 1e3
    a, b, c = np.median(times, axis=0)
    ratios = times[:, :1] / times[:, 1:]
    shown = [
        f"{np.median(r):.0f} ({r.min():.0f} to {r.max():.0f})" for r in (ratios[:, 0], ratios[:, 1])
    ]
    return (
        f"| {classes} | {a:.2f} | {b:.3f} | {shown[0]} | {c:.3f} | {shown[1]} | {difference:.1e} |"
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _picture(rng: np.random.Generator, classes: int) -> Picture:
    """Returns what four teachers see: objects of Zipf's frequencies, jittered."""
    share = 1 / np.arange(1, classes + 1)
    kind = rng.choice(classes, OBJECTS, p=share / share.sum())
    size = np.exp(rng.normal(np.log(0.12), 0.7, (OBJECTS, 2))).clip(0.02, 0.5)
    middle = rng.uniform(0.3, 0.7, (OBJECTS, 2))
    corners = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    found = []
    for _ in range(TEACHERS):
        on = rng.integers(0, OBJECTS, BOXES)
        boxes = corners[on] + rng.normal(0, 0.06, (BOXES, 4)) * np.tile(size[on], 2)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.005)
        found.append((boxes.clip(0, 1), rng.beta(1, 1.5, BOXES) * 0.95 + 0.05, kind[on]))
    return found


def _lists(picture: Picture) -> tuple[list, list, list]:
    boxes, scores, classes = zip(*picture, strict=True)
    return list(boxes), list(scores), list(classes)


def _flat(pictures: list[Picture]) -> tuple[np.ndarray, ...]:
    columns = [
        (boxes, scores, classes, np.full(len(scores), t), np.full(len(scores), p))
        for p, picture in enumerate(pictures)
        for t, (boxes, scores, classes) in enumerate(picture)
    ]
    return tuple(np.concatenate(c) for c in zip(*columns, strict=True))


def _difference(ours: tuple[np.ndarray, ...], theirs: tuple, known: np.ndarray) -> float:
    fused = fuse(*ours, known, FusionSettings(overlap=0.55))
    boxes, scores, classes = theirs
    assert len(scores) == len(fused.scores), "another number of boxes"
    tables = [
        np.concatenate([np.stack([c, s], axis=1), b], axis=1)
        for b, s, c in ((fused.boxes, fused.scores, fused.classes), (boxes, scores, classes))
    ]
    tables = [t[np.lexsort(np.round(t, 4).T[::-1])] for t in tables]
    return float(np.abs(tables[0] - tables[1]).max())


if __name__ == "__main__":
    main()
