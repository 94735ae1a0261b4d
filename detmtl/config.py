"""The settings of a whole run: read from YAML 1.2, checked as a whole, written back resolved.

Every part defines its own settings beside itself; here they meet.
"""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from detmtl.balancing.balancers import AnyBalancer
from detmtl.balancing.fixed import FixedSettings
from detmtl.data.augment import AugmentSettings
from detmtl.data.details import DetailClasses
from detmtl.data.fit import InputSettings
from detmtl.data.maps import MapClasses
from detmtl.data.mixture import SHARED, MixSettings
from detmtl.data.scenes import ScenesSettings
from detmtl.data.sources import AnySource
from detmtl.data.subset import Subset
from detmtl.data.tags import TagClasses
from detmtl.engine.diagnosis import DiagnosisSettings
from detmtl.engine.online import OnlineSettings
from detmtl.engine.online_boxes import unusable
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings
from detmtl.silver.fusion import FusionSettings
from detmtl.silver.map_policy import MapSelection, unresolvable_maps
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.tag_policy import TagSelection, unresolvable_tags
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings
from detmtl.tasks.presets import PresetName, filled_in
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig
from detmtl.tasks.tasks import TaskConfig
from detmtl.teachers.teacher import WRITTEN, the_one
from detmtl.teachers.teachers import AnyTeacher
from detmtl.yaml_settings import checked, listed, override, read_yaml

