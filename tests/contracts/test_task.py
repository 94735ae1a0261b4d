"""What the trainer, the evaluator and the exporter ask of every task."""

from dataclasses import replace

import pytest
import torch

from detmtl.structures.depth import DepthLabels
from detmtl.structures.details import Details
from detmtl.structures.labels import (
    OTHER,
    UNKNOWN,
    BoxLabels,
    Ignore,
    Labels,
    MapLabels,
    TagLabels,
)
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig
from detmtl.tasks.task import Task

STRIDES = [8, 16, 32]
NAMES = ["a", "b"]


def _detection() -> tuple[Task, Labels]:
    task = DetectionConfig().build("boxes", [8, 8, 8], STRIDES, len(NAMES), NAMES)
    boxes = torch.tensor([[4.0, 4, 30, 40]])
    return task, BoxLabels.of(boxes, torch.tensor([1]), len(NAMES))


def _semantic() -> tuple[Task, Labels]:
    task = SemanticConfig().build("map", [8, 8, 8], STRIDES, len(NAMES), NAMES)
    classes = torch.zeros(64, 64, dtype=torch.uint8)
    classes[20:50, 10:40] = 1
    return task, MapLabels(classes, None, torch.ones(len(NAMES)))


def _tags() -> tuple[Task, Labels]:
    task = TagsConfig(at="p5").build("tags", [8], STRIDES[-1:], len(NAMES), NAMES)
    return task, TagLabels(torch.tensor([0.0, 1]), torch.ones(len(NAMES)))


def _depth() -> tuple[Task, Labels]:
    task = DepthConfig().build("depth", [8, 8, 8], STRIDES, 0, [])
    depth = torch.linspace(2, 40, 64).expand(64, 64).clone()
    depth[:8] = 0
    return task, DepthLabels(depth)


def _described(details: Details) -> Labels:
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 60]])
    return replace(BoxLabels.of(boxes, torch.tensor([1, 0]), len(NAMES)), details=details)


def _attributes() -> tuple[Task, Labels]:
    names = ["color/red", "color/blue", "kind/x", "kind/y", "kind/z"]
    task = AttributesConfig().build("attributes", [8, 8, 8], STRIDES, 2, NAMES, names=names)
    return task, _described(Details(attributes=torch.tensor([[1, 2], [0, -1]])))


def _masks() -> tuple[Task, Labels]:
    task = MasksConfig().build("masks", [8, 8, 8], STRIDES, len(NAMES), NAMES)
    masks = torch.zeros(2, 56, 56, dtype=torch.uint8)
    masks[:, 10:40, 5:50] = 1
    return task, _described(Details(masks=masks))


def _keypoints() -> tuple[Task, Labels]:
    names = ["b/nose", "b/tail", "a/tip"]
    task = KeypointsConfig().build("points", [8, 8, 8], STRIDES, len(NAMES), NAMES, names=names)
    points = [[[8.0, 9, 2], [20, 30, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [40, 40, 2]]]
    return task, _described(Details(keypoints=torch.tensor(points)))


TASKS = {
    "masks": _masks,
    "keypoints": _keypoints,
    "detection": _detection,
    "semantic": _semantic,
    "tags": _tags,
    "depth": _depth,
    "attributes": _attributes,
}


@pytest.fixture(params=TASKS)
def task_and_labels(request):
    torch.manual_seed(0)
    return TASKS[request.param]()


def _features(task, pictures=2):
    """Returns features of the levels that the task names, p3 to p5."""
    return [torch.randn(pictures, 8, 64 >> int(x[1]), 64 >> int(x[1])) for x in task.levels]


def _batch(task, *labels):
    samples = [
        Sample(
            torch.zeros(3, 64, 64, dtype=torch.uint8),
            {} if x is None else {task.labels: x},
            ImageInfo(i, f"{i}.jpg", 64, 64, "s"),
        )
        for i, x in enumerate(labels)
    ]
    return Batch.of(samples)


def test_outputs_are_a_list_of_tensors(task_and_labels):
    task, _ = task_and_labels
    outputs = task(_features(task))
    assert isinstance(outputs, list) and all(isinstance(x, torch.Tensor) for x in outputs)
    assert all(len(x) == 2 for x in outputs)
    assert all(level in ("p3", "p4", "p5") for level in task.levels)


def test_terms_are_float32_scalars_that_reach_every_parameter(task_and_labels):
    task, labels = task_and_labels
    for dtype in (torch.float32, torch.bfloat16):
        task.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            terms = task.loss(task(_features(task)), _batch(task, labels, labels))
        assert terms and task.terms in (None, tuple(terms))
        for term in terms.values():
            assert term.shape == () and term.dtype == torch.float32 and torch.isfinite(term)
        sum(terms.values()).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.parameters())


