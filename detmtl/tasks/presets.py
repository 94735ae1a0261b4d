"""The details on which other RetinaNets differ, by name: what `preset: torchvision` sets.

A preset fills in the pyramid and every detection task below what a run's own settings say; what it
leaves out is what all peers share, or ours to choose (pictures' size, backbone, optimizer). docs/presets.md
has them as one table, with what no setting covers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from detmtl.models.fpn import FPNSettings
from detmtl.structures.outside import class_elsewhere, is_elsewhere
from detmtl.structures.settings import Settings
from detmtl.tasks.detection import DetectionConfig

PresetName = Literal["torchvision", "torchvision_v2", "detectron2", "mmdet", "keras"]

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """What one peer does.

    Attributes:
        sources: its files that were read, and its paper where it has one.
        fpn: settings of the pyramid.
        task: settings of a detection task.
    """

    sources: tuple[str, ...]
    fpn: Tree
    task: Tree


_MATCHING = {"foreground": 0.5, "background": 0.4, "force": True, "forced": "best"}
_HEAD = {"depth": 4, "width": None, "norm": "none", "init": "torchvision", "prior": 0.01}
_FOCAL = {"alpha": 0.25, "gamma": 2.0}
_TEST = {"score_threshold": 0.05, "candidates": 1000, "nms": 0.5, "detections": 100}
_FPN = {"channels": 256, "levels": 5, "extra_relu": True, "norm": "none", "init": "kaiming"}
_ANCHORS = {
    "base_scale": 4.0,
    "octaves": 3,
    "ratios": [0.5, 1.0, 2.0],
    "rounded": False,
    "offset": 0.0,
    "order": "ratio",
    "stride": "exact",
    "variance": [1.0, 1.0, 1.0, 1.0],
}

_TORCHVISION = {
    "head": _HEAD,
    "anchors": {**_ANCHORS, "rounded": True, "stride": "measured"},
    "matching": _MATCHING,
    "loss": {**_FOCAL, "box": "l1", "box_weight": 1.0, "normalizer": "image"},
    "test": {**_TEST, "detections": 300, "class_agnostic": False},
}

PRESETS: Mapping[str, Preset] = {
    "torchvision": Preset(
        sources=(
            "torchvision 0.29: models/detection/retinanet.py (retinanet_resnet50_fpn), "
            "models/detection/anchor_utils.py, ops/feature_pyramid_network.py",
            "Lin et al. 2017, arXiv 1708.02002",
        ),
        fpn={**_FPN, "p6_from": "p5"},
        task=_TORCHVISION,
    ),
    "torchvision_v2": Preset(
        sources=(
            "torchvision 0.29: models/detection/retinanet.py (retinanet_resnet50_fpn_v2)",
            "the norm of the head as in Zhang et al. 2020 (ATSS), arXiv 1912.02424",
        ),
        fpn={**_FPN, "p6_from": "c5"},
        task={
            **_TORCHVISION,
            "head": {**_HEAD, "norm": "group"},
            "loss": {**_FOCAL, "box": "giou", "box_weight": 1.0, "normalizer": "image"},
        },
    ),
    "detectron2": Preset(
        sources=(
            "detectron2 0.6: configs/Base-RetinaNet.yaml, modeling/meta_arch/retinanet.py, "
            "modeling/anchor_generator.py, modeling/backbone/fpn.py",
            "Lin et al. 2017, arXiv 1708.02002",
        ),
        fpn={**_FPN, "p6_from": "c5"},
        task={
            "head": _HEAD,
            "anchors": {**_ANCHORS, "order": "size"},
            "matching": _MATCHING,
            "loss": {
                **_FOCAL,
                "box": "smooth_l1",
                "beta": 0.0,
                "box_weight": 1.0,
                "normalizer": "ema",
            },
            "test": {**_TEST, "class_agnostic": False},
        },
    ),
    "mmdet": Preset(
        sources=(
            "mmdetection 3: configs/_base_/models/retinanet_r50_fpn.py, "
            "models/dense_heads/retina_head.py, models/necks/fpn.py, "
            "models/task_modules/assigners/max_iou_assigner.py",
            "Chen et al. 2019, arXiv 1906.07155",
        ),
        fpn={**_FPN, "p6_from": "c5", "extra_relu": False, "init": "xavier"},
        task={
            "head": _HEAD,
            "anchors": _ANCHORS,
            "matching": {**_MATCHING, "forced": "forcing"},
            "loss": {**_FOCAL, "box": "l1", "box_weight": 1.0, "normalizer": "batch"},
            "test": {**_TEST, "class_agnostic": False},
        },
    ),
    "keras": Preset(
        sources=(
            "KerasCV 0.9: models/object_detection/retinanet/ (retinanet.py, "
            "retinanet_label_encoder.py, feature_pyramid.py, prediction_head.py), "
            "layers/object_detection/anchor_generator.py, losses/focal.py, losses/smooth_l1.py",
        ),
        fpn={**_FPN, "p6_from": "c5", "init": "xavier"},
        task={
            "head": {**_HEAD, "depth": 3, "init": "orthogonal"},
            # its ratios are width / height, and it has no limit to the candidates
            "anchors": {
                **_ANCHORS,
                "ratios": [2.0, 1.0, 0.5],
                "offset": 0.5,
                "order": "size",
                "variance": [0.1, 0.1, 0.2, 0.2],
            },
            "matching": {**_MATCHING, "force": False},
            # it averages over the four deltas, which others sum
            "loss": {
                **_FOCAL,
                "box": "smooth_l1",
                "beta": 1.0,
                "box_weight": 0.25,
                "normalizer": "batch",
            },
            "test": {
                **_TEST,
                "score_threshold": 0.5,
                "candidates": 1_000_000,
                "class_agnostic": True,
            },
        },
    ),
}


def pyramid(preset: PresetName, **own: Any) -> FPNSettings:
    """Returns a preset's settings of the pyramid; `own` settings come first."""
    return FPNSettings.model_validate(_over(own, PRESETS[preset].fpn))


