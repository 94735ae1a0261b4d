"""The classes of a network that somebody else trained: which of its outputs mean something.

Networks count places without a class (a background, gaps in COCO's ids) among their outputs; a
teacher's card has real classes only. Letters: S places of the network's output, K classes of the card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.structures.errors import InputError
from detmtl.teachers.teacher import existing

BACKGROUND = "__background__"
"""Names the place that means none of the classes."""
NO_CLASS = "N/A"
"""Names a place without a meaning; may stand several times."""

NONE = -1
"""In `ClassSlots.classes`: a place without a meaning."""
REST = -2
"""In `ClassSlots.classes`: the background."""


@dataclass(frozen=True, eq=False)
class ClassSlots:
    """What each place of a network's output means.

    Attributes:
        names: the K class names, of the card.
        classes: (S,) int64, the class of each place, `NONE` or `REST`.
    """

    names: tuple[str, ...]
    classes: np.ndarray

    @classmethod
    def of(
        cls, names: Sequence[str], where: str, background: Sequence[str] = (BACKGROUND,)
    ) -> "ClassSlots":
        """Builds the places from their names in order.

        Args:
            names: a name for each place; `NO_CLASS` where it means nothing.
            where: file or setting, for errors.
            background: the names that mean none of the classes.

        Raises:
            InputError: a name is missing or listed twice, or there is no class.
        """
        rest = [n for n in names if n in background]
        real = tuple(n for n in names if n not in background and n != NO_CLASS)
        problems = [f"{where}: class {i} has no name" for i, name in enumerate(names) if not name]
        problems += [
            f"{where}: '{name}' is listed twice"
            for name in sorted({n for n in (*real, *rest) if n and names.count(n) > 1})
        ]
        if problems or not real:
            raise InputError(problems or f"{where}: no class names")
        index = {name: i for i, name in enumerate(real)} | dict.fromkeys(rest, REST)
        return cls(real, np.array([index.get(n, NONE) for n in names], dtype=np.int64))

    def __len__(self) -> int:
        """Returns the number of places S."""
        return len(self.classes)

    def __str__(self) -> str:
        """Returns for a card what each place means: other meanings are another teacher's."""
        return f"outputs are the classes {self.classes.tolist()}"

    def with_rest(self) -> "ClassSlots":
        """Returns the places with one more at the end, that of none of the classes."""
        return ClassSlots(self.names, np.append(self.classes, REST))


def read_names(root: Path, classes: str | Sequence[str]) -> tuple[list[str], str]:
    """Returns names given as such, or as a text file with one a line; and what gave them, for errors.

    Raises:
        InputError: there is no such file.
    """
    if isinstance(classes, str):
        file = existing(root, classes, "teacher.classes")
        lines = file.read_text("utf-8-sig").rstrip().splitlines()
        return [line.strip() for line in lines], str(file)
    return list(classes), "teacher.classes"


def class_slots(
    root: Path, classes: str | Sequence[str], background: Sequence[str] = (BACKGROUND,)
) -> ClassSlots:
    """Returns the places of a network of which the user named the classes.

    Args:
        root: folder that a path starts from.
        classes: names, or a text file with one a line.
        background: the names that mean none of the classes.

    Raises:
        InputError: see `read_names` and `ClassSlots.of`.
    """
    names, where = read_names(root, classes)
    return ClassSlots.of(names, where, background)
