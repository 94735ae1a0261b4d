"""A checkpoint as a state dict for torchvision's own RetinaNet.

torchvision then needs nothing of this package; its resizing and its padding differ from ours (see
docs/presets.md), so the check compares pictures that need neither.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import (
    RetinaNet,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from detmtl.inference.errors import ExportError
from detmtl.inference.predictor import LoadedModel
from detmtl.models.torchvision_weights import (
    BACKGROUND,
    SILENT,
    RetinaWeights,
    class_rows,
    to_torchvision,
    unfolded,
    with_rows,
)
from detmtl.structures.errors import InputError, first_few
from detmtl.tasks.detection import DetectionTask
from detmtl.tasks.multitask import MultiTask
from detmtl.tasks.presets import detection

BUILDERS = {
    "retinanet_resnet50_fpn": retinanet_resnet50_fpn,
    "retinanet_resnet50_fpn_v2": retinanet_resnet50_fpn_v2,
}

TOLERANCE = 1e-4
"""Largest difference of outputs, as a share of the largest output."""


@dataclass(frozen=True)
class TorchvisionReport:
    """What was written.

    Attributes:
        path: the file.
        call: the Python expression that makes the network that loads it.
        names: of its labels; 0 is the background.
        difference: largest difference of outputs from the model's, as a share of the largest.
    """

    path: Path
    call: str
    names: tuple[str, ...]
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.path}: state dict for torchvision.models.detection.{self.call}; "
            f"labels 1..{len(self.names) - 1} are {', '.join(self.names[1:])}; "
            f"outputs differ by {self.difference:.1e} of the largest"
        )


def export_torchvision(
    loaded: LoadedModel, path: str | Path, names: Sequence[str] | None = None
) -> TorchvisionReport:
    """Writes a model's state dict for torchvision, after checking that torchvision does the same with it.

    Args:
        loaded: a model with a ResNet-50, and the pyramid, head and anchors of the preset torchvision or
            torchvision_v2.
        path: of the file to write; it appears only when complete and checked.
        names: of torchvision's labels from 0 on, such as the categories of its COCO weights; those that
            the model does not have are never found. None: the background, then the model's classes.

    Raises:
        InputError: the model has something that torchvision's has not.
        ExportError: torchvision's network does something else with these weights.
    """
    path = Path(path)
    task = _task_of(loaded, path)
    names = [BACKGROUND, *loaded.class_names] if names is None else list(names)
    if not set(names) & set(loaded.class_names):
        raise InputError(
            f"{path}: none of the names is a class of the model; its classes are "
            f"{', '.join(loaded.class_names)}"
        )
    kind = _builder(loaded.model, task, path)
    options = _options(loaded, task, len(names))
    theirs = BUILDERS[kind](weights=None, weights_backbone=None, **options).eval()
    state = _state(loaded.model, task, names)
    _load(theirs, state, path)
    difference = _difference(loaded.model, task, theirs, names)
    if difference > TOLERANCE:
        raise ExportError(
            f"{path}: not written, since torchvision's outputs differ by {difference:.1e} of the largest"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(theirs.state_dict(), unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    return TorchvisionReport(
        path, f"{kind}(weights=None, weights_backbone=None, {given})", tuple(names), difference
    )


def _task_of(loaded: LoadedModel, path: Path) -> DetectionTask:
    tasks = [task for task in loaded.model.tasks.values() if isinstance(task, DetectionTask)]
    if len(tasks) != 1 or len(loaded.model.tasks) != 1:
        raise InputError(
            f"{path}: torchvision's RetinaNet has one detection task and no other; the model's tasks are "
            f"{', '.join(loaded.model.tasks)}"
        )
    return tasks[0]


def _builder(model: MultiTask, task: DetectionTask, path: Path) -> str:
    """Returns the name of torchvision's function for such a network.

    Raises:
        InputError: with everything in which the model is another one, but its tensors.
    """
    problems = []
    grouped = "class_tower.0.1.weight" in task.head.state_dict()
    kind = {
        ("p5", False): "retinanet_resnet50_fpn",
        ("c5", True): "retinanet_resnet50_fpn_v2",
    }.get((model.fpn.p6_from, grouped))
    if kind is None:
        problems.append(
            f"P6 comes from {model.fpn.p6_from} and the head has {'group' if grouped else 'no'} norm; "
            "torchvision has p5 without a norm, and c5 with group norm"
        )
    if not model.fpn.extra_relu:
        problems.append("P7 sees P6 without a ReLU (fpn.extra_relu)")
    if not _same_anchors(task):
        problems.append("the anchors are others (tasks.*.anchors)")
    if task.decoder.class_agnostic:
        problems.append("suppression is across classes (test.class_agnostic)")
    if problems:
        raise InputError(
            [
                f"{path}: {problem}; a network for torchvision has preset: torchvision or torchvision_v2"
                for problem in problems
            ]
        )
    assert kind is not None
    return kind


def _same_anchors(task: DetectionTask) -> bool:
    wanted = detection("torchvision").anchors.build(task.anchors.strides)
    shapes = [(-(-160 // s), -(-352 // s)) for s in task.anchors.strides]
    found = (anchors.of_shapes(shapes, torch.device("cpu")) for anchors in (task.anchors, wanted))
    return task.anchors.variance == wanted.variance and all(
        torch.equal(a, b) for a, b in zip(*found, strict=True)
    )


def _options(loaded: LoadedModel, task: DetectionTask, num_classes: int) -> dict[str, object]:
    decoder = task.decoder
    options: dict[str, object] = {
        "num_classes": num_classes,
        "min_size": loaded.short,
        "max_size": loaded.long,
        "score_thresh": decoder.score_threshold,
        "nms_thresh": decoder.nms,
        "detections_per_img": decoder.detections,
        "topk_candidates": decoder.candidates,
    }
    backbone = loaded.model.backbone
    return options | {"image_mean": list(backbone.mean), "image_std": list(backbone.std)}


def _state(model: MultiTask, task: DetectionTask, names: Sequence[str]) -> dict[str, Tensor]:
    head = dict(task.head.state_dict())
    # where each of torchvision's rows finds our class
    rows = class_rows(task.class_names, names)
    for part in ("weight", "bias"):
        own, num_anchors = head[f"class_logits.{part}"], task.anchors.num_anchors
        shape = (num_anchors * len(names), *own.shape[1:])
        silent = torch.full(shape, SILENT if part == "bias" else 0.0)
        head[f"class_logits.{part}"] = with_rows(silent, own, rows, num_anchors)
    backbone = unfolded(model.backbone.network.state_dict())
    return to_torchvision(RetinaWeights(backbone, model.fpn.state_dict(), head))


def _load(theirs: RetinaNet, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = theirs.state_dict()
    problems = [
        f"{what} {first_few(names, 3)}"
        for what, names in (
            ("lacks", sorted(wanted.keys() - state.keys())),
            ("also has", sorted(state.keys() - wanted.keys())),
            (
                "has in another shape",
                sorted(k for k, v in wanted.items() if k in state and state[k].shape != v.shape),
            ),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{path}: the model {' and '.join(problems)}; a network for torchvision has the backbone "
            "resnet50 and preset: torchvision or torchvision_v2"
        )
    theirs.load_state_dict(state)


@torch.inference_mode()
def _difference(
    model: MultiTask, task: DetectionTask, theirs: RetinaNet, names: Sequence[str]
) -> float:
    """Returns the largest difference of outputs, as a share of the largest output."""
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 128, 160), generator=g, dtype=torch.uint8)
    ours = model(image)[task.name]
    levels = theirs.backbone(theirs.transform.normalize(image[0].float() / 255)[None])
    found = theirs.head(list(levels.values()))
    rows = class_rows(names, task.class_names)
    logits = found["cls_logits"][..., [row for row in rows if row >= 0]]
    half = len(ours) // 2
    own = _rows(ours[:half], len(task.class_names))[
        ..., [i for i, row in enumerate(rows) if row >= 0]
    ]
    pairs = [(own, logits), (_rows(ours[half:], 4), found["bbox_regression"])]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)


def _rows(maps: list[Tensor], numbers: int) -> Tensor:
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers) for x in maps], 1)
