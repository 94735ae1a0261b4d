"""Batches for training and evaluation, prepared in worker processes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from detmtl.data.augment import Augment
from detmtl.data.mixture import Mixture
from detmtl.structures.sample import Batch

if TYPE_CHECKING:
    from detmtl.data.source import Source


def batches(
    mixture: Mixture,
    augment: Augment,
    start_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yields this rank's part of the batches of steps start_step, ..., steps - 1."""
    raise NotImplementedError


def evaluation_batches(
    source: "Source",
    short: int,
    long: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yields every picture that falls to this rank once, unchanged but for its size."""
    raise NotImplementedError
