"""What sums are divided by, in one process and in several."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import distributed as dist
from torch import multiprocessing

from detmtl.losses.normalizer import (
    DECAY,
    MOMENTUM,
    SOURCES,
    START,
    Density,
    normalizer,
    skip_normalizer,
)
from detmtl.structures.sample import Batch
from detmtl.tasks.box_task import BoxTaskSettings
from detmtl.tasks.depth import DepthLossSettings
from detmtl.tasks.detection import LossSettings
from detmtl.tasks.semantic import SemanticLossSettings
from detmtl.tasks.tags import TagsConfig

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


def test_moving_average():
    density = Density(steady=True)
    batch = normalizer("batch", POSITIVES, PRESENT, _batch(ALL))
    positives = 1.5 * 10 + 0.75 * 30
    average = START
    for _ in range(2):
        average = MOMENTUM * average + (1 - MOMENTUM) * positives
        factor = normalizer("ema", POSITIVES, PRESENT, _batch(ALL), density)
        torch.testing.assert_close(factor, batch * positives / average)
    normalizer("ema", torch.zeros(4), PRESENT, _batch(ALL), density)  # counts as one positive
    average = MOMENTUM * average + (1 - MOMENTUM)
    torch.testing.assert_close(density.steady, torch.tensor(average))
    normalizer("ema", POSITIVES, torch.zeros(4).bool(), _batch(ALL), density)  # nobody looked
    torch.testing.assert_close(density.steady, torch.tensor(average))
    assert Density().steady is None and list(Density().state_dict()) == ["seen"]


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
    found, density = [], Density()
    for kind in ("source", "batch", "image"):
        if rank == 2:
            skip_normalizer(_batch(slice(0, 2)), density)
        else:
            found.append(normalizer(kind, POSITIVES[rows], PRESENT[rows], _batch(rows), density))
    steady = Density(steady=True)
    if rank == 2:
        skip_normalizer(_batch(slice(0, 2)), steady)
    else:
        factor = normalizer("ema", POSITIVES[rows], PRESENT[rows], _batch(rows), steady)
        torch.save(factor, f"{folder}/ema{rank}.pt")
    torch.save([*found, steady.steady, density.seen], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_processes_share_their_sums(tmp_path):
    multiprocessing.start_processes(_of_rank, (str(tmp_path),), nprocs=3, start_method="fork")
    first, second = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    for i, kind in enumerate(("source", "batch", "image")):
        alone = normalizer(kind, POSITIVES, PRESENT, _batch(ALL))
        # Gradients are divided by the number of processes afterwards.
        torch.testing.assert_close(torch.cat([first[i], second[i]]) / 3, alone)
    steady = MOMENTUM * START + (1 - MOMENTUM) * (1.5 * 10 + 0.75 * 30) / 3
    moving = [torch.load(tmp_path / f"ema{rank}.pt") for rank in (0, 1)]
    alone = normalizer("batch", POSITIVES, PRESENT, _batch(ALL)) * (1.5 * 10 + 0.75 * 30)
    torch.testing.assert_close(torch.cat(moving) / 3, alone / (3 * steady))
    for rank in range(3):  # the one that skips keeps the same average
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt")[-2], torch.tensor(steady))
    # three times one gold picture that is present, with 10 positives; three pictures in all, with 40
    times = 1 + DECAY + DECAY**2
    for rank in range(3):
        seen = torch.load(tmp_path / f"{rank}.pt")[-1]
        torch.testing.assert_close(seen[SOURCES:], times * torch.tensor([[10.0, 1.0], [40.0, 3.0]]))
        torch.testing.assert_close(
            seen[:3], times * torch.tensor([[10.0, 1.0], [0.0, 0.0], [30.0, 2.0]])
        )


def _alike(pictures, gold, positives):
    """Returns what `normalizer` takes of pictures of one grade, each with `positives`."""
    kind = torch.full((pictures,), 0 if gold else 1)
    batch = replace(
        _batch(ALL), groups=kind, weights=torch.ones(pictures), grades=kind.to(torch.uint8)
    )
    return torch.full((pictures,), positives), torch.ones(pictures, dtype=torch.bool), batch


def test_silver_alone_in_a_step_weighs_its_background_as_beside_gold():
    """Modes alternate and batch: gold has 20 positives a picture, silver one in three pictures."""
    torch.manual_seed(0)
    density, beside = Density(), None
    for _ in range(300):
        gold = int(torch.randint(10, 31, ()))
        normalizer("source", *_alike(4, True, gold), density)
        silver = normalizer("source", *_alike(4, False, 0), density)
        n, present, batch = _alike(8, True, gold)
        half = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        mixed = replace(batch, groups=half, grades=half.to(torch.uint8))
        factors = normalizer("source", torch.where(half == 0, n, 0), present, mixed, density)
        beside = factors[4:]
    # half of a mixed batch's weight is silver's, all of a silver one's
    torch.testing.assert_close(silver, 2 * beside, rtol=0.01, atol=0)
    torch.testing.assert_close(silver, torch.full((4,), 1 / 80), rtol=0.05, atol=0)
    forgetful = normalizer("source", *_alike(4, False, 0))
    assert forgetful[0] == 1  # eighty times as much: what is remembered here matters


def test_without_any_gold_silver_remembers_its_own_boxes():
    density = Density()
    for positives in (30, 10) * 200:
        normalizer("source", *_alike(2, False, positives), density)
    torch.testing.assert_close(
        normalizer("source", *_alike(2, False, 0), density),
        torch.full((2,), 1 / 40),
        rtol=0.05,
        atol=0,
    )


def test_gold_is_divided_by_its_own_positives_whatever_is_remembered():
    density = Density()
    normalizer("source", *_alike(4, True, 50), density)
    assert torch.equal(normalizer("source", *_alike(4, True, 2), density), torch.full((4,), 1 / 8))


def test_long_silver_only_stretches_forget_nothing():
    density = Density()
    normalizer("source", *_alike(1, True, 20), density)
    silver = torch.zeros(SOURCES + 2, 2)
    silver[1] = silver[SOURCES + 1] = 1
    for _ in range(20_000):
        density(silver)
    torch.testing.assert_close(density.seen[[0, SOURCES]], torch.tensor([[20.0, 1.0]] * 2))


def test_gold_pictures_without_boxes_do_not_drown_the_rest_of_the_batch():
    """Two gold pictures with nothing on them beside six of silver: divided by their own positives
    (at least 1) their background alone would decide the step."""
    density = Density()
    for _ in range(50):
        normalizer("source", *_alike(4, True, 20), density)
    _, present, batch = _alike(8, True, 0)
    groups = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    mixed = replace(batch, groups=groups, grades=groups.to(torch.uint8))
    positives = torch.where(groups == 1, 8, 0)
    factor = normalizer("source", positives, present, mixed, density)
    of_all = 6 * 8 / 8  # positives a picture of this batch: fewer than gold's usual 20
    torch.testing.assert_close(factor[0], torch.tensor(0.25 / (2 * of_all)))
    torch.testing.assert_close(factor[2], torch.tensor(0.75 / (6 * 20)), rtol=0.02, atol=0)
    many = normalizer("source", torch.where(groups == 1, 800, 0), present, mixed, density)
    # a flood of silver boxes changes nothing for gold: its usual 20 a picture count
    torch.testing.assert_close(many[0], torch.tensor(0.25 / (2 * 20)), rtol=0.05, atol=0)


def test_one_source_alone_is_divided_by_its_own_positives():
    density = Density()
    for positives in (30, 2):
        factor = normalizer("source", *_alike(4, True, positives), density)
        torch.testing.assert_close(factor, torch.full((4,), 1 / (4 * positives)))


@pytest.mark.parametrize(
    "settings", [BoxTaskSettings, DepthLossSettings, SemanticLossSettings, TagsConfig]
)
def test_tasks_without_a_memory_refuse_a_moving_average(settings):
    assert LossSettings(normalizer="ema").normalizer == "ema"
    assert settings(normalizer="batch").normalizer == "batch"
    with pytest.raises(ValidationError, match="'source', 'batch' or 'image'"):
        settings(normalizer="ema")


def test_what_is_remembered_of_a_source_follows_its_name():
    density = Density()
    density.seen[:3] = torch.tensor([[30.0, 3], [8, 2], [5, 5]])
    density.seen[-2:] = torch.tensor([[40.0, 4], [43, 10]])
    before = density.seen.clone()
    density.renumber(["a", "b", "c"], ["a", "b", "c", "pool"])
    assert torch.equal(density.seen, before)
    density.renumber(["a", "b", "c"], ["pool", "c", "a"])
    assert density.seen[:4].tolist() == [[0, 0], [5, 5], [30, 3], [0, 0]]
    assert torch.equal(density.seen[-2:], before[-2:])
