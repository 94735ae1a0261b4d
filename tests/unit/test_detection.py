"""What every kind of label does to the loss; plain labels against torchvision's RetinaNet."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from detmtl.losses.focal import sigmoid_focal
from detmtl.models.matching import Rules, match
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig, LossSettings

STRIDES = [8, 16, 32, 64]
C, A, HEIGHT, WIDTH = 3, 9, 64, 96
BOXES = torch.tensor([[4.0, 6, 40, 38], [30, 10, 90, 60], [50, 40, 60, 52]])
CLASSES = torch.tensor([0, 1, 2])


def _task(**loss):
    config = DetectionConfig(loss=LossSettings(**loss))
    return config.build("boxes", [8] * 4, STRIDES, C, ["a", "b", "c"])


def _batch(*labels, groups=None, weights=None, height=HEIGHT, width=WIDTH):
    samples = [
        Sample(
            torch.zeros(3, height, width, dtype=torch.uint8),
            {} if x is None else {"boxes": x},
            ImageInfo(i, "", height, width, "s"),
            group=groups[i] if groups else 0,
            weight=weights[i] if weights else 1.0,
        )
        for i, x in enumerate(labels)
    ]
    return Batch.of(samples)


def _outputs(pictures, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES]
    outputs = [torch.randn(pictures, A * C, *s, generator=g) - 2 for s in shapes]
    outputs += [torch.randn(pictures, A * 4, *s, generator=g) * 0.3 for s in shapes]
    return [x.to(dtype).requires_grad_() for x in outputs]


def _plain(**kwargs):
    return BoxLabels.of(BOXES, CLASSES, C, **kwargs)


def _rows(maps, numbers):
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers) for x in maps], dim=1)


def _run(task, batch, outputs=None):
    """Returns the terms, and their gradients: of logits (B, A, C), of deltas (B, A, 4)."""
    outputs = _outputs(len(batch)) if outputs is None else outputs
    outputs = [x.detach().clone().requires_grad_() for x in outputs]
    terms = task.loss(outputs, batch)
    (terms["class"] + terms["box"]).backward()
    assert all(torch.isfinite(x.grad).all() for x in outputs)
    half = len(outputs) // 2
    grads = [x.grad for x in outputs]
    return terms, _rows(grads[:half], C), _rows(grads[half:], 4)


def _matches(task, batch):
    anchors = task.anchors.flat(_outputs(1)[:4])
    return anchors, match(anchors, batch.labels["boxes"], Rules())


@pytest.mark.parametrize("box", ["smooth_l1", "l1", "giou"])
def test_plain_labels_give_torchvisions_loss(box):
    weight = 1.0 if box == "l1" else 1.7
    task = _task(box=box, box_weight=weight, beta=1.0, normalizer="image")
    batch = _batch(_plain(), BoxLabels.empty(C), _plain()[torch.tensor([1])])
    outputs = _outputs(3)
    terms, class_grad, box_grad = _run(task, batch, outputs)

    head = RetinaNetHead(8, A, C)
    head.regression_head._loss_type = box
    head.regression_head.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    logits = _rows(outputs[:4], C).detach().requires_grad_()
    deltas = _rows(outputs[4:], 4).detach().requires_grad_()
    anchors = task.anchors.flat(outputs[:4])
    boxes = [BOXES, BOXES[:0], BOXES[1:2]]
    matched = [
        Matcher(0.5, 0.4, True)(box_iou(b, anchors)) if len(b) else torch.full((len(anchors),), -1)
        for b in boxes
    ]
    targets = [
        {"boxes": b, "labels": c}
        for b, c in zip(boxes, [CLASSES, CLASSES[:0], CLASSES[1:2]], strict=True)
    ]
    expected = head.compute_loss(
        targets, {"cls_logits": logits, "bbox_regression": deltas}, [anchors] * 3, matched
    )
    (expected["classification"] + weight * expected["bbox_regression"]).backward()
    torch.testing.assert_close(terms["class"], expected["classification"], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        terms["box"], weight * expected["bbox_regression"], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(class_grad, logits.grad, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(box_grad, deltas.grad, rtol=1e-4, atol=1e-8)


def test_class_that_nobody_looked_for_has_no_gradient_but_on_its_own_boxes():
    task = _task()
    labels = _plain(coverage=torch.tensor([1.0, 0.0, 1.0]))
    batch = _batch(labels)
    _, grad, _ = _run(task, batch)
    _, matches = _matches(task, batch)
    own = matches.positive[0] & (CLASSES[matches.index[0]] == 1)
    others = matches.positive[0] & ~own
    assert own.any() and others.any()
    assert (grad[0, ~own, 1] == 0).all()  # negatives and positives of other classes
    assert (grad[0, own, 1] != 0).all()
    assert (grad[0, matches.negative[0]][:, [0, 2]] != 0).all()
    _, full, _ = _run(task, _batch(_plain()))
    assert torch.equal(full[..., [0, 2]], grad[..., [0, 2]])
    assert torch.equal(full[0, own, 1], grad[0, own, 1])


def test_partial_coverage_weights_the_negative_loss():
    task = _task()
    _, full, _ = _run(task, _batch(_plain()))
    batch = _batch(_plain(coverage=torch.tensor([1.0, 0.3, 1.0])))
    _, grad, _ = _run(task, batch)
    _, matches = _matches(task, batch)
    own = matches.positive[0] & (CLASSES[matches.index[0]] == 1)
    torch.testing.assert_close(grad[0, ~own, 1], 0.3 * full[0, ~own, 1])
    assert torch.equal(grad[0, own], full[0, own])


def _with(box, cls, kind):
    """Plain labels and one ignored box."""
    boxes = torch.cat([BOXES, torch.tensor([box])])
    ignore = torch.tensor([0, 0, 0, int(kind)])
    return BoxLabels.of(boxes, torch.cat([CLASSES, torch.tensor([cls])]), C, ignore=ignore)


def test_region_takes_all_classes_but_never_positives():
    task, region = _task(), [0.0, 0, 50, 64]
    _, plain, plain_box = _run(task, _batch(_plain()))
    batch = _batch(_with(region, 1, Ignore.REGION))
    _, grad, box_grad = _run(task, batch)
    anchors, matches = _matches(task, batch)
    inner = torch.minimum(anchors[:, 2:], torch.tensor(region)[2:]) - anchors[:, :2].clamp(min=0)
    sides = anchors[:, 2:] - anchors[:, :2]
    inside = inner.clamp(min=0).prod(1) >= 0.5 * sides.prod(1)
    positive = matches.positive[0]
    assert (inside & ~positive).any() and (inside & positive).any() and (~inside).any()
    assert (grad[0, inside & ~positive] == 0).all()
    kept = ~inside | positive
    assert torch.equal(grad[0, kept], plain[0, kept])
    assert torch.equal(box_grad, plain_box)


def test_ignored_class_takes_its_class_on_it_and_never_positives():
    task, box = _task(), [28.0, 8, 80, 62]
    _, plain, plain_box = _run(task, _batch(_plain()))
    _, grad, box_grad = _run(task, _batch(_with(box, 2, Ignore.CLASS)))
    anchors, matches = _matches(task, _batch(_plain()))
    near = box_iou(torch.tensor([box]), anchors)[0] >= 0.4
    negative, positive = matches.negative[0], matches.positive[0]
    assert (near & negative).any() and (near & positive).any()
    assert (grad[0, near & negative, 2] == 0).all()
    assert torch.equal(grad[..., :2], plain[..., :2])
    assert torch.equal(grad[0, positive], plain[0, positive])
    assert torch.equal(grad[0, ~near], plain[0, ~near])
    assert torch.equal(box_grad, plain_box)


def test_silver_score_is_the_target():
    task, scores = _task(), torch.tensor([0.7, 1.0, 0.4])
    batch, outputs = _batch(_plain(scores=scores)), _outputs(1)
    terms, grad, _ = _run(task, batch, outputs)
    _, matches = _matches(task, batch)
    logits = _rows(outputs[:4], C).detach()[0].requires_grad_()
    target = torch.zeros_like(logits)
    positive = matches.positive[0].nonzero()[:, 0]
    box = matches.index[0, positive]
    target[positive, CLASSES[box]] = scores[box]
    used = matches.positive[0] | matches.negative[0]
    expected = (sigmoid_focal(logits, target) * used[:, None]).sum() / len(positive)
    expected.backward()
    torch.testing.assert_close(terms["class"], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[0], logits.grad, rtol=1e-4, atol=1e-9)


def test_weights_of_boxes():
    task = _task()
    _, plain, plain_box = _run(task, _batch(_plain()))
    weights = torch.tensor([[0.5, 0.25], [1, 1], [0, 0]])
    batch = _batch(_plain(weights=weights))
    _, grad, box_grad = _run(task, batch)
    _, matches = _matches(task, batch)
    box, positive = matches.index[0], matches.positive[0]
    expected, expected_box = plain[0].clone(), plain_box[0].clone()
    rows = positive.nonzero()[:, 0]
    expected[rows, CLASSES[box[rows]]] *= weights[box[rows], 0]
    expected_box[rows] *= weights[box[rows], 1][:, None]
    torch.testing.assert_close(grad[0], expected)
    torch.testing.assert_close(box_grad[0], expected_box)
    of_third = rows[box[rows] == 2]
    assert (box_grad[0, of_third] == 0).all() and (grad[0, of_third, 2] == 0).all()


def test_looked_at_and_empty():
    for normalizer in ("source", "batch", "image"):
        task, outputs = _task(normalizer=normalizer), _outputs(1)
        terms, grad, box_grad = _run(task, _batch(BoxLabels.empty(C)), outputs)
        logits = _rows(outputs[:4], C)
        expected = sigmoid_focal(logits, torch.zeros(1)).sum()
        torch.testing.assert_close(terms["class"], expected, rtol=1e-5, atol=0)
        assert terms["box"] == 0 and (box_grad == 0).all() and (grad != 0).all()


def _unlooked(*kinds):
    """Labels of a picture in which nobody looked for any class."""
    nothing = BoxLabels.empty(C, coverage=torch.zeros(C))
    boxes = torch.tensor([[0.0, 0, 96, 64]] * len(kinds)).view(-1, 4)
    labels = BoxLabels.of(boxes, torch.zeros(len(kinds)), C, coverage=nothing.coverage)
    return replace(labels, ignore=torch.tensor(kinds, dtype=torch.uint8)) if kinds else nothing


UNLOOKED = [None, _unlooked(), _unlooked(Ignore.REGION, Ignore.CLASS)]


@pytest.mark.parametrize("other", UNLOOKED)
@pytest.mark.parametrize("normalizer", ["source", "batch", "image"])
def test_picture_without_the_task_changes_nothing(normalizer, other):
    task, outputs = _task(normalizer=normalizer), _outputs(2)
    terms, grad, box_grad = _run(task, _batch(_plain(), other, groups=[0, 1]), outputs)
    alone, alone_grad, alone_box = _run(task, _batch(_plain()), [x[:1] for x in outputs])
    assert (grad[1] == 0).all() and (box_grad[1] == 0).all()
    torch.testing.assert_close(terms, alone)
    torch.testing.assert_close(grad[:1], alone_grad)
    torch.testing.assert_close(box_grad[:1], alone_box)


@pytest.mark.parametrize("other", UNLOOKED)
def test_batch_without_the_task_has_no_term(other):
    assert _task().loss(_outputs(2), _batch(None, other)) == {}


def test_box_of_a_class_that_nobody_looked_for_is_learned():
    terms, *_ = _run(_task(), _batch(_unlooked(Ignore.NO)))
    assert terms["class"] > 0 and terms["box"] > 0


@pytest.mark.parametrize("normalizer", ["source", "batch", "image"])
def test_source_listed_twice_at_half_weight_changes_nothing(normalizer):
    task, outputs = _task(normalizer=normalizer), _outputs(2)
    other = _plain()[torch.tensor([2])]
    terms, grad, box_grad = _run(task, _batch(_plain(), other, groups=[0, 1]), outputs)
    twice, twice_grad, twice_box = _run(
        task,
        _batch(_plain(), other, _plain(), groups=[0, 1, 2], weights=[0.5, 1, 0.5]),
        [torch.cat([x, x[:1]]) for x in outputs],
    )
    torch.testing.assert_close(terms, twice)
    torch.testing.assert_close(grad[0], twice_grad[0] + twice_grad[2])
    torch.testing.assert_close(grad[1], twice_grad[1])
    torch.testing.assert_close(box_grad[0], twice_box[0] + twice_box[2])


def test_boxes_of_one_source_do_not_weaken_the_other():
    """With "source" a flood of silver boxes leaves gold's gradient alone; with "batch" it does not."""
    flood = BoxLabels.of(BOXES.repeat(10, 1) + torch.arange(30)[:, None], CLASSES.repeat(10), C)
    outputs = _outputs(2)
    gold = {}
    for name, silver in (("few", _plain()), ("many", flood)):
        batch = _batch(_plain(), silver, groups=[0, 1])
        for normalizer in ("source", "batch"):
            _, grad, _ = _run(_task(normalizer=normalizer), batch, outputs)
            gold[name, normalizer] = grad[0]
    assert torch.equal(gold["few", "source"], gold["many", "source"])
    assert gold["many", "batch"].norm() < 0.8 * gold["few", "batch"].norm()


