import io
import json
import math
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

from detmtl.data.coco import read_labels
from detmtl.metrics import coco
from detmtl.metrics.coco import NUMBERS, CocoMetric, evaluate_files, precision_and_recall
from detmtl.structures.boxes import xyxy_to_xywh
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Ignore
from detmtl.structures.sample import ImageInfo

NAMES = ["cat", "dog", "cow", "absent"]


def info(i: int, source: str = "val") -> ImageInfo:
    return ImageInfo(i, f"{i}.jpg", 480, 640, source)


def boxes(*rows, classes=None, scores=None, ignore=None, coverage=None) -> BoxLabels:
    n = len(rows)
    return BoxLabels.of(
        torch.tensor(rows, dtype=torch.float32).reshape(n, 4),
        torch.tensor(classes if classes is not None else [0] * n, dtype=torch.long),
        len(NAMES),
        scores=None if scores is None else torch.tensor(scores),
        ignore=None if ignore is None else torch.tensor(ignore),
        coverage=None if coverage is None else torch.tensor(coverage),
    )


def random_data(num_pictures: int = 25, seed: int = 0):
    """Returns truth and noisy predictions of all sizes, with crowds, misses and false alarms."""
    g = torch.Generator().manual_seed(seed)
    truths, found = [], []
    for _ in range(num_pictures):
        n = int(torch.randint(0, 9, (1,), generator=g))
        corner = torch.rand(n, 2, generator=g) * 300
        side = torch.exp(torch.rand(n, 2, generator=g) * 3.5 + 2)
        xyxy = torch.cat([corner, corner + side], 1)
        classes = torch.randint(0, 3, (n,), generator=g)
        ignore = (torch.rand(n, generator=g) < 0.15).to(torch.uint8) * int(Ignore.REGION)
        truths.append(BoxLabels.of(xyxy, classes, len(NAMES), ignore=ignore))
        seen = torch.cat([torch.rand(n, generator=g) < 0.8, torch.rand(6, generator=g) < 0.5])
        extra = torch.rand(6, 2, generator=g) * 300
        noisy = xyxy + torch.randn(n, 4, generator=g) * side.repeat(1, 2) * 0.08
        noisy = torch.cat([noisy, torch.cat([extra, extra + 40], 1)])[seen]
        scores = torch.rand(n + 6, generator=g)[seen]
        labels = torch.cat([classes, torch.randint(0, 3, (6,), generator=g)])[seen]
        found.append(BoxLabels.of(noisy, labels, len(NAMES), scores=scores))
    return truths, found


def files(tmp_path, truths, found, category_ids=(7, 3, 90, 12)):
    """Writes truth and predictions as COCO files."""
    annotations, results = [], []
    for image, (t, f) in enumerate(zip(truths, found, strict=True), start=10):
        for box, c, ignored in zip(xyxy_to_xywh(t.boxes), t.classes, t.ignore, strict=True):
            box = [float(x) for x in box.double()]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category_ids[int(c)],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(ignored > 0),
                }
            )
        for box, c, s in zip(xyxy_to_xywh(f.boxes), f.classes, f.scores, strict=True):
            results.append(
                {
                    "image_id": image,
                    "category_id": category_ids[int(c)],
                    "bbox": [float(x) for x in box.double()],
                    "score": float(s),
                }
            )
    truth_path, found_path = tmp_path / "truth.json", tmp_path / "found.json"
    content = {
        "images": [{"id": i + 10, "height": 480, "width": 640} for i in range(len(truths))],
        "categories": [{"id": c, "name": n} for c, n in zip(category_ids, NAMES, strict=True)],
        "annotations": annotations,
    }
    truth_path.write_text(json.dumps(content))
    found_path.write_text(json.dumps(results))
    return found_path, truth_path


