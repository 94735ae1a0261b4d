"""The settings of a whole run: read from YAML 1.2, checked as a whole, written back resolved.

Every part defines its own settings beside itself; here they meet.
"""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from detmtl.balancing.balancers import AnyBalancer
from detmtl.balancing.fixed import FixedSettings
from detmtl.config_online import OnlineChoice
from detmtl.config_parts import DataSettings, ExportSettings, GoldTeacher, SilverSettings
from detmtl.data.augment import AugmentSettings
from detmtl.data.fit import InputSettings
from detmtl.data.mixture import SHARED, MixSettings
from detmtl.engine.diagnosis import DiagnosisSettings
from detmtl.engine.online import OnlineSettings
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings
from detmtl.losses.normalizer import SOURCES
from detmtl.silver.card import Written
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.multitask import ModelSettings, misnamed
from detmtl.tasks.presets import PresetName, filled_in
from detmtl.tasks.tasks import TaskConfig
from detmtl.teachers.teacher import the_one
from detmtl.yaml_settings import checked, listed, override, read_yaml

LABELS = ("boxes", "maps", "tags", "depth")
"""The keys of labels that pictures can have."""
CONFIG_FOLDERS = (Path("configs"), Path(__file__).resolve().parents[1] / "configs")
"""Where a config given by name alone is looked for."""


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
        problems = [
            *self._misnamed(),
            *self._unlabelled(),
            *self._of_audit(),
            *self._of_splits(),
            *self._of_mix(),
            *self._of_export(),
            *self._untold(),
            *self._unread(),
            *self._of_best(),
            *misnamed(self.tasks),
            *self.model.problems(self.tasks),
            *self.balancing.misnamed(self.tasks),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def offline_pools(self) -> list[str]:
        """Returns the names of the sources whose pictures are labelled before the training."""
        if self.silver is None or self.mix.mode == "gold":
            return []
        online, trained = self.when_online(), self.mix_sources()
        labelled_online = online.pools if online else ()
        return [n for n in self.silver.pools if n in trained and n not in labelled_online]

    def own_teacher(self) -> GoldTeacher | None:
        """Returns the teacher that the run trains itself before it labels; None: it trains none."""
        teacher = self.silver.teacher if self.silver and self.offline_pools() else None
        return teacher if isinstance(teacher, GoldTeacher) else None

    def when_online(self) -> OnlineChoice | None:
        """Returns what mode online does in this run; None: the run has another mode."""
        if self.mix.mode != "online":
            return None
        return OnlineChoice(self.online, self.silver, self.data, self.tasks)

    def silver_tasks(self) -> dict[str, Written]:
        """Returns the tasks whose labels a teacher that the run trains itself may write -> their kind."""
        found = {name: getattr(task, "finds", None) for name, task in self.tasks.items()}
        return {name: kind for name, kind in found.items() if kind}

    def _pools(self) -> set[str]:
        return set(self.silver.pools) if self.silver else set()

    def _misnamed(self) -> list[str]:
        """Returns what is wrong with the names of sources, and with what mode online says."""
        sources, online = set(self.data.sources), self.when_online()
        problems = [
            f"data.sources.{name}: is the name of a split; give the source another"
            for name in sorted(sources & {"val", "test"})
        ]
        if online is not None:
            problems += online.problems(self.mix_sources(), self.train.ema is not None)
        problems += [
            f"mix.{part}: '{name}' is no source; data.sources has {listed(sources)}"
            for part in ("shares", "weights")
            for name in getattr(self.mix, part)
            if name not in sources
        ]
        problems += [
            f"silver.pools: '{name}' is no source; data.sources has {listed(sources)}"
            for name in sorted(self._pools() - sources)
        ]
        return problems

    def _unlabelled(self) -> list[str]:
        """Returns which sources of the mix have no labels and get none."""
        online, pools = self.when_online(), self._pools()
        pools |= set(online.pools if online else ())
        return [
            f"data.sources.{name}: is of kind folder, which has no labels, and is in no silver.pools; "
            "nothing can be learned from it"
            for name in sorted(set(self.mix_sources()) - pools)
            if not self.data.sources[name].has_labels()
        ]

    def _of_audit(self) -> list[str]:
        """Returns what is wrong with the source by which the teacher is judged."""
        audit = self.silver.audit if self.silver else "val"
        if not isinstance(audit, str) or audit == "val":  # "val" is looked at with the splits
            return []
        source = self.data.sources.get(audit)
        if source is None or not source.has_labels():
            return [f"silver.audit: '{audit}' is neither 'val' nor a labelled source"]
        if source.grade == "gold":
            return []
        return [
            f"silver.audit: '{audit}' was labelled by a model (grade silver); a teacher is judged by "
            "people's labels: name another source, or 'val'"
        ]

    def _of_splits(self) -> list[str]:
        """Returns which pictures to measure on have no labels of people."""
        return [
            f"data.{split}: must be labelled by people (grade gold), not by a model"
            for split, source in (("val", self.data.val), ("test", self.data.test))
            if source is not None and not (source.has_labels() and source.grade == "gold")
        ]

    def _of_mix(self) -> list[str]:
        """Returns what is wrong with the number of sources to train on."""
        trained = self.mix_sources()
        if len(trained) > SOURCES:
            return [
                f"data.sources: the mix has {len(trained)} of them; at most {SOURCES} can be weighed; "
                "join some"
            ]
        if not trained:
            return [
                f"mix.mode: {self.mix.mode} leaves no source to train on; "
                f"data.sources has {listed(self.data.sources)}, silver.pools {listed(self._pools())}"
            ]
        return []

    def _of_export(self) -> list[str]:
        """Returns which tasks the deployable file cannot hold together."""
        kinds = [task.kind for task in self.tasks.values()]
        if self.export.format is None or kinds.count("detection") <= 1:
            return []
        return [
            f"export.format: {self.export.format} holds at most one detection task and what "
            f"describes its boxes, semantic tasks, tags and depth; tasks has {', '.join(kinds)}; set "
            "export.format: null"
        ]

    def _of_best(self) -> list[str]:
        """Returns what is wrong with the metric that chooses the weights."""
        best = self.train.best
        if not best or best.split("/")[0] in self.tasks:
            return []
        return [
            f"train.best: '{best}' names no task; a metric is task/metric, such as "
            f"{next(iter(self.tasks))}/AP"
        ]

    def _untold(self) -> list[str]:
        """Returns what is wrong with the task of a teacher that the run trains itself."""
        teacher, tasks = self.own_teacher(), self.silver_tasks()
        if teacher is None or (teacher.task or the_one(tasks)) in tasks:
            return []
        return [
            f"silver.teacher.task: is {teacher.task!r}, and the tasks whose labels a teacher can write are: "
            f"{listed(tasks)}; name one (a task of one's own says by `finds` what it writes)"
        ]

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
            elif wanted not in LABELS:
                problems.append(
                    f"tasks.{name}: learns from {wanted}, which no source has; its `labels` are one of "
                    f"{listed(LABELS)}"
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

    def learned(self) -> dict[str, str]:
        """Returns task -> what it learns: boxes, maps, tags or depth, or of boxes attributes, masks or
        keypoints."""
        return {
            name: getattr(task, "learns", None) or getattr(task, "labels", "boxes")
            for name, task in self.tasks.items()
        }

    def mix_sources(self) -> list[str]:
        """Returns the names of the sources that the mix trains on, in the order of `data.sources`."""
        pools = self._pools()
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
