"""What a task is: head, loss, decoding and metric of one kind of label.

Letters: B pictures, C classes, L levels, A anchors per position, H and W positions of a level.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.structures.errors import InputError
from detmtl.structures.labels import Labels
from detmtl.structures.sample import DIVISOR, Batch, ImageInfo


class Metric(Protocol):
    """Collects predictions beside the truth and scores them.

    In a run of several processes each updates its own, then merges the states of all. `compute` may be
    called in another process, to which the metric is sent by pickle, unless a run's
    `train.score_in_background` is false: of its class there must be a module to import.
    """

    def update(
        self,
        predictions: Sequence[Any],
        truth: Sequence[Any],
        infos: Sequence[ImageInfo],
    ) -> None:
        """Adds pictures: predictions and truth, labels of the task's type in pixels of the original
        picture; a picture whose truth is None was not looked at and is left out."""
        ...

    def compute(self) -> dict[str, float]:
        """Returns numbers by name, the one that counts most first."""
        ...

    def state(self) -> Any:
        """Returns what was collected, picklable, for `merge` in another process."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was collected by the union of all processes' states, each picture once."""
        ...


@dataclass(frozen=True)
class Exporter:
    """How a task's part of an exported file gives its labels.

    Attributes:
        kind: what the labels are: "maps", (H, W) uint8 class of each pixel; "tags", (T,) float32
            probabilities; "depth", (H, W) float32 meters.
        decoder: compiles under TorchScript, and maps (outputs of the task: list[Tensor], sizes: (B, 2) int64
            of the pictures in the network's pixels, originals: (B, 2) int64, sizes as given) to a list
            of B tensors: the labels in pixels of the pictures as given. To those of maps B more may be
            added, (H, W) float32 in [0, 1]: how sure the model is of each pixel.
        whole: of maps and depth, for files of fixed shapes (ONNX, pt2), which hold none without it: outputs
            of one padded picture to what `decoder` gives, for all pixels, padding too, without a branch or a
            shape that depends on a value. Of tags the `decoder` itself must be so; both sizes are then those
            of the picture on its canvas.
    """

    kind: Literal["maps", "tags", "depth"]
    decoder: nn.Module
    whole: Callable[[list[Tensor]], list[Tensor]] | None = None


class Task(nn.Module, ABC):
    """One head on the shared features with all that belongs to it.

    A new task is one file: a subclass of this, and a settings class with a `kind` and a `build`.

    Attributes:
        name: the task's name in the settings, in outputs and in the names of losses and metrics.
        labels: the key of `Batch.labels` that it learns from.
        levels: names of the feature maps that `forward` takes, for example ("p3", "p4", "p5").
        class_names: of what `decode` gives; without it those of the boxes are shown.
        terms: names of all that `loss` may return, by which a weight of a term that there is not is told
            before the training; None: it is told when the task first has labels.
        class_layers: names of the layers whose outputs are one a class (of each anchor, where there are
            several) -> the key of the names of these classes, such as `boxes` or `maps`; {}: there is none.
            By it a run starts from another one's head with other classes (`model.start`); None: nobody
            knows, and a head starts afresh where the classes are others.
        of: the detection task whose boxes it describes, for a task about boxes (`tasks/box_task.py`): its
            `decode` takes them as a third argument, and its metric has `update_on_truth`.
    """

    name: str
    labels: str
    levels: tuple[str, ...]
    terms: tuple[str, ...] | None = None
    class_layers: Mapping[str, str] | None = None
    of: str | None = None

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the raw outputs, all that is exported; see the task for their meaning.

        Args:
            features: (B, channels, H, W) for each of `levels`.
        """

    @abstractmethod
    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns unweighted terms by name, float32 scalars; {} when no picture is labelled.

        Where they are sums over pictures, as a `LossTerms`, which tells each picture's part.
        Computed in float32 even where the caller's autocast is on, though `detmtl.engine.trainer` calls it
        outside of one: a loss in bfloat16 is wrong in a way that nothing tells.
        Never waits for the device. In a run of several processes each must call it in every step,
        with or without labelled pictures, since the normalizers are summed over the processes.

        Args:
            outputs: of `forward`, of any floating point type.
            batch: the pictures that led to them, on the same device.
        """

    @abstractmethod
    def decode(self, outputs: list[Tensor], sizes: Tensor) -> Sequence[Labels]:
        """Returns the predictions of B pictures, float32, in pixels of the network's picture.

        Args:
            outputs: of `forward`.
            sizes: (B, 2) true height and width of each picture within its padding.
        """

    @abstractmethod
    def metric(self) -> Metric:
        """Returns a new, empty metric for this task."""

    def exporter(self) -> Exporter | None:
        """Returns how an exported file gives this task's labels; None: not at all, unless it is a detection
        task or one about boxes, which are exported in a way of their own."""
        return None


