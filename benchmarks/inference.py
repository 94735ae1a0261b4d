"""Detection of one picture, and decoding alone, beside torchvision's RetinaNet.

    python benchmarks/inference.py --threads 2 --results benchmarks/results/NAME.md
    python benchmarks/inference.py --parts postprocess,exported
    python benchmarks/inference.py --device cuda --results benchmarks/results/NAME.md

ResNet-50 with a pyramid, 91 classes; one picture of 640 x 640, uint8, the size of the network's, from
pixels to boxes. Weights are random; the last layers are scaled so that scores are spread as a trained
network's are and about 1,300 of them a level pass the threshold. torchvision gets a float picture, as it
wants it. What a way finds is compared with detmtl's own network in float32.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from abab import BESIDE, KEEPING, Row, Way, elsewhere, faster, in_turn, ratio, report, row
from networks import ours, theirs
from torch import Tensor, nn

from detmtl.engine.memory import keep_freed_memory
from detmtl.engine.precision import Computing, Precision, autocast, fast_bfloat16
from detmtl.inference.exported import ExportDtype, exported
from detmtl.inference.parity import BFLOAT16, FLOAT32, compare_detections
from detmtl.inference.predictor import LoadedModel, Predictor, ScriptPredictor
from detmtl.inference.script_file import write_script
from detmtl.structures.labels import BoxLabels

CLASSES = 91
PARTS = ("postprocess", "exported", "compiled")


@torch.no_grad()
def spread_scores(outputs: Callable[[], Sequence[Tensor]], last: nn.Conv2d, wanted: int) -> None:
    """Scales the layer that makes logits so that at the finest level `wanted` scores are above .05."""
    logits = outputs()[0].float()
    last.weight *= 1.0 / logits.std()
    assert last.bias is not None
    last.bias.zero_()
    logits = outputs()[0].float().flatten()
    # a few classes a picture would be more like a trained network; the number is what costs time
    last.bias += -2.944 - logits.topk(wanted).values[-1]


def noise(side: int) -> Tensor:
    """Returns a picture (1, 3, side, side) of noise."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=g)


def model_of(side: int) -> LoadedModel:
    """Returns detmtl's network with spread scores."""
    model = ours(CLASSES).eval()
    picture = noise(side)
    head = model.get_submodule("tasks.boxes.head")
    for p in head.parameters():
        if p.dim() == 4:
            nn.init.kaiming_normal_(p.data)
    spread_scores(lambda: model(picture)["boxes"], head.class_logits, 1300)  # type: ignore[arg-type]
    last = head.box_deltas
    with torch.no_grad():
        last.weight *= 0.3 / model(picture)["boxes"][-5].float().std()  # type: ignore[operator]
    names = tuple(model.tasks["boxes"].class_names)  # type: ignore[arg-type]
    return LoadedModel(model, names, side, side, {})