def test_nobody_looked_means_no_term(task_and_labels):
    task, _ = task_and_labels
    assert task.loss(task(_features(task)), _batch(task, None, None)) == {}


def _unlearnable(labels):
    """Returns labels of every kind from which nothing can be learned."""
    if isinstance(labels, MapLabels):
        other = torch.full_like(labels.classes, OTHER)  # of what? every class is covered fully
        return [replace(labels, classes=x) for x in (other, torch.full_like(other, UNKNOWN))]
    if isinstance(labels, TagLabels):
        return [replace(labels, weights=torch.zeros_like(labels.weights))]
    if isinstance(labels, DepthLabels):
        return [replace(labels, depth=torch.zeros_like(labels.depth))]
    if labels.details is None:  # nobody looked
        none = BoxLabels.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), len(NAMES))
        return [replace(none, coverage=torch.zeros(len(NAMES)))]
    return [replace(labels, ignore=torch.full_like(labels.ignore, int(Ignore.REGION)))]


def test_labels_from_which_nothing_is_learned_mean_no_term(task_and_labels):
    task, labels = task_and_labels
    for nothing in _unlearnable(labels):
        batch = _batch(task, nothing, None)
        assert task.loss(task(_features(task)), batch) == {}
        assert task.loss(task(_features(task)), batch.to("cpu")) == {}
        # nor do they change what is learned from others
        outputs = [x[:1] for x in task(_features(task))]
        beside = task.loss(
            [x.expand(2, *x.shape[1:]) for x in outputs], _batch(task, labels, nothing)
        )
        alone = task.loss(outputs, _batch(task, labels))
        torch.testing.assert_close(dict(beside), dict(alone))
        known = batch.labels[task.labels].unpadded([[64, 64]] * 2)[0]
        looked = not isinstance(nothing, BoxLabels) or bool(nothing.coverage.any())
        assert (known is not None) == looked


def test_a_picture_that_nobody_looked_at_has_no_gradient(task_and_labels):
    task, labels = task_and_labels
    outputs = [x.detach().requires_grad_() for x in task(_features(task))]
    sum(task.loss(outputs, _batch(task, labels, None)).values()).backward()
    assert all((x.grad[1] == 0).all() for x in outputs)
    assert any((x.grad[0] != 0).any() for x in outputs)


def test_loss_does_not_change_outputs_or_batch(task_and_labels):
    task, labels = task_and_labels
    outputs = task(_features(task))
    kept = [x.clone() for x in outputs]
    batch = _batch(task, labels, labels)
    first = task.loss(outputs, batch)
    second = task.loss(outputs, batch)
    assert all(torch.equal(x, y) for x, y in zip(outputs, kept, strict=True))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_decoding_gives_labels_per_picture(task_and_labels):
    task, labels = task_and_labels
    with torch.no_grad():
        about = {} if task.of is None else {"boxes": [labels, labels[torch.tensor([], dtype=int)]]}
        found = task.decode(task(_features(task)), torch.tensor([[64, 64], [50, 40]]), **about)
    assert len(found) == 2 and all(type(x) is type(labels) for x in found)
    assert task.of is None or all(x.details is not None for x in found)


def test_metric_scores_predictions(task_and_labels):
    task, labels = task_and_labels
    metric = task.metric()
    infos = [ImageInfo(i, "", 64, 64, "s") for i in range(2)]
    metric.update([labels, labels], [labels, None], infos)
    other = task.metric()
    other.merge([metric.state()])
    values = metric.compute()
    assert values and all(isinstance(v, float) for v in values.values())
    assert next(iter(values.values())) == pytest.approx(1)
    merged = other.compute()
    assert merged.keys() == values.keys()
    assert next(iter(merged.values())) == pytest.approx(1)
