"""What sums of losses are divided by, so that neither crowds of boxes nor silver drown the rest.

Letters: B pictures, S slots for sources.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detmtl.structures.labels import Grade
from detmtl.structures.processes import summed, world_size
from detmtl.structures.sample import Batch

Normalizer = Literal["source", "batch", "image", "ema"]
OfBatch = Literal["source", "batch", "image"]
"""Kinds that need no memory of earlier batches, for tasks that keep none. "ema" steadies the few positive
anchors of a batch; pixels, tags and labelled boxes are counted as they are."""

SOURCES = 256
"""Most sources of a mix. Sums per source have a fixed number of slots, so that processes whose
batches hold different sources can add them without asking each other which."""


COLUMNS = 6
"""Sums of each source."""

DECAY = 0.99
"""Of what is remembered of earlier batches: about the last hundred with such pictures count."""

START, MOMENTUM = 100.0, 0.9
"""Of the moving average of a batch's positives, kind "ema": detectron2's numbers."""


class Density(nn.Module):
    """How many positives a picture has, over the batches so far: of each source, of gold, of all.

    Its buffer travels in checkpoints, and is the same in every process, since it is made of sums over
    all of them.
    """

    seen: Tensor
    steady: Tensor | None

    def __init__(self, steady: bool = False) -> None:
        """Starts having seen nothing.

        Args:
            steady: whether it keeps a moving average of the batches' positives, for the kind "ema".
        """
        super().__init__()
        self.register_buffer("seen", torch.zeros(SOURCES + 2, 2))
        self.register_buffer("steady", torch.tensor(START) if steady else None)

    @torch.no_grad()
    def renumber(self, before: Sequence[str], now: Sequence[str]) -> None:
        """Moves what is remembered of each source to the number that it has now.

        Args:
            before: names of the sources of the training that this comes from, in their order.
            now: those of the one that goes on.
        """
        moved = torch.zeros_like(self.seen)
        moved[SOURCES:] = self.seen[SOURCES:]  # of gold and of all
        for i, name in enumerate(now):
            if name in before:
                moved[i] = self.seen[before.index(name)]
        self.seen.copy_(moved)

    @torch.no_grad()
    def forward(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a batch and returns positives per picture: of each source (S,), 0 where it was never
        seen, and of gold, a scalar; while no gold was ever seen, that of all pictures.

        Args:
            sums: (S + 2, 2), of each source, of the batch's gold pictures, of all its pictures:
                positives and pictures.
        """
        there = sums[:, 1:] > 0  # batches without such pictures forget nothing
        self.seen.copy_(torch.where(there, DECAY * self.seen + sums, self.seen))
        return _densities(self.seen)

    @torch.no_grad()
    def smoothed(self, positives: Tensor, pictures: Tensor) -> Tensor:
        """Takes in a process's positives, a scalar, unless there was no picture, and returns their moving
        average."""
        assert self.steady is not None
        moved = MOMENTUM * self.steady + (1 - MOMENTUM) * positives.clamp(min=1)
        self.steady.copy_(torch.where(pictures > 0, moved, self.steady))
        return self.steady.clone()


def normalizer(
    kind: Normalizer,
    positives: Tensor,
    present: Tensor,
    batch: Batch,
    density: Density | None = None,
) -> Tensor:
    """Returns the factor (B,) float32 of each picture's summed loss; 0 where not present.

    With n the positives and w the source's weight of a picture, sums over present pictures of all
    processes:
    "source": (the source's sum of w / sum of w) / max(1, the source's sum of n), where a source's n
        is at least what its pictures usually have (but no more than this whole batch has per
        picture, so that one source alone is divided by its own n), and that of a silver source at
        least what as many gold pictures usually have. Thus many silver boxes cannot drown gold, and
        neither can the background of a source with few boxes, or with few of them in this batch,
        which divided by those few would count many times. What is usual `density` remembers;
    "batch": w' / max(1, sum of w' * n), w' being w divided by its mean;
    "image": w / sum of w / max(1, n);
    "ema": w' / (moving average of max(1, sum of w' * n), of one process), which `density` keeps.
    Of several processes each counts its own pictures alone; the factors are multiplied by the number
    of processes, since gradients are averaged over them.

    Positives count one each, whatever the weights of their boxes: divided by their weights, boxes
    of little weight would raise the negatives' loss, and would themselves not weigh less.

    Args:
        kind: which one.
        positives: (B,) number of positive anchors of each picture.
        present: (B,) bool, pictures that are labelled for the task.
        batch: the pictures' sources and weights.
        density: of the batches before, which takes in this one; None: this batch counts alone.
    """
    n, w = positives.float() * present, batch.weights * present
    gold = present * (batch.grades == Grade.GOLD)
    table = torch.stack([n, w, w * n, present.float(), gold.float(), gold * n], dim=1)
    sums = summed(torch.zeros(SOURCES, COLUMNS, device=n.device).index_add_(0, batch.groups, table))
    total, weight, weighted, pictures, _, _ = sums.sum(0)
    weight = weight.clamp(min=torch.finfo(weight.dtype).tiny)
    # whatever the kind: a process that skips does not know it
    usual, of_gold = (_densities if density is None else density)(_of_batch(sums))
    if kind == "source":
        least = torch.minimum(usual, total / pictures.clamp(min=1))
        least = torch.where(sums[:, 4] > 0, least, torch.maximum(least, of_gold)) * sums[:, 3]
        divisor = torch.maximum(sums[:, 0], least).clamp(min=1)
        factor = (sums[:, 1] / weight / divisor)[batch.groups]
    elif kind == "batch":
        factor = w * pictures / weight / (weighted * pictures / weight).clamp(min=1)
    elif kind == "ema":
        assert density is not None
        factor = w * pictures / weight / _smoothed(sums, density)
    else:
        factor = w / weight / n.clamp(min=1)
    return factor * present * world_size()


def skip_normalizer(batch: Batch, density: Density | None = None) -> None:
    """Takes part in the sums of `normalizer` for a process that has no labelled picture."""
    if world_size() > 1:
        sums = summed(torch.zeros(SOURCES, COLUMNS, device=batch.weights.device))
        if density is not None:
            density(_of_batch(sums))
            if density.steady is not None:
                _smoothed(sums, density)


def _smoothed(sums: Tensor, density: Density) -> Tensor:
    """Returns the moving average of the positives of all processes, a scalar."""
    _, weight, weighted, pictures, _, _ = sums.sum(0)
    weight = weight.clamp(min=torch.finfo(weight.dtype).tiny)
    return density.smoothed(weighted * pictures / weight / world_size(), pictures) * world_size()


def _of_batch(sums: Tensor) -> Tensor:
    """Returns positives and pictures (S + 2, 2) of each source, of gold and of all."""
    positives, _, _, pictures, gold_pictures, gold_positives = sums.sum(0)
    of_both = torch.stack([gold_positives, gold_pictures, positives, pictures]).view(2, 2)
    of_sources = torch.stack([sums[:, 0], sums[:, 3]], dim=1)  # a list as index would be waited for
    return torch.cat([of_sources, of_both])


def _densities(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns positives per picture, of each source (S,) and of gold (of all where there is no gold)."""
    ratio = seen[:, 0] / seen[:, 1].clamp(min=1)
    return ratio[:SOURCES], torch.where(seen[SOURCES, 1] > 0, ratio[SOURCES], ratio[SOURCES + 1])
