"""A compiled network trains as the eager one does, and leaves the model as it is.

Most tests take torch's own graphs but run them operation by operation: generating code takes minutes.
"""

import os
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from itertools import count

import pytest
import torch
from pydantic import TypeAdapter
from torch._dynamo.utils import counters

sys.path.insert(0, os.path.dirname(__file__))
from diagnosis_stand_ins import CPU, KEYS, NAMES, batch_of

from detmtl.balancing.balancers import AnyBalancer
from detmtl.engine.compiled import check_compiler, keep_gradients, network_of
from detmtl.engine.diagnosis import Diagnosis, DiagnosisSettings, read_records, scalars
from detmtl.engine.distributed import Process
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import autocast
from detmtl.engine.recorder import Recorder, read_metrics
from detmtl.engine.trainer import TrainSettings, train
from detmtl.losses.focal import FocalTargets, compiled_negatives, focal_sums
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.checkpoint import load_weights, read_checkpoint
from detmtl.structures.errors import InputError
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.multitask import ModelSettings, MultiTask, build_model
from detmtl.tasks.noise import NoiseConfig
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

# torch hides the first where it comes from, which does not help where warnings are errors
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:Guards may run slower on Python 3.13.0",
)

TASKS = {
    "boxes": DetectionConfig.model_validate({"head": {"depth": 1}}),
    "map": SemanticConfig(at="p3"),
    "tags": TagsConfig(at="c4"),
}
# plain SGD: Adam makes whole steps of rounding errors; momentum and decay move what has a gradient of 0
OPTIM = OptimSettings(name="sgd", lr=0.02, warmup=0, momentum=0.9, weight_decay=0.1)
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def model_of(sharing="selective", norm="frozen", tasks=TASKS, **more) -> MultiTask:
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet", norm=norm),
        fpn=FPNSettings(channels=8, levels=3),
        sharing=sharing,
    )
    names = dict.fromkeys(("maps", "tags"), NAMES) | more
    return build_model(settings, tasks, NAMES, other_names=names).train()


