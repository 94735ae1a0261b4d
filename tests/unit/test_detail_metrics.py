"""Numbers of attributes, masks and keypoints against pycocotools and by hand."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detail_files import CLASSES, HEIGHT, WANTED, WIDTH, load, write
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detmtl.data.outlines import encoded, pasted, with_masks
from detmtl.metrics.attributes import AttributeMetric, matched
from detmtl.metrics.coco_details import KeypointMetric, MaskMetric, similarities
from detmtl.structures.boxes import xyxy_to_xywh
from detmtl.structures.details import Details, likeliest, merged
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import ImageInfo

INFO = ImageInfo(1, "a.png", HEIGHT, WIDTH, "own")
SIGMAS = (0.03, 0.06, 0.06)


@pytest.fixture
def truth(tmp_path) -> tuple[BoxLabels, str]:
    folder = write(tmp_path)
    return load(folder).boxes(0), str(folder / "a.json")


def _guesses(true: BoxLabels, seed: int) -> BoxLabels:
    """Returns detections on and beside the truth, with soft masks and keypoints that are off."""
    random = np.random.default_rng(seed)
    boxes = true.boxes.repeat(3, 1) + torch.tensor(
        random.normal(0, 1.2, (9, 4)), dtype=torch.float32
    )
    masks = with_masks(true).details.masks
    soft = (masks == 1).float()[:, None].repeat(3, 1, 1, 1)
    soft = torch.nn.functional.avg_pool2d(soft, 2)[:, 0] + torch.tensor(
        random.normal(0, 0.3, (9, 28, 28)), dtype=torch.float32
    )
    points = true.details.keypoints.repeat(3, 1, 1)
    points[..., :2] += torch.tensor(random.normal(0, 0.4, (9, 3, 2)), dtype=torch.float32)
    return replace(
        BoxLabels.of(
            boxes,
            true.classes.repeat(3),
            2,
            scores=torch.tensor(random.random(9), dtype=torch.float32),
        ),
        details=Details(masks=soft.clamp(0, 1), keypoints=points),
    )


def _reference(path: str, results: list[dict], kind: str, sigmas=None) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
            evaluation.params.catIds = [7]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_mask_numbers_are_pycocotools(truth):
    true, path = truth
    drawn = true[torch.tensor([0, 1])]  # the third box nobody drew, pycocotools would refuse it
    content = json.loads(Path(path).read_text())
    content["annotations"].pop()
    with open(path, "w") as file:
        json.dump(content, file)
    for seed in range(4):
        found = _guesses(true, seed)
        metric = MaskMetric(CLASSES)
        metric.update([found], [drawn], [INFO])
        shapes = pasted(found.details.masks, found.boxes, HEIGHT, WIDTH)
        results = [
            {
                "image_id": 1,
                "category_id": [7, 9][c],
                "score": s,
                "segmentation": shape | {"counts": bytes(shape["counts"])},
            }
            for c, s, shape in zip(
                found.classes.tolist(), found.scores.tolist(), shapes, strict=True
            )
        ]
        stats = _reference(path, results, "segm")
        mine = list(metric.compute().values())[:12]
        assert np.allclose(np.nan_to_num(mine, nan=-1), stats, atol=1e-12)


def test_the_right_masks_are_perfect_and_undrawn_boxes_do_not_count(truth):
    true, _ = truth
    metric = MaskMetric(CLASSES)
    metric.update([true[torch.tensor([0, 1])]], [true], [INFO])
    metric.update_on_truth([with_masks(true)], [true], [INFO])
    numbers = metric.compute()
    assert numbers["AP"] == pytest.approx(1) and numbers["AP/man"] == pytest.approx(1)
    assert 0.95 < numbers["on_truth/IoU"] <= 1  # 56 x 56 cells
    wrong = replace(true[torch.tensor([0, 1])], classes=torch.tensor([1, 0]))
    metric.update([wrong], [true], [INFO])
    assert metric.compute()["AP"] == 0


def test_a_class_that_nobody_looked_for_counts_by_its_boxes_alone(truth):
    true, _ = truth
    both = true[torch.tensor([0, 1])]
    extra = replace(both, boxes=both.boxes + 3, scores=torch.full((2,), 2.0))
    known = replace(true[torch.tensor([0])], coverage=torch.tensor([1.0, 0.0]))

    def ap(found, name):
        metric = MaskMetric(CLASSES)
        metric.update([found], [known], [INFO])
        return metric.compute()[name]

    assert ap(both, "AP/man") == pytest.approx(1) and np.isnan(ap(both, "AP/cup"))
    assert ap(replace(extra, classes=torch.tensor([1, 1])), "AP") == 0


def test_pasting_gives_back_what_was_cut_out(truth):
    true, _ = truth
    masked = with_masks(true)
    back = pasted(masked.details.masks[:2], masked.boxes[:2], HEIGHT, WIDTH)
    from pycocotools import mask as coco_mask

    for shape, original in zip(
        back, encoded(true.details.outlines, HEIGHT, WIDTH)[:2], strict=True
    ):
        assert coco_mask.iou([shape], [original], [0])[0, 0] > 0.95
    outside = torch.tensor([[-10.0, -10, 20, 20], [70, 50, 95, 75]])
    full = pasted(torch.ones(2, 28, 28), outside, HEIGHT, WIDTH)
    assert [int(coco_mask.area(x)) for x in full] == [400, 100]


def test_keypoint_numbers_are_pycocotools(truth):
    true, path = truth
    for seed in range(4):
        found = _guesses(true, seed)
        metric = KeypointMetric(CLASSES, WANTED.keypoint_names(), SIGMAS)
        metric.update([found], [true], [INFO])
        order = [1, 0, 2]  # the file lists left_hand first
        results = [
            {"image_id": 1, "category_id": 7, "score": s, "keypoints": k[order].ravel().tolist()}
            for c, s, k in zip(
                found.classes.tolist(), found.scores.tolist(), found.details.keypoints.double().numpy(),
                strict=True,
            )
            if c == 0
        ]  # fmt: skip
        content = json.loads(Path(path).read_text())
        for row in content["annotations"]:
            row.setdefault("keypoints", [0] * 9)
            row.setdefault("num_keypoints", 0)
        with open(path, "w") as file:
            json.dump(content, file)
        stats = _reference(path, results, "keypoints", [SIGMAS[k] for k in order])
        numbers = metric.compute()
        mine = [numbers[n] for n in ("AP", "AP50", "AP75", "AR")]
        assert np.allclose(mine, [stats[0], stats[1], stats[2], stats[5]], atol=1e-9)
        assert 0 < numbers["AP"] <= 1


def test_similarity_by_hand():
    true = np.array([[[10.0, 10, 2], [0, 0, 0], [20, 20, 1]], [[0, 0, 0]] * 3])
    found = true + np.array([3.0, 4, 0])
    similar = similarities(found, true, np.array([400.0, 1]), np.array([0.1, 1, 0.2]))
    by_hand = [np.exp(-25 / (2 * 400 * (2 * s) ** 2)) for s in (0.1, 0.2)]
    assert similar[0] == pytest.approx(np.mean(by_hand)) and np.isnan(similar[1])


def test_keypoints_on_truth_and_without_any(truth):
    true, _ = truth
    metric = KeypointMetric(CLASSES, WANTED.keypoint_names(), SIGMAS)
    assert all(np.isnan(x) for x in metric.compute().values())
    metric.update([true[torch.tensor([0])]], [true], [INFO])
    metric.update_on_truth([true], [true], [INFO])
    numbers = metric.compute()
    assert numbers["AP"] == pytest.approx(1) and numbers["on_truth/OKS"] == pytest.approx(1)
    other = KeypointMetric(CLASSES, WANTED.keypoint_names(), SIGMAS)
    other.merge([metric.state(), metric.state()])
    assert other.compute() == pytest.approx(numbers, nan_ok=True)


def test_keypoints_of_a_class_that_nobody_looked_for_are_not_wrong(truth):
    true, _ = truth
    man = replace(
        true[torch.tensor([0])], scores=torch.tensor([0.5])
    )  # less sure than what follows
    metric = KeypointMetric(CLASSES, WANTED.keypoint_names(), SIGMAS)
    metric.update([man], [true], [INFO])
    assert metric.compute()["AP"] == pytest.approx(1)
    found, nothing = true[torch.tensor([0, 0, 2])], true[torch.tensor([], dtype=torch.long)]
    unknown = replace(nothing, coverage=torch.tensor([0.0, 1.0]))
    metric.update([found], [unknown], [replace(INFO, id=2)])
    assert metric.compute()["AP"] == pytest.approx(1)
    metric.update([found], [nothing], [replace(INFO, id=2)])
    assert metric.compute()["AP"] < 0.6, "here somebody looked"


NAMES = ["color/red", "color/blue", "size/big", "size/small"]


def _with(boxes, attributes, scores=None, ignore=None):
    n = len(boxes)
    labels = BoxLabels.of(
        torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        torch.zeros(n, dtype=torch.long),
        1,
        scores=None if scores is None else torch.tensor(scores),
        ignore=None if ignore is None else torch.tensor(ignore),
    )
    return replace(labels, details=Details(attributes=torch.tensor(attributes).reshape(n, 2)))


A, B, C = [0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]


def test_accuracy_of_what_was_found():
    true = _with([A, B, C], [[0, 1], [1, -1], [0, 0]])
    # B found twice: the better one stands for it; C not found; one beside everything
    found = _with(
        [B, B, A, [70, 70, 80, 80]], [[0, 0], [1, 0], [0, 0], [0, 0]], [0.5, 0.9, 0.8, 0.7]
    )
    metric = AttributeMetric(NAMES)
    metric.update([found], [true], [INFO])
    numbers = metric.compute()
    assert numbers["accuracy/color"] == 1 and numbers["accuracy/size"] == 0
    assert numbers["accuracy"] == 0.5 and numbers["found"] == pytest.approx(2 / 3)
    assert np.isnan(numbers["on_truth/accuracy"])


def test_accuracy_on_truth_counts_what_is_known_and_not_ignored():
    true = _with([A, B, C], [[0, 1], [1, -1], [0, 0]], ignore=[0, 0, int(Ignore.REGION)])
    metric = AttributeMetric(NAMES)
    metric.update_on_truth([_with([A, B, C], [[1, 1], [1, 1], [1, 1]])], [true], [INFO])
    metric.update([_with([C], [[0, 0]])], [None], [INFO])
    numbers = metric.compute()
    assert numbers["on_truth/accuracy/color"] == 0.5 and numbers["on_truth/accuracy/size"] == 1
    assert np.isnan(numbers["found"])


def test_matching_takes_each_box_of_truth_once():
    true = _with([A, [1, 1, 11, 11]], [[0, 0], [0, 0]])
    found = _with([A, A, A], [[0, 0]] * 3, [0.3, 0.9, 0.6])
    assert matched(found, true).tolist() == [1, 2]
    assert matched(found[torch.tensor([], dtype=torch.long)], true).tolist() == [-1, -1]


def test_likeliest_values_and_what_is_merged():
    scores = torch.tensor([[0.4, 0.6, 0.9, 0.1]])
    assert likeliest(scores, [2, 2]).tolist() == [[1, 0]]
    masks, attributes = Details(masks=torch.ones(1, 2, 2)), Details(attributes=torch.zeros(1, 1))
    both = merged(masks, replace(attributes, attribute_names=("a/b",)))
    assert both.masks is not None and both.attribute_names == ("a/b",)
    assert merged(None, masks) is masks


def test_boxes_xywh_of_truth(truth):
    assert xyxy_to_xywh(truth[0].boxes)[1].tolist() == [40, 20, 30, 30]
