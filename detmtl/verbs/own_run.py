"""A store that lies in the folder of the run that wrote it: what the run's settings say of its labels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from detmtl.config import RunSettings, read_settings
from detmtl.config_parts import SilverSettings
from detmtl.data.maps import MapClasses
from detmtl.data.source import Source
from detmtl.data.tags import TagClasses
from detmtl.run_folder import RunFolder
from detmtl.run_teachers import audit_gold
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.verbs.options import assignments, cache_of
from detmtl.yaml_settings import checked

AnyPolicy = TypeVar("AnyPolicy", bound=Settings)


@dataclass(frozen=True)
class OwnRun:
    """The run whose own store it is.

    Attributes:
        folder: of the run.
        settings: of the run, as it wrote them down.
        silver: of these, how the store came to be.
    """

    folder: RunFolder
    settings: RunSettings
    silver: SilverSettings

    @classmethod
    def of(cls, store: Path) -> "OwnRun | None":
        """Returns the run in whose folder a store lies; None: it is nobody's own, or another version's."""
        folder = RunFolder(store.absolute().parent)
        if not folder.settings.is_file():
            return None
        try:
            settings = read_settings(folder.settings)
        except InputError as error:
            warnings.warn(
                f"{folder.settings}: policy, classes and gold of this run are not taken, since its settings "
                f"cannot be read: {error.problems[0]}",
                stacklevel=2,
            )
            return None
        silver = settings.silver
        if silver is None or folder.store(settings).absolute() != store.absolute():
            return None
        return cls(folder, settings, silver)

    def gold(
        self, space: LabelSpace, maps: MapClasses | None = None, tags: TagClasses | None = None
    ) -> Source | None:
        """Returns the gold that the run audited its teacher by; None, and a warning, if it cannot be read any
        more, as where the data have moved.

        Args:
            space, maps, tags: the classes that are wanted.
        """
        try:
            return audit_gold(self.settings, cache_of(self.folder.path), space, maps, tags)
        except InputError as error:
            warnings.warn(
                f"{self.folder.path}: the gold of this run's audit cannot be read, and its labels are chosen "
                f"without an audit: {error.problems[0]}",
                stacklevel=2,
            )
            return None


def policy_of(kind: type[AnyPolicy], own: AnyPolicy | None, given: Sequence[str]) -> AnyPolicy:
    """Returns a policy of a kind: a run's own, or the usual one, with what --set says in its place."""
    base = {} if own is None else own.model_dump(mode="json")
    return checked(kind, base | assignments(given), where="--set")
