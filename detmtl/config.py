"""The settings of a whole run: read from YAML 1.2, checked as a whole, written back resolved.

Every part defines its own settings beside itself; here they meet.
"""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from detmtl.balancing.balancers import AnyBalancer
from detmtl.balancing.fixed import FixedSettings
from detmtl.data.augment import AugmentSettings
from detmtl.data.fit import InputSettings
from detmtl.data.mixture import MixSettings
from detmtl.data.scenes import ScenesSettings
from detmtl.data.sources import AnySource
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings
from detmtl.silver.selection import SelectionSettings
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.multitask import ModelSettings
from detmtl.tasks.tasks import TaskConfig
from detmtl.teachers.teachers import AnyTeacher

CONFIG_FOLDERS = (Path("configs"), Path(__file__).resolve().parents[1] / "configs")
"""Where a config given by name alone is looked for."""


SHARED = ("batch", "alternate")
"""Modes of the mix in which `mix.shares` count."""


class DataSettings(Settings):
    """Pictures and labels of a run; every path inside is relative to `root`.

    Attributes:
        root: folder of the data; relative to the working directory.
        scenes: rendered into `root` on first use, where given.
        classes: the classes in order, or class -> names by which sources call its members.
        unmapped: what happens to a category that belongs to no class: an `error`, or `drop` it.
        sources: the training pictures, by name; those of kind `folder` have no labels.
        val: chooses the best checkpoint; gold.
        test: scored once at the end; gold. Without one the final scores are those of `val`.
        batch_size: pictures of one step, those of all processes together.
        workers: processes that load pictures; 0 loads in the main process.
    """

    root: Path
    scenes: ScenesSettings | None = None
    classes: list[str] | dict[str, list[str]]
    unmapped: Literal["error", "drop"] = "error"
    sources: dict[str, AnySource]
    val: AnySource
    test: AnySource | None = None
    batch_size: int = Field(ge=1)
    workers: int = Field(default=0, ge=0)

    def label_space(self) -> LabelSpace:
        """Returns the classes with their members."""
        return LabelSpace.of(self.classes, drop_unmapped=self.unmapped == "drop")


class GoldTeacher(Settings):
    """A teacher that the run trains itself, on its gold sources alone, before it writes silver.

    It has the student's settings.

    Attributes:
        train: overrides some of the run's `train` (more steps, say).
        burn_in: whether the student starts from the teacher's weights rather than from the backbone's.
    """

    kind: Literal["gold"]
    train: dict[str, Any] = {}
    burn_in: bool = False


