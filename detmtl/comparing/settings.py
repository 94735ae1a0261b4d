"""The settings of a comparison: a run's settings, and what its arms change in them."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from detmtl.comparing.statistics import resamples_for
from detmtl.config import find_config
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.yaml_settings import checked, read_yaml

Changes = dict[str, Any]
"""Dotted names of a run's settings -> values, as `--set` has them."""

TEACHER = "teacher"


class SplitSettings(Settings):
    """Cuts the only labelled source into three by the pictures' content hashes, once and for all.

    The first part trains (the source itself, and every other source of the same pictures), the second
    is `data.val` and audits the teacher, the third is `data.test`.

    Attributes:
        source: name of the source that is cut; None: the only one that people labelled.
        train, audit, test: shares, which add up to 1.
        seed: another seed, another cut.
    """

    source: str | None = None
    train: float = Field(default=0.6, gt=0, lt=1)
    audit: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> "SplitSettings":
        total = self.train + self.audit + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, audit and test add up to {total:.3f}; they must add up to 1")
        return self


class ManyRuns(Settings):
    """What all comparisons of runs say, whatever is compared.

    Attributes:
        title, note: for the report.
        base: the config of a run, as `train --config` takes it, or beside this file.
        set: changes for all runs.
        seeds: their number (0, 1, ...), or a list. The seed decides weights, order and augmentation.
        seeded: further settings that take the run's seed, such as `data.sources.gold.subset.seed`: then
            chance also decides which pictures are gold. A run that leaves out the section of one goes
            without it.
        resamples: of the bootstrap over pictures.
    """

    title: str | None = None
    note: str = ""
    base: str
    set: Changes = {}
    seeds: int | list[int] = 5
    seeded: list[str] = []
    resamples: int = Field(default=1000, ge=100)

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds: int | list[int]) -> int | list[int]:
        listed = list(range(seeds)) if isinstance(seeds, int) else seeds
        if not listed or min(listed) < 0 or len({*listed}) < len(listed):
            raise ValueError("at least one, none of them negative or twice")
        return seeds

    @property
    def all_seeds(self) -> list[int]:
        """Returns the seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class CompareSettings(ManyRuns):
    """Arms, seeds and cells of a comparison.

    Attributes:
        arms: name -> changes; or `teacher`: the teacher of the settings that all arms have in common,
            itself scored on the same pictures.
        baseline: the arm, or arms, that all others are compared with.
        ceiling: the arm that marks what is possible (all labels by people), if there is one: the report
            says how much of the way from the baseline to it each arm goes.
        metrics: as in metrics.json; the first decides the verdict on top.
        grid: axis -> name -> changes. Every combination is a cell with all arms and seeds of its own.
        curve: settings -> values, in step with each other: one more axis, whose first setting is the
            horizontal axis of a plot (the number of gold pictures, say) and has numbers.
        split: cuts one labelled source into train, audit and test; None: the base config has its own.
        equal_steps: refuses arms that make another number of optimizer steps, or of other batches.
        same_start: refuses arms whose network of one seed starts from other weights.
    """

    arms: dict[str, Changes | Literal["teacher"]] = Field(min_length=1)
    baseline: str | list[str]
    ceiling: str | None = None
    metrics: list[str] = Field(default=["boxes/AP", "boxes/AP50", "boxes/F1@.5"], min_length=1)
    grid: dict[str, dict[str, Changes]] = {}
    curve: dict[str, list[Any]] = {}
    split: SplitSettings | None = None
    equal_steps: bool = True
    same_start: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "CompareSettings":
        problems = [
            f"{what}: '{name}' is no arm; arms has {', '.join(self.arms)}"
            for what, names in (("baseline", self.baselines), ("ceiling", [self.ceiling]))
            for name in names
            if name is not None and name not in self.arms
        ]
        if {len(values) for values in self.curve.values()} - {len(self.points)}:
            problems.append("curve: its lists must have equal lengths, since they go in step")
        problems += self._no_axis()
        problems += too_few(self.resamples, len(self.arms) - 1)
        if self.split and any(name.endswith("subset.seed") for name in self.seeded):
            problems.append(
                "seeded: names a subset's seed, which split fixes; leave one of them out"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _no_axis(self) -> list[str]:
        """Returns what is wrong with the axes of cells: an empty one leaves no run to be made."""
        axes = [("grid", *axis) for axis in self.grid.items()]
        axes += [("curve", *axis) for axis in self.curve.items()]
        problems = [
            f"{kind}: {name}: is empty; give it a value at least, or leave it out"
            for kind, name, values in axes
            if not values
        ]
        odd = [v for v in self.points if isinstance(v, bool) or not isinstance(v, int | float)]
        if odd or not all(map(math.isfinite, self.points)):
            problems.append(
                f"curve: {next(iter(self.curve))}: is the horizontal axis of a plot, so its values are "
                f"numbers; found {', '.join(map(str, self.points))}. Put a setting that has numbers first, "
                "or make an axis of grid of this one"
            )
        return problems

    @property
    def baselines(self) -> list[str]:
        """Returns the names of the baselines."""
        return [self.baseline] if isinstance(self.baseline, str) else self.baseline

    @property
    def points(self) -> list[Any]:
        """Returns the values of the curve's horizontal axis; [] without a curve."""
        return next(iter(self.curve.values()), [])


def too_few(resamples: int, comparisons: int) -> list[str]:
    """Returns what is wrong with a number of resamples that K differences are to be judged by."""
    if resamples >= (wanted := resamples_for(comparisons)):
        return []
    return [
        f"resamples: {resamples} are too few to find any of {comparisons} differences; take at least {wanted}"
    ]


def read_compare(path: Path) -> CompareSettings:
    """Reads a comparison's settings.

    Raises:
        InputError: with every mistake in it, each with file and line.
    """
    tree, lines = read_yaml(path)
    return checked(CompareSettings, tree, lines, str(path))


def base_config(settings: CompareSettings, path: Path) -> Path:
    """Returns the file of the base config: beside the comparison's, or where `--config` looks."""
    beside = [path.parent / settings.base, path.parent / f"{settings.base}.yaml"]
    for file in beside:
        if file.is_file():
            return file
    try:
        return find_config(settings.base)
    except InputError as error:
        problem = str(error).removeprefix("--config ")
        raise InputError(f"{path}: base: {problem}") from None


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds of `5` (a count), `0-4` or `0,3,7`.

    Raises:
        InputError: it is none of these.
    """
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            seeds = list(range(first, last + 1))
        elif "," in text:
            seeds = [int(part) for part in text.split(",")]
        else:
            seeds = list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise InputError(f"--seeds {text}: must be a count (5), a range (0-4) or a list (0,3,7)")
    return seeds


def chosen(arms: Collection[str], only: Sequence[str]) -> set[str]:
    """Returns the names of the arms to run: those of `only`, or all.

    Raises:
        InputError: one of them is no arm.
    """
    for name in only:
        if name not in arms:
            raise InputError(f"--only {name}: is no arm; there are {'; '.join(arms)}")
    return {*(only or arms)}
