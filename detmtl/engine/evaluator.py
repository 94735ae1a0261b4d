"""Scores a model on labelled pictures."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detmtl.engine import distributed
from detmtl.engine.precision import Computing, Precision
from detmtl.metrics.picture_file import write_pictures
from detmtl.structures.boxes import xyxy_to_xywh
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Labels
from detmtl.structures.sample import Batch, ImageInfo
from detmtl.structures.whole import whole
from detmtl.tasks.task import Metric, decode_all

Truth = Callable[[ImageInfo], Mapping[str, Labels]]
"""Task name -> labels of a picture in pixels of its file."""


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Precision = "auto",
    truth: Truth | None = None,
    detections: Path | None = None,
    on_batch: Callable[[Batch, Mapping[str, list[Labels]]], None] | None = None,
    pictures: Path | None = None,
) -> dict[str, float]:
    """Returns `task/metric` -> value over all pictures of all ranks, the same on every rank.

    Arguments as of `collect`, and of `computed`.
    """
    return computed(
        collect(model, batches, device, precision, truth, detections, on_batch), pictures
    )


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Precision = "auto",
    truth: Truth | None = None,
    detections: Path | None = None,
    on_batch: Callable[[Batch, Mapping[str, list[Labels]]], None] | None = None,
) -> dict[str, Metric]:
    """Returns task name -> metric that has seen the predictions of this rank's pictures.

    Predictions are mapped to pixels of the picture's file.

    Args:
        model: `model(images) -> {task: outputs}` with `model.tasks`; its training mode is kept.
        batches: of this rank; ranks may have different numbers of them, a picture that several
            ranks have counts once.
        device: where the model is.
        precision: of the network; decoding is float32.
        truth: looks up labels in pixels of the file; None: the batch's labels, mapped back.
        detections: where to write the boxes of the first task that has any, see `coco_results`.
        on_batch: called with every batch and its predictions in the network's pixels, for progress
            bars and drawings.
    """
    tasks: dict[str, Any] = dict(model.tasks.items())  # type: ignore[union-attr, operator]
    metrics: dict[str, Any] = {name: task.metric() for name, task in tasks.items()}
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    boxes: str | None = None  # the task whose boxes are written
    computing = Computing(precision, device, fixed=True)
    with _evaluating(model):
        for batch in batches:
            outputs, sizes = forward(model, batch, device, computing)
            predictions = _on_cpu(decode_all(tasks, outputs, sizes))
            on_truth = _on_cpu(_describe_truth(tasks, outputs, sizes, batch))
            known = None if truth is None else [truth(info) for info in batch.infos]
            for name, task in tasks.items():
                found = _in_files(predictions[name], batch)
                true = _truth(batch, task.labels, known)
                metrics[name].update(found, true, batch.infos)
                if name in on_truth:
                    of_truth = _in_files(on_truth[name], batch)
                    metrics[name].update_on_truth(of_truth, true, batch.infos)
                if boxes is None and isinstance(found[0], BoxLabels):
                    boxes = name
                if detections is not None and name == boxes:
                    for labels, info in zip(found, batch.infos, strict=True):
                        assert isinstance(labels, BoxLabels)
                        results[info.source, info.id] = coco_results(
                            labels, info.id, task.class_names
                        )
            if on_batch is not None:
                on_batch(batch, predictions)
    if detections is not None:
        _write_results(detections, results)
    return metrics


@torch.no_grad()
def predict(
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    precision: Precision = "auto",
    tasks: Collection[str] | None = None,
) -> dict[str, list[Labels]]:
    """Returns task name -> predictions of each picture on the CPU, in the network's pixels.

    Args:
        tasks: names of those that are wanted, none of them about other tasks' boxes; None: all.
    """
    outputs, sizes = forward(model, batch, device, Computing(precision, device))
    wanted = {n: t for n, t in model.tasks.items() if tasks is None or n in tasks}  # type: ignore[union-attr, operator]
    return _on_cpu(decode_all(wanted, outputs, sizes))


@torch.no_grad()
def forward(
    model: nn.Module, batch: Batch, device: torch.device, computing: Computing
) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Returns the raw outputs of all tasks, and the pictures' true sizes (B, 2) on the device."""
    images = batch.images.to(device, non_blocking=True)
    sizes = batch.sizes.to(device, non_blocking=True)
    with computing():
        return model(images), sizes


