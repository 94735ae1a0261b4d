"""What sums are divided by, in one process and in several."""

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from detmtl.losses.normalizer import normalizer, skip_normalizer
from detmtl.structures.sample import Batch

POSITIVES = torch.tensor([10, 30, 0, 5])
PRESENT = torch.tensor([True, True, True, False])
GROUPS = torch.tensor([0, 2, 2, 0])
WEIGHTS = torch.tensor([1.0, 0.5, 0.5, 1.0])
GRADES = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)


def _batch(rows):
    pictures = len(GROUPS[rows])
    return Batch(
        images=torch.zeros(pictures, 3, 8, 8, dtype=torch.uint8),
        sizes=torch.full((pictures, 2), 8),
        labels={},
        infos=(),
        groups=GROUPS[rows],
        weights=WEIGHTS[rows],
        grades=GRADES[rows],
    )


ALL = slice(None)


def test_source():
    factor = normalizer("source", POSITIVES, PRESENT, _batch(ALL))
    torch.testing.assert_close(factor, torch.tensor([0.5 / 10, 0.5 / 30, 0.5 / 30, 0]))


def test_pictures_with_few_silver_boxes_count_no_more_than_gold_ones():
    few = torch.tensor([10, 1, 0, 5])
    factor = normalizer("source", few, PRESENT, _batch(ALL))
    torch.testing.assert_close(factor, torch.tensor([0.5 / 10, 0.5 / 20, 0.5 / 20, 0]))
    none = torch.tensor([10, 0, 0, 5])
    torch.testing.assert_close(normalizer("source", none, PRESENT, _batch(ALL)), factor)


def test_without_gold_in_the_batch_its_own_positives_count():
    factor = normalizer("source", POSITIVES[1:3], PRESENT[1:3], _batch(slice(1, 3)))
    torch.testing.assert_close(factor, torch.tensor([1 / 30, 1 / 30]))


def test_batch():
    factor = normalizer("batch", POSITIVES, PRESENT, _batch(ALL))
    # mean weight of the three present pictures 2/3, so weights 1.5, .75, .75
    divisor = 1.5 * 10 + 0.75 * 30
    torch.testing.assert_close(factor, torch.tensor([1.5, 0.75, 0.75, 0]) / divisor)


def test_image():
    factor = normalizer("image", POSITIVES, PRESENT, _batch(ALL))
    torch.testing.assert_close(factor, torch.tensor([0.5 / 10, 0.25 / 30, 0.25, 0]))


@pytest.mark.parametrize("kind", ["source", "batch", "image"])
def test_nobody_present_is_finite(kind):
    assert (normalizer(kind, POSITIVES, torch.zeros(4).bool(), _batch(ALL)) == 0).all()


def _of_rank(rank, folder):
    """Rank 0 has pictures 0 and 1, rank 1 has 2 and 3, rank 2 nothing that is labelled."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    rows = slice(2 * rank, 2 * rank + 2)
    found = []
    for kind in ("source", "batch", "image"):
        if rank == 2:
            skip_normalizer(_batch(slice(0, 2)))
        else:
            found.append(normalizer(kind, POSITIVES[rows], PRESENT[rows], _batch(rows)))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_processes_share_their_sums(tmp_path):
    multiprocessing.start_processes(_of_rank, (str(tmp_path),), nprocs=3, start_method="fork")
    first, second = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    for i, kind in enumerate(("source", "batch", "image")):
        alone = normalizer(kind, POSITIVES, PRESENT, _batch(ALL))
        # Gradients are divided by the number of processes afterwards.
        torch.testing.assert_close(torch.cat([first[i], second[i]]) / 3, alone)
