"""Attributes, masks and keypoints on their way from files to batches."""

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detail_files import HEIGHT, WANTED, WIDTH, annotations, drawn_mask, load, write
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detmtl.data.augment import Augment
from detmtl.data.coco_writer import write_coco_annotations
from detmtl.data.details import DetailClasses, mirror_partners
from detmtl.data.loader import evaluation_batches
from detmtl.data.outlines import (
    decoded,
    encoded,
    filled,
    masks_within,
    packed,
    rings_of,
    traced,
    with_masks,
)
from detmtl.engine.drawing import draw
from detmtl.structures.details import MASK_SIDE, NO_MASK, Details, Outlines
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Ignore, PaddedBoxes, pad_boxes
from detmtl.structures.sample import Batch, ImageInfo, Sample


def _outlines(shapes) -> Outlines:
    return Outlines(*(torch.from_numpy(x) for x in packed(shapes)))


@pytest.fixture
def source(tmp_path):
    return load(write(tmp_path))


def test_the_file_says_everything_and_what_it_does_not_say_is_unknown(source):
    details = source.boxes(0).details
    assert details.attribute_names == ("color/red", "color/blue", "size/big", "size/small")
    assert details.attributes.tolist() == [[1, 0], [0, -1], [-1, -1]]
    assert details.keypoint_names == ("man/nose", "man/left_hand", "man/right_hand")
    assert details.keypoints[0].tolist() == [[28, 11, 2], [12, 12, 2], [11, 38, 1]]
    assert not details.keypoints[1:].any()
    assert details.areas.tolist() == [300, float(drawn_mask().sum()), 25]
    assert details.outlines.drawn().tolist() == [True, True, False]


def test_details_are_written_as_they_are_read(source, tmp_path):
    write_coco_annotations(tmp_path / "again.json", source)
    (tmp_path / "a.json").write_text((tmp_path / "again.json").read_text())
    again = load(tmp_path).annotations.details
    assert again.arrays().keys() == source.annotations.details.arrays().keys()
    for name, array in source.annotations.details.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array, err_msg=name)
    truth = COCO(tmp_path / "again.json")
    shapes = encoded(source.boxes(0).details.outlines, HEIGHT, WIDTH)[:2]
    for row, shape in zip(truth.dataset["annotations"], shapes, strict=False):
        np.testing.assert_array_equal(decoded(truth.annToRLE(row)), decoded(shape))
    assert truth.dataset["annotations"][0]["num_keypoints"] == 3
    assert truth.dataset["annotations"][2]["segmentation"] == []


def test_what_is_not_asked_for_is_not_read(tmp_path):
    assert load(write(tmp_path), None).boxes(0).details is None
    only = load(tmp_path, DetailClasses(attributes={"color": ["red", "blue"]})).boxes(0).details
    assert only.keypoints is None and only.outlines is None and only.areas is None


def test_details_follow_their_boxes_through_subsets_and_processes(source):
    twice = pickle.loads(pickle.dumps(source.subset([0, 0])))
    a, b = source.boxes(0).details, twice.boxes(1).details
    assert torch.equal(a.outlines.points, b.outlines.points)
    assert torch.equal(a.keypoints, b.keypoints) and a.keypoint_names == b.keypoint_names
    last_first = a[torch.tensor([2, 1, 0])]
    assert torch.equal(last_first.keypoints[2], a.keypoints[0])
    assert last_first.outlines.drawn().tolist() == [False, True, True]
    back = last_first[torch.tensor([False, False, True])]
    assert torch.equal(back.outlines.points, a.outlines.points[:3])


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "at least 3 points"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, r"is of \[3, 3\] pixels"),
        ({"segmentation": {"size": None, "counts": [9]}}, "is of None pixels"),
        ({"segmentation": {"size": [60, 80], "counts": [10, 5]}}, "do not fill its size"),
        ({"segmentation": {"size": [60, 80], "counts": [-5, 4805]}}, "do not fill its size"),
        ({"segmentation": {"size": [60, 80], "counts": "zzzz"}}, "do not fill its size"),
        ({"segmentation": {"size": [60, 80], "counts": "0"}}, "do not fill its size"),
        ({"segmentation": 3}, "list of polygons"),
        ({"keypoints": [1, 2, 2]}, "3 times x, y and visibility"),
        ({"keypoints": [1, 2, 5, 0, 0, 0, 0, 0, 0]}, r"visibility \(0, 1 or 2\)"),
        ({"attributes": {"color": 1.5}}, "attributes.color is 1.5"),
        ({"attributes": {"color": "teal"}}, "'teal' is none of its values"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changed, told):
    rows = [annotations()[0] | changed]
    with pytest.raises(InputError, match=told):
        load(write(tmp_path, rows))
    if "teal" not in told:
        with pytest.warns(UserWarning, match="left out"):
            labels = load(tmp_path, faults="drop").boxes(0)
        assert len(labels) == 1  # the box stays, the faulty detail is unknown


