"""Augmentation: labels stay right, nothing crashes, everything follows from the seed."""

import os
import pickle
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from detmtl.data import augment as module
from detmtl.data.augment import Augment, AugmentSettings
from detmtl.data.fit import InputSettings
from detmtl.data.folder import FolderSource
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.structures.classes import LabelSpace
from detmtl.structures.details import Details
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore

HEIGHT, WIDTH = 48, 64
FLIP = {"HorizontalFlip": {"p": 1.0}}
USUAL = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"scale": [0.5, 1.5], "translate_percent": [-0.3, 0.3], "p": 0.7}},
    {"OneOf": {"p": 0.5, "transforms": [{"Blur": {}}, {"ColorJitter": {"p": 0.9}}]}},
    {"RandomCrop": {"height": 30, "width": 40, "p": 0.5}},
]


def picture(height=HEIGHT, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(boxes, **more):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": BoxLabels.of(boxes, torch.arange(len(boxes)) % 3, 3, **more)}


def run(steps, boxes, seed=0, image=None, size=(HEIGHT, WIDTH), **more):
    augment = Augment(steps, size[0], size[1], **more)
    image, out = augment(picture() if image is None else image, labels(boxes), seed)
    return image, out["boxes"]


@st.composite
def legal_boxes(draw, height=HEIGHT, width=WIDTH):
    """Boxes inside the picture: whole or broken pixels, at its edges, of one pixel, the whole of it."""
    count = draw(st.integers(0, 6))
    out = []
    for _ in range(count):
        w = draw(st.one_of(st.just(1.0), st.just(float(width)), st.floats(1, width)))
        h = draw(st.one_of(st.just(1.0), st.just(float(height)), st.floats(1, height)))
        x = draw(st.one_of(st.just(0.0), st.just(width - w), st.floats(0, width - w)))
        y = draw(st.one_of(st.just(0.0), st.just(height - h), st.floats(0, height - h)))
        out.append([x, y, min(x + w, width), min(y + h, height)])
    return out


USUAL_AUGMENT = Augment(USUAL, HEIGHT, WIDTH)


@settings(max_examples=60, deadline=None)
@given(legal_boxes(), st.integers(0, 2**64 - 1))
def test_no_legal_boxes_crash_the_usual_steps_and_all_that_is_left_is_legal(boxes, seed):
    before = picture()
    image, out = USUAL_AUGMENT(before, labels(boxes), seed)
    found = out["boxes"]
    height, width = image.shape[1:]
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    assert height <= HEIGHT and width <= WIDTH
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 0::2] <= width).all() and (found.boxes[:, 1::2] <= height).all()
    assert ((found.boxes[:, 2:] - found.boxes[:, :2]) >= 0.999).all()
    assert {len(x) for x in (found.classes, found.scores, found.weights, found.ignore)} == {
        len(found)
    }
    np.testing.assert_array_equal(before, picture())


@settings(max_examples=30, deadline=None)
@given(legal_boxes())
def test_flips_are_those_of_arithmetic(boxes):
    given_boxes = torch.tensor(boxes).reshape(-1, 4)
    image, found = run([FLIP, {"VerticalFlip": {"p": 1.0}}], boxes, min_side=0.0)
    x1, y1, x2, y2 = given_boxes.unbind(1)
    expected = torch.stack([WIDTH - x2, HEIGHT - y2, WIDTH - x1, HEIGHT - y1], 1)
    torch.testing.assert_close(found.boxes, expected, atol=1e-3, rtol=0)
    assert found.classes.tolist() == (torch.arange(len(boxes)) % 3).tolist()
    assert torch.equal(image, torch.from_numpy(picture()[::-1, ::-1].copy()).permute(2, 0, 1))


def test_boxes_follow_the_pixels_through_a_shift():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[10:20, 5:25] = 255
    steps = [{"Affine": {"translate_px": {"x": 7, "y": -4}, "p": 1.0}}]
    out, found = run(steps, [[5, 10, 25, 20]], image=image)
    ys, xs = torch.where(out[0] > 128)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(found.boxes[0], box, atol=0.51)
    np.testing.assert_allclose(found.boxes[0], [12, 6, 32, 16], atol=1e-3)


