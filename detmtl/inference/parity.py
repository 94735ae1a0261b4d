"""Does an exported file do what the model does?

Letters: B pictures, N and M detections.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detmtl.structures.boxes import iou
from detmtl.structures.depth import DepthLabels
from detmtl.structures.labels import BoxLabels, Labels, MapLabels, TagLabels

Detect = Callable[[list[Tensor]], Sequence[BoxLabels]]
Predict = Callable[[list[Tensor]], Sequence[Mapping[str, Labels]]]
Network = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Tolerance:
    """What counts as agreement.

    Attributes:
        outputs: norm of the difference of each raw output, relative to the output's norm.
        pixels: largest difference of a corner of a matching detection; None: `iou` decides.
        iou: least intersection over union of a matching detection.
        scores: largest difference of its score.
        share: how many of the detections need a match, in both directions.
        per_picture: whether `share` holds for each picture, or for all together.
        pixels_of_maps: share of a map's pixels that must have the same class.
        tags: largest difference of a probability, of a tag, of an attribute, or in a mask or map on average.
        keypoints: largest difference of a keypoint, in pixels.
    """

    outputs: float
    pixels: float | None
    iou: float
    scores: float
    share: float
    per_picture: bool
    pixels_of_maps: float = 0.999
    tags: float = 1e-4
    keypoints: float = 0.05


FLOAT32 = Tolerance(1e-4, pixels=1e-2, iou=0.0, scores=1e-4, share=0.95, per_picture=True)
"""The same numbers up to the order of summation. Of up to 19 detections all must match; of 100 a few
may not, since a tie in score (as everywhere in a black picture) may fall either way."""

BFLOAT16 = Tolerance(
    0.1,
    pixels=None,
    iou=0.8,
    scores=0.05,
    share=0.9,
    per_picture=False,
    pixels_of_maps=0.9,
    tags=0.05,
    keypoints=8.0,
)
"""bfloat16 has 8 bits of precision: detections near the score threshold come and go."""


@dataclass(frozen=True)
class Difference:
    """How far file and model are apart, the worst over all pictures.

    Attributes:
        pictures: how many were compared.
        detections: how many the model found in them.
        outputs: see `Tolerance`; None: raw outputs were not compared.
        pixels, scores: of matching detections.
        matching: share of the detections that have a match.
        problems: where the tolerance was broken, a sentence each; empty when they agree.
    """

    pictures: int
    detections: int
    outputs: float | None
    pixels: float
    scores: float
    matching: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        told = [
            f"{self.matching:.2%} of {self.detections} detections in {self.pictures} pictures match, "
            f"within {self.pixels:.2g} px and {self.scores:.2g} of score"
            if self.detections
            else f"{self.pictures} pictures compared"
        ]
        if self.outputs is not None:
            told.append(f"raw outputs within {self.outputs:.2g} of their norm")
        return "; ".join(told)


@contextmanager
def keeping_every_score(decoders: Sequence[Any]) -> Iterator[None]:
    """Lets decoders, eager or compiled, keep boxes of any score for a while."""
    before = [(decoder.score_threshold, decoder.least_logit) for decoder in decoders]
    assert len(set(before)) == 1, before
    try:
        for decoder in decoders:
            decoder.score_threshold, decoder.least_logit = 0.0, -math.inf
        yield
    finally:
        for decoder, (threshold, logit) in zip(decoders, before, strict=True):
            decoder.score_threshold, decoder.least_logit = threshold, logit


def trial_pictures(short: int, long: int) -> list[list[Tensor]]:
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
        differences = _relative(expected(batch), found(batch))
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
    """Compares what two detectors find in pictures; `outputs` of the result is None."""
    total = matching = detections = 0
    pixels = scores = 0.0
    problems: list[str] = []
    for images in batches:
        pairs = zip(images, expected(images), found(images), strict=True)
        for i, (image, a, b) in enumerate(pairs):
            there, _, box_gaps, score_gaps = _matches(a, b, tolerance)
            back, _, _, _ = _matches(b, a, tolerance)
            detections += len(a)
            total += len(a) + len(b)
            matching += int(there.sum()) + int(back.sum())
            pixels = max([pixels, *box_gaps[there].tolist()])
            scores = max([scores, *score_gaps[there].tolist()])
            agreeing = int(there.sum()) + int(back.sum())
            if tolerance.per_picture and agreeing < tolerance.share * (len(a) + len(b)):
                problems.append(
                    f"picture {i + 1} of a batch of {len(images)}, {_size(image)}: no match for "
                    f"{int((~there).sum())} of the model's {len(a)} detections and for "
                    f"{int((~back).sum())} of the file's {len(b)}"
                )
    share = matching / total if total else 1.0
    if share < tolerance.share and not problems:
        problems.append(f"{share:.1%} of the detections match, {tolerance.share:.0%} must")
    num_pictures = sum(map(len, batches))
    return Difference(num_pictures, detections, None, pixels, scores, share, tuple(problems))


def boxes_of(predict: Predict, task: str) -> Detect:
    """Returns what gives the boxes alone of what `predict` gives, those of a detection task."""

    def detect(images: list[Tensor]) -> list[BoxLabels]:
        found = [labels[task] for labels in predict(images)]
        return [labels for labels in found if isinstance(labels, BoxLabels)]

    return detect


def compare_maps_and_tags(
    expected: Predict, found: Predict, batches: Sequence[list[Tensor]], tolerance: Tolerance
) -> list[str]:
    """Returns a sentence for each map and each picture's tags that are over the tolerance."""
    problems = []
    for images in batches:
        pairs = zip(images, expected(images), found(images), strict=True)
        for i, (image, a, b) in enumerate(pairs):
            where = f"picture {i + 1} of a batch of {len(images)}, {_size(image)}"
            for name, labels in a.items():
                other = b.get(name)
                if isinstance(labels, MapLabels) and isinstance(other, MapLabels):
                    same = (
                        float((labels.classes == other.classes).float().mean())
                        if labels.classes.shape == other.classes.shape
                        else 0.0
                    )
                    if same < tolerance.pixels_of_maps:
                        problems.append(
                            f"{where}: {name}: {same:.2%} of the pixels have the same class"
                        )
                    elif labels.weights is not None and other.weights is not None:
                        gap = float((labels.weights - other.weights).abs().mean())
                        if not gap <= tolerance.tags:
                            problems.append(f"{where}: {name}: confidences are off by {gap:.2g}")
                elif isinstance(labels, TagLabels) and isinstance(other, TagLabels):
                    if len(labels.targets) != len(other.targets):
                        many, few = len(other.targets), len(labels.targets)
                        problems.append(f"{where}: {name}: {many} tags instead of {few}")
                        continue
                    gap = float((labels.targets - other.targets).abs().max())
                    if not gap <= tolerance.tags:
                        problems.append(f"{where}: {name}: a probability is off by {gap:.2g}")
                elif isinstance(labels, DepthLabels) and isinstance(other, DepthLabels):
                    off = _relative([labels.depth], [other.depth])[0]
                    if not off <= tolerance.outputs:
                        problems.append(
                            f"{where}: {name}: depths are off by {off:.2g} of themselves"
                        )
                elif type(labels) is not type(other):
                    problems.append(f"{where}: the file gives nothing for {name}")
    return problems


