"""The kinds of teachers."""

from typing import Annotated

from pydantic import Field

from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_onnx import OnnxTeacherSettings
from detmtl.teachers.from_results import ResultsTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings
from detmtl.teachers.from_torchvision import TorchvisionTeacherSettings
from detmtl.teachers.from_transformers import TransformersTeacherSettings
from detmtl.teachers.simulated import SimulatedTeacherSettings

AnyTeacher = Annotated[
    CheckpointTeacherSettings
    | TorchScriptTeacherSettings
    | TorchvisionTeacherSettings
    | OnnxTeacherSettings
    | TransformersTeacherSettings
    | ResultsTeacherSettings
    | SimulatedTeacherSettings,
    Field(discriminator="kind"),
]