def reference(found_path, truth_path) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_path))
        evaluation = COCOeval(truth, truth.loadRes(str(found_path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


@pytest.mark.parametrize("backend", ["pycocotools", "fast"])
def test_files_give_pycocotools_numbers(tmp_path, backend, capsys):
    paths = files(tmp_path, *random_data())
    numbers = evaluate_files(*paths, backend=backend)
    assert [numbers[name] for name in NUMBERS] == reference(*paths)
    assert 0.1 < numbers["AP"] < 0.9
    assert len({numbers[f"AP/{n}"] for n in NAMES[:3]}) == 3
    assert capsys.readouterr().out == ""


def test_mean_of_class_ap_is_ap(tmp_path):
    numbers = evaluate_files(*files(tmp_path, *random_data()))
    assert numbers["AP"] == pytest.approx(np.mean([numbers[f"AP/{n}"] for n in NAMES[:3]]))
    assert math.isnan(numbers["AP/absent"])


def test_backends_agree_bit_for_bit(tmp_path):
    paths = files(tmp_path, *random_data(seed=3))
    slow, fast = (evaluate_files(*paths, backend=b) for b in ("pycocotools", "fast"))
    assert slow.keys() == fast.keys()
    np.testing.assert_array_equal(list(slow.values()), list(fast.values()))


@pytest.mark.parametrize("backend", ["pycocotools", "fast"])
def test_categories_are_evaluated_few_at_a_time_on_the_pictures_that_show_them(
    tmp_path, monkeypatch, backend
):
    paths = files(tmp_path, *random_data(seed=3))
    together = evaluate_files(*paths, backend=backend)
    asked = []

    def told(evaluation):
        asked.append((len(evaluation.params.imgIds), len(evaluation.params.catIds)))
        return precision_and_recall(evaluation)

    monkeypatch.setattr(coco, "precision_and_recall", told)
    monkeypatch.setattr(coco, "PAIRS", 50)
    apart = evaluate_files(*paths, backend=backend)
    assert list(apart) == list(together)
    np.testing.assert_array_equal(list(apart.values()), list(together.values()))
    assert sum(categories for _, categories in asked) == len(NAMES) and len(asked) > 1
    assert all(categories == 1 or pictures * categories <= 50 for pictures, categories in asked)


def test_memory_and_files_agree(tmp_path):
    truths, found = random_data(seed=1)
    metric = CocoMetric(NAMES)
    metric.update(found, truths, [info(i) for i in range(len(truths))])
    numbers = metric.compute()
    of_files = evaluate_files(*files(tmp_path, truths, found, category_ids=(1, 2, 3, 4)))
    assert numbers.keys() == of_files.keys()
    # subtraction in float64 of float32 corners against float32 widths of the file
    np.testing.assert_allclose(list(numbers.values()), list(of_files.values()), atol=1e-6)


def test_a_gold_file_is_read_as_a_source_reads_it(tmp_path):
    """What is ignored, and what nobody looked for, is the same to `evaluate_files` and to `CocoMetric`."""
    truths, found = random_data(seed=2)
    found_path, truth_path = files(tmp_path, truths, found, category_ids=(1, 2, 3, 4))
    content = json.loads(truth_path.read_text())
    for i, annotation in enumerate(content["annotations"]):
        annotation |= [
            {},
            {"ignore": 1},
            {"attributes": {"ignore": "class"}, "iscrowd": None},
            {"attributes": {"ignore": "region"}},  # undone by its `iscrowd: 0`
        ][i % 4]
    for i, image in enumerate(content["images"]):
        image |= {"file_name": f"{image['id']}.jpg"}
        image |= [
            {},
            {"neg_category_ids": [1]},
            {"not_exhaustive_category_ids": [2, 3]},
            {"coverage": {"cat": 0, "dog": 0.5}},
        ][i % 4]
    plain = evaluate_files(found_path, truth_path)
    truth_path.write_text(json.dumps(content | {"info": {"coverage": {"cow": 0}}}))
    numbers = evaluate_files(found_path, truth_path)
    source = read_labels(truth_path)
    metric = CocoMetric(NAMES)
    infos = [info(i) for i in range(len(truths))]
    metric.update(found, [source.labels(i)["boxes"] for i in range(len(truths))], infos)
    expected = metric.compute()
    np.testing.assert_allclose(
        [numbers[name] for name in expected], list(expected.values()), atol=1e-6
    )
    assert all(abs(numbers[name] - plain[name]) > 0.001 for name in ("AP", "AP50", "F1@.5"))


def test_an_annotation_file_that_says_nonsense_of_itself(tmp_path):
    found_path, truth_path = files(tmp_path, *random_data(3))
    content = json.loads(truth_path.read_text())
    content["annotations"][0]["attributes"] = {"ignore": "Class"}
    truth_path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"attributes.ignore is 'Class'; allowed are class and"):
        evaluate_files(found_path, truth_path)
    del content["annotations"][0]["attributes"]
    content["images"][1]["neg_category_ids"] = [4]
    truth_path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"neg_category_ids has \[4\], which are not in"):
        evaluate_files(found_path, truth_path)


def test_picture_ids_of_64_bits_change_nothing(tmp_path):
    found_path, truth_path = files(tmp_path, *random_data(4))
    plain = evaluate_files(found_path, truth_path)
    large = {"10": 2**63 - 1, "11": 3 * 10**18, "12": 6 * 10**18, "13": -(2**63) + 1}
    for path in (found_path, truth_path):
        text = path.read_text()
        for key in ("id", "image_id"):
            for small, number in large.items():
                text = text.replace(f'"{key}": {small},', f'"{key}": {number},')
        path.write_text(text)
    np.testing.assert_equal(evaluate_files(found_path, truth_path), plain)


def test_annotation_id_0_is_found(tmp_path):
    truth = [boxes([10, 10, 60, 60])]
    found_path, truth_path = files(tmp_path, truth, [boxes([10, 10, 60, 60], scores=[0.9])])
    content = json.loads(truth_path.read_text())
    content["annotations"][0]["id"] = 0
    truth_path.write_text(json.dumps(content))
    for backend in ("pycocotools", "fast"):
        assert evaluate_files(found_path, truth_path, backend)["AP"] == pytest.approx(1)


def test_perfect_empty_and_nothing():
    truth = boxes([10, 10, 60, 60], [100, 100, 130, 140], classes=[0, 1])
    metric = CocoMetric(NAMES)
    assert all(math.isnan(v) for v in metric.compute().values())
    metric.update([truth], [truth], [info(1)])
    assert metric.compute()["AP"] == pytest.approx(1) and metric.compute()["F1@.5"] == 1
    metric.update([BoxLabels.empty(len(NAMES))], [truth], [info(1)])
    numbers = metric.compute()
    assert numbers["AP"] == 0 and numbers["F1@.5"] == 0 and math.isnan(numbers["AP/cow"])
    assert math.isnan(numbers["AP_large"])


@pytest.mark.parametrize("ignore", [Ignore.REGION, Ignore.CLASS])
@pytest.mark.parametrize("backend", ["pycocotools", "fast"])
def test_detections_on_ignored_truth_do_not_count(ignore, backend):
    truth = boxes([0, 0, 50, 50], [100, 100, 200, 200], ignore=[0, int(ignore)])
    inside = [[105, 105, 130, 130], [150, 150, 180, 190]]
    found = boxes([0, 0, 50, 50], *inside, scores=[0.6, 0.9, 0.8])
    metric = CocoMetric(NAMES, backend)
    metric.update([found], [truth], [info(1)])
    assert metric.compute()["AP"] == pytest.approx(1) and metric.compute()["F1@.5"] == 1
    metric.update([found], [truth[:1]], [info(1)])
    assert metric.compute()["AP"] < 0.5 and metric.compute()["F1@.5"] == pytest.approx(0.5)


def test_class_that_nobody_looked_for_has_no_false_positives():
    truth = boxes([0, 0, 50, 50], classes=[0], coverage=[0.0, 0.0, 1.0, 1.0])
    rows = ([0, 0, 50, 50], [70, 70, 90, 90], [10, 10, 30, 30], [60, 60, 80, 80])
    found = boxes(*rows, classes=[0, 0, 1, 2], scores=[0.6, 0.9, 0.9, 0.9])
    metric = CocoMetric(NAMES)
    elsewhere = boxes([60, 60, 80, 80], classes=[2], scores=[0.8])
    metric.update([found, elsewhere], [truth, elsewhere], [info(1), info(2)])
    numbers = metric.compute()
    assert numbers["AP/cat"] == pytest.approx(1)  # the second box would halve it
    assert math.isnan(numbers["AP/dog"])
    assert numbers["AP/cow"] == pytest.approx(0.5, abs=0.01)  # looked for, so the alarm counts


def test_f1_counts_at_fixed_score():
    rows = ([0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50])
    # one right, one below the threshold, one twice on the same box
    found = boxes(rows[0], rows[0], rows[1], scores=[0.9, 0.8, 0.49])
    metric = CocoMetric(NAMES)
    metric.update([found], [boxes(*rows)], [info(1)])
    assert metric.compute()["F1@.5"] == pytest.approx(2 * 1 / (2 + 1 + 2))


def test_shards_merge_to_the_whole():
    truths, found = random_data(seed=2)
    infos = [info(i) for i in range(len(truths))]
    whole = CocoMetric(NAMES)
    whole.update(found, truths, infos)
    states = []
    for shard in (slice(15, None), slice(0, 16), slice(3, 3)):  # uneven, overlapping, empty
        part = CocoMetric(NAMES)
        part.update(found[shard], truths[shard], infos[shard])
        states.append(part.state())
    merged = CocoMetric(NAMES)
    merged.merge(states)
    np.testing.assert_equal(merged.compute(), whole.compute())


def test_same_id_in_two_sources_is_two_pictures():
    truth = boxes([0, 0, 50, 50])
    metric = CocoMetric(NAMES)
    metric.update([truth, BoxLabels.empty(4)], [truth, truth], [info(1, "a"), info(1, "b")])
    assert metric.compute()["AR100"] == pytest.approx(0.5)


def test_pictures_without_truth_are_skipped():
    metric = CocoMetric(NAMES)
    metric.update([boxes([0, 0, 5, 5])], [None], [info(1)])
    assert metric.state() == {}


GOOD = {"image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({**GOOD, "image_id": 999}, "image_id 999"),
        ({**GOOD, "category_id": 1}, "category_id 1"),
        ({**GOOD, "image_id": "10"}, "image_id is '10'"),
        ({**GOOD, "image_id": 2**70}, "64 bits"),
        ({**GOOD, "score": float("nan")}, "score is nan"),
        ({**GOOD, "score": 10**400}, "it is a finite number"),
        ({**GOOD, "category_name": ["cat"]}, "category_name is ['cat']; it is text"),
        ({**GOOD, "bbox": [1, 2, float("nan"), 4]}, "four finite"),
        ({**GOOD, "bbox": [1, 2, 3]}, "four finite"),
        ({**GOOD, "bbox": [1, 2, -3, 4]}, "negative"),
        ({k: v for k, v in GOOD.items() if k != "score"}, "has no score"),
        ([1, 2], "is no object"),
        (
            {**GOOD, "category_name": "zebra"},
            "are 'zebra', but the annotation file's category 7 is",
        ),
    ],
)
def test_wrong_results_are_told(tmp_path, entry, told):
    _, truth_path = files(tmp_path, *random_data(3))
    found_path = tmp_path / "wrong.json"
    found_path.write_text(json.dumps([GOOD, entry, GOOD]))
    with pytest.raises(InputError) as error:
        evaluate_files(found_path, truth_path)
    assert told in str(error.value) and "wrong.json" in str(error.value)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("text", ["{}", "[", "3", "\x80"])
