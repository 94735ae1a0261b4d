"""The sections of a run's settings that belong to no part of the framework alone: data, silver, export."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, model_validator

from detmtl.data.details import DetailClasses
from detmtl.data.maps import MapClasses
from detmtl.data.scenes import ScenesSettings
from detmtl.data.sources import AnySource
from detmtl.data.subset import Subset
from detmtl.data.tags import TagClasses
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.tag_policy import TagSelection
from detmtl.structures.classes import LabelSpace
from detmtl.structures.settings import Settings
from detmtl.teachers.teachers import AnyTeacher, Pretrained, elsewhere


class DataSettings(Settings):
    """Pictures and labels of a run; every path inside is relative to `root`.

    Attributes:
        root: folder of the data; relative to the working directory.
        scenes: rendered into `root` on first use, where given.
        classes: the boxes' classes in order, or class -> names by which sources call its members; none
            where no task learns from boxes.
        unmapped: what happens to a category that belongs to no class: an `error`, or `drop` it.
        maps: the classes of semantic maps, where there are some.
        tags: the image tags, where there are some.
        details: attributes, masks and keypoints of boxes, where there are some.
        sources: the training pictures, by name; those of kind `folder` have no labels.
        val: chooses the best checkpoint; gold.
        test: scored once at the end; gold. Without one the final scores are those of `val`.
        batch_size: pictures of one step, those of all processes together.
        workers: processes that load pictures; 0 loads in the main process.
    """

    root: Path
    scenes: ScenesSettings | None = None
    classes: list[str] | dict[str, list[str]] = []
    unmapped: Literal["error", "drop"] = "error"
    maps: MapClasses | None = None
    tags: TagClasses | None = None
    details: DetailClasses | None = None
    sources: dict[str, AnySource]
    val: AnySource
    test: AnySource | None = None
    batch_size: int = Field(ge=1)
    workers: int = Field(default=0, ge=0)

    def label_space(self) -> LabelSpace:
        """Returns the classes with their members."""
        if not self.classes:
            return LabelSpace((), ())
        return LabelSpace.of(self.classes, drop_unmapped=self.unmapped == "drop")

    def names(self) -> dict[str, tuple[str, ...]]:
        """Returns the class names by key of labels: `boxes`, and `maps` and `tags` where there are some;
        `depth` has none; and of the details of boxes."""
        names: dict[str, tuple[str, ...]] = {"boxes": self.label_space().names, "depth": ()}
        others = {"maps": self.maps, "tags": self.tags}
        names |= {key: of.label_space().names for key, of in others.items() if of}
        return names | (self.details.names() if self.details else {})


class GoldTeacher(Settings):
    """A teacher that the run trains itself, on its gold sources alone, before it writes silver.

    It has the student's settings.

    Attributes:
        task: the name of the task whose labels it writes; None: the only one of boxes, or without any the
            only one of maps or tags.
        train: overrides some of the run's `train` (more steps, say).
        mix: of its gold sources, in place of the run's `mix`.
        burn_in: whether the student starts from the teacher's weights rather than from the backbone's.
    """

    kind: Literal["gold"]
    task: str | None = None
    train: dict[str, Any] = {}
    mix: dict[str, Any] = {"mode": "gold"}
    burn_in: bool = False


class SilverSettings(Settings):
    """How the unlabelled sources get their labels.

    Attributes:
        teacher: who writes them; or
        teachers: several of them of one kind, each audited. Boxes are calibrated and fused; maps are laid
            one under the other, the first teacher's on top; tags are the mean of calibrated scores.
        pools: names of the sources that the teacher labels. Gold labels that they have stay: silver
            fills in the classes that people did not look for.
        audit: the gold pictures on which the teacher is audited: `val`, a source's name, or a part of the
            gold sources, such as {share: 0.2}. A teacher must not be audited on what it was trained on:
            of kind `gold` it does not learn from them, a checkpoint that did is told, and of other files
            nobody but you can know.
        floor: lowest score that is kept in the store.
        store: folder of the store; by default `silver/` in the run folder. A store can serve many runs.
        batch_size: pictures that the teacher sees at once.
        gates: what happens when the audit finds a reason not to trust the labels: the run stops, or
            warns and goes on.
        select: which of the teacher's boxes become labels.
        overlay: what becomes of them beside a pool's gold labels.
        select_maps, select_tags: the same for a teacher of maps or of tags.
    """

    teacher: Annotated[Pretrained | GoldTeacher, Discriminator("kind"), elsewhere] | None = None
    teachers: list[AnyTeacher] = []
    pools: list[str] = Field(min_length=1)
    audit: str | Subset = "val"
    floor: float = Field(default=0.05, ge=0, lt=1)
    store: Path | None = None
    batch_size: int = Field(default=8, ge=1)
    gates: Literal["stop", "warn"] = "stop"
    select: SelectionSettings = SelectionSettings()
    overlay: OverlaySettings = OverlaySettings()
    select_maps: MapSelection = MapSelection()
    select_tags: TagSelection = TagSelection()

    @model_validator(mode="after")
    def _one_or_several(self) -> "SilverSettings":
        if (self.teacher is None) == (not self.teachers):
            raise ValueError("give either teacher (one) or teachers (a list)")
        return self


class ExportSettings(Settings):
    """The deployable file at the end of a run.

    Attributes:
        format: `torchscript`, or None for no file.
        dtype: of the network's arithmetic; scores and boxes are float32 in any case.
    """

    format: Literal["torchscript"] | None = "torchscript"
    dtype: Literal["float32", "bfloat16"] = "float32"
