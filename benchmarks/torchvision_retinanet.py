"""torchvision's RetinaNet as a task on our backbone and pyramid, to be trained by the same loop.

Its head, matching, losses, decoding and suppression are torchvision's own code, called as its
RetinaNet calls them; backbone, pyramid, pictures, optimizer and schedule are the run's. Given in YAML
as `kind: benchmarks.torchvision_retinanet:Config` (with the repository on PYTHONPATH).
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from detmtl.metrics.coco import CocoMetric
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.task import Task


class Config(Settings):
    """Settings of torchvision's RetinaNet.

    Attributes:
        base_scale: side of the smallest anchor of a level, in strides; torchvision's own is 4.
        group_norm: in the head, as in torchvision's v2.
        repaired: initializes the convolutions for their width; torchvision's standard deviation of
            .01 is made for 256 channels and starves narrow towers.
        box: torchvision's `l1` (v1) or `giou` (v2).
        box_weight: factor of the box loss.
        detections: the most of a picture.
    """

    kind: str
    base_scale: float = Field(default=4.0, gt=0)
    group_norm: bool = True
    repaired: bool = True
    box: Literal["l1", "giou"] = "giou"
    box_weight: float = 1.0
    detections: int = 100

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> "TorchvisionRetinaNet":
        """Makes the task."""
        sizes = tuple(
            tuple(int(self.base_scale * s * 2 ** (i / 3)) for i in range(3)) for s in strides
        )
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        norm = partial(nn.GroupNorm, 32) if self.group_norm else None
        head = RetinaNetHead(channels[0], anchors.num_anchors_per_location()[0], num_classes, norm)
        head.regression_head._loss_type = self.box
        if self.repaired:
            _fit_to_width(head)
        features = _Features(channels[0])
        model = RetinaNet(
            features,
            num_classes,
            anchor_generator=anchors,
            head=head,
            detections_per_img=self.detections,
        )
        levels = tuple(f"p{stride.bit_length() - 1}" for stride in strides)
        return TorchvisionRetinaNet(name, model, class_names, self.box_weight, levels)


class _Features(nn.Module):
    """Stands for the backbone, whose features come from outside."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


class TorchvisionRetinaNet(Task):
    """The parts of `RetinaNet.forward` behind the backbone."""

    def __init__(
        self,
        name: str,
        model: RetinaNet,
        class_names: Sequence[str],
        box_weight: float,
        levels: tuple[str, ...],
    ):
        super().__init__()
        self.name, self.labels, self.levels = name, "boxes", levels
        self.model, self.class_names, self.box_weight = model, tuple(class_names), box_weight
        self._shapes: list[torch.Size] = []

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns torchvision's logits (B, N, C) and deltas (B, N, 4) over all levels."""
        self._shapes = [f.shape for f in features]
        out = self.model.head(features)
        return [out["cls_logits"], out["bbox_regression"]]

    def _anchors(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        pictures = ImageList(images, [(int(h), int(w)) for h, w in sizes.tolist()])
        shapes = [images.new_empty((0, 0, *s[-2:]), dtype=torch.float32) for s in self._shapes]
        return self.model.anchor_generator(pictures, shapes)

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns torchvision's two losses."""
        labels = batch.labels["boxes"]
        targets = []
        for i in range(len(batch)):
            keep = labels.valid[i] & (labels.ignore[i] == Ignore.NO)
            targets.append({"boxes": labels.boxes[i, keep], "labels": labels.classes[i, keep]})
        head = OrderedDict(cls_logits=outputs[0].float(), bbox_regression=outputs[1].float())
        losses = self.model.compute_loss(targets, head, self._anchors(batch.images, batch.sizes))
        return {
            "class": losses["classification"],
            "box": losses["bbox_regression"] * self.box_weight,
        }

    def decode(self, outputs: list[Tensor], sizes: Tensor) -> list[BoxLabels]:
        """Returns torchvision's detections."""
        shapes = [(int(s[-2]), int(s[-1])) for s in self._shapes]
        height, width = shapes[0][0] * 8, shapes[0][1] * 8
        images = torch.empty(len(sizes), 3, height, width)
        anchors = self._anchors(images, sizes)
        counts = [h * w * 9 for h, w in shapes]
        logits, deltas = (list(x.float().split(counts, dim=1)) for x in outputs)
        found = self.model.postprocess_detections(
            {"cls_logits": logits, "bbox_regression": deltas},
            [list(a.split(counts)) for a in anchors],
            [(int(h), int(w)) for h, w in sizes.tolist()],
        )
        return [
            BoxLabels.of(
                d["boxes"],
                d["labels"],
                len(self.class_names),
                scores=d["scores"],
                grade=Grade.SILVER,
            )
            for d in found
        ]

    def metric(self) -> CocoMetric:
        """Returns the COCO metric."""
        return CocoMetric(self.class_names)


def _fit_to_width(head: RetinaNetHead) -> None:
    for tower in (head.classification_head, head.regression_head):
        for layer in tower.conv.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    for last in (head.classification_head.cls_logits, head.regression_head.bbox_reg):
        nn.init.normal_(last.weight, std=0.01 * (256 / last.in_channels) ** 0.5)
