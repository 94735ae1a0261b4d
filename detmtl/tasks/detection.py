"""Detection of boxes: the loss of every kind of label, and decoding.

Outputs of the task: logits (B, A * C, H, W) for each of L levels, then boxes for each level, then, of heads
that have it, quality for each level; channels run anchor by anchor. See `RetinaHead.forward`.
Letters: B pictures, C classes, L levels, A anchors per position, H and W positions of a level.
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detmtl.losses.normalizer import Density, Normalizer, skip_normalizer
from detmtl.metrics.coco import CocoMetric
from detmtl.models.anchors import Anchors, AnchorSettings
from detmtl.models.decoding import Decoder
from detmtl.models.matching import Forced, Rules
from detmtl.models.retina_head import HeadSettings
from detmtl.silver.card import Written
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, PaddedBoxes
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.detection_boxes import OF_BOXES, BoxLoss, BoxTerms
from detmtl.tasks.detection_loss import ClassLoss, DetectionLoss
from detmtl.tasks.task import Metric, Task


class MatchingSettings(Settings):
    """Which anchors learn which box.

    Attributes:
        kind: "max_iou": by the thresholds below; "atss": each box finds its own, see
            `detmtl.models.atss`. One square anchor a place is then enough (`anchors: {octaves: 1,
            ratios: [1]}`), and nine times cheaper.
        foreground: of max_iou, least IoU of a positive anchor.
        background: of max_iou, anchors below this IoU with every box are negatives; between, they are
            left out.
        force: whether each box also gets its best anchors, however low their IoU; of atss, only a box that
            would get none (false is the paper's).
        forced: of max_iou, which box such an anchor learns: the one it overlaps "best" itself
            (torchvision, detectron2), or the "forcing" one, of several the last (mmdet).
        inside: anchors with at least this share of their area in an ignore region are left out.
        candidates: of atss, the places of each level at which anchors are candidates of a box: the paper's 9,
            which has one anchor a place. With nine, give 1: nine candidates a level are enough, and 81 cost
            .067 AP on chess pieces (benchmarks/results/chess_atss_epyc_202611.md).
    """

    kind: Literal["max_iou", "atss"] = "max_iou"
    foreground: float = Field(default=0.5, gt=0, le=1)
    background: float = Field(default=0.4, gt=0, le=1)
    force: bool = True
    forced: Forced = "best"
    inside: float = Field(default=0.5, gt=0, le=1)
    candidates: int = Field(default=9, ge=1, le=100)

    @model_validator(mode="after")
    def _read(self) -> "MatchingSettings":
        usual = type(self).model_fields
        if self.kind == "atss" and any(
            getattr(self, name) != usual[name].default for name in ("foreground", "background")
        ):
            raise ValueError(
                "kind atss finds a threshold for each box; leave foreground and background out"
            )
        if self.background > self.foreground:
            raise ValueError(
                f"background {self.background:g} is above foreground {self.foreground:g}: an anchor between "
                "them would be both; lower background"
            )
        return self


class LossSettings(Settings):
    """The terms of the loss; weights between terms belong to the balancer.

    Attributes:
        classification: "focal", the target of a positive is its label's score; "quality_focal" and
            "varifocal", that times the IoU of its predicted box, so that boxes which fit rank higher: see
            `detmtl.losses.quality`.
        alpha: focal weight of positives; negatives get 1 - alpha, in varifocal too (.75 is the paper's).
            Quality focal loss knows no such weights.
        gamma: focal exponent: 0 is cross entropy. Of quality focal loss the paper's beta.
        box: "smooth_l1" and "l1" compare deltas; "giou", "diou" and "ciou" compare boxes.
        beta: where smooth L1 turns from square to straight, in deltas; 0 is L1.
        box_weight: factor of the term "box".
        distribution_weight: factor of the term "distribution", of a head of distributions; the paper's.
        quality_weight: factor of the term "quality", of a head with that branch.
        normalizer: what the sums are divided by; positives are counted with at least 1.
            "source": the positives of each source's pictures, of silver at least as many a picture
            as gold has had lately; the sources are then averaged by their weights. "batch": the positives of
            all pictures. "image": each picture's own positives; the pictures are then averaged (torchvision).
            "ema": a moving average of "batch", which starts at 100 (detectron2).
    """

    classification: ClassLoss = "focal"
    alpha: float = Field(default=0.25, ge=0, le=1)
    gamma: float = Field(default=2.0, ge=0)
    box: BoxLoss = "giou"
    beta: float = Field(default=1 / 9, ge=0)
    box_weight: float = Field(default=2.0, ge=0)
    distribution_weight: float = Field(default=0.25, ge=0)
    quality_weight: float = Field(default=1.0, ge=0)
    normalizer: Normalizer = "source"


class TestSettings(Settings):
    """Which boxes come out.

    Attributes:
        score_threshold: lower scores are dropped.
        candidates: the most that enter suppression, for each level of each picture.
        nms: boxes overlapping a better one of their class by more than this IoU are dropped.
        detections: the most of a picture.
        class_agnostic: whether a box also suppresses boxes of other classes.
        quality_power: w in the score p ** (1 - w) * q ** w of a head with a branch for quality, p being the
            class's probability and q the quality. Both p and the score must be above the threshold.
    """

    __test__ = False  # no test case, whatever its name says to pytest

    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    candidates: int = Field(default=1000, ge=1)
    nms: float = Field(default=0.5, ge=0, le=1)
    detections: int = Field(default=100, ge=1)
    class_agnostic: bool = False
    quality_power: float = Field(default=0.5, ge=0, lt=1)


class DetectionConfig(Settings):
    """Settings of a detection task.

    Attributes:
        labels: the key of a picture's labels that the task learns from.
    """

    finds: ClassVar[Written] = "boxes"
    kind: Literal["detection"] = "detection"
    labels: Literal["boxes"] = "boxes"
    head: HeadSettings = HeadSettings()
    anchors: AnchorSettings = AnchorSettings()
    matching: MatchingSettings = MatchingSettings()
    loss: LossSettings = LossSettings()
    test: TestSettings = TestSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "DetectionConfig":
        if self.head.box == "distribution" and self.loss.box not in OF_BOXES:
            raise ValueError(
                f"loss.box: {self.loss.box} compares deltas, and head.box: distribution has none; take one "
                f"of {', '.join(OF_BOXES)}"
            )
        return self

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
        head, loss = self.head, self.loss
        boxes = BoxTerms(
            anchors,
            loss.box,
            loss.beta,
            loss.box_weight,
            loss.distribution_weight,
            loss.quality_weight,
            head.used_bins,
            head.reach,
            head.quality,
        )
        return DetectionTask(
            name,
            self.labels,
            head.build(channels[0], self.anchors.num_anchors, num_classes),
            anchors,
            DetectionLoss(
                anchors,
                Rules(**self.matching.model_dump()),
                loss.alpha,
                loss.gamma,
                loss.normalizer,
                boxes,
                loss.classification,
            ),
            Decoder(
                anchors,
                num_classes,
                **self.test.model_dump(),
                bins=head.used_bins,
                reach=head.reach,
                quality=head.quality != "none",
            ),
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
        self.class_layers = {"head.class_logits": labels}
        self.levels = tuple(f"p{round(math.log2(stride))}" for stride in anchors.strides)
        self.head = head
        self.anchors = anchors
        self.class_names = tuple(class_names)
        self.terms = loss.terms
        self.decoder = decoder
        self._loss = loss
        self.density = Density(loss.normalizer == "ema")

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the head's outputs: one kind after the other, each level by level."""
        logits, boxes = self.head(features)
        return logits + boxes

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "class" and "box", and more of heads that say more; see `DetectionLoss`.

        Padding beyond a picture's true size is learned as background, as torchvision, detectron2 and
        mmdet do: the exported network sees padding too, and must find nothing there.
        """
        labels = batch.labels.get(self.labels)
        assert labels is None or isinstance(labels, PaddedBoxes)
        if labels is None or not labels.some:
            skip_normalizer(batch, self.density)
            return {}
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
