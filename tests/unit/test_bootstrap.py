"""Numbers of resampled pictures, for every kind of label, from what a run's folder keeps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from detmtl.comparing.bootstrap import of_boxes, picture_weights
from detmtl.comparing.contrast import contrast
from detmtl.comparing.scores import read_scores
from detmtl.comparing.statistics import verdicts
from detmtl.metrics import picture_file
from detmtl.metrics.attributes import AttributeMetric
from detmtl.metrics.coco import Boxes, score
from detmtl.metrics.coco_details import KeypointMetric, MaskMetric
from detmtl.metrics.dense import MapMetric
from detmtl.metrics.depth import DepthMetric
from detmtl.metrics.matches import match, reliability
from detmtl.metrics.per_picture import as_they_are
from detmtl.metrics.picture_file import read_pictures, write_pictures
from detmtl.metrics.tags import TagMetric
from detmtl.structures.depth import DepthLabels
from detmtl.structures.details import NO_MASK, Details
from detmtl.structures.labels import OTHER, UNKNOWN, BoxLabels, Ignore, MapLabels, TagLabels
from detmtl.structures.sample import ImageInfo

NAMES = ["a", "b", "c"]
VALUES = ["color/red", "color/blue", "size/big", "size/small"]


def info(i: int) -> ImageInfo:
    return ImageInfo(i, f"{i}.png", 6, 8, "s")


def a_map(rng) -> MapLabels:
    classes = rng.choice([0, 1, 2, OTHER, UNKNOWN], (6, 8), p=[0.4, 0.2, 0.05, 0.3, 0.05])
    return MapLabels(torch.tensor(classes, dtype=torch.uint8), None, torch.tensor([1.0, 1, 0]))


def some_tags(rng) -> TagLabels:
    weights = torch.tensor(rng.random(3) > 0.2, dtype=torch.float32)
    return TagLabels(torch.tensor(rng.integers(0, 5, 3) / 4, dtype=torch.float32), weights)


def a_depth(rng) -> DepthLabels:
    return DepthLabels(torch.tensor(rng.uniform(-1, 20, (6, 8)).clip(0)))


def described(rng) -> BoxLabels:
    boxes = torch.tensor([[0.0, 0, 3, 3], [3, 3, 6, 6]]) + torch.tensor(rng.normal(0, 0.4, (2, 4)))
    labels = BoxLabels.of(boxes.float(), torch.zeros(2, dtype=torch.long), 1)
    return replace(labels, details=Details(attributes=torch.tensor(rng.integers(-1, 2, (2, 2)))))


def shaped(rng) -> BoxLabels:
    """Boxes of both classes whose shapes are most of them; scores are equal between pictures only."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [3, 2, 8, 6], [1, 1, 6, 5]])
    masks = torch.tensor(rng.random((3, 4, 4)) > 0.25).float()
    masks = masks.repeat_interleave(7, 1).repeat_interleave(7, 2)
    scores = torch.tensor(rng.permutation(8)[:3] / 8, dtype=torch.float32)
    labels = BoxLabels.of(boxes, torch.tensor(rng.integers(0, 2, 3)), 2, scores=scores)
    return replace(labels, details=Details(masks=masks))


def pointed(rng) -> BoxLabels:
    points = torch.tensor([[[1.0, 1], [2, 3]], [[5, 4], [6, 5]]]) + torch.tensor(
        rng.normal(0, 0.8, (2, 2, 2))
    )
    labels = described(rng)
    labels = replace(labels, scores=torch.tensor(rng.permutation(8)[:2] / 8, dtype=torch.float32))
    known = torch.tensor(rng.random((2, 2, 1)) > 0.2) * 2.0
    keypoints = torch.cat([points, known], dim=2).float()
    return replace(labels, details=Details(keypoints=keypoints))


