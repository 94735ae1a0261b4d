"""Gold and teachers of known faults, for the tests of the audit."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from silver_stand_ins import card

from detmtl.data.flat import Annotations, FileNames
from detmtl.data.source import Source
from detmtl.silver.record import Record
from detmtl.silver.store import Store

CLASSES = ("person", "car", "dog", "cat", "cup", "tree")


@dataclass(frozen=True, eq=False)
class Scenes(Source):
    """Gold whose pictures exist by their hashes only."""

    def hashes(self, progress=None):
        return [hashlib.sha256(f"{self.name} {i}".encode()).hexdigest() for i in self.ids]


def scenes(count: int = 40, seed: int = 0, per_picture: float = 5, name: str = "gold") -> Scenes:
    """Returns gold of `count` pictures, 640 x 480, 480 x 640 and 500 x 375 in turn."""
    random = np.random.default_rng(seed)
    sizes = np.array([[480, 640], [640, 480], [375, 500]], np.int32)[np.arange(count) % 3]
    numbers = random.poisson(per_picture, count)
    picture = np.repeat(np.arange(count), numbers)
    limits = sizes[picture][:, ::-1].astype(np.float64)
    side = limits * random.uniform(0.08, 0.45, (len(picture), 2))
    corner = random.uniform(0, 1, (len(picture), 2)) * (limits - side)
    return Scenes(
        name=name,
        classes=CLASSES,
        files=FileNames.of(Path("/nowhere"), [f"{i}.jpg" for i in range(count)]),
        ids=np.arange(count),
        sizes=sizes,
        annotations=Annotations.of(
            count,
            picture,
            np.concatenate([corner, corner + side], axis=1).astype(np.float32),
            random.integers(0, len(CLASSES), len(picture)),
        ),
        coverage=np.ones((1, len(CLASSES)), np.float32),
    )


def records(
    gold: Source,
    seed: int = 0,
    miss: float = 0.0,
    jitter: float = 0.0,
    confuse: float = 0.0,
    extra: float = 0.0,
    larger: float = 1.0,
) -> Iterator[Record]:
    """Yields what a teacher of these faults says.

    Args:
        gold: the truth.
        seed: of the faults.
        miss: share of objects without a box.
        jitter: standard deviation of corners, as a share of the box's side.
        confuse: share of boxes of a class drawn at random.
        extra: wrong boxes per picture.
        larger: factor of the boxes' sides.
    """
    random = np.random.default_rng(seed)
    for i, content_hash in enumerate(gold.hashes()):
        labels = gold.labels(i)["boxes"]
        height, width = gold.sizes[i].tolist()
        keep = random.uniform(size=len(labels)) >= miss
        boxes, classes = labels.boxes.numpy()[keep], labels.classes.numpy()[keep]
        side = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        middle = np.tile((boxes[:, 2:] + boxes[:, :2]) / 2, 2)
        boxes = (
            middle + (boxes - middle) * larger + random.normal(0, 1, boxes.shape) * jitter * side
        )
        other = random.uniform(size=len(classes)) < confuse
        classes = np.where(other, random.integers(0, len(gold.classes), len(classes)), classes)
        wrong = random.poisson(extra)
        corner = random.uniform(0, 0.7, (wrong, 2)) * [width, height]
        spread = random.uniform(0.05, 0.3, (wrong, 2)) * [width, height]
        boxes = np.concatenate([boxes, np.concatenate([corner, corner + spread], axis=1)])
        classes = np.concatenate([classes, random.integers(0, len(gold.classes), wrong)])
        scores = np.concatenate(
            [random.uniform(0.55, 1, len(classes) - wrong), random.uniform(0.05, 0.6, wrong)]
        )
        order = np.argsort(-scores)
        yield Record(
            content_hash,
            height,
            width,
            boxes[order].astype(np.float32),
            classes[order].astype(np.int32),
            scores[order].astype(np.float32),
            file=f"{i}.jpg",
        )


def stored(
    path: Path,
    gold: Source,
    change: Callable[[Record], Record] = lambda record: record,
    classes=None,
    **faults,
) -> Store:
    """Returns a store of such a teacher, each record changed by `change`."""
    store = Store.create(path, card(*(classes or gold.classes)), 0.05)
    with store.writer() as writer:
        for record in records(gold, **faults):
            writer.add(change(record))
    return Store.open(path)


def moved(f: Callable[[np.ndarray, int, int], np.ndarray]) -> Callable[[Record], Record]:
    """Returns the change of a record's boxes by `f` of boxes (N, 4), width and height."""

    def change(record: Record) -> Record:
        boxes = f(record.boxes.astype(np.float64), record.width, record.height)
        return replace(record, boxes=np.asarray(boxes, np.float32))

    return change
