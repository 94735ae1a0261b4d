"""The base of the settings of every kind of teacher."""

import re
from abc import abstractmethod
from pathlib import Path

from pydantic import Field

from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.teachers.teacher import Teacher
from detmtl.teachers.tta import TtaSettings, TtaTeacher

NAME = r"^[A-Za-z0-9._-]+$"


class TeacherSettings(Settings):
    """The base of the kinds of teachers; a kind adds `kind` and `build`."""

    name: str | None = Field(default=None, pattern=NAME)
    """Names the teacher in stores and tables; None: after its file."""
    tta: TtaSettings | None = None
    """Test-time augmentation: more views of each picture, for more time. None: the picture alone."""

    @abstractmethod
    def build(self, root: Path, device: str) -> Teacher:
        """Builds the teacher itself; files are taken relative to `root`."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        """Builds the teacher, augmented if that is asked for.

        Args:
            root: folder that relative paths start from.
            device: where its network runs.

        Raises:
            InputError: a file or a package is missing, or does not fit.
        """
        teacher = self.build(root, device)
        return teacher if self.tta is None else TtaTeacher(teacher, self.tta, self.name)

    def named(self, stem: str) -> str:
        """Returns the teacher's name, by default made of `stem`."""
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-") or "teacher"


class LookedUpSettings(TeacherSettings):
    """The base of the kinds that do not look at pixels: other views would tell them nothing."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        """Builds the teacher.

        Raises:
            InputError: `tta` is asked for; or see `TeacherSettings.load`.
        """
        if self.tta is not None:
            raise InputError(
                "teacher.tta: this kind of teacher looks its answers up and does not see pixels; leave "
                "tta out"
            )
        return self.build(root, device)