def test_five_thousand_boxes_survive_in_order_and_quickly():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (5000, 2)) * [WIDTH - 2, HEIGHT - 2]
    boxes = np.concatenate([corners, corners + rng.uniform(1, 2, (5000, 2))], 1)
    start = time.process_time()
    _, found = run([FLIP, {"Affine": {"scale": [0.9, 0.9], "p": 1.0}}], boxes, min_side=0.0)
    assert time.process_time() - start < 5
    assert len(found) == 5000
    np.testing.assert_array_equal(found.classes, np.arange(5000) % 3)
    for seed in range(5):
        USUAL_AUGMENT(picture(), labels(boxes), seed)


def test_a_picture_is_fitted_first_and_its_boxes_with_it():
    image, found = run([], [[0, 0, 640, 480], [320, 240, 640, 480]], image=picture(480, 640))
    assert image.shape == (3, HEIGHT, WIDTH)
    assert found.boxes.tolist() == [[0, 0, 64, 48], [32, 24, 64, 48]]


def test_steps_run_on_the_small_picture():
    seen = []

    class Spy(module.albumentations.NoOp):
        def apply(self, img, **params):
            seen.append(img.shape)
            return img

    augment = Augment([{"NoOp": {"p": 1.0}}], HEIGHT, WIDTH)
    augment._compose.transforms[0] = Spy(p=1.0)
    augment(picture(480, 640), labels([]), 0)
    assert seen == [(HEIGHT, WIDTH, 3)]


def test_a_picture_that_grew_is_fitted_again():
    steps = [{"Resize": {"height": 300, "width": 300, "p": 1.0}}]
    image, found = run(steps, [[0, 0, 32, 48]])
    assert image.shape == (3, 48, 48)
    assert found.boxes.tolist() == [[0, 0, 24, 48]]


@pytest.mark.parametrize(
    ("grown", "fitted"), [((60, 60), (48, 48)), ((48, 96), (32, 64)), ((48, 64), (48, 64))]
)
def test_one_side_that_grew_is_enough_to_be_fitted_again(grown, fitted):
    image, _ = run([{"Resize": {"height": grown[0], "width": grown[1], "p": 1.0}}], [])
    assert image.shape == (3, *fitted)


def test_a_smaller_or_turned_picture_is_left_so():
    image, _ = run([{"CenterCrop": {"height": 20, "width": 30, "p": 1.0}}], [])
    assert image.shape == (3, 20, 30)
    image, _ = run([{"Transpose": {"p": 1.0}}], [])
    assert image.shape == (3, WIDTH, HEIGHT)


def test_the_sizes_that_steps_give_a_picture_are_told():
    crop = {"CenterCrop": {"height": 20, "width": 30, "p": 1.0}}
    assert Augment([crop], HEIGHT, WIDTH).tried(HEIGHT, WIDTH) == {(20, 30)}
    turn = {"Transpose": {"p": 0.5}}
    assert Augment([turn], WIDTH, WIDTH).tried(64, 40) == {(64, 40), (40, 64)}


CROP = [{"Crop": {"x_min": 20, "y_min": 0, "x_max": 64, "y_max": 48, "p": 1.0}}]


def test_a_fragment_becomes_a_region_and_is_not_lost():
    boxes = [[0, 0, 21, 40], [0, 0, 40, 40], [0, 0, 10, 10], [30, 10, 50, 30]]
    _, found = run(CROP, boxes)
    expected = [[0, 0, 1, 40], [0, 0, 20, 40], [10, 10, 30, 30]]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-4)
    assert found.ignore.tolist() == [Ignore.REGION, Ignore.NO, Ignore.NO]
    assert found.classes.tolist() == [0, 1, 0]


def test_visibility_is_lost_over_all_steps_together():
    # each crop leaves a quarter: no step alone goes below a tenth
    steps = [
        {"Crop": {"x_min": 30, "y_min": 0, "x_max": 64, "y_max": 48, "p": 1.0}},
        {"Crop": {"x_min": 0, "y_min": 30, "x_max": 34, "y_max": 48, "p": 1.0}},
    ]
    _, found = run(steps, [[0, 0, 40, 40]])
    np.testing.assert_allclose(found.boxes, [[0, 0, 10, 10]], atol=1e-4)
    assert found.ignore.tolist() == [Ignore.REGION]
    _, found = run(steps[:1], [[0, 0, 40, 40]])
    assert found.ignore.tolist() == [Ignore.NO]


