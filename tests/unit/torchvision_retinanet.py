"""torchvision's RetinaNets with random weights that matter, and ours with the same."""

from collections import OrderedDict
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    RetinaNet,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detmtl.models.backbone import BackboneSettings
from detmtl.models.torchvision_weights import SILENT
from detmtl.tasks.multitask import ModelSettings, MultiTask, build_model
from detmtl.tasks.presets import detection, pyramid
from detmtl.tasks.torchvision_start import TorchvisionStartSettings as StartSettings

NAMES = ["cat", "dog", "bird", "fish", "cow"]


class TimmFPN(nn.Module):
    """A backbone of timm's below torchvision's pyramid, as torchvision wants one."""

    out_channels = 64

    def __init__(self, name: str):
        super().__init__()
        self.body = timm.create_model(name, features_only=True)
        channels = self.body.feature_info.channels()[-3:]
        self.fpn = FeaturePyramidNetwork(channels, 64, extra_blocks=LastLevelP6P7(64, 64))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns P3 to P7."""
        return self.fpn(OrderedDict(enumerate(self.body(images)[-3:])))


def reference(kind: str = "torchvision", names: list[str] = NAMES) -> RetinaNet:
    """Returns torchvision's network in evaluation mode, without any download.

    Weights and statistics are random, of a size at which every layer matters: with torchvision's
    initialization all logits would be the bias. Logits spread by 1.2 around the prior of .01, so that
    few anchors pass the threshold, as in a trained network; the background's row is silent.

    Args:
        kind: a preset, torchvision or torchvision_v2, or the name of a timm backbone.
        names: of the classes, which come after the background.
    """
    torch.manual_seed(0)
    sizes = {"num_classes": len(names) + 1}
    if kind == "torchvision_v2":
        network = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, **sizes)
    elif kind == "torchvision":
        network = retinanet_resnet50_fpn(weights=None, weights_backbone=None, **sizes)
    else:
        network = RetinaNet(TimmFPN(kind), **sizes)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1)
                module.bias.normal_(std=0.1)
        for module in network.head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        network.eval()
        _calibrate(network)
    return network


def unscaled(network: RetinaNet, height: int, width: int) -> None:
    """Lets torchvision take pictures of this size as they are."""
    network.transform.min_size = (min(height, width),)
    network.transform.max_size = max(height, width)


def _calibrate(network: RetinaNet) -> None:
    """Gives logits and deltas the spread that a trained network's have."""
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(7))
    unscaled(network, 96, 128)
    levels = list(network.backbone(network.transform([image])[0].tensors).values())
    classes, boxes = network.head.classification_head, network.head.regression_head
    classes.cls_logits.weight *= 1.2 / torch.cat([x.flatten() for x in classes(levels)]).std()
    boxes.bbox_reg.weight *= 0.2 / torch.cat([x.flatten() for x in boxes(levels)]).std()
    rows = classes.cls_logits.weight.view(9, -1, *classes.cls_logits.weight.shape[1:])
    rows[:, 0] = 0
    classes.cls_logits.bias.view(9, -1)[:, 0] = SILENT


def ours(
    theirs: RetinaNet, kind: str, folder: Path, names: list[str] = NAMES, **backbone
) -> MultiTask:
    """Returns this package's network, started from a file of torchvision's state dict."""
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    preset = "torchvision_v2" if kind == "torchvision_v2" else "torchvision"
    is_timm = not kind.startswith("torchvision")
    name = kind if is_timm else "resnet50"
    mean_std = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    settings = ModelSettings(
        backbone=BackboneSettings(name=name, **mean_std, **backbone),
        fpn=pyramid(preset, channels=64 if is_timm else 256),
        start=StartSettings(path=str(folder / "theirs.pth"), classes=names),
    )
    return build_model(settings, {"boxes": detection(preset)}, names).eval()
