"""Time of a training step with each way to balance tasks, relative to the plain sum of their losses.

    python benchmarks/balancers.py --threads 2 --results benchmarks/results/NAME.md

The network and the four tasks of scenes_tasks.yaml on pictures of noise. All methods are measured in
one process, one step of each after the other, round after round, so that what disturbs one disturbs
all. Two rows are no balancers: `backward` called on the sum by hand, and the cut at the features.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from cut import Cut
from provenance import provenance
from pydantic import TypeAdapter
from torch import Tensor

from detmtl.balancing.balancers import AnyBalancer
from detmtl.config import find_config, read_settings
from detmtl.engine.memory import keep_freed_memory
from detmtl.run_training import build
from detmtl.structures.depth import DepthLabels
from detmtl.structures.labels import BoxLabels, MapLabels, TagLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.multitask import MultiTask

PLAIN, CUT = "plain sum, by hand", "cut at the features"
METHODS: dict[str, dict] = {
    "fixed": {"kind": "fixed"},
    "fixed, scale initial": {"kind": "fixed", "scale": "initial"},
    "uncertainty": {"kind": "uncertainty"},
    "dwa": {"kind": "dwa"},
    "famo": {"kind": "famo"},
    "geometric": {"kind": "geometric"},
    "gradnorm": {"kind": "gradnorm"},
    "pcgrad": {"kind": "pcgrad"},
    "torchjd, upgrad": {"kind": "torchjd"},
    "torchjd, mgda": {"kind": "torchjd", "method": "mgda"},
    "torchjd, cagrad": {"kind": "torchjd", "method": "cagrad"},
}
Step = Callable[[], None]


def steps(model: MultiTask, batch: Batch) -> dict[str, Step]:
    """Returns method -> forward, losses and backward of one batch; gradients are dropped after."""

    def terms(outputs: Mapping[str, list[Tensor]]) -> dict[str, dict[str, Tensor]]:
        return {name: task.loss(outputs[name], batch) for name, task in model.tasks.items()}  # type: ignore[operator]

    def total(of: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        return torch.stack([x for task in of.values() for x in task.values()]).sum()

    def by_hand() -> None:
        total(terms(model(batch.images))).backward()

    def by_cut() -> None:
        cut = Cut(model.features(batch.images))
        for of_task in terms(model.heads(cut.leaves)).values():
            torch.stack(list(of_task.values())).sum().backward()
        cut.backward()

    def balanced(settings: dict) -> Step:
        balancer = TypeAdapter(AnyBalancer).validate_python(settings).build(list(model.tasks))
        balancer.attach(model.shared_parameters(), model.own_parameters())
        return lambda: balancer.backward(terms(model(batch.images)))

    return {PLAIN: by_hand, CUT: by_cut} | {n: balanced(s) for n, s in METHODS.items()}


def measure(found: Mapping[str, Step], model: MultiTask, rounds: int) -> dict[str, list[float]]:
    """Returns method -> seconds of its step in each round, the first two left out."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 2):
        for name, step in found.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
            model.zero_grad(set_to_none=True)
    return {name: values[2:] for name, values in seconds.items()}


def noise(height: int, width: int, pictures: int, names: Mapping[str, list[str]]) -> Batch:
    """Returns pictures of noise with all labels of the four tasks, of the classes named for each."""
    classes, maps, tags = (len(names[kind]) for kind in ("boxes", "maps", "tags"))
    g = torch.Generator().manual_seed(0)
    samples = []
    for i in range(pictures):
        corners = torch.rand(8, 2, generator=g) * torch.tensor([width - 50.0, height - 50.0])
        boxes = torch.cat([corners, corners + 40], 1)
        labels = {
            "boxes": BoxLabels.of(boxes, torch.randint(0, classes, (8,), generator=g), classes),
            "maps": MapLabels(
                torch.randint(0, maps, (height, width), generator=g).byte(), None, torch.ones(maps)
            ),
            "tags": TagLabels(torch.rand(tags, generator=g).round(), torch.ones(tags)),
            "depth": DepthLabels(torch.rand(height, width, generator=g) * 50 + 1),
        }
        image = torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)
        samples.append(Sample(image, labels, ImageInfo(i, f"{i}", height, width, "noise")))
    return Batch.of(samples)


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[192, 240], help="height and width")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    settings = read_settings(find_config("scenes_tasks.yaml"), ["model.backbone.weights=null"])
    model = build(settings).train()
    model.to(memory_format=torch.channels_last)
    batch = noise(*args.size, args.pictures, settings.data.names())
    seconds = measure(steps(model, batch), model, args.rounds)
    rows = []
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[PLAIN], strict=True)]
        rows.append(
            f"| {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} | "
            f"{statistics.median(values) * 1e3:.0f} |"
        )
    shared = sum(p.numel() for p in model.shared_parameters())
    text = "\n".join(
        [
            f"# Balancing four tasks, {args.threads} threads",
            "",
            provenance(),
            "",
            f"scenes_tasks.yaml, {len(batch)} pictures of {args.size[0]}x{args.size[1]}; "
            f"{shared / 1e6:.1f} million parameters are shared. Forward, losses and backward; "
            f"{args.rounds} rounds, one step of each in turn; ratios to the plain sum of the same round: "
            "median, least and largest.",
            "",
            "| method | time by the plain sum | over the rounds | median ms |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if args.results:
        args.results.write_text(text)


if __name__ == "__main__":
    main()
