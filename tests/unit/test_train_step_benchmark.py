"""What the benchmark of the step does on a GPU alone: batches in the places of a recorded graph."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from networks import batch_of
from train_step import _copied, _fill


def test_batches_are_copied_and_filled_in():
    batch = batch_of(2, 3, 32, 32, 5)
    fresh, labels = _copied(batch), batch.labels["boxes"]
    assert labels.details is None and fresh.labels["boxes"].boxes is not labels.boxes
    batch.images.zero_()
    labels.boxes.zero_()
    _fill(batch, fresh)
    assert torch.equal(labels.boxes, fresh.labels["boxes"].boxes) and labels.boxes.any()
    assert torch.equal(batch.images, fresh.images)
    other = replace(fresh, labels={"boxes": replace(fresh.labels["boxes"], some_region=True)})
    with pytest.raises(AssertionError, match="some_region: the graph knows False"):
        _fill(batch, other)
