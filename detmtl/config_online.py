"""What mode online does in a run: as `online` says, and where it says nothing as `silver` does."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from detmtl.config_parts import DataSettings, SilverSettings
from detmtl.engine.online import OnlineSettings
from detmtl.engine.online_boxes import unusable
from detmtl.silver.fusion import FusionSettings
from detmtl.silver.map_policy import MapSelection, unresolvable_maps
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.tag_policy import TagSelection, unresolvable_tags
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.tasks import TaskConfig
from detmtl.yaml_settings import listed


@dataclass(frozen=True)
class OnlineChoice:
    """The choices of a run of mode online.

    Attributes:
        online, silver, data, tasks: those sections of its settings.
    """

    online: OnlineSettings
    silver: SilverSettings | None
    data: DataSettings
    tasks: Mapping[str, TaskConfig]

    @property
    def pools(self) -> list[str]:
        """Names of the sources whose pictures are labelled while training."""
        if self.online.pools is not None:
            return self.online.pools
        if self.silver is not None:
            return self.silver.pools
        return [n for n, s in self.data.sources.items() if not s.has_labels()]

    @property
    def audit(self) -> str | None:
        """Where the teacher is audited: `val` or a source's name; None: nowhere; empty, which is a problem:
        `silver.audit` is a part of the gold and `online.audit` not given."""
        if self.online.audit_every is None:
            return None
        offline = self.silver.audit if self.silver else "val"
        # a part of the gold that is trained on says nothing of a teacher that learns from all of it
        return self.online.audit or (offline if isinstance(offline, str) else "")

    @property
    def select(self) -> SelectionSettings:
        """Which of the teacher's boxes become labels."""
        return self.online.select or (self.silver.select if self.silver else SelectionSettings())

    @property
    def select_maps(self) -> MapSelection:
        """Which pixels of the teacher's maps become labels."""
        return self.online.select_maps or (
            self.silver.select_maps if self.silver else MapSelection()
        )

    @property
    def select_tags(self) -> TagSelection:
        """Which of the teacher's tags become labels."""
        return self.online.select_tags or (
            self.silver.select_tags if self.silver else TagSelection()
        )

    @property
    def overlay(self) -> OverlaySettings:
        """What becomes of the teacher's boxes beside gold labels."""
        return self.online.overlay or (self.silver.overlay if self.silver else OverlaySettings())

    @property
    def floor(self) -> float:
        """The lowest score of the teacher's boxes."""
        finder = self.tasks.get(self.finders.get("boxes", ""))
        return finder.test.score_threshold if isinstance(finder, DetectionConfig) else 0.0

    @property
    def finders(self) -> dict[str, str]:
        """The kinds of labels that could be written -> the first task that finds them."""
        found: dict[str, str] = {}
        for name, task in self.tasks.items():
            if kind := getattr(task, "finds", None):
                found.setdefault(kind, name)
        return found

    def problems(self, trained: Collection[str], averaged: bool) -> list[str]:
        """Returns a sentence for each thing in the settings that cannot be.

        Args:
            trained: names of the sources that the mix trains on.
            averaged: whether the run keeps an average of its weights.
        """
        sources = set(self.data.sources)
        problems = [
            f"online.pools: '{name}' is no source; data.sources has {listed(sources)}"
            for name in sorted(set(self.pools) - sources)
        ]
        if not set(self.pools) & set(trained):
            problems.append(
                "mix.mode: online needs pictures to label: name sources in online.pools or silver.pools, "
                "or give a source of kind folder"
            )
        if not averaged:
            problems.append("train.ema: mode online needs it: the averaged model is the teacher")
        problems += [
            f"online.labels: has {kind}, and no task finds {kind}; the teacher is the model itself: "
            f"add such a task, or list kinds of which there are some: {listed(self.finders)} (a task of "
            "one's own says by `finds` what it writes)"
            for kind in self.online.labels
            if kind not in self.finders
        ]
        if "tags" in self.online.labels and self.data.tags and self.data.tags.from_boxes:
            problems.append(
                "online.labels: has tags, which follow from boxes here (data.tags.from_boxes); leave them out"
            )
        return problems + self._of_selections() + self._of_audit(trained)

    def _of_audit(self, trained: Collection[str]) -> list[str]:
        labelled = {n for n, s in self.data.sources.items() if s.has_labels()}
        if self.audit is None or self.audit == "val":
            return []
        if self.audit not in labelled:
            return [
                f"online.audit: '{self.audit}' is neither 'val' nor a labelled source (a part of the gold "
                "sources, as silver.audit may be, is trained on)"
            ]
        if self.audit in trained:
            return [
                f"online.audit: '{self.audit}' is trained on, and a model is not measured on that; give val "
                "or a source outside of mix.shares, or set online.audit_every: null"
            ]
        return []

    def _of_selections(self) -> list[str]:
        written, names = set(self.online.labels), self.data.names()
        audited, problems = self.audit is not None, []
        if "boxes" in written:
            problems += self._of_boxes(audited)
        if "maps" in written and "maps" in names:
            where = self._where("select_maps")
            found = unresolvable_maps(self.select_maps, names["maps"], audited, where)
            problems += found + self._hint(found, "select_maps")
        if "tags" in written and "tags" in names:
            where = self._where("select_tags")
            found = unresolvable_tags(self.select_tags, names["tags"], audited, where)
            problems += found + self._hint(found, "select_tags")
        return problems

    def _of_boxes(self, audited: bool) -> list[str]:
        own, where = self.online.select, self._where("select")
        problems = unusable(self.select, list(self.data.classes), self.floor, audited, where)
        problems += self._hint(problems, "select")
        if own is not None and own.fusion != FusionSettings():
            problems.append(
                "online.select.fusion: mode online has one teacher and nothing to fuse; leave it out"
            )
        return problems

    def _where(self, part: str) -> str:
        """Returns which section says what is selected."""
        return (
            f"{'silver' if getattr(self.online, part) is None and self.silver else 'online'}.{part}"
        )

    def _hint(self, problems: list[str], part: str) -> list[str]:
        where = self._where(part)
        if not problems or where.startswith("online"):
            return []
        return [
            f"online.{part}: is not given, and mode online chooses by {where}; give it where they are to "
            "differ"
        ]
