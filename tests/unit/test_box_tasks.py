"""Attributes, masks and keypoints of boxes: what is learned, what is not, and what is found."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detmtl.models.box_head import BoxHeadSettings, BoxPool
from detmtl.structures.details import NO_MASK, Details
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore, pad_boxes
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks import box_task
from detmtl.tasks.attributes import AttributesConfig, Probabilities
from detmtl.tasks.box_rois import Rois, chosen, hashed
from detmtl.tasks.box_task import grades_of
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointForm, KeypointsConfig, place_losses
from detmtl.tasks.masks import MasksConfig, moved_masks
from detmtl.tasks.multitask import _homeless
from detmtl.tasks.task import decode_all

CLASSES = ["a", "b"]
STRIDES = [8, 16, 32]
VALUES = ["color/red", "color/blue", "kind/x", "kind/y", "kind/z"]
POINTS = ["a/left_eye", "a/right_eye", "b/tip"]
BOXES = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 60], [0, 0, 10, 12]])


def _task(kind: str, **settings):
    if kind == "attributes":
        config, names = AttributesConfig(**settings), {"names": VALUES}
    elif kind == "masks":
        config, names = MasksConfig(**settings), {}
    else:
        config, names = KeypointsConfig(**settings), {"names": POINTS}
    torch.manual_seed(0)
    task = config.build(kind, [8, 8, 8], STRIDES, len(CLASSES), CLASSES, **names)
    for parameter in task.parameters():  # outputs that differ from box to box
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter.data)
    return task


def _details(kind: str) -> Details:
    """Returns details of the three boxes of which the last is unknown."""
    if kind == "attributes":
        return Details(attributes=torch.tensor([[1, 2], [0, -1], [-1, -1]]))
    if kind == "masks":
        masks = torch.zeros(3, 56, 56, dtype=torch.uint8)
        masks[:2, 10:40, 5:50] = 1
        masks[2] = NO_MASK
        return Details(masks=masks)
    points = torch.zeros(3, 3, 3)
    points[0, 0] = torch.tensor([10.0, 12, 2])
    points[1, 2] = torch.tensor([40.0, 30, 1])
    return Details(keypoints=points)


def _labels(kind: str, **changed) -> BoxLabels:
    labels = BoxLabels.of(BOXES, torch.tensor([0, 1, 0]), len(CLASSES))
    return replace(labels, details=_details(kind), **changed)


def _batch(*labels) -> Batch:
    return Batch.of(
        [
            Sample(
                torch.zeros(3, 64, 64, dtype=torch.uint8),
                {} if x is None else {"boxes": x},
                ImageInfo(i, f"{i}.jpg", 64, 64, "s"),
            )
            for i, x in enumerate(labels)
        ]
    )


def _features(pictures=1):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(pictures, 8, 64 // s, 64 // s, generator=generator) for s in STRIDES]


def _loss(task, *labels):
    (term,) = task.loss(_features(len(labels)), _batch(*labels)).values()
    return term


KINDS = ["attributes", "masks", "keypoints"]


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_which_nothing_is_known_change_nothing(kind):
    task, labels = _task(kind), _labels(kind)
    first_two = labels[torch.tensor([0, 1])]
    torch.testing.assert_close(_loss(task, labels), _loss(task, first_two))
    ignored = _labels(kind, ignore=torch.tensor([0, Ignore.REGION, 0], dtype=torch.uint8))
    torch.testing.assert_close(_loss(task, ignored), _loss(task, labels[torch.tensor([0])]))
    assert not torch.allclose(_loss(task, ignored), _loss(task, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_details_give_no_term(kind):
    task = _task(kind)
    plain = BoxLabels.of(BOXES, torch.tensor([0, 1, 0]), len(CLASSES))
    unknown = _labels(kind)[torch.tensor([2])]
    for labels in (plain, BoxLabels.empty(2), unknown, None):
        assert task.loss(_features(), _batch(labels)) == {}
    with_silent = task.loss(_features(2), _batch(_labels(kind), plain))
    alone = task.loss([x[:1] for x in _features(2)], _batch(_labels(kind)))
    torch.testing.assert_close(dict(with_silent), dict(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_boxes_does_not_grow_with_their_number(kind):
    task = _task(kind, jitter=0.0)
    labels = _labels(kind)[torch.tensor([0, 1])]
    twice = labels[torch.tensor([0, 1, 0, 1])]
    torch.testing.assert_close(_loss(task, labels), _loss(task, twice))


@pytest.mark.parametrize("kind", KINDS)
def test_who_gave_the_details_decides_how_they_are_divided(kind):
    """A silver pool keeps what people say of its boxes; of gold there are 2 boxes, of the pool 1."""
    task, labels, features = _task(kind), _labels(kind), _features(2)
    pool = labels[torch.tensor([0, 2])]  # of the last box, which a teacher found, nothing is known

    def loss(of_pool, grade):
        batch = _batch(labels, replace(pool, grade=torch.tensor(of_pool, dtype=torch.uint8)))
        grades = torch.tensor([Grade.GOLD, grade], dtype=torch.uint8)
        batch = replace(batch, groups=torch.tensor([0, 1]), grades=grades)
        return sum(task.loss(features, batch).values())

    people, teacher = [Grade.GOLD, Grade.SILVER], [Grade.SILVER, Grade.GOLD]
    torch.testing.assert_close(loss(people, Grade.SILVER), loss(people, Grade.GOLD))
    torch.testing.assert_close(loss(teacher, Grade.GOLD), loss(teacher, Grade.SILVER))
    assert loss(people, Grade.SILVER) > 1.01 * loss(teacher, Grade.SILVER)


def test_gold_wins_among_the_boxes_that_are_looked_at():
    grade = torch.tensor([[1, 0], [1, 0], [1, 1]], dtype=torch.uint8)
    two = BoxLabels.of(BOXES[:2], torch.tensor([0, 1]), len(CLASSES))
    labels = pad_boxes([replace(two, grade=of_picture) for of_picture in grade])
    on = torch.tensor([True, True, True, False, True, True])  # as on a GPU, where padding is kept
    picture, row = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1] * 3)
    rois = Rois(torch.zeros(6, 4), picture, row, on)
    assert grades_of(rois, labels).tolist() == [Grade.GOLD, Grade.SILVER, Grade.SILVER]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind):
    task = _task(kind, head={"side": 3, "depth": 1}, jitter=0.0).double()
    batch = _batch(_labels(kind))
    features = [x.double().requires_grad_() for x in _features()]

    def loss(*features):
        return sum(task.loss(list(features), batch).values())

    assert torch.autograd.gradcheck(loss, features, eps=1e-6, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_learn_it(kind):
    task = _task(kind, jitter=0.0)
    batch, features = _batch(_labels(kind)), [3 * x for x in _features()]
    optimizer = torch.optim.Adam(task.parameters(), 3e-3)
    for _ in range(60):
        loss = sum(task.loss(features, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = task.decode(features, torch.tensor([[64, 64]]), [_labels(kind)])
    wanted = _details(kind)
    if kind == "attributes":
        assert found.details.attributes[wanted.attributes >= 0].tolist() == [1, 2, 0]
        torch.testing.assert_close(found.details.attribute_scores[:, 2:].sum(1), torch.ones(3))
    elif kind == "masks":
        there = found.details.masks[:2].repeat_interleave(2, 1).repeat_interleave(2, 2) > 0.5
        assert (there == (wanted.masks[:2] > 0)).float().mean() > 0.9
    else:
        points, known = found.details.keypoints, wanted.keypoints[..., 2] > 0
        gap = (points - wanted.keypoints)[known][:, :2].abs().max()
        assert gap < 2
        of_a, of_b = [True, True, False], [False, False, True]
        assert (points[..., 2] > 0).tolist() == [of_a, of_b, of_a]  # a class's keypoints alone


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_all_pictures_are_described_in_blocks(kind, monkeypatch):
    task, features = _task(kind), _features(4)
    plain = BoxLabels.of(BOXES, torch.tensor([0, 1, 0]), len(CLASSES))
    pictures = [plain, plain[:0], plain[torch.tensor([2, 0])], plain.with_boxes(BOXES + 3)]
    alone = [
        task.form(
            task.head([x[i : i + 1] for x in features], of.boxes, first), of.boxes, of.classes
        )
        for i, of in enumerate(pictures)
        for first in [torch.zeros(len(of), dtype=torch.long)]
    ]
    monkeypatch.setattr(box_task, "BLOCK", 3)
    seen = []
    task.head.register_forward_hook(lambda _, given, __: seen.append(len(given[1])))
    found = task.decode(features, torch.tensor([[64, 64]] * 4), pictures)
    assert seen == [3, 3, 2]
    field = {"attributes": "attribute_scores"}.get(kind, kind)
    for of, one, expected in zip(pictures, found, alone, strict=True):
        assert torch.equal(one.boxes, of.boxes)
        torch.testing.assert_close(getattr(one.details, field), expected)
    (nothing,) = task.decode(_features(), torch.tensor([[64, 64]]), [plain[:0]])
    assert getattr(nothing.details, field).shape == (0, *alone[0].shape[1:])


def test_attributes_of_a_hand_computed_case():
    task = _task("attributes")
    raw = torch.log(torch.tensor([[0.25, 0.75, 0.5, 0.25, 0.25]]))
    form = Probabilities([2, 3])(raw, BOXES[:1], torch.tensor([0]))
    torch.testing.assert_close(form, raw.exp())
    padded = pad_boxes([_labels("attributes")[torch.tensor([0])]])
    rois = chosen(padded, padded.valid, 8, 0.0)
    expected = -torch.log(torch.tensor([0.75 * 0.25]))  # blue, z
    torch.testing.assert_close(task.losses(raw, rois, padded), expected)


def test_masks_move_to_other_boxes():
    masks = torch.zeros(1, 56, 56, dtype=torch.uint8)
    masks[:, :, 28:] = 1  # the right half
    frame = torch.tensor([[10.0, 10, 30, 50]])
    same = moved_masks(masks, frame, frame, 28)
    assert torch.equal(same[0].mean(0), (torch.arange(28) >= 14).float())
    right_half = torch.tensor([[20.0, 10, 30, 50]])
    assert moved_masks(masks, frame, right_half, 28).mean() == 1
    beyond = torch.tensor([[20.0, 10, 40, 50]])  # half of it outside: nothing there
    assert torch.equal(
        moved_masks(masks, frame, beyond, 28)[0].mean(0), (torch.arange(28) < 14).float()
    )


def test_keypoints_come_back_finer_than_a_cell():
    box = torch.tensor([[10.0, 20, 66, 76]])  # 56 pixels: 2 a cell
    truth = torch.tensor([[[31.3, 40.9, 2.0]]])
    raw = torch.zeros(1, 1, 28, 28, requires_grad=True)
    optimizer = torch.optim.Adam([raw], 0.1)
    for _ in range(300):
        loss = place_losses(raw, truth, box).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    form = KeypointForm(torch.tensor([[True]]))
    found = form(raw.detach(), box, torch.tensor([0]))
    torch.testing.assert_close(found[..., :2], truth[..., :2], atol=0.05, rtol=0)
    assert found[0, 0, 2] > 0.95


def test_keypoints_outside_of_the_box_give_no_loss():
    raw = torch.randn(1, 2, 4, 4)
    box = torch.tensor([[0.0, 0, 8, 8]])
    inside = torch.tensor([[[3.0, 3, 2], [9, 3, 2]]])
    without = torch.tensor([[[3.0, 3, 2], [0, 0, 0]]])
    torch.testing.assert_close(place_losses(raw, inside, box), place_losses(raw, without, box))
    nothing = torch.tensor([[[9.0, 3, 2], [0, 0, 0]]])
    assert place_losses(raw, nothing, box).item() == 0


def test_sigmas_by_name():
    def sigmas(names, **settings):
        config = KeypointsConfig(**settings)
        return config.build("k", [8], [8], 1, ["person"], names=names).sigmas

    names = ["person/nose", "person/left_hip", "car/left_light"]
    assert sigmas(names) == (0.026, 0.107, 0.05)
    assert sigmas(names, sigmas={"light": 0.1, "left_hip": 0.2}, sigma=0.3) == (0.026, 0.2, 0.1)
    with pytest.raises(InputError, match="tail is no keypoint"):
        sigmas(names, sigmas={"tail": 0.1})


def test_pool_takes_the_level_that_fits():
    pool = BoxPool(7, STRIDES)
    sizes = torch.tensor([10.0, 111, 223, 225, 447, 449, 5000])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sizes, sizes], dim=1)
    assert pool.levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2]
    features = [torch.full((2, 1, 512 // s, 512 // s), float(s)) for s in STRIDES]
    features[0][1] = 80
    found = pool(features, boxes[[5, 0, 3, 1]], torch.tensor([0, 1, 0, 0]))
    assert found.mean(dim=(1, 2, 3)).tolist() == [32, 80, 16, 8]


def test_pool_of_a_plane_gives_the_middles_of_its_cells():
    columns = (torch.arange(16.0) + 0.5).expand(1, 1, 16, 16) * 8  # x in pixels
    found = BoxPool(4, [8])([columns], torch.tensor([[20.0, 30, 84, 70]]), torch.tensor([0]))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([28.0, 44, 60, 76]))


def test_head_without_boxes():
    head = BoxHeadSettings(side=4, depth=1).build(8, STRIDES, 3, up=True)
    found = head(_features(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert found.shape == (0, 3, 8, 8)


def test_chance_follows_from_boxes_and_is_even():
    boxes = torch.rand(1, 4000, 4) * 500
    drawn = hashed(boxes, 3)
    assert torch.equal(drawn, hashed(boxes.clone(), 3)) and drawn.min() >= 0 and drawn.max() < 1
    assert (drawn.mean(dim=(0, 1)) - 0.5).abs().max() < 0.02
    assert (torch.histc(drawn, 10) / drawn.numel() - 0.1).abs().max() < 0.01
    assert torch.corrcoef(drawn[0].T).triu(1).abs().max() < 0.05
    nudged = hashed(boxes + 0.25, 3)
    assert torch.corrcoef(torch.stack([drawn.flatten(), nudged.flatten()]))[0, 1].abs() < 0.05


def test_no_more_boxes_than_asked_for_and_only_known_ones():
    n = 500
    corner = torch.rand(n, 2) * 400
    labels = BoxLabels.of(torch.cat([corner, corner + 20], 1), torch.zeros(n, dtype=torch.long), 1)
    padded = pad_boxes([labels, labels[torch.arange(3)]])
    known = padded.valid & (torch.arange(n) % 2 == 0)
    rois = chosen(padded, known, 64, 0.1)
    assert rois.picture.bincount().tolist() == [64, 2] and rois.on.all()
    assert (rois.row % 2 == 0).all() and rois.row[:64].unique().numel() == 64
    right = padded.boxes[rois.picture, rois.row]
    assert ((rois.boxes - right).abs() <= 20 * 0.2).all() and (rois.boxes != right).any()


def test_a_picture_that_comes_again_gives_other_boxes_elsewhere():
    """300 boxes that never move, as in a picture that is at most mirrored."""
    corner = torch.rand(300, 2) * 400
    boxes = torch.cat([corner, corner + 20], 1)
    padded = pad_boxes([BoxLabels.of(boxes, torch.zeros(300, dtype=torch.long), 1)] * 2)
    seen, moved = set(), []
    for step in range(20):
        seeds = torch.tensor([step, 2**62 + 7 * step])
        rois = chosen(padded, padded.valid, 64, 0.1, seeds)
        again = chosen(padded, padded.valid, 64, 0.1, seeds)
        assert torch.equal(rois.boxes, again.boxes) and torch.equal(rois.row, again.row)
        assert step == 0 or rois.row[:64].tolist() != rois.row[64:].tolist()
        seen |= set(rois.row[:64].tolist())
        moved.append(chosen(padded, padded.valid, 300, 0.1, seeds).boxes[0])
    assert len(seen) > 280  # 296 by chance; without seeds 64
    shifts = torch.stack(moved)[:, 0] - boxes[0, 0]
    assert shifts.unique().numel() == 20 and shifts.min() < 0 < shifts.max()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_of_a_picture_follows_its_seed(kind):
    task, batch = _task(kind), _batch(_labels(kind))
    losses = [
        sum(task.loss(_features(), replace(batch, seeds=seeds)).values()).item()
        for seeds in (torch.tensor([3]), torch.tensor([3]), torch.tensor([4]), None)
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    assert losses[3] == sum(task.loss(_features(), batch).values()).item()  # 0: there is none


def test_tasks_about_boxes_get_those_of_their_detection_task():
    torch.manual_seed(0)
    detection = DetectionConfig(test={"score_threshold": 0.0}).build(
        "found", [8] * 3, STRIDES, 2, CLASSES
    )
    about = _task("attributes", of="found")
    features = _features(2)
    outputs = {"about": about(features), "found": detection(features)}
    sizes = torch.tensor([[64, 64], [50, 40]])
    with torch.no_grad():
        found = decode_all({"about": about, "found": detection}, outputs, sizes)
    assert [*found] == ["about", "found"]
    for a, b in zip(found["about"], found["found"], strict=True):
        assert torch.equal(a.boxes, b.boxes) and len(b) > 0 and b.details is None
        assert a.details.attributes.shape == (len(b), 2)
    assert _homeless({"about": about, "found": detection}) == []
    assert "'found' is no detection task" in _homeless({"about": about})[0]
