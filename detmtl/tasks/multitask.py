"""The whole network: one backbone and one pyramid, and the tasks that hang on them.

Letters: B pictures, H and W pixels.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from detmtl.models.backbone import STRIDES, Backbone, BackboneSettings
from detmtl.models.fpn import FPN, FPNSettings
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.starts import StartSettings
from detmtl.tasks.task import Task

Sharing = Literal["hard", "selective"]
HeadCall = Callable[[list[Tensor]], list[Tensor]]

_TAKEN = {
    "teacher": "is where the scores of a teacher stand that a run trains itself",
    "drawn": "is where predict puts its drawings",
    "backbone": "is what all tasks share",
    "fpn": "is what all tasks share",
}
"""Names of tasks that mean something else in settings or in the files of a run."""


class ModelSettings(Settings):
    """What all tasks share.

    Attributes:
        backbone: see `BackboneSettings`.
        fpn: see `FPNSettings`.
        sharing: what a task that hangs on one level of the pyramid trains. `hard`: all that the level
            is made of, coarser levels and the backbone's last stages included. `selective`: only the
            layers below its place, which are the backbone up to the stage of the level's stride and
            the level's own two convolutions. Elsewhere the two are the same: below a backbone's stage
            there is nothing coarser, and below the whole pyramid there is everything.
        start: weights of a whole model to start from, in place of the backbone's: torchvision's RetinaNet,
            or (`kind: checkpoint`) that of another run.
        frozen: what does not train: `backbone`, `fpn`, or names of tasks. What is above goes on learning
            through them.
    """

    backbone: BackboneSettings
    fpn: FPNSettings = FPNSettings()
    sharing: Sharing = "hard"
    start: StartSettings | None = None
    frozen: list[str] = []

    def problems(self, tasks: Collection[str]) -> list[str]:
        """Returns a sentence for each part of the settings that is none or that contradicts another.

        Args:
            tasks: names of the tasks.
        """
        parts, problems = ["backbone", "fpn", *tasks], []
        if self.start is not None and (self.backbone.pretrained or self.backbone.weights):
            problems.append(
                "model.backbone: has weights of its own, and model.start has them too; set "
                "model.backbone.pretrained: false and leave model.backbone.weights out"
            )
        problems += [
            f"model.frozen: there is no {name!r}; what can be frozen is {', '.join(parts)}"
            for name in self.frozen
            if name not in parts
        ]
        still = {*self.frozen} | ({"backbone"} if self.backbone.frozen_stages == 5 else set())
        if tasks and {*parts} <= still:
            problems.append("model.frozen: leaves nothing that trains; leave something out of it")
        return problems

    def known(
        self, task: str, searched: Collection[str], brought: Mapping[str, Collection[str]]
    ) -> set[str]:
        """Returns the classes of which a task can know something.

        Args:
            task: its name.
            searched: the classes that somebody looked for in what it is trained on.
            brought: see `MultiTask`.
        """
        return {*(() if task in self.frozen else searched), *brought.get(task, ())}


class BuildsTask(Protocol):
    """Settings of a task.

    They may have `at`, which says where the task hangs: `fpn`, the pyramid (as without it), or one
    feature map, such as p3 or c5; `labels`, the key of the labels that it learns from; `finds`, which labels
    its `decode` gives where these can become silver, boxes, maps or tags; `of`, the detection task whose
    boxes it describes; and `vocabulary`, the key of names that `build` gets as `names`.
    """

    def build(
        self,
        name: str,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> Task:
        """Makes the task for feature maps of these channels and strides: those that it hangs on."""
        ...


class Normalize(nn.Module):
    """Pictures 0..255 to what the backbone expects; stays in float32 whatever the network becomes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        """Takes mean and standard deviation of red, green and blue, in 0..1."""
        super().__init__()
        center, spread = torch.tensor(mean).double(), torch.tensor(std).double()
        scale, shift = 1 / (255 * spread), -center / spread
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1))
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Returns (image / 255 - mean) / std, float32, in the memory format of the images.

        Two in-place passes over planes. One addcmul is slower, since it is not vectorized when it
        broadcasts, and so is channels_last, whose innermost dimension is 3; the first convolution
        turns the layout faster.

        Args:
            images: (B, 3, H, W) RGB, 0..255, uint8 or float.
        """
        return images.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def _apply(self, fn, recurse: bool = True):
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


class MultiTask(nn.Module):
    """Pictures to the raw outputs of every task.

    Attributes:
        backbone, fpn: shared by all tasks. Their levels are named c3, c4, c5 (and c2, where a task hangs
            there) and p3 .. p7, by the exponent of the stride; a task gets those in its `levels`.
        tasks: name -> task.
        places: task name -> names of the features that it takes, as `features` gives them.
        started: a sentence on the detector that the weights started from; empty: there was none.
        brought: task name -> those of its classes of which the weights that it started from may know
            something; no entry of tasks that started afresh.
    """

    def __init__(
        self, backbone: Backbone, fpn: FPN, tasks: Mapping[str, Task], sharing: Sharing = "hard"
    ):
        """Takes the parts; `build_model` makes them from settings.

        Args:
            sharing: see `ModelSettings`.

        Raises:
            InputError: a task hangs on a level that there is not.
        """
        super().__init__()
        self.started = ""
        self.brought: Mapping[str, Collection[str]] = {}
        self._still: list[nn.Module] = []
        self.normalize = Normalize(backbone.mean, backbone.std)
        self.backbone = backbone
        self.fpn = fpn
        self.tasks = nn.ModuleDict(tasks)
        pyramid = tuple(_pyramid(fpn))
        self._names = (*_stages(backbone), *pyramid)
        # A task that names no levels hangs on the whole pyramid.
        self.places = {name: getattr(task, "levels", pyramid) for name, task in tasks.items()}
        problems = [
            f"tasks.{name}: there is no level {level}; the network has {', '.join(self._names)}"
            for name, levels in self.places.items()
            for level in levels
            if level not in self._names
        ]
        if problems:
            raise InputError(problems)
        # levels of which a task sees a version whose gradient goes down, but not up the pyramid
        inner = pyramid[: len(fpn.laterals) - 1]
        self._alone = {
            name: levels[0]
            for name, levels in self.places.items()
            if sharing == "selective" and len(levels) == 1 and levels[0] in inner
        }
        self.places |= {name: (f"{level} alone",) for name, level in self._alone.items()}

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Returns for each task, by name, what its `forward` returns.

        Args:
            images: (B, 3, H, W) RGB, 0..255, uint8 or float; H and W multiples of 32.
        """
        return self.heads(self.features(images))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the feature maps that the tasks share, by name; see `forward`.

        With `sharing: selective` there is beside a level, as `p3`, also `p3 alone`, of the same values but
        another gradient.
        """
        images = self.normalize(images).to(next(self.backbone.parameters()).dtype)
        stages = self.backbone(images)
        features = stages[-len(self.fpn.laterals) :]
        merged = self.fpn.merged(features)
        named = dict(zip(self._names, [*stages, *self.fpn.levels(features, merged)], strict=True))
        first = len(stages)
        for level in dict.fromkeys(self._alone.values()):
            alone = named[level]
            if torch.is_grad_enabled():  # else the two are the same, and one is enough
                alone = self.fpn.alone(features, merged, self._names.index(level) - first)
            named[f"{level} alone"] = alone
        return named

    def heads(
        self, features: Mapping[str, Tensor], tasks: Mapping[str, HeadCall] | None = None
    ) -> dict[str, list[Tensor]]:
        """Returns for each task what its `forward` makes of what `features` gives.

        Args:
            tasks: name -> what is called in the task's place; None: the task itself.
        """
        return {
            name: task([features[level] for level in self.places[name]])
            for name, task in (self.tasks if tasks is None else tasks).items()
        }

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of backbone and pyramid that train, in a fixed order."""
        both = [*self.backbone.parameters(), *self.fpn.parameters()]
        return [p for p in both if p.requires_grad]

    def stages(self) -> dict[str, list[nn.Parameter]]:
        """Returns the shared parameters that train by where they are: the backbone's stages, c1 (stride
        2) and so on, and `fpn`, whose finest output, where tasks mostly meet, comes last."""
        parts = [self.fpn.extras, self.fpn.laterals, *reversed(self.fpn.outputs)]
        fpn = [p for part in parts for p in part.parameters() if p.requires_grad]
        return {**self.backbone.stages(), **({"fpn": fpn} if fpn else {})}

    def own_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the tasks that train, in a fixed order."""
        return [p for p in self.tasks.parameters() if p.requires_grad]

    def freeze(self, parts: Sequence[str]) -> None:
        """Lets parts train no longer, batch norms' statistics included.

        Args:
            parts: `backbone`, `fpn`, or names of tasks.
        """
        places = {"backbone": self.backbone, "fpn": self.fpn, **self.tasks}
        for name in parts:
            if name == "backbone":
                self.backbone.freeze()
            places[name].requires_grad_(False)
        self._still = [
            module
            for name in parts
            for module in places[name].modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]

    def train(self, mode: bool = True) -> "MultiTask":
        """Sets the mode of all but the batch norms of frozen parts, whose statistics stay as they are."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self


