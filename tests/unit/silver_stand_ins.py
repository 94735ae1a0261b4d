"""Small pictures, sources and teachers for the tests of silver labels."""

from pathlib import Path

import cv2
import numpy as np
import torch

from detmtl.data.flat import Annotations, FileNames
from detmtl.data.source import Source
from detmtl.silver.card import TeacherCard
from detmtl.silver.record import Record
from detmtl.silver.store import Store
from detmtl.structures.labels import BoxLabels
from detmtl.teachers.teacher import Teacher

HEIGHT, WIDTH = 24, 32


def pictures(folder: Path, count: int, name: str = "s", first: int = 0) -> Source:
    """Returns an unlabelled source of `count` pictures that differ in their color."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        color = ((first + i) * 3 % 256, 50, 100)
        cv2.imwrite(str(folder / f"{i:03d}.png"), np.full((HEIGHT, WIDTH, 3), color, np.uint8))
    return Source(
        name=name,
        classes=("person", "car"),
        files=FileNames.of(folder, [f"{i:03d}.png" for i in range(count)]),
        ids=np.arange(100, 100 + count),
        sizes=np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (count, 1)),
        annotations=None,
        coverage=np.zeros((1, 2), np.float32),
    )


def gold(source: Source, rows, coverage=((1.0, 1.0),)) -> Source:
    """Labels a source; rows: picture, box, class, ignore."""
    fields = dict(source.__dict__)
    image = np.array([r[0] for r in rows], dtype=np.int64)
    fields["annotations"] = Annotations.of(
        len(source),
        image,
        np.array([r[1] for r in rows], dtype=np.float32).reshape(-1, 4),
        np.array([r[2] for r in rows], dtype=np.int64),
        ignore=np.array([r[3] for r in rows], dtype=np.uint8),
    )
    fields["coverage"] = np.array(coverage, np.float32)
    return Source(**fields)


def card(*classes: str, unsearched: tuple[str, ...] = ()) -> TeacherCard:
    return TeacherCard(
        name="t",
        weights_sha256="0" * 64,
        classes=classes,
        unsearched=unsearched,
        preprocessing="none",
    )


def store_of(
    path: Path, classes, source: Source, found, floor: float = 0.05, unsearched=()
) -> Store:
    """Makes a store; found: one list of (box, class, score) for each picture of the source."""
    store = Store.create(path, card(*classes, unsearched=unsearched), floor)
    with store.writer() as writer:
        for i, (content_hash, rows) in enumerate(zip(source.hashes(), found, strict=False)):
            rows = sorted(rows, key=lambda r: -r[2])
            writer.add(
                Record(
                    content_hash,
                    HEIGHT,
                    WIDTH,
                    np.array([r[0] for r in rows], dtype=np.float32).reshape(-1, 4),
                    np.array([r[1] for r in rows], dtype=np.int32),
                    np.array([r[2] for r in rows], dtype=np.float32),
                    file=f"{i:03d}.png",
                )
            )
    return Store.open(path)


class ColorTeacher(Teacher):
    """Sees a box that follows from the picture's color; remembers how often it was asked."""

    def __init__(self, fail_after: int | None = None):
        self.card = card("person", "car")
        self.seen = 0
        self._fail_after = fail_after

    def annotate(self, images, infos, floor=0.05):
        labels = []
        for image in images:
            if self._fail_after is not None and self.seen >= self._fail_after:
                raise KeyboardInterrupt
            self.seen += 1
            assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
            red = int(image[2, 0, 0])
            score = 0.1 + red / 300
            boxes = torch.tensor([[1.0, 2, 10 + red / 100, 20], [-9, -9, -1, -1]])
            labels.append(
                BoxLabels.of(boxes, torch.tensor([red % 2, 0]), 2, torch.tensor([score, 0.09]))
            )
        return labels