class SilverSettings(Settings):
    """How the unlabelled sources get their labels.

    Attributes:
        teacher: who writes them; or
        teachers: several of them, each audited and calibrated, whose labels are fused.
        pools: names of the sources that the teacher labels; labels they may have are not read.
        audit: the gold pictures on which the teacher is audited: `val` or a source's name. A teacher
            trained by the run must not be audited on what it was trained on.
        floor: lowest score that is kept in the store.
        store: folder of the store; by default `silver/` in the run folder. A store can serve many runs.
        batch_size: pictures that the teacher sees at once.
        gates: what happens when the audit finds a reason not to trust the labels: the run stops, or
            warns and goes on.
        select: which of the teacher's boxes become labels.
    """

    teacher: Annotated[AnyTeacher | GoldTeacher, Field(discriminator="kind")] | None = None
    teachers: list[AnyTeacher] = []
    pools: list[str] = Field(min_length=1)
    audit: str = "val"
    floor: float = Field(default=0.05, ge=0, lt=1)
    store: Path | None = None
    batch_size: int = Field(default=8, ge=1)
    gates: Literal["stop", "warn"] = "stop"
    select: SelectionSettings = SelectionSettings()

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
        tasks: the tasks by name.
    """

    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    data: DataSettings
    input: InputSettings = InputSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    silver: SilverSettings | None = None
    mix: MixSettings
    train: TrainSettings
    optim: OptimSettings = OptimSettings()
    balancing: AnyBalancer = FixedSettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "RunSettings":
        """Checks what no part can see alone."""
        problems = []
        sources = set(self.data.sources)
        unlabelled = {n for n, s in self.data.sources.items() if s.kind == "folder"}
        pools = set(self.silver.pools) if self.silver else set()
        trained = self.mix_sources()
        problems += [
            f"mix.{part}: '{name}' is no source; data.sources has {_listed(sources)}"
            for part in ("shares", "weights")
            for name in getattr(self.mix, part)
            if name not in sources
        ]
        problems += [
            f"silver.pools: '{name}' is no source; data.sources has {_listed(sources)}"
            for name in pools - sources
        ]
        problems += [
            f"data.sources.{name}: is of kind folder, which has no labels, and is in no silver.pools; "
            "nothing can be learned from it"
            for name in sorted(unlabelled & set(trained) - pools)
        ]
        if (
            self.silver
            and self.silver.audit != "val"
            and self.silver.audit not in sources - unlabelled
        ):
            problems.append(
                f"silver.audit: '{self.silver.audit}' is neither 'val' nor a labelled source"
            )
        for split in ("val", "test"):
            source = getattr(self.data, split)
            if source is not None and (source.kind == "folder" or source.grade != "gold"):
                problems.append(
                    f"data.{split}: must be labelled by people (grade gold), not by a model"
                )
        if not trained:
            problems.append(
                f"mix.mode: {self.mix.mode} leaves no source to train on; "
                f"data.sources has {_listed(sources)}, silver.pools {_listed(pools)}"
            )
        if self.export.format and len(self.tasks) != 1:
            problems.append(
                f"export.format: {self.export.format} holds one task, and there are "
                f"{len(self.tasks)}; set export.format: null"
            )
        if self.train.best and self.train.best.split("/")[0] not in self.tasks:
            problems.append(
                f"train.best: '{self.train.best}' names no task; a metric is task/metric, such as "
                f"{next(iter(self.tasks))}/AP"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def mix_sources(self) -> list[str]:
        """Returns the names of the sources that the mix trains on, in the order of `data.sources`."""
        pools = set(self.silver.pools) if self.silver else set()
        silver = {n for n, s in self.data.sources.items() if n in pools or s.grade == "silver"}
        if self.mix.mode == "gold":
            unlabelled = {n for n, s in self.data.sources.items() if s.kind == "folder"}
            return [n for n in self.data.sources if n not in silver | unlabelled]
        if self.mix.mode == "silver":
            return [n for n in self.data.sources if n in silver]
        if self.mix.shares and self.mix.mode in SHARED:
            return [n for n in self.data.sources if n in self.mix.shares]
        return list(self.data.sources)

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
    hint = f"nearest: {close[0]}" if close else f"configs/ has {_listed(known)}"
    raise InputError(f"--config {name}: no such file, neither as a path nor in configs/ ({hint})")


def read_settings(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Reads the settings of a run.

    Args:
        path: a YAML 1.2 file.
        overrides: `a.b.c=value`, each value read as YAML.

    Raises:
        InputError: with every mistake in it, each with file and line.
    """
    tree, lines = _read_yaml(path)
    for text in overrides:
        _override(tree, lines, text)
    return settings_from(tree, lines, str(path))


def settings_from(tree: Any, lines: Mapping[tuple, str] | None = None, where: str = "settings"):
    """Returns checked settings from plain values, e.g. those saved in a checkpoint."""
    try:
        return RunSettings.model_validate(tree)
    except ValidationError as error:
        raise InputError(list(_sentences(error, lines or {}, where))) from None


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


def _read_yaml(path: Path) -> tuple[dict, dict[tuple, str]]:
    """Returns the plain values of a YAML file, and `file:line` of every key path in it."""
    try:
        node = YAML(typ="rt", pure=True).load(path.read_text())
    except DuplicateKeyError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {str(error.problem).strip()}; keep one of them") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML 1.2: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise InputError(f"{path}: must hold a mapping of settings, found {type(node).__name__}")
    lines: dict[tuple, str] = {}
    return _plain(node, (), lines, str(path)), lines


