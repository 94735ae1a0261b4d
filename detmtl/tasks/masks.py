"""The shape of each box.

Output of the head: logits (R, 1, 2 S, 2 S) on a grid over each box, of all classes alike; of the form:
probabilities (N, 2 S, 2 S).
Letters: R, N boxes, S cells along a side of the head's features, B pictures, M the most boxes of a picture.
Source: He et al. 2017 (Mask R-CNN), arXiv 1703.06870, with one mask for all classes (its table 2b: -.6 AP
or so), since the class is the detector's; Fu et al. 2019 (RetinaMask), arXiv 1901.03353.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detmtl.metrics.coco_details import MaskMetric
from detmtl.models.box_head import BoxHeadSettings
from detmtl.structures.labels import PaddedBoxes
from detmtl.tasks.box_rois import Rois
from detmtl.tasks.box_task import BoxTask, BoxTaskSettings
from detmtl.tasks.task import Metric


class MasksConfig(BoxTaskSettings):
    """Settings of a task that draws the shape of each box (`data.details.masks`).

    Attributes:
        kind: names the task.
        head: of 14 x 14 cells and 4 convolutions: a mask of 28 x 28.
    """

    kind: Literal["masks"] = "masks"
    head: BoxHeadSettings = BoxHeadSettings(side=14, depth=4)
    learns: ClassVar[str] = "masks"

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
    ) -> "MasksTask":
        """Makes the task with random weights; see `BuildsTask.build`."""
        place = self.place(name, channels, strides)
        head = self.head.build(place.channels, place.strides, 1, up=True)
        return MasksTask(place, head, MaskForm(), class_names, self)


class MaskForm(nn.Module):
    """Logits to probabilities."""

    def forward(self, raw: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """Returns (N, 2 S, 2 S) from logits (N, 1, 2 S, 2 S); of boxes and classes nothing is needed."""
        return torch.sigmoid(raw[:, 0])


class MasksTask(BoxTask):
    """See the module."""

    kind, term = "masks", "mask"

    def losses(self, raw: Tensor, rois: Rois, labels: PaddedBoxes) -> Tensor:
        """Returns the mean over a box's cells of binary cross entropy."""
        assert labels.details is not None and labels.details.masks is not None
        masks = labels.details.masks[rois.picture, rois.row]
        frames = labels.boxes[rois.picture, rois.row]
        wanted = moved_masks(masks, frames, rois.boxes, raw.shape[-1])
        losses = F.binary_cross_entropy_with_logits(raw[:, 0], wanted.to(raw), reduction="none")
        return losses.mean(dim=(1, 2))

    def metric(self) -> Metric:
        """Returns COCO's metric of masks."""
        return MaskMetric(self.class_names)


def moved_masks(masks: Tensor, frames: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Returns (R, side, side) of 0 and 1: masks on grids over other boxes; outside of their own is 0.

    Args:
        masks: (R, S, S) uint8, over `frames` (R, 4).
        boxes: (R, 4) xyxy, the new places.
        side: cells along a side of the result.
    """
    middles = (torch.arange(side, device=boxes.device) + 0.5) / side
    wide = (frames[:, 2:] - frames[:, :2]).clamp(min=1e-6)
    at = boxes[:, None, :2] + middles[None, :, None] * (boxes[:, 2:] - boxes[:, :2])[:, None]
    at = 2 * (at - frames[:, None, :2]) / wide[:, None] - 1  # (R, side, 2) in -1..1 of the frame
    x, y = at[..., 0], at[..., 1]
    grid = torch.stack(
        [x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1
    )
    known = (masks == 1)[:, None].to(boxes)
    return (F.grid_sample(known, grid, align_corners=False)[:, 0] > 0.5).to(boxes)
