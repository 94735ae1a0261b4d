"""Convolutions by Winograd's algorithm beside torch's own."""

import copy
import pickle
from functools import partial
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine import precision
from detmtl.engine.distributed import Process
from detmtl.engine.evaluator import collect, predict
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import Computing, Precision
from detmtl.engine.recorder import Recorder, read_metrics
from detmtl.engine.trainer import TrainSettings, train
from detmtl.inference.predictor import LoadedModel, Predictor
from detmtl.models import winograd
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.models.winograd import Winograd, conv2d, pays, transformed
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.verbs.parser import build_parser

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def numbers(*shape, dtype=torch.float64, seed=0):
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def leaves(count, into, out, height, width, dtype=torch.float64, bias=True):
    """A layer's input, weight and bias."""
    shapes = [(count, into, height, width), (out, into, 3, 3), *([(out,)] if bias else [])]
    return [numbers(*s, dtype=dtype, seed=i).requires_grad_() for i, s in enumerate(shapes)]


@pytest.fixture
def count(monkeypatch):
    """The shapes of inputs that went through this module's own convolution."""
    seen = []

    def counted(x, *rest):
        seen.append(tuple(x.shape))
        return conv2d(x, *rest)

    monkeypatch.setattr(winograd, "conv2d", counted)
    return seen


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels first": torch.Tensor.contiguous,
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "columns before channels": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "part of a larger one": lambda x: x.repeat(2, 2, 2, 2)[: len(x), : x.shape[1], 1:, 1:][
        :, :, : x.shape[2], : x.shape[3]
    ],
    "one for all": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_in_memory_changes_nothing(layout, padding):
    """With sides that need no more padding too, where torch pads nothing and keeps the order."""
    x, weight, bias = (v.detach() for v in leaves(2, 3, 4, 10, 14))
    x = LAYOUTS[layout](x).requires_grad_()
    weight.requires_grad_()
    mine, direct = conv2d(x, weight, bias, padding), F.conv2d(x, weight, bias, padding=padding)
    torch.testing.assert_close(mine, direct, rtol=1e-9, atol=1e-11)
    weighted = LAYOUTS[layout](numbers(*direct.shape, seed=9))
    for a, b in zip(
        *(torch.autograd.grad(y, (x, weight), weighted) for y in (mine, direct)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("at_once", [1, 3, 512])
@pytest.mark.parametrize("padding", [(1, 1), (0, 0), (0, 1), (2, 3)])
@pytest.mark.parametrize("size", [(1, 4, 4), (2, 9, 7), (3, 8, 17), (1, 3, 3), (5, 12, 20)])
def test_values_and_gradients_are_the_direct_ones(monkeypatch, size, padding, at_once):
    """Of sides that tiles fit and do not fit, and tiles in groups within and across pictures."""
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    given = leaves(size[0], 3, 5, *size[1:])
    mine, direct = conv2d(*given, padding), F.conv2d(*given, padding=padding)
    torch.testing.assert_close(mine, direct, rtol=1e-9, atol=1e-11)
    weighted = numbers(*direct.shape, seed=9)
    for a, b in zip(
        *(torch.autograd.grad(y, given, weighted) for y in (mine, direct)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradients_are_numbers_own_differences():
    given = leaves(2, 2, 3, 6, 5)
    assert torch.autograd.gradcheck(lambda *x: conv2d(*x, (1, 1)), given)
    assert torch.autograd.gradcheck(lambda *x: conv2d(*x, None, (1, 1)), given[:2])


def test_only_what_is_asked_for_is_computed(monkeypatch):
    x, weight, bias = leaves(1, 2, 2, 8, 8)
    found = conv2d(x.detach(), weight, bias, (1, 1))
    of_weight, of_bias = torch.autograd.grad(found.sum(), (weight, bias))
    assert of_weight.shape == weight.shape and of_bias.tolist() == [64, 64]
    found = conv2d(x, weight.detach(), None, (1, 1))
    monkeypatch.setattr(
        winograd._Tiles, "padded", None
    )  # windows are for the weights' gradient alone
    (of_x,) = torch.autograd.grad(found.sum(), x)
    assert of_x.shape == x.shape
    monkeypatch.undo()
    found = conv2d(x.detach(), weight.detach(), bias, (1, 1))
    monkeypatch.setattr(winograd, "_through", None)
    assert torch.autograd.grad(found.sum(), bias)[0].tolist() == [64, 64]


def test_no_pictures_have_a_gradient_of_zeros():
    x, weight, bias = leaves(0, 2, 3, 8, 8)
    found = conv2d(x, weight, bias, (1, 1))
    assert found.shape == (0, 3, 8, 8)
    for given, gradient in zip(
        (x, weight, bias), torch.autograd.grad(found.sum(), (x, weight, bias)), strict=True
    ):
        assert gradient.shape == given.shape and not gradient.any()


def test_float32_is_close_to_the_exact_sum():
    """The figure in the docstring: about 3e-6 in norm."""
    given = leaves(2, 128, 128, 32, 32, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in given]
    weighted = numbers(2, 128, 32, 32, dtype=torch.float32, seed=9)
    mine = conv2d(*given, (1, 1))
    theirs = F.conv2d(*exact, padding=1)
    pairs = [(mine, theirs)]
    pairs += zip(
        torch.autograd.grad(mine, given, weighted),
        torch.autograd.grad(theirs, exact, weighted.double()),
        strict=True,
    )
    assert all((a - b).norm() < 6e-6 * b.norm() for a, b in pairs)


def test_many_gradients_at_once():
    x, weight, _ = leaves(2, 4, 3, 9, 8)
    found = conv2d(x, weight, None, (1, 1))
    weighted = torch.stack([numbers(*found.shape, seed=s) for s in range(3)])
    together = torch.autograd.grad(
        found, (x, weight), weighted, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        alone = torch.autograd.grad(found, (x, weight), weighted[i], retain_graph=True)
        torch.testing.assert_close([g[i] for g in together], list(alone))


def test_a_gradient_of_a_gradient_is_refused_not_wrong():
    x, weight, _ = leaves(1, 2, 2, 4, 4)
    (of_x,) = torch.autograd.grad(
        conv2d(x, weight, None, (1, 1)).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()


def test_what_comes_out_may_be_changed_in_place():
    for height in (8, 9):
        given = leaves(1, 2, 2, height, 8)
        changed = conv2d(*given, (1, 1)).relu_()
        assert changed.is_contiguous(memory_format=torch.channels_last)
        assert (changed >= 0).all()
        changed.sum().backward()


WIDE = nn.Conv2d(96, 96, 3, padding=1)
ELIGIBLE = torch.zeros(1, 96, 16, 16)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(96, 96, 3, 2, 1), ELIGIBLE),
        (nn.Conv2d(96, 96, 3, padding=2, dilation=2), ELIGIBLE),
        (nn.Conv2d(192, 96, 3, padding=1, groups=2), torch.zeros(1, 192, 16, 16)),
        (nn.Conv2d(96, 96, 1), ELIGIBLE),
        (nn.Conv2d(96, 96, 5, padding=2), ELIGIBLE),
        (nn.Conv2d(96, 96, 3, padding="same"), ELIGIBLE),
        (nn.Conv2d(96, 48, 3, padding=1), ELIGIBLE),
        (nn.Conv2d(96, 96, 3, (1, 2), 1), ELIGIBLE),
        (nn.Conv2d(96, 96, 3, padding=1, dilation=(1, 2)), ELIGIBLE),
        (nn.Conv2d(48, 96, 3, padding=1), torch.zeros(1, 48, 16, 16)),
        (WIDE, torch.zeros(1, 96, 12, 20)),
        (nn.Conv2d(96, 96, 3), torch.zeros(1, 96, 14, 17)),
        (WIDE, torch.zeros(8, 96, 8, 8)),
        (WIDE, torch.zeros(96, 16, 16)),
        (copy.deepcopy(WIDE).double(), ELIGIBLE.double()),
        (copy.deepcopy(WIDE).bfloat16(), ELIGIBLE.bfloat16()),
    ],
    ids=str,
)
def test_all_others_stay_as_they_are(count, layer, x):
    x = torch.randn(x.shape).to(x.dtype)
    with Winograd():
        found = layer(x)
    assert count == [] and torch.equal(found, layer(x))


def test_eligible_ones_are_recognized(count):
    x = torch.randn(ELIGIBLE.shape)
    uneven = nn.Conv2d(96, 96, 3, padding=(0, 2))
    with Winograd():
        found = WIDE(x), F.conv2d(x, WIDE.weight, bias=WIDE.bias, padding=(1,)), uneven(x)
    assert len(count) == 3
    torch.testing.assert_close(found[0], WIDE(x), **CLOSE)
    torch.testing.assert_close(found[1], WIDE(x), **CLOSE)
    torch.testing.assert_close(found[2], uneven(x), **CLOSE)
    assert WIDE(x).shape == found[0].shape and len(count) == 3  # outside of it


def test_what_torch_refuses_it_refuses_in_its_own_words(count):
    for x in (torch.zeros(1, 95, 16, 16), torch.zeros(1, 96, 2, 80), torch.zeros(1, 96, 80, 2)):
        layer = nn.Conv2d(96, 96, 3)
        with pytest.raises(RuntimeError) as direct:
            layer(x)
        with pytest.raises(RuntimeError) as found, Winograd():
            layer(x)
        assert str(found.value) == str(direct.value)
    assert count == []


def test_autocast_goes_first(count):
    x = torch.randn(ELIGIBLE.shape)
    with torch.autocast("cpu", torch.bfloat16):
        with Winograd():
            found = WIDE(x)
        torch.testing.assert_close(found, WIDE(x), rtol=0, atol=0)
    assert count == [] and found.dtype == torch.bfloat16


def test_narrower_layers_pay_where_something_is_learned():
    weight, x = torch.zeros(64, 64, 3, 3), torch.zeros(1, 64, 48, 48)
    assert not pays(x, weight, (1, 1))
    for learning in ((x.clone().requires_grad_(), weight), (x, weight.clone().requires_grad_())):
        assert pays(*learning, (1, 1))
        assert not pays(learning[0][..., :40], learning[1], (1, 1))
        with torch.no_grad():
            assert not pays(*learning, (1, 1))
    narrow = torch.zeros(48, 64, 3, 3, requires_grad=True)
    assert not pays(x, narrow, (1, 1))
    assert not pays(ELIGIBLE.to("meta"), WIDE.weight.to("meta"), (1, 1))


def test_a_picture_is_computed_alike_whatever_is_beside_it(count):
    pictures = torch.randn(6, 96, 20, 24)
    with Winograd(), torch.no_grad():
        together = WIDE(pictures)
        alone = torch.cat([WIDE(p[None]) for p in pictures])
    assert len(count) == 7
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_changed_weights_are_seen():
    """Fused optimizers do not raise a weight's version."""
    layer, x = copy.deepcopy(WIDE), torch.randn(ELIGIBLE.shape)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    context = Winograd()
    for _ in range(3):
        with context:
            found = layer(x)
        torch.testing.assert_close(found, layer(x), **CLOSE)
        found.mean().backward()
        optimizer.step()


def test_kernels_are_transformed_once(monkeypatch):
    asked = []
    monkeypatch.setattr(winograd, "transformed", lambda w: asked.append(1) or transformed(w))
    fixed, changing = Winograd(fixed=True), Winograd()
    for context, times in ((changing, 3), (fixed, 1)):
        asked.clear()
        for _ in range(3):
            with context, torch.no_grad():
                WIDE(torch.randn(ELIGIBLE.shape))
                WIDE(torch.randn(2, 96, 32, 16))  # as a head goes over its levels
        assert len(asked) == times
    assert len(fixed._kept) == 1 and len(changing._kept) == 0  # four times the size of the weights


def test_fixed_weights_may_be_loaded_and_replaced():
    layer, x = copy.deepcopy(WIDE), torch.randn(ELIGIBLE.shape)
    context = Winograd(fixed=True)

    def check():
        with context, torch.no_grad():
            found = layer(x)
        torch.testing.assert_close(found, layer(x), **CLOSE)

    check()
    layer.load_state_dict(nn.Conv2d(96, 96, 3, padding=1).state_dict())
    check()
    layer.weight.data = torch.randn(96, 96, 3, 3) / 30
    check()


def test_a_copy_keeps_nothing():
    context = Winograd(fixed=True)
    with context, torch.no_grad():
        WIDE(torch.randn(ELIGIBLE.shape))
    for other in (copy.deepcopy(context), pickle.loads(pickle.dumps(context))):
        assert other._fixed and len(other._kept) == 0


def test_a_gradient_after_inference():
    """Tensors made in inference mode cannot be kept for a backward pass."""
    layer, x = copy.deepcopy(WIDE), torch.randn(ELIGIBLE.shape)
    with Winograd(fixed=True) as context:
        with torch.inference_mode():
            layer(x)
        layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), context:
        inner = nn.Conv2d(96, 96, 3, padding=1)  # whose weights know no version
        torch.testing.assert_close(
            inner(x), F.conv2d(x, inner.weight, inner.bias, padding=1), **CLOSE
        )


def test_a_default_device_is_not_asked():
    winograd._matrix.cache_clear()
    with torch.device("meta"):
        found = winograd._matrix("input", torch.float32)
    assert found.device == CPU


def test_autocast_ends_where_it_began():
    """A context that is entered while it is entered would lose what was before."""
    computing = Computing("bf16", CPU)
    with computing(), computing():
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def wide_model():
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=96)
    )
    model = build_model(settings, {"boxes": DetectionConfig()}, ["cat", "dog"])
    with torch.no_grad():
        model.tasks["boxes"].head.class_logits.bias.fill_(0.5)
        for p in model.tasks["boxes"].head.parameters():
            if p.dim() == 4:
                nn.init.kaiming_normal_(p)
    return model.eval()


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(2):
        boxes = torch.tensor([[10.0, 10, 60, 70], [70, 20, 120, 110]]) + 8 * torch.rand(
            1, generator=g
        )
        image = torch.randint(0, 256, (3, 128, 160), generator=g).byte()
        labels = BoxLabels.of(boxes, torch.tensor([0, 1]), 2)
        samples.append(Sample(image, {"boxes": labels}, ImageInfo(i, str(i), 128, 160, "noise")))
    return Batch.of(samples)