def peer_of(side: int, device: torch.device) -> nn.Module:
    """Returns torchvision's network with spread scores."""
    network = theirs(CLASSES, side).eval().to(device)
    g = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (1, 3, side, side), generator=g).float().to(device) / 255
    for p in network.head.parameters():
        if p.dim() == 4:
            nn.init.kaiming_normal_(p.data)
    finest = (side // 8) ** 2 * 9

    def outputs() -> list[Tensor]:
        features = list(network.backbone(picture).values())
        return [network.head(features)["cls_logits"][:, :finest]]

    spread_scores(outputs, network.head.classification_head.cls_logits, 1300)
    return network


def way_of_peer(side: int, precision: Precision, last: bool) -> Way:
    """Returns torchvision's way on a CPU, in channels_last or as it comes, on a picture of noise."""
    cpu = torch.device("cpu")
    given = [noise(side)[0].float() / 255]
    layout = torch.channels_last if last else torch.contiguous_format
    network = peer_of(side, cpu).to(memory_format=layout)

    @torch.inference_mode()
    def way() -> object:
        with Computing(precision, cpu)():
            return network(given)

    return way


def agreement(expected: Callable, found: Callable, side: int, exact: bool) -> str:
    """Returns how many detections of some pictures agree, by the tolerance of exported files."""
    g = torch.Generator().manual_seed(1)
    pictures = []
    for shape in ((6, 8), (20, 20), (side // 4, side // 4)):
        coarse = torch.rand(1, 3, *shape, generator=g) * 255
        fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
        pictures.append([fine[0].clamp(0, 255).byte()])
    pictures.append([noise(side)[0]])  # the one that the scores were spread on
    tolerance = FLOAT32 if exact else BFLOAT16
    difference = compare_detections(expected, found, pictures, tolerance)
    assert difference.detections, "nothing was found, so nothing was compared"
    limits = f"IoU {tolerance.iou:g}" if tolerance.pixels is None else f"{tolerance.pixels:g} px"
    return (
        f"{difference.matching:.1%} of {difference.detections} detections agree "
        f"({limits}, score {tolerance.scores:g})"
    )


def boxes_of(predictor: Predictor | ScriptPredictor) -> Callable[[list[Tensor]], list[BoxLabels]]:
    """Returns pictures -> detections, on the CPU."""
    return lambda images: [labels["boxes"].to("cpu") for labels in predictor.predict(images)]  # type: ignore[misc]


def exported_file(
    loaded: LoadedModel,
    dtype: ExportDtype,
    folder: Path,
    device: torch.device | str = "cpu",
) -> ScriptPredictor:
    """Returns a TorchScript file of the model, written without the check: `agreement` shows it."""
    path = folder / f"{dtype}.torchscript"
    write_script(loaded, exported(loaded.model, path), path, "traced", dtype)
    return ScriptPredictor(path, device)


def whole(rounds: int, side: int, parts: Sequence[str]) -> list[Row]:
    """Times pixels to boxes on a CPU."""
    loaded = model_of(side)
    picture = noise(side)[0]
    halves = fast_bfloat16(torch.device("cpu"))
    half: Precision = "bf16" if halves else "fp32"
    predictors: dict[str, Predictor | ScriptPredictor] = {
        "detmtl fp32": Predictor(loaded),
        "detmtl winograd": Predictor(loaded, precision="winograd"),
    }
    if halves:
        predictors["detmtl bf16"] = Predictor(loaded, precision="bf16")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if "exported" in parts:
            predictors["TorchScript fp32"] = exported_file(loaded, "float32", Path(folder))
            if halves:
                predictors["TorchScript bf16"] = exported_file(loaded, "bfloat16", Path(folder))
        if "compiled" in parts:
            predictors["compiled fp32"] = Predictor(loaded, compile=True)
            if halves:
                predictors["compiled bf16"] = Predictor(loaded, precision="bf16", compile=True)
        ways: dict[str, Way] = {}
        tuned = f"{half} channels_last"
        for name, precision, last in (("fp32", "fp32", False), (tuned, half, True)):
            peer = f"torchvision {name}"
            ways[peer] = stack.enter_context(elsewhere(way_of_peer, side, precision, last))
            ways[f"{peer}, {KEEPING}"] = way_of_peer(side, precision, last)
        ways |= {name: lambda p=p: p.predict([picture]) for name, p in predictors.items()}
        seconds = in_turn(ways, rounds, warmup=2)
        told = {
            name: agreement(
                boxes_of(predictors["detmtl fp32"]), boxes_of(p), side, not name.endswith("bf16")
            )
            for name, p in predictors.items()
        }
    mine = faster(seconds, list(predictors))
    what, rows = f"inference, one picture of {side} px", []
    for keeping in ("", f", {KEEPING}"):
        default, fast = (f"torchvision {n}{keeping}" for n in ("fp32", tuned))
        by_winograd = f"fp32 both, by Winograd's algorithm; {told['detmtl winograd']}"
        rows += [
            row(what, seconds, default, mine, 9, f"detmtl's best; {told[mine]}"),
            row(
                what,
                seconds,
                faster(seconds, [default, fast]),
                mine,
                3,
                "the faster setting of each",
            ),
            row(what, seconds, default, "detmtl fp32", 1.45, "fp32 both, eager"),
            row(what, seconds, default, "detmtl winograd", 1.45, by_winograd),
        ]
        for name, goal in (
            ("TorchScript bf16", 5),
            ("TorchScript fp32", None),
            ("compiled bf16", None),
            ("compiled fp32", None),
        ):
            if name in predictors:
                rows.append(row(what, seconds, default, name, goal, told[name]))
    return rows


@dataclass(frozen=True)
class RawOutputs:
    """What heads give of one picture, with about 1,300 candidates on each level that has as many.

    Attributes:
        logits, deltas: of each level, (1, 9 * numbers, H, W), channels_last.
    """

    logits: list[Tensor]
    deltas: list[Tensor]

    @classmethod
    def of(cls, side: int) -> "RawOutputs":
        g = torch.Generator().manual_seed(0)
        logits, deltas = [], []
        for n in [-(-side // s) for s in (8, 16, 32, 64, 128)]:
            x = torch.randn(1, 9 * CLASSES, n, n, generator=g)
            x += -2.944 - x.flatten().topk(min(1300, x.numel() // 4)).values[-1]
            logits.append(x.contiguous(memory_format=torch.channels_last))
            d = torch.randn(1, 36, n, n, generator=g) * 0.3
            deltas.append(d.contiguous(memory_format=torch.channels_last))
        return cls(logits, deltas)


def postprocess_peer(side: int) -> Callable[[], list[dict[str, Tensor]]]:
    """Returns torchvision's way from raw outputs to boxes."""
    raw, network = RawOutputs.of(side), theirs(CLASSES, side).eval()
    network.detections_per_img = 100
    anchors = ours(CLASSES).get_submodule("tasks.boxes.anchors")(raw.logits)
    rows = {
        name: [x.permute(0, 2, 3, 1).reshape(1, -1, n).contiguous() for x in maps]
        for name, n, maps in (
            ("cls_logits", CLASSES, raw.logits),
            ("bbox_regression", 4, raw.deltas),
        )
    }

    @torch.inference_mode()
    def way() -> list[dict[str, Tensor]]:
        return network.postprocess_detections(rows, [anchors], [(side, side)])

    return way


def postprocess(rounds: int, side: int) -> list[Row]:
    """Times raw outputs to boxes."""
    raw, peer = RawOutputs.of(side), postprocess_peer(side)
    decoder = ours(CLASSES).eval().get_submodule("tasks.boxes.decoder")
    decoder.detections = 100
    sizes = torch.tensor([[side, side]])

    @torch.inference_mode()
    def mine() -> list[tuple[Tensor, Tensor, Tensor]]:
        return decoder(raw.logits + raw.deltas, sizes)

    kept = f"torchvision, {KEEPING}"
    with elsewhere(postprocess_peer, side) as default:
        ways = {"torchvision": default, kept: peer, "detmtl": mine}
        seconds = in_turn(ways, rounds, warmup=2)
    theirs_found, (boxes, scores, classes) = peer()[0], mine()[0]
    same = torch.equal(theirs_found["labels"], classes) and torch.allclose(
        theirs_found["boxes"], boxes, atol=1e-2
    )
    note = f"{len(scores)} detections, {'the same' if same else 'NOT the same'} within .01 px"
    what = "postprocess, 1,300 candidates a level"
    return [row(what, seconds, name, "detmtl", 8, note) for name in ("torchvision", kept)]


def on_gpu(rounds: int, side: int) -> list[Row]:
    """Times network and boxes on a GPU at batch 1 and 16; pictures per second and memory."""
    device, rows = torch.device("cuda"), []
    loaded = model_of(side)
    with tempfile.TemporaryDirectory() as folder:
        script = exported_file(loaded, "bfloat16", Path(folder), device)
    peer = peer_of(side, device).to(memory_format=torch.channels_last)
    predictors = {
        "detmtl bf16": Predictor(loaded, device, "bf16"),
        "TorchScript bf16": script,
        "compiled bf16": Predictor(loaded, device, "bf16", compile=True),
    }
    found = boxes_of(Predictor(loaded, device))
    told = {n: agreement(found, boxes_of(p), side, False) for n, p in predictors.items()}
    for count in (1, 16):
        g = torch.Generator().manual_seed(0)
        pictures = [
            torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=g).to(device)
            for _ in range(count)
        ]
        given = [p.float() / 255 for p in pictures]

        @torch.inference_mode()
        def theirs_run(given: list[Tensor] = given) -> object:
            with autocast(device, torch.bfloat16):
                return peer(given)

        ways: dict[str, Way] = {"torchvision bf16": theirs_run}
        ways |= {n: lambda p=p, i=pictures: p.predict(i) for n, p in predictors.items()}
        seconds = in_turn(ways, rounds, warmup=5, synchronize=torch.cuda.synchronize)
        memory = {name: peak_on_gpu(way) for name, way in ways.items()}
        speeds = {
            n: f"{n}: {count / statistics.median(seconds[n]):.0f} pictures/s, {memory[n]:.1f} GiB"
            for n in ways
        }
        what = f"inference with suppression, batch {count}, {side} px"
        for name in predictors:
            times = ratio(seconds, "torchvision bf16", name)
            rows.append(Row(what, speeds["torchvision bf16"], speeds[name], times, note=told[name]))
    return rows


def peak_on_gpu(way: Way) -> float:
    """Returns by how many GiB the memory of the GPU grows at most; what a graph holds is not in it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def main() -> None:
    """Measures the parts that are asked for and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = args.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts: there are {', '.join(PARTS)}")
    if args.device == "cuda":
        rows = on_gpu(args.rounds * 4, args.side or 800)
    else:
        keep_freed_memory()
        side = args.side or 640
        rows = postprocess(3 * args.rounds, side) if "postprocess" in parts else []
        if {"exported", "compiled"} & set(parts):
            rows += whole(args.rounds, side, parts)
    report(
        "Inference beside torchvision's RetinaNet",
        "ResNet-50 with a pyramid, random weights with spread scores; ways in turn, medians of the "
        "rounds' ratios"
        + (
            "; pictures are on the GPU already; memory grows by so much during a call, without weights and "
            "without what a graph holds."
            if args.device == "cuda"
            else BESIDE
        ),
        rows,
        args.results,
    )


if __name__ == "__main__":
    main()