def _levels(strides: list[int]) -> list[int]:
    return [stride.bit_length() - 1 for stride in strides]


def build_model(
    model: ModelSettings,
    tasks: Mapping[str, BuildsTask],
    class_names: Sequence[str],
    root: Path | None = None,
    other_names: Mapping[str, Sequence[str]] | None = None,
) -> MultiTask:
    """Makes the network with all its tasks.

    Args:
        model: what the tasks share.
        tasks: name -> settings of the task; at least one.
        class_names: of the boxes.
        root: folder that files of weights are relative to; None: the working directory.
        other_names: key of labels, such as `maps` -> names of its classes, where they are not those
            of the boxes.

    Raises:
        InputError: something in the settings doesn't fit; see `BackboneSettings.build` and
            `Start.fill`.
    """
    problems = misnamed(tasks) + model.problems(tasks)
    if not tasks:
        problems.append("tasks: none given; list at least one")
    if problems:
        raise InputError(problems)
    start = model.start.read(root) if model.start else None
    wanted = list(STRIDES)
    if any(getattr(settings, "at", "fpn") == "c2" for settings in tasks.values()):
        wanted = [4, *wanted]
    backbone = model.backbone.build(root, start.backbone if start else None, wanted)
    fpn = model.fpn.build(backbone.channels[-len(STRIDES) :], backbone.strides[-len(STRIDES) :])
    stages = dict(
        zip(_stages(backbone), zip(backbone.channels, backbone.strides, strict=True), strict=True)
    )
    pyramid = dict(zip(_pyramid(fpn), zip(fpn.channels, fpn.strides, strict=True), strict=True))
    others, built = other_names or {}, {}
    for name, settings in tasks.items():
        try:
            built[name] = _built(name, settings, stages, pyramid, class_names, others)
        except InputError as error:
            problems += error.problems
    if problems := problems or _homeless(built):
        raise InputError(problems)
    network = MultiTask(backbone, fpn, built, model.sharing)
    if start:
        names = {"boxes": class_names, **others}
        network.started, network.brought = start.fill(backbone, fpn, built, names)
    network.freeze(model.frozen)
    return network