def test_an_unknown_value_is_to_be_added_where_values_are_set(tmp_path):
    rows = [annotations()[0] | {"attributes": {"color": "bleu"}}]
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, rows))
    told = str(caught.value)
    assert "attribute 'color': 'bleu' is none of its values (nearest: 'blue')" in told
    assert "add it to data.details.attributes.color, as a value" in told and "unmapped" not in told


def test_keypoints_that_the_file_does_not_have_are_refused(tmp_path):
    wanted = DetailClasses(keypoints={"man": ["nose", "tail"]})
    with pytest.raises(InputError, match="'man' has no keypoint 'tail'"):
        load(write(tmp_path), wanted)
    with pytest.raises(InputError, match="'dog' is no class"):
        load(tmp_path, DetailClasses(keypoints={"dog": ["nose"]}))


def test_rings_of_any_mask_give_it_back():
    random = np.random.default_rng(0)
    for k in range(60):
        shape = random.integers(2, 30, 2)
        mask = (random.random(shape) < random.uniform(0.2, 0.9)).astype(np.uint8)
        if k % 2:
            mask = cv2.resize(mask[:5, :5], (41, 33), interpolation=cv2.INTER_NEAREST)
        outlines = _outlines([traced(mask)])
        points, rings = outlines.points.double().numpy(), outlines.rings.numpy()
        owners = np.zeros(len(rings) - 1, dtype=int)
        assert (filled(points, rings, owners, 1, *mask.shape)[0] == mask).all()
        (back,) = encoded(outlines, *mask.shape)
        assert (decoded(back) == mask).all() if mask.any() else back is None
        if back is not None:
            text = back | {"counts": back["counts"].decode()}
            again = rings_of(text, *mask.shape)
            assert all((a == b).all() for a, b in zip(again, traced(mask), strict=True))


def test_polygons_are_filled_as_pycocotools_does_but_for_the_rim():
    random = np.random.default_rng(1)
    for _ in range(20):
        ring = random.uniform(5, 45, (6, 2))
        ring = ring[np.argsort(np.arctan2(*(ring - ring.mean(0)).T))]
        points, rings, _ = packed([[ring]])
        mine = filled(points.astype(float), rings, np.zeros(1, int), 1, 50, 50)[0]
        flat = [ring.ravel().tolist()]
        theirs = decoded(coco_mask.merge(coco_mask.frPyObjects(flat, 50, 50))).astype(np.uint8)
        rim = cv2.dilate(theirs, np.ones((3, 3))) - cv2.erode(theirs, np.ones((3, 3)))
        assert not ((mine != theirs) & (rim == 0)).any()


def test_parts_that_overlap_add_up():
    square = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
    points, rings, _ = packed([[square, square + 2]])
    mask = filled(points.astype(float), rings, np.zeros(2, int), 1, 6, 6)[0]
    assert mask.sum() == 16 + 16 - 4


def test_masks_lie_within_their_boxes(source):
    labels = with_masks(source.boxes(0))
    masks = labels.details.masks
    assert masks.shape == (3, MASK_SIDE, MASK_SIDE) and masks.dtype == torch.uint8
    assert labels.details.outlines is None
    triangle, holed, unknown = masks
    assert triangle.float().mean() == pytest.approx(0.5, abs=0.02)
    assert triangle[0, :40].all() and not triangle[-1, 5:].any()
    inside = torch.zeros(MASK_SIDE, MASK_SIDE)
    inside[19:29, 19:37] = 1  # the hole: rows 10/30 to 16/30, columns 10/30 to 20/30
    assert (holed[inside > 0] == 0).all() and holed.float().mean() > 0.9
    assert (unknown == NO_MASK).all()


