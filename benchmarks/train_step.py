"""The training step, the loss and the matching beside torchvision's RetinaNet.

    python benchmarks/train_step.py --threads 2 --results benchmarks/results/NAME.md
    python benchmarks/train_step.py --parts matching,loss
    python benchmarks/train_step.py --parts light          # MobileNetV2, the config of --config
    python benchmarks/train_step.py --device cuda --results benchmarks/results/NAME.md

ResNet-50 with a pyramid, frozen batch norm, stem and first stage frozen, 91 classes, 9 anchors a
position, SGD; the same pictures and boxes for both. torchvision gets float pictures, as it wants
them; detmtl uint8 ones and normalizes. On a CPU torchvision is timed as its users have it, in a process
of its own, and with freed memory kept, as `detmtl train` keeps it. `light` compares detmtl's
task with torchvision's head, loss and matching on one backbone and pyramid, both in detmtl's loop
(`benchmarks/torchvision_retinanet.py`).
On a GPU the step is taken eagerly, compiled, and as one CUDA graph with labels padded to one shape.
"""

import argparse
import gc
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

import torch
from abab import (
    BESIDE,
    KEEPING,
    Row,
    Way,
    elsewhere,
    faster,
    in_turn,
    peak_memory,
    ratio,
    report,
    row,
)
from networks import batch_of, on, ours, step_of, targets_of, theirs
from provenance import REPOSITORY
from pydantic import TypeAdapter
from torch import Tensor

from detmtl.config import find_config, read_settings
from detmtl.data.mixture import MixSettings
from detmtl.engine.compiled import CompileMode
from detmtl.engine.memory import keep_freed_memory
from detmtl.engine.precision import Precision, fast_bfloat16
from detmtl.losses.focal import compiled_negatives
from detmtl.models.anchors import AnchorSettings
from detmtl.models.matching import Rules, match
from detmtl.models.windows import grids
from detmtl.run_training import build
from detmtl.structures.labels import PaddedBoxes
from detmtl.structures.sample import Batch
from detmtl.tasks.tasks import TaskConfig

CLASSES = 91
PARTS = ("matching", "loss", "step", "light")
DEFAULT, KEPT = "torchvision", f"torchvision, {KEEPING}"
"""As its users have it, in a process of its own; and in this one, whose allocator keeps what is freed."""
WARMUP = 5
"""Steps before one is recorded; recording takes none."""


def matching(rounds: int) -> list[Row]:
    """Times matching at 800 x 1344, 201,600 anchors, and weighs its memory in processes of their own."""
    rows = []
    for boxes, goal in ((1000, 250), (100, 100)):
        mine, peer = matching_ways(boxes)
        with elsewhere(matching_peer, boxes) as default:
            ways = {DEFAULT: default, KEPT: peer, "detmtl": mine}
            seconds = in_turn(ways, rounds if boxes < 1000 else 3)
        what = f"matching, {boxes} boxes, 201,600 anchors"
        rows += [row(what, seconds, name, "detmtl", goal) for name in (DEFAULT, KEPT)]
    memory = {}
    for which in ("torchvision", "detmtl"):
        command = [sys.executable, __file__, "--weigh", which]
        done = subprocess.run(command, capture_output=True, text=True)
        # torchvision needs near 7 GB, which may not be there
        memory[which] = int(done.stdout.split()[-1]) / 1e6 if done.returncode == 0 else float("nan")
    under = 100 / memory["detmtl"]
    rows.append(
        Row(
            "memory of matching 1,000 boxes, beside 100 MB",
            f"torchvision: {memory['torchvision']:.0f} MB",
            f"detmtl: {memory['detmtl']:.0f} MB",
            under,
            1,
            f"torchvision / detmtl: {memory['torchvision'] / memory['detmtl']:.0f}",
        )
    )
    return rows


