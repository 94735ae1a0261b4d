"""The control: a task with the labels of other pictures."""

import os
import sys
from dataclasses import replace

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from diagnosis_stand_ins import MODEL, NAMES, TASKS, batch_of, model_of, picture

from detmtl.config import settings_from
from detmtl.structures.details import Details
from detmtl.structures.errors import InputError
from detmtl.structures.sample import Batch, Sample
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.multitask import build_model
from detmtl.tasks.noise import KIND, NoiseConfig
from detmtl.tasks.task import decode_all

NOISY = {name: NoiseConfig(of=task) for name, task in TASKS.items()}


def test_each_picture_has_the_labels_of_the_next_one():
    plain, noisy = model_of(), model_of(NOISY)
    samples = [picture(i) for i in range(3)]
    turned = [replace(s, labels=samples[(i + 1) % 3].labels) for i, s in enumerate(samples)]
    batch, expected = Batch.of(samples), Batch.of(turned)
    outputs = plain(batch.images)
    for name in TASKS:
        mine = noisy.tasks[name].loss(outputs[name], batch)
        other = plain.tasks[name].loss(outputs[name], expected)
        true = plain.tasks[name].loss(outputs[name], batch)
        assert mine.keys() == other.keys()
        for term in mine:
            torch.testing.assert_close(mine[term], other[term], msg=f"{name}/{term}")
        assert any(not torch.allclose(mine[t], true[t]) for t in mine)


def test_the_task_is_otherwise_itself():
    plain, noisy = model_of(), model_of(NOISY)
    images = batch_of(0).images
    a, b = plain(images), noisy(images)
    assert all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    for name, task in noisy.tasks.items():
        assert (task.name, task.labels) == (name, plain.tasks[name].labels)
        assert type(task.metric()) is type(plain.tasks[name].metric())
        assert task.class_names == tuple(NAMES)


VOCABULARY = {"attributes": ("color/red", "color/blue"), "keypoints": ("a/nose", "b/tip")}
ABOUT = {"attributes": AttributesConfig(), "masks": MasksConfig(), "keypoints": KeypointsConfig()}


def described(number: int) -> Sample:
    """Returns a picture whose one box has an attribute, a mask and a keypoint."""
    sample = picture(number, ("boxes",))
    boxes = sample.labels["boxes"]
    masks = torch.zeros(1, 56, 56, dtype=torch.uint8)
    masks[:, 20 + number :] = 1
    points = torch.zeros(1, 2, 3)
    points[0, number % 2] = torch.tensor([*boxes.boxes[0, :2].add(9 + number).tolist(), 2])
    details = Details(attributes=torch.tensor([[number % 2]]), masks=masks, keypoints=points)
    return replace(sample, labels={"boxes": replace(boxes, details=details)})


@pytest.mark.parametrize("kind", ABOUT)
def test_a_task_about_boxes_learns_what_is_said_of_the_next_picture_s(kind):
    def model(task):
        torch.manual_seed(0)
        tasks = {"boxes": TASKS["boxes"], kind: task}
        return build_model(MODEL, tasks, NAMES, other_names=VOCABULARY)

    plain, noisy = model(ABOUT[kind]), model(NoiseConfig(of=ABOUT[kind]))
    samples = [described(i) for i in range(2)]
    turned = [replace(s, labels=samples[1 - i].labels) for i, s in enumerate(samples)]
    batch, expected = Batch.of(samples), Batch.of(turned)
    outputs = plain(batch.images)
    (mine,) = noisy.tasks[kind].loss(outputs[kind], batch).values()
    (other,) = plain.tasks[kind].loss(outputs[kind], expected).values()
    (true,) = plain.tasks[kind].loss(outputs[kind], batch).values()
    torch.testing.assert_close(mine, other)
    assert not torch.allclose(mine, true)
    found = decode_all(dict(noisy.tasks.items()), outputs, batch.sizes)
    assert getattr(found[kind][0].details, kind) is not None
    assert type(noisy.tasks[kind].metric()) is type(plain.tasks[kind].metric())


def test_what_a_task_about_boxes_needs_is_asked_for_its_noise_too():
    noise = NoiseConfig(of=AttributesConfig())
    assert (noise.learns, noise.vocabulary) == ("attributes", "attributes")
    assert NoiseConfig(of=TASKS["map"]).learns is None
    with pytest.raises(InputError, match=r"tasks\.a: learns attributes, but data\.details"):
        build_model(MODEL, {"boxes": TASKS["boxes"], "a": noise}, NAMES)


def test_one_picture_has_no_other():
    noisy, batch = model_of(NOISY), batch_of(0, size=1)
    outputs = noisy(batch.images)
    with pytest.raises(InputError, match=r"tasks\.map: noise takes .* set data\.batch_size"):
        noisy.tasks["map"].loss(outputs["map"], batch)


def test_silent_stays_silent():
    noisy, batch = model_of(NOISY), batch_of(0, ("boxes",))
    outputs = noisy(batch.images)
    assert noisy.tasks["map"].loss(outputs["map"], batch) == {}


def test_in_yaml_it_is_a_kind_from_elsewhere():
    coco = {"kind": "coco", "images": "i", "annotations": "a.json"}
    run = {
        "data": {
            "root": ".",
            "classes": ["a"],
            "sources": {"g": coco},
            "val": coco,
            "batch_size": 2,
        },
        "model": {"backbone": {"name": "resnet18"}},
        "tasks": {"noise": {"kind": KIND, "of": {"kind": "detection", "head": {"depth": 1}}}},
        "mix": {"mode": "gold"},
        "train": {"steps": 1},
        "export": {"format": None},
    }
    settings = settings_from(run)
    assert settings.tasks["noise"].of.head.depth == 1
    assert settings_from(settings.resolved()) == settings
    run["tasks"]["noise"]["of"]["hed"] = {}
    with pytest.raises(InputError, match="hed"):
        settings_from(run)