def test_files_that_are_something_else(tmp_path, text):
    found_path, truth_path = files(tmp_path, *random_data(3))
    other = tmp_path / "other.json"
    other.write_text(text, encoding="latin-1")
    for paths in ((other, truth_path), (found_path, other), (tmp_path / "no.json", truth_path)):
        with pytest.raises(InputError):
            evaluate_files(*paths)


def test_wrong_annotations_are_told_at_once(tmp_path):
    found_path, truth_path = files(tmp_path, *random_data(4))
    content = json.loads(truth_path.read_text())
    content["annotations"][0]["bbox"][2] = -1
    content["annotations"][1].pop("category_id")
    content["images"] += [{"id": 10}, {"id": 2**70}]
    content["categories"][1]["name"] = "cat"
    truth_path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        evaluate_files(found_path, truth_path)
    assert len(error.value.problems) == 5


def test_results_that_name_their_classes_rightly_are_read(tmp_path):
    found_path, truth_path = files(tmp_path, *random_data())
    plain = evaluate_files(found_path, truth_path)
    names = {c["id"]: c["name"] for c in json.loads(truth_path.read_text())["categories"]}
    found = json.loads(found_path.read_text())
    found_path.write_text(
        json.dumps([r | {"category_name": names[r["category_id"]]} for r in found])
    )
    assert evaluate_files(found_path, truth_path) == pytest.approx(plain, nan_ok=True)


