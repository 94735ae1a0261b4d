"""torchvision's RetinaNet and this package's: the same tensors under other names.

torchvision's class layer has a row of every anchor for the background, which never learns, and for
places of COCO's 91 ids that mean nothing; ours has rows of classes only. Rows find each other by name.
Letters: A anchors per position, K rows of a class layer for each anchor.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detmtl.structures.errors import InputError, first_few

BACKGROUND, NOTHING = "__background__", "N/A"
"""Names of rows that mean nothing, as torchvision's lists of categories have them."""

SILENT = -16.0
"""Bias of rows that mean nothing: a score of 1e-7, which costs nothing and finds nothing."""

NO_EPSILON = torch.finfo(torch.float32).tiny
"""What norms add to the variance where torchvision has them add 0, which torch 2.11's batch norm refuses."""

_RULES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"backbone\.body\.(.+)", r"backbone.\1"),
        # files older than torchvision 0.13, its published ones among them, lack the second number
        (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.laterals.\1.0.\2"),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.outputs.\1.0.\2"),
        (r"backbone\.fpn\.extra_blocks\.p6\.(weight|bias)", r"fpn.extras.0.0.\1"),
        (r"backbone\.fpn\.extra_blocks\.p7\.(weight|bias)", r"fpn.extras.1.0.\1"),
        (r"head\.classification_head\.conv\.(\d\.[01]\.\w+)", r"head.class_tower.\1"),
        (r"head\.regression_head\.conv\.(\d\.[01]\.\w+)", r"head.box_tower.\1"),
        (r"head\.classification_head\.cls_logits\.(weight|bias)", r"head.class_logits.\1"),
        (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"head.box_deltas.\1"),
    )
]

_OLD_TOWER = re.compile(r"(head\.\w+_head\.conv\.)(\d)\.(weight|bias)")
"""Of files older than torchvision 0.13, where ReLUs counted: convolutions 0, 2, 4 and 6."""

_THEIRS = (
    ("backbone.", "backbone.body."),
    ("fpn.laterals.", "backbone.fpn.inner_blocks."),
    ("fpn.outputs.", "backbone.fpn.layer_blocks."),
    ("fpn.extras.0.0.", "backbone.fpn.extra_blocks.p6."),
    ("fpn.extras.1.0.", "backbone.fpn.extra_blocks.p7."),
    ("head.class_tower.", "head.classification_head.conv."),
    ("head.box_tower.", "head.regression_head.conv."),
    ("head.class_logits.", "head.classification_head.cls_logits."),
    ("head.box_deltas.", "head.regression_head.bbox_reg."),
)


@dataclass(frozen=True, eq=False)
class RetinaWeights:
    """A RetinaNet's tensors by part, under our names.

    Attributes:
        backbone: names of timm's feature extractor, which for a ResNet are torchvision's.
        fpn: of `detmtl.models.fpn.FPN`.
        head: of `detmtl.models.retina_head.RetinaHead`.
    """

    backbone: dict[str, Tensor]
    fpn: dict[str, Tensor]
    head: dict[str, Tensor]


def from_torchvision(state: Mapping[str, Tensor], where: str = "state dict") -> RetinaWeights:
    """Returns the parts of the state dict of a `torchvision.models.detection.RetinaNet`.

    Args:
        state: as torchvision's `state_dict()` gives it, of any version of torchvision.
        where: the file, for the error.

    Raises:
        InputError: it holds other tensors than such a network has.
    """
    renamed = {_ours(name): tensor for name, tensor in state.items()}
    unknown = sorted(name for name in state if _ours(name) is None)
    parts = {
        part: {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in renamed.items()
            if name is not None and name.startswith(f"{part}.")
        }
        for part in ("backbone", "fpn", "head")
    }
    missing = [part for part, tensors in parts.items() if not tensors]
    problems = []
    if unknown:
        problems.append(f"has {first_few(unknown, 3)}")
    if missing:
        problems.append(f"has no tensors of the {', '.join(missing)}")
    if problems:
        raise InputError(
            f"{where}: is no state dict of torchvision's RetinaNet: {'; it '.join(problems)}"
        )
    return RetinaWeights(**parts)


def to_torchvision(weights: RetinaWeights) -> dict[str, Tensor]:
    """Returns the state dict that torchvision's RetinaNet of the same shape loads; see
    `unfolded` for backbones whose batch norms were folded."""
    named = {
        f"{part}.{name}": tensor
        for part, tensors in (
            ("backbone", weights.backbone),
            ("fpn", weights.fpn),
            ("head", weights.head),
        )
        for name, tensor in tensors.items()
    }
    return {_theirs(name): tensor for name, tensor in named.items()}


def _ours(name: str) -> str | None:
    if old := _OLD_TOWER.fullmatch(name):
        name = f"{old[1]}{int(old[2]) // 2}.0.{old[3]}"
    for pattern, ours in _RULES:
        if found := pattern.fullmatch(name):
            return found.expand(ours)
    return None


def _theirs(name: str) -> str:
    for ours, theirs in _THEIRS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def norm_of(convolution: str) -> str:
    """Returns the name, in a ResNet, of the batch norm after a convolution: `layer1.0.bn2` of
    `layer1.0.conv2`, `layer1.0.downsample.1` of `layer1.0.downsample.0`."""
    stem, _, last = convolution.rpartition(".")
    last = last.replace("conv", "bn") if last.startswith("conv") else str(int(last) + 1)
    return f"{stem}.{last}" if stem else last


def unfolded(backbone: Mapping[str, Tensor], epsilon: float = 1e-5) -> dict[str, Tensor]:
    """Returns a ResNet's tensors with a batch norm where one was folded: it adds the convolution's bias.

    Args:
        backbone: tensors by name; convolutions with a bias are those that a norm was folded into.
        epsilon: that the norm will add to the variance.
    """
    found = {}
    for name, tensor in backbone.items():
        layer, _, kind = name.rpartition(".")
        if kind != "bias" or backbone[f"{layer}.weight"].dim() != 4:
            found[name] = tensor
            continue
        norm = norm_of(layer)
        found[f"{norm}.weight"] = torch.ones_like(tensor)
        found[f"{norm}.bias"] = tensor
        found[f"{norm}.running_mean"] = torch.zeros_like(tensor)
        found[f"{norm}.running_var"] = torch.full_like(tensor, 1 - epsilon)
        found[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return found


def class_rows(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Returns for each of our classes the row of torchvision's that has its name; -1: none has."""
    place = {
        name: row
        for row, name in reversed(list(enumerate(theirs)))
        if name not in (BACKGROUND, NOTHING)
    }
    return [place.get(name, -1) for name in ours]


def with_rows(own: Tensor, given: Tensor, rows: Sequence[int], num_anchors: int) -> Tensor:
    """Returns a class layer's `own` weight or bias with rows of a `given` one in place.

    Args:
        own: (A * K, ...).
        given: (A * K', ...), the rest of the shape alike.
        rows: for each of the K rows the given one to take, in 0..K'-1; -1 keeps the own one.
        num_anchors: A.
    """
    mine = own.detach().clone().unflatten(0, (num_anchors, -1))
    other = given.unflatten(0, (num_anchors, -1))
    kept = torch.tensor(rows) >= 0
    mine[:, kept] = other[:, torch.tensor(rows)[kept]].to(mine.dtype)
    return mine.flatten(0, 1)
