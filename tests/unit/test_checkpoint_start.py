"""Starting from another run's checkpoint: what is taken, by which names, and what is told."""

import pytest
import torch

from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.errors import InputError
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.checkpoint_start import CheckpointStartSettings
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.noise import NoiseConfig
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.starts import StartSettings
from detmtl.tasks.tags import TagsConfig
from detmtl.tasks.torchvision_start import TorchvisionStartSettings
from detmtl.yaml_settings import checked

TASKS = {
    "boxes": DetectionConfig(),
    "map": SemanticConfig(),
    "tags": TagsConfig(),
    "far": DepthConfig(),
    "about": AttributesConfig(),
    "shapes": MasksConfig(),
    "points": KeypointsConfig(),
}
NAMES = {
    "boxes": ("cat", "dog", "cow"),
    "maps": ("grass", "sky", "road"),
    "tags": ("night", "rain"),
    "depth": (),
    "attributes": ("color/red", "color/blue"),
    "keypoints": ("cat/nose", "dog/nose"),
}
DATA = {
    "maps": {"classes": list(NAMES["maps"])},
    "tags": {"classes": list(NAMES["tags"])},
    "details": {
        "attributes": {"color": ["red", "blue"]},
        "keypoints": {"cat": ["nose"], "dog": ["nose"]},
    },
}


def _built(tasks, names, seed, backbone=None, **model):
    torch.manual_seed(seed)
    settings = ModelSettings(
        backbone=BackboneSettings(**{"name": "test_efficientnet", **(backbone or {})}),
        **{"fpn": FPNSettings(channels=16), **model},
    )
    built = build_model(settings, tasks, names["boxes"], other_names=names)
    return settings, built


def _saved(path, tasks=TASKS, names=NAMES, **how):
    settings, model = _built(tasks, names, 0, **how)
    with torch.no_grad():  # every weight is told from one of a fresh network
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.startswith("normalize."):
                value.add_(torch.rand_like(value))
    tree = {
        "model": settings.model_dump(mode="json"),
        "tasks": {k: v.model_dump(mode="json") for k, v in tasks.items()},
        "data": DATA,
    }
    content = {"format": 1, "settings": tree, "classes": list(names["boxes"]), "step": 1}
    torch.save({**content, "model": model.state_dict()}, path)
    return model


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    path = tmp_path_factory.mktemp("before") / "best.pt"
    return path, _saved(path)


def _started(path, tasks=TASKS, names=NAMES, how=None, **start):
    given = CheckpointStartSettings(kind="checkpoint", path=str(path), **start)
    return _built(tasks, names, 1, start=given, **(how or {}))[1]


def _weights(model, part=""):
    found = model.get_submodule(part).state_dict() if part else model.state_dict()
    return {k: v for k, v in found.items() if "density" not in k}


def _same(a, b, part=""):
    mine, theirs = _weights(a, part), _weights(b, part)
    assert mine.keys() == theirs.keys()
    return {k: torch.equal(mine[k], theirs[k]) for k in mine}


def test_the_same_tasks_start_whole(before):
    model = _started(before[0])
    assert all(_same(model, before[1]).values())
    assert model.started.startswith(
        f"Starting from {before[0]}: backbone, pyramid, boxes (class rows"
    )
    assert "shapes (whole)" in model.started and "afresh" not in model.started
    fresh = _built(TASKS, NAMES, 1)[1]
    changed = [k for k, same in _same(fresh, before[1]).items() if not same]
    assert {k.split(".")[0] for k in changed} >= {"backbone", "fpn", "tasks"}


def test_what_the_normalizer_remembers_is_of_the_other_runs_sources(before):
    assert before[1].tasks["boxes"].density.seen.abs().sum() > 0
    assert _started(before[0]).tasks["boxes"].density.seen.abs().sum() == 0