def _describe_truth(
    tasks: Mapping[str, Any], outputs: Mapping[str, list[Tensor]], sizes: Tensor, batch: Batch
) -> dict[str, Sequence[Labels]]:
    """Returns what the tasks about boxes say of the boxes of truth, by name; tells a bad task from a bad
    detector. Pictures without truth have no boxes."""
    about = {n: t for n, t in tasks.items() if getattr(t, "of", None) and t.labels in batch.labels}
    found: dict[str, Sequence[Labels]] = {}
    for name, task in about.items():
        true = batch.labels[task.labels].unpadded(batch.sizes.tolist())
        none = BoxLabels.empty(len(task.class_names)).to(sizes.device)
        boxes = [none if x is None else x.to(sizes.device) for x in true]
        found[name] = task.decode(outputs[name], sizes, boxes)
    return found


def _on_cpu(predictions: Mapping[str, Sequence[Labels]]) -> dict[str, list[Labels]]:
    return {name: [labels.to("cpu") for labels in found] for name, found in predictions.items()}


def to_file_pixels(labels: Labels, size: Sequence[int], info: ImageInfo) -> Labels:
    """Returns labels of a picture that was scaled to `size` (height, width) in pixels of its file."""
    return labels.resized((size[0], size[1]), (info.height, info.width))


def coco_results(
    labels: BoxLabels, image_id: int, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns one picture's boxes as COCO result objects; category ids are class numbers + 1.

    Each has its class's name beside the id, so that `evaluate --detections` can tell an annotation file
    that numbers its categories in another way.
    """
    return [
        {
            "image_id": image_id,
            "category_id": c + 1,
            "category_name": class_names[c],
            "bbox": box,
            "score": score,
        }
        for box, c, score in zip(
            xyxy_to_xywh(labels.boxes.double()).tolist(),
            labels.classes.tolist(),
            labels.scores.tolist(),
            strict=True,
        )
    ]


@contextmanager
def _evaluating(model: nn.Module):
    """The model in evaluation mode, and afterwards in the mode of before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _truth(
    batch: Batch, labels: str, known: Sequence[Mapping[str, Labels]] | None
) -> list[Labels | None]:
    """Returns each picture's truth in pixels of its file."""
    if known is not None:
        return [of_picture.get(labels) for of_picture in known]
    if labels not in batch.labels:
        return [None] * len(batch)
    return _in_files(batch.labels[labels].unpadded(batch.sizes.tolist()), batch)


def _in_files(labels: Sequence[Labels | None], batch: Batch) -> list[Labels | None]:
    """Returns the labels of a batch's pictures in pixels of their files."""
    return [
        None if x is None else to_file_pixels(x, size, info)
        for x, size, info in zip(labels, batch.sizes.tolist(), batch.infos, strict=True)
    ]


def _write_results(path: Path, mine: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    everyones = distributed.gather_at_first(mine)
    if everyones is not None:
        pictures = {key: rows for of_rank in everyones for key, rows in of_rank.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part, open(part, "w") as file:
            json.dump([row for key in sorted(pictures) for row in pictures[key]], file)
    distributed.barrier()


def computed(metrics: Mapping[str, Metric], pictures: Path | None = None) -> dict[str, float]:
    """Returns all tasks' numbers, computed on rank 0 and sent to the others.

    Args:
        metrics: task name -> metric that has seen this rank's pictures.
        pictures: where to write what they have counted of each, see `write_pictures`.
    """
    states = gathered(metrics)

    def of_all() -> dict[str, float]:
        whole = merged(metrics, states)
        if pictures is not None:
            write_pictures(pictures, whole)
        return numbers(whole)

    return distributed.on_first(of_all)


def gathered(metrics: Mapping[str, Metric]) -> dict[str, list[Any] | None]:
    """Returns on rank 0 what each metric has collected on each rank; elsewhere None."""
    return {name: distributed.gather_at_first(m.state()) for name, m in metrics.items()}


def merged(
    metrics: Mapping[str, Metric], states: Mapping[str, list[Any] | None]
) -> Mapping[str, Metric]:
    """Returns rank 0's metrics with what those of all ranks have collected."""
    for name, metric in metrics.items():
        of_all = states[name]
        assert of_all is not None, "rank 0 alone"
        metric.merge(of_all)
    return metrics


def numbers(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Returns `task/metric` -> value of what the metrics have collected.

    Raises:
        InputError: a metric gave no numbers by name.
    """
    found = {name: metric.compute() for name, metric in metrics.items()}
    problems = [
        f"tasks.{name}: its metric's compute gave {type(values).__name__}; it must be a dict of numbers"
        for name, values in found.items()
        if not isinstance(values, Mapping)
    ]
    if problems:
        raise InputError(problems)
    return {
        f"{name}/{key}": float(v) for name, values in found.items() for key, v in values.items()
    }