def detection(preset: PresetName, **own: Any) -> DetectionConfig:
    """Returns a preset's settings of a detection task; `own` settings come first, key by key."""
    return DetectionConfig.model_validate(_over(own, PRESETS[preset].task))


def filled_in(tree: Any) -> Any:
    """Returns a run's settings, plain values, with what their `preset` says where they say nothing.

    Where settings are wrong (no such preset, a section that is no mapping) they stay as they are: they are
    told when they are checked.
    """
    if not isinstance(tree, Mapping):
        return tree
    name = tree.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return tree
    model, tasks = tree.get("model"), tree.get("tasks")
    tree = dict(tree)
    if isinstance(model, Mapping):
        tree["model"] = _over(model, {"fpn": PRESETS[name].fpn})
    if isinstance(tasks, Mapping):
        tree["tasks"] = {key: _task(task, PRESETS[name].task) for key, task in tasks.items()}
    return tree


def _task(task: Any, preset: Tree) -> Any:
    return _over(task, preset) if isinstance(task, Mapping) and _detects(task.get("kind")) else task


def _detects(kind: Any) -> bool:
    """Returns whether a task of that kind is one of detection, or of a class derived from it."""
    if not is_elsewhere(kind):
        return kind == "detection"
    try:
        return issubclass(class_elsewhere(kind, Settings), DetectionConfig)
    except ValueError:  # told when it is checked
        return False


def _over(own: Tree, below: Tree) -> dict[str, Any]:
    """Returns both, mappings merged key by key; where both have a value, `own`."""
    merged = {**below, **own}
    for key, value in below.items():
        mine = own.get(key)
        if isinstance(value, Mapping) and isinstance(mine, Mapping):
            merged[key] = _over(mine, value)
    return merged
