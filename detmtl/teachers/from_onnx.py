"""Teachers given as ONNX files."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from detmtl.teachers.onnx_outputs import AnyAdapter
from detmtl.teachers.teacher import Teacher, TeacherSettings


class OnnxTeacherSettings(TeacherSettings):
    """A network in an ONNX file."""

    kind: Literal["onnx"] = "onnx"
    classes: str | list[str]
    """A text file with a class name a line, or the names, in the order of the network's scores."""
    adapter: AnyAdapter
    """How pictures go in and what the outputs mean."""
    threads: int = Field(0, ge=0)
    """Threads of onnxruntime; 0: as many as the machine has cores."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        raise NotImplementedError