def decode_all(
    tasks: Mapping[str, Any], outputs: Mapping[str, list[Tensor]], sizes: Tensor
) -> dict[str, Sequence[Labels]]:
    """Returns task name -> predictions of each picture, in the order of `tasks`; those that describe boxes
    get the boxes of their detection task.

    Args:
        tasks: name -> task. outputs: name -> its raw outputs.
        sizes: (B, 2), see `Task.decode`.

    Raises:
        InputError: a task gave no labels, or not one for each picture.
    """
    of = {name: getattr(task, "of", None) for name, task in tasks.items()}
    found = {n: task.decode(outputs[n], sizes) for n, task in tasks.items() if of[n] is None}
    for name, owner in of.items():
        if owner is not None:
            found[name] = tasks[name].decode(outputs[name], sizes, found[owner])
    problems = [
        f"tasks.{name}: its decode gave {_counted(labels)} for {len(sizes)} pictures; it must be a "
        "sequence of one for each"
        for name, labels in found.items()
        if not isinstance(labels, Sequence) or len(labels) != len(sizes)
    ]
    if problems:
        raise InputError(problems)
    return {name: found[name] for name in tasks}


def promises_broken(name: str, task: Any) -> list[str]:
    """Returns a sentence for each promise of `Task` that a task from outside of this package breaks, of those
    that would show only when it is scored or exported.

    Args:
        name: by which the settings know it.
    """
    if not isinstance(task, Task):
        return [
            f"tasks.{name}: `build` gave {type(task).__name__}, which is no detmtl.tasks.task.Task"
        ]
    problems = [
        f"tasks.{name}: its task has no `{part}`; see detmtl.tasks.task.Task"
        for part in ("name", "labels")
        if not isinstance(getattr(task, part, None), str)
    ]
    if not problems and task.name != name:
        problems.append(
            f"tasks.{name}: its task has the name {task.name!r}; give it that of `build`"
        )
    metric = task.metric()
    problems += [
        f"tasks.{name}: what its `metric` gives, {type(metric).__name__}, has no {part}(); see "
        "detmtl.tasks.task.Metric"
        for part in ("update", "compute", "state", "merge")
        if not callable(getattr(metric, part, None))
    ]
    return problems


def terms_of(name: str, task: Any, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
    """Returns a task's loss terms.

    Raises:
        InputError: they are not what `Task.loss` promises.
    """
    terms, listed = task.loss(outputs, batch), getattr(task, "terms", None)
    if not isinstance(terms, dict):
        raise InputError(
            f"tasks.{name}: its loss gave {type(terms).__name__}; it must be a dict of scalar tensors, {{}} "
            "where nothing is labelled"
        )
    problems = [
        f"tasks.{name}: its loss gave for '{term}' no scalar tensor but {_told(x)}"
        for term, x in terms.items()
        if not isinstance(x, Tensor) or x.dim() > 0
    ]
    problems += [
        f"tasks.{name}: its loss gave '{term}', and its `terms` are {', '.join(listed)}; name it there"
        for term in terms
        if listed is not None and term not in listed
    ]
    if problems:
        raise InputError(problems)
    return terms


def _counted(labels: Any) -> str:
    return str(len(labels)) if isinstance(labels, Sequence) else type(labels).__name__


def _told(x: Any) -> str:
    return f"one of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def fine_levels(name: str, at: str, strides: Sequence[int]) -> list[int]:
    """Returns the positions of the strides up to `DIVISOR`, those that a map of the picture is made of.

    Args:
        name: of the task.
        at: where it hangs, see `level_names`.
        strides: of all levels that `at` names.

    Raises:
        InputError: there is none.
    """
    fine = [i for i, stride in enumerate(strides) if stride <= DIVISOR]
    if not fine:
        raise InputError(
            f"tasks.{name}.at: {at} is at stride {', '.join(map(str, strides))}; the task needs a level at "
            f"a stride up to {DIVISOR}, such as p3 or c4, or fpn"
        )
    return fine


def at_size(values: Tensor, height: int, width: int) -> Tensor:
    """Returns a map (H, W) at another height and width, from the nearest pixels.

    Compiles under TorchScript.
    """
    if values.shape[0] == height and values.shape[1] == width:
        return values
    return F.interpolate(values[None, None], size=[height, width], mode="nearest-exact")[0, 0]


def level_names(at: str, strides: Sequence[int]) -> tuple[str, ...]:
    """Returns the names of the feature maps that a task takes.

    Args:
        at: where it hangs: `fpn` for the levels of the pyramid, or the name of one feature map.
        strides: pixels between the positions of each, a power of 2.
    """
    return tuple(f"p{s.bit_length() - 1}" for s in strides) if at == "fpn" else (at,)
