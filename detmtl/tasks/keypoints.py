"""Keypoints of each box, such as a person's hands.

Output of the head: logits (R, K, 2 S, 2 S) of where on a grid over each box a keypoint is; of the form:
(N, K, 3) x, y in pixels of the network's picture, and a confidence.
Letters: R, N boxes, K keypoints of all classes, C classes, S cells along a side of the head's features, B
pictures, M the most boxes of a picture.
Source: He et al. 2017 (Mask R-CNN), arXiv 1703.06870, section 5: a softmax over places. Ours: the target is
spread over the 4 cells around the keypoint, by distance, and read back as the mean around the highest
cell, so that a place is finer than a cell.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from detmtl.metrics.coco_details import KeypointMetric
from detmtl.models.box_head import BoxHeadSettings
from detmtl.structures.errors import InputError
from detmtl.structures.labels import PaddedBoxes
from detmtl.tasks.box_rois import Rois
from detmtl.tasks.box_task import BoxTask, BoxTaskSettings
from detmtl.tasks.task import Metric

COCO_SIGMAS = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
}
"""How differently people place a keypoint of a person, in square roots of the person's area.

Source: COCO's keypoint evaluation, cocodataset.org/#keypoints-eval."""


class KeypointsConfig(BoxTaskSettings):
    """Settings of a task that finds the keypoints of `data.details.keypoints` of each box.

    Attributes:
        kind: names the task.
        head: of 14 x 14 cells and 4 convolutions: places on a grid of 28 x 28.
        sigmas: keypoint, with or without its class and side (`eye` for `person/left_eye`) -> how exact
            it can be told, in square roots of the object's area; by COCO's rule exp(-1/8) of the
            score is left at that distance. For a person's 17 in COCO they are known.
        sigma: of all others; .05 is about the middle of COCO's.
    """

    kind: Literal["keypoints"] = "keypoints"
    head: BoxHeadSettings = BoxHeadSettings(side=14, depth=4)
    sigmas: dict[str, float] = {}
    sigma: float = 0.05
    learns: ClassVar[str] = "keypoints"
    vocabulary: ClassVar[str] = "keypoints"

    def build(
        self,
        name: str,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        class_names: Sequence[str],
        names: Sequence[str] = (),
    ) -> "KeypointsTask":
        """Makes the task with random weights; see `BuildsTask.build`.

        Args:
            names: the K keypoints as `class/keypoint`.

        Raises:
            InputError: `sigmas` names no keypoint.
        """
        place = self.place(name, channels, strides)
        head = self.head.build(place.channels, place.strides, len(names), up=True)
        owners = [key.partition("/")[0] for key in names]
        members = torch.tensor([[owner == c for owner in owners] for c in class_names])
        task = KeypointsTask(place, head, KeypointForm(members), class_names, self, names)
        task.sigmas = self._sigmas(name, names)
        return task

    def _sigmas(self, task: str, names: Sequence[str]) -> tuple[float, ...]:
        callings = [_callings(name) for name in names]
        unknown = set(self.sigmas) - {x for calling in callings for x in calling}
        if unknown:
            raise InputError(
                f"tasks.{task}.sigmas: {', '.join(sorted(unknown))} is no keypoint; there are "
                f"{', '.join(names)}"
            )
        found = []
        for name, calling in zip(names, callings, strict=True):
            known = COCO_SIGMAS if name.startswith("person/") else {}
            values = [s[x] for s in (self.sigmas, known) for x in calling if x in s]
            found.append(values[0] if values else self.sigma)
        return tuple(found)


def _callings(name: str) -> tuple[str, str, str]:
    """Returns how a keypoint `class/keypoint` may be called, the most exact first."""
    point = name.partition("/")[2]
    return name, point, point.removeprefix("left_").removeprefix("right_")


class KeypointForm(nn.Module):
    """Logits of places to points.

    Args:
        members: (C, K) bool: which keypoints a class has.
    """

    members: Tensor

    def __init__(self, members: Tensor):
        super().__init__()
        self.register_buffer("members", members.float(), persistent=False)

    def forward(self, raw: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """Returns (N, K, 3): x, y within the boxes (N, 4) and a confidence: the probability of the 3 x 3
        cells around the likeliest one; 0 for keypoints that the box's class (N,) does not have.

        Args:
            raw: (N, K, 2 S, 2 S) logits.
        """
        side = raw.shape[-1]
        places = torch.softmax(raw.flatten(2), dim=2)
        best = places.argmax(dim=2, keepdim=True)
        cell = torch.arange(side * side, device=raw.device)
        row, column = torch.div(cell, side, rounding_mode="floor"), cell % side
        high, left = torch.div(best, side, rounding_mode="floor"), best % side
        near = ((row - high).abs() <= 1) & ((column - left).abs() <= 1)
        weights = places * near
        sure = weights.sum(dim=2)
        x = (weights * (column + 0.5)).sum(dim=2) / sure / side
        y = (weights * (row + 0.5)).sum(dim=2) / sure / side
        boxes = boxes.to(raw.dtype)
        x = boxes[:, 0:1] + x * (boxes[:, 2:3] - boxes[:, 0:1])
        y = boxes[:, 1:2] + y * (boxes[:, 3:4] - boxes[:, 1:2])
        return torch.stack([x, y, sure.clamp(max=1.0) * self.members[classes]], dim=2)


class KeypointsTask(BoxTask):
    """See the module; `names` are the K keypoints as `class/keypoint`.

    Attributes:
        sigmas: of the K keypoints.
    """

    kind, term = "keypoints", "place"
    sigmas: tuple[float, ...] = ()

    def losses(self, raw: Tensor, rois: Rois, labels: PaddedBoxes) -> Tensor:
        """Returns the mean over a box's keypoints of cross entropy; those that are unknown, or outside of
        the box looked at, do not count."""
        assert labels.details is not None and labels.details.keypoints is not None
        keypoints = labels.details.keypoints[rois.picture, rois.row]
        return place_losses(raw, keypoints, rois.boxes)

    def metric(self) -> Metric:
        """Returns COCO's metric of keypoints."""
        return KeypointMetric(self.class_names, self.names, self.sigmas)


def place_losses(raw: Tensor, keypoints: Tensor, boxes: Tensor) -> Tensor:
    """Returns (R,): of each box the mean over its keypoints of cross entropy between the softmax over
    places and the 4 cells around the keypoint; 0 where there is none.

    Args:
        raw: (R, K, S, S) logits.
        keypoints: (R, K, 3), see `Details`.
        boxes: (R, 4) xyxy over which the grids lie.
    """
    side = raw.shape[-1]
    log_places = torch.log_softmax(raw.flatten(2), dim=2)
    wide = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)[:, None]
    at = (keypoints[..., :2] - boxes[:, None, :2]) / wide  # shares of the box
    on = (keypoints[..., 2] > 0) & ((at >= 0) & (at < 1)).all(-1)
    at = (at.clamp(0, 1) * side - 0.5).clamp(0, side - 1)
    low = at.floor().clamp(max=max(side - 2, 0))
    part = at - low
    losses = torch.zeros_like(part[..., 0]).to(raw)
    for right in (0, 1):
        for down in (0, 1):
            share = (part[..., 0] if right else 1 - part[..., 0]) * (
                part[..., 1] if down else 1 - part[..., 1]
            )
            cell = (low[..., 1] + down) * side + low[..., 0] + right
            cell = cell.long().clamp(max=side * side - 1)
            losses = losses - share * log_places.gather(2, cell[..., None])[..., 0]
    return (losses * on).sum(1) / on.sum(1).clamp(min=1)
