"""A start from a checkpoint of another run: with other labels, other classes or further tasks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detmtl.losses.normalizer import Density
from detmtl.models.backbone import Backbone, BackboneWeights
from detmtl.models.fpn import FPN
from detmtl.models.torchvision_weights import class_rows, with_rows
from detmtl.structures.checkpoint import read_model, weights_of
from detmtl.structures.errors import InputError, first_few
from detmtl.structures.settings import Settings
from detmtl.tasks.noise import NoiseTask
from detmtl.tasks.saved import names_of
from detmtl.tasks.start import Start, misfits, told_rows
from detmtl.tasks.task import Task


class CheckpointStartSettings(Settings):
    """A checkpoint of another run that backbone, pyramid and the heads of tasks start from.

    A task starts from that run's task of its name; another one starts afresh. Other classes, sources, mixes
    and losses are no hindrance; networks of another shape are.

    Attributes:
        kind: checkpoint.
        path: best.pt or last.pt of that run.
        tasks: those that start from it; None: all of a name that both runs have.
        class_layer: rows of classes whose names are in both are taken ("by_name"), the others start
            from the prior; or all do ("fresh").
    """

    kind: Literal["checkpoint"]
    path: str
    tasks: list[str] | None = None
    class_layer: Literal["by_name", "fresh"] = "by_name"

    def read(self, root: Path | None = None) -> "CheckpointStart":
        """Reads the averaged weights, where there are some.

        Args:
            root: folder that `path` is relative to; None: the working directory.

        Raises:
            InputError: the file is missing or is no checkpoint of a run.
        """
        path = (root or Path()) / self.path
        checkpoint = read_model(path)
        settings = checkpoint["settings"]
        return CheckpointStart(
            weights_of(checkpoint),
            settings,
            names_of(settings, checkpoint["classes"], path),
            checkpoint.get("searched", {}),
            str(path),
            self.tasks,
            self.class_layer == "fresh",
        )


@dataclass(frozen=True, eq=False)
class CheckpointStart(Start):
    """Weights of a checkpoint, to be filled into a network.

    Attributes:
        weights: of the whole network.
        settings: of its run.
        names: key of labels -> names of its classes.
        searched: task -> the classes that somebody looked for in that run's training, as far as it tells.
        where: the file.
        tasks: that start from it; None: all of a name that both have.
        fresh: whether all classes start from the prior.
    """

    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    names: Mapping[str, Sequence[str]]
    searched: Mapping[str, Collection[str]]
    where: str
    tasks: Sequence[str] | None
    fresh: bool

    @property
    def backbone(self) -> BackboneWeights | None:
        """The backbone's, where none of its norms is folded: then they can be folded as the new run wants."""
        told = self._made_of("model", "backbone")
        if told.get("norm") != "train" or told.get("frozen_stages"):
            return None
        return BackboneWeights(self._part("backbone.network"), self.where)

    def fill(
        self,
        backbone: Backbone,
        fpn: FPN,
        tasks: Mapping[str, Task],
        names: Mapping[str, Sequence[str]],
    ) -> tuple[str, dict[str, list[str]]]:
        """See `Start.fill`; of a task of another kind, width or depth the misfit is told."""
        problems, told, known = self._other_colors(backbone), [], {}
        parts: list[tuple[str, nn.Module]] = [("fpn", fpn)]
        if self.backbone is None:
            parts.insert(0, ("backbone", backbone))
        for name, part in parts:
            hint = f"that run has model.{name}: {dict(self._made_of('model', name))}"
            if name in (self.settings.get("model") or {}).get("frozen", ()):
                hint += ", and in model.frozen it, which freezes norms"
            problems += misfits(part, self._part(name), f"model.{name}", self.where, hint)
        for name in self._chosen(tasks):
            task = tasks[name]
            if isinstance(task, NoiseTask):  # a control begins as what it stands for
                task = task.task
            given, sentence, classes = self._of_task(name, task, names)
            told.append(f"{name} ({sentence})")
            if given is not None:
                kind = self._made_of("tasks", name)
                shape = {k: kind[k] for k in ("kind", "head", "anchors", "at") if k in kind}
                hint = (
                    f"that run has tasks.{name}: {shape}; do as it does, give the task another name, or name "
                    "in model.start.tasks those that shall start from it"
                )
                problems += misfits(task, given, f"tasks.{name}", self.where, hint)
                searched = self.searched.get(name, classes)
                known[name] = [n for n in classes if n in searched]
        if problems:
            raise InputError(problems)
        fresh = [name for name in tasks if name not in self._chosen(tasks)]
        left = [name for name in self.settings.get("tasks", {}) if name not in tasks]
        told += [f"{first_few(fresh)} afresh"] * bool(fresh)
        sentence = ", ".join([f"Starting from {self.where}: backbone, pyramid", *told])
        return sentence + (f"; {first_few(left)} left out" if left else ""), known

    def _other_colors(self, backbone: Backbone) -> list[str]:
        """Returns a sentence if the network would see other colors than the weights were made for."""
        if not self._part("normalize"):
            return [f"{self.where}: normalize.scale is missing; give best.pt or last.pt of a run"]
        scale, shift = (self.weights[f"normalize.{k}"].flatten() for k in ("scale", "shift"))
        std = 1 / (255 * scale)
        theirs, ours = (
            (-shift * std, std),
            (torch.tensor(backbone.mean), torch.tensor(backbone.std)),
        )
        if all(torch.allclose(a, b, atol=1e-4) for a, b in zip(theirs, ours, strict=True)):
            return []
        (mean, std), own = (
            [[round(v, 4) for v in x.tolist()] for x in both] for both in (theirs, ours)
        )
        return [
            f"model.backbone: {self.where} was made for pictures of mean {mean} and std {std}, not "
            f"{own[0]} and {own[1]}; set mean and std to its"
        ]

    def _chosen(self, tasks: Mapping[str, Task]) -> list[str]:
        """Returns the names of the tasks that start from the checkpoint."""
        there = self.settings.get("tasks", {})
        if self.tasks is None:
            return [name for name in tasks if name in there]
        problems = [
            f"model.start.tasks: {where} no task {name!r}; it has {first_few(list(have)) or 'none'}"
            for name in self.tasks
            for where, have in ((f"{self.where} has", there), ("this run has", tasks))
            if name not in have
        ]
        if problems:
            raise InputError(problems)
        return list(dict.fromkeys(self.tasks))

    def _of_task(
        self, name: str, task: Task, names: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, Tensor] | None, str, Sequence[str]]:
        """Returns what a task starts from, None where that is nothing, what became of its classes, and those
        that have a row in the file.

        Raises:
            InputError: the task names class layers that it does not have.
        """
        own, theirs = task.state_dict(), self._part(f"tasks.{name}")
        # what the normalizer remembers is of that run's sources
        memory = tuple(f"{n}." for n, m in task.named_modules() if isinstance(m, Density))
        given = {k: v for k, v in theirs.items() if not (memory and k.startswith(memory))}
        given |= {k: v for k, v in own.items() if memory and k.startswith(memory)}
        if task.class_layers is None:
            before, now = (tuple(of.get(task.labels, ())) for of in (self.names, names))
            if not self.fresh and before == now:
                return given, "whole", now
            return None, "fresh, since it does not tell which of its layers are of classes", ()
        sentences, classes = [], dict[str, None]()
        for layer, key in task.class_layers.items():
            before, now = self.names.get(key, ()), names.get(key, ())
            if not now or f"{layer}.weight" not in own:
                raise InputError(
                    f"tasks.{name}: its class_layers say '{layer}' is of {key}; the first has to be a layer "
                    f"of the task, the second one of {', '.join(k for k, n in names.items() if n)}"
                )
            rows = [-1] * len(now) if self.fresh else class_rows(before, now)
            sentences.append("class layer fresh" if self.fresh else told_rows(now, rows))
            classes |= {n: None for n, row in zip(now, rows, strict=True) if row >= 0}
            for part in (f"{layer}.weight", f"{layer}.bias"):
                mine, other = own.get(part), given.get(part)
                if mine is None or other is None or mine.shape[1:] != other.shape[1:]:
                    continue  # told with what else doesn't fit
                times, rest = divmod(len(mine), len(now))
                if not rest and before and len(other) == times * len(before):
                    given[part] = with_rows(mine, other, rows, times)
        return given, "; ".join(sentences) or "whole", list(classes)

    def _made_of(self, section: str, name: str) -> Mapping[str, Any]:
        """Returns the settings of a part; those of a backbone tell how its norms are in the file."""
        whole = self.settings.get(section) or {}
        own = whole.get(name) or {}
        frozen = section == "model" and name == "backbone" and name in whole.get("frozen", ())
        return {**own, "norm": "frozen"} if frozen else own

    def _part(self, part: str) -> dict[str, Tensor]:
        prefix = f"{part}."
        found = {k: v for k, v in self.weights.items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): v for k, v in found.items()}
