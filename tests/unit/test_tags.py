"""Tags of a source, from a file and from boxes; the task and its metric."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from detmtl.data.coco import CocoSource
from detmtl.data.folder import FolderSource
from detmtl.data.tags import BoxTags, TagClasses, TagFile
from detmtl.metrics.tags import TagMetric, average_precision
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore, TagLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.tags import TagsConfig, pooled

CLASSES = TagClasses(classes={"night": ["night", "dusk"], "rain": ["rain"], "snow": []})


def _load(root, content, pictures=("a.jpg", "b.jpg"), classes=CLASSES, listed=None, **settings):
    for name in pictures:
        (root / "images").mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), len(name)).save(root / "images" / name)
    (root / "tags.json").write_text(json.dumps(content))
    tags = TagFile(file="tags.json", **settings)
    source = FolderSource(images="images", listed=listed, tags=tags)
    return source.load("s", root, LabelSpace.of(["x"]), root / "cache", tags=classes)


def _row(name, *tags, **more):
    return {"file_name": name, "tags": list(tags), **more}


LOOKED_FOR = ["night", "dusk", "rain"]


def test_tags_of_a_file(tmp_path):
    images = [_row("a.jpg", "dusk"), _row("b.jpg")]
    source = _load(tmp_path, {"tags": LOOKED_FOR, "images": images})
    first, second = source.labels(0)["tags"], source.labels(1)["tags"]
    assert first.targets.tolist() == [1, 0, 0] and first.weights.tolist() == [1, 1, 0]
    assert second.targets.tolist() == [0, 0, 0] and second.weights.tolist() == [1, 1, 0]
    assert "maps" not in source.labels(0) and "boxes" not in source.labels(0)


def test_scores_and_weights_of_a_file(tmp_path):
    images = [
        _row(
            "a.jpg", "night", scores={"night": 0.8, "dusk": 0.9, "rain": 0.1}, weights={"dusk": 0.5}
        ),
        _row("b.jpg", weights={"rain": 0, "dusk": 0}),
    ]
    source = _load(tmp_path, {"tags": LOOKED_FOR, "images": images, "grade": "silver"})
    first, second = source.labels(0)["tags"], source.labels(1)["tags"]
    assert first.targets.tolist() == pytest.approx([0.9, 0.1, 0])
    assert first.weights.tolist() == pytest.approx([0.5, 1, 0]) and first.grade == Grade.SILVER
    assert second.weights.tolist() == [0, 0, 0], "dusk might be"


def test_names_that_lead_to_one_picture_are_one_and_others_are_told(tmp_path):
    images = [_row("./a.jpg", "dusk"), _row("images/b.jpg"), _row("c.jpg")]
    with pytest.warns(
        UserWarning, match=r"no tags of 1 of the 2 pictures .* of 2 others, such as c"
    ):
        source = _load(tmp_path, {"tags": LOOKED_FOR, "images": images}, missing="absent")
    assert source.tags.present.tolist() == [True, False]
    images[1]["file_name"] = str(tmp_path / "images/b.jpg")
    assert _load(tmp_path, {"tags": LOOKED_FOR, "images": images}).tags.present.all()


def test_tags_of_pictures_that_another_source_has_are_no_mistake(tmp_path):
    pictures, part = ("a.jpg", "b.jpg", "c.jpg"), [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}]
    (tmp_path / "part.json").write_text(json.dumps({"images": part}))
    content = {"tags": LOOKED_FOR, "images": [_row("a.jpg"), _row("c.jpg")]}
    source = _load(tmp_path, content, pictures, listed="part.json", missing="absent")
    assert source.tags.present.tolist() == [True, False]


def test_a_tag_of_which_the_file_knows_some_names_is_told(tmp_path):
    content = {"tags": ["dusk", "rain"], "images": [_row("a.jpg", "rain"), _row("b.jpg")]}
    source = _load(tmp_path, content)
    (note,) = source.notes
    assert note.startswith("source 's': has of tag 'night' the categories dusk but not night")
    assert "give `tags.covers` without 'night'" in note
    source = _load(tmp_path, content, covers=["rain"])
    assert source.notes == () and source.labels(1)["tags"].weights.tolist() == [0, 1, 0]


def test_a_picture_without_tags_was_not_looked_at(tmp_path):
    content = {"tags": LOOKED_FOR, "images": [_row("a.jpg"), {"file_name": "b.jpg"}]}
    source = _load(tmp_path, content, missing="absent")
    assert "tags" in source.labels(0) and "tags" not in source.labels(1)
    assert "tags" not in source.subset([1]).labels(0)
    dropped = _load(tmp_path, content, missing="drop")
    assert len(dropped) == 1 and "tags" in dropped.labels(0)
    with pytest.raises(InputError, match=r"no tags of b\.jpg.*missing: absent"):
        _load(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "needs to be an object"),
        ({"tags": [], "images": []}, "needs the list of all names"),
        ({"tags": ["night"], "images": [], "grade": "lead"}, "is gold or silver"),
        ({"tags": ["rain", "rain"], "images": []}, "twice"),
        ({"tags": ["rain"], "images": [{}]}, "objects with file_name"),
        (
            {"tags": ["rain"], "images": [_row("a.jpg"), _row("b.jpg"), _row("a.jpg", "rain")]},
            r"a\.jpg has tags in the images at positions 0, 2; keep one",
        ),
        ({"tags": ["rain"], "images": [_row("z.jpg")]}, "tags of none of the 2 pictures"),
        ({"tags": ["fog"], "images": [_row("a.jpg")]}, "'fog' belongs to no class.*data.tags"),
        ({"tags": ["rain"], "images": [_row("a.jpg", "fog"), _row("b.jpg")]}, "tags has 'fog'"),
        ({"tags": ["rain"], "images": [_row("a.jpg", scores={"rain": 2})]}, "it lies in"),
    ],
)
def test_mistakes_are_told(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        _load(tmp_path, content)


def _boxes(classes, ignore=None, coverage=(1, 1, 1), scores=None):
    n = len(classes)
    boxes = torch.tensor([[0.0, 0, 4, 4]] * n).reshape(n, 4)
    return BoxLabels.of(
        boxes,
        torch.tensor(classes, dtype=torch.long),
        3,
        scores=None if scores is None else torch.tensor(scores),
        ignore=None if ignore is None else torch.tensor(ignore),
        coverage=torch.tensor(coverage, dtype=torch.float32),
    )


DERIVED = BoxTags.of(
    ["cat", "dog", "car"],
    TagClasses(classes={"animal": ["cat", "dog"], "vehicle": ["car"]}, from_boxes=True),
)


def test_tags_follow_from_boxes():
    tags = DERIVED.labels(0, _boxes([1]))
    assert tags.targets.tolist() == [1, 0] and tags.weights.tolist() == [1, 1]
    nothing = DERIVED.labels(0, _boxes([]))
    assert nothing.targets.tolist() == [0, 0] and nothing.weights.tolist() == [1, 1]
    assert DERIVED.labels(0, None) is None


def test_tags_of_a_source_that_a_model_wrote_are_a_model_s_even_without_a_box(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    row = {"id": 1, "file_name": "a.png", "height": 4, "width": 6}
    content = {"images": [row], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    tags = TagClasses(classes=["cat"], from_boxes=True)
    for grade in ("gold", "silver"):
        (tmp_path / "a.json").write_text(json.dumps(content | {"info": {"grade": grade}}))
        source = CocoSource(images=".", annotations="a.json", covers=["cat"]).load(
            "s", tmp_path, LabelSpace.of(["cat"]), tmp_path / "cache", tags=tags
        )
        labels = source.labels(0)
        assert labels["tags"].targets.tolist() == [0] and labels["tags"].weights.tolist() == [1]
        assert labels["tags"].grade == source.derived(0, labels)["tags"].grade == source.grade
        assert source.grade == Grade[grade.upper()]
    silver_box = replace(_boxes([1]), grade=torch.tensor([1], dtype=torch.uint8))
    assert DERIVED.labels(0, silver_box).grade == Grade.SILVER


def test_absence_is_worth_the_least_coverage():
    tags = DERIVED.labels(0, _boxes([2], coverage=(0.5, 0, 0)))
    assert tags.targets.tolist() == [0, 1]
    assert tags.weights.tolist() == [0, 1], "nobody looked for dogs; a car is a car"


def test_doubtful_boxes_make_a_tag_unknown():
    tags = DERIVED.labels(0, _boxes([0, 2], ignore=[Ignore.CLASS, Ignore.REGION]))
    assert tags.weights.tolist() == [0, 0]
    both = DERIVED.labels(0, _boxes([0, 1], ignore=[Ignore.CLASS, Ignore.NO], scores=[0.9, 0.7]))
    assert both.targets.tolist() == pytest.approx([0.7, 0]) and both.weights.tolist() == [1, 1]


def test_a_class_of_boxes_without_a_tag_is_refused():
    with pytest.raises(InputError, match="'car' belongs to no class"):
        BoxTags.of(["cat", "car"], TagClasses(classes=["cat"], from_boxes=True))
    dropped = BoxTags.of(["cat", "car"], TagClasses(classes=["cat"], unmapped="drop"))
    assert dropped.members.tolist() == [[True, False]]


def _batch(*labels, size=(64, 64)):
    return Batch.of(
        [
            Sample(
                torch.zeros(3, *size, dtype=torch.uint8),
                {} if x is None else {"tags": x},
                ImageInfo(i, "", *size, "s"),
            )
            for i, x in enumerate(labels)
        ]
    )


def test_the_loss_is_binary_cross_entropy_of_what_is_known():
    task = TagsConfig(at="p5").build("t", [4], [32], 3, ["a", "b", "c"])
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = [
        TagLabels(torch.tensor([1.0, 0, 0.3]), torch.tensor([1.0, 1, 1])),
        TagLabels(torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0.5, 0])),
    ]
    means = logits.mean((2, 3))
    each = F.binary_cross_entropy_with_logits(
        means, torch.stack([x.targets for x in labels]), reduction="none"
    )
    expected = (each[0].sum() + 0.5 * each[1, 1]) / 4
    torch.testing.assert_close(task.loss([logits], _batch(*labels))["tag"], expected)


def test_the_loss_by_finite_differences():
    task = TagsConfig(at="p5").build("t", [4], [32], 3, ["a", "b", "c"])
    batch = _batch(TagLabels(torch.tensor([1.0, 0, 0.3]), torch.tensor([1.0, 0, 0.7])), None)
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: task.loss([x], batch)["tag"], (logits,))


def test_padding_does_not_count():
    logits = torch.randn(1, 3, 4, 4)
    wild = logits.clone()
    wild[:, :, 2:], wild[:, :, :, 3:] = 1e4, -1e4
    sizes = torch.tensor([[64, 80]])
    expected = logits[:, :, :2, :3].mean((2, 3))
    torch.testing.assert_close(pooled(wild, sizes, 32), expected)
    torch.testing.assert_close(pooled(logits, sizes, 32), expected)


def test_tags_hang_on_one_level():
    with pytest.raises(InputError, match="hang on one"):
        TagsConfig(at="fpn").build("t", [4, 4], [16, 32], 2, ["a", "b"])


def test_the_prior_is_the_first_probability():
    task = TagsConfig(at="c5", prior=0.2).build("t", [4], [32], 2, ["a", "b"])
    found = task.decode(task([torch.zeros(1, 4, 2, 2)]), torch.tensor([[64, 64]]))[0]
    assert found.targets.tolist() == pytest.approx([0.2, 0.2])


def test_average_precision_by_hand():
    scores, true = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    once = np.ones((1, 4))
    assert average_precision(scores, true, once) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(4), true, once) == pytest.approx(0.5), (
        "ties have one precision"
    )
    assert math.isnan(average_precision(scores, np.zeros(4, bool), once)[0])


def test_a_tag_that_is_true_nowhere_has_no_part_in_the_means():
    metric = TagMetric(["a", "b"])
    found = [TagLabels(torch.tensor([0.9, 0.9]), torch.ones(2))]
    metric.update(
        found, [TagLabels(torch.tensor([1.0, 0]), torch.ones(2))], [ImageInfo(0, "", 4, 4, "s")]
    )
    values = metric.compute()
    assert values["F1@.5"] == values["mAP"] == 1 and math.isnan(values["AP/b"])


def test_the_metric_leaves_out_what_nobody_knows():
    metric = TagMetric(["a", "b"])
    infos = [ImageInfo(i, "", 4, 4, "s") for i in range(3)]
    ones = torch.ones(2)
    found = [TagLabels(torch.tensor(x), ones) for x in ([0.9, 0.1], [0.8, 0.1], [0.2, 0.1])]
    truth = [
        TagLabels(torch.tensor([1.0, 0]), ones),
        TagLabels(torch.tensor([0.0, 1]), torch.tensor([0.0, 0])),
        TagLabels(torch.tensor([0.0, 0]), ones),
    ]
    metric.update(found, truth, infos)
    values = metric.compute()
    assert values["AP/a"] == 1 and values["mAP"] == 1 and values["F1@.5"] == 1
    assert math.isnan(values["AP/b"])