CONFIG_FOLDERS = (Path("configs"), Path(__file__).resolve().parents[1] / "configs")
"""Where a config given by name alone is looked for."""


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
            gold sources, such as {share: 0.2}. A teacher trained by the run must not be audited on
            what it was trained on: of kind `gold` it does not learn from them.
        floor: lowest score that is kept in the store.
        store: folder of the store; by default `silver/` in the run folder. A store can serve many runs.
        batch_size: pictures that the teacher sees at once.
        gates: what happens when the audit finds a reason not to trust the labels: the run stops, or
            warns and goes on.
        select: which of the teacher's boxes become labels.
        overlay: what becomes of them beside a pool's gold labels.
        select_maps, select_tags: the same for a teacher of maps or of tags.
    """

    teacher: Annotated[AnyTeacher | GoldTeacher, Field(discriminator="kind")] | None = None
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


class RunSettings(Settings):
    """Everything that decides what `train` does.

    Attributes:
        seed: of weights, order of pictures and augmentation.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        preset: does as another RetinaNet does in `model.fpn` and in every detection task, where these say
            nothing themselves; see docs/presets.md.
        tasks: the tasks by name.
    """

    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    preset: PresetName | None = None
    data: DataSettings
    input: InputSettings = InputSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    silver: SilverSettings | None = None
    mix: MixSettings
    online: OnlineSettings = OnlineSettings()
    train: TrainSettings
    optim: OptimSettings = OptimSettings()
    balancing: AnyBalancer = FixedSettings()
    diagnosis: DiagnosisSettings = DiagnosisSettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, tree: Any) -> Any:
        return filled_in(tree)

    @model_validator(mode="after")
    def _consistent(self) -> "RunSettings":
        """Checks what no part can see alone."""
        problems = []
        sources = set(self.data.sources)
        unlabelled = {n for n, s in self.data.sources.items() if not s.has_labels()}
        pools = set(self.silver.pools) if self.silver else set()
        trained = self.mix_sources()
        online = set(self.online_pools())
        problems += [
            f"data.sources.{name}: is the name of a split; give the source another"
            for name in sorted(sources & {"val", "test"})
        ]
        problems += self._online_problems(sources, unlabelled)
        problems += [
            f"mix.{part}: '{name}' is no source; data.sources has {listed(sources)}"
            for part in ("shares", "weights")
            for name in getattr(self.mix, part)
            if name not in sources
        ]
        problems += [
            f"silver.pools: '{name}' is no source; data.sources has {listed(sources)}"
            for name in pools - sources
        ]
        problems += [
            f"data.sources.{name}: is of kind folder, which has no labels, and is in no silver.pools; "
            "nothing can be learned from it"
            for name in sorted(unlabelled & set(trained) - pools - online)
        ]
        if (
            self.silver
            and isinstance(self.silver.audit, str)
            and self.silver.audit != "val"
            and self.silver.audit not in sources - unlabelled
        ):
            problems.append(
                f"silver.audit: '{self.silver.audit}' is neither 'val' nor a labelled source"
            )
        for split in ("val", "test"):
            source = getattr(self.data, split)
            if source is not None and not (source.has_labels() and source.grade == "gold"):
                problems.append(
                    f"data.{split}: must be labelled by people (grade gold), not by a model"
                )
        if not trained:
            problems.append(
                f"mix.mode: {self.mix.mode} leaves no source to train on; "
                f"data.sources has {listed(sources)}, silver.pools {listed(pools)}"
            )
        kinds = [task.kind for task in self.tasks.values()]
        if self.export.format and not (
            kinds.count("detection") <= 1
            and {kind for kind in kinds if ":" not in kind}
            <= {"detection", "semantic", "tags", "depth", "attributes", "masks", "keypoints"}
        ):
            problems.append(
                f"export.format: {self.export.format} holds at most one detection task and what "
                f"describes its boxes, semantic tasks, tags and depth; tasks has {', '.join(kinds)}; set "
                "export.format: null"
            )
        problems += self._untold() + self._unread()
        if self.train.best and self.train.best.split("/")[0] not in self.tasks:
            problems.append(
                f"train.best: '{self.train.best}' names no task; a metric is task/metric, such as "
                f"{next(iter(self.tasks))}/AP"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _online_problems(self, sources: set[str], unlabelled: set[str]) -> list[str]:
        if self.mix.mode != "online":
            return []
        pools, audit = set(self.online_pools()), self.online_audit()
        problems = [
            f"online.pools: '{name}' is no source; data.sources has {listed(sources)}"
            for name in sorted(pools - sources)
        ]
        if not pools & set(self.mix_sources()):
            problems.append(
                "mix.mode: online needs pictures to label: name sources in online.pools or silver.pools, "
                "or give a source of kind folder"
            )
        if self.train.ema is None:
            problems.append("train.ema: mode online needs it: the averaged model is the teacher")
        problems += [
            f"online.labels: has {kind}, and no task finds {kind}; the teacher is the model itself: "
            f"add such a task, or list kinds of which there are some: {listed(self.online_tasks())}"
            for kind in self.online.labels
            if kind not in self.online_tasks()
        ]
        if "tags" in self.online.labels and self.data.tags and self.data.tags.from_boxes:
            problems.append(
                "online.labels: has tags, which follow from boxes here (data.tags.from_boxes); leave them out"
            )
        problems += self._online_select_problems()
        if audit is not None and audit != "val":
            if audit not in sources - unlabelled:
                problems.append(
                    f"online.audit: '{audit}' is neither 'val' nor a labelled source (a part of the gold "
                    "sources, as silver.audit may be, is trained on)"
                )
            elif audit in self.mix_sources():
                problems.append(
                    f"online.audit: '{audit}' is trained on, and a model is not measured on that; give val "
                    "or a source outside of mix.shares, or set online.audit_every: null"
                )
        return problems

    def _online_select_problems(self) -> list[str]:
        written, names = set(self.online.labels), self.data.names()
        audited, problems = self.online_audit() is not None, []
        if "boxes" in written:
            problems += self._online_box_problems()
        if "maps" in written and "maps" in names:
            where = self._online_where("select_maps")
            found = unresolvable_maps(self.online_select_maps(), names["maps"], audited, where)
            problems += found + self._online_hint(found, "select_maps")
        if "tags" in written and "tags" in names:
            where = self._online_where("select_tags")
            found = unresolvable_tags(self.online_select_tags(), names["tags"], audited, where)
            problems += found + self._online_hint(found, "select_tags")
        return problems

    def _online_where(self, part: str) -> str:
        """Returns which section says what mode online selects."""
        return (
            f"{'silver' if getattr(self.online, part) is None and self.silver else 'online'}.{part}"
        )

    def _online_hint(self, problems: list[str], part: str) -> list[str]:
        where = self._online_where(part)
        if not problems or where.startswith("online"):
            return []
        return [
            f"online.{part}: is not given, and mode online chooses by {where}; give it where they are to "
            "differ"
        ]

    def _online_box_problems(self) -> list[str]:
        own = self.online.select
        where = self._online_where("select")
        problems = unusable(
            self.online_select(),
            list(self.data.classes),
            self.online_floor(),
            self.online_audit() is not None,
            where,
        )
        problems += self._online_hint(problems, "select")
        if own is not None and own.fusion != FusionSettings():
            problems.append(
                "online.select.fusion: mode online has one teacher and nothing to fuse; leave it out"
            )
        return problems

    def online_pools(self) -> list[str]:
        """Returns the names of the sources whose pictures are labelled while training."""
        if self.mix.mode != "online":
            return []
        if self.online.pools is not None:
            return self.online.pools
        if self.silver is not None:
            return self.silver.pools
        return [n for n, s in self.data.sources.items() if not s.has_labels()]

    def offline_pools(self) -> list[str]:
        """Returns the names of the sources whose pictures are labelled before the training."""
        if self.silver is None or self.mix.mode == "gold":
            return []
        online, trained = self.online_pools(), self.mix_sources()
        return [n for n in self.silver.pools if n in trained and n not in online]

    def online_audit(self) -> str | None:
        """Returns where the online teacher is audited: `val` or a source's name; None: nowhere."""
        if self.mix.mode != "online" or self.online.audit_every is None:
            return None
        offline = self.silver.audit if self.silver else "val"
        # a part of the gold that is trained on says nothing of a teacher that learns from all of it
        return self.online.audit or (offline if isinstance(offline, str) else "")

    def online_select(self) -> SelectionSettings:
        """Returns which of the online teacher's boxes become labels."""
        offline = self.silver.select if self.silver else SelectionSettings()
        return self.online.select or offline

    def online_select_maps(self) -> MapSelection:
        """Returns which pixels of the online teacher's maps become labels."""
        return self.online.select_maps or (
            self.silver.select_maps if self.silver else MapSelection()
        )

    def online_select_tags(self) -> TagSelection:
        """Returns which of the online teacher's tags become labels."""
        return self.online.select_tags or (
            self.silver.select_tags if self.silver else TagSelection()
        )

    def online_tasks(self) -> dict[str, str]:
        """Returns the kinds of labels that mode online could write -> the first task that finds them."""
        found = {DetectionConfig: "boxes", SemanticConfig: "maps", TagsConfig: "tags"}
        tasks: dict[str, str] = {}
        for name, task in self.tasks.items():  # what a task of another kind finds is not known here
            if type(task) in found:
                tasks.setdefault(found[type(task)], name)
        return tasks

    def silver_tasks(self) -> dict[str, str]:
        """Returns the tasks whose labels a teacher that the run trains itself may write -> their kind."""
        kinds = {name: getattr(task, "labels", "boxes") for name, task in self.tasks.items()}
        return {
            name: kind
            for name, kind in kinds.items()
            if getattr(self.tasks[name], "of", None) is None and kind in WRITTEN
        }

    def _untold(self) -> list[str]:
        """Returns what is wrong with the task of a teacher that the run trains itself."""
        teacher, tasks = self.silver and self.silver.teacher, self.silver_tasks()
        if not isinstance(teacher, GoldTeacher) or not self.offline_pools():
            return []
        if (teacher.task or the_one(tasks)) in tasks:
            return []
        return [
            f"silver.teacher.task: is {teacher.task!r}, and the tasks whose labels a teacher can write are: "
            f"{listed(tasks)}; name one"
        ]

    def online_overlay(self) -> OverlaySettings:
        """Returns what becomes of the online teacher's boxes beside gold labels."""
        return self.online.overlay or (self.silver.overlay if self.silver else OverlaySettings())

    def online_floor(self) -> float:
        """Returns the lowest score of the online teacher's boxes."""
        tests = [t.test for t in self.tasks.values() if isinstance(t, DetectionConfig)]
        return max((test.score_threshold for test in tests), default=0.0)

    def _unread(self) -> list[str]:
        """Returns what is wrong between the kinds of labels that tasks, sources and data.* name."""
        data, problems = self.data, []
        known = {key for key in ("maps", "tags") if getattr(data, key)}
        for name, task in self.tasks.items():
            wanted = getattr(task, "labels", "boxes")
            if wanted in ("maps", "tags") and wanted not in known:
                problems.append(
                    f"tasks.{name}: learns from {wanted}, but data.{wanted} is not given; list its classes"
                )
            elif wanted == "boxes" and not data.classes:
                problems.append(
                    f"tasks.{name}: learns from boxes, but data.classes is empty; list them"
                )
            learns = getattr(task, "learns", None)
            if learns and not getattr(data.details, learns, None):
                problems.append(
                    f"tasks.{name}: learns {learns} of boxes, but data.details.{learns} is not given"
                )
        splits = {f"sources.{n}": s for n, s in data.sources.items()} | {"val": data.val}
        problems += [
            f"tasks.{name}: learns from depth, but no source has any; give its `depth`"
            for name, task in self.tasks.items()
            if getattr(task, "labels", "boxes") == "depth"
            and not any(source.depth for source in data.sources.values())
        ]
        for where, source in (splits | {"test": data.test}).items():
            problems += [
                f"data.{where}.{key}: is given, but data.{key} is not; list the classes there"
                for key in ("maps", "tags")
                if source is not None and getattr(source, key) and key not in known
            ]
        return problems

    def mix_sources(self) -> list[str]:
        """Returns the names of the sources that the mix trains on, in the order of `data.sources`."""
        pools = set(self.silver.pools) if self.silver else set()
        silver = {n for n, s in self.data.sources.items() if n in pools or s.grade == "silver"}
        if self.mix.mode == "gold":
            return self.gold_sources()
        if self.mix.mode == "silver":
            return [n for n in self.data.sources if n in silver]
        if self.mix.shares and self.mix.mode in SHARED:
            return [n for n in self.data.sources if n in self.mix.shares]
        return list(self.data.sources)

    def gold_sources(self) -> list[str]:
        """Returns the names of the sources that people labelled, if only for some classes."""
        sources = self.data.sources.items()
        return [n for n, s in sources if s.has_labels() and s.grade == "gold"]

    def mix_for(self, names: list[str]) -> MixSettings:
        """Returns the mix cut down to the sources of these names, so that a mode can be changed
        without changing the shares."""
        shares = self.mix.shares if self.mix.mode in SHARED else {}
        return self.mix.model_copy(
            update={
                "shares": {n: s for n, s in shares.items() if n in names},
                "weights": {n: w for n, w in self.mix.weights.items() if n in names},
            }
        )

    def resolved(self) -> dict[str, Any]:
        """Returns the settings with every default spelled out, as plain YAML values."""
        return self.model_dump(mode="json")


