"""Decoding against torchvision's RetinaNet."""

from types import SimpleNamespace

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import batched_nms

from detmtl.inference.torchscript import deprecation_expected
from detmtl.models.anchors import AnchorSettings
from detmtl.models.decoding import Decoder, above, least_logit
from detmtl.models.distances import decode_distances, expected

STRIDES = [8, 16, 32]
C, A = 4, 9


def _decoder(**kwargs):
    return Decoder(AnchorSettings().build(STRIDES), C, **kwargs)


def _outputs(pictures=2, height=96, width=128, level=-3.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(height // s, width // s) for s in STRIDES]
    logits = [torch.randn(pictures, A * C, *s, generator=g) * 1.5 + level for s in shapes]
    deltas = [torch.randn(pictures, A * 4, *s, generator=g) * 0.5 for s in shapes]
    return [x.to(dtype) for x in logits + deltas]


def _torchvision(decoder, outputs, sizes):
    """Detections of torchvision's own code from the same logits and deltas."""
    half = len(outputs) // 2

    def rows(x, n):
        b, _, h, w = x.shape
        return x.view(b, A, n, h, w).permute(0, 3, 4, 1, 2).reshape(b, -1, n)

    model = SimpleNamespace(
        score_thresh=decoder.score_threshold,
        topk_candidates=decoder.candidates,
        nms_thresh=decoder.nms,
        detections_per_img=decoder.detections,
        box_coder=BoxCoder((1.0, 1.0, 1.0, 1.0)),
    )
    heads = {
        "cls_logits": [rows(x, C) for x in outputs[:half]],
        "bbox_regression": [rows(x, 4) for x in outputs[half:]],
    }
    anchors = [decoder.anchors(outputs[:half])] * len(outputs[0])
    shapes = [tuple(s) for s in sizes.tolist()]
    return RetinaNet.postprocess_detections(model, heads, anchors, shapes)


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, -3.0),
        ({"candidates": 50, "detections": 7}, -1.0),
        ({"score_threshold": 0.3, "nms": 0.2}, 0.0),
    ],
)
def test_detections_equal_torchvisions(settings, level):
    decoder, outputs = _decoder(**settings), _outputs(level=level)
    sizes = torch.tensor([[96, 128], [77, 101]])
    for ours, theirs in zip(
        decoder(outputs, sizes), _torchvision(decoder, outputs, sizes), strict=True
    ):
        boxes, scores, classes = ours
        assert len(boxes) > 5
        torch.testing.assert_close(boxes, theirs["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(scores, theirs["scores"])
        assert torch.equal(classes, theirs["labels"])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_scripted_equals_eager():
    decoder, sizes = _decoder(), torch.tensor([[96, 128], [77, 101]])
    with deprecation_expected():
        scripted = torch.jit.script(decoder)
    for level in (-3.0, -30.0):
        outputs = _outputs(level=level)
        for ours, theirs in zip(decoder(outputs, sizes), scripted(outputs, sizes), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_nothing_found():
    for boxes, scores, classes in _decoder()(_outputs(level=-40.0), torch.tensor([[96, 128]] * 2)):
        assert boxes.shape == (0, 4) and scores.shape == (0,) and classes.shape == (0,)
        assert classes.dtype == torch.int64


def test_boxes_stay_in_the_true_picture_and_scores_fall():
    for boxes, scores, _ in _decoder()(_outputs(), torch.tensor([[50, 60]] * 2)):
        assert boxes.min() >= 0 and boxes[:, 0::2].max() <= 60 and boxes[:, 1::2].max() <= 50
        assert (scores[:-1] >= scores[1:]).all() and scores.min() > 0.05 and len(scores) <= 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_decoded_in_float32(dtype):
    halves = _outputs(dtype=dtype)
    sizes = torch.tensor([[96, 128]] * 2)
    for ours, theirs in zip(
        _decoder()(halves, sizes), _decoder()([x.float() for x in halves], sizes), strict=True
    ):
        assert ours[0].dtype == ours[1].dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _two_overlapping():
    """One anchor at which two classes are found."""
    outputs = _outputs(1, level=-40.0)
    outputs[0].fill_(-40.0)
    for x in outputs[3:]:
        x.zero_()
    outputs[0][0, 4 * C + 1, 6, 8] = 2.0
    outputs[0][0, 4 * C + 3, 6, 8] = 1.0
    return outputs


def test_classes_suppress_each_other_only_if_agnostic():
    sizes = torch.tensor([[96, 128]])
    assert _decoder()(_two_overlapping(), sizes)[0][2].tolist() == [1, 3]
    assert _decoder(class_agnostic=True)(_two_overlapping(), sizes)[0][2].tolist() == [1]


def test_early_exit_changes_nothing():
    """Suppression of a prefix must give what suppression of all candidates gives."""
    outputs, sizes = _outputs(level=1.0), torch.tensor([[96, 128]] * 2)
    few, all_of_them = _decoder(detections=3), _decoder(detections=5000)
    for short, long in zip(few(outputs, sizes), all_of_them(outputs, sizes), strict=True):
        assert all(torch.equal(a, b[:3]) for a, b in zip(short, long, strict=True))


def _with_distributions(quality, height=96, width=128):
    """Outputs of a head of distributions (8 bins), with or without a branch for quality."""
    outputs, g = _outputs(), torch.Generator().manual_seed(5)
    maps = [(x.shape[-2], x.shape[-1]) for x in outputs[:3]]
    outputs[3:] = [torch.randn(2, A * 4 * 9, *s, generator=g) for s in maps]
    if quality:
        outputs += [torch.randn(2, A, *s, generator=g) for s in maps]
    return outputs


def _by_hand(decoder, outputs, size):
    """Everything that could come out of a picture before suppression: boxes, scores, classes."""
    rows = [x[:1].permute(0, 2, 3, 1).reshape(x[0].numel() // n, n) for x, n in outputs]
    logits, boxes = torch.cat(rows[:3]), torch.cat(rows[3:6])
    p = logits.sigmoid()
    scores = p
    if len(rows) > 6:
        scores = p**0.7 * torch.cat(rows[6:]).sigmoid() ** 0.3
    anchors = decoder.anchors.flat([x for x, _ in outputs[:3]])
    boxes = decode_distances(anchors, expected(boxes, 8), 8, 1.5)
    kept = ((p > 0.05) & (scores > 0.05)).nonzero()
    boxes = boxes[kept[:, 0]].clamp(min=0).minimum(torch.tensor([*size[::-1]] * 2))
    return boxes, scores[kept[:, 0], kept[:, 1]], kept[:, 1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("quality", [False, True])
def test_distributions_and_quality(quality):
    decoder = _decoder(bins=8, reach=1.5, quality=quality, quality_power=0.3, detections=40)
    outputs, sizes = _with_distributions(quality), torch.tensor([[96, 128], [77, 101]])
    found = decoder(outputs, sizes)
    numbers = [C] * 3 + [36] * 3 + [1] * 3
    boxes, scores, classes = _by_hand(
        decoder, list(zip(outputs, numbers[: len(outputs)], strict=True)), (96.0, 128.0)
    )
    kept = batched_nms(boxes.double(), scores.double(), classes, 0.5)[:40]
    assert len(kept) == 40
    torch.testing.assert_close(found[0][0], boxes[kept], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0][1], scores[kept])
    assert torch.equal(found[0][2], classes[kept])
    for ours, theirs in zip(found, torch.jit.script(decoder)(outputs, sizes), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    halves = [x.bfloat16() for x in outputs]
    exact = decoder([x.float() for x in halves], sizes)
    for ours, theirs in zip(decoder(halves, sizes), exact, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_quality_ranks_boxes_of_one_probability():
    outputs = [*_two_overlapping(), *(torch.zeros(1, A, 96 // s, 128 // s) for s in STRIDES)]
    outputs[0].fill_(-40.0)
    outputs[0][0, 4 * C + 1, 2, 2] = outputs[0][0, 4 * C + 1, 9, 12] = 2.0
    outputs[6][0, 4, 9, 12] = 3.0
    scores = {}
    for power in (0.0, 0.5):
        boxes, scores[power], _ = _decoder(quality=True, quality_power=power)(
            outputs, torch.tensor([[96, 128]])
        )[0]
    assert len(boxes) == 2 and boxes[0, 0] > boxes[1, 0]  # the one of better quality comes first
    p, q = torch.tensor(2.0).sigmoid(), torch.tensor([3.0, 0.0]).sigmoid()
    torch.testing.assert_close(scores[0.0], p.expand(2))
    torch.testing.assert_close(scores[0.5], (p * q).sqrt())


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_above_finds_what_a_comparison_of_all_finds(count, dtype):
    g = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=g).to(dtype)
    for limit in (-float("inf"), -0.5, 2.5, 9.0):
        assert torch.equal(above(values, limit), torch.nonzero(values > limit).squeeze(1))


def _same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[:2], theirs[:2])
        assert torch.equal(ours[2], theirs[2])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, -3.0),
        ({"detections": 5}, 1.0),
        ({"detections": 60, "nms": 0.05}, 1.0),  # most of what is found is needed to find so many
        ({"detections": 3000, "nms": 0.9}, 1.0),
        ({"candidates": 50, "detections": 7}, -1.0),
        ({"score_threshold": 0.0, "candidates": 100000}, -1.0),
        ({"score_threshold": 0.3, "nms": 0.2, "class_agnostic": True}, 0.0),
        ({}, -40.0),  # nothing
        ({"bins": 8, "reach": 1.5, "quality": True, "quality_power": 0.3}, None),
    ],
)
def test_all_pictures_together_give_what_each_gives_alone(settings, level):
    """As a GPU decodes; of float64, whose scores are seldom equal: their order is not the same in both."""
    decoder = _decoder(**settings)
    outputs = _with_distributions(True) if level is None else _outputs(level=level)
    outputs = [
        torch.cat([x, x.flip(0) - 0.5, x - 9.0]).double() for x in outputs
    ]  # little in the last
    sizes = torch.tensor([[96, 128], [77, 101]] * 3)
    expected = decoder(outputs, sizes)
    assert (level == -40.0) == (not sum(len(scores) for _, scores, _ in expected))
    parts = decoder._parts(outputs)
    _same(decoder._together(*parts, sizes), expected)
    scripted = torch.jit.script(decoder)
    for _ in range(3):  # a program is optimized from the second time on
        _same(scripted._together(*parts, sizes), expected)
    few = _decoder(**settings)._together(*decoder._parts([x[:1] for x in outputs]), sizes[:1])
    _same(few, expected[:1])


def test_what_is_no_number_hides_no_other_row():
    outputs = _outputs(1, level=0.0)
    clean = _decoder(candidates=20)._together(
        *_decoder()._parts(outputs), torch.tensor([[96, 128]])
    )
    outputs[0][0, :, 6, :] = torch.nan
    outputs[0][0, :, 5, :] = -9.0
    found = _decoder(candidates=20)._together(
        *_decoder()._parts(outputs), torch.tensor([[96, 128]])
    )
    assert len(clean[0][1]) > 20 and len(found[0][1]) > 20 and found[0][1].isfinite().all()
    # beside a picture with more rows this one fills up with those that are no numbers
    few = [torch.cat([x, x]) for x in _outputs(1, level=-30.0)]
    few[0][0, 1, 3, 3] = 2.0
    few[0][0, :, 6, :] = torch.nan
    few[0][1] = 2.0
    both = _decoder()._together(*_decoder()._parts(few), torch.tensor([[96, 128]] * 2))
    assert both[0][1].tolist() == [pytest.approx(torch.tensor(2.0).sigmoid().item())]


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.5, 0.9])
def test_the_limit_of_candidates_is_below_every_logit_that_may_be_kept(threshold):
    exact = torch.logit(torch.tensor(threshold, dtype=torch.float64))
    assert least_logit(threshold) < exact < least_logit(threshold) + 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.01, 0.02, 0.05, 0.3, 0.9])
def test_no_candidate_is_lost_to_the_rounding_of_the_limit(threshold, dtype):
    logits = torch.linspace(-7, 7, 4096).to(dtype)
    expected = (logits.float().sigmoid() > threshold).sum()
    outputs = [torch.full((1, A * C, s, 1), -60.0).to(dtype) for s in (64, 2, 1)]
    deltas = [torch.zeros(1, A * 4, s, 1).to(dtype) for s in (64, 2, 1)]
    outputs[0].view(-1)[: 36 * 64] = logits[: 36 * 64]
    low = _decoder(score_threshold=threshold, candidates=9000, detections=9000, nms=1.0)
    outputs[1].view(-1)[:72], outputs[2].view(-1)[:36] = logits[2304:2376], logits[2376:2412]
    shown = torch.cat([x.view(-1) for x in outputs])
    expected = int((shown.float().sigmoid() > threshold).sum())
    size = torch.tensor([[512, 8]])
    for found in (low(outputs + deltas, size), low._together(*low._parts(outputs + deltas), size)):
        assert len(found[0][1]) == expected
