"""What a run leaves behind, as the tables that it ends with."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

SHOWN = ("AP", "AP50", "AP75", "F1@.5", "mIoU", "accuracy", "mAP")
"""The numbers in the table at the end of a run; all others are in its files."""

OF_CLASSES = {"AP": "AP", "IoU": "IoU", "F1": "best F1", "score": "at a score from"}
"""The numbers of each class in the tables at the end of a run, and their columns."""

MOST_CLASSES = 20
"""A task with more has no such table."""


@dataclass(frozen=True)
class Summary:
    """What a run leaves behind.

    Attributes:
        metrics: final scores: `task/metric` of the student, `teacher/task/metric` of a teacher that
            the run trained.
        files: what -> path.
        scored_on: `test` or `val`.
        trained_on: `gold`, `silver` or `electrum`.
    """

    metrics: Mapping[str, float]
    files: Mapping[str, Path]
    scored_on: str
    trained_on: str

    def tables(self) -> list[Table]:
        """Returns the table of scores, and those of the classes of each task."""
        scores = Table(title=f"Scores on {self.scored_on}", title_justify="left")
        by_task: dict[str, list[str]] = {}  # numbers of a task as a whole, none of a class
        for task, name in (k.split("/") for k in self.metrics if k.count("/") == 1):
            by_task.setdefault(task, []).append(name)
        models = {f"model ({self.trained_on})": ""}
        if any(k.startswith("teacher/") for k in self.metrics):
            models = {"teacher (gold alone)": "teacher/", **models}
        scores.add_column("task", overflow="fold")
        for column in ("score", *models):
            justify = "left" if column == "score" else "right"
            scores.add_column(column, justify=justify, overflow="fold")
        for task in sorted(by_task):
            # of a task that has none of the usual numbers the first, which is the one that counts
            for name in [n for n in SHOWN if n in by_task[task]] or by_task[task][:1]:
                found = [self.metrics.get(f"{of}{task}/{name}", math.nan) for of in models.values()]
                told = ["-" if value != value else f"{value:.3f}" for value in found]
                scores.add_row(escape(task), name, *told)
        return [scores, *self._of_classes()]

    def _of_classes(self) -> Iterator[Table]:
        """Yields a table for each task with classes, unless there are too many."""
        tasks: dict[str, dict[str, dict[str, float]]] = {}
        for key, value in self.metrics.items():
            if key.count("/") > 1 and not key.startswith("teacher/"):
                task, kind, name = key.split("/", 2)
                if kind in OF_CLASSES:
                    tasks.setdefault(task, {}).setdefault(name, {})[kind] = value
        for task, classes in sorted(tasks.items()):
            if len(classes) > MOST_CLASSES:
                continue
            title = escape(f"Classes of {task} on {self.scored_on}")
            table = Table(title=title, title_justify="left")
            table.add_column("class", overflow="fold")
            kinds = [k for k in OF_CLASSES if any(k in numbers for numbers in classes.values())]
            for kind in kinds:
                table.add_column(OF_CLASSES[kind], justify="right", overflow="fold")
            for name, numbers in classes.items():
                found = [numbers.get(kind, math.nan) for kind in kinds]
                told = ["-" if value != value else f"{value:.3f}" for value in found]
                table.add_row(escape(name), *told)
            yield table

    def unscored(self) -> str | None:
        """Returns a sentence on the classes that have no part in the scores; None: all have."""
        found = [
            f"'{name}' ({task})"
            for task, kind, name in (k.split("/", 2) for k in self.metrics if k.count("/") > 1)
            if kind in ("AP", "IoU") and math.isnan(self.metrics[f"{task}/{kind}/{name}"])
        ]
        if not found:
            return None
        return f"Without labels in {self.scored_on}, and so not in the means: {', '.join(found)}"
