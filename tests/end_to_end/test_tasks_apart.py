"""Two processes whose pictures are labelled for different tasks train as one that has them all."""

import json
import math
import os

import pytest
import torch
import torch.multiprocessing
from conftest import settings_words
from pydantic import TypeAdapter
from test_distributed import torchrun

from detmtl.balancing.balancers import AnyBalancer
from detmtl.data.scenes import SCENE_CLASSES
from detmtl.engine import distributed
from detmtl.engine.optim import OptimSettings
from detmtl.engine.recorder import Recorder
from detmtl.engine.trainer import TrainSettings, train
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.depth import DepthLabels
from detmtl.structures.labels import UNKNOWN, BoxLabels, MapLabels, TagLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

NAMES = ["a", "b"]
KINDS = [
    {"kind": "fixed"},
    {"kind": "fixed", "scale": "running"},
    {"kind": "uncertainty"},
    {"kind": "dwa", "window": 1},
    {"kind": "gradnorm"},
    {"kind": "famo"},
    {"kind": "geometric"},
    {"kind": "pcgrad"},
]
STEPS = 3
# plain SGD: Adam makes whole steps of rounding errors
OPTIM = OptimSettings(name="sgd", lr=0.02, warmup=0, momentum=0.9, clip=1.0)


def picture(number, kinds):
    g = torch.Generator().manual_seed(number)
    corner = torch.rand(2, 2, generator=g) * 20
    known = {
        "boxes": BoxLabels.of(torch.cat([corner, corner + 30], 1), torch.tensor([0, 1]), 2),
        "maps": MapLabels((torch.rand(64, 64, generator=g) * 2).byte(), None, torch.ones(2)),
        "tags": TagLabels((torch.rand(2, generator=g) > 0.5).float(), torch.ones(2)),
        "depth": DepthLabels(torch.rand(64, 64, generator=g) * 30),
    }
    image = torch.randint(0, 256, (3, 64, 64), generator=g, dtype=torch.uint8)
    if kinds == "unknown":  # there are labels, from which nothing is learned
        unknown = torch.full((64, 64), UNKNOWN, dtype=torch.uint8)
        known["boxes"] = BoxLabels.empty(2, torch.zeros(2))
        known["maps"] = MapLabels(unknown, None, torch.ones(2))
        known["tags"] = TagLabels(torch.ones(2), torch.zeros(2))
        known["depth"] = DepthLabels(torch.zeros(64, 64))
        kinds = list(known)
    labels = {kind: known[kind] for kind in kinds}
    return Sample(image, labels, ImageInfo(number, f"{number}.jpg", 64, 64, "s"))


def halves(step):
    """Returns the pictures of either process at a step: of other tasks each; at times of none."""
    first, second = ["boxes", "tags"], ["maps", "depth"]
    if step == 1:
        first, second = "unknown", ["maps", "boxes"]
    if step == 2:
        first, second = second, []
    return [[picture(2 * step + n, kinds)] for n, kinds in enumerate((first, second))]


def trained(folder, kind, process):
    """Returns what training leaves behind."""
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name="resnet10t"), fpn=FPNSettings(channels=8, levels=3)
    )
    tasks = {
        "boxes": DetectionConfig(head={"depth": 1}),
        "map": SemanticConfig(at="p3"),
        "tags": TagsConfig(),
        "depth": DepthConfig(at="c3"),
    }
    model = build_model(settings, tasks, NAMES, other_names={"depth": ()})
    balancer = TypeAdapter(AnyBalancer).validate_python(kind).build(list(tasks))
    balancer.attach(model.shared_parameters(), model.own_parameters())
    chosen = TrainSettings(steps=STEPS, precision="fp32", ema=None, save_every=None, log_every=1)
    state = chosen.prepare(model, balancer, OPTIM, process, {}, NAMES)
    parts = [halves(step) for step in range(STEPS)]
    if process.world == 1:
        batches = [Batch.of([*a, *b]) for a, b in parts]
    else:
        batches = [Batch.of(part[process.rank]) for part in parts]
    names = dict.fromkeys(tasks, NAMES)
    with Recorder(folder, STEPS, names, 0, process.rank == 0) as recorder:
        train(state, iter(batches), chosen, OPTIM, lambda _: {}, recorder, folder)
    kept = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    return kept | {f"balancer.{k}": v for k, v in state.balancer.state_dict().items()}


