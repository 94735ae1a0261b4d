"""What a teacher is: a pretrained model that writes silver labels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from detmtl.models.decoding import least_logit
from detmtl.silver.card import TeacherCard, Written
from detmtl.structures.boxes import clip
from detmtl.structures.errors import InputError
from detmtl.structures.labels import UNKNOWN, BoxLabels, Grade, Labels, MapLabels
from detmtl.structures.sample import ImageInfo

__all__ = [
    "Teacher",
    "TeacherCard",
    "as_silver",
    "chosen_task",
    "existing",
    "file_sha256",
    "let_through",
    "map_as_silver",
    "not_too_thin",
    "same_shape",
    "silver_boxes",
    "unsearched",
]


class Teacher(ABC):
    """A model that somebody else trained.

    It abstains from what it never learned: `card.classes` are all that it looks for, and every
    other class has coverage 0 in what becomes of its labels.

    Attributes:
        card: who it is; `card.task` says which labels it writes.
    """

    card: TeacherCard

    @abstractmethod
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> Sequence[Labels]:
        """Returns for each picture what the teacher sees in it.

        Args:
            images: B pictures (3, H, W) uint8 RGB, of any sizes.
            infos: of the same pictures.
            floor: the lowest score that is wanted, in [0, 1].

        Returns:
            B labels, on the CPU, grade silver; classes index `card.classes`.
            `card.task` "boxes": `BoxLabels` in pixels of the given picture and inside it, scores as
            the teacher gave them and >= `floor`, sorted by falling score.
            "maps": `MapLabels` of the given picture's size, with the teacher's confidence in [0, 1]
            as weights, None where it has none; `OTHER` where it sees its background; `UNKNOWN`
            where its confidence is below `floor`.
            "tags": `TagLabels`, the probability of each class as target whatever the floor, since a low
            one says that the picture does not show it; weight 0 where the teacher does not say.
        """

    def expect(self, pictures: Iterable[tuple[str, str]]) -> None:
        """Is told of all pictures before it is asked for the first.

        Args:
            pictures: path and content hash of each.

        Raises:
            InputError: it cannot tell two of them apart.
        """
        return


WRITTEN: tuple[Written, ...] = get_args(Written)


def chosen_task(task: str | None, kinds: Mapping[str, str], file: Path) -> tuple[str, Written]:
    """Returns name and kind of the task whose labels a model of ours writes.

    Args:
        task: its name; None: the only one of boxes, or without any the only one of which silver can be
            written.
        kinds: task -> what its labels are, of those tasks that do not describe the boxes of another.
        file: of the model, for errors.

    Raises:
        InputError: there is no such task, it is not clear which is meant, or silver knows no such labels.
    """
    known: dict[str, Written] = {n: kind for n, k in kinds.items() for kind in WRITTEN if kind == k}
    task = task or the_one(known)
    if task not in known:
        told = ", ".join(f"{name} ({kind})" for name, kind in known.items()) or "none"
        raise InputError(
            f"teacher.task: is {task!r}, and the tasks of {file} that write {', '.join(WRITTEN[:-1])} or "
            f"{WRITTEN[-1]} are: {told}{'; name one of them' if known else ''}"
        )
    return task, known[task]


def the_one(kinds: Mapping[str, str]) -> str | None:
    """Returns the task that is meant where none is named: the only one of boxes, or without any the only
    one; None: that is not clear. `kinds`: task -> what its labels are."""
    boxes = [name for name, kind in kinds.items() if kind == "boxes"] or list(kinds)
    return boxes[0] if len(boxes) == 1 else None


def unsearched(
    task: str | None, names: Sequence[str], searched: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Returns those of a task's classes that nobody looked for in its training; none where `searched`,
    task -> classes, does not say it."""
    if task is None or task not in searched:
        return ()
    return tuple(n for n in names if n not in searched[task])


def existing(root: Path, path: str, setting: str) -> Path:
    """Returns the file at `path` relative to `root`.

    Raises:
        InputError: there is no such file.
    """
    file = root / path
    if not file.is_file():
        raise InputError(f"{setting}: {file}: no such file")
    return file


def file_sha256(*paths: Path) -> str:
    """Returns the sha256 of a file's bytes, or of several files' bytes one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def silver_boxes(
    boxes: Tensor, classes: Tensor, scores: Tensor, image: Tensor, num_classes: int, floor: float
) -> BoxLabels:
    """Returns what a network found in a picture as silver, see `as_silver`.

    Args:
        boxes: (N, 4), of any device; what lies outside of the picture is cut off.
        classes: (N,) int64 on the CPU, of the card; negative: none of them.
        scores: (N,).
        image: (3, H, W), the picture.
        num_classes: of the card.
        floor: the lowest score that is wanted.
    """
    inside = clip(boxes.cpu().float(), image.shape[1], image.shape[2])
    labels = BoxLabels.of(inside, classes, num_classes, scores=scores.cpu())
    return as_silver(labels[classes >= 0], floor)


def as_silver(labels: BoxLabels, floor: float) -> BoxLabels:
    """Returns predictions of at least `floor` on the CPU, as silver, by falling score; boxes without
    a side, as clipping leaves them of what lies outside of the picture, are none."""
    labels = labels.to("cpu")
    order = torch.argsort(labels.scores, descending=True, stable=True)
    real = (labels.boxes[:, 2:] > labels.boxes[:, :2]).all(dim=1) & (labels.scores >= floor)
    labels = labels[order[real[order]]]
    return replace(labels, grade=torch.full_like(labels.grade, int(Grade.SILVER)))


def let_through(decoder: Any, floor: float) -> None:
    """Lets a decoder of ours, in a model or in an exported file, give boxes from the score `floor` on, where
    its own threshold is higher: that one is for who uses the boxes as they are, and what becomes a label is
    chosen later. Boxes of higher scores stay the same."""
    if decoder.score_threshold > floor:
        decoder.score_threshold = floor
        decoder.least_logit = least_logit(floor)


def map_as_silver(labels: MapLabels, floor: float) -> MapLabels:
    """Returns a predicted map on the CPU, as silver; a pixel of which the model is less sure than `floor`
    is unknown."""
    labels = labels.to("cpu")
    classes = labels.classes
    if labels.weights is not None:
        classes = torch.where(labels.weights >= floor, classes, UNKNOWN)
    return replace(labels, classes=classes, grade=int(Grade.SILVER))


def not_too_thin(image: Tensor, most: int = 16) -> Tensor:
    """Returns a picture (3, H, W), padded at the right or the bottom until no side is more than `most`
    times the other: scaled to a network's longest side, a thinner one would have no pixel left."""
    height, width = image.shape[-2:]
    need_height, need_width = -(-width // most), -(-height // most)
    if height >= need_height and width >= need_width:
        return image
    return F.pad(image, (0, max(0, need_width - width), 0, max(0, need_height - height)))


def same_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Returns the positions of tensors in groups of one shape."""
    groups: dict[torch.Size, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(tensor.shape, []).append(i)
    return list(groups.values())
