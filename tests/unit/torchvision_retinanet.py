"""torchvision's RetinaNet with a ResNet-50, and its weights under our names."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    RetinaNet,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

FPN_NAMES = {
    "backbone.fpn.inner_blocks": "laterals",
    "backbone.fpn.layer_blocks": "outputs",
    "backbone.fpn.extra_blocks.p6": "extras.0.0",
    "backbone.fpn.extra_blocks.p7": "extras.1.0",
}
HEAD_NAMES = {
    "head.classification_head.conv": "class_tower",
    "head.classification_head.cls_logits": "class_logits",
    "head.regression_head.conv": "box_tower",
    "head.regression_head.bbox_reg": "box_deltas",
}


def reference(num_classes: int, v2: bool = False) -> RetinaNet:
    """Returns torchvision's network in evaluation mode, without any download.

    Its weights and statistics are random, of a size at which every layer matters: with its own
    initialization all logits would be the bias.
    """
    make = retinanet_resnet50_fpn_v2 if v2 else retinanet_resnet50_fpn
    torch.manual_seed(0)
    network = make(weights=None, weights_backbone=None, num_classes=num_classes)
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
    return network.eval()


def parts(network: RetinaNet) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Returns the state dicts of timm's resnet50 features, of our FPN and of our RetinaHead."""
    state = network.state_dict()
    body = {
        name.removeprefix("backbone.body."): tensor
        for name, tensor in state.items()
        if name.startswith("backbone.body.")
    }
    return body, _renamed(state, FPN_NAMES), _renamed(state, HEAD_NAMES)


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {
        ours + name.removeprefix(theirs): tensor
        for name, tensor in state.items()
        for theirs, ours in names.items()
        if name.startswith(theirs + ".")
    }