def test_what_a_crop_cut_away_does_not_come_back_on_the_filling():
    steps = [
        {"Crop": {"x_min": 20, "y_min": 0, "x_max": 64, "y_max": 48, "p": 1.0}},
        {"PadIfNeeded": {"min_height": 48, "min_width": 64, "position": "bottom_right", "p": 1.0}},
    ]
    _, found = run(steps, [[0, 0, 19, 40], [10, 0, 40, 40]])
    assert found.boxes.tolist() == [[20, 0, 40, 40]]


@pytest.mark.parametrize(("least", "left"), [(0.15, 1), (0.25, 0)])
def test_a_box_that_a_dropout_covers_goes_if_too_little_is_to_be_seen(least, left):
    hole = {
        "num_holes_range": [1, 1],
        "hole_height_range": [0.9, 0.9],
        "hole_width_range": [0.9, 0.9],
    }
    step = {"CoarseDropout": {**hole, "p": 1.0}}
    # a box as large as the picture, of which about a fifth is to be seen wherever the hole is
    _, found = run([step], [[0, 0, WIDTH, HEIGHT]], min_visibility=least)
    assert len(found) == left


def test_scaling_takes_no_visibility_away():
    _, found = run([{"Affine": {"scale": [0.2, 0.2], "p": 1.0}}], [[0, 0, 40, 40]])
    assert found.ignore.tolist() == [Ignore.NO]
    assert found.boxes[0, 2] - found.boxes[0, 0] == pytest.approx(8, abs=0.1)


def test_boxes_narrower_than_the_smallest_side_go():
    _, found = run([], [[0, 0, 4, 100], [0, 0, 10, 100]], image=picture(480, 640))
    assert found.boxes.tolist() == [[0, 0, 1, 10]]
    _, found = run([FLIP], [[0, 0, 4, 100], [0, 0, 10, 100]], image=picture(480, 640), min_side=0.0)
    assert len(found) == 2


def test_everything_else_about_a_label_stays_with_it():
    known = labels(
        [[0, 0, 10, 10], [30, 10, 50, 30], [10, 10, 60, 40]],
        scores=torch.tensor([0.1, 0.2, 0.3]),
        weights=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        ignore=torch.tensor([0, 1, 2]),
        grade=Grade.SILVER,
        coverage=torch.tensor([1.0, 0.0, 0.5]),
    )
    _, out = Augment(CROP, HEIGHT, WIDTH)(picture(), known, 0)
    assert torch.equal(out["boxes"].scores, torch.tensor([0.2, 0.3]))
    assert out["boxes"].weights.tolist() == [[3, 4], [5, 6]]
    assert out["boxes"].ignore.tolist() == [1, 2]
    assert out["boxes"].grade.tolist() == [1, 1]
    assert out["boxes"].coverage.tolist() == [1, 0, 0.5]


MIRRORING = [
    {"Affine": {"translate_percent": {"x": (0.3, 0.3), "y": (0, 0)}, "border_mode": 4, "p": 1}},
    {"Affine": {"scale": 0.6, "border_mode": 4, "p": 1}},
    {"Rotate": {"limit": (5, 5), "border_mode": 2, "p": 1}},
    {"Pad": {"padding": 20, "border_mode": 4, "p": 1}},
    {
        "CenterCrop": {"height": 80, "width": 90, "pad_if_needed": True, "border_mode": 4, "p": 1},
    },
    {
        "Crop": {
            "x_max": 90,
            "y_max": 80,
            "pad_if_needed": True,
            "border_mode": 4,
            "p": 1,
        }
    },
    {"PadIfNeeded": {"min_height": 80, "min_width": 90, "border_mode": 4, "p": 1}},
    {
        "RandomCrop": {
            "height": 80,
            "width": 90,
            "pad_if_needed": True,
            "border_mode": 4,
            "p": 1,
        }
    },
]


@pytest.mark.parametrize("step", MIRRORING, ids=lambda step: next(iter(step)))
def test_boxes_that_a_step_mirrors_into_the_margin_keep_their_classes(step):
    boxes = [[2, 4, 12, 14], [26, 18, 38, 30], [48, 30, 62, 44]]
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for color, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, color] = 255
    out, found = run([step], boxes, image=image)
    assert len(found)
    for (x1, y1, x2, y2), c in zip(found.boxes.round().int().tolist(), found.classes, strict=True):
        color = out[:, y1:y2, x1:x2].float().mean((1, 2))
        assert color.argmax() == c and color[c] > 60