def _built(
    name: str,
    settings: BuildsTask,
    stages: Mapping[str, tuple[int, int]],
    pyramid: Mapping[str, tuple[int, int]],
    class_names: Sequence[str],
    other_names: Mapping[str, Sequence[str]],
) -> Task:
    """Returns a task for the levels that it hangs on.

    Args:
        name, settings: of the task.
        stages, pyramid: name of a level -> channels and stride.
        class_names, other_names: see `build_model`.

    Raises:
        InputError: there is no such level, no name of what it learns, or its settings' `build` is another.
    """
    at = getattr(settings, "at", "fpn")
    levels = {**stages, **pyramid}
    maps = pyramid if at == "fpn" else {k: v for k, v in levels.items() if k == at}
    if not maps:
        raise InputError(
            f"tasks.{name}.at: there is no level {at}; the network has fpn, "
            f"{', '.join(dict.fromkeys(['c2', *levels]))}"
        )
    channels, strides = (list(column) for column in zip(*maps.values(), strict=True))
    names = other_names.get(getattr(settings, "labels", "boxes"), class_names)
    more: dict[str, Any] = {}
    if vocabulary := getattr(settings, "vocabulary", None):
        more["names"] = other_names.get(vocabulary, ())
        if not more["names"]:
            raise InputError(
                f"tasks.{name}: learns {vocabulary}, but data.details.{vocabulary} is not given"
            )
    given = (name, channels, strides, len(names), names)
    try:
        inspect.signature(settings.build).bind(*given, **more)
    except TypeError as error:
        raise InputError(
            f"tasks.{name}: build of its settings does not take name, channels, strides, num_classes, "
            f"class_names{' and names' * bool(more)}: {error}; see docs/add_a_task.md"
        ) from None
    return settings.build(*given, **more)


def misnamed(tasks: Iterable[str]) -> list[str]:
    """Returns a sentence for each name that no task can have."""
    problems = []
    for name in tasks:
        if not name.isprintable() or not name or "." in name or "/" in name:
            told = "may not be empty, nor have a dot, a slash or what cannot be printed"
            problems.append(f"tasks: {name!r}: a task's name {told}; take another")
        elif hasattr(nn.ModuleDict(), name):
            problems.append(
                f"tasks.{name}: torch's modules have something of that name; take another"
            )
        elif name in _TAKEN:
            problems.append(f"tasks.{name}: {_TAKEN[name]}; take another name")
    return problems


def _homeless(tasks: Mapping[str, Task]) -> list[str]:
    """Returns a sentence for each task about boxes whose detection task is not there."""
    others = [name for name, task in tasks.items() if getattr(task, "of", None) is None]
    wanted = {name: getattr(task, "of", None) for name, task in tasks.items()}
    return [
        f"tasks.{name}.of: '{of}' is no detection task; it names the one whose boxes are described, and "
        f"tasks has {', '.join(n for n in others if tasks[n].labels == tasks[name].labels) or 'none'}"
        for name, of in wanted.items()
        if of is not None and (of not in others or tasks[of].labels != tasks[name].labels)
    ]


def _stages(backbone: Backbone) -> list[str]:
    return [f"c{level}" for level in _levels(backbone.strides)]


def _pyramid(fpn: FPN) -> list[str]:
    return [f"p{level}" for level in _levels(fpn.strides)]
