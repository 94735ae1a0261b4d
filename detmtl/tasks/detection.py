"""Detection of boxes: the loss of every kind of label, and decoding.

Outputs of the task: a list of logits (B, A * C, H, W) for each of L levels, then a list of deltas
(B, A * 4, H, W) for each level; channels run anchor by anchor.
Letters: B pictures, C classes, L levels, A anchors per position, H and W positions of a level.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detmtl.losses.normalizer import Density, Normalizer, skip_normalizer
from detmtl.metrics.coco import CocoMetric
from detmtl.models.anchors import Anchors, AnchorSettings
from detmtl.models.decoding import Decoder
from detmtl.models.matching import Forced, Rules
from detmtl.models.retina_head import HeadSettings
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, PaddedBoxes
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.detection_loss import BoxLoss, DetectionLoss
from detmtl.tasks.task import Metric, Task


class MatchingSettings(Settings):
    """Which anchors learn which box.

    Attributes:
        foreground: least IoU of a positive anchor.
        background: anchors below this IoU with every box are negatives; between, they are left out.
        force: whether each box also gets its best anchors, however low their IoU.
        forced: which box such an anchor learns: the one it overlaps "best" itself (torchvision,
            detectron2), or the "forcing" one, of several the last (mmdet).
        inside: anchors with at least this share of their area in an ignore region are left out.
    """

    foreground: float = Field(default=0.5, gt=0, le=1)
    background: float = Field(default=0.4, gt=0, le=1)
    force: bool = True
    forced: Forced = "best"
    inside: float = Field(default=0.5, gt=0, le=1)


class LossSettings(Settings):
    """The terms of the loss; weights between terms belong to the balancer.

    Attributes:
        alpha: focal weight of positives; negatives get 1 - alpha.
        gamma: focal exponent: 0 is cross entropy.
        box: "smooth_l1" and "l1" compare deltas, "giou" compares boxes.
        beta: where smooth L1 turns from square to straight, in deltas; 0 is L1.
        box_weight: factor of the term "box".
        normalizer: what the sums are divided by; positives are counted with at least 1.
            "source": the positives of each source's pictures, of silver at least as many a picture
            as gold has had lately; the sources are then averaged by their weights. "batch": the positives of
            all pictures. "image": each picture's own positives; the pictures are then averaged (torchvision).
            "ema": a moving average of "batch", which starts at 100 (detectron2).
    """

    alpha: float = Field(default=0.25, ge=0, le=1)
    gamma: float = Field(default=2.0, ge=0)
    box: BoxLoss = "giou"
    beta: float = Field(default=1 / 9, ge=0)
    box_weight: float = Field(default=2.0, ge=0)
    normalizer: Normalizer = "source"


class TestSettings(Settings):
    """Which boxes come out.

    Attributes:
        score_threshold: lower scores are dropped.
        candidates: the most that enter suppression, for each level of each picture.
        nms: boxes overlapping a better one of their class by more than this IoU are dropped.
        detections: the most of a picture.
        class_agnostic: whether a box also suppresses boxes of other classes.
    """

    __test__ = False  # no test case, whatever its name says to pytest

    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    candidates: int = Field(default=1000, ge=1)
    nms: float = Field(default=0.5, ge=0, le=1)
    detections: int = Field(default=100, ge=1)
    class_agnostic: bool = False


class DetectionConfig(Settings):
    """Settings of a detection task.

    Attributes:
        labels: the key of a picture's labels that the task learns from.
    """

    kind: Literal["detection"] = "detection"
    labels: str = "boxes"
    head: HeadSettings = HeadSettings()
    anchors: AnchorSettings = AnchorSettings()
    matching: MatchingSettings = MatchingSettings()
    loss: LossSettings = LossSettings()
    test: TestSettings = TestSettings()

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> "DetectionTask":
        """Makes the task with random weights.

        Args:
            name: of the task.
            channels: of each level of the pyramid; all alike, since one head serves all levels.
            strides: pixels between the positions of each level.
            num_classes: C.
            class_names: of the C classes.
        """
        if len(set(channels)) != 1:
            raise InputError(
                f"tasks.{name}: the levels have {list(channels)} channels; one head serves all "
                "levels, so they must be alike"
            )
        anchors = self.anchors.build(list(strides))
        return DetectionTask(
            name,
            self.labels,
            self.head.build(channels[0], self.anchors.num_anchors, num_classes),
            anchors,
            DetectionLoss(anchors, Rules(**self.matching.model_dump()), **self.loss.model_dump()),
            Decoder(anchors, num_classes, **self.test.model_dump()),
            class_names,
        )


class DetectionTask(Task):
    """RetinaNet's head with a loss for whatever kind of label.

    Attributes:
        anchors: of all levels.
        decoder: outputs to boxes, for `torch.jit.script`; see `detmtl.models.decoding.Decoder`.
        class_names: of the C classes.
    """

    def __init__(
        self,
        name: str,
        labels: str,
        head: nn.Module,
        anchors: Anchors,
        loss: DetectionLoss,
        decoder: Decoder,
        class_names: Sequence[str],
    ):
        """Takes the parts that `DetectionConfig.build` makes."""
        super().__init__()
        self.name = name
        self.labels = labels
        self.levels = tuple(f"p{round(math.log2(stride))}" for stride in anchors.strides)
        self.head = head
        self.anchors = anchors
        self.class_names = tuple(class_names)
        self.decoder = decoder
        self._loss = loss
        self.density = Density(loss.normalizer == "ema")

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns logits (B, A * C, H, W) for each level, then deltas (B, A * 4, H, W) for each."""
        logits, deltas = self.head(features)
        return logits + deltas

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "class" and "box"; see `Task.loss`.

        Padding beyond a picture's true size is learned as background, as torchvision, detectron2 and
        mmdet do: the exported network sees padding too, and must find nothing there.
        """
        labels = batch.labels.get(self.labels)
        if labels is None:
            skip_normalizer(batch, self.density)
            return {}
        assert isinstance(labels, PaddedBoxes)
        with torch.autocast(outputs[0].device.type, enabled=False):
            return self._loss(outputs, labels, batch, self.density)

    @torch.no_grad()
    def decode(self, outputs: list[Tensor], sizes: Tensor) -> list[BoxLabels]:
        """Returns the detections of each picture, best first; see `Task.decode`."""
        num_classes = len(self.class_names)
        return [
            BoxLabels.of(
                boxes,
                classes,
                num_classes,
                scores,
                grade=Grade.SILVER,
                coverage=torch.ones(num_classes, device=boxes.device),
            )
            for boxes, scores, classes in self.decoder(outputs, sizes)
        ]

    def metric(self) -> Metric:
        """Returns COCO's metric for the task's classes."""
        return CocoMetric(self.class_names)