@pytest.mark.parametrize("step", MIRRORING, ids=lambda step: next(iter(step)))
def test_points_are_not_mirrored_into_the_margin(step):
    known = labels([[2, 4, 12, 14], [26, 18, 38, 30]])["boxes"]
    keypoints = torch.tensor([[[5.0, 6.0, 2.0]], [[30.0, 20.0, 2.0]]])
    known = replace(known, details=Details(keypoints=keypoints, keypoint_names=("cat/nose",)))
    nested = [{"OneOf": {"p": 1, "transforms": [step]}}]
    with pytest.raises(InputError, match=f"{next(iter(step))} would mirror .* border_mode: 0"):
        Augment(nested, HEIGHT, WIDTH)(picture(), {"boxes": known}, 0)
    (name,) = step
    arguments = {k: v for k, v in step[name].items() if k != "border_mode"}
    _, out = Augment([{name: arguments}], HEIGHT, WIDTH)(picture(), {"boxes": known}, 0)
    assert len(out["boxes"].details.keypoints) == len(out["boxes"])


def test_a_crop_that_never_pads_mirrors_nothing():
    known = replace(
        labels([[2, 4, 12, 14]])["boxes"],
        details=Details(keypoints=torch.tensor([[[5.0, 6.0, 2.0]]]), keypoint_names=("cat/nose",)),
    )
    crop = {"height": 40, "width": 60, "border_mode": 4, "p": 1}
    _, out = Augment([{"CenterCrop": crop}], HEIGHT, WIDTH)(picture(), {"boxes": known}, 0)
    assert out["boxes"].details.keypoints.tolist() == [[[3, 2, 2]]]


def test_tasks_keep_their_own_boxes_and_a_picture_without_labels_has_none():
    known = {
        "boxes": labels([[0, 0, 10, 10]])["boxes"],
        "faces": labels([[20, 0, 40, 10]])["boxes"],
    }
    _, out = Augment([FLIP], HEIGHT, WIDTH)(picture(), known, 0)
    assert out["boxes"].boxes.tolist() == [[54, 0, 64, 10]]
    assert out["faces"].boxes.tolist() == [[24, 0, 44, 10]]
    assert Augment([FLIP], HEIGHT, WIDTH)(picture(), {}, 0)[1] == {}


def test_no_box_left_and_none_given_are_empty_labels_and_not_absent_ones():
    for boxes in ([], [[0, 0, 10, 10]]):
        _, found = run(CROP, boxes)
        assert found.boxes.shape == (0, 4) and len(found.coverage) == 3
    # an empty picture first must not disturb the next (a label encoder would remember it)
    augment = Augment(CROP, HEIGHT, WIDTH)
    augment(picture(), labels([]), 0)
    _, out = augment(picture(), labels([[30, 10, 50, 30]]), 0)
    assert out["boxes"].boxes.tolist() == [[10, 10, 30, 30]]


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1]["boxes"].boxes, b[1]["boxes"].boxes)


def test_the_seed_alone_decides():
    known = labels([[5, 5, 40, 40], [0, 0, 64, 48]])
    fresh = [Augment(USUAL, HEIGHT, WIDTH)(picture(), known, seed) for seed in range(12)]
    used = Augment(USUAL, HEIGHT, WIDTH)
    for seed in reversed(range(12)):
        np.random.seed(seed)  # noqa: NPY002 (the global state must not matter)
        random.seed(seed)
        torch.manual_seed(seed)
        assert same(used(picture(), known, seed), fresh[seed])
    assert len({tuple(f[0].float().flatten()[:500].tolist()) for f in fresh}) > 6
    copy = pickle.loads(pickle.dumps(used))
    assert same(copy(picture(), known, 3), fresh[3])


