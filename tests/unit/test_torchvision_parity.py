"""The whole network against torchvision's, with the same weights: outputs, losses, gradients, boxes.

torchvision is used as its users use it: pictures and targets in, losses or detections out.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as models
from torchvision.models.detection import RetinaNet
from torchvision_retinanet import NAMES, ours, reference, unscaled

from detmtl.inference.predictor import LoadedModel
from detmtl.inference.torchvision_file import BUILDERS, export_torchvision
from detmtl.models.torchvision_weights import RetinaWeights, norm_of, to_torchvision
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.multitask import MultiTask

C = len(NAMES)
KINDS = [
    pytest.param("torchvision", marks=pytest.mark.slow),
    pytest.param("torchvision_v2", marks=pytest.mark.slow),
    "regnetx_002",
]
# strides of P6 and P7 are measured: 96 rows on two positions are 48 apart; boxes of each picture
BATCHES = [((96, 64), [3]), ((64, 96), [0, 60, 1]), ((128, 64), [0]), ((64, 64), [12, 5])]
IDS = [f"{h}x{w}x{len(n)}" for (h, w), n in BATCHES]


@dataclass
class Pair:
    """Both networks, in float32 and in float64.

    In float64 ours was made so: norms folded in float32 would differ by rounding, which switches a
    ReLU here and there and thus changes gradients by more than rounding.
    """

    kind: str
    theirs: RetinaNet
    by_dtype: dict[torch.dtype, MultiTask]

    @property
    def ours(self) -> MultiTask:
        return self.by_dtype[next(self.theirs.parameters()).dtype]


class Exact(nn.Module):
    """Normalizes in float64, as torchvision does with pictures of that type."""

    def forward(self, images: Tensor) -> Tensor:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[
            ..., None, None
        ]
        return (images.double() / 255 - mean) / std


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> Pair:
    theirs = reference(request.param)
    # trained norms keep their weights apart from the convolutions'; frozen ones are folded into them
    norm = "frozen" if request.param.startswith("torchvision") else "train"
    torch.set_default_dtype(torch.float64)
    try:
        double = ours(theirs, request.param, tmp_path_factory.mktemp("weights"), norm=norm)
    finally:
        torch.set_default_dtype(torch.float32)
    single = copy.deepcopy(double).float()
    double.normalize = Exact()
    return Pair(request.param, theirs, {torch.float32: single, torch.float64: double})


def _samples(size: tuple[int, int], counts: list[int]) -> list[Sample]:
    g = torch.Generator().manual_seed(sum(size) + len(counts))
    height, width = size
    edge = torch.tensor([width, height, width, height], dtype=torch.float32)
    samples = []
    for i, n in enumerate(counts):
        corner = torch.rand(n, 2, generator=g) * edge[:2] * 0.9
        side = torch.exp(torch.rand(n, 2, generator=g) * 4) + 1
        side[:1] = 1  # one box of one pixel
        boxes = torch.minimum(torch.cat([corner, corner + side], 1), edge)
        labels = BoxLabels.of(boxes, torch.randint(0, C, (n,), generator=g), C)
        image = torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)
        info = ImageInfo(i, "", height, width, "s")
        samples.append(Sample(image, {"boxes": labels}, info))
    return samples


def _for_torchvision(samples: list[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns pictures in 0..1 and targets, whose labels start at 1 after the background."""
    targets = [
        {"boxes": x.labels["boxes"].boxes, "labels": x.labels["boxes"].classes + 1} for x in samples
    ]
    return [x.image.float() / 255 for x in samples], targets


def _rows(maps: list[Tensor], numbers: int) -> Tensor:
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers) for x in maps], 1)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request, pair):
    """The arithmetic of both networks."""
    pair.theirs.to(request.param)
    yield request.param
    pair.theirs.float()


@pytest.mark.parametrize(("size", "counts"), BATCHES, ids=IDS)
def test_outputs_and_detections(pair, dtype, size, counts):
    samples = _samples(size, counts)
    images = [x.to(dtype) for x in _for_torchvision(samples)[0]]
    unscaled(pair.theirs, *size)
    raw = {}
    hook = pair.theirs.head.register_forward_hook(lambda *given: raw.update(given[2]))
    batch = Batch.of(samples)
    with torch.no_grad():
        expected = pair.theirs(images)
        outputs = pair.ours(batch.images)["boxes"]
        found = pair.ours.tasks["boxes"].decode(outputs, batch.sizes)
    hook.remove()
    logits, theirs = _rows(outputs[:5], C), raw["cls_logits"][..., 1:]
    passing = (theirs.sigmoid() > 0.05).double().mean()
    assert 0.001 < passing < 0.3 and theirs.std() > 0.8  # so that agreement means something
    relative = 1e-5 if dtype == torch.float32 else 0
    close = {"rtol": relative, "atol": 1e-5}
    torch.testing.assert_close(logits, theirs, **close)
    torch.testing.assert_close(_rows(outputs[5:], 4), raw["bbox_regression"], **close)
    for mine, wanted in zip(found, expected, strict=True):
        assert 10 < len(mine) <= 300
        _check_same_boxes(mine, wanted, exact=dtype == torch.float64)