def test_weight_of_a_source_is_its_share():
    task, outputs = _task(), _outputs(2)
    _, even, _ = _run(task, _batch(_plain(), _plain(), groups=[0, 1]), outputs)
    _, grad, _ = _run(task, _batch(_plain(), _plain(), groups=[0, 1], weights=[3.0, 1.0]), outputs)
    torch.testing.assert_close(grad[0], even[0] * 0.75 / 0.5)
    torch.testing.assert_close(grad[1], even[1] * 0.25 / 0.5)


def test_bfloat16_outputs_give_the_float32_loss():
    halves = _outputs(2, torch.bfloat16)
    batch = _batch(_plain(), _plain())
    terms, grad, _ = _run(_task(), batch, halves)
    with torch.autocast("cpu", torch.bfloat16):
        under = _task().loss(halves, batch)
    exact, exact_grad, _ = _run(_task(), batch, [x.detach().float() for x in halves])
    assert terms["class"].dtype == terms["box"].dtype == torch.float32
    for name in terms:
        torch.testing.assert_close(terms[name], exact[name])
        torch.testing.assert_close(under[name], exact[name])
    torch.testing.assert_close(grad.float(), exact_grad, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("box", ["smooth_l1", "l1", "giou"])
def test_gradcheck_of_the_whole_loss(box):
    task = DetectionConfig(loss=LossSettings(box=box)).build("boxes", [8], [32], C, list("abc"))
    labels = _with([28.0, 8, 80, 62], 2, Ignore.CLASS)
    labels = replace(
        labels, scores=torch.tensor([0.7, 1, 1, 1]), coverage=torch.tensor([1, 0.5, 0])
    )
    batch, g = _batch(labels), torch.Generator().manual_seed(0)
    outputs = [
        torch.randn(1, A * n, 2, 3, generator=g, dtype=torch.float64).mul(0.3).requires_grad_()
        for n in (C, 4)
    ]
    assert torch.autograd.gradcheck(
        lambda *x: tuple(task.loss(list(x), batch).values()), outputs, fast_mode=True
    )


def test_padding_is_background():
    """As in torchvision; the exported network sees padding too."""
    samples = [
        Sample(
            torch.zeros(3, h, w, dtype=torch.uint8),
            {"boxes": _plain()},
            ImageInfo(0, "", h, w, "s"),
        )
        for h, w in ((HEIGHT, WIDTH), (60, 92))
    ]
    batch = Batch.of(samples)
    _, grad, _ = _run(_task(), batch, [torch.cat([x, x]) for x in _outputs(1)])
    assert batch.sizes[1].tolist() == [60, 92]
    torch.testing.assert_close(grad[0], grad[1])


def test_forward_and_decode():
    task = _task().eval()
    outputs = task([torch.randn(2, 8, -(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES])
    assert [x.shape[1] for x in outputs] == [A * C] * 4 + [A * 4] * 4
    outputs[0].data += 3
    found = task.decode(outputs, torch.tensor([[HEIGHT, WIDTH], [40, 50]]))
    assert len(found) == 2 and 0 < len(found[1]) <= 100
    assert found[1].boxes[:, 2].max() <= 50 and found[1].boxes[:, 3].max() <= 40
    assert not found[0].boxes.requires_grad and found[0].coverage.tolist() == [1, 1, 1]


def test_levels_of_different_width_are_refused():
    with pytest.raises(InputError, match="channels"):
        DetectionConfig().build("boxes", [8, 16], [8, 16], C, list("abc"))
