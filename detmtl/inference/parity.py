"""Does an exported file do what the model does?

Letters: B pictures, N and M detections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detmtl.structures.boxes import iou
from detmtl.structures.labels import BoxLabels

Detect = Callable[[list[Tensor]], list[BoxLabels]]
Network = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Tolerance:
    """What counts as agreement.

    Attributes:
        outputs: norm of the difference of each raw output, relative to the norm of the output.
        pixels: largest difference of a corner of a matching detection; None: `iou` decides.
        iou: least intersection over union of a matching detection.
        scores: largest difference of its score.
        share: how many of the detections need a match, in both directions.
    """

    outputs: float
    pixels: float | None
    iou: float
    scores: float
    share: float


FLOAT32 = Tolerance(outputs=1e-4, pixels=1e-2, iou=0.0, scores=1e-4, share=1.0)
"""The same numbers up to the order of summation."""

BFLOAT16 = Tolerance(outputs=0.05, pixels=None, iou=0.8, scores=0.05, share=0.9)
"""bfloat16 has 8 bits of precision: detections near the score threshold come and go."""


@dataclass(frozen=True)
class Difference:
    """How far file and model are apart, the worst over all pictures.

    Attributes:
        pictures: how many were compared.
        detections: how many the model found in them.
        outputs: see `Tolerance`.
        pixels, scores: of matching detections.
        matching: share of the detections that have a match.
        problems: where the tolerance was broken, a sentence each; empty when they agree.
    """

    pictures: int
    detections: int
    outputs: float
    pixels: float
    scores: float
    matching: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.matching:.2%} of {self.detections} detections in {self.pictures} pictures match, "
            f"within {self.pixels:.2g} px and {self.scores:.2g} of score; raw outputs within "
            f"{self.outputs:.2g} of their norm"
        )


def test_pictures(short: int, long: int) -> list[list[Tensor]]:
    """Returns batches of pictures (3, H, W) uint8 that are apt to show a difference.

    Five single pictures of different sizes and shapes, odd ones, smaller and larger than the
    network's; a black one; a batch of three sizes. Always the same ones.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(height: int, width: int) -> Tensor:
        return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)

    def blobs(height: int, width: int) -> Tensor:
        coarse = torch.rand(1, 3, 6, 8, generator=generator) * 255
        return F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 255).byte()

    odd = (short * 3 // 4) | 1, (long - 38) | 1
    return [
        [blobs(short, long)],
        [noise(long, short)],
        [blobs(*odd)],
        [noise(max(17, short // 5), long * 2 + 1)],
        [blobs(31, 47)],
        [torch.zeros(3, short, short, dtype=torch.uint8)],
        [noise(*odd), torch.zeros(3, long, short, dtype=torch.uint8), blobs(short // 2, short)],
    ]


def compare_outputs(
    expected: Network, found: Network, batches: Sequence[Tensor], tolerance: Tolerance
) -> tuple[float, list[str]]:
    """Compares the raw outputs of two networks.

    Args:
        expected, found: (B, 3, H, W) uint8 -> raw outputs.
        batches: pictures padded for the network.
        tolerance: what counts as agreement.

    Returns:
        the largest relative difference, and a sentence for each batch over the tolerance.
    """
    largest, problems = 0.0, []
    for batch in batches:
        differences = [
            _relative(a.float(), b.float())
            for a, b in zip(expected(batch), found(batch), strict=True)
        ]
        worst = max(differences)
        largest = max(largest, worst)
        if not worst <= tolerance.outputs:
            problems.append(
                f"network's picture of {_size(batch)}, batch of {len(batch)}: raw output "
                f"{differences.index(worst)} is off by {worst:.2g} of its norm, "
                f"{tolerance.outputs:g} is allowed"
            )
    return largest, problems


def compare_detections(
    expected: Detect, found: Detect, batches: Sequence[list[Tensor]], tolerance: Tolerance
) -> Difference:
    """Compares what two detectors find in pictures; `outputs` of the result is 0."""
    count = matching = 0
    pixels = scores = 0.0
    problems: list[str] = []
    for images in batches:
        pairs = zip(images, expected(images), found(images), strict=True)
        for i, (image, a, b) in enumerate(pairs):
            where = f"picture {i + 1} of {len(images)}, {_size(image)}"
            matched, box_gap, score_gap = _match(a, b, tolerance)
            backwards, _, _ = _match(b, a, tolerance)
            hits = min(int(matched.sum()), int(backwards.sum()) + max(0, len(a) - len(b)))
            count, matching = count + len(a), matching + hits
            pixels = max(pixels, float(box_gap[matched].max()) if hits else 0.0)
            scores = max(scores, float(score_gap[matched].max()) if hits else 0.0)
            if tolerance.share == 1 and not (matched.all() and backwards.all()):
                problems.append(
                    f"{where}: {int((~matched).sum())} of {len(a)} detections of the model have no "
                    f"match, and {int((~backwards).sum())} of {len(b)} of the file"
                )
    share = matching / count if count else 1.0
    if share < tolerance.share and not problems:
        problems.append(f"{share:.1%} of {count} detections match, {tolerance.share:.0%} must")
    num_pictures = sum(map(len, batches))
    return Difference(num_pictures, count, 0.0, pixels, scores, share, tuple(problems))