def compare_details(
    expected: Predict, found: Predict, batches: Sequence[list[Tensor]], tolerance: Tolerance
) -> list[str]:
    """Returns a sentence for each task that says other things of the same boxes than it should.

    Compared are the detections that have a match in both, as `compare_detections` has it, each with its
    nearest one. As many as `Tolerance.share` says have to have one, and of these as many have to agree.
    """
    gaps: dict[str, list[Tensor]] = {}
    detections: dict[str, int] = {}
    problems: list[str] = []
    for images in batches:
        for a, b in zip(expected(images), found(images), strict=True):
            for name, labels in a.items():
                other = b.get(name)
                if not isinstance(labels, BoxLabels) or labels.details is None:
                    continue
                if not isinstance(other, BoxLabels) or other.details is None:
                    return [*problems, f"the file says nothing of boxes for {name}"]
                gaps.setdefault(name, []).append(_gaps(labels, other, tolerance))
                detections[name] = detections.get(name, 0) + len(labels)
    for name, listed in gaps.items():
        worst, total = torch.cat(listed), detections[name]
        if len(worst) < tolerance.share * total:
            problems.append(f"{name}: {len(worst)} of the model's {total} boxes are in the file")
        elif float((worst <= 1).sum()) < tolerance.share * len(worst):
            share = float((worst <= 1).float().mean())
            problems.append(f"{name}: says the same of {share:.1%} of the boxes")
    return problems


