"""The whole network: one backbone and one pyramid, and the tasks that hang on them.

Letters: B pictures, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detmtl.models.backbone import Backbone, BackboneSettings
from detmtl.models.fpn import FPN, FPNSettings
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.task import Task


class ModelSettings(Settings):
    """What all tasks share.

    Attributes:
        backbone: see `BackboneSettings`.
        fpn: see `FPNSettings`.
    """

    backbone: BackboneSettings
    fpn: FPNSettings = FPNSettings()


class BuildsTask(Protocol):
    """Settings of a task.

    They may have `at`, which says where the task hangs: `fpn`, the pyramid (as without it), or one
    feature map, such as p3 or c5; `labels`, the key of the labels that it learns from; `of`, the detection
    task whose boxes it describes; and `vocabulary`, the key of names that `build` gets as `names`.
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
        backbone, fpn: shared by all tasks. Their levels are named c3, c4, c5 and p3 .. p7, by the
            exponent of the stride; a task gets those in its `levels`.
        tasks: name -> task.
    """

    def __init__(self, backbone: Backbone, fpn: FPN, tasks: Mapping[str, Task]):
        """Takes the parts; `build_model` makes them from settings.

        Raises:
            InputError: a task hangs on a level that there is not.
        """
        super().__init__()
        self.normalize = Normalize(backbone.mean, backbone.std)
        self.backbone = backbone
        self.fpn = fpn
        self.tasks = nn.ModuleDict(tasks)
        pyramid = tuple(_pyramid(fpn))
        self._names = (*_stages(backbone), *pyramid)
        # A task that names no levels hangs on the whole pyramid.
        self._at = {name: getattr(task, "levels", pyramid) for name, task in tasks.items()}
        problems = [
            f"tasks.{name}: there is no level {level}; the network has {', '.join(self._names)}"
            for name, levels in self._at.items()
            for level in levels
            if level not in self._names
        ]
        if problems:
            raise InputError(problems)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Returns for each task, by name, what its `forward` returns.

        Args:
            images: (B, 3, H, W) RGB, 0..255, uint8 or float; H and W multiples of 32.
        """
        images = self.normalize(images).to(next(self.backbone.parameters()).dtype)
        features = self.backbone(images)
        named = dict(zip(self._names, [*features, *self.fpn(features)], strict=True))
        return {
            name: task([named[level] for level in self._at[name]])
            for name, task in self.tasks.items()
        }


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
        root: folder that the backbone's `weights` is relative to; None: the working directory.
        other_names: key of labels, such as `maps` -> names of its classes, where they are not those
            of the boxes.

    Raises:
        InputError: something in the settings doesn't fit; see `BackboneSettings.build`.
    """
    problems = [
        f"tasks.{name}: a task's name may not be empty nor have a dot or slash; take another"
        for name in tasks
        if not name or "." in name or "/" in name
    ]
    if not tasks:
        problems.append("tasks: none given; list at least one")
    if problems:
        raise InputError(problems)
    backbone = model.backbone.build(root)
    fpn = model.fpn.build(backbone.channels, backbone.strides)
    stages = dict(
        zip(_stages(backbone), zip(backbone.channels, backbone.strides, strict=True), strict=True)
    )
    pyramid = dict(zip(_pyramid(fpn), zip(fpn.channels, fpn.strides, strict=True), strict=True))
    built = {}
    for name, settings in tasks.items():
        at = getattr(settings, "at", "fpn")
        maps = pyramid if at == "fpn" else {k: v for k, v in (stages | pyramid).items() if k == at}
        if not maps:
            problems.append(
                f"tasks.{name}.at: there is no level {at}; the network has fpn, "
                f"{', '.join([*stages, *pyramid])}"
            )
            continue
        channels, strides = (list(column) for column in zip(*maps.values(), strict=True))
        names = (other_names or {}).get(getattr(settings, "labels", "boxes"), class_names)
        more: dict[str, Any] = {}
        if vocabulary := getattr(settings, "vocabulary", None):
            more["names"] = (other_names or {}).get(vocabulary, ())
            if not more["names"]:
                problems.append(
                    f"tasks.{name}: learns {vocabulary}, but data.details.{vocabulary} is not given"
                )
                continue
        built[name] = settings.build(name, channels, strides, len(names), names, **more)
    problems += _homeless(built)
    if problems:
        raise InputError(problems)
    return MultiTask(backbone, fpn, built)


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
