"""A TorchScript file as teacher."""

from pathlib import Path
from typing import Literal

from detmtl.teachers.teacher import Teacher, TeacherSettings


class TorchScriptTeacherSettings(TeacherSettings):
    """A TorchScript module that takes what torchvision's detectors take."""

    kind: Literal["torchscript"] = "torchscript"
    classes: str | list[str] | None = None
    """Class names or a file of them; None: those inside the file."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        raise NotImplementedError
