"""What only a GPU can show: it finds what a CPU finds, and nothing in a step waits for it.

Float32 here means float32: convolutions may not round to TF32, as torch lets them by default.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, os.path.dirname(__file__))
from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from networks import batch_of as networks_batch
from networks import on, ours, step_of
from test_no_waiting import HEADS, NAMES, POINTS, VALUES, batch_of
from train_step import WARMUP, graphed

from detmtl.balancing.balancers import AnyBalancer
from detmtl.engine.distributed import Process
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import autocast
from detmtl.engine.shares import LossShares
from detmtl.engine.trainer import TrainSettings, _update
from detmtl.engine.watch import LossWatch
from detmtl.inference.export import export_model
from detmtl.inference.parity import FLOAT32, compare_detections
from detmtl.inference.predictor import LoadedModel, Predictor, ScriptPredictor, change_test
from detmtl.losses.focal import compiled_negatives
from detmtl.models.anchors import AnchorSettings
from detmtl.models.backbone import BackboneSettings
from detmtl.models.decoding import Decoder
from detmtl.models.fpn import FPNSettings
from detmtl.models.matching import Rules, match
from detmtl.models.windows import grids
from detmtl.structures.labels import BoxLabels, PaddedBoxes
from detmtl.structures.sample import Batch
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.multitask import ModelSettings, MultiTask, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
ALL_TASKS = {
    "boxes": DetectionConfig(),
    "maps": SemanticConfig(),
    "depth": DepthConfig(),
    "tags": TagsConfig(),
    "attributes": AttributesConfig(),
    "masks": MasksConfig(),
    "keypoints": KeypointsConfig(),
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch) -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda", torch.cuda.current_device())


def model_of(tasks=None) -> MultiTask:
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=16)
    )
    names = {"maps": ["a", "b"], "tags": ["c", "d"], "depth": ()}
    names |= {"attributes": VALUES, "keypoints": POINTS}
    return build_model(settings, tasks or ALL_TASKS, NAMES, other_names=names).train()


@pytest.mark.parametrize(
    "rules", [Rules(), Rules(forced="forcing"), Rules(force=False)], ids=["best", "forcing", "none"]
)
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("boxes", [0, 3, 400])
def test_matches_are_those_of_the_windows_on_a_cpu(gpu, boxes, ignore, rules):
    strides = [8, 16, 32]
    anchors = AnchorSettings().build(strides)
    maps = [torch.empty(1, 96 // s, 160 // s) for s in strides]
    flat = anchors.flat(maps)
    regular = grids(anchors(maps), [(m.shape[-2], m.shape[-1]) for m in maps])
    labels = batch_of(4, boxes, 160, ignore).labels["boxes"]
    assert isinstance(labels, PaddedBoxes)
    expected = match(flat, labels, rules, regular)
    found = match(flat.to(gpu), labels.to(gpu), rules, regular)
    assert boxes == 0 or expected.positive.any()
    for name in ("index", "positive", "negative"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    empty = torch.zeros(*expected.positive.shape, len(NAMES), dtype=torch.bool)
    holes = [empty if m.ignored is None else m.ignored.cpu() for m in (found, expected)]
    assert torch.equal(*holes)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", HEADS)
def test_losses_and_their_gradients_are_those_of_a_cpu(gpu, name, compiled):
    settings = {"boxes": DetectionConfig.model_validate(HEADS[name])}
    batch = batch_of(3, 40, 160)
    shapes = [x.shape for x in model_of(settings)(batch.images)["boxes"]]
    g = torch.Generator().manual_seed(1)
    outputs = [torch.randn(shape, generator=g) - 1 for shape in shapes]

    def result(device: torch.device) -> tuple[dict[str, Tensor], list[Tensor]]:
        task = model_of(settings).tasks["boxes"].to(device)  # a new one: a normalizer may remember
        leaves = [x.detach().to(device).requires_grad_() for x in outputs]
        terms = task.loss(leaves, batch.to(device))
        torch.stack(list(terms.values())).sum().backward()
        gradients = [x.grad.cpu() for x in leaves if x.grad is not None]
        return {k: v.detach().cpu() for k, v in terms.items()}, gradients

    expected = result(CPU)
    if compiled:
        torch._dynamo.reset()
        with compiled_negatives():
            found = result(gpu)
    else:
        found = result(gpu)
    assert len(found[1]) == len(expected[1]) > 3
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


BALANCERS = ["fixed", "uncertainty", "dwa", "famo", "geometric", "gradnorm", "pcgrad"]


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_step_of_all_tasks_waits_for_nothing(gpu, kind):
    """torch itself raises where the program would stand still; what a balancer looks up is its own."""
    settings: AnyBalancer = TypeAdapter(AnyBalancer).validate_python({"kind": kind})
    balancer = settings.build([*ALL_TASKS])
    model = model_of()
    balancer.attach(model.shared_parameters(), model.own_parameters())
    optim = OptimSettings(lr=1e-3, clip=1.0)
    train = TrainSettings(steps=10, precision="bf16")
    state = train.prepare(model, balancer, optim, Process(0, 1, gpu), {}, NAMES)
    watch, shares = LossWatch(), LossShares(["s"], gpu)
    batches = [batch_of(3, 5, width).pin_memory() for width in (128, 160)]

    def step(batch: Batch) -> None:
        here = batch.to(gpu)
        with autocast(gpu, torch.bfloat16):
            outputs = model(here.images)
        terms = {n: t.loss(outputs[n], here) for n, t in state.tasks.items()}
        total = state.balancer.backward(terms, None, 1.0)
        watch.add(1, terms, total, here.infos)
        shares.add(terms, here.groups)
        watch.add_gradient_norm(_update(state, optim.clip))
        assert state.ema is not None
        state.ema.update(state.model, 1)

    for batch in batches:
        step(batch)
    torch.cuda.synchronize()
    with waiting_is_an_error():
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=gpu).item()
        for batch in batches:
            step(batch)
    assert all(torch.isfinite(torch.tensor(v)) for v in watch.check().values())


@pytest.fixture
def detector() -> tuple[LoadedModel, list[Tensor]]:
    """A network whose scores are spread over the threshold, and two pictures of different sizes."""
    model = model_of({"boxes": DetectionConfig()}).eval()
    with torch.no_grad():
        last = model.tasks["boxes"].head.class_logits
        last.weight.normal_(std=0.3)
        last.bias.zero_()
    g = torch.Generator().manual_seed(2)
    pictures = [
        torch.randint(0, 256, (3, 96, w), dtype=torch.uint8, generator=g) for w in (96, 128)
    ]
    return LoadedModel(model, tuple(NAMES), 96, 128, {}), pictures


def assert_same(expected: list[BoxLabels], found: list[BoxLabels], pictures: list[Tensor]) -> None:
    there = [labels.to(CPU) for labels in found]
    difference = compare_detections(lambda _: expected, lambda _: there, [pictures], FLOAT32)
    assert difference.detections > 50
    assert difference.matching > 0.99


def boxes_of(predictor: Predictor | ScriptPredictor, pictures: list[Tensor]) -> list[BoxLabels]:
    return [labels["boxes"] for labels in predictor.predict(pictures)]


def test_detections_and_an_exported_file_are_those_of_a_cpu(gpu, detector, tmp_path):
    loaded, pictures = detector
    expected = boxes_of(Predictor(loaded), pictures)
    export_model(loaded, tmp_path / "model.torchscript")
    on_gpu, script = Predictor(loaded, gpu), ScriptPredictor(tmp_path / "model.torchscript", gpu)
    for _ in range(4):  # a scripted program is optimized for what it has seen
        assert_same(expected, boxes_of(on_gpu, pictures), pictures)
        assert_same(expected, boxes_of(script, pictures), pictures)
        nothing = [torch.zeros(3, 96, 96, dtype=torch.uint8)]
        for predictor in (on_gpu, script):
            change_test(predictor, {"score_threshold": 0.999}, "here")
            predictor.predict(nothing)
            change_test(predictor, {"score_threshold": 0.05}, "here")


def test_a_file_in_bfloat16_has_code_for_levels_without_candidates(gpu, detector, tmp_path):
    """torch's fuser writes code for what a program has seen, in its second call; of bfloat16 it writes none
    that compiles where a tensor is empty."""
    loaded, pictures = detector
    export_model(loaded, tmp_path / "model.torchscript", dtype="bfloat16")
    script = ScriptPredictor(tmp_path / "model.torchscript", gpu)
    for threshold, some in ((0.999, False), (0.7, True), (0.05, True)):
        change_test(script, {"score_threshold": threshold}, "here")
        for _ in range(4):
            assert [len(found) > 0 for found in boxes_of(script, pictures)] == [some, some]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.filterwarnings(
    "ignore:The CUDA Graph is empty"
)  # torch's own first one, to get memory
def test_a_compiled_predictor_finds_the_same_and_keeps_what_it_gave(gpu, detector):
    loaded, pictures = detector
    expected = boxes_of(Predictor(loaded), pictures)
    torch._dynamo.reset()
    compiled = Predictor(loaded, gpu, compile=True)
    for _ in range(3):  # the graph is recorded in the second call and replayed in the third
        found = boxes_of(compiled, pictures[:1])
        with torch.inference_mode():
            outputs = compiled._compiled(pictures[0][None].to(gpu))
            before = [x.clone() for x in outputs["boxes"]]
            compiled._compiled(pictures[0].flip(0)[None].to(gpu))
        assert all(torch.equal(a, b) for a, b in zip(before, outputs["boxes"], strict=True))
        assert_same(expected[:1], found, pictures[:1])
    torch._dynamo.reset()


def test_a_recorded_step_is_the_eager_one(gpu):
    def moved(make) -> list[Tensor]:
        """How far each parameter has gone after eight steps."""
        batch = on(networks_batch(2, 3, 128, 128, 5), gpu)
        model = ours(5, "resnet18").to(gpu)
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        step, taken = make(model, batch)
        for _ in range(8 - taken):
            step()
        after = [p.detach() for p in model.parameters() if p.requires_grad]
        return [a - b for a, b in zip(after, before, strict=True)]

    eager = moved(lambda model, batch: (step_of(model, batch, torch.bfloat16, gpu), 0))
    replayed = moved(lambda model, batch: (graphed(model, batch, gpu, None), WARMUP))
    for a, b in zip(replayed, eager, strict=True):
        assert float(b.norm()) > 0 and float((a - b).norm()) <= 0.05 * float(b.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, -3.0),
        ({"detections": 60, "nms": 0.05}, 1.0),
        ({"class_agnostic": True, "score_threshold": 0.3}, 0.0),
        ({"score_threshold": 0.0, "candidates": 5000, "detections": 3000}, -1.0),
        ({}, -40.0),
    ],
)
def test_decoding_finds_what_a_cpu_finds(gpu, settings, level, dtype):
    """Many scores of bfloat16 are equal: which of them are candidates, and in what order they suppress, may
    differ, and so may the last few of what is found."""
    strides, classes = [8, 16, 32], 4
    decoder = Decoder(AnchorSettings().build(strides), classes, **settings)
    g = torch.Generator().manual_seed(0)
    shapes = [(96 // s, 128 // s) for s in strides]
    logits = [torch.randn(3, 9 * classes, *s, generator=g) * 1.5 + level for s in shapes]
    outputs = logits + [torch.randn(3, 36, *s, generator=g) * 0.5 for s in shapes]
    outputs = [x.to(dtype) for x in outputs]
    sizes = torch.tensor([[96, 128], [77, 101], [50, 60]])
    expected = decoder(outputs, sizes)
    found = decoder([x.to(gpu) for x in outputs], sizes.to(gpu))
    for (boxes, scores, of), theirs in zip(found, expected, strict=True):
        if dtype == torch.bfloat16:
            both = min(len(scores), len(theirs[1]))
            assert both >= 0.99 * max(len(scores), len(theirs[1]))
            assert both > 0 or level == -40
            torch.testing.assert_close(scores.cpu()[:both], theirs[1][:both], rtol=1e-2, atol=1e-2)
            continue
        torch.testing.assert_close(scores.cpu(), theirs[1], rtol=1e-3, atol=1e-3)
        gaps = (theirs[1][:-1] - theirs[1][1:]) > 1e-6  # else their order is a matter of rounding
        sure = torch.cat([gaps, gaps[-1:]]) & torch.cat([gaps[:1], gaps])
        if len(sure) > 1:
            assert sure.float().mean() > 0.5
            torch.testing.assert_close(boxes.cpu()[sure], theirs[0][sure], rtol=0, atol=1e-3)
            assert torch.equal(of.cpu()[sure], theirs[2][sure])
