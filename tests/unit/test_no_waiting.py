"""The training step as a GPU would run it: nothing waits for the device, nothing loops over pictures.

No GPU is needed: torch's fake tensors have a device, shapes and types but no values, and whatever
would have to look at a value (`.item()`, `bool(tensor)`, `nonzero`, a boolean index) fails on them.
"""

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine.optim import OptimSettings
from detmtl.engine.shares import LossShares
from detmtl.engine.state import Ema, State
from detmtl.engine.trainer import _update
from detmtl.engine.watch import LossWatch
from detmtl.models import matching
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig, LossSettings
from detmtl.tasks.multitask import ModelSettings, build_model

NAMES = ["cat", "dog", "cow"]
CUDA = torch.device("cuda", 0)


class Watching(TorchDispatchMode):
    """Counts the operations, and the tensors that leave the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.leaving: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations[str(func)] += 1
        given = {x.device.type for x in _tensors(args)}
        if given == {"cuda"} and any(x.device.type == "cpu" for x in _tensors([out])):
            self.leaving.append(str(func))
        return out


def _tensors(values):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def batch_of(pictures: int, boxes: int) -> Batch:
    """Returns pictures with boxes of every kind, the last without labels."""
    g = torch.Generator().manual_seed(0)
    samples = []
    for i in range(pictures):
        corner = torch.rand(boxes, 2, generator=g) * 60
        labels = BoxLabels.of(
            torch.cat([corner, corner + 30], 1),
            torch.randint(0, len(NAMES), (boxes,), generator=g),
            len(NAMES),
            ignore=torch.arange(boxes) % len(Ignore),
        )
        image = torch.zeros(3, 96, 128, dtype=torch.uint8)
        known = {"boxes": labels} if i < pictures - 1 else {}
        samples.append(Sample(image, known, ImageInfo(i, "x", 96, 128, "s")))
    return Batch.of(samples)


def on_gpu(fake: FakeTensorMode, batch: Batch) -> Batch:
    """Returns the batch as fake tensors, moved to the GPU as the trainer moves it."""

    def faked(value):
        return fake.from_tensor(value) if isinstance(value, Tensor) else value

    labels = batch.labels["boxes"]
    padded = replace(labels, **{f.name: faked(getattr(labels, f.name)) for f in fields(labels)})
    mine = {f.name: faked(getattr(batch, f.name)) for f in fields(batch)}
    return replace(batch, **(mine | {"labels": {"boxes": padded}})).to(CUDA)


def to_gpu(model: nn.Module) -> nn.Module:
    """Puts fake tensors of the GPU in place of a model's parameters and buffers."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty_like(p, device=CUDA)
                module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty_like(b, device=CUDA)
    return model


def operations(pictures: int, boxes: int, loss: LossSettings) -> tuple[Counter[str], list[str]]:
    """Returns what a step on the GPU consists of, all but autograd's own work: its engine needs a real
    device, so that gradients are made up here."""
    model_settings = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=16)
    )
    model = build_model(model_settings, {"boxes": DetectionConfig(loss=loss)}, NAMES)
    balancer = FixedSettings().build(["boxes"])
    ema = Ema(model, 0.9)  # copied here: a copy of fake tensors reads memory that is not theirs
    real, watching = batch_of(pictures, boxes), Watching()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        to_gpu(model)
        to_gpu(ema.module)
        to_gpu(balancer)
        optim = OptimSettings(lr=1e-3, clip=1.0)
        optimizer = optim.build(model)
        state = State(model, optimizer, balancer, CUDA, ema)
        batch = on_gpu(fake, real)
        watch, shares = LossWatch(), LossShares(["s"], CUDA)
        for counted in (False, True):  # the first one makes anchors and the optimizer's state
            if counted:
                watching.__enter__()
            try:
                outputs = state.model(batch.images)
                terms = {n: t.loss(outputs[n], batch) for n, t in state.tasks.items()}
                total = state.balancer.backward(terms, None, 1.0)
                for p in model.parameters():
                    p.grad = torch.zeros_like(p) if p.requires_grad else None
                watch.add(1, terms, total, batch.infos)
                shares.add(terms, batch.groups)
                watch.add_gradient_norm(_update(state, optim.clip))
                state.ema.update(state.model, 1)
            finally:
                if counted:
                    watching.__exit__(None, None, None)
    return watching.operations, watching.leaving


@pytest.mark.parametrize("box", ["giou", "smooth_l1"])
def test_a_step_on_a_gpu_waits_for_nothing_and_does_not_depend_on_the_batch(box, monkeypatch):
    monkeypatch.setattr(Tensor, "backward", lambda total: None)
    monkeypatch.setattr(matching, "PAIRS", 1 << 40)  # else many pairs are taken in several parts
    loss = LossSettings(box=box)
    few, leaving = operations(2, 3, loss)
    assert sum(few.values()) > 500 and not leaving
    many, leaving = operations(8, 40, loss)
    assert many == few and not leaving


def test_waiting_would_be_noticed():
    with FakeTensorMode():
        x = torch.empty(3, device=CUDA)
        for look in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x[x > 0]):
            with pytest.raises(Exception, match=r"aten\.(_local_scalar_dense|nonzero)"):
                look()
        with Watching() as watching:
            x.to("cpu")
    assert watching.leaving == ["aten._to_copy.default"]
