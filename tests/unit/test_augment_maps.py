"""Maps and tags on their way through the augmentation."""

import numpy as np
import pytest
import torch

from detmtl.data.augment import Augment
from detmtl.structures.labels import OTHER, UNKNOWN, BoxLabels, MapLabels, TagLabels

ROOM = 200
"""Sides of pictures that are not scaled."""


def _picture(height=64, width=96):
    """Returns a picture whose red channel tells the class of each pixel, and the map."""
    classes = np.zeros((height, width), np.uint8)
    classes[:, width // 2 :] = 1
    classes[: height // 4] = OTHER
    classes[-height // 4 :] = UNKNOWN
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.select(
        [classes == 1, classes == OTHER, classes == UNKNOWN], [80, 160, 240], 40
    )
    return image, MapLabels(torch.from_numpy(classes), None, torch.ones(2))


def _agreement(image, labels):
    """Returns the share of pixels on which picture and map tell the same, of the known ones."""
    red = image[0].numpy().astype(int)
    told = np.select(
        [abs(red - 80) < 20, abs(red - 160) < 20, abs(red - 240) < 15], [1, OTHER, UNKNOWN]
    )
    told = np.where(abs(red - 40) < 20, 0, told)
    classes = labels.classes.numpy()
    known = classes != UNKNOWN
    return (told == classes)[known].mean(), known.mean()


STEPS = [
    {"HorizontalFlip": {"p": 1}},
    {"VerticalFlip": {"p": 1}},
    {"Transpose": {"p": 1}},
    {"Affine": {"scale": [0.5, 0.6], "rotate": [20, 30], "p": 1}},
    {"Affine": {"scale": [1.4, 1.5], "translate_percent": [0.1, 0.2], "p": 1}},
    {"RandomCrop": {"height": 40, "width": 40, "p": 1}},
    {"Perspective": {"p": 1}},
    {"PadIfNeeded": {"min_height": 90, "min_width": 150, "p": 1}},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: next(iter(s)))
def test_a_map_moves_with_its_picture(step):
    image, labels = _picture()
    out, found = Augment([step], ROOM, ROOM)(image, {"maps": labels}, seed=3)
    assert (
        found["maps"].classes.shape == out.shape[1:] and found["maps"].classes.dtype == torch.uint8
    )
    same, known = _agreement(out, found["maps"])
    assert same > 0.93 and known > 0.15


def test_what_comes_in_from_outside_is_unknown():
    image, _ = _picture()
    labels = MapLabels(torch.zeros(64, 96, dtype=torch.uint8), torch.ones(64, 96), torch.ones(2))
    steps = [{"Affine": {"scale": [0.5, 0.5], "p": 1}}]
    out, found = Augment(steps, ROOM, ROOM)(image, {"maps": labels}, seed=0)
    inside = out.numpy().sum(0) > 0
    classes, weights = found["maps"].classes.numpy(), found["maps"].weights.numpy()
    assert (classes[~inside] == UNKNOWN).mean() > 0.98 and (classes[inside] == 0).mean() > 0.95
    assert ((classes == UNKNOWN) == (weights == 0)).all()
    assert set(np.unique(classes)) == {0, UNKNOWN}


def test_a_map_is_scaled_with_its_picture():
    image, labels = _picture(64, 96)
    out, found = Augment([], 32, 48)(image, {"maps": labels}, seed=0)
    assert found["maps"].classes.shape == out.shape[1:] == (32, 48)
    assert _agreement(out, found["maps"])[0] > 0.95


def test_a_picture_that_a_step_made_too_large_keeps_its_map():
    image, labels = _picture(64, 96)
    steps = [{"PadIfNeeded": {"min_height": 128, "min_width": 192, "p": 1}}]
    out, found = Augment(steps, 64, 96)(image, {"maps": labels}, seed=0)
    assert out.shape[1:] == found["maps"].classes.shape == (64, 96)
    same, known = _agreement(out, found["maps"])
    assert same > 0.9 and known < 0.5


def test_the_same_seed_gives_the_same_map():
    image, labels = _picture()
    augment = Augment(STEPS[3:5], ROOM, ROOM)
    first, second, other = (
        augment(image, {"maps": labels}, seed)[1]["maps"].classes for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_map_changes_nothing_of_picture_and_boxes():
    image, labels = _picture()
    boxes = BoxLabels.of(torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([0]), 2)
    augment = Augment(STEPS[:1] + STEPS[3:5], ROOM, ROOM)
    alone = augment(image, {"boxes": boxes}, 5)
    tags = TagLabels(torch.tensor([1.0]), torch.tensor([1.0]))
    both = augment(image, {"boxes": boxes, "maps": labels, "tags": tags}, 5)
    assert torch.equal(alone[0], both[0])
    assert torch.equal(alone[1]["boxes"].boxes, both[1]["boxes"].boxes)
    assert both[1]["tags"] is tags