def _rank(rank, folder, port):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    process = distributed.start("cpu")
    found = [trained(folder / f"two{i}", kind, process) for i, kind in enumerate(KINDS)]
    everyones = distributed.gather(found)
    if rank == 0:
        torch.save(everyones, folder / "everyones.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def everyones(tmp_path_factory):
    """What each of two processes has after training with each balancer."""
    folder = tmp_path_factory.mktemp("two")
    port = 28500 + os.getpid() % 1000
    torch.multiprocessing.spawn(_rank, (folder, port), nprocs=2)
    return torch.load(folder / "everyones.pt")


@pytest.mark.parametrize("i", range(len(KINDS)), ids=[str(k) for k in KINDS])
def test_different_tasks_on_each_process(everyones, tmp_path, i):
    first, second = (of_rank[i] for of_rank in everyones)
    one = trained(tmp_path / "one", KINDS[i], distributed.Process(0, 1, torch.device("cpu")))
    assert one.keys() == first.keys() == second.keys()
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name  # ranks agree to the bit
        torch.testing.assert_close(
            first[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_alternating_sources_of_different_tasks(detmtl, tmp_path):
    """A whole run: each step's pictures have boxes, or maps and depth, never both."""
    recipe = tmp_path / "recipe.yaml"
    gold = "images: images/gold"
    split = "{kind: coco, images: images/val, annotations: annotations/val.json, "
    split += "maps: {folder: semantic/val, categories: semantic/categories.json}, "
    split += "depth: {folder: depth/val}}"
    recipe.write_text(
        f"""
data:
  root: {tmp_path / "data"}
  scenes: {{gold: 6, pool: 0, val: 2, test: 0, size: [64, 96]}}
  classes: [{", ".join(SCENE_CLASSES)}]
  maps: {{classes: [background, {", ".join(SCENE_CLASSES)}]}}
  sources:
    boxed: {{kind: coco, {gold}, annotations: annotations/gold.json, subset: {{count: 3}}}}
    mapped:
      kind: folder
      {gold}
      subset: {{count: 3, rest: true}}
      maps: {{folder: semantic/gold, categories: semantic/categories.json}}
      depth: {{folder: depth/gold}}
  val: {split}
  batch_size: 2
input: {{short: 64, long: 96}}
model: {{backbone: {{name: resnet10t}}, fpn: {{channels: 8, levels: 3}}, sharing: selective}}
tasks:
  boxes: {{kind: detection, head: {{depth: 1}}}}
  map: {{kind: semantic, at: p3}}
  depth: {{kind: depth, at: c2}}
mix: {{mode: alternate, shares: {{boxed: 1, mapped: 1}}}}
train: {{steps: 4, precision: fp32, log_every: 1, ema: null, save_every: null}}
optim: {{name: sgd, warmup: 0}}
balancing: {{kind: famo}}
export: {{format: null}}
device: cpu
"""
    )
    words = ["--config", recipe, *settings_words(seed=1)]
    done = detmtl("train", *words, "--out", tmp_path / "one")
    assert done.status == 0, done.err
    torchrun("train", *words, "--out", tmp_path / "two", folder=tmp_path)
    runs = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    spoke = [{"boxes": "train/boxes/box" in r, "map": "train/map/pixel" in r} for r in runs[0]][:4]
    assert [s["boxes"] for s in spoke] == [not s["map"] for s in spoke]
    assert len({s["boxes"] for s in spoke}) == 2
    for one, two in zip(*runs, strict=True):
        assert one.keys() == two.keys()
        for name in (k for k in one if k.startswith("train/")):
            assert math.isclose(one[name], two[name], rel_tol=1e-3), name
    scores = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert {"boxes/AP", "map/mIoU", "depth/delta1", "depth/RMSE"} <= scores.keys()
