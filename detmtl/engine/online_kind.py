"""What mode online has to know of a kind of labels; a kind is one file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.source import Source
from detmtl.silver.card import Written
from detmtl.silver.records import AnyRecord
from detmtl.silver.store import Store
from detmtl.structures.labels import Labels
from detmtl.structures.sample import ImageInfo

ONLINE = Path("the online teacher")
"""What errors call the store that there is not."""
Choice = Callable[[Labels, ImageInfo], Labels | None]
"""What the model finds in a picture, in the network's pixels, and where it comes from -> the labels that are
made of it; None: nobody looked."""


class Kind(ABC):
    """A kind of labels that the model's own average writes.

    Attributes:
        written: the key of the labels.
        task: name of the task that finds them.
        classes: their names.
        floor: lowest score that the task gives.
        known: (C,) bool, which of them the model knows when it begins to label. As any teacher it abstains
            from the others, until an audit confirms in several pictures that it finds them.
    """

    written: Written

    def __init__(
        self,
        task: str,
        classes: Sequence[str],
        floor: float = 0.0,
        known: Collection[str] | None = None,
    ):
        """Takes what the attributes say; `known` by name, None: all."""
        self.task, self.classes, self.floor = task, tuple(classes), floor
        self.known = np.array([known is None or n in known for n in self.classes], dtype=bool)

    @abstractmethod
    def judged(self, gold: Source) -> np.ndarray:
        """Returns (I,) bool, in which pictures people looked for such labels."""

    def refuse(self, chosen: Source, gold: Source) -> None:
        """Is told before the training by which pictures the model will be audited.

        Args:
            chosen: some of those that are judged.
            gold: all that there are.

        Raises:
            InputError: no audit can be of use.
        """
        return

    @abstractmethod
    def record(self, found: Labels, picture: Mapping[str, Any]) -> AnyRecord:
        """Returns what an audit's store keeps of a picture.

        Args:
            found: in pixels of the picture's file.
            picture: its hash, size and name, as fields of the record.
        """

    @abstractmethod
    def audit(self, store: Store, gold: Source) -> Any:
        """Returns the audit of what the model found."""

    @abstractmethod
    def choice(self, audit: Any) -> Choice:
        """Returns the policy, resolved for the model as it is now.

        Args:
            audit: as `audit` returns it; None: there is none.

        Raises:
            TooLittleEvidence: the audit does not tell what scores are worth.
        """

    def onto(self, known: Labels | None, found: Labels) -> Labels:
        """Returns a picture's labels with the model's beside those that it has, where it has some."""
        return found if known is None else known