def trained(folder, chosen: Precision):
    """Two steps of two batches each, evaluated."""
    given = {"steps": 2, "accumulate": 2, "precision": chosen, "pictures_every": None, "ema": None}
    settings, optim = TrainSettings(**given), OptimSettings(lr=0.01, warmup=0)
    balancer = FixedSettings().build(["boxes"])
    model = wide_model().train()
    state = settings.prepare(model, balancer, optim, Process(0, 1, CPU), {}, ["cat", "dog"])
    with Recorder(folder, 2, {"boxes": ["cat", "dog"]}, 0, False) as told:
        score = partial(collect, batches=[batch(9)], device=CPU, precision=chosen)
        train(state, map(batch, range(4)), settings, optim, score, told, folder)
    losses = [r["train/loss"] for r in read_metrics(folder / "metrics.jsonl") if "train/loss" in r]
    return state.model.state_dict(), losses


def test_a_training_is_that_of_direct_sums(count, tmp_path):
    weights, losses = trained(tmp_path / "direct", "fp32")
    assert count == []
    found, told = trained(tmp_path / "winograd", "winograd")
    learned = [s for s in count if s[0] == 2]
    assert (
        len(learned) == len(count) > 4 * 8 and len(count) % 5 == 0
    )  # four batches and the evaluation
    for name, weight in weights.items():  # element by element rounding may switch a ReLU
        difference = (found[name].double() - weight.double()).norm()
        assert difference <= 1e-3 * weight.double().norm() + 1e-5, name
    assert told == pytest.approx(losses, rel=1e-4)