@pytest.fixture
def whole(monkeypatch):
    """torch.compile without its code generator; whatever it could not capture as one graph is an error.
    Yields how many functions were captured."""
    real = torch.compile

    def captured(function, mode=None, dynamic=None):
        return real(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", captured)
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def step(model, network, batch, device=CPU):
    """Returns outputs, terms and each parameter's gradient, None where there is none."""
    model.zero_grad(set_to_none=True)
    outputs = network(batch)
    terms = {n: task.loss(outputs[n], batch) for n, task in model.tasks.items()}
    flat = {f"{n}/{k}": v for n, of in terms.items() for k, v in of.items()}
    if flat:
        torch.stack(list(flat.values())).sum().backward()
    return outputs, flat, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("sharing", ["hard", "selective"])
def test_a_step_is_the_eager_one_whoever_is_silent(whole, sharing):
    """What nothing labelled reaches has no gradient, rather than one of 0, which momentum would follow."""
    model = model_of(sharing)
    network = network_of(model, "default")
    without = Counter()
    for keys in (KEYS, ("tags",), ("maps",), ("maps", "tags"), ()):
        batch = batch_of(0, keys)
        expected = step(model, network_of(model, None), batch)
        found = step(model, network, batch)
        torch.testing.assert_close(found[:2], expected[:2], **CLOSE)
        torch.testing.assert_close(found[2], expected[2], **CLOSE)
        without[keys] = sum(g is None for g in found[2].values())
    assert without[KEYS] == 0 < min(without["maps",], without["tags",])
    graphs = whole["unique_graphs"]
    step(model, network, batch_of(1, ("boxes", "maps", "tags")))
    assert whole["unique_graphs"] == graphs, "what came before is not compiled again"


def test_pictures_of_a_third_size_need_no_other_graph(whole):
    model = model_of()
    network, graphs = network_of(model, "default"), []
    for n, width in enumerate((64, 96, 128, 160)):
        batch = batch_of(n, width=width)
        found = step(model, network, batch)
        torch.testing.assert_close(found, step(model, network_of(model, None), batch), **CLOSE)
        graphs.append(whole["unique_graphs"])
    assert graphs[0] < graphs[1] == graphs[2] == graphs[3]


def test_the_model_and_its_copies_stay_as_they_are(whole):
    model = model_of(norm="train")
    names = list(model.state_dict())
    network = network_of(model, "default")
    network(batch_of(0))
    captured = whole["unique_graphs"]
    assert list(model.state_dict()) == names
    with torch.no_grad():
        model.eval()(batch_of(0).images)
    assert whole["unique_graphs"] == captured


def test_the_number_format_is_that_of_the_caller(whole):
    model = model_of()
    network, batch = network_of(model, "default"), batch_of(0)
    with autocast(CPU, torch.bfloat16):
        found, expected = network(batch), model(batch.images)
    assert {x.dtype for of in found.values() for x in of} == {torch.bfloat16}
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert {x.dtype for of in network(batch).values() for x in of} == {torch.float32}


def test_no_kind_of_task_breaks_the_graph(whole):
    """`fullgraph` is an error where one does."""
    switches = {"head": {"depth": 1, "box": "distribution", "quality": "iou", "norm": "group"}}
    tasks = {
        "boxes": DetectionConfig.model_validate(switches),
        "map": SemanticConfig(),
        "tags": TagsConfig(),
        "depth": DepthConfig(),
        "attributes": AttributesConfig(),
        "keypoints": KeypointsConfig(),
        "masks": MasksConfig(),
        "noise": NoiseConfig(of=TagsConfig()),
    }
    details = {"depth": (), "attributes": ["size/big", "size/small"], "keypoints": ["a/nose"]}
    model = model_of(tasks=tasks, **details)
    found = network_of(model, "default")(batch_of(0))
    torch.testing.assert_close(found, model(batch_of(0).images), **CLOSE)


def run(folder, mode, steps=4, stop=None, resume=False, kind="pcgrad", device=CPU, **more):
    """Trains two batches a step, of two sizes, some without all labels; returns the state."""
    settings = TrainSettings.model_validate(
        {"steps": steps, "precision": "fp32", "ema": 0.9, "log_every": 2, "save_every": 2}
        | {"pictures_every": 2, "accumulate": 2, "compile": mode} | more
    )  # fmt: skip
    model = model_of(norm="train")
    balancer = TypeAdapter(AnyBalancer).validate_python({"kind": kind}).build(list(TASKS))
    balancer.attach(model.shared_parameters(), model.own_parameters())
    state = settings.prepare(model, balancer, OPTIM, Process(0, 1, device), {}, NAMES)
    if resume:
        state.load(folder / "last.pt")
    seen = Diagnosis(DiagnosisSettings(every=1), model.stages())

    def batches():
        for n in count(state.step * 2):
            if n == stop:
                raise KeyboardInterrupt
            yield batch_of(n, ("tags",) if n in (2, 3) else KEYS, width=64 + 32 * (n % 2))

    names = dict.fromkeys(TASKS, NAMES)
    with Recorder(folder, steps, names, state.step, False, {"map": "maps"}) as told:
        train(state, batches(), settings, OPTIM, lambda m: {}, told, folder, ["noise"], seen)
    return state


def assert_alike(folder, other, **close):
    """Two runs' checkpoints, losses and looks at the gradients."""
    a, b = (read_checkpoint(f / "last.pt") for f in (folder, other))
    for part in ("model", "ema"):
        torch.testing.assert_close(a[part], b[part], **close)
    torch.testing.assert_close(a["optimizer"]["state"], b["optimizer"]["state"], **close)
    assert a["step"] == b["step"]
    losses = [
        [{k: v for k, v in r.items() if k.startswith(("train/", "loss_share"))} for r in of]
        for of in (read_metrics(f / "metrics.jsonl") for f in (folder, other))
    ]
    looks = [[scalars(r) for r in read_records(f / "diagnosis.jsonl")] for f in (folder, other)]
    for mine, theirs in (losses, looks):
        assert len(mine) == len(theirs) > 0
        for x, y in zip(mine, theirs, strict=True):
            assert x == pytest.approx(y, rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eager")
    run(folder, None)
    return folder


def test_a_training_is_the_eager_one(whole, eager, tmp_path):
    """Of several tasks, shared selectively, whose gradients are looked at and projected."""
    state = run(tmp_path, "default")
    assert whole["unique_graphs"] > 0
    assert_alike(tmp_path, eager, **CLOSE)
    load_weights(model_of(norm="train"), read_checkpoint(tmp_path / "best.pt")["model"], "best.pt")
    assert list(state.ema.module.state_dict()) == list(model_of(norm="train").state_dict())


def test_an_eager_training_goes_on_compiled(whole, eager, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, None, stop=5)
    assert whole["unique_graphs"] == 0
    run(tmp_path, "default", resume=True)
    assert whole["unique_graphs"] > 0
    assert_alike(tmp_path, eager, **CLOSE)


def test_graphs_are_told_of_each_batch_and_their_gradients_are_kept(whole, tmp_path, monkeypatch):
    marked, kept = [], []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(1))
    monkeypatch.setattr("detmtl.engine.trainer.keep_gradients", lambda of: kept.append(list(of)))
    run(tmp_path, "reduce-overhead", steps=2, kind="fixed")
    assert len(marked) == 4 and len(kept) == 2, "all but a step's last"
    marked.clear()
    run(tmp_path / "other", "default", steps=1, kind="fixed")
    assert len(marked) == 0 and len(kept) == 2


def test_kept_gradients_have_memory_of_their_own():
    a, b = (torch.nn.Parameter(torch.ones(2, 3, 2, 2)) for _ in range(2))
    a.grad = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    before = a.grad
    keep_gradients([a, b])
    assert b.grad is None and torch.equal(a.grad, before) and a.grad.stride() == before.stride()
    assert a.grad.data_ptr() != before.data_ptr()


def test_a_machine_that_cannot_compile_is_told_at_the_start(monkeypatch):
    def broken(function):
        raise RuntimeError("InvalidCxxCompiler: there is none\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    told = (
        r"train\.compile: torch cannot compile for cpu .*InvalidCxxCompiler: there is none\).*g\+\+"
    )
    settings = TrainSettings(steps=1, compile="default")
    with pytest.raises(InputError, match=told) as error:
        settings.prepare(model_of(), None, OPTIM, Process(0, 1, CPU), {}, NAMES)
    assert "and more" not in str(error.value)
    TrainSettings(steps=1).check(CPU)


def focal(dtype=torch.bfloat16, compiled=False, gamma=2.0, seed=0):
    """The focal loss of two levels, one of several blocks, and its gradient; some rows and elements off."""
    g = torch.Generator().manual_seed(seed)
    levels, targets = [], []
    for rows in (21_000 + 1000 * seed, 5):
        x = torch.randn(2, rows, 7, generator=g) * 4
        off, holes = (torch.rand(*shape, generator=g) < 0.1 for shape in ((2, rows), x.shape))
        own = torch.tensor([0, 7 * rows + 3])
        off.view(-1)[[0, rows]] = False
        holes.view(-1)[own] = False
        one = torch.ones(2)
        weights = torch.rand(2, 7, generator=g)
        targets.append(FocalTargets(off, holes, weights, own, one.bool(), one, one))
        levels.append(x.to(dtype).requires_grad_())
    with compiled_negatives() if compiled else nullcontext():
        total = focal_sums(levels, targets, 0.25, gamma)
    total.sum().backward()
    return total.detach(), [x.grad for x in levels]


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_negatives_are_compiled_within_the_context_alone(whole, gamma):
    found, expected = focal(compiled=True, gamma=gamma), focal(gamma=gamma)
    assert whole["unique_graphs"] > 0
    torch.testing.assert_close(found, expected)
    before = whole["unique_graphs"]
    focal()
    assert whole["unique_graphs"] == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_negatives_in_generated_code():
    torch._dynamo.reset()
    for seed, dtype in enumerate((torch.bfloat16, torch.float32, torch.float64)):
        found, expected = focal(dtype, True, seed=seed), focal(dtype, seed=seed)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)  # of 147,000 numbers
        bits = (
            {"rtol": 0.008, "atol": 1e-6}
            if dtype == torch.bfloat16
            else {"rtol": 1e-5, "atol": 1e-6}
        )
        torch.testing.assert_close(found[1], expected[1], **bits)
        assert all(
            (a == 0).sum() == (b == 0).sum() for a, b in zip(found[1], expected[1], strict=True)
        )
    torch._dynamo.reset()


@pytest.mark.slow
def test_without_a_compiler_torch_itself_says_so():
    torch._dynamo.reset()
    none = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(none), pytest.raises(InputError, match="InvalidCxxCompiler"):
        check_compiler(CPU)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_generated_code_trains_alike(eager, tmp_path):
    torch._dynamo.reset()
    run(tmp_path, "default")
    assert_alike(tmp_path, eager, rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # faster, but less alike
@pytest.mark.filterwarnings(
    "ignore:The CUDA Graph is empty"
)  # torch's own first one, to get memory
@pytest.mark.parametrize("kind", ["fixed", "pcgrad"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_gpu_trains_alike(mode, kind, tmp_path, monkeypatch):
    """CUDA graphs are recorded in the second step of a size and replayed from the third on."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch._dynamo.reset()
    device = torch.device("cuda", 0)
    for name, chosen in (("eager", None), ("compiled", mode)):
        run(tmp_path / name, chosen, steps=8, kind=kind, device=device)
    assert_alike(tmp_path / "compiled", tmp_path / "eager", rtol=1e-2, atol=1e-3)
    torch._dynamo.reset()
