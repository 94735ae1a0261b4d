"""Depth: how far away each pixel is.

Output of the task: one list entry, (B, 1, H, W), the natural logarithm of meters at the stride of its finest
level. Letters: B pictures, H and W positions.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.losses.depth import DepthLoss, depth_losses
from detmtl.losses.normalizer import OfBatch, skip_normalizer
from detmtl.losses.terms import LossTerms
from detmtl.metrics.depth import DepthMetric
from detmtl.models.semantic_head import SemanticHeadSettings
from detmtl.structures.depth import DepthLabels, PaddedDepth
from detmtl.structures.labels import Grade
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.task import Exporter, Metric, Task, at_size, fine_levels, level_names

Meters = Annotated[float, Field(gt=0)]


class DepthLossSettings(Settings):
    """How the loss is computed.

    Attributes:
        kind: see `detmtl.losses.depth.depth_errors`.
        invariance: of silog: how far an error that all depths of a picture share goes unpunished. .5
            still learns meters; 1 learns the picture's relief alone.
        stride: pixels between the positions of the loss, see `SemanticLossSettings`.
        normalizer: what the sum is divided by, see `detmtl.losses.normalizer`; what counts are the
            positions whose depth is known.
    """

    kind: DepthLoss = "silog"
    invariance: float = Field(default=0.5, ge=0, le=1)
    stride: Literal[1, 2, 4, 8, 16, 32] = 4
    normalizer: OfBatch = "source"


class DepthConfig(Settings):
    """Settings of a task that tells the depth of each pixel.

    Attributes:
        labels: the key of a picture's labels that the task learns from.
        at: where the head hangs: `fpn` (the levels of the pyramid up to stride 32), or one level, such
            as p3 or c4.
        prior: meters that every pixel starts with.
        nearest, farthest: meters between which every prediction lies.
    """

    kind: Literal["depth"] = "depth"
    labels: Literal["depth"] = "depth"
    at: str = "fpn"
    head: SemanticHeadSettings = SemanticHeadSettings()
    loss: DepthLossSettings = DepthLossSettings()
    prior: Meters = 10.0
    nearest: Meters = 0.1
    farthest: Meters = 200.0

    @model_validator(mode="after")
    def _ordered(self) -> "DepthConfig":
        if not self.nearest < self.prior < self.farthest:
            raise ValueError(
                f"nearest, prior and farthest are {self.nearest}, {self.prior} and {self.farthest}; each "
                "must be less than the next"
            )
        return self

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> "DepthTask":
        """Makes the task with random weights; see `BuildsTask.build`. It has no classes.

        Raises:
            InputError: `at` is too coarse.
        """
        fine = fine_levels(name, self.at, strides)
        strides = [strides[i] for i in fine]
        # a bfloat16 logarithm of 10 m is off by up to 1 %
        head = self.head.build([channels[i] for i in fine], strides, 1, exact=True)
        assert head.logits.bias is not None
        nn.init.constant_(head.logits.bias, math.log(self.prior))
        levels = level_names(self.at, strides)
        decoder = DepthDecoder(strides[0], self.nearest, self.farthest)
        return DepthTask(name, self.labels, levels, head, decoder, self.loss)


class DepthDecoder(nn.Module):
    """Logarithms to meters in the pixels of each picture; compiles under TorchScript."""

    def __init__(self, stride: int, nearest: float, farthest: float):
        """Takes pixels between positions, and the limits of the result in meters."""
        super().__init__()
        self.stride = stride
        self.least = math.log(nearest)
        self.most = math.log(farthest)

    def forward(self, outputs: list[Tensor], sizes: Tensor, originals: Tensor) -> list[Tensor]:
        """Returns the depth of each picture's pixels, (height, width) float32 meters.

        Args:
            outputs: [(B, 1, H, W)] of padded pictures, of any floating point type.
            sizes: (B, 2) true height and width of each within its padding.
            originals: (B, 2) height and width that the result shall have.
        """
        meters = self.meters(outputs[0])
        found: list[Tensor] = []
        inside: list[list[int]] = sizes.tolist()  # all at once: each reading waits for the device
        given: list[list[int]] = originals.tolist()
        for i, depth in enumerate(meters):
            depth = depth[: inside[i][0], : inside[i][1]]
            found.append(at_size(depth, given[i][0], given[i][1]))
        return found

    def meters(self, outputs: Tensor) -> Tensor:
        """Returns (B, H, W) float32 meters of all pixels, padding too, of an output (B, 1, H, W)."""
        logs = outputs.float()
        size = [logs.shape[2] * self.stride, logs.shape[3] * self.stride]
        full = F.interpolate(logs, size=size, mode="bilinear")[:, 0]
        return full.clamp(self.least, self.most).exp()

    def whole(self, outputs: list[Tensor]) -> list[Tensor]:
        """Returns meters of one picture's pixels; see `detmtl.tasks.task.Exporter`."""
        return [self.meters(outputs[0])[0]]


class DepthTask(Task):
    """A head that tells the logarithm of each pixel's depth.

    Attributes:
        class_names: none.
    """

    class_names: tuple[str, ...] = ()
    terms = ("depth",)

    def __init__(
        self,
        name: str,
        labels: str,
        levels: tuple[str, ...],
        head: nn.Module,
        decoder: DepthDecoder,
        loss: DepthLossSettings,
    ):
        """Takes the parts that `DepthConfig.build` makes."""
        super().__init__()
        self.name = name
        self.labels = labels
        self.class_layers = {}
        self.levels = levels
        self.head = head
        self._decoder = decoder
        self._kind: DepthLoss = loss.kind
        self._invariance = loss.invariance
        self._stride = loss.stride
        self._normalizer: OfBatch = loss.normalizer

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns [logarithms of meters (B, 1, H, W)]."""
        return [self.head(features)]

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the term "depth"; see `Task.loss` and `detmtl.losses.depth`."""
        labels = batch.labels.get(self.labels)
        assert labels is None or isinstance(labels, PaddedDepth)
        if labels is None or not labels.some:
            skip_normalizer(batch)
            return {}
        with torch.autocast(outputs[0].device.type, enabled=False):
            term = depth_losses(
                outputs[0],
                labels,
                batch,
                self._stride,
                self._kind,
                self._invariance,
                self._normalizer,
            )
        return LossTerms.of({"depth": term})

    @torch.no_grad()
    def decode(self, outputs: list[Tensor], sizes: Tensor) -> list[DepthLabels]:
        """Returns the depth of each picture's pixels."""
        return [DepthLabels(x, Grade.SILVER) for x in self._decoder(outputs, sizes, sizes)]

    def metric(self) -> Metric:
        """Returns shares of right pixels and errors."""
        return DepthMetric()

    def exporter(self) -> Exporter:
        """Returns the decoder."""
        return Exporter("depth", self._decoder, self._decoder.whole)
