"""What a teacher is: a pretrained model that writes silver labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import ImageInfo
from detmtl.structures.settings import Settings

__all__ = ["Teacher", "TeacherCard", "TeacherSettings"]


class Teacher(ABC):
    """A detector that somebody else trained.

    Attributes:
        card: who it is.
    """

    card: TeacherCard

    @abstractmethod
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns for each picture the boxes that the teacher sees in it.

        Args:
            images: B pictures (3, H, W) uint8 RGB, of any sizes.
            infos: of the same pictures.
            floor: the lowest score that is wanted, in [0, 1].

        Returns:
            B labels: boxes in pixels of the given picture and inside it, classes that index
            `card.classes`, scores as the teacher gave them and >= `floor`, grade silver; sorted by
            falling score.
        """


class TeacherSettings(Settings):
    """The base of the kinds of teachers."""

    path: str
    """The file with the weights (or the results)."""
    name: str | None = None
    """Names the teacher in stores and tables; None: the file's name without its ending."""

    def load(self, root: Path, device: str = "cpu") -> Teacher:
        """Builds the teacher; `path` and other files are taken relative to `root`."""
        raise NotImplementedError
