"""The loss of maps: what each kind of pixel means, against references."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from detmtl.losses.dense import marginal_cross_entropy, semantic_losses
from detmtl.structures.labels import OTHER, UNKNOWN, Grade, MapLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample

C = 5


def _logits(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _classes(*shape, seed=1):
    return torch.randint(
        0, C, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def _batch(labels, groups=None, weights=None, grades=None):
    n = len(labels)
    samples = [
        Sample(
            torch.zeros(3, 32, 32, dtype=torch.uint8),
            {} if x is None else {"maps": x},
            ImageInfo(i, "", 32, 32, "s"),
            group=(groups or [0] * n)[i],
            weight=(weights or [1.0] * n)[i],
            grade=(grades or [Grade.GOLD] * n)[i],
        )
        for i, x in enumerate(labels)
    ]
    return Batch.of(samples)


def _map(classes=None, coverage=None, weights=None, grade=Grade.GOLD, seed=1):
    classes = _classes(32, 32, seed=seed) if classes is None else classes
    return MapLabels(classes, weights, torch.ones(C) if coverage is None else coverage, grade)


def _loss(logits, batch, kind="source"):
    return semantic_losses(logits, batch.labels["maps"], batch, stride=4, kind=kind).sum()


def test_full_labels_give_plain_cross_entropy():
    logits = _logits(2, C, 8, 8)
    labels = [_map(seed=1), _map(seed=2)]
    middle = torch.stack([x.classes[2::4, 2::4] for x in labels]).long()
    torch.testing.assert_close(_loss(logits, _batch(labels)), F.cross_entropy(logits, middle))


def test_unknown_pixels_count_nothing():
    classes = _classes(32, 32)
    classes[:, 16:] = UNKNOWN
    logits = _logits(1, C, 8, 8).requires_grad_()
    loss = _loss(logits, _batch([_map(classes)]))
    middle = classes[2::4, 2::4].long()[None, :, :4]
    torch.testing.assert_close(loss, F.cross_entropy(logits[..., :4], middle))
    loss.backward()
    assert (logits.grad[..., 4:] == 0).all() and (logits.grad[..., :4] != 0).any()


def test_other_is_the_merged_probability_of_what_is_not_covered():
    logits = _logits(1, C, 2, 2)
    coverage = torch.tensor([[1.0, 1, 0, 0, 1]])
    classes = torch.tensor([[[OTHER, 0], [OTHER, UNKNOWN]]], dtype=torch.uint8)
    losses, known = marginal_cross_entropy(logits, classes, coverage)
    p = logits.softmax(1)[0]
    expected = -(p[2] + p[3]).log()
    torch.testing.assert_close(losses[0, 0, 0], expected[0, 0])
    torch.testing.assert_close(losses[0, 1, 0], expected[1, 0])
    torch.testing.assert_close(losses[0, 0, 1], -p[0, 0, 1].log())
    assert losses[0, 1, 1] == 0 and known.tolist() == [[[True, True], [True, False]]]


def test_other_does_not_choose_among_uncovered_classes():
    """The gradient on uncovered logits keeps their proportions; covered ones are only lowered."""
    logits = _logits(1, C, 1, 1).requires_grad_()
    classes = torch.full((1, 1, 1), OTHER, dtype=torch.uint8)
    losses, _ = marginal_cross_entropy(logits, classes, torch.tensor([[1.0, 1, 0, 0, 1]]))
    losses.sum().backward()
    p, g = logits.detach().softmax(1)[0, :, 0, 0], logits.grad[0, :, 0, 0]
    torch.testing.assert_close(g[[0, 1, 4]], p[[0, 1, 4]])
    torch.testing.assert_close(g[2] / g[3], p[2] / p[3])
    assert g[2] < 0


def test_recall_between_leaves_a_class_its_misses():
    logits = _logits(1, C, 1, 1)
    recall = torch.tensor([0.9, 0.5, 0, 1, 1])
    classes = torch.full((1, 1, 1), OTHER, dtype=torch.uint8)
    losses, _ = marginal_cross_entropy(logits, classes, recall[None])
    p = logits.softmax(1)[0, :, 0, 0]
    torch.testing.assert_close(losses[0, 0, 0], -(p * (1 - recall)).sum().log())


def test_other_of_full_coverage_has_no_loss_and_no_nan():
    classes = torch.full((32, 32), OTHER, dtype=torch.uint8)
    logits = _logits(2, C, 8, 8).requires_grad_()
    half = torch.tensor([0.0, 1, 1, 1, 1])
    loss = _loss(logits, _batch([_map(classes), _map(classes, half)]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert (logits.grad[0] == 0).all() and (logits.grad[1] != 0).any()


def test_other_is_known_to_be_there_where_it_can_be_something():
    classes, some = _classes(32, 32), _classes(32, 32)
    some[3, 5] = OTHER
    half = torch.tensor([0.5, 1, 1, 1, 1])
    for of in (_map(classes), _map(classes, half), _map(some)):
        assert not _batch([of, None]).labels["maps"].some_other
    maps = _batch([_map(classes), _map(some, half)]).labels["maps"]
    assert maps.some_other and maps.some
    lonely = _batch([_map(torch.full((32, 32), OTHER, dtype=torch.uint8))]).labels["maps"]
    assert not lonely.some and not lonely.some_other


def test_sparing_the_work_for_other_changes_nothing():
    logits = _logits(2, C, 8, 8)
    batch = _batch([_map(seed=1), _map(seed=2)])
    maps = batch.labels["maps"]
    assert not maps.some_other
    with_work = replace(batch, labels={"maps": replace(maps, some_other=True)})
    assert torch.equal(_loss(logits, batch), _loss(logits, with_work))


def test_coverage_is_each_picture_s_own():
    classes = torch.full((32, 32), OTHER, dtype=torch.uint8)
    first, second = torch.tensor([1.0, 1, 0, 0, 0]), torch.tensor([0.0, 0, 0, 1, 1])
    logits = _logits(1, C, 8, 8).expand(2, -1, -1, -1).contiguous().requires_grad_()
    _loss(logits, _batch([_map(classes, first), _map(classes, second)])).backward()
    assert (logits.grad[0, :2] > 0).all() and (logits.grad[1, 3:] > 0).all()
    assert (logits.grad[0, 3:].sum() < 0) and (logits.grad[1, :2].sum() < 0)


def test_weights_scale_the_loss_and_not_the_normalizer():
    logits = _logits(1, C, 8, 8)
    plain = _loss(logits, _batch([_map()]))
    halved = _loss(logits, _batch([_map(weights=torch.full((32, 32), 0.5))]))
    torch.testing.assert_close(halved, plain / 2)


@pytest.mark.parametrize("kind", ["source", "image", "batch"])
def test_a_source_listed_twice_at_half_weight_changes_nothing(kind):
    once, twice = [_map(seed=1), _map(seed=2)], [_map(seed=1), _map(seed=2), _map(seed=2)]
    logits = _logits(2, C, 8, 8)
    a = _loss(logits, _batch(once, groups=[0, 1]), kind)
    doubled = logits[[0, 1, 1]]
    b = _loss(doubled, _batch(twice, groups=[0, 1, 2], weights=[1, 0.5, 0.5]), kind)
    torch.testing.assert_close(a, b)


def test_silver_with_few_labelled_pixels_counts_no_more_than_gold():
    few = torch.full((32, 32), UNKNOWN, dtype=torch.uint8)
    few[:8, :8] = 1
    logits = _logits(2, C, 8, 8).requires_grad_()
    gold, silver = _map(seed=1), _map(few, grade=Grade.SILVER)
    # the picture's boxes are gold; what counts is who wrote the map
    _loss(logits, _batch([gold, silver], groups=[0, 1])).backward()
    per_pixel = logits.grad.abs().sum(1)
    assert per_pixel[1, :2, :2].mean() < 2 * per_pixel[0].mean()


def test_gradients_by_finite_differences():
    classes = _classes(1, 4, 4)
    classes[0, 0] = OTHER
    classes[0, 1, :2] = UNKNOWN
    coverage = torch.tensor([[1, 0.7, 0, 1, 0.2]], dtype=torch.float64)
    logits = _logits(1, C, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: marginal_cross_entropy(x, classes, coverage)[0], (logits,)
    )


def test_whole_loss_by_finite_differences():
    classes = _classes(32, 32)
    classes[:10] = OTHER
    batch = _batch([_map(classes, torch.tensor([1, 0.5, 0, 1, 1]), torch.rand(32, 32)), None])
    logits = _logits(2, C, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _loss(x, batch), (logits,))


def test_many_pictures_equal_one_at_a_time():
    labels = [_map(seed=1), _map(seed=2)]
    logits = _logits(2, C, 8, 8)
    together = _loss(logits, _batch(labels), "image")
    alone = [_loss(logits[i : i + 1], _batch([labels[i]]), "image") for i in range(2)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_padding_is_unknown():
    small = replace(_map(), classes=_classes(20, 24))
    batch = Batch.of(
        [
            Sample(
                torch.zeros(3, 20, 24, dtype=torch.uint8),
                {"maps": small},
                ImageInfo(0, "", 20, 24, "s"),
            )
        ]
    )
    logits = _logits(1, C, 8, 8).requires_grad_()
    _loss(logits, batch).backward()
    assert (logits.grad[0, :, 5:] == 0).all() and (logits.grad[0, :, :, 6:] == 0).all()
    assert (logits.grad[0, :, :5, :6] != 0).all()


@pytest.mark.parametrize("kind", ["source", "image", "batch"])
def test_a_map_without_a_known_pixel_has_no_part_in_the_normalizer(kind):
    logits, unknown = _logits(2, C, 8, 8), torch.full((32, 32), UNKNOWN, dtype=torch.uint8)
    both = _loss(logits, _batch([_map(), _map(unknown)], groups=[0, 1]), kind)
    torch.testing.assert_close(both, _loss(logits[:1], _batch([_map()]), kind))