@pytest.fixture
def named(tmp_path):
    """Truth, a results file, and the same as `predict` writes it: other ids, more classes and pictures."""
    found_path, truth_path = files(tmp_path, *random_data())
    truth, found = (json.loads(path.read_text()) for path in (truth_path, found_path))
    for image in truth["images"]:
        image["file_name"] = f"a/{image['id']}.jpg"
    truth_path.write_text(json.dumps(truth))
    names = {c["id"]: c["name"] for c in truth["categories"]}
    own = {name: i for i, name in enumerate(["horse", *reversed(NAMES)], start=1)}
    number = {image["id"]: 1000 - image["id"] for image in truth["images"]} | {0: 5}
    content = {
        "images": [{"id": number[0], "file_name": "a/unlabelled.jpg"}]
        + [{"id": number[i["id"]], "file_name": i["file_name"]} for i in truth["images"]],
        "categories": [{"id": i, "name": name} for name, i in own.items()],
        "annotations": [
            {"id": n, **row, "category_id": own[names.get(row["category_id"], "horse")]}
            | {"image_id": number[row["image_id"]], "iscrowd": 0}
            for n, row in enumerate([{**found[0], "image_id": 0, "category_id": 0}, *found])
        ],
    }
    return truth_path, found_path, content


def test_what_predict_wrote_is_scored_by_its_names(named, tmp_path):
    truth_path, found_path, content = named
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    np.testing.assert_equal(
        evaluate_files(path, truth_path), evaluate_files(found_path, truth_path)
    )
    undecided = content["annotations"][1] | {"iscrowd": 1, "score": 1.0}  # of silver labels
    path.write_text(json.dumps(content | {"annotations": [*content["annotations"], undecided]}))
    np.testing.assert_equal(
        evaluate_files(path, truth_path), evaluate_files(found_path, truth_path)
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c: c["images"][3].update(file_name="3.jpg"),
            r"has 1 of the annotation file's 25 pictures not \(a/12.jpg\); its own are a/unl",
        ),
        (lambda c: c["images"][3].pop("file_name"), "1 images have no file_name"),
        (lambda c: c["images"][3].update(file_name="./a/13.jpg"), "two images are 'a/13.jpg'"),
        (lambda c: c["annotations"][5].pop("score"), "1 of its .* annotations have no score"),
        (
            lambda c: c["categories"][4].update(name="kitten"),
            "results are 'kitten', which is no category of the annotation file; it has cat, dog",
        ),
        (lambda c: c["annotations"][5].update(image_id=3), "3 is not in this file"),
    ],
)
def test_names_that_do_not_match_are_told(named, tmp_path, change, told):
    truth_path, _, content = named
    change(content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=told) as error:
        evaluate_files(path, truth_path)
    assert len(error.value.problems) == 1 and str(path) in str(error.value)


