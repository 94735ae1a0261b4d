"""Who wrote silver labels: enough to tell two teachers apart and to repeat the work."""

from typing import Literal

from detmtl.structures.settings import Settings

Written = Literal["boxes", "maps", "tags"]
"""The kinds of labels that silver knows."""


class TeacherCard(Settings):
    """What is known of a teacher.

    Two teachers are the same (may write into one store) where everything but `versions` is equal.
    """

    name: str
    """Short, of letters, digits, '.', '_' and '-'; names the folder of its raw labels."""
    weights_sha256: str
    """Of the file that holds the weights (or the results)."""
    classes: tuple[str, ...]
    """The teacher's own class names; a class in its output is an index into them."""
    unsearched: tuple[str, ...] = ()
    """Those of `classes` for which nobody looked in what it learned from: it abstains from them."""
    preprocessing: str
    """In words, every number that changes the output: size, padding, NMS, most boxes."""
    task: Written = "boxes"
    """What its labels are."""
    versions: dict[str, str] = {}
    """Package name -> version of what ran it."""

    @property
    def searched(self) -> tuple[str, ...]:
        """Those of `classes` that it looks for."""
        return tuple(name for name in self.classes if name not in self.unsearched)

    def identity(self) -> dict[str, object]:
        """Returns what two cards of the same teacher have in common; a field that is added later has
        a default and leaves the identity of earlier teachers as it is."""
        return self.model_dump(mode="json", exclude={"versions"}, exclude_defaults=True)
