"""One convolution of 3 x 3 by Winograd's algorithm beside the direct one, over channels and sizes.

    python benchmarks/winograd.py --threads 2 --results benchmarks/results/NAME.md

What `detmtl.models.winograd.pays` asks for comes from this table.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from abab import Row, Way, in_turn, report, row
from torch import Tensor
from torch.nn import functional as F

from detmtl.engine.memory import keep_freed_memory
from detmtl.models.winograd import conv2d, transformed

SIDES = (8, 13, 16, 20, 26, 32, 52, 64, 80, 128)
CHANNELS = (
    (32, 32),
    (64, 64),
    (96, 96),
    (128, 128),
    (256, 256),
    (512, 512),
    (64, 27),
    (256, 36),
    (256, 819),
)
LARGEST = 2**22
"""Numbers in or out of a picture: beyond it no network here has such a layer."""


def rows_of(into: int, out: int, side: int, pictures: int, rounds: int) -> list[Row]:
    """Times a layer without gradients, its kernels transformed before and in the call, and learning."""
    torch.manual_seed(0)
    x = (
        torch.randn(pictures, into, side, side)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    weight = torch.randn(out, into, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(pictures, out, side, side).to(memory_format=torch.channels_last)
    kernels = transformed(weight)

    def learning(convolve: Callable[[], Tensor]) -> Way:
        return lambda: torch.autograd.grad(convolve(), (x, weight), gradient)

    def alone(convolve: Callable[[], Tensor]) -> Way:
        return torch.no_grad()(convolve)

    direct = lambda: F.conv2d(x, weight, padding=1)  # noqa: E731
    ways = {
        "direct": alone(direct),
        "winograd": alone(lambda: conv2d(x, weight, None, (1, 1), kernels)),
        "winograd, kernels too": alone(lambda: conv2d(x, weight, None, (1, 1))),
        "direct, learning": learning(direct),
        "winograd, learning": learning(lambda: conv2d(x, weight, None, (1, 1))),
    }
    seconds = in_turn(ways, rounds)
    what = f"{into} to {out} channels, {pictures} x {side} x {side}"
    return [
        row(f"{what}: forward", seconds, "direct", "winograd", None),
        row(f"{what}: forward", seconds, "direct", "winograd, kernels too", None),
        row(
            f"{what}: forward and backward", seconds, "direct, learning", "winograd, learning", None
        ),
    ]


def main() -> None:
    """Measures all layers and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows = [
        found
        for into, out in CHANNELS
        for side in SIDES
        if max(into, out) * side * side <= LARGEST
        for found in rows_of(into, out, side, args.pictures, args.rounds)
    ]
    report(
        "Convolutions by Winograd's algorithm beside direct ones",
        "float32, channels_last; ways in turn, medians of the rounds' ratios.",
        rows,
        args.results,
    )


if __name__ == "__main__":
    main()
