"""Every row of the label table, for every class loss, way of matching and output of the head."""

from dataclasses import replace

import pytest
import torch
from test_detection import BOXES, CLASSES, HEIGHT, STRIDES, WIDTH, A, C, _batch, _rows
from torch.nn import functional as F
from torchvision.ops import box_iou

from detmtl.losses.boxes import ciou
from detmtl.losses.focal import sigmoid_focal
from detmtl.losses.quality import quality_focal, varifocal
from detmtl.models.distances import centerness, decode_distances, expected
from detmtl.models.retina_head import HeadSettings
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.tasks import detection_loss
from detmtl.tasks.detection import DetectionConfig, LossSettings, MatchingSettings

LOSSES = {
    "focal": lambda x, t: sigmoid_focal(x, t, 0.25, 2.0),
    "quality_focal": quality_focal,
    "varifocal": varifocal,
}
COMBINATIONS = [
    ("max_iou", "quality_focal", "deltas", "giou", "none"),
    ("max_iou", "varifocal", "deltas", "smooth_l1", "none"),
    ("max_iou", "focal", "distribution", "diou", "none"),
    ("max_iou", "focal", "deltas", "l1", "iou"),
    ("atss", "focal", "deltas", "giou", "centerness"),
    ("atss", "quality_focal", "distribution", "ciou", "none"),
    ("atss", "varifocal", "distribution", "giou", "iou"),
]
every_combination = pytest.mark.parametrize(
    ("kind", "classification", "box", "box_loss", "quality"), COMBINATIONS
)


def _config(kind, classification, box, box_loss, quality, **loss):
    return DetectionConfig(
        head=HeadSettings(depth=1, box=box, quality=quality),
        matching=MatchingSettings(kind=kind),
        loss=LossSettings(classification=classification, box=box_loss, **loss),
    )


def _task(*combination, strides=STRIDES, **loss):
    torch.manual_seed(0)
    return _config(*combination, **loss).build("boxes", [8] * len(strides), strides, C, list("abc"))


