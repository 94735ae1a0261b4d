"""The settings of a transfer report: a run of several tasks, and what is asked about them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from detmtl.comparing.settings import Changes, ManyRuns, too_few
from detmtl.metrics.direction import lower_is_better
from detmtl.structures.settings import Settings
from detmtl.yaml_settings import checked, read_yaml


class MeasuredTask(Settings):
    """A task of the report; in YAML also its metric alone.

    Attributes:
        metric: the one number that counts, as in metrics.json.
        better: which way is better; None: as is known of the metric's name.
        without: changes of the runs that are without this task, such as {silver: null} where the
            teacher labels for it alone. Sources that label none of a run's tasks are left out anyway.
    """

    metric: str
    better: Literal["higher", "lower"] | None = None
    without: Changes = {}

    @property
    def sign(self) -> int:
        """Returns -1 where lower is better, else 1."""
        lower = lower_is_better(self.metric) if self.better is None else self.better == "lower"
        return -1 if lower else 1


class TransferSettings(ManyRuns):
    """Which tasks, and which questions; `base` is the config of a run of all tasks.

    Attributes:
        seeds: as of all comparisons; fewer than 3 tell next to nothing.
        tasks: those of the base config that the report is about, each with its metric; the base's other
            tasks are left out.
        target: the task whose result counts: pairs are then asked for what they do to it alone. A task that
            describes boxes (masks, keypoints, attributes) has no training without its detection task, which
            has to be the target then.
        variants: name -> changes: ways to share, say, each with baselines of its own; {}: the base as
            it is.
        pairs: trains every pair of tasks (with a target, every pair that it is in), for the affinity
            matrix, where there are more than two.
        noise: trains each pair once more with random labels of the second task, see
            `detmtl.tasks.noise`.
        overlap: trains a head for each task on the frozen trunk of each other one, whether pairs are trained
            or not; with a target, for each other task on the trunk of the target.
        wide: changes that widen the trunk: everything that is compared is then trained so too; {}: no.
        duplicate: from this share on a frozen trunk is said to solve the other task already.
        diagnose_every: how often gradients are looked at where tasks are together, in steps.
    """

    seeds: int | list[int] = 3
    tasks: dict[str, MeasuredTask] = Field(min_length=2)
    target: str | None = None
    variants: dict[str, Changes] = {}
    pairs: bool = True
    noise: bool = False
    overlap: bool = False
    wide: Changes = {}
    duplicate: Annotated[float, Field(gt=0, le=1)] = 0.9
    diagnose_every: Annotated[int, Field(ge=1)] | None = 50

    @field_validator("tasks", mode="before")
    @classmethod
    def _short(cls, tasks: object) -> object:
        """Takes `boxes: boxes/AP` for `boxes: {metric: boxes/AP}`."""
        if not isinstance(tasks, dict):
            return tasks
        return {k: {"metric": v} if isinstance(v, str) else v for k, v in tasks.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "TransferSettings":
        problems = [
            f"tasks.{name}.metric: '{task.metric}' is of another task; it begins with {name}/"
            for name, task in self.tasks.items()
            if not task.metric.startswith(f"{name}/")
        ]
        if self.target is not None and self.target not in self.tasks:
            problems.append(
                f"target: '{self.target}' is no task; tasks has {', '.join(self.tasks)}"
            )
        if self.noise and not self.pairs and len(self.tasks) > 2:
            problems.append(
                "noise: random labels are compared with pairs, and pairs: false leaves none out of "
                f"{len(self.tasks)} tasks; set pairs: true, or noise: false"
            )
        problems += too_few(self.resamples, len(self.questions()))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def all_variants(self) -> dict[str, Changes]:
        """Returns the variants, at least one; a single one has no name."""
        return self.variants or {"": {}}

    def groups(self) -> list[tuple[str, ...]]:
        """Returns which tasks are trained together, the group of all first."""
        names = list(self.tasks)
        found = [tuple(names)]
        if self.pairs:
            found += [
                (a, b)
                for i, a in enumerate(names)
                for b in names[i + 1 :]
                if self.target is None or self.target in (a, b)
            ]
        return list(dict.fromkeys(found))

    def questions(self) -> list[tuple[str, tuple[str, ...]]]:
        """Returns (task, the others that it is trained with) for each effect that is asked for."""
        return [
            (task, tuple(t for t in group if t != task))
            for group in self.groups()
            for task in group
            if self.target in (None, task) or len(group) > 2
        ]

    def overlaps(self) -> list[tuple[str, str]]:
        """Returns (task, other) for each task on whose frozen trunk a head for the other is tried."""
        names = list(self.tasks) if self.overlap else []
        return [
            pair
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            for pair in ((a, b), (b, a))
            if self.target in (None, pair[0])
        ]


def read_transfer(path: Path) -> TransferSettings:
    """Reads the settings of a transfer report.

    Raises:
        InputError: with every mistake in it, each with file and line.
    """
    tree, lines = read_yaml(path)
    return checked(TransferSettings, tree, lines, str(path))
