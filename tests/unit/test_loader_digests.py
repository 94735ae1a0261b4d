"""Batches stay what they were, bit for bit: digests of every kind of augmentation.

The digests were computed before pictures of a batch were augmented together; whatever makes the loader
faster must leave them. They hold for the versions in the file: others may draw or round differently. With
any versions a batch is what its pictures are, each made alone.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detmtl.data.augment import Augment
from detmtl.data.details import FlatDetails
from detmtl.data.flat import Annotations, FileNames
from detmtl.data.loader import batches, sample_seed
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.source import Source
from detmtl.structures.depth import DepthLabels
from detmtl.structures.labels import MapLabels
from detmtl.structures.sample import Batch, Sample

KEPT = json.loads(Path(__file__).with_name("loader_digests.json").read_text())
SIZES = [(48, 64), (40, 64), (96, 128), (64, 48), (97, 131), (30, 200), (64, 85)]
FLIP = {"HorizontalFlip": {"p": 0.5}}
STEPS = {
    "none": [],
    "flip": [FLIP],
    "geometry": [
        FLIP,
        {"VerticalFlip": {"p": 0.3}},
        {"Affine": {"scale": [0.5, 1.5], "translate_percent": [-0.3, 0.3], "p": 0.7}},
        {"RandomCrop": {"height": 8, "width": 8, "p": 0.3}},
    ],
    "pixels": [{"RandomBrightnessContrast": {"p": 0.5}}, {"GaussNoise": {"p": 0.5}}, FLIP],
    "nested": [
        {"SomeOf": {"n": 2, "transforms": [FLIP, {"Rotate": {}}, {"RandomGamma": {}}]}},
        {"OneOf": {"p": 0.5, "transforms": [{"Transpose": {}}, {"D4": {}}]}},
        {"Sequential": {"p": 0.5, "transforms": [{"D4": {}}, FLIP]}},
    ],
    "grow": [FLIP, {"Resize": {"height": 99, "width": 80, "p": 0.5}}],
    "boxes": [{"BBoxSafeRandomCrop": {"p": 0.7}}, {"CoarseDropout": {"p": 0.5}}],
}


def versions() -> dict[str, str]:
    names = ("albumentations", "opencv-python-headless", "numpy", "torch")
    return {name: version(name) for name in names}


class Maps:
    """Of every picture but each third."""

    def labels(self, i, height, width):
        rng = np.random.default_rng([i, height])
        classes = rng.choice(np.array([0, 1, 254, 255], np.uint8), (height, width))
        weights = torch.from_numpy(rng.random((height, width), dtype=np.float32))
        return None if i % 3 == 2 else MapLabels(torch.from_numpy(classes), weights, torch.ones(2))


class Depths:
    """Of every picture but each fourth."""

    def labels(self, i, height, width):
        depth = np.random.default_rng([i, width]).random((height, width), dtype=np.float32)
        return None if i % 4 == 3 else DepthLabels(torch.from_numpy(depth))


def details(rng, boxes) -> FlatDetails:
    n, low, size = len(boxes), boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    seen = rng.integers(0, 3, (n, 3, 1))
    keypoints = np.concatenate([low + rng.random((n, 3, 2)) * size, seen], 2) * (seen > 0)
    return FlatDetails(
        attributes=rng.integers(-1, 2, (n, 1)).astype(np.int16),
        keypoints=keypoints.astype(np.float32),
        points=(low + rng.random((n, 4, 2)) * size).reshape(-1, 2).astype(np.float32),
        rings=np.arange(0, 4 * n + 1, 4),
        shapes=np.arange(n + 1),
        attribute_names=("a/x", "a/y"),
        keypoint_names=("m/nose", "m/left_hand", "m/right_hand"),
    )


def make_source(folder: Path, rich: bool) -> Source:
    """Writes pictures that every decoder reads alike, with 0 to 4 boxes each, some over the edge."""
    rng = np.random.default_rng(int(rich))
    count = 2 * len(SIZES)
    sizes = np.array(SIZES * 2, np.int32)
    for i, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{rich}{i}.png"), pixels)
    image = np.repeat(np.arange(count), np.arange(count) % 5)
    around = sizes[image][:, ::-1]
    corners = rng.uniform(-0.02, 0.7, (len(image), 2)) * around
    boxes = np.concatenate(
        [corners, corners + rng.uniform(0.01, 0.4, corners.shape) * around], 1
    ).astype(np.float32)
    return Source(
        name="rich" if rich else "plain",
        classes=("a", "b"),
        files=FileNames.of(folder, [f"{rich}{i}.png" for i in range(count)]),
        ids=np.arange(count),
        sizes=sizes,
        annotations=Annotations.of(
            count,
            image,
            boxes,
            rng.integers(0, 2, len(image)),
            scores=rng.random(len(image)),
            ignore=rng.choice([0, 0, 0, 1, 2], len(image)),
            details=details(rng, boxes) if rich else None,
        ),
        coverage=rng.random((count, 2)).astype(np.float32),
        maps=Maps() if rich else None,
        depth=Depths() if rich else None,
    )


YOUNGER = ("some", "some_other", "learned", "seeds", "attribute_names", "keypoint_names")
"""Fields that are younger than the digests; they follow from the others, from the settings or from step and
slot."""


def feed(digest, value) -> None:
    """Puts values, types and shapes into a digest, of paths the names alone."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif is_dataclass(value):
        for field in fields(value):
            if field.name in YOUNGER:
                continue
            digest.update(field.name.encode())
            if field.name != "path":
                feed(digest, getattr(value, field.name))
    elif isinstance(value, dict):
        feed(digest, [part for pair in sorted(value.items()) for part in pair])
    elif isinstance(value, list | tuple):
        for part in value:
            feed(digest, part)
    else:
        digest.update(repr(value).encode())


