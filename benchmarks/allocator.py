"""Training step with glibc's own handling of freed memory, and with `keep_freed_memory`.

    python benchmarks/allocator.py --threads 2 --results benchmarks/results/NAME.md

Each measurement is a process of its own, in the order A B A B ..., since the setting cannot be undone.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from provenance import provenance

from detmtl.config import find_config, read_settings
from detmtl.data.mixture import MixSettings
from detmtl.engine.memory import keep_freed_memory
from detmtl.run_training import build
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample


def measure(keep: bool, threads: int, steps: int) -> float:
    """Returns the median seconds of a training step of bccd_retina.yaml on noise."""
    torch.set_num_threads(threads)
    if keep and not keep_freed_memory():
        raise SystemExit("this system's allocator cannot be told")
    overrides = ["model.backbone.weights=null"]
    settings = read_settings(find_config("bccd_retina.yaml"), overrides)
    settings = settings.model_copy(update={"mix": MixSettings(mode="gold")})
    model = build(settings).train()
    model.to(memory_format=torch.channels_last)
    optimizer = settings.optim.build(model)
    batch = _batch()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        outputs = model(batch.images)
        terms = model.tasks["boxes"].loss(outputs["boxes"], batch)
        sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def _batch() -> Batch:
    torch.manual_seed(0)
    samples = []
    for i in range(4):
        corners = torch.rand(14, 2) * torch.tensor([340.0, 240.0])
        boxes = torch.cat([corners, corners + 60], 1)
        labels = BoxLabels.of(boxes, torch.randint(0, 3, (14,)), 3)
        image = torch.randint(0, 256, (3, 312, 416), dtype=torch.uint8)
        samples.append(Sample(image, {"boxes": labels}, ImageInfo(i, f"{i}", 312, 416, "noise")))
    return Batch.of(samples)


def main() -> None:
    """Measures in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=["default", "kept"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one == "kept", args.threads, args.steps))
        return
    seconds: dict[str, list[float]] = {"default": [], "kept": []}
    for _ in range(args.rounds):
        for name, values in seconds.items():
            command = [sys.executable, __file__, "--one", name]
            command += ["--threads", str(args.threads), "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            values.append(float(done.stdout.split()[-1]))
    rows = [
        f"| {name} | {statistics.median(v) * 1e3:.0f} | {', '.join(f'{x * 1e3:.0f}' for x in v)} |"
        for name, v in seconds.items()
    ]
    ratio = statistics.median(seconds["default"]) / statistics.median(seconds["kept"])
    text = "\n".join(
        [
            f"# Training step and freed memory, {args.threads} threads",
            "",
            provenance(),
            "",
            "bccd_retina.yaml, 4 pictures of 320x416; median milliseconds of a step; A B A B.",
            "",
            "| freed memory | median ms | each process |",
            "|---|---|---|",
            *rows,
            "",
            f"Ratio: {ratio:.2f}",
            "",
        ]
    )
    print(text)
    if args.results:
        args.results.write_text(text)


if __name__ == "__main__":
    main()
