"""Pictures to labels, with a checkpoint or with an exported file.

Letters: H and W pixels, N boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from detmtl.data.fit import InputSettings, fit
from detmtl.engine.precision import Computing, Precision, dtype_of
from detmtl.inference.detector import check_images, in_original, of_one_size, pad_images
from detmtl.inference.file_tasks import FileTasks, farthest
from detmtl.inference.frozen import compiled
from detmtl.inference.graph_predictor import GraphPredictor, load_graph
from detmtl.inference.torchscript import load_torchscript
from detmtl.inference.trust import refuse_foreign
from detmtl.models.backbone import FAILURES
from detmtl.models.decoding import least_logit
from detmtl.structures.checkpoint import load_weights, read_model, weights_of
from detmtl.structures.errors import InputError
from detmtl.structures.exported import exported_format
from detmtl.structures.labels import Labels
from detmtl.structures.sample import DIVISOR
from detmtl.tasks.detection import DetectionTask, TestSettings
from detmtl.tasks.multitask import ModelSettings, MultiTask, build_model
from detmtl.tasks.saved import names_of, validated
from detmtl.tasks.task import Task, decode_all
from detmtl.tasks.tasks import TaskConfig


@dataclass(frozen=True)
class LoadedModel:
    """A trained model and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU, with the averaged (EMA) weights where there are some.
        class_names: names by class index.
        short, long: limits of the picture's sides, see `detmtl.data.fit`.
        settings: resolved settings of the run that trained it.
        searched: task -> those of its classes that somebody looked for in some picture of its training;
            or of that of the model that it started from; nothing else could be learned. It is not known of
            tasks whose classes are their own, and of files of earlier versions.
    """

    model: MultiTask
    class_names: tuple[str, ...]
    short: int
    long: int
    settings: Mapping[str, Any]
    searched: Mapping[str, Sequence[str]] = field(default_factory=dict)


class AnyPredictor(Protocol):
    """What finds objects in pictures: `Predictor`, `ScriptPredictor` or `GraphPredictor`.

    Attributes:
        class_names: of the boxes.
        names: task name -> names of its classes.
        kinds: task name -> what its labels are: `boxes`, `maps`, `tags` or `depth`. Of a task of one's own
            that has no exporter it is the kind that it learns from.
        describing: names of the tasks that say something of another one's boxes.
        farthest: task of depth -> meters beyond which it says nothing, where its settings tell that.
    """

    class_names: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    kinds: dict[str, str]
    describing: tuple[str, ...]
    farthest: dict[str, float]

    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Labels]]:
        """Returns per picture (3, H, W) uint8 RGB: task name -> labels in its own pixels."""
        ...

    def decoders(self) -> dict[str, Any]:
        """Returns the decoders of the detection tasks by name, whose settings may be changed."""
        ...


class Predictor:
    """Eager prediction with a loaded model.

    Args:
        loaded: from `load_checkpoint`; its model is moved to `device`.
        device: where the network runs.
        precision: of the network; scores and decoding are float32; see `detmtl.engine.precision`.
        compile: whether the network is compiled; see `detmtl.inference.frozen.compiled`.

    Raises:
        InputError: the device does not know the precision, or it is winograd and shall be compiled.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        compile: bool = False,
    ):
        self.device = torch.device(device)
        self.model = loaded.model.to(self.device).eval()
        self.class_names = loaded.class_names
        self.names = {
            name: tuple(getattr(task, "class_names", loaded.class_names))
            for name, task in self.model.tasks.items()
        }
        self.kinds = {name: kind_of(task) for name, task in self.tasks.items()}
        self.describing = tuple(n for n, task in self.tasks.items() if task.of is not None)
        self.farthest = farthest(loaded.settings, self.kinds)
        self.short, self.long = loaded.short, loaded.long
        self._computing = Computing(precision, self.device, fixed=True, compiled=compile)
        self._compiled = compiled(self.model, dtype_of(precision, self.device)) if compile else None

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Labels]]:
        """Returns per picture its labels by task name, in pixels of the picture as given.

        Args:
            images: (3, H, W) uint8 RGB each, of any sizes; those of one padded size go
                through the network together.

        Raises:
            ValueError: a picture has another shape or type.
            InputError: the backbone takes no pictures of such a size.
        """
        check_images(list(images))
        if not images:
            return []
        fitted = [fit(image.to(self.device), self.short, self.long) for image in images]
        results: list[dict[str, Labels]] = [{} for _ in images]
        for together in of_one_size(fitted, DIVISOR):
            found = self._predict_together([fitted[i] for i in together])
            for i, labels in zip(together, found, strict=True):
                before = (fitted[i].shape[1], fitted[i].shape[2])
                after = (images[i].shape[1], images[i].shape[2])
                results[i] = {n: in_original(x, before, after) for n, x in labels.items()}
        return results

    @property
    def tasks(self) -> dict[str, Task]:
        """The model's tasks by name."""
        return {n: task for n, task in self.model.tasks.items() if isinstance(task, Task)}

    def decoders(self) -> dict[str, Any]:
        """Returns the decoders of the detection tasks by name."""
        return {
            n: task.decoder for n, task in self.tasks.items() if isinstance(task, DetectionTask)
        }

    def _predict_together(self, fitted: list[Tensor]) -> list[dict[str, Labels]]:
        """Returns labels of pictures of one padded size, in their own pixels."""
        batch, sizes = pad_images(fitted, DIVISOR)
        try:
            outputs = self._outputs(batch)
        except torch.cuda.OutOfMemoryError:
            raise
        except FAILURES:
            height, width = batch.shape[-2:]
            if (why := self.model.backbone.misfit(height, width)) is None:
                raise
            raise InputError(
                f"the network takes no pictures that come to {height} x {width} pixels: {why}; the "
                "backbone may be one for pictures of one size"
            ) from None
        results: list[dict[str, Labels]] = [{} for _ in fitted]
        for name, found in decode_all(dict(self.model.tasks.items()), outputs, sizes).items():
            for i, labels in enumerate(found):
                results[i][name] = labels
        return results

    def _outputs(self, batch: Tensor) -> dict[str, list[Tensor]]:
        if self._compiled is not None:
            return self._compiled(batch)
        with self._computing():
            return self.model(batch)