def _gaps(a: BoxLabels, b: BoxLabels, tolerance: Tolerance) -> Tensor:
    """Returns for each box that both have how far apart their details are, in units of the tolerance."""
    same, nearest, _, _ = _matches(a, b, tolerance)
    x, y = a[same].details, b[nearest[same]].details
    assert x is not None and y is not None
    worst = torch.zeros(int(same.sum()))
    if not len(worst):
        return worst
    if x.attribute_scores is not None and y.attribute_scores is not None:
        gap = (x.attribute_scores - y.attribute_scores).abs().amax(dim=1)
        worst = worst.maximum(gap / tolerance.tags)
    if x.masks is not None and y.masks is not None:
        worst = worst.maximum((x.masks - y.masks).abs().mean(dim=[1, 2]) / tolerance.tags)
    if x.keypoints is not None and y.keypoints is not None:
        far = (x.keypoints - y.keypoints)[..., :2].norm(dim=-1)
        worst = worst.maximum(far.quantile(0.9, dim=1) / tolerance.keypoints)
    return worst


def _matches(
    a: BoxLabels, b: BoxLabels, tolerance: Tolerance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns for each of N detections whether one of M others is the same, within tolerance, which is
    the nearest such one, and the gaps to it, in pixels and in score: (N,) bool, (N,) int64, (N,), (N,)."""
    if len(a) == 0 or len(b) == 0:
        zeros = torch.zeros(len(a))
        return zeros.bool(), zeros.long(), zeros, zeros
    box_gap = (a.boxes[:, None] - b.boxes[None]).abs().amax(-1)
    score_gap = (a.scores[:, None] - b.scores[None]).abs()
    same_place = (
        iou(a.boxes, b.boxes) >= tolerance.iou
        if tolerance.pixels is None
        else box_gap <= tolerance.pixels
    )
    same = (a.classes[:, None] == b.classes[None]) & (score_gap <= tolerance.scores) & same_place
    nearest = (box_gap + score_gap).masked_fill(~same, torch.inf).argmin(1)
    at = nearest[:, None]
    return same.any(1), nearest, box_gap.gather(1, at)[:, 0], score_gap.gather(1, at)[:, 0]


def _relative(expected: list[Tensor], found: list[Tensor]) -> list[float]:
    """Returns for each output its difference in units of its own norm, or of the norm that outputs of
    its size have on average, whichever is larger: outputs near 0 have no digits to agree in."""
    if [x.shape for x in expected] != [x.shape for x in found]:
        return [torch.inf]
    count = sum(x.numel() for x in expected)
    average = (sum(float(x.float().square().sum()) for x in expected) / count) ** 0.5
    return [
        float((x.float() - y.float()).norm())
        / max(float(x.float().norm()), average * x.numel() ** 0.5, 1e-12)
        for x, y in zip(expected, found, strict=True)
    ]


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]} (height x width)"
