"""The training step as a GPU would run it: nothing waits for the device, nothing loops over pictures.

No GPU is needed: torch's fake tensors have a device, shapes and types but no values, and whatever
would have to look at a value (`.item()`, `bool(tensor)`, `nonzero`, a boolean index) fails on them.
"""

import traceback
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detmtl.balancing.dwa import DwaSettings
from detmtl.balancing.famo import FamoSettings
from detmtl.balancing.fixed import FixedSettings
from detmtl.balancing.geometric import GeometricSettings
from detmtl.balancing.uncertainty import UncertaintySettings
from detmtl.engine.optim import OptimSettings
from detmtl.engine.shares import LossShares
from detmtl.engine.state import Ema, State
from detmtl.engine.trainer import _update
from detmtl.engine.watch import LossWatch
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.depth import DepthLabels
from detmtl.structures.details import Details
from detmtl.structures.labels import BoxLabels, Ignore, MapLabels, TagLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

NAMES = ["cat", "dog", "cow"]
VALUES = ["color/red", "color/blue", "size/big", "size/small"]
POINTS = ["cat/nose", "cat/tail"]
CUDA = torch.device("cuda", 0)


class Watching(TorchDispatchMode):
    """Counts the operations, and what waits: tensors that leave the device, and those that are copied
    to it with the program standing still."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waiting: list[str] = []
        self.indexed: list[int] = []
        """Elements of whatever an index with a gradient picks."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations[str(func)] += 1
        given = {x.device.type for x in _tensors(args)}
        made = {x.device.type for x in _tensors([out])}
        copied = given == {"cpu"} and made == {"cuda"}
        if (given == {"cuda"} and "cpu" in made) or (copied and not _at_once(args, kwargs)):
            self.waiting.append(f"{func} at {_caller()}")
        if func is torch.ops.aten.index.Tensor and args[0].requires_grad:
            self.indexed.append(out.numel())
        return out


def _caller() -> str:
    """Returns the innermost line of the program itself."""
    lines = [frame for frame in traceback.extract_stack() if "/detmtl/" in frame.filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else "here"


def _at_once(args, kwargs):
    """Returns whether a copy does not wait for the device."""
    return (kwargs or {}).get("non_blocking", False) or (len(args) > 5 and args[5] is True)


def _tensors(values):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def batch_of(pictures: int, boxes: int, width: int = 128, ignore: bool = True) -> Batch:
    """Returns pictures with boxes of every kind and all other labels, the last without any."""
    g = torch.Generator().manual_seed(0)
    samples = []
    for i in range(pictures):
        corner = torch.rand(boxes, 2, generator=g) * 60
        labels = BoxLabels.of(
            torch.cat([corner, corner + 30], 1),
            torch.randint(0, len(NAMES), (boxes,), generator=g),
            len(NAMES),
            ignore=torch.arange(boxes) % len(Ignore) if ignore else None,
        )
        details = Details(
            attributes=torch.zeros(boxes, 2, dtype=torch.long),
            keypoints=torch.ones(boxes, len(POINTS), 3),
            masks=torch.ones(boxes, 56, 56, dtype=torch.uint8),
            attribute_names=tuple(VALUES),
            keypoint_names=tuple(POINTS),
        )
        image = torch.zeros(3, 96, width, dtype=torch.uint8)
        known = {
            "boxes": replace(labels, details=details),
            "maps": MapLabels(image[0], None, torch.ones(2)),
            "tags": TagLabels(torch.ones(2), torch.ones(2)),
            "depth": DepthLabels(torch.ones(96, width)),
        }
        info = ImageInfo(i, "x", 96, width, "s")
        samples.append(Sample(image, known if i < pictures - 1 else {}, info))
    return Batch.of(samples)


def on_gpu(fake: FakeTensorMode, batch: Batch) -> Batch:
    """Returns the batch as fake tensors, moved to the GPU as the trainer moves it."""

    def faked(value):
        return fake.from_tensor(value) if isinstance(value, Tensor) else value

    padded = {name: labels._each(faked) for name, labels in batch.labels.items()}
    mine = {f.name: faked(getattr(batch, f.name)) for f in fields(batch)}
    return replace(batch, **(mine | {"labels": padded})).to(CUDA)


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


def step(
    pictures: int,
    boxes: int,
    tasks: dict[str, Any] | None = None,
    balancing: Any = None,
    ignore: bool = True,
) -> Watching:
    """Returns what a step on the GPU consists of, all but autograd's own work: its engine needs a real
    device, so that gradients are made up here. The picture's size is a new one."""
    model_settings = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=16)
    )
    tasks = tasks or {"boxes": DetectionConfig()}
    names = {"maps": ["a", "b"], "tags": ["c", "d"], "depth": ()}
    names |= {"attributes": VALUES, "keypoints": POINTS}
    model = build_model(model_settings, tasks, NAMES, other_names=names)
    balancer = (balancing or FixedSettings()).build([*tasks])
    ema = Ema(model, 0.9)  # copied here: a copy of fake tensors reads memory that is not theirs
    real = [batch_of(pictures, boxes, width, ignore) for width in (128, 160)]
    for one in real:  # the grids are read off anchors that are on the CPU, once for each size
        maps = model(one.images[:1])["boxes"][: len(model.tasks["boxes"].levels)]
        model.tasks["boxes"]._loss._grids_of(maps)
    watching = Watching()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        to_gpu(model)
        to_gpu(ema.module)
        to_gpu(balancer)
        optim = OptimSettings(lr=1e-3, clip=1.0)
        optimizer = optim.build(model)
        state = State(model, optimizer, balancer, CUDA, ema)
        of_sizes = [on_gpu(fake, one) for one in real]
        watch, shares = LossWatch(), LossShares(["s"], CUDA)
        for counted, batch in enumerate(of_sizes):  # the first one makes the optimizer's state
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
    return watching


