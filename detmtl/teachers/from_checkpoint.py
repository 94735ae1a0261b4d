"""A checkpoint of ours as teacher."""

from pathlib import Path
from typing import Literal

from detmtl.teachers.teacher import Teacher, TeacherSettings


class CheckpointTeacherSettings(TeacherSettings):
    """A checkpoint that training wrote."""

    kind: Literal["checkpoint"] = "checkpoint"

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        raise NotImplementedError