def test_one_evaluation_transforms_a_kernel_once(count, monkeypatch):
    asked = []
    monkeypatch.setattr(winograd, "transformed", lambda w: asked.append(1) or transformed(w))
    model = wide_model()
    for batches in ([batch(0)], [batch(0), batch(1), batch(2)]):
        asked.clear()
        count.clear()
        collect(model, batches, CPU, "winograd")
        each = len(count) // len(batches)
        assert len(asked) == each > 8  # of one level; the others are too small
    predict(model, batch(0), CPU, "winograd")
    assert len(count) == 4 * each


def test_detections_are_those_of_direct_sums(count, monkeypatch):
    asked = []
    monkeypatch.setattr(winograd, "transformed", lambda w: asked.append(1) or transformed(w))
    loaded = LoadedModel(wide_model(), ("cat", "dog"), 128, 160, {})
    picture = torch.randint(0, 256, (3, 128, 160)).byte()
    direct = Predictor(loaded).predict([picture])[0]["boxes"]
    assert count == []
    predictor = Predictor(loaded, precision="winograd")
    predictor.predict([picture])
    once = len(asked)
    found = predictor.predict([picture])[0]["boxes"]
    assert len(asked) == once  # nothing is computed of the weights again
    assert len(count) > 8 and len(found) == len(direct) > 50
    torch.testing.assert_close(found.scores, direct.scores, **CLOSE)
    torch.testing.assert_close(found.boxes, direct.boxes, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ({"avx2"}, "x86_64", "winograd"),
        ({"avx2"}, "AMD64", "winograd"),
        (set(), "aarch64", "fp32"),
        ({"avx512_bf16"}, "x86_64", "bf16"),
    ],
)
def test_what_auto_takes(monkeypatch, flags, machine, expected: Precision):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    found, same = Computing("auto", CPU)(), Computing(expected, CPU)()
    assert type(found) is type(same)
    assert isinstance(found, Winograd) == (expected == "winograd")
    assert not isinstance(Computing("auto", CPU, compiled=True)(), Winograd)
    assert precision.dtype_of("auto", CPU) == precision.dtype_of(expected, CPU)


def test_the_command_line_knows_every_precision():
    """It has a list of its own, since it parses before torch is imported."""
    for chosen in get_args(Precision):
        words = ["predict", "--model", "m", "--source", "i", "--out", "o", "--precision", chosen]
        assert build_parser().parse_args(words).precision == chosen


def test_where_it_cannot_be_had_is_told():
    gpu = torch.device("cuda")
    with pytest.raises(InputError, match="precision: winograd is for CPUs, the device is cuda"):
        Computing("winograd", gpu)
    with pytest.raises(InputError, match=r"train\.precision: winograd is for CPUs"):
        TrainSettings(steps=1, precision="winograd").check(gpu)
    with pytest.raises(ValidationError, match="winograd is for networks that are not compiled"):
        TrainSettings(steps=1, precision="winograd", compile="default")
    loaded = LoadedModel(wide_model(), ("cat", "dog"), 128, 160, {})
    with pytest.raises(InputError, match="winograd is for networks that are not compiled"):
        Predictor(loaded, precision="winograd", compile=True)