def test_class_rows_find_each_other_by_name_in_every_task(before):
    """New names, fewer names, another order."""
    names = {
        "boxes": ("dog", "gnome", "cat", "hen"),
        "maps": ("road", "mud"),
        "tags": ("rain", "snow", "night"),
        "depth": (),
        "attributes": ("color/blue", "color/green"),
        "keypoints": ("dog/nose",),
    }
    model, theirs = _started(before[0], names=names), before[1]
    told = model.started
    assert "boxes (class rows of dog, cat; fresh: gnome, hen)" in told
    assert "map (class rows of road; fresh: mud)" in told
    assert "tags (class rows of rain, night; fresh: snow)" in told
    assert "about (class rows of color/blue; fresh: color/green)" in told
    assert "points (class rows of dog/nose)" in told
    fresh = _built(TASKS, names, 1)[1]
    for layer, key in (
        ("tasks.boxes.head.class_logits", "boxes"),
        ("tasks.map.head.logits", "maps"),
        ("tasks.tags.head", "tags"),
        ("tasks.about.head.last", "attributes"),
        ("tasks.points.head.last", "keypoints"),
    ):
        for part in ("weight", "bias"):
            own, given, first = (
                getattr(m.get_submodule(layer), part).detach().unflatten(0, (-1, len(n[key])))
                for m, n in ((model, names), (theirs, NAMES), (fresh, names))
            )
            for row, name in enumerate(names[key]):
                if name in NAMES[key]:
                    assert torch.equal(own[:, row], given[:, NAMES[key].index(name)])
                else:
                    assert torch.equal(own[:, row], first[:, row])
    rest = {k for k, same in _same(model, theirs, "backbone").items() if not same}
    assert not rest and all(_same(model, theirs, "tasks.boxes.head.box_tower").values())


def test_class_layers_may_start_afresh(before):
    model = _started(before[0], class_layer="fresh")
    assert "boxes (class layer fresh)" in model.started and "shapes (whole)" in model.started
    bias = model.tasks["boxes"].head.class_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))
    assert all(_same(model, before[1], "tasks.boxes.head.class_tower").values())


def test_further_tasks_start_afresh_and_others_are_left_out(before):
    tasks = {"boxes": DetectionConfig(), "second": SemanticConfig()}
    model = _started(before[0], tasks)
    assert all(_same(model, before[1], "tasks.boxes").values())
    assert "second afresh; map, tags, far, about, shapes" in model.started
    assert model.started.endswith("left out")
    fresh = _built(tasks, NAMES, 1)[1]
    assert all(_same(model, fresh, "tasks.second").values())


def test_tasks_can_be_chosen(before):
    given = CheckpointStartSettings(kind="checkpoint", path=str(before[0]), tasks=["boxes"])
    model = _built(TASKS, NAMES, 1, start=given)[1]
    fresh = _built(TASKS, NAMES, 1)[1]
    assert all(_same(model, fresh, "tasks.map").values())
    assert all(_same(model, before[1], "tasks.boxes").values())
    assert "), map, tags, far, about, shapes" in model.started and model.started.endswith("afresh")
    wrong = CheckpointStartSettings(kind="checkpoint", path=str(before[0]), tasks=["boxs"])
    with pytest.raises(InputError, match=r"(?s)best.pt has no task 'boxs'.*this run has no task"):
        _built(TASKS, NAMES, 1, start=wrong)


def test_another_shape_is_told_with_what_that_run_has(before):
    with pytest.raises(InputError) as error:
        _started(before[0], how={"fpn": FPNSettings(channels=32)})
    told = str(error.value)
    assert "model.fpn:" in told and "that run has model.fpn: {'channels': 16" in told
    with pytest.raises(
        InputError, match=r"(?s)model.backbone: .*that run has model.backbone: .*name"
    ):
        _started(before[0], how={"backbone": {"name": "resnet18"}})
    other = {**TASKS, "boxes": SemanticConfig()}
    with pytest.raises(InputError, match=r"tasks.boxes: .*that run has tasks.boxes: .*detection"):
        _started(before[0], {"boxes": other["boxes"]})


def test_colors_that_the_weights_were_not_made_for_are_told(before):
    how = {"backbone": {"mean": (0.5, 0.5, 0.5)}}
    with pytest.raises(
        InputError, match=r"model.backbone: .*mean \[0.485, 0.456, 0.406\].*not \[0.5"
    ):
        _started(before[0], how=how)


def test_weights_of_the_backbone_are_refused_beside_a_start(before):
    with pytest.raises(InputError, match=r"model.start has them too"):
        _started(before[0], how={"backbone": {"weights": "w.pth"}})


