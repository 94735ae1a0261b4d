"""The kinds of teachers."""

from typing import Annotated

from pydantic import Field

from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_onnx import OnnxTeacherSettings
from detmtl.teachers.from_results import ResultsTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings

AnyTeacher = Annotated[
    CheckpointTeacherSettings
    | TorchScriptTeacherSettings
    | OnnxTeacherSettings
    | ResultsTeacherSettings,
    Field(discriminator="kind"),
]
