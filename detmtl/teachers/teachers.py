"""The kinds of teachers."""

from typing import Annotated

from pydantic import Discriminator

from detmtl.structures.outside import OrElsewhere
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_onnx import OnnxTeacherSettings
from detmtl.teachers.from_results import ResultsTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings
from detmtl.teachers.from_torchvision import TorchvisionTeacherSettings
from detmtl.teachers.from_transformers import TransformersTeacherSettings
from detmtl.teachers.simulated import SimulatedTeacherSettings
from detmtl.teachers.teacher_settings import TeacherSettings

Pretrained = (
    CheckpointTeacherSettings
    | TorchScriptTeacherSettings
    | TorchvisionTeacherSettings
    | OnnxTeacherSettings
    | TransformersTeacherSettings
    | ResultsTeacherSettings
    | SimulatedTeacherSettings
)
"""The kinds of ours."""
elsewhere = OrElsewhere(TeacherSettings)
AnyTeacher = Annotated[Pretrained, Discriminator("kind"), elsewhere]
"""The settings of a teacher, told apart by `kind`: a name of ours, or `package.module:Config`."""