@pytest.mark.parametrize("norm", ["train", "frozen"])
def test_trained_norms_are_taken_or_folded_as_the_new_run_wants(tmp_path, norm):
    path = tmp_path / "best.pt"
    how = {"backbone": {"norm": "train"}}
    theirs = _saved(path, {"boxes": TASKS["boxes"]}, **how).eval()
    given = CheckpointStartSettings(kind="checkpoint", path=str(path))
    model = _built({"boxes": TASKS["boxes"]}, NAMES, 1, backbone={"norm": norm}, start=given)[1]
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert bool(norms) == (norm == "train")
    picture = torch.rand(1, 3, 64, 64)
    for mine, other in zip(model.eval().backbone(picture), theirs.backbone(picture), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_a_backbone_that_was_frozen_is_started_from_again(tmp_path):
    """It was to be trained by its settings, and is folded in its file all the same."""
    path, boxes = tmp_path / "best.pt", {"boxes": TASKS["boxes"]}
    theirs = _saved(path, boxes, backbone={"norm": "train"}, frozen=["backbone"])
    model = _started(path, boxes, how={"backbone": {"norm": "frozen"}})
    assert all(_same(model, theirs, "backbone").values())
    assert [p for p in model.backbone.parameters() if p.requires_grad]
    with pytest.raises(InputError, match=r"lacks .*'norm': 'frozen'.*and in model.frozen it"):
        _started(path, boxes, how={"backbone": {"norm": "train"}})


def test_what_the_weights_may_know_of_classes(before, tmp_path):
    names = {**NAMES, "boxes": ("dog", "gnome", "cat"), "maps": ("mud", "sky")}
    tasks = {**TASKS, "second": DetectionConfig()}
    known = _started(before[0], tasks, names).brought
    assert known["boxes"] == ["dog", "cat"] and known["map"] == ["sky"] and known["far"] == []
    assert "second" not in known, "it starts afresh"
    content = torch.load(before[0], weights_only=True)
    path = tmp_path / "best.pt"
    torch.save(content | {"searched": {"boxes": ["cat", "cow"]}}, path)
    known = _started(path, TASKS, names).brought
    assert known["boxes"] == ["cat"], "nobody had looked for dogs then"
    assert known["map"] == ["sky"], "of maps it does not tell"
    assert _started(path, TASKS, names, class_layer="fresh").brought["boxes"] == []


def test_a_file_that_does_not_tell_its_run_is_refused(before, tmp_path):
    whole, path = torch.load(before[0], weights_only=True), tmp_path / "best.pt"
    for key in ("settings", "classes"):
        torch.save({k: v for k, v in whole.items() if k != key}, path)
        with pytest.raises(InputError, match=rf"best.pt: {key} is missing; give best.pt or last"):
            _started(path)
    weights = {k: v for k, v in whole["model"].items() if "normalize" not in k}
    torch.save(whole | {"model": weights}, path)
    with pytest.raises(InputError, match=r"best.pt: normalize.scale is missing"):
        _started(path)


def test_what_is_no_file_of_this_version_is_told_where_it_is(before, tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}: a folder; give a checkpoint in it"):
        _started(tmp_path)
    whole, path = torch.load(before[0], weights_only=True), tmp_path / "best.pt"
    whole["settings"]["data"] = {"maps": {"classes": 5}}
    torch.save(whole, path)
    with pytest.raises(InputError, match=r"best.pt: settings.data.maps.classes.*another version"):
        _started(path)


@pytest.mark.parametrize("layers", [{"head.logits": "boxes"}, {"head.class_logits": "boxs"}])
def test_class_layers_that_there_are_not_are_told(before, monkeypatch, layers):
    build = DetectionConfig.build

    def mistaken(*args, **more):
        task = build(*args, **more)
        task.class_layers = layers
        return task

    monkeypatch.setattr(DetectionConfig, "build", mistaken)
    names = {**NAMES, "boxes": ("dog", "cat", "cow")}  # as many: rows would stay as they are
    with pytest.raises(InputError, match=r"tasks.boxes: its class_layers say '.*boxes, maps, tags"):
        _started(before[0], {"boxes": DetectionConfig()}, names)


def test_a_control_of_random_labels_begins_as_what_it_stands_for(before):
    noise = {"boxes": NoiseConfig(of=DetectionConfig()), "map": SemanticConfig()}
    model = _started(before[0], noise)
    mine, theirs = (_weights(model, "tasks.boxes.task"), _weights(before[1], "tasks.boxes"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_folded_norms_cannot_be_trained(before):
    with pytest.raises(InputError, match=r"lacks .*bn.*that run has model.backbone: .*'frozen'"):
        _started(before[0], how={"backbone": {"norm": "train"}})


def test_a_task_that_does_not_tell_its_class_layers(before, monkeypatch):
    """Whole with the same classes, afresh with others."""
    build = DetectionConfig.build

    def without(*args, **more):
        task = build(*args, **more)
        task.class_layers = None
        return task

    monkeypatch.setattr(DetectionConfig, "build", without)
    boxes = {"boxes": DetectionConfig()}
    same = _started(before[0], boxes)
    assert "boxes (whole)" in same.started and all(_same(same, before[1], "tasks.boxes").values())
    names = {**NAMES, "boxes": ("dog", "cat", "cow")}
    other = _started(before[0], boxes, names)
    assert "boxes (fresh, since it does not tell" in other.started
    fresh = _built(boxes, names, 1)[1]
    assert all(_same(other, fresh, "tasks.boxes").values())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "best.pt"
    boxes = {"boxes": DetectionConfig()}
    model = _saved(path, boxes)
    content = torch.load(path, weights_only=True)
    content["model"]["tasks.boxes.head.box_deltas.bias"] = torch.full(
        model.tasks["boxes"].head.box_deltas.bias.shape, torch.nan
    )
    torch.save(content, path)
    with pytest.raises(InputError, match=r"tasks.boxes: .*is not finite in head.box_deltas.bias"):
        _started(path, boxes)


def test_averaged_weights_are_the_start(tmp_path):
    path = tmp_path / "last.pt"
    boxes = {"boxes": DetectionConfig()}
    model = _saved(path, boxes)
    content = torch.load(path, weights_only=True)
    content["ema"] = {k: v + 1 if "box_deltas" in k else v for k, v in content["model"].items()}
    torch.save(content, path)
    mine = _started(path, boxes).tasks["boxes"].head.box_deltas.bias
    assert torch.equal(mine, model.tasks["boxes"].head.box_deltas.bias + 1)


def test_kinds_of_starts():
    settings = checked(StartSettings, {"kind": "checkpoint", "path": "best.pt"}, where="start")
    assert isinstance(settings, CheckpointStartSettings)
    settings = checked(StartSettings, {"path": "net.pth"}, where="start")
    assert isinstance(settings, TorchvisionStartSettings)
    with pytest.raises(InputError, match=r"start.*checkpoint"):
        checked(StartSettings, {"kind": "chekpoint", "path": "best.pt"}, where="start")
    with pytest.raises(InputError, match=r"weights"):
        checked(StartSettings, {"kind": "checkpoint", "path": "x", "weights": "y"}, where="start")
    with pytest.raises(InputError, match=r"no such file"):
        CheckpointStartSettings(kind="checkpoint", path="nowhere.pt").read()


def test_frozen_parts_do_not_train(before):
    given = CheckpointStartSettings(kind="checkpoint", path=str(before[0]))
    how = {"start": given, "frozen": ["backbone", "fpn", "boxes"]}
    model = _built(TASKS, NAMES, 1, **how)[1]
    training = {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
    assert training == set(TASKS) - {"boxes"} and not model.shared_parameters()
    assert all(_same(model, before[1], "tasks.boxes").values())


def test_frozen_batch_norms_keep_their_statistics():
    how = {"backbone": {"norm": "train"}}
    model = _built({"boxes": TASKS["boxes"]}, NAMES, 0, frozen=["boxes"], **how)[1]
    head = model.tasks["boxes"].head
    head.extra = torch.nn.BatchNorm2d(3)
    model.freeze(["boxes"])
    model.eval().train()
    assert not head.extra.training and model.backbone.training and head.training
    assert all(m.training for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_what_cannot_be_frozen_is_told():
    boxes = {"boxes": DetectionConfig()}
    with pytest.raises(
        InputError, match=r"model.frozen: there is no 'box'; .*backbone, fpn, boxes"
    ):
        _built(boxes, NAMES, 0, frozen=["box"])
    with pytest.raises(InputError, match=r"leaves nothing that trains"):
        _built(boxes, NAMES, 0, frozen=["backbone", "fpn", "boxes"])
    with pytest.raises(InputError, match=r"leaves nothing that trains"):
        _built(boxes, NAMES, 0, backbone={"frozen_stages": 5}, frozen=["fpn", "boxes"])