KINDS = {
    "maps": (lambda: MapMetric(NAMES, {"seen": ["a", "b"], "rare": ["c"]}), a_map),
    "tags": (lambda: TagMetric(NAMES), some_tags),
    "depth": (DepthMetric, a_depth),
    "attributes": (lambda: AttributeMetric(VALUES), described),
    "masks": (lambda: MaskMetric(["a", "b"]), shaped),
    "keypoints": (lambda: KeypointMetric(["a"], ["a/x", "a/y"], [0.2, 0.3]), pointed),
}
UNTOLD = {"masks": ("AR", "AP_medium", "AP_large"), "keypoints": ("AR",)}
"""How numbers begin that resamples do not tell, and, of masks so small, those of which nothing is known."""


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def filled(kind, times, seed=0):
    """Returns a metric that has seen picture i `times[i]` times."""
    metric, rng, n = kind[0](), np.random.default_rng(seed), 0
    for count in times:
        found, true = kind[1](rng), kind[1](rng)
        for _ in range(count):
            metric.update([found], [true], [info(n)])
            if hasattr(metric, "update_on_truth"):
                metric.update_on_truth([found], [true], [info(n)])
            n += 1
    return metric


def test_a_weight_is_a_picture_that_comes_several_times(kind, request):
    untold = UNTOLD.get(request.node.callspec.params["kind"], ())
    weights = np.random.default_rng(1).multinomial(9, np.full(9, 1 / 9), size=70)
    values = filled(kind, np.ones(9, dtype=int)).per_picture().numbers(weights)
    some = filled(kind, np.ones(9, dtype=int)).compute()
    told = [name for name in some if not name.startswith(untold)]
    assert [n for n in values if not n.startswith(untold)] == told and set(values) <= set(some)
    assert not any(np.isnan(some[name]) for name in told)
    for w in (0, 33, 69):
        expected = filled(kind, weights[w]).compute()
        for name, value in values.items():
            assert value[w] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name
    assert all(np.std(values[n][~np.isnan(values[n])]) > 0 for n in told), "pictures differ"


def big(i: int) -> ImageInfo:
    return ImageInfo(i, f"{i}.png", 200, 200, "s")


