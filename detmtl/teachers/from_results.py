"""A teacher whose answers are already in a COCO results file."""

from pathlib import Path
from typing import Literal

from detmtl.teachers.teacher import Teacher, TeacherSettings


class ResultsTeacherSettings(TeacherSettings):
    """A COCO results file (`path`): a list of image_id, category_id, bbox, score."""

    kind: Literal["results"] = "results"
    annotations: str
    """The COCO file whose image ids, file names and categories the results speak of."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        raise NotImplementedError