def matching_ways(boxes: int) -> tuple[Way, Way]:
    """Returns detmtl's and torchvision's way to match so many boxes in one picture."""
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    strides = [8, 16, 32, 64, 128]
    anchors = AnchorSettings().build(strides)
    maps = [torch.empty(1, -(-800 // s), -(-1344 // s)) for s in strides]
    flat, levels = anchors.flat(maps), anchors(maps)
    regular = grids(levels, [(m.shape[-2], m.shape[-1]) for m in maps])
    batch = batch_of(1, boxes, 800, 1344, CLASSES)
    labels = batch.labels["boxes"]
    assert isinstance(labels, PaddedBoxes)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return (
        lambda: match(flat, labels, Rules(), regular),
        lambda: matcher(box_iou(labels.boxes[0], flat)),
    )


def matching_peer(boxes: int) -> Way:
    """Returns torchvision's way."""
    return matching_ways(boxes)[1]


def weigh(which: str) -> None:
    """Prints the bytes by which memory grows while 1,000 boxes are matched."""
    mine, peer = matching_ways(1000)
    few, _ = matching_ways(2)
    few()  # what the first call loads stays
    print(peak_memory(mine if which == "detmtl" else peer))


def loss(rounds: int, pictures: int, boxes: int, side: int) -> list[Row]:
    """Times loss with matching, forward and backward, on the same outputs."""
    model = ours(CLASSES)
    batch = batch_of(pictures, boxes, side, side, CLASSES)
    outputs = raw_outputs(pictures, side)

    def mine(kind: torch.dtype) -> None:
        leaves = [x.to(kind).requires_grad_() for x in outputs]
        terms = model.tasks["boxes"].loss(leaves, batch)
        sum(terms.values()).backward()

    def compiled(kind: torch.dtype) -> None:
        with compiled_negatives():
            mine(kind)

    with elsewhere(loss_peer, pictures, boxes, side) as default:
        ways = {
            DEFAULT: default,
            KEPT: loss_peer(pictures, boxes, side),
            "detmtl": lambda: mine(torch.float32),
            "detmtl bf16": lambda: mine(torch.bfloat16),
            "detmtl compiled": lambda: compiled(torch.float32),
            "detmtl bf16 compiled": lambda: compiled(torch.bfloat16),
        }
        seconds = in_turn(ways, rounds)
    what = f"loss with matching, {pictures} pictures of {side} px, {boxes} boxes"
    notes = {
        "detmtl": "logits float32",
        "detmtl bf16": "detmtl's logits bfloat16",
        "detmtl compiled": "train.compile, float32",
        "detmtl bf16 compiled": "train.compile, bfloat16",
    }
    return [
        row(what, seconds, peer, name, 15 if name == "detmtl" else None, note)
        for peer in (DEFAULT, KEPT)
        for name, note in notes.items()
    ]


def raw_outputs(pictures: int, side: int) -> list[Tensor]:
    """Returns logits and then deltas (B, A * numbers, H, W) of each level, channels_last."""
    maps = [(side // s, side // s) for s in (8, 16, 32, 64, 128)]
    torch.manual_seed(0)
    return [
        (torch.randn(pictures, 9 * n, *shape) * 0.5 - m).contiguous(
            memory_format=torch.channels_last
        )
        for n, m in ((CLASSES, 4), (4, 0))
        for shape in maps
    ]


def loss_peer(pictures: int, boxes: int, side: int) -> Way:
    """Returns torchvision's loss, forward and backward, on `raw_outputs`."""
    network, outputs = theirs(CLASSES, side), raw_outputs(pictures, side)
    rows = {
        name: torch.cat([_rows(x, n) for x in xs], dim=1)
        for name, n, xs in (
            ("cls_logits", CLASSES, outputs[:5]),
            ("bbox_regression", 4, outputs[5:]),
        )
    }
    anchors = [ours(CLASSES).tasks["boxes"].anchors.flat(outputs[:5])] * pictures
    targets = targets_of(batch_of(pictures, boxes, side, side, CLASSES))

    def peer() -> None:
        leaves = {name: x.detach().requires_grad_() for name, x in rows.items()}
        sum(network.compute_loss(targets, leaves, anchors).values()).backward()

    return peer


def _rows(maps: Tensor, numbers: int) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, numbers)


def step(rounds: int, pictures: int, boxes: int, side: int) -> list[Row]:
    """Times the whole step on a CPU: forward, loss, backward, update."""
    batch, cpu = batch_of(pictures, boxes, side, side, CLASSES), torch.device("cpu")
    sizes = (pictures, boxes, side)
    half: Precision = "bf16" if fast_bfloat16(cpu) else "fp32"
    tuned = f"{half} channels_last"
    ways: dict[str, Way] = {}
    with ExitStack() as stack:
        for name, given in (("fp32", ("fp32", False)), (tuned, (half, True))):
            peer = f"torchvision {name}"
            ways[peer] = stack.enter_context(elsewhere(step_peer, *given, *sizes))
            ways[f"{peer}, {KEEPING}"] = step_peer(*given, *sizes)
        kinds: list[Precision] = ["fp32", "winograd", *(["bf16"] if half == "bf16" else [])]
        mine = [f"detmtl {kind}" for kind in kinds]
        for name, kind in zip(mine, kinds, strict=True):
            ways[name] = step_of(ours(CLASSES), batch, kind, cpu)
        compiled = f"detmtl {half} compiled"
        ways[compiled] = step_of(ours(CLASSES), batch, half, cpu, compile="default")
        seconds = in_turn(ways, rounds)
    best = faster(seconds, mine)
    what = f"step, {pictures} pictures of {side} px, {boxes} boxes"
    rows = []
    for keeping in ("", f", {KEEPING}"):
        default, fast = (f"torchvision {n}{keeping}" for n in ("fp32", tuned))
        rows += [
            row(what, seconds, default, best, 6, "torchvision's default, detmtl's best"),
            row(
                what,
                seconds,
                faster(seconds, [default, fast]),
                best,
                1.9,
                "the faster setting of each",
            ),
            row(what, seconds, default, "detmtl fp32", 1.5, "fp32 both"),
            row(
                what, seconds, default, "detmtl winograd", 1.5, "fp32 both, by Winograd's algorithm"
            ),
        ]
    rows.append(row(what, seconds, f"detmtl {half}", compiled, None, "train.compile"))
    return rows


def step_peer(precision: Precision, last: bool, pictures: int, boxes: int, side: int) -> Way:
    """Returns torchvision's step in `precision`, in channels_last or as it comes."""
    layout = torch.channels_last if last else torch.contiguous_format
    batch = batch_of(pictures, boxes, side, side, CLASSES)
    network = theirs(CLASSES, side).to(memory_format=layout)
    return step_of(network, batch, precision, torch.device("cpu"))


def light(rounds: int, config: str, overrides: list[str]) -> list[Row]:
    """Times a config's model with detmtl's task and with torchvision's, for both number formats."""
    sys.path.insert(0, str(REPOSITORY))  # where the peer's task is found by its name
    settings = read_settings(find_config(config), [*overrides, "model.backbone.weights=null"])
    settings = settings.model_copy(update={"mix": MixSettings(mode="gold")})
    space = settings.data.label_space()
    scale = settings.tasks["boxes"].anchors.base_scale  # type: ignore[union-attr]
    peer = {
        "kind": "benchmarks.torchvision_retinanet:Config",
        "base_scale": scale,
        "box_weight": 2.0,
    }
    with_peer = settings.model_copy(
        update={"tasks": {"boxes": TypeAdapter(TaskConfig).validate_python(peer)}}
    )
    height, width = settings.input.short, settings.input.long
    batch = batch_of(settings.data.batch_size, 14, height, width, len(space.names))
    ways: dict[str, Way] = {}
    cpu = torch.device("cpu")
    halves: list[Precision] = ["bf16"] if fast_bfloat16(cpu) else []
    kinds: dict[str, list[Precision]] = {
        KEPT: ["fp32", *halves],
        "detmtl": ["fp32", "winograd", *halves],
    }
    for name, chosen in ((KEPT, with_peer), ("detmtl", settings)):
        for kind in kinds[name]:
            torch.manual_seed(0)
            model = build(chosen).train()
            ways[f"{name} {kind}"] = step_of(model, batch, kind, cpu)
    seconds = in_turn(ways, rounds)
    what = f"{config}: step, {len(batch)} pictures of {width} x {height}, 14 boxes"
    peer_best = faster(seconds, [f"{KEPT} {kind}" for kind in kinds[KEPT]])
    mine_best = faster(seconds, [f"detmtl {kind}" for kind in kinds["detmtl"]])
    same = "same backbone and pyramid, both in detmtl's loop"
    return [
        row(what, seconds, f"{KEPT} fp32", "detmtl fp32", None, same),
        row(what, seconds, f"{KEPT} fp32", "detmtl winograd", None, same),
        row(what, seconds, peer_best, mine_best, None, "the faster format of each"),
    ]


def on_gpu(
    rounds: int, pictures: int, boxes: int, side: int, without: Sequence[str] = ()
) -> list[Row]:
    """Times the step on a GPU, but for the ways `without`; returns pictures per second and memory."""
    device = torch.device("cuda")
    batch = on(batch_of(pictures, boxes, side, side, CLASSES), device)
    half: Precision = "bf16"

    def mine(compile: CompileMode | None = None) -> Way:
        return step_of(ours(CLASSES).to(device), batch, half, device, compile)

    def replayed(compile: CompileMode | None = None) -> Way:
        return graphed(ours(CLASSES).to(device), batch, device, compile)

    peer, best = "torchvision bf16", "detmtl compiled, CUDA graph"
    makers = {
        peer: lambda: step_of(
            theirs(CLASSES, side).to(device, memory_format=torch.channels_last), batch, half, device
        ),
        "detmtl bf16": mine,
        "detmtl compiled": lambda: mine("default"),
        "detmtl compiled, networks' CUDA graphs": lambda: mine("reduce-overhead"),
        "detmtl CUDA graph": replayed,
        best: lambda: replayed("default"),
    }
    unknown = set(without) - set(makers) | {peer} & set(without)
    if unknown or len(set(without)) > len(makers) - 2:
        names = ", ".join([*makers][1:])
        raise SystemExit(f"--without: may name all but one of {names}; got {', '.join(without)}")
    ways, memory = {}, {}
    for name, make in makers.items():
        if name not in without:
            ways[name], memory[name] = weighed(make)
    seconds = in_turn(ways, rounds, warmup=3, synchronize=torch.cuda.synchronize)
    speeds = {n: pictures / statistics.median(seconds[n]) for n in ways}
    told = {n: f"{n}: {speeds[n]:.0f} pictures/s, {memory[n]:.1f} GiB" for n in ways}
    what = f"step, {pictures} pictures of {side} px, {boxes} boxes"
    rows = [
        Row(what, told[peer], told[n], ratio(seconds, peer, n), 2.0 if n == best else None)
        for n in list(ways)[1:]
    ]
    mine_best = faster(seconds, list(ways)[1:])
    rows.append(
        Row(
            f"{what}: pictures/s of the fastest, beside 200",
            "",
            told[mine_best],
            speeds[mine_best] / 200,
            1,
        )
    )
    return rows


def weighed(make: Callable[[], Way]) -> tuple[Way, float]:
    """Makes a way on the GPU and goes it once; returns it and the GiB that both took at most.

    What a graph holds is there from its making on, and its replay asks for nothing.
    """
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way = make()
    way()
    torch.cuda.synchronize()
    return way, (torch.cuda.max_memory_allocated() - before) / 2**30


def graphed(
    model: torch.nn.Module, batch: Batch, device: torch.device, compile: CompileMode | None
) -> Way:
    """Returns a step that replays one CUDA graph: every tensor has its place and shape for good.

    New batches are copied into the tensors that the graph was recorded with; their labels have to be
    padded to its number of boxes. The learning rate is the recorded one.
    """
    batch = _copied(batch)
    take = step_of(model, batch, "bf16", device, compile)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            take()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take()
    fresh = _copied(batch)

    def replay(keeping: Way = take) -> None:  # weights and momenta, which the graph only points to
        _fill(batch, fresh)
        graph.replay()

    return replay


def _copied(batch: Batch) -> Batch:
    return _mapped(batch, Tensor.clone)


def _mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    labels = batch.labels["boxes"]
    assert isinstance(labels, PaddedBoxes)
    tensors = {f.name: getattr(labels, f.name) for f in fields(labels)}
    changed = {name: change(x) for name, x in tensors.items() if isinstance(x, Tensor)}
    return replace(batch, images=change(batch.images), labels={"boxes": replace(labels, **changed)})


def _fill(batch: Batch, fresh: Batch) -> None:
    batch.images.copy_(fresh.images)
    for f in fields(batch.labels["boxes"]):
        there, new = (getattr(x.labels["boxes"], f.name) for x in (batch, fresh))
        if isinstance(there, Tensor):
            there.copy_(new)
        else:  # what the graph was recorded with
            assert there == new, f"{f.name}: the graph knows {there}, the batch has {new}"


def main() -> None:
    """Measures the parts that are asked for and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--side", type=int)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--config", default="bccd_retina.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--results", type=Path)
    parser.add_argument(
        "--without", action="append", default=[], help="a way to leave out on a GPU"
    )
    parser.add_argument("--weigh", choices=["detmtl", "torchvision"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.weigh:
        weigh(args.weigh)
        return
    rows: list[Row] = []
    if args.device == "cuda":
        pictures, side = args.pictures or 16, args.side or 800
        rows = on_gpu(args.rounds * 4, pictures, args.boxes, side, args.without)
    else:
        keep_freed_memory()  # as `detmtl train` does
        unknown = set(args.parts.split(",")) - set(PARTS)
        if unknown:
            parser.error(f"--parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        pictures, side = args.pictures or 2, args.side or 512
        for part in args.parts.split(","):
            if part == "matching":
                rows += matching(args.rounds)
            elif part == "loss":
                rows += loss(3 * args.rounds, pictures, args.boxes, side)
            elif part == "step":
                rows += step(args.rounds, pictures, args.boxes, side)
            else:
                rows += light(3 * args.rounds, args.config, args.overrides)
    report(
        "Training step, loss and matching beside torchvision's RetinaNet",
        "ResNet-50 with a pyramid, random weights; ways in turn, medians of the rounds' ratios"
        + (
            "; bfloat16 autocast, channels_last, pictures and labels on the GPU already; memory is the most "
            "that the step and its making took."
            if args.device == "cuda"
            else BESIDE
        ),
        rows,
        args.results,
    )


if __name__ == "__main__":
    main()