def _outputs(task, pictures, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = [
        torch.randn(pictures, 8, -(-HEIGHT // s), -(-WIDTH // s), generator=g) for s in STRIDES
    ]
    with torch.no_grad():
        return [(2 * x).to(dtype) for x in task(features)]


def _run(task, batch, outputs):
    """Returns the terms and the gradients: logits (B, A, C), boxes (B, A, numbers), quality or None."""
    outputs = [x.detach().clone().requires_grad_() for x in outputs]
    terms = task.loss(outputs, batch)
    sum(terms.values()).backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in outputs]
    assert all(torch.isfinite(g).all() for g in grads)
    levels = len(STRIDES)
    numbers = grads[levels].shape[1] // A
    quality = _rows(grads[2 * levels :], 1)[..., 0] if len(grads) > 2 * levels else None
    return terms, _rows(grads[:levels], C), _rows(grads[levels : 2 * levels], numbers), quality


def _mixed():
    """Gold and silver boxes, a doubtful one, a crowd, and classes looked for in part and not at all."""
    boxes = torch.cat([BOXES, torch.tensor([[28.0, 8, 80, 62], [0.0, 30, 40, 64]])])
    return BoxLabels.of(
        boxes,
        torch.cat([CLASSES, torch.tensor([2, 0])]),
        C,
        scores=torch.tensor([0.7, 1.0, 0.4, 1.0, 1.0]),
        weights=torch.tensor([[1, 0.5], [1, 1], [0.25, 1], [1, 1], [1, 1]]),
        ignore=torch.tensor([0, 0, 0, int(Ignore.CLASS), int(Ignore.REGION)]),
        coverage=torch.tensor([1.0, 0.0, 0.3]),
    )


@every_combination
def test_the_whole_table_against_a_dense_reference(kind, classification, box, box_loss, quality):
    task = _task(kind, classification, box, box_loss, quality, box_weight=1.5)
    labels = _mixed()
    batch, outputs = _batch(labels), _outputs(task, 1)
    terms, grad, _, _ = _run(task, batch, outputs)
    maps = outputs[: len(STRIDES)]
    anchors = task.anchors.flat(maps)
    matches = task._loss._match(anchors, batch.labels["boxes"], maps)
    positive = matches.positive[0].nonzero()[:, 0]
    index, own = matches.index[0, positive], anchors[positive].double()
    truth = labels.boxes[index].double()
    numbers = 4 * (task.decoder.bins + 1)
    said = _rows(outputs[len(STRIDES) : 2 * len(STRIDES)], numbers)[0, positive]
    predicted = task.decoder.decoded(own, said)
    fit = box_iou(predicted, truth).diagonal()
    assert len(positive) > 5 and matches.ignored.any() and 0.05 < fit.mean() < 0.95

    logits = _rows(maps, C)[0].requires_grad_()
    target, weight = torch.zeros_like(logits), torch.zeros_like(logits)
    used = matches.positive[0] | matches.negative[0]
    weight[used] = labels.coverage.double()
    weight[matches.ignored[0]] = 0
    scores = labels.scores[index].double()
    target[positive, labels.classes[index]] = scores if classification == "focal" else scores * fit
    weight[positive, labels.classes[index]] = labels.weights[index, 0].double()
    expected_class = (LOSSES[classification](logits, target) * weight).sum() / len(positive)
    expected_class.backward()
    torch.testing.assert_close(terms["class"], expected_class, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[0], logits.grad, rtol=1e-4, atol=1e-9)
    assert (grad[0][weight == 0] == 0).all()

    box_weights = labels.weights[index, 1].double() / len(positive)
    if box_loss == "ciou":
        expected_box = 1.5 * (ciou(predicted, truth) * box_weights).sum()
        torch.testing.assert_close(terms["box"], expected_box, rtol=1e-6, atol=0)
    assert ("distribution" in terms) == (box == "distribution")
    assert tuple(terms) == task.terms
    if quality != "none":
        logit = _rows(outputs[2 * len(STRIDES) :], 1)[0, positive, 0]
        wanted = fit if quality == "iou" else centerness(own, truth)
        losses = F.binary_cross_entropy_with_logits(logit, wanted, reduction="none")
        torch.testing.assert_close(
            terms["quality"], (losses * box_weights).sum(), rtol=1e-5, atol=0
        )


@every_combination
def test_only_positives_learn_boxes_by_their_box_weight(
    kind, classification, box, box_loss, quality
):
    task = _task(kind, classification, box, box_loss, quality)
    plain = BoxLabels.of(BOXES, CLASSES, C)
    halved = replace(plain, weights=torch.tensor([[1, 0.5], [1, 1], [1, 0]]))
    outputs = _outputs(task, 1)
    batch = _batch(plain)
    _, class_grad, grad, quality_grad = _run(task, batch, outputs)
    _, other_class, other, other_quality = _run(task, _batch(halved), outputs)
    maps = outputs[: len(STRIDES)]
    matches = task._loss._match(task.anchors.flat(maps), batch.labels["boxes"], maps)
    positive, index = matches.positive[0], matches.index[0]
    factor = torch.tensor([0.5, 1, 0])[index] * positive
    torch.testing.assert_close(other[0], grad[0] * factor[:, None])
    assert (grad[0][~positive] == 0).all() and (grad[0][positive] != 0).any(1).all()
    assert torch.equal(class_grad, other_class)
    if quality_grad is not None:
        torch.testing.assert_close(other_quality[0], quality_grad[0] * factor)
        assert (quality_grad[0][~positive] == 0).all() and (quality_grad[0][positive] != 0).all()


@every_combination
def test_empty_absent_and_doubled_pictures(kind, classification, box, box_loss, quality):
    task = _task(kind, classification, box, box_loss, quality)
    outputs = _outputs(task, 2)
    terms, grad, box_grad, quality_grad = _run(task, _batch(BoxLabels.empty(C), None), outputs)
    negatives = LOSSES[classification](_rows(outputs[: len(STRIDES)], C)[0], torch.zeros(1))
    torch.testing.assert_close(terms["class"], negatives.sum(), rtol=1e-5, atol=0)
    assert all(term == 0 for name, term in terms.items() if name != "class")
    assert (grad[0] != 0).all() and (grad[1] == 0).all() and (box_grad == 0).all()
    assert quality_grad is None or (quality_grad == 0).all()
    assert task.loss(outputs, _batch(None, None)) == {}
    plain = BoxLabels.of(BOXES, CLASSES, C)
    once = _run(task, _batch(plain, plain[torch.tensor([2])], groups=[0, 1]), outputs)
    twice = _run(
        task,
        _batch(plain, plain[torch.tensor([2])], plain, groups=[0, 1, 2], weights=[0.5, 1, 0.5]),
        [torch.cat([x, x[:1]]) for x in outputs],
    )
    torch.testing.assert_close(dict(once[0]), dict(twice[0]))
    for a, b in zip(once[1:], twice[1:], strict=True):
        if a is not None:
            torch.testing.assert_close(a[0], b[0] + b[2])
            torch.testing.assert_close(a[1], b[1])


@every_combination
def test_gradcheck(kind, classification, box, box_loss, quality):
    """Targets that depend on the boxes have no gradient: logits are checked with the boxes held, and
    boxes with the terms that compare them."""
    config = _config(kind, classification, box, box_loss, quality)
    task = config.build("boxes", [8], [32], C, list("abc"))
    batch, g = _batch(_mixed()), torch.Generator().manual_seed(0)
    numbers = 4 * (task.decoder.bins + 1)
    outputs = [
        torch.randn(1, A * n, 2, 3, generator=g, dtype=torch.float64).mul(0.3)
        for n in (C, numbers, 1)
    ][: task.decoder.parts]
    terms_of_boxes = ["box"] + ["distribution"] * (box == "distribution")
    if box_loss != "ciou":  # the weight of its shapes is held too, see test_box_losses.py
        assert torch.autograd.gradcheck(
            lambda x: sum(
                task.loss([outputs[0], x, *outputs[2:]], batch)[n] for n in terms_of_boxes
            ),
            (outputs[1].clone().requires_grad_(),),
            fast_mode=True,
        )
    others = [outputs[0], *outputs[2:]]
    assert torch.autograd.gradcheck(
        lambda x, *q: tuple(
            task.loss([x, outputs[1], *q], batch)[n] for n in ["class"] + ["quality"] * len(q)
        ),
        tuple(x.clone().requires_grad_() for x in others),
        fast_mode=True,
    )


@every_combination
def test_bfloat16_outputs_give_the_float32_loss(kind, classification, box, box_loss, quality):
    task = _task(kind, classification, box, box_loss, quality)
    halves = _outputs(task, 1, torch.bfloat16)
    batch = _batch(_mixed())
    terms = task.loss(halves, batch)
    exact = task.loss([x.float() for x in halves], batch)
    assert all(term.dtype == torch.float32 for term in terms.values())
    torch.testing.assert_close(dict(terms), dict(exact))


def test_learning_a_picture_by_heart_finds_its_boxes():
    """The whole of a head with every addition: what is learned is what is decoded."""
    task = _task("atss", "quality_focal", "distribution", "giou", "iou")
    batch = _batch(BoxLabels.of(BOXES, CLASSES, C))
    outputs = [x.float().requires_grad_() for x in _outputs(task, 1)]
    optimizer = torch.optim.Adam(outputs, lr=0.4)
    for _ in range(50):
        optimizer.zero_grad()
        sum(task.loss(outputs, batch).values()).backward()
        optimizer.step()
    found = task.decode([x.detach() for x in outputs], torch.tensor([[HEIGHT, WIDTH]]))[0]
    found = found[found.scores > 0.7]
    assert sorted(found.classes.tolist()) == [0, 1, 2]
    overlap = box_iou(found.boxes, BOXES[found.classes]).diagonal()
    assert overlap.min() > 0.9, overlap
    places = expected(torch.zeros(1, 4 * 17), 16)
    middle = decode_distances(torch.tensor([[0.0, 0, 16, 16]]), places, 16, 2.0)
    assert middle.tolist() == [[-8, -8, 24, 24]]  # an even distribution is twice the anchor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head": {"box": "distribution"}, "loss": {"box": "smooth_l1"}},
            "compares deltas.*giou, diou, ciou",
        ),
        ({"matching": {"kind": "atss", "foreground": 0.6}}, "leave foreground"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DetectionConfig.model_validate(settings)


@every_combination
def test_the_way_of_a_gpu_gives_the_loss_of_the_cpu(
    kind, classification, box, box_loss, quality, monkeypatch
):
    """There all anchors are worked on, the positives among them."""
    task = _task(kind, classification, box, box_loss, quality)
    batch, results = _batch(_mixed()), []
    for every in (False, True):
        if every:
            monkeypatch.setattr(
                detection_loss,
                "_learned",
                lambda matches: (torch.arange(matches.positive.numel()), True),
            )
        outputs = [x.requires_grad_() for x in _outputs(task, 1)]
        terms = task.loss(outputs, batch)
        sum(terms.values()).backward()
        results.append((dict(terms), [x.grad for x in outputs]))
    torch.testing.assert_close(results[0], results[1])


def test_an_anchor_cannot_be_below_background_and_above_foreground():
    with pytest.raises(
        ValueError, match=r"background 0\.5 is above foreground 0\.3.* lower background"
    ):
        MatchingSettings(foreground=0.3, background=0.5)