def scene(rng, truth: bool) -> BoxLabels:
    """Shapes and keypoints of three classes and all sizes; of truth some to be ignored or not drawn, and a
    class that nobody looked for."""
    n = 12 if truth else 24
    side = torch.tensor(rng.choice([16.0, 50, 110], n)).float()
    place = torch.arange(n) % 12
    corner = torch.stack([place % 4 * 22.0, place // 4 * 22.0], 1)
    corner += torch.tensor(rng.normal(0, 1.5, (n, 2))).float()
    boxes = torch.cat([corner, corner + side[:, None]], 1)
    classes = torch.tensor(rng.integers(0, 3, n))
    scores = torch.ones(n) if truth else torch.tensor(rng.permutation(n) + 1.0).float() / (n + 1)
    ignore = torch.tensor(rng.choice([0, 0, 0, int(Ignore.REGION)], n)) if truth else None
    coverage = torch.tensor([1.0, 0.0 if truth and rng.random() < 0.3 else 1.0, 1.0])
    labels = BoxLabels.of(boxes, classes, 3, scores=scores, ignore=ignore, coverage=coverage)
    masks = torch.ones(n, 56, 56, dtype=torch.uint8) if truth else torch.ones(n, 28, 28)
    masks[:, 40 if truth else 20 :] = 0
    if truth:
        masks[torch.tensor(rng.random(n) < 0.15)] = NO_MASK
    points = boxes.view(n, 2, 2) + torch.tensor(rng.normal(0, 2, (n, 2, 2))).float()
    known = torch.tensor(rng.random((n, 2, 1)) > 0.2).float() * 2
    return replace(
        labels, details=Details(masks=masks, keypoints=torch.cat([points, known], dim=2))
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskMetric(NAMES),
        lambda: KeypointMetric(NAMES, ["c/x", "c/y"], [0.2, 0.3]),
    ],
    ids=["masks", "keypoints"],
)
def test_shapes_of_all_sizes_are_counted_as_pycocotools_counts_them(make):
    rng, metric = np.random.default_rng(3), make()
    alone = scene(rng, True)
    metric.update_on_truth([alone], [alone], [big(99)])  # a picture that only this side knows
    for i in range(12):
        metric.update([scene(rng, False)], [scene(rng, True)], [big(i)])
    counted = metric.per_picture()
    expected, found = metric.compute(), as_they_are(counted)
    assert len(counted) == 13 and set(found) <= set(expected)
    assert found == pytest.approx({n: expected[n] for n in found}, nan_ok=True, abs=1e-12)
    some = [n for n, v in found.items() if 0 < v < 1]
    assert {"AP", "AP50", "AP/c"} <= set(some)
    if isinstance(metric, MaskMetric):
        assert {"AP_small", "AP_medium", "AP_large"} <= set(some)
        assert len({found[f"AP_{size}"] for size in ("small", "medium", "large")}) == 3
    metric.update([scene(rng, False)], [scene(rng, True)], [big(50)])
    assert metric.compute()["AP"] != expected["AP"], "what was judged before is not kept"


def test_without_pictures_there_is_no_number(kind):
    empty = filled(kind, [])
    assert len(empty.per_picture()) == 0
    assert all(np.isnan(v) for v in empty.compute().values())


def test_kept_and_read_again(kind, tmp_path):
    metric = filled(kind, [1] * 5)
    write_pictures(tmp_path / "p.npz", {"first/task": metric, "other": filled(kind, [2, 0, 1])})
    kept = read_pictures(tmp_path / "p.npz")
    assert list(kept) == ["first/task", "other"] and [*map(len, kept.values())] == [5, 3]
    again = as_they_are(kept["first/task"])
    expected = {name: value for name, value in metric.compute().items() if name in again}
    assert again == pytest.approx(expected, nan_ok=True, abs=1e-12) and len(again) > 1
    assert not (tmp_path / "p.npz.part").exists()


def test_what_is_not_kept(tmp_path, monkeypatch):
    class Derived(TagMetric):
        """Counts in its own way."""

        def compute(self):
            return {"mAP": 0.0}

    path = tmp_path / "p.npz"
    tags = KINDS["tags"]
    write_pictures(path, {"tags": filled(tags, [1])})
    derived = filled((lambda: Derived(NAMES), some_tags), [1])
    write_pictures(path, {"theirs": derived, "outside": object(), "empty": filled(tags, [])})
    assert not path.exists(), "a file of an earlier scoring would say what these do not"
    assert read_pictures(path) == {}
    monkeypatch.setattr(picture_file, "MOST_BYTES", 1000)
    write_pictures(path, {"few": filled(tags, [2]), "many": filled(tags, [200])})
    assert list(read_pictures(path)) == ["few"]


def boxes(seed, num_images=8):
    """Returns the matches of random boxes of all sizes, with the boxes."""
    rng = np.random.default_rng(seed)
    sides = rng.choice([10.0, 40, 120], (60, 1)) * rng.uniform(0.8, 1.2, (60, 2))
    xywh = np.concatenate([rng.uniform(0, 300, (60, 2)), sides], axis=1)
    images, classes = np.sort(rng.integers(0, num_images, 60)), rng.integers(0, 3, 60)
    found = xywh + rng.normal(0, 1, (60, 4)) * (rng.random((60, 1)) < 0.8) * [[1, 1, 0, 0]]
    off = rng.random(60) < 0.2
    found[off, 0] += 500
    no, area = np.zeros(60, dtype=bool), xywh[:, 2] * xywh[:, 3]
    truth = Boxes(images, classes, xywh, area, np.ones(60), no)
    detections = Boxes(images, classes, found, area, np.linspace(0.02, 0.97, 60), no)
    return truth, detections, match(truth, detections, num_images, NAMES)


def test_boxes_of_every_size_are_resampled():
    truth, detections, matches = boxes(0)
    values = of_boxes(matches, np.ones((1, 8)))
    expected = score(truth, detections, range(8), dict(enumerate(NAMES)), "pycocotools")
    assert {"AP_small", "AP_medium", "AP_large", "ECE", "AP/a"} <= {*values}
    for name, (value,) in values.items():
        wanted = reliability(matches)[0] if name == "ECE" else expected[name]
        assert value == pytest.approx(wanted, abs=1e-12) and 0 < value < 1, name
    drawn = of_boxes(matches, picture_weights(8, 100))
    assert all(v.shape == (100,) and np.nanstd(v) > 0 for v in drawn.values())


def test_a_calibration_error_counts_pictures_as_often_as_they_weigh():
    times = np.array([2, 0, 1, 3])
    truth, detections, matches = boxes(1, 4)

    def repeated(of):
        rows = np.repeat(np.arange(60), times[of.images])
        copy = np.concatenate([np.arange(int(times[i])) for i in of.images])
        fields = (of.categories, of.boxes_xywh, of.areas, of.scores, of.crowd)
        return Boxes(10 * copy + of.images[rows], *(f[rows] for f in fields))

    whole = match(repeated(truth), repeated(detections), 40, NAMES)
    value = of_boxes(matches, times[None])["ECE"][0]
    assert value == pytest.approx(reliability(whole)[0], abs=1e-12)


def run_folder(path, metrics, matches=None):
    """Writes what a finished run leaves of its scores, and returns it."""
    path.mkdir()
    facts = {"seconds": 1.0, "continued": False, "origins": []}
    (path / "done.json").write_text(json.dumps(facts))
    values = {f"{task}/{k}": v for task, m in metrics.items() for k, v in m.compute().items()}
    if matches is not None:
        matches.save(path / "matches.npz")
        values |= {"boxes/AP50": 0.5, "boxes/F1@.5": 0.5}
    (path / "metrics.json").write_text(json.dumps(values))
    write_pictures(path / "pictures.npz", metrics)
    return path


def test_a_run_says_all_its_numbers_of_the_same_resamples(tmp_path):
    metrics = {name: filled(kind, [1] * 9) for name, kind in KINDS.items()}
    folder = run_folder(tmp_path / "run", metrics, boxes(0)[2])
    scores = read_scores(folder, 150)
    assert {name.split("/")[0] for name in scores.resampled} == {*KINDS, "boxes"}
    by_hand = metrics["maps"].per_picture().numbers(picture_weights(9, 150))["mIoU/seen"]
    np.testing.assert_array_equal(scores.resampled["maps/mIoU/seen"], by_hand)
    assert np.nanstd(scores.resampled["boxes/AP_small"]) > 0
    again = read_scores(folder, 150)
    for name, value in scores.resampled.items():
        np.testing.assert_array_equal(value, again.resampled[name])
    write_pictures(folder / "pictures.npz", {"maps": filled(KINDS["maps"], [1] * 9, seed=5)})
    assert "tags/mAP" not in read_scores(folder, 150).resampled, "what was kept was of other files"


def test_a_run_from_before_stays_readable(tmp_path):
    folder = run_folder(tmp_path / "run", {"map": filled(KINDS["maps"], [1] * 9)})
    (folder / "pictures.npz").unlink()
    scores = read_scores(folder, 150)
    assert scores.resampled == {} and 0 < scores.metrics["map/mIoU"] < 1
    boxes(0)[2].save(folder / "matches.npz")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"boxes/AP50": 0.5, "boxes/F1@.5": 0.5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with (folder / "resampled_150.npz").open("wb") as file:  # had no sizes
        np.savez(file, names=np.array(["AP"]), values=np.zeros((1, 150)))
    assert "boxes/AP_large" in read_scores(folder, 150).resampled


def test_a_difference_that_one_picture_makes_is_not_told(tmp_path):
    """Of ten pictures one is right in one arm alone, in every seed."""

    def metric(right):
        of = MapMetric(["a", "b"])
        for i in range(10):
            true = torch.full((6, 8), i % 2, dtype=torch.uint8)
            found = true if i < right else 1 - true
            coverage = torch.ones(2)
            of.update(
                [MapLabels(found, None, coverage)], [MapLabels(true, None, coverage)], [info(i)]
            )
        return of

    def arm(name, *right):
        folders = [
            run_folder(tmp_path / f"{name}{s}", {"m": metric(r)}) for s, r in enumerate(right)
        ]
        return {s: read_scores(folder, 300) for s, folder in enumerate(folders)}

    gold = arm("gold", 3, 3, 3)
    for other, word in ((arm("one", 4, 4, 4), "cannot tell"), (arm("all", 10, 10, 10), "better")):
        found = contrast({"other": other, "gold": gold}, {"other": 1, "gold": -1}, "m/mIoU")
        assert found.seeds.low > 0 and found.pictures.count == 300
        (said,) = verdicts([(found.seeds, found.pictures)])
        assert said.word == word
    assert said.reason.startswith("neither seeds nor pictures")