def digest_of(*found: Batch) -> str:
    digest = hashlib.sha256()
    for batch in found:
        feed(digest, batch)
    return digest.hexdigest()[:16]


def every_kind(test):
    test = pytest.mark.parametrize("steps", STEPS)(test)
    test = pytest.mark.parametrize("rich", [False, True], ids=["boxes", "everything"])(test)
    # of CoarseDropout
    return pytest.mark.filterwarnings("ignore:invalid value encountered in divide")(test)


@every_kind
def test_batches_are_their_pictures_made_one_by_one(tmp_path, steps, rich):
    source = make_source(tmp_path, rich)
    mixture = Mixture([source], MixSettings(mode="gold"), 5, seed=1)
    augment = Augment(STEPS[steps], 48, 64)
    for number, batch in enumerate(batches(mixture, augment, 0, 3, seed=2)):
        samples = []
        for slot, pick in enumerate(mixture.picks(number)):
            i, seed = pick.index, sample_seed(2, number, slot)
            size = tuple(source.sizes[i].tolist())
            image, labels = augment(source.read(i), source.labels(i), seed, size)
            labels = source.derived(i, labels)
            samples.append(Sample(image, labels, source.info(i), 0, 1.0, source.grade, seed))
        assert digest_of(batch) == digest_of(Batch.of(samples))


@pytest.mark.skipif(
    KEPT["versions"] != versions(),
    reason=f"the digests are those of {KEPT['versions']}: make them anew, from a commit whose batches are "
    "known to be right",
)
@every_kind
def test_batches_are_what_they_were(tmp_path, steps, rich):
    mixture = Mixture([make_source(tmp_path, rich)], MixSettings(mode="gold"), 5, seed=1)
    found = [
        batch
        for size in ((48, 64), (64, 96))
        for batch in batches(mixture, Augment(STEPS[steps], *size), 0, 4, seed=2)
    ]
    assert digest_of(*found) == KEPT["digests"][f"{rich}/{steps}"]