@pytest.fixture(autouse=True)
def without_autograd(monkeypatch):
    monkeypatch.setattr(Tensor, "backward", lambda total: None)


HEADS = {
    "giou": {},
    "smooth_l1": {"loss": {"box": "smooth_l1"}, "anchors": {"variance": (0.1, 0.1, 0.2, 0.2)}},
    "atss": {
        "head": {"box": "distribution", "quality": "iou"},
        "matching": {"kind": "atss"},
        "loss": {"classification": "quality_focal", "normalizer": "ema"},
    },
    "varifocal": {"head": {"quality": "centerness"}, "loss": {"classification": "varifocal"}},
}


@pytest.mark.parametrize("name", HEADS)
def test_a_step_on_a_gpu_waits_for_nothing_and_does_not_depend_on_the_batch(name):
    tasks = {"boxes": DetectionConfig.model_validate(HEADS[name])}
    few = step(2, 3, tasks)
    assert sum(few.operations.values()) > 500 and not few.waiting
    many = step(8, 400, tasks)
    assert many.operations == few.operations and not many.waiting
    # rows of all anchors are not picked one by one, which backward would sort
    assert not few.indexed
    assert not few.operations["aten.index_add.default"]


def test_work_for_boxes_to_be_ignored_is_spared_where_there_are_none():
    some, none = step(2, 40), step(2, 40, ignore=False)
    assert some.operations["aten.scatter_reduce_.two"] and not none.waiting
    assert not none.operations["aten.scatter_reduce_.two"]


def test_work_for_pixels_of_no_class_is_spared_where_there_are_none():
    tasks = {"boxes": DetectionConfig(), "other": SemanticConfig()}
    assert step(2, 3, tasks).operations["aten.logsumexp.default"] == 1


@pytest.mark.parametrize(
    "task",
    [
        SemanticConfig(),
        DepthConfig(),
        DepthConfig(loss={"kind": "berhu"}),
        TagsConfig(),
        AttributesConfig(),
        MasksConfig(),
        KeypointsConfig(),
    ],
    ids=lambda task: task.kind,
)
def test_other_tasks_wait_for_nothing(task):
    found = step(3, 5, {"boxes": DetectionConfig(), "other": task})
    assert sum(found.operations.values()) > 500 and not found.waiting


@pytest.mark.parametrize(
    "kind", [UncertaintySettings, DwaSettings, FamoSettings, GeometricSettings]
)
def test_balancers_of_losses_wait_for_nothing(kind):
    (name,) = kind.model_fields["kind"].annotation.__args__
    tasks = {"boxes": DetectionConfig(), "tags": TagsConfig()}
    assert not step(3, 5, tasks, kind(kind=name)).waiting


def test_waiting_would_be_noticed():
    with FakeTensorMode():
        x = torch.empty(3, device=CUDA)
        for look in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x[x > 0]):
            with pytest.raises(Exception, match=r"aten\.(_local_scalar_dense|nonzero)"):
                look()
        with Watching() as watching:
            x.to("cpu")
            torch.ones(3).to(CUDA)
            torch.ones(3).to(CUDA, non_blocking=True)
            torch.tensor([1.0], device=CUDA)
    assert watching.waiting == ["aten._to_copy.default at here"] * 3
