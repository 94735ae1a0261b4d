"""Scores a model on labelled pictures."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from detmtl.engine.precision import Precision
from detmtl.structures.labels import Labels
from detmtl.structures.sample import Batch, ImageInfo

Truth = Callable[[ImageInfo], Mapping[str, Labels]]
"""Task name -> labels of a picture in pixels of its file."""


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Precision = "auto",
    truth: Truth | None = None,
    detections: Path | None = None,
    category_ids: list[int] | None = None,
    on_batch: Callable[[Batch, Mapping[str, list[Labels]]], None] | None = None,
) -> dict[str, float]:
    """Returns `task/metric` -> value over all pictures of all ranks, the same on every rank.

    Predictions are mapped to pixels of the picture's file before they are scored.

    Args:
        model: `model(images) -> {task: outputs}` with `model.tasks`; its training mode is kept.
        batches: of this rank; ranks may have different numbers of them, a picture that several
            ranks have counts once.
        device: where the model is.
        precision: of the network; decoding is float32.
        truth: looks up labels in pixels of the file; None: the batch's labels, mapped back.
        detections: where to write the boxes of the first detection task as COCO results.
        category_ids: the COCO category id of each class in that file; None: class index + 1.
        on_batch: called with every batch and its predictions in the network's pixels, for progress
            bars and drawings.
    """
    raise NotImplementedError