def test_no_detections_give_zero(tmp_path):
    found_path, truth_path = files(tmp_path, *random_data())
    found_path.write_text("[]")
    for backend in ("pycocotools", "fast"):
        with pytest.warns(UserWarning, match="have no result at all"):
            numbers = evaluate_files(found_path, truth_path, backend)
        assert numbers["AP"] == numbers["AR100"] == numbers["F1@.5"] == 0


def test_pictures_that_perhaps_nobody_predicted_are_told(tmp_path):
    """As of a run's detections, beside the gold file of which its validation is a part."""
    one = boxes([10, 10, 60, 60], scores=[0.9])
    truths = [one, one, one, boxes(), boxes([10, 10, 60, 60], ignore=[Ignore.REGION])]
    paths = files(tmp_path, truths, [one, boxes(), boxes(), boxes(), boxes()])
    told = r"2 of the annotation file's 3 pictures with boxes have no result at all \(image_id 11, 12\)"
    with pytest.warns(UserWarning, match=told):
        evaluate_files(*paths)


def test_a_position_in_what_predict_wrote_is_that_in_its_list(named, tmp_path):
    truth_path, _, content = named
    rows = content["annotations"]
    rows[0] = rows[0] | {"iscrowd": 1}
    rows[1] = {k: v for k, v in rows[1].items() if k != "id"} | {"bbox": [0, 0, 9]}
    rows[2] = rows[2] | {"image_id": 77}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"annotation 1: bbox is \[0, 0, 9\]"):
        evaluate_files(path, truth_path)
    rows[1] = rows[3]
    path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match="annotation at position 2: the image_id 77 is not in this"
    ):
        evaluate_files(path, truth_path)


def test_labels_of_a_model_are_told_where_they_measure(named):
    truth_path, found_path, _ = named
    scores = evaluate_files(found_path, truth_path)
    truth = json.loads(truth_path.read_text())
    truth_path.write_text(json.dumps(truth | {"info": {"grade": "silver"}}))
    with pytest.warns(UserWarning, match=r"a model wrote these labels.*how far two models agree"):
        np.testing.assert_equal(evaluate_files(found_path, truth_path), scores)
