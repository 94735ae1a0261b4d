"""The teacher of known faults: what it does wrong is what was asked for."""

import hashlib
import json
import re

import cv2
import numpy as np
import pytest
import torch

from detmtl.structures.boxes import iou
from detmtl.structures.errors import InputError
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.simulated import SimulatedTeacherSettings

NAMES = ("cat", "dog", "cow")
SIDES = (20, 60, 120)
"""Small, medium and large for COCO."""
PICTURES, SIZE = 60, 600
EACH = 12
"""Boxes of a picture; sides and classes take turns, so that each of the nine kinds is there."""


BLACK = torch.zeros(1, dtype=torch.uint8).expand(3, SIZE, SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("gold")
    images, boxes = [], []
    for i in range(PICTURES):
        cv2.imwrite(str(root / f"{i}.png"), np.full((4, 4, 3), i, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE})
        for k in range(EACH):
            side = SIDES[k % 3]
            # A grid of cells of 150 pixels, so that no two boxes overlap whatever the jitter is.
            x, y = k % 4 * 150 + 15, k // 4 * 150 + 15
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            boxes.append(box | {"id": len(boxes), "image_id": i, "category_id": (k + i) % 3 + 1})
    crowd = {
        "bbox": [0, 0, 600, 600],
        "area": 360000,
        "iscrowd": 1,
        "image_id": 0,
        "category_id": 1,
    }
    gold = {
        "images": images,
        "annotations": [*boxes, crowd | {"id": 9999}],
        "categories": [{"id": c + 1, "name": name} for c, name in enumerate(NAMES)],
    }
    (root / "gold.json").write_text(json.dumps(gold))
    return root


def load(folder, **settings):
    return SimulatedTeacherSettings(annotations="gold.json", images=".", **settings).load(folder)


def label_all(teacher, folder, floor=0.0, order=range(PICTURES)):
    """Returns the labels of all pictures by number."""
    infos = [
        ImageInfo(
            i,
            str(folder / f"{i}.png"),
            SIZE,
            SIZE,
            "s",
            hashlib.sha256((folder / f"{i}.png").read_bytes()).hexdigest(),
        )
        for i in order
    ]
    images = [BLACK] * len(infos)
    return dict(zip(order, teacher.annotate(images, infos, floor), strict=True))


def objects(found):
    """Returns per box of all pictures: the gold box's number k and picture i, boxes, classes, scores."""
    rows = []
    for i, labels in found.items():
        centers = (labels.boxes[:, :2] + labels.boxes[:, 2:]) / 2
        k = (centers[:, 1] // 150).long() * 4 + (centers[:, 0] // 150).long()
        rows += [
            (i, int(a), b.numpy(), int(c), float(s))
            for a, b, c, s in zip(k, labels.boxes, labels.classes, labels.scores, strict=True)
        ]
    return rows


def within(count, n, share, sigmas=4):
    """Whether a count of n draws is one that a probability gives, but for one time in 16,000."""
    return abs(count - n * share) <= sigmas * np.sqrt(n * share * (1 - share)) + 1e-9


def truth(i, k):
    side = SIDES[k % 3]
    x, y = k % 4 * 150 + 15, k // 4 * 150 + 15
    return np.array([x, y, x + side, y + side]), (k + i) % 3


def test_without_faults_it_is_gold(folder):
    teacher = load(folder)
    assert teacher.precision == 1 and teacher.card.classes == NAMES
    found = objects(label_all(teacher, folder))
    assert len(found) == PICTURES * EACH  # the crowd is no object
    for i, k, box, c, _ in found:
        assert box.tolist() == truth(i, k)[0].tolist() and c == truth(i, k)[1]


def test_misses_by_size(folder):
    found = objects(label_all(load(folder, misses={"small": 0.6, "large": 0.1}), folder))
    of_size = np.bincount([k % 3 for _, k, *_ in found], minlength=3)
    n = PICTURES * EACH // 3
    assert within(n - of_size[0], n, 0.6) and of_size[1] == n and within(n - of_size[2], n, 0.1)
    assert not within(n - of_size[0], n, 0.3)
    everywhere = objects(label_all(load(folder, misses=0.3), folder))
    assert within(len(everywhere), 3 * n, 0.7)


def test_with_more_misses_it_misses_the_same_and_some_more(folder):
    few = {(i, k) for i, k, *_ in objects(label_all(load(folder, misses=0.2), folder))}
    many = {(i, k) for i, k, *_ in objects(label_all(load(folder, misses=0.5), folder))}
    assert many < few
    other = {(i, k) for i, k, *_ in objects(label_all(load(folder, misses=0.5, seed=1), folder))}
    assert not other <= few


def test_confusions_are_the_matrix(folder):
    matrix = {"cat": {"dog": 0.4, "cow": 0.2}, "dog": {"cat": 0.1}}
    found = objects(label_all(load(folder, confusions=matrix), folder))
    counts = np.zeros((3, 3), int)
    for i, k, _, c, _ in found:
        counts[truth(i, k)[1], c] += 1
    n = PICTURES * EACH // 3
    assert (counts.sum(1) == n).all()
    assert within(counts[0, 1], n, 0.4) and within(counts[0, 2], n, 0.2)
    assert within(counts[1, 0], n, 0.1) and counts[1, 2] == 0 and counts[2, 2] == n
    even = objects(label_all(load(folder, confusions=0.5), folder))
    assert within(sum(c != truth(i, k)[1] for i, k, _, c, _ in even), 3 * n, 0.5)


def test_jitter_and_bias_of_boxes(folder):
    jitter = {"position": 0.05, "size": 0.1, "bias": 0.25}
    found = objects(label_all(load(folder, jitter=jitter), folder))
    off, grown = [], []
    for i, k, box, _, _ in found:
        gold, side = truth(i, k)[0], SIDES[k % 3]
        if k >= 4 and k % 4:  # not cut at the picture's edge
            off.append((box[:2] + box[2:] - gold[:2] - gold[2:]) / 2 / side)
            grown.append(np.log((box[2:] - box[:2]) / side))
    off, grown = np.concatenate(off), np.concatenate(grown)
    error = 4 / np.sqrt(len(off))  # of a mean in standard deviations, of a deviation even less
    assert abs(off.mean()) < 0.05 * error and off.std() == pytest.approx(0.05, rel=error)
    assert grown.mean() == pytest.approx(np.log(1.25), abs=0.1 * error)
    assert grown.std() == pytest.approx(0.1, rel=error)


def test_false_positives_lie_in_the_picture_and_are_poisson(folder):
    found = label_all(load(folder, misses=1.0, false_positives={"per_picture": 3}), folder)
    counts = np.array([len(labels) for labels in found.values()])
    assert abs(counts.mean() - 3) < 4 * np.sqrt(3 / PICTURES)
    assert counts.var() == pytest.approx(3, rel=0.7)
    boxes = torch.cat([labels.boxes for labels in found.values()])
    assert (boxes >= 0).all() and (boxes <= SIZE).all()
    sides = set((boxes[:, 2:] - boxes[:, :2]).round().flatten().int().tolist())
    assert sides == set(SIDES)


def scored(folder, **scores):
    faults = {"confusions": 0.3, "false_positives": {"per_picture": 6}}
    teacher = load(folder, **faults, scores=scores)
    rights, values = [], []
    for i, labels in label_all(teacher, folder).items():
        gold = torch.tensor(np.array([truth(i, k)[0] for k in range(EACH)]), dtype=torch.float32)
        near = iou(labels.boxes, gold)
        best = near.argmax(1)
        same = torch.tensor([truth(i, int(k))[1] for k in best]) == labels.classes
        rights.append(((near.amax(1) >= 0.5) & same).numpy())
        values.append(labels.scores.numpy())
    return np.concatenate(rights), np.concatenate(values), teacher


def calibration_gap(rights, values):
    """Returns the mean of score minus precision, and the expected calibration error in 10 bins."""
    bins = (values * 10).astype(int).clip(0, 9)
    n = np.bincount(bins, minlength=10)
    gaps = np.bincount(bins, values - rights, minlength=10)
    return (values - rights).mean(), np.abs(gaps).sum() / n.sum()


def test_scores_are_calibrated_unless_asked_otherwise(folder):
    rights, values, teacher = scored(folder)
    assert rights.mean() == pytest.approx(teacher.precision, abs=0.01)
    mean, error = calibration_gap(rights, values)
    # About 1070 boxes in 10 bins: chance alone makes an error of about 0.03.
    assert abs(mean) < 0.04 and error < 0.05
    assert values[rights].mean() > values[~rights].mean() + 0.2
    assert calibration_gap(*scored(folder, shift=1.5)[:2])[0] > 0.12
    mean, error = calibration_gap(*scored(folder, sharpness=4)[:2])
    assert abs(mean) < 0.08 and error > 0.1


def test_concentration_is_how_little_scores_tell(folder):
    def apart(concentration):
        rights, values, _ = scored(folder, concentration=concentration)
        return values[rights].mean() - values[~rights].mean()

    assert apart(0.3) > apart(2) + 0.1 > apart(20) + 0.3


def test_it_abstains_from_classes_that_it_does_not_know(folder):
    teacher = load(folder, unknown=["dog"])
    assert teacher.card.classes == ("cat", "cow")
    found = objects(label_all(teacher, folder))
    assert len(found) == PICTURES * EACH * 2 // 3
    assert all({0: 0, 1: 2}[c] == truth(i, k)[1] for i, k, _, c, _ in found)


def test_it_is_the_same_in_any_order_and_by_bytes_alone(folder, tmp_path):
    faults = {"misses": 0.3, "jitter": {"size": 0.2}, "false_positives": {"per_picture": 2}}
    first = label_all(load(folder, **faults), folder)
    again = label_all(load(folder, **faults), folder, order=range(PICTURES - 1, -1, -1))
    for i in range(PICTURES):
        assert torch.equal(first[i].boxes, again[i].boxes)
        assert torch.equal(first[i].scores, again[i].scores)
    copy = tmp_path / "renamed.png"
    copy.write_bytes((folder / "5.png").read_bytes())
    info = ImageInfo(0, str(copy), SIZE, SIZE, "s")
    renamed = load(folder, **faults).annotate([BLACK], [info], 0.0)[0]
    assert torch.equal(renamed.boxes, first[5].boxes)
    copy.write_bytes(b"another picture")
    with pytest.raises(InputError, match=r"renamed\.png.*no picture of these bytes"):
        load(folder).annotate([BLACK], [info])
    with pytest.raises(InputError, match="is 7 x 600 pixels"):
        load(folder).annotate([BLACK[:, :, :7]], [ImageInfo(0, str(folder / "5.png"), 1, 1, "s")])


def test_cards_differ_where_faults_do(folder):
    cards = [load(folder, misses=m).card for m in (0.1, 0.2)]
    assert cards[0].identity() != cards[1].identity()
    assert cards[0].identity() == load(folder, misses=0.1).card.identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unknown": ["bird"]}, "'bird' is none of the classes cat, dog, cow"),
        ({"unknown": list(NAMES)}, "at least one must be known"),
        ({"confusions": {"cat": {"bird": 0.1}}}, "teacher.confusions: 'bird'"),
        ({"confusions": {"dog": {"cat": 0.1}}, "unknown": ["dog"]}, "'dog' is none"),
        ({"tta": {"flip": True}}, "does not see pixels"),
        ({"annotations": "none.json"}, "no such file"),
    ],
)
def test_what_does_not_fit_is_said(folder, settings, message):
    given = {"annotations": "gold.json", "images": "."} | settings
    with pytest.raises(InputError, match=re.escape(message)):
        SimulatedTeacherSettings(**given).load(folder)


def test_shares_of_confusions_sum_to_one_at_most():
    with pytest.raises(ValueError, match=r"confusions\.cat"):
        SimulatedTeacherSettings(
            annotations="a", images="b", confusions={"cat": {"dog": 0.7, "cow": 0.6}}
        )
