"""A checkpoint of ours as teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from detmtl.inference.predictor import AnyPredictor, Predictor, load_checkpoint
from detmtl.silver.card import TeacherCard
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.teacher import Teacher, as_silver, existing, file_sha256
from detmtl.teachers.teacher_settings import TeacherSettings


class PredictorTeacher(Teacher):
    """A predictor whose labels of one task are taken.

    Scores below the lowest that the model's own settings let through are not to be had.

    Args:
        predictor: of a trained model.
        task: the name of its detection task.
        card: who it is.
    """

    def __init__(self, predictor: AnyPredictor, task: str, card: TeacherCard):
        self.card = card
        self._predictor, self._task = predictor, task

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the boxes of each picture, see `Teacher.annotate`."""
        found = [labels[self._task] for labels in self._predictor.predict(images)]
        return [as_silver(labels, floor) for labels in found if isinstance(labels, BoxLabels)]


class CheckpointTeacherSettings(TeacherSettings):
    """A checkpoint that training wrote."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    """The checkpoint."""
    task: str | None = None
    """The name of the detection task; None: the only one."""
    trust: bool = False
    """Whether code outside of detmtl and timm may run that the checkpoint names; see `load_checkpoint`."""

    def build(self, root: Path, device: str) -> PredictorTeacher:
        """Builds the teacher; `path` is taken relative to `root`.

        Raises:
            InputError: there is no such file, it is no checkpoint, or the task is not clear.
        """
        file = existing(root, self.path, "teacher.path")
        loaded = load_checkpoint(file, self.trust)
        tasks = [n for n, t in loaded.model.tasks.items() if t.labels == "boxes" and t.of is None]
        if self.task not in (tasks if self.task else [None]) or (not self.task and len(tasks) != 1):
            raise InputError(
                f"teacher.task: is {self.task!r}, and {file} has the detection tasks "
                f"{', '.join(tasks) or 'none'}; name one of them"
            )
        task = self.task or tasks[0]
        card = TeacherCard(
            name=self.named(file.stem),
            weights_sha256=file_sha256(file),
            classes=loaded.class_names,
            preprocessing=f"short side {loaded.short}, long side {loaded.long}, task {task}",
            versions={"torch": torch.__version__},
        )
        return PredictorTeacher(Predictor(loaded, device), task, card)
