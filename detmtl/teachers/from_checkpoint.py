"""A checkpoint of ours as teacher."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from detmtl.inference.predictor import AnyPredictor, Predictor, load_checkpoint
from detmtl.silver.card import TeacherCard
from detmtl.structures.labels import BoxLabels, Grade, Labels, MapLabels, TagLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.teacher import (
    Teacher,
    as_silver,
    chosen_task,
    existing,
    file_sha256,
    let_through,
    map_as_silver,
    unsearched,
)
from detmtl.teachers.teacher_settings import TeacherSettings


class PredictorTeacher(Teacher):
    """A predictor whose labels of one task are taken.

    Args:
        predictor: of a trained model.
        task: the name of that task, of boxes, maps or tags.
        card: who it is.
    """

    def __init__(self, predictor: AnyPredictor, task: str, card: TeacherCard):
        self.card = card
        self._predictor, self._task = predictor, task

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[Labels]:
        """Returns the labels of each picture, see `Teacher.annotate`."""
        decoder = self._predictor.decoders().get(self._task)
        if decoder is not None:
            let_through(decoder, floor)
        found = self._predictor.predict(images)
        return [_silver(labels[self._task], floor) for labels in found]


def _silver(labels: Labels, floor: float) -> Labels:
    """Returns predictions of at least `floor` on the CPU, as silver."""
    match labels:
        case BoxLabels():
            return as_silver(labels, floor)
        case MapLabels():
            return map_as_silver(labels, floor)
        case TagLabels():
            return replace(labels.to("cpu"), grade=int(Grade.SILVER))
        case _:
            return labels


class CheckpointTeacherSettings(TeacherSettings):
    """A checkpoint that training wrote."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    """The checkpoint."""
    task: str | None = None
    """The name of the task whose labels it writes: boxes, semantic maps or tags; None: the only such
    task of the model."""
    trust: bool = False
    """Whether code outside of detmtl and timm may run that the checkpoint names; see `load_checkpoint`."""

    def build(self, root: Path, device: str) -> PredictorTeacher:
        """Builds the teacher; `path` is taken relative to `root`.

        Raises:
            InputError: there is no such file, it is no checkpoint, or the task is not clear.
        """
        file = existing(root, self.path, "teacher.path")
        loaded = load_checkpoint(file, self.trust)
        predictor = Predictor(loaded, device)
        own = {n: kind for n, kind in predictor.kinds.items() if n not in predictor.describing}
        task, kind = chosen_task(self.task, own, file)
        card = TeacherCard(
            name=self.named(file.stem),
            weights_sha256=file_sha256(file),
            classes=predictor.names[task],
            unsearched=unsearched(task, predictor.names[task], loaded.searched),
            preprocessing=f"short side {loaded.short}, long side {loaded.long}, task {task}",
            task=kind,
            versions={"torch": torch.__version__},
        )
        return PredictorTeacher(predictor, task, card)
