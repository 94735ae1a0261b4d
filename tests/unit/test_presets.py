"""What each preset does, against the peers' formulas written out; and how it meets a run's own settings."""

import math

import pytest
import torch
from test_config import MINIMAL
from torch.nn import functional as F

from detmtl.config import read_settings, settings_from, write_settings
from detmtl.losses.normalizer import MOMENTUM, START
from detmtl.models.boxcoder import encode
from detmtl.models.fpn import FPN
from detmtl.models.matching import match
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import build_model
from detmtl.tasks.presets import PRESETS, detection, pyramid

STRIDES, C = [8, 16, 32, 64, 128], 3
SIZES = [32 * 2 ** (i / 3) for i in range(3)]


def _settings(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_settings(path)


def _with(line, text=MINIMAL):
    return f"{line}\n{text}"


@pytest.mark.parametrize("name", PRESETS)
def test_one_line_sets_pyramid_and_task(name, tmp_path):
    settings = _settings(tmp_path, _with(f"preset: {name}"))
    assert settings.model.fpn == pyramid(name)
    assert settings.tasks["boxes"] == detection(name)
    assert settings.model.fpn.channels == 256 and settings.tasks["boxes"].loss.alpha == 0.25
    write_settings(settings, tmp_path / "resolved.yaml")
    assert f"preset: {name}" in (tmp_path / "resolved.yaml").read_text()
    assert read_settings(tmp_path / "resolved.yaml") == settings
    assert settings_from(settings.resolved()) == settings


def test_every_preset_says_all_that_peers_differ_on():
    """A key that one preset sets and another forgets would quietly be ours."""

    def keys(tree):
        return {
            (*((outer,)), *inner) if isinstance(value, dict) else (outer,)
            for outer, value in tree.items()
            for inner in (keys(value) if isinstance(value, dict) else [()])
        }

    first = keys(PRESETS["torchvision"].task)
    for name, preset in PRESETS.items():
        assert preset.sources and keys(preset.fpn) == keys(PRESETS["torchvision"].fpn), name
        assert keys(preset.task) - {("loss", "beta")} == first, name


def test_without_a_preset_nothing_changes(tmp_path):
    settings = _settings(tmp_path, MINIMAL)
    assert settings.preset is None
    assert settings.tasks["boxes"].loss.normalizer == "source"
    assert settings.model.fpn.p6_from == "p5" and settings.model.fpn.extra_relu


def test_own_settings_come_first_key_by_key(tmp_path):
    own = "{kind: detection, head: {depth: 1}, loss: {box: l1}, anchors: {offset: 0.25}}"
    text = _with("preset: keras", MINIMAL.replace("{kind: detection}", own))
    text = text.replace("{name: resnet18}", "{name: resnet18}\n  fpn: {channels: 64}")
    settings = _settings(tmp_path, text)
    boxes = settings.tasks["boxes"]
    assert boxes.head.depth == 1 and boxes.head.init == "orthogonal"
    assert boxes.loss.box == "l1" and boxes.loss.beta == 1
    assert boxes.anchors.offset == 0.25 and boxes.anchors.variance == (0.1, 0.1, 0.2, 0.2)
    assert settings.model.fpn.channels == 64 and settings.model.fpn.p6_from == "c5"
    path = tmp_path / "run.yaml"
    changed = read_settings(path, ["preset=mmdet", "tasks.boxes.test.detections=7"])
    assert changed.tasks["boxes"].test.detections == 7
    assert changed.tasks["boxes"].matching.forced == "forcing"


def test_other_kinds_of_tasks_stay_as_they_are(tmp_path):
    text = MINIMAL.replace(
        "boxes: {kind: detection}", "boxes: {kind: detection}\n  sky: {kind: semantic}"
    ).replace("  batch_size", "  maps: {classes: [sky, rest]}\n  batch_size")
    plain = _settings(tmp_path, text)
    filled = _settings(tmp_path, _with("preset: torchvision", text))
    assert (
        filled.tasks["sky"] == plain.tasks["sky"] and filled.tasks["boxes"] != plain.tasks["boxes"]
    )


class OwnConfig(DetectionConfig):
    kind: str


def test_a_detection_task_of_ones_own_follows_the_preset_too(tmp_path):
    text = (
        MINIMAL.replace("{kind: detection}", '{kind: "test_presets:OwnConfig"}')
        + "preset: torchvision\n"
    )
    own = _settings(tmp_path, text).tasks["boxes"]
    assert isinstance(own, OwnConfig)
    assert own.loss == detection("torchvision").loss != DetectionConfig().loss
    with pytest.raises(InputError, match="cannot import 'test_presets:Nobody'"):
        _settings(tmp_path, text.replace("OwnConfig", "Nobody"))


def test_mistakes_beside_a_preset_are_told_with_their_lines(tmp_path):
    with pytest.raises(InputError) as error:
        _settings(tmp_path, _with("preset: pytorch"))
    assert "run.yaml:1: preset" in str(error.value) and "torchvision_v2" in str(error.value)
    own = "{kind: detection, head: {dept: 1}}"
    text = _with("preset: keras", MINIMAL.replace("{kind: detection}", own))
    with pytest.raises(InputError, match=r"run.yaml:12: tasks.boxes.head.dept.*'depth'"):
        _settings(tmp_path, text)
    with pytest.raises(InputError, match="model"):
        _settings(tmp_path, text.replace("{name: resnet18}", "7"))


@pytest.mark.parametrize("name", PRESETS)
def test_networks_of_presets_learn_and_find(name, tmp_path):
    text = _with(f"preset: {name}", MINIMAL.replace("resnet18", "test_efficientnet"))
    text = text.replace("test_efficientnet}", "test_efficientnet}\n  fpn: {channels: 16}")
    settings = _settings(tmp_path, text)
    model = build_model(settings.model, settings.tasks, ["cat", "dog"])
    batch = _batch([_labels(2)], 2)
    outputs = model(batch.images)["boxes"]
    terms = model.tasks["boxes"].loss(outputs, batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(x) and x > 0 for x in terms.values())
    found = model.tasks["boxes"].decode(outputs, batch.sizes)
    assert len(found) == 1 and len(found[0]) <= settings.tasks["boxes"].test.detections


def _first_cell(name):
    """Returns the anchors of the first position of P3."""
    anchors = detection(name).anchors.build(STRIDES)
    return anchors([torch.zeros(1, 1, -(-64 // s), -(-96 // s)) for s in STRIDES])[0][:9]


def _box(x, y, width, height):
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def test_anchors_of_detectron2_run_by_size_around_the_corner():
    expected = [
        _box(0, 0, math.sqrt(s * s / r), math.sqrt(s * s / r) * r)
        for s in SIZES
        for r in (0.5, 1, 2)
    ]
    torch.testing.assert_close(_first_cell("detectron2"), torch.tensor(expected))


def test_anchors_of_mmdet_run_by_ratio_around_the_corner():
    expected = [_box(0, 0, s / r**0.5, s * r**0.5) for r in (0.5, 1, 2) for s in SIZES]
    torch.testing.assert_close(_first_cell("mmdet"), torch.tensor(expected))


def test_anchors_of_keras_run_by_size_around_the_middle_with_ratios_of_width_to_height():
    expected = [_box(4, 4, s * r**0.5, s / r**0.5) for s in SIZES for r in (0.5, 1, 2)]
    torch.testing.assert_close(_first_cell("keras"), torch.tensor(expected))


@pytest.mark.parametrize("name", ["torchvision", "torchvision_v2"])
def test_anchors_of_torchvision_are_whole_pixels(name):
    cell = _first_cell(name)
    assert torch.equal(cell, cell.round())
    assert cell[3].tolist() == [-16, -16, 16, 16] and cell[4].tolist() == [-20, -20, 20, 20]


@pytest.mark.parametrize("name", PRESETS)
def test_p6_and_p7(name):
    fpn = FPN([4, 6, 8], 16, **_of_fpn(name))
    features = [torch.randn(1, c, 64 // s, 64 // s) for c, s in ((4, 8), (6, 16), (8, 32))]
    levels = fpn(features)
    source = features[-1] if name not in ("torchvision",) else levels[2]
    p6, p7 = (block[0] for block in fpn.extras)
    torch.testing.assert_close(levels[3], p6(source))
    torch.testing.assert_close(levels[4], p7(levels[3] if name == "mmdet" else levels[3].relu()))
    assert (levels[3] < 0).any()


def _of_fpn(name):
    settings = pyramid(name)
    return {"p6_from": settings.p6_from, "extra_relu": settings.extra_relu, "init": settings.init}


def test_initializations():
    torch.manual_seed(0)
    weight = pyramid("mmdet", channels=64).build([64, 64, 300], [8, 16, 32]).laterals[2][0].weight
    bound = math.sqrt(6 / (64 + 300))
    assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
    head = detection("keras").head.build(32, 9, C)
    rows = head.class_tower[0][0].weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-5)
    assert len(head.class_tower) == 3
    torch.testing.assert_close(head.class_logits.bias.sigmoid(), torch.full((27,), 0.01))


def _labels(num_classes=C):
    boxes = torch.tensor([[4.0, 6, 40, 38], [30, 10, 90, 60]])
    return BoxLabels.of(boxes, torch.tensor([0, 1]), num_classes)


def _batch(labels, num_classes=C):
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    infos = [ImageInfo(i, "", 64, 96, "s") for i in range(len(labels))]
    return Batch.of(
        [Sample(image, {"boxes": x}, info) for x, info in zip(labels, infos, strict=True)]
    )


def _task(name, **own):
    return detection(name, **own).build("boxes", [8] * 5, STRIDES, C, list("abc"))


def _outputs(pictures, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(-(-64 // s), -(-96 // s)) for s in STRIDES]
    logits = [torch.randn(pictures, 9 * C, *s, generator=g) - 3 for s in shapes]
    return logits + [torch.randn(pictures, 9 * 4, *s, generator=g) for s in shapes]


def _deltas(outputs):
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in outputs[5:]], 1)


def _matched(task, batch):
    """Returns anchors, positions of positives and their boxes, of the first picture."""
    rules = task._loss.rules
    anchors = task.anchors.flat(_outputs(1)[:5])
    matches = match(anchors, batch.labels["boxes"], rules)
    rows = matches.positive[0].nonzero()[:, 0]
    return anchors[rows], rows, batch.labels["boxes"].boxes[0][matches.index[0, rows]]


def test_normalizer_of_detectron2_is_a_moving_average_of_all_positives():
    task, batch, outputs = _task("detectron2"), _batch([_labels(), _labels()]), _outputs(2)
    plain = _task("detectron2", loss={"normalizer": "batch"}).loss(outputs, batch)
    _, rows, _ = _matched(task, batch)
    average = START
    for _ in range(3):
        average = MOMENTUM * average + (1 - MOMENTUM) * 2 * len(rows)
        terms = task.loss(outputs, batch)
        torch.testing.assert_close(terms["class"], plain["class"] * 2 * len(rows) / average)
        torch.testing.assert_close(terms["box"], plain["box"] * 2 * len(rows) / average)
    empty = task.loss(outputs, _batch([BoxLabels.empty(C)] * 2))
    assert task.density.steady == pytest.approx(MOMENTUM * average + (1 - MOMENTUM) * 1)
    assert torch.isfinite(empty["class"])
    again = _task("detectron2")
    again.load_state_dict(task.state_dict())  # a run that is continued goes on with it
    assert again.density.steady == task.density.steady


def test_box_loss_of_detectron2_is_l1():
    task, batch, outputs = _task("detectron2"), _batch([_labels()]), _outputs(1)
    anchors, rows, boxes = _matched(task, batch)
    l1 = (_deltas(outputs)[0, rows] - encode(anchors, boxes)).abs().sum()
    expected = l1 / (MOMENTUM * START + (1 - MOMENTUM) * len(rows))
    torch.testing.assert_close(task.loss(outputs, batch)["box"], expected)


def test_box_loss_of_keras_is_the_mean_of_smooth_l1_in_units_of_the_variance():
    task, batch, outputs = _task("keras"), _batch([_labels()]), _outputs(1)
    anchors, rows, boxes = _matched(task, batch)
    wanted = encode(anchors, boxes) / torch.tensor([0.1, 0.1, 0.2, 0.2])
    loss = F.smooth_l1_loss(_deltas(outputs)[0, rows], wanted, reduction="none").mean(1).sum()
    torch.testing.assert_close(task.loss(outputs, batch)["box"], loss / len(rows))


@pytest.mark.parametrize("box", ["giou", "l1"])
def test_variance_is_the_same_in_loss_and_decoding(box):
    """Deltas that the loss calls perfect decode to the labels."""
    task, batch = (
        _task("keras", loss={"box": box}, test={"score_threshold": 0.0}),
        _batch([_labels()]),
    )
    anchors, rows, boxes = _matched(task, batch)
    perfect = encode(anchors, boxes) / torch.tensor([0.1, 0.1, 0.2, 0.2])
    flat = torch.zeros(1, sum(x.shape[1] // 4 * x[0, 0].numel() for x in _outputs(1)[5:]), 4)
    flat[0, rows] = perfect
    outputs, first = _outputs(1), 0
    for i in range(5, 10):
        height, width = outputs[i].shape[2:]
        part = flat[0, first : first + height * width * 9].view(1, height, width, 36)
        outputs[i], first = part.permute(0, 3, 1, 2), first + height * width * 9
    assert task.loss(outputs, batch)["box"] < 1e-4
    logits = torch.full((flat.shape[1], C), -20.0)
    logits[rows, 0] = 5.0
    first = 0
    for i in range(5):
        height, width = outputs[i].shape[2:]
        part = logits[first : first + height * width * 9].reshape(1, height, width, 9 * C)
        outputs[i], first = part.permute(0, 3, 1, 2), first + height * width * 9
    (found,) = task.decode(outputs, batch.sizes)
    for box_found in found[found.scores > 0.5].boxes:
        assert (box_found - _labels().boxes).abs().amax(1).min() < 1e-2


def test_keras_suppresses_across_classes_from_a_score_of_one_half():
    test = detection("keras").test
    assert test.class_agnostic and test.score_threshold == 0.5 and test.detections == 100