def _plain(node: Any, at: tuple, lines: dict[tuple, str], file: str) -> Any:
    if isinstance(node, dict):
        out = {}
        for key, value in node.items():
            place = (node.lc.data or {}).get(key)  # type: ignore[attr-defined]  # none if merged
            lines[(*at, str(key))] = f"{file}:{place[0] + 1}" if place else file
            out[str(key) if isinstance(key, str) else key] = _plain(
                value, (*at, str(key)), lines, file
            )
        return out
    if isinstance(node, list):
        out_list = []
        for i, value in enumerate(node):
            lines[(*at, str(i))] = f"{file}:{node.lc.item(i)[0] + 1}"  # type: ignore[attr-defined]
            out_list.append(_plain(value, (*at, str(i)), lines, file))
        return out_list
    for plain in (bool, int, float, str):  # ruamel's scalars remember their spelling
        if isinstance(node, plain):
            return plain(node)
    return node


def _override(tree: dict, lines: dict[tuple, str], text: str) -> None:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {text}: must be NAME.NAME=VALUE, such as train.steps=500")
    try:
        parsed = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise InputError(
            f"--set {text}: the value is not YAML: {' '.join(str(error).split())}"
        ) from None
    at: Any = tree
    for i, key in enumerate(keys[:-1]):
        if isinstance(at, list):
            at = at[_position(at, key, text)]
            continue
        if not isinstance(at, dict):
            break
        if not isinstance(at.get(key), dict | list):
            at[key] = {}
            lines[tuple(keys[: i + 1])] = f"--set {path}"
        at = at[key]
    if not isinstance(at, dict | list):
        raise InputError(f"--set {text}: '{'.'.join(keys[:-1])}' is {at!r}, which has no parts")
    if isinstance(at, list):
        at[_position(at, keys[-1], text)] = parsed
    else:
        at[keys[-1]] = parsed
    for old in [k for k in lines if k[: len(keys)] == tuple(keys)]:
        del lines[old]
    lines[tuple(keys)] = f"--set {path}"


def _position(items: list, key: str, text: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise InputError(f"--set {text}: '{key}' must be a position in a list of {len(items)}")
    return int(key)


def _sentences(error: ValidationError, lines: Mapping[tuple, str], where: str) -> Iterator[str]:
    """Yields one sentence per mistake: file and line, setting, what was found, what is allowed."""
    for e in error.errors():
        loc = tuple(str(part) for part in e["loc"])
        path, line = _locate(loc, lines, where)
        name = ".".join(path)
        if e["type"] == "extra_forbidden":
            known = sorted(_fields_at(loc[:-1]))
            close = get_close_matches(loc[-1], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known here: {_listed(known)}"
            yield f"{line}: {name}: unknown setting; {hint}"
        elif e["type"] == "missing":
            yield f"{line}: {'.'.join((*path, loc[-1]))}: is required and missing"
        elif e["type"] == "value_error" or e["type"] == "assertion_error":
            for problem in str(e.get("ctx", {}).get("error", e["msg"])).splitlines():
                yield f"{line}: {name + ': ' if name else ''}{problem}"
        else:
            found = json.dumps(e["input"], default=str)
            yield f"{line}: {name}: {e['msg']}; found {found if len(found) < 80 else found[:77] + '...'}"


def _locate(loc: tuple, lines: Mapping[tuple, str], where: str) -> tuple[tuple, str]:
    """Returns the key path of an error in the file, and the line of its deepest part there.

    Pydantic's location also names the member of a union, which the file does not.
    """
    at: tuple = ()
    for part in loc:
        if (*at, part) in lines:
            at = (*at, part)
    if not lines:
        at = loc
    return at, lines.get(at, where)


def _fields_at(loc: tuple) -> set[str]:
    """Returns the names of the settings that are known at a location."""
    found: list[Any] = [RunSettings]
    for part in loc:
        found = [inner for annotation in found for inner in _descend(annotation, part)]
    return {name for a in found for model in _models(a) for name in model.model_fields}


def _descend(annotation: Any, part: str) -> Iterator[Any]:
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if part in annotation.model_fields:
            yield annotation.model_fields[part].annotation
        elif "kind" in annotation.model_fields and part in get_args(
            annotation.model_fields["kind"].annotation
        ):
            yield annotation  # the tag of a union, not a field
    elif origin in (dict, Mapping):
        yield get_args(annotation)[1]
    elif origin in (list, Sequence):
        yield get_args(annotation)[0]
    elif origin in (Annotated, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _descend(inner, part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _models(inner)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