def test_thousands_of_boxes_take_little_memory():
    ring = np.stack([np.cos(np.arange(12)), np.sin(np.arange(12))], 1) * 20 + 50
    outlines = _outlines([[ring]] * 5000)
    masks = masks_within(outlines, torch.tensor([[30.0, 30, 70, 70]]).repeat(5000, 1))
    assert masks.numel() * masks.element_size() < 16e6
    assert torch.equal(masks[0], masks[-1]) and masks[0].any()


STEPS = [
    {"HorizontalFlip": {"p": 1.0}},
    {"VerticalFlip": {"p": 1.0}},
    {"Transpose": {"p": 1.0}},
    {"RandomRotate90": {"p": 1.0}},
    {"Affine": {"rotate": 25, "scale": [0.8, 1.2], "shear": 8, "p": 1.0}},
    {"RandomResizedCrop": {"size": [60, 80], "scale": [0.5, 0.9], "p": 1.0}},
    {"Perspective": {"p": 1.0}},
    {"RandomCrop": {"height": 40, "width": 50, "p": 1.0}},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: next(iter(s)))
def test_masks_move_with_the_picture(source, step):
    augment = Augment([step], HEIGHT, WIDTH)
    for seed in range(5):
        image, out = augment(source.read(0), {"boxes": source.boxes(0)}, seed)
        labels = out["boxes"]
        for k in (labels.classes == 1).nonzero()[:, 0].tolist():
            x1, y1, x2, y2 = (round(v) for v in labels.boxes[k].tolist())
            if min(x2 - x1, y2 - y1) < 12:
                continue
            there = cv2.resize(
                labels.details.masks[k].float().numpy(),
                (x2 - x1, y2 - y1),
                interpolation=cv2.INTER_AREA,
            )
            bright = image[0, y1:y2, x1:x2].numpy() > 155
            both = ((there > 0.5) & bright).sum() / ((there > 0.5) | bright).sum()
            assert both > 0.85, (seed, both)


def test_keypoints_move_with_the_picture_and_change_sides_in_a_mirror(source):
    def after(*steps):
        _, out = Augment(list(steps), HEIGHT, WIDTH)(source.read(0), {"boxes": source.boxes(0)}, 0)
        return out["boxes"].details.keypoints[0]

    before = source.boxes(0).details.keypoints[0]
    torch.testing.assert_close(after(), before)
    flip = {"HorizontalFlip": {"p": 1.0}}
    mirrored = before[[0, 2, 1]]
    mirrored[:, 0] = WIDTH - mirrored[:, 0]
    torch.testing.assert_close(after(flip), mirrored)
    torch.testing.assert_close(after(flip, flip), before)
    turned = before * torch.tensor([-1.0, -1, 1]) + torch.tensor([WIDTH, HEIGHT, 0.0])
    torch.testing.assert_close(after(flip, {"VerticalFlip": {"p": 1.0}}), turned)


def test_keypoints_outside_of_the_picture_are_unknown(source):
    crop = {"Crop": {"x_min": 20, "y_min": 0, "x_max": 80, "y_max": 60, "p": 1.0}}
    _, out = Augment([crop], HEIGHT, WIDTH)(source.read(0), {"boxes": source.boxes(0)}, 0)
    keypoints = out["boxes"].details.keypoints[0]
    assert keypoints[:, 2].tolist() == [2, 0, 0]
    assert keypoints[0, :2].tolist() == pytest.approx([8, 11])


def test_partners_of_a_mirrored_picture():
    names = ["man/left_eye", "man/nose", "man/right_eye", "dog/left_eye", "cup/lefthand"]
    assert mirror_partners(names) == [2, 1, 0, 3, 4]
    names = ["man/eye_left", "man/bright", "man/eye_right", "cup/RightEdge", "cup/LeftEdge"]
    assert mirror_partners(names) == [2, 1, 0, 4, 3]