def test_noise_follows_from_the_seed_too():
    augment = Augment([{"GaussNoise": {"std_range": [0.2, 0.2], "p": 1.0}}], HEIGHT, WIDTH)
    first, again, other = (augment(picture(), {}, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_global_random_states_are_left_alone():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    run(USUAL, [[5, 5, 40, 40]])
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_steps_fire_independently_of_one_another():
    # seeding each step alike would make steps of one probability fire all together or not at all
    steps = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    augment = Augment(steps, HEIGHT, WIDTH)
    fired = {(0, 0): 0, (0, 1): 0, (1, 0): 0, (1, 1): 0}
    for seed in range(200):
        x1, y1 = (
            augment(picture(), labels([[0, 0, 10, 10]]), seed)[1]["boxes"].boxes[0, :2].tolist()
        )
        fired[int(x1 > 0), int(y1 > 0)] += 1
    assert all(25 < n < 75 for n in fired.values()), fired


def test_seeding_is_cheap():
    augment = Augment(USUAL, HEIGHT, WIDTH)
    start = time.process_time()
    for seed in range(200):
        augment._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    assert (time.process_time() - start) / 200 < 1e-3


def test_every_problem_of_the_steps_is_named_at_once():
    steps = [
        {"HorizontalFlap": {}},
        {"Blur": {"blur_limt": 3, "p": 3}},
        {"RandomCrop": {"height": 3}},
        {"Mosaic": {}},
        {"Normalize": {}},
        {"OneOf": {"transforms": [{"Blur": {}}, {"MotionBlurr": {}}]}},
        {"SomeOf": {"n": 4, "transforms": [{"Blur": {}}]}},
        {"OneOf": {"p": 0.5}},
        "Blur",
        {"Blur": 3},
        {"CenterCrop3D": {}},
        {"check_version": {}},
        {"OneOf": {"transforms": "Blur"}},
        {"Blur": {}, "GaussNoise": {}},
        {"OneOf": {"transforms": []}},
    ]
    with pytest.raises(InputError) as caught:
        Augment(steps, HEIGHT, WIDTH)
    for i, part in enumerate(
        [
            "augment.steps[0]: HorizontalFlap does not exist in albumentations (nearest: 'HorizontalFlip')",
            "augment.steps[1]: Blur has no argument 'blur_limt' (nearest: 'blur_limit')",
            "augment.steps[1]: Blur: p: Input should be less than or equal to 1 (found 3)",
            "augment.steps[2]: RandomCrop: width: Field required",
            "augment.steps[3]: Mosaic: it needs mosaic_metadata",
            "augment.steps[4]: Normalize cannot be a step: the network normalizes by itself",
            "augment.steps[5].OneOf.transforms[1]: MotionBlurr does not exist",
            "augment.steps[6]: SomeOf: `n` is greater than number of transforms",
            "augment.steps[7].OneOf.transforms: found None",
            "augment.steps[8]: found 'Blur'",
            "augment.steps[9]: Blur: found 3",
            "augment.steps[10]: CenterCrop3D does not work on a picture and its boxes",
            "augment.steps[11]: check_version does not",
            "augment.steps[12].OneOf.transforms: found 'Blur'; a list of steps is needed",
            "augment.steps[13]: found {'Blur': {}, 'GaussNoise': {}}; a step is one name",
            "augment.steps[14]: OneOf has no transforms",
        ]
    ):
        assert part in caught.value.problems[i]


@pytest.mark.parametrize("name", ["Normalize", "ToFloat", "FromFloat", "ToTensorV2", "Lambda"])
def test_what_the_network_or_the_loader_does_is_no_step(name):
    with pytest.raises(InputError, match=rf"{name} cannot be a step: .*; remove it"):
        Augment([{name: {}}], HEIGHT, WIDTH)


def test_a_step_that_fails_on_a_picture_is_named_with_its_size():
    steps = [{"OneOf": {"p": 1.0, "transforms": [{"RandomCrop": {"height": 99, "width": 99}}]}}]
    with pytest.raises(InputError, match=r"RandomCrop failed on a picture of 48 x 64 pixels .*99"):
        run(steps, [])
    with pytest.raises(InputError, match=r"uint8 of shape \(48, 64\)|uint8 of shape \(48, 64, 1\)"):
        run([{"ToGray": {"num_output_channels": 1, "p": 1.0}}], [])


@pytest.mark.parametrize(
    "step",
    [
        {"Perspective": {"p": 1.0}},
        {"Rotate": {"p": 1.0}},
        {"SafeRotate": {"p": 1.0}},
        {"RandomResizedCrop": {"size": [40, 50], "p": 1.0}},
        {"RandomSizedBBoxSafeCrop": {"height": 40, "width": 50, "p": 1.0}},
        {"BBoxSafeRandomCrop": {"p": 1.0}},
        {"AtLeastOneBBoxRandomCrop": {"height": 20, "width": 20, "p": 1.0}},
        {"CoarseDropout": {"p": 1.0}},
        {"ElasticTransform": {"p": 1.0}},
        {"GridDistortion": {"p": 1.0}},
        {"PixelDropout": None},
        {"ImageCompression": {"p": 1.0}},
        {"D4": {"p": 1.0}},
        {"RandomScale": {"p": 1.0}},
        {"Sequential": {"transforms": [{"D4": {}}, {"RandomGamma": {}}]}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_other_steps_keep_the_labels_legal(step):
    boxes = [[0, 0, 64, 48], [63, 47, 64, 48], [10, 10, 30.5, 20.25], [0, 0, 1, 1]]
    augment = Augment([*CROP, step], HEIGHT, WIDTH)
    for seed in range(10):
        for some in (boxes, [], [[0, 0, 19, 48]]):
            image, out = augment(picture(), labels(some), seed)
            found = out["boxes"].boxes
            assert (found >= 0).all()
            assert (found <= torch.tensor([image.shape[2], image.shape[1]] * 2)).all()


def test_the_settings_build_it():
    size = InputSettings(short=48, long=64)
    built = AugmentSettings(min_visibility=0.3, min_side=2.0).build(size)
    assert (built.short, built.long, built.min_visibility, built.min_side) == (48, 64, 0.3, 2.0)
    for wrong in ({"min_visibility": 1.1}, {"min_visibility": -0.1}, {"min_side": -1.0}):
        with pytest.raises(ValidationError):
            AugmentSettings(**wrong)
    with pytest.raises(InputError, match="Flup"):
        AugmentSettings(steps=[{"Flup": {}}]).build(size)


def test_albumentations_is_told_to_stay_off_the_network():
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.parametrize("chance", [1.0, 0.6])
def test_a_picture_that_a_step_cannot_work_on_is_named_beforehand(tmp_path, chance):
    (tmp_path / "images").mkdir()
    for name, size in (
        ("usual", (64, 48)),
        ("wide", (400, 40)),
        ("high", (30, 300)),
        ("tiny", (20, 15)),  # is enlarged
    ):
        Image.new("RGB", size).save(tmp_path / f"images/{name}.png")
    source = FolderSource(images="images").load(
        "mine", tmp_path, LabelSpace((), ()), tmp_path / "cache"
    )
    crop = {"height": 24, "width": 24, "p": chance}
    told = Augment([{"RandomCrop": crop}], 32, 64).misfits(source)
    assert [text.split(": ")[0][-8:] for text in told] == ["wide.png", "high.png"]
    assert "RandomCrop failed on a picture of 6 x 64 pixels" in told[0]
    assert "a crop takes `pad_if_needed: true`" in told[0]
    assert not Augment([{"RandomCrop": crop | {"pad_if_needed": True}}], 32, 64).misfits(source)


def test_a_step_that_needs_a_map_is_tried_with_one_where_pictures_have_or_will_have_one(tmp_path):
    for folder, mode, names in (
        ("images", "RGB", ("full", "part", "bare")),
        ("maps", "L", ("full", "part")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            # at the network's size none is lower than another, and the second one is the narrowest
            size = {"full": (64, 48), "part": (60, 50), "bare": (62, 50)}[name]
            Image.new(mode, size).save(tmp_path / folder / f"{name}.png")

    def told(missing, **given):
        maps = MapFolder(folder="maps", categories={1: "road"}, missing=missing)
        source = FolderSource(images="images", maps=maps).load(
            "mine", tmp_path, LabelSpace((), ()), tmp_path / "cache", MapClasses(classes=["road"])
        )
        step = {"CropNonEmptyMaskIfExists": {"height": 24, "width": 24}}
        return Augment([step], 32, 64).misfits(source, **given)

    assert told("drop") == [] and told("absent", to_be_mapped=True) == []
    (problem,) = told("absent")
    assert "bare.png" in problem and "Can not find mask" in problem
