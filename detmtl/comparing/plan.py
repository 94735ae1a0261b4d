"""Which runs a comparison consists of: cells x arms x seeds, each run once however many need it."""

import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detmtl.comparing.keys import digest, makes_silver, run_key
from detmtl.comparing.settings import TEACHER, Changes, CompareSettings, SplitSettings, base_config
from detmtl.config import RunSettings, settings_from
from detmtl.config_parts import GoldTeacher
from detmtl.run_teachers import teacher_settings
from detmtl.structures.errors import InputError
from detmtl.yaml_settings import override, read_yaml


@dataclass(frozen=True)
class Cell:
    """One combination of the grid and the curve.

    Attributes:
        name: for people; "" where there is only one.
        axes: axis -> name.
        x: place on the horizontal axis, or None.
        changes: of its settings.
    """

    name: str
    axes: Mapping[str, str]
    x: float | None
    changes: Changes


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        key: its name, a hash of all that decides its result.
        kind: a training, a teacher that is only scored, or a probe: heads that learn on a frozen trunk.
        settings: of the run.
        steps: of its own training.
        teacher: key of the run that trains its teacher, or None.
        trunk: key of the run whose trunk a probe has; None: the trunk as it starts.
    """

    key: str
    kind: Literal["train", "teacher", "probe"]
    settings: RunSettings
    steps: int
    teacher: str | None = None
    trunk: str | None = None

    @property
    def before(self) -> list[str]:
        """Returns the keys of the runs that come before this one."""
        return [key for key in (self.teacher, self.trunk) if key is not None]


@dataclass(frozen=True)
class Plan:
    """All runs, and who needs them.

    Attributes:
        cells: in order.
        runs: key -> run.
        at: (cell's position, arm, seed) -> key.
    """

    cells: list[Cell]
    runs: dict[str, Run] = field(default_factory=dict)
    at: dict[tuple[int, str, int], str] = field(default_factory=dict)

    def names(self, key: str) -> str:
        """Returns for whom a run is, in words."""
        told = []
        for (cell, arm, seed), of in self.at.items():
            if of == key:
                where = self.cells[cell].name
                told.append(f"{arm}, seed {seed}" + (f" ({where})" if where else ""))
        more = f" and {len(told) - 1} more" if len(told) > 1 else ""
        return told[0] + more if told else "a teacher"


def cells_of(settings: CompareSettings) -> list[Cell]:
    """Returns every combination of the grid's axes and the curve's points."""
    axes = [[(axis, name) for name in names] for axis, names in settings.grid.items()]
    points = list(range(len(settings.points))) or [None]
    found = []
    for combination in itertools.product(*axes):
        for point in points:
            changes: Changes = {}
            for axis, name in combination:
                changes |= settings.grid[axis][name]
            words, x = [name for _, name in combination], None
            if point is not None:
                changes |= {name: values[point] for name, values in settings.curve.items()}
                x = float(settings.points[point])
                words.append(
                    f"{short_setting(next(iter(settings.curve)))} {settings.points[point]}"
                )
            found.append(Cell(", ".join(words), dict(combination), x, changes))
    return found


def short_setting(name: str) -> str:
    """Returns a setting's name without what every reader knows."""
    return name.removeprefix("data.sources.").removesuffix(".subset.count")


class Planner:
    """Turns cells, arms and seeds into settings of runs.

    Args:
        settings: of the comparison.
        path: its file.
        overrides: `a.b=value`, for all arms, after the file's own.
    """

    def __init__(self, settings: CompareSettings, path: Path, overrides: Sequence[str]) -> None:
        self.settings, self.path, self.overrides = settings, path, list(overrides)
        self._tree, self._lines = read_yaml(base_config(settings, path))

    def digest(self) -> str:
        """Returns a hash of the runs that are compared, by their settings but for the seeds and what no key
        knows: whatever else is set leaves results as they are."""
        keys = [
            [cell.name, arm, run_key(self.of_arm(cell, arm, None), {})]
            for cell in cells_of(self.settings)
            for arm in self.settings.arms
        ]
        return digest([sorted(keys), sorted(self.settings.seeded)])

    def of_arm(self, cell: Cell, arm: str, seed: int | None) -> RunSettings:
        """Returns the settings of one run; None: of none, with what seeds would set as it is otherwise.

        Raises:
            InputError: the arm's, the cell's or the base's settings are wrong.
        """
        changes = self.settings.arms[arm]
        common = [("set", self.settings.set), (f"cell '{cell.name}'", cell.changes)]
        own = [(f"arms.{arm}", changes)] if isinstance(changes, dict) else []
        tree, lines = self._changed([*common, *own])
        before, _ = self._changed(common)
        seeded = [] if seed is None else self.settings.seeded
        for name in seeded:
            if not _left_out(name, before, tree):
                put(tree, lines, name, seed, f"{self.path}: seeded:")
        put(tree, lines, "seed", seed or 0, f"{self.path}: seeded:")
        if self.settings.split is not None:
            cut(tree, self.settings.split, str(self.path))
        return settings_from(tree, lines, str(self.path))

    def _changed(self, layers: list[tuple[str, Changes]]) -> tuple[dict, dict[tuple, str]]:
        """Returns the base's plain settings with changes, and where each of them comes from."""
        tree, lines = copy.deepcopy(self._tree), dict(self._lines)
        for n, (where, changes) in enumerate(layers):
            for name, value in changes.items():
                put(tree, lines, name, value, f"{self.path}: {where}:")
            if n == 0:
                for text in self.overrides:
                    override(tree, lines, text)
        return tree, lines


def _left_out(name: str, before: dict, tree: dict) -> bool:
    """Returns whether an arm has left out the section in which a setting stands before its changes."""
    way = name.strip().split(".")[:-1]
    return _sections(tree, way) < _sections(before, way)


def _sections(tree: Any, way: Sequence[str]) -> int:
    """Returns how many names of a way lead to a section each, from the first on."""
    for n, key in enumerate(way):
        if isinstance(tree, list):
            tree = tree[int(key)] if key.isdigit() and int(key) < len(tree) else None
        else:
            tree = tree.get(key)
        if not isinstance(tree, dict | list):
            return n
    return len(way)


def put(tree: dict, lines: dict[tuple, str], name: str, value: Any, where: str) -> None:
    """Changes one setting of a tree as `override` does, to a value as it is: made text and read again, an
    emoji would be two halves and inf a word.

    Raises:
        InputError: there is nothing at that place.
    """
    override(tree, lines, f"{name}={json.dumps(value, default=str)}", where)  # makes the way there
    *way, last = name.strip().split(".")
    at: Any = tree
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    # a copy: what later layers change in it must not change the comparison's own settings
    at[int(last) if isinstance(at, list) else last] = copy.deepcopy(value)


def cut(tree: dict[str, Any], split: SplitSettings, where: str) -> None:
    """Applies a split to plain settings of a run.

    Raises:
        InputError: it is not clear which source is to be cut, or there is a test source already.
    """
    data = _mapping(tree, "data")
    sources = _mapping(data, "sources")
    labelled = [
        name
        for name, s in sources.items()
        if isinstance(s, dict) and s.get("kind") != "folder" and s.get("grade", "gold") == "gold"
    ]
    if data.get("test"):
        raise InputError(f"{where}: split: the base config has data.test already; leave one out")
    if split.source is None and len(labelled) != 1:
        raise InputError(
            f"{where}: split: which source is to be cut? people labelled {', '.join(labelled) or 'none'}; "
            "name it in split.source"
        )
    name = split.source or labelled[0]
    if name not in labelled:
        raise InputError(
            f"{where}: split.source: '{name}' is no source with labels by people; there are "
            f"{', '.join(labelled)}"
        )
    first, second = split.train, split.train + split.audit
    pictures = sources[name].get("images")
    whole = {k: v for k, v in sources[name].items() if k != "subset"}
    for source in sources.values():
        if isinstance(source, dict) and source.get("images") == pictures:
            kept = _mapping(source, "subset")
            source["subset"] = {**kept, "part": [0.0, first], "seed": split.seed}
    data["val"] = {**whole, "subset": {"part": [first, second], "seed": split.seed}}
    data["test"] = {**whole, "subset": {"part": [second, 1.0], "seed": split.seed}}
    if isinstance(tree.get("silver"), dict):
        tree["silver"]["audit"] = "val"


def _mapping(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns what is there, or {} where that is no mapping: the settings' own check tells it."""
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def total_steps(settings: RunSettings) -> int:
    """Returns the optimizer steps behind a model's weights, those of a teacher it starts from included."""
    teacher = settings.silver.teacher if settings.silver and makes_silver(settings) else None
    before = 0
    if isinstance(teacher, GoldTeacher) and teacher.burn_in:
        before = teacher_settings(settings).train.steps
    return before + settings.train.steps


def effort(settings: RunSettings) -> tuple[int, int]:
    """Returns optimizer steps and pictures per step."""
    return total_steps(settings), settings.data.batch_size * settings.train.accumulate


def is_teacher(settings: CompareSettings, arm: str) -> bool:
    """Returns whether an arm is the teacher itself."""
    return settings.arms[arm] == TEACHER


def places(
    settings: CompareSettings, cells: list[Cell], arms: list[str], seeds: list[int]
) -> Iterator[tuple[int, str, int]]:
    """Yields (cell's position, arm, seed): seed by seed, so that an early report has all arms."""
    for seed in seeds:
        for i in range(len(cells)):
            for arm in arms:
                yield i, arm, seed
