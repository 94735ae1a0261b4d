"""torchvision's RetinaNet and detmtl's of the same size, and a batch for both, for the scripts here."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detmtl.engine.compiled import CompileMode, compiled_steps, network_of
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import Computing, Precision
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.models.retina_head import HeadSettings
from detmtl.structures.labels import BoxLabels, PaddedBoxes
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig, LossSettings, TestSettings
from detmtl.tasks.multitask import ModelSettings, MultiTask, build_model

LR = 1e-4


def theirs(
    classes: int, side: int, norm: Callable[..., nn.Module] = FrozenBatchNorm2d
) -> RetinaNet:
    """Returns torchvision's RetinaNet R50-FPN, as `retinanet_resnet50_fpn` makes it from weights:
    batch norm frozen, three stages of five trained; for pictures of `side` pixels."""
    torch.manual_seed(0)
    body = resnet50(norm_layer=norm)
    backbone = _resnet_fpn_extractor(
        body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    return RetinaNet(backbone, classes, min_size=side, max_size=side).train()


def ours(classes: int, network: str = "resnet50") -> MultiTask:
    """Returns detmtl's network of the same size, or of another timm network, with torchvision's loss, in
    channels_last."""
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(name=network, frozen_stages=2), fpn=FPNSettings(p6_from="p5")
    )
    task = DetectionConfig(
        head=HeadSettings(init="torchvision"),
        loss=LossSettings(box="l1", box_weight=1.0, normalizer="image"),
        test=TestSettings(detections=300),
    )
    model = build_model(settings, {"boxes": task}, [f"c{i}" for i in range(classes)]).train()
    return model.to(memory_format=torch.channels_last)


def batch_of(pictures: int, boxes: int, height: int, width: int, classes: int) -> Batch:
    """Returns noise with boxes of all sizes."""
    g = torch.Generator().manual_seed(0)
    samples = []
    for i in range(pictures):
        side = torch.exp(torch.rand(boxes, 2, generator=g) * 3 + 2.5).clamp(
            max=min(height, width) - 2
        )
        corner = torch.rand(boxes, 2, generator=g) * (torch.tensor([width, height]) - side)
        labels = BoxLabels.of(
            torch.cat([corner, corner + side], 1),
            torch.randint(0, classes, (boxes,), generator=g),
            classes,
        )
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=g)
        samples.append(
            Sample(image, {"boxes": labels}, ImageInfo(i, str(i), height, width, "noise"))
        )
    return Batch.of(samples)


def on(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch on a device, its pictures in channels_last."""
    moved = batch.to(device)
    return replace(moved, images=moved.images.contiguous(memory_format=torch.channels_last))


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    """Returns the boxes of a batch as torchvision wants them."""
    labels = batch.labels["boxes"]
    assert isinstance(labels, PaddedBoxes)
    return [{"boxes": labels.boxes[i], "labels": labels.classes[i]} for i in range(len(batch))]


def step_of(
    model: nn.Module,
    batch: Batch,
    precision: Precision,
    device: torch.device,
    compile: CompileMode | None = None,
) -> Callable[[], None]:
    """Returns one update of a model, forward, loss, backward and optimizer.

    Args:
        model: torchvision's, or one of detmtl's.
        batch: on `device`.
        precision: of the network, see `TrainSettings`.
        compile: of detmtl's, see `TrainSettings`.
    """
    computing = Computing(precision, device, compiled=compile is not None)
    if isinstance(model, RetinaNet):
        pictures = list(batch.images.float() / 255)
        targets = targets_of(batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9)

        def losses() -> Tensor:
            with computing():
                return torch.stack(list(model(pictures, targets).values())).sum()

    else:
        optimizer = OptimSettings(name="sgd", lr=LR).build(model)
        task = model.get_submodule("tasks.boxes")
        network = network_of(model, compile)

        def losses() -> Tensor:
            with computing():
                outputs = network(batch)
            return torch.stack(list(task.loss(outputs["boxes"], batch).values())).sum()  # type: ignore[operator]

    def step() -> None:
        with compiled_steps(compile):
            losses().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