@pytest.mark.parametrize("name", ["eye_left", "right_eye", "eyeLeft", "lefthand", "ear-right"])
def test_a_keypoint_of_one_side_alone_is_told(name):
    with pytest.warns(UserWarning, match=f"lists '{name}' without"):
        DetailClasses(keypoints={"man": ["nose", name]})
    DetailClasses(keypoints={"man": ["bright", "eyeleft", "left_eye", "right_eye"]})


def _labels(count, **details):
    labels = BoxLabels.of(torch.rand(count, 4), torch.zeros(count, dtype=torch.long), 2)
    return replace(labels, details=Details(**details))


def test_batches_pad_with_unknown():
    with_both = _labels(
        2, attributes=torch.tensor([[1], [-1]]), masks=torch.ones(2, 4, 4, dtype=torch.uint8)
    )
    padded = pad_boxes([with_both, None, BoxLabels.empty(2), _labels(3)])
    assert padded.details.attributes[..., 0].tolist() == [[1, -1, -1], *[[-1, -1, -1]] * 3]
    assert (padded.details.masks[1:] == NO_MASK).all() and padded.details.keypoints is None
    back = padded.unpadded([[9, 9]] * 4)
    assert back[0].details.attributes.tolist() == [[1], [-1]] and back[1] is None
    assert len(back[3].details.attributes) == 3


def test_names_come_back_from_a_batch_so_that_truth_is_drawn_with_them():
    names = {"attribute_names": ("color/red", "color/blue"), "keypoint_names": ("man/nose",)}
    known = _labels(1, attributes=torch.tensor([[1]]), keypoints=torch.ones(1, 1, 3), **names)
    known = replace(known, boxes=torch.tensor([[8.0, 32, 90, 60]]))
    (back, _) = pad_boxes([known, BoxLabels.empty(2)]).unpadded([[9, 9]] * 2)
    assert {name: getattr(back.details, name) for name in names} == names
    drawn, bare = (
        draw(torch.zeros(3, 64, 96, dtype=torch.uint8), x, ["man", "cup"])
        for x in (back, replace(back, details=None))
    )
    whole = draw(torch.zeros(3, 64, 96, dtype=torch.uint8), known, ["man", "cup"])
    assert torch.equal(drawn, whole) and not torch.equal(drawn[:, :30], bare[:, :30])


def test_what_is_nowhere_known_is_not_there():
    assert pad_boxes([_labels(2, attributes=torch.full((2, 3), -1))]).details is None
    assert pad_boxes([BoxLabels.empty(2)]).details is None


def test_the_loader_gives_masks_in_evaluation(source):
    (batch,) = evaluation_batches(source, 30, 40, 1)
    padded = batch.labels["boxes"]
    assert isinstance(padded, PaddedBoxes)
    assert (padded.details.masks[0, :2] <= 1).all()
    assert padded.details.keypoints[0, 0, 0].tolist() == [14, 5.5, 2]
    assert batch.pin_memory is not None and batch.to("cpu").labels["boxes"].details is not None


def test_fragments_keep_their_details_but_are_ignored(source):
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 41, "y_max": 60, "p": 1.0}}
    _, out = Augment([crop], HEIGHT, WIDTH)(source.read(0), {"boxes": source.boxes(0)}, 0)
    labels = out["boxes"]
    fragment = labels.ignore == Ignore.REGION
    assert labels.classes[fragment].tolist() == [1]
    assert labels.details.attributes[fragment].tolist() == [[0, -1]]


def test_a_batch_is_refused_outlines(source):
    sample = Sample(
        torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8),
        {"boxes": source.boxes(0)},
        ImageInfo(1, "a", HEIGHT, WIDTH, "s"),
    )
    with pytest.raises(AssertionError, match="outlines"):
        Batch.of([sample])


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({}, "names no attributes"),
        ({"attributes": {"color": []}}, "lists nothing"),
        ({"attributes": {"color": ["a/b"]}}, "slash"),
        ({"keypoints": {"man": ["nose", "nose"]}}, "lists a name twice"),
    ],
)
def test_settings_that_say_nothing_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        DetailClasses(**wrong)


def test_names():
    assert WANTED.names()["keypoints"] == ("man/nose", "man/left_hand", "man/right_hand")
    assert DetailClasses(masks=True).names() == {}