def find_config(name: str) -> Path:
    """Returns the config file of that path, or of that name in `configs/` (`.yaml` may be left out).

    Raises:
        InputError: there is none; lists those there are.
    """
    tried = [Path(name), *(folder / name for folder in CONFIG_FOLDERS)]
    for path in tried:
        for candidate in (path, Path(f"{path}.yaml")):
            if candidate.is_file():
                return candidate
    known = sorted({p.name for folder in CONFIG_FOLDERS for p in folder.glob("*.yaml")})
    close = get_close_matches(name, known, n=1)
    hint = f"nearest: {close[0]}" if close else f"configs/ has {listed(known)}"
    raise InputError(f"--config {name}: no such file, neither as a path nor in configs/ ({hint})")


def read_settings(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Reads the settings of a run.

    Args:
        path: a YAML 1.2 file.
        overrides: `a.b.c=value`, each value read as YAML.

    Raises:
        InputError: with every mistake in it, each with file and line.
    """
    tree, lines = read_yaml(path)
    for text in overrides:
        override(tree, lines, text)
    return settings_from(tree, lines, str(path))


def settings_from(
    tree: Any, lines: Mapping[tuple, str] | None = None, where: str = "settings"
) -> RunSettings:
    """Returns checked settings of a run from plain values, e.g. those saved in a checkpoint.

    Raises:
        InputError: see `checked`.
    """
    return checked(RunSettings, tree, lines, where)


def write_settings(settings: RunSettings, path: Path) -> None:
    """Writes resolved settings as YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[attr-defined]
    text = StringIO()
    yaml.dump(settings.resolved(), text)
    path.write_text(text.getvalue())


def settings_schema() -> str:
    """Returns the JSON schema of the settings, for editors that complete and check YAML."""
    schema = RunSettings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2) + "\n"