class ScriptPredictor(FileTasks):
    """Prediction with a file written by `export_torchscript`.

    Args:
        path: the file.
        device: where it runs.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.module, about = load_torchscript(Path(path), self.device)
        super().__init__(about)

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Labels]]:
        """Returns per picture (3, H, W) uint8 RGB the file's tasks -> labels in its own pixels."""
        check_images(list(images))
        found = self.module([image.to(self.device) for image in images])
        return [self.labels(one) for one in found]

    def decoders(self) -> dict[str, Any]:
        """Returns the file's decoder by its task's name, if it has one."""
        return {} if self.task is None else {self.task: self.module.decoder}


def load_predictor(
    path: str | Path,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    compile: bool = False,
    trust: bool = False,
) -> AnyPredictor:
    """Returns a predictor for a checkpoint or an exported file, told by its content.

    An exported file carries its own precision. `trust`: see `load_checkpoint`.

    Raises:
        InputError: the file is neither, an exported one shall be compiled, or one of fixed shapes shall run
            on another device than a CPU.
    """
    path = Path(path)
    format = exported_format(path)
    if format is not None and compile:
        raise InputError(
            f"{path}: an exported file is not compiled; give the checkpoint (best.pt), or leave out "
            "--compile"
        )
    if format == "torchscript":
        return ScriptPredictor(path, device)
    if format is not None:
        if torch.device(device).type != "cpu":
            raise InputError(
                f"{path}: files of format {format} are run on a CPU here; leave out --device, or give "
                "best.pt or a TorchScript file"
            )
        return GraphPredictor(*load_graph(path, format))
    return Predictor(load_checkpoint(path, trust), device, precision, compile)


def change_test(predictor: AnyPredictor, values: Mapping[str, Any], where: str) -> None:
    """Changes which boxes a loaded predictor gives, in a checkpoint's model as in an exported file.

    Args:
        predictor: from `load_predictor`.
        values: some of `detmtl.tasks.detection.TestSettings`.
        where: what gave them, for errors.

    Raises:
        InputError: a name or a value is wrong, there is no detection task, or an exported file is too old
            to know a setting, or has it in its graph.
    """
    try:
        checked = TestSettings.model_validate(values).model_dump(include=set(values))
    except ValidationError as error:
        raise InputError(
            [f"{where}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        ) from None
    decoders = predictor.decoders().values()
    if values and not decoders:
        raise InputError(f"{where}: the model has no detection task")
    for decoder in decoders:
        fixed = getattr(decoder, "fixed", ())
        missing = [name for name in checked if name in fixed or not hasattr(decoder, name)]
        if missing:
            raise InputError(
                f"{where}: {', '.join(missing)}: this exported file has no such setting that can be "
                "changed; leave it out, or give the checkpoint (best.pt)"
            )
        for name, value in checked.items():
            setattr(decoder, name, value)
        if "score_threshold" in checked:
            decoder.least_logit = least_logit(checked["score_threshold"])


def load_checkpoint(path: str | Path, trust: bool = False) -> LoadedModel:
    """Builds the model of a checkpoint and fills in its weights.

    Args:
        path: of the file.
        trust: whether code outside of detmtl and timm may run that its settings name, such as a task of
            one's own.

    Raises:
        InputError: the file is missing, is no checkpoint, asks for other code, or its weights do not fit
            its settings.
    """
    path = Path(path)
    checkpoint = read_model(path)
    settings, class_names = checkpoint["settings"], tuple(checkpoint["classes"])
    if not trust:
        refuse_foreign(settings, path)
    model_settings = validated(ModelSettings, settings, "model", path)
    tasks = validated(dict[str, TaskConfig], settings, "tasks", path)
    size = validated(InputSettings, settings, "input", path)
    names = names_of(settings, class_names, path)
    model = build_model(
        _without_pretrained(model_settings), tasks, list(class_names), other_names=names
    )
    load_weights(model, weights_of(checkpoint), str(path))
    searched = checkpoint.get("searched", {})
    return LoadedModel(model.eval(), class_names, size.short, size.long, settings, searched)


def kind_of(task: Task) -> str:
    """Returns what a task's labels are; its exporter tells where it learns from labels of another kind."""
    exporter = task.exporter()
    return task.labels if exporter is None else exporter.kind


def _without_pretrained(settings: ModelSettings) -> ModelSettings:
    """The checkpoint has all weights: nothing is to be downloaded or read elsewhere."""
    backbone = settings.backbone.model_copy(update={"pretrained": False, "weights": None})
    return settings.model_copy(update={"backbone": backbone, "start": None})