def _check_same_boxes(mine: BoxLabels, wanted: dict[str, Tensor], exact: bool) -> None:
    """Compares detections; where not `exact`, scores that differ by rounding may change places."""
    boxes, scores, classes = wanted["boxes"].float(), wanted["scores"].float(), wanted["labels"] - 1
    torch.testing.assert_close(mine.scores, scores, rtol=1e-5, atol=1e-6)
    if not exact:
        near = (mine.scores[:, None] - scores).abs() < 1e-5
        near &= mine.classes[:, None] == classes
        near &= (mine.boxes[:, None] - boxes).abs().amax(2) < 1e-2
        assert near.any(0).all() and near.any(1).all()
        return
    assert torch.equal(mine.classes, classes)
    torch.testing.assert_close(mine.boxes, boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("size", "counts"), BATCHES, ids=IDS)
def test_losses_and_gradients(pair, dtype, size, counts):
    samples = _samples(size, counts)
    images, targets = _for_torchvision(samples)
    unscaled(pair.theirs, *size)
    pair.theirs.train()
    for module in pair.theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    pair.theirs.zero_grad(), pair.ours.zero_grad()
    expected = pair.theirs([x.to(dtype) for x in images], targets)
    sum(expected.values()).backward()
    pair.theirs.eval()

    batch = Batch.of(samples)
    terms = pair.ours.tasks["boxes"].loss(pair.ours(batch.images)["boxes"], batch)
    sum(terms.values()).backward()
    close = {"rtol": 1e-5, "atol": 0, "check_dtype": False}
    torch.testing.assert_close(terms["class"], expected["classification"], **close)
    torch.testing.assert_close(terms["box"], expected["bbox_regression"], **close)
    assert terms["class"] > 0 and (terms["box"] > 0) == (sum(counts) > 0)

    found = _our_gradients(pair)
    compared = 0
    for name, parameter in pair.theirs.named_parameters():
        mine, wanted = found[name], parameter.grad
        if name.endswith(("cls_logits.weight", "cls_logits.bias")):  # all but the background's row
            mine, wanted = (x.unflatten(0, (9, -1)) for x in (mine, wanted))
            wanted = wanted[:, 1:]
        if dtype == torch.float64:
            assert (mine - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name
        else:  # rounding switches a ReLU here and there, which float64 shows to be all
            assert (mine - wanted).norm() <= 1e-2 * wanted.norm(), name
        compared += int(wanted.abs().max() > 0)
    assert compared > 0.6 * len(found)


def _our_gradients(pair: Pair) -> dict[str, Tensor]:
    """Returns our gradients under torchvision's names, as if the norms had not been folded."""
    parts = {"backbone": pair.ours.backbone.network, "fpn": pair.ours.fpn}
    parts["head"] = pair.ours.tasks["boxes"].head
    grads = {
        part: {name: p.grad for name, p in module.named_parameters()}
        for part, module in parts.items()
    }
    if pair.kind.startswith("torchvision"):
        grads["backbone"] = _unfolded(grads["backbone"], pair)
    return to_torchvision(RetinaWeights(**grads))


def _unfolded(grads: dict[str, Tensor], pair: Pair) -> dict[str, Tensor]:
    """Returns gradients of a ResNet's convolutions and norms, from those of the folded convolutions.

    With w' = s w / r and b' = c - m s / r, s and c being the norm's weight and bias, m its mean and
    r the root of its variance.
    """
    found = {}
    for layer in {name.rpartition(".")[0] for name in grads}:
        norm = pair.theirs.get_submodule(f"backbone.body.{norm_of(layer)}")
        own = pair.theirs.get_submodule(f"backbone.body.{layer}").weight
        root = (norm.running_var + norm.eps).sqrt()
        weight, bias = grads[f"{layer}.weight"], grads[f"{layer}.bias"]
        found[f"{layer}.weight"] = weight * (norm.weight / root)[:, None, None, None]
        found[f"{norm_of(layer)}.bias"] = bias
        within = (weight * own).sum((1, 2, 3)) - bias * norm.running_mean
        found[f"{norm_of(layer)}.weight"] = within / root
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize("names", [None, ["__background__", "N/A", *reversed(NAMES), "unicorn"]])
def test_back_to_torchvision(pair, names, tmp_path):
    """Written for torchvision and loaded there, it finds the same; a model of another kind is refused."""
    loaded = LoadedModel(pair.ours, tuple(NAMES), 64, 96, {})
    if not pair.kind.startswith("torchvision"):
        with pytest.raises(InputError, match="resnet50 and preset"):
            export_torchvision(loaded, tmp_path / "w.pth", names)
        return
    report = export_torchvision(loaded, tmp_path / "w.pth", names)
    network = eval(report.call, {name: getattr(models, name) for name in BUILDERS}).eval()
    network.load_state_dict(torch.load(report.path, weights_only=True))
    assert report.difference < 1e-5 and len(report.names) == (6 if names is None else 8)
    samples = _samples((64, 96), [0, 0])
    images, _ = _for_torchvision(samples)
    batch = Batch.of(samples)
    with torch.no_grad():
        found = network(images)
        mine = pair.ours.tasks["boxes"].decode(pair.ours(batch.images)["boxes"], batch.sizes)
    for one, expected in zip(found, mine, strict=True):
        classes = [NAMES.index(report.names[label]) for label in one["labels"].tolist()]
        _check_same_boxes(expected, {**one, "labels": torch.tensor(classes) + 1}, exact=False)
