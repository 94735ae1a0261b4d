"""What tasks share that say something of each box: attributes, masks, keypoints.

Such a task names the detection task that it belongs to. Its `forward` passes on the levels of the pyramid;
its head looks at boxes: in training at those of people, at inference at those which the detection task
found, so one forward of the network serves both. What it finds comes as that task's boxes, in the same
order, with `details`.

To add one: settings that derive from `BoxTaskSettings`, a `BoxTask` with the abstract methods below, a
module that turns the head's output into what is exported.
Letters: B pictures, M the most boxes of a picture, R boxes of all pictures, N boxes of one picture, L
levels, S cells along a side.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detmtl.losses.normalizer import OfBatch, normalizer, skip_normalizer
from detmtl.losses.terms import LossTerms
from detmtl.models.box_head import BoxHead
from detmtl.structures.details import details_of
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore, PaddedBoxes
from detmtl.structures.sample import DIVISOR, Batch
from detmtl.structures.settings import Settings
from detmtl.tasks.box_rois import Rois, chosen
from detmtl.tasks.task import Task, level_names

BLOCK = 512
"""Boxes that are looked at together where they are described: about 2 MB each."""


class BoxTaskSettings(Settings):
    """Settings of a task that says something of each box.

    Attributes:
        labels: the key of a picture's labels that the task learns from.
        of: name of the detection task whose boxes it describes.
        at: where it looks: `fpn` (the levels of the pyramid up to stride 32), or one level.
        sample: boxes of a picture that a step learns from, at most; 5,000 boxes would take gigabytes.
        jitter: how far boxes to learn from are displaced, in shares of their sides. .1 keeps the IoU with
            the right box above about .7, as good detections have it.
        normalizer: what the sum is divided by, see `detmtl.losses.normalizer`; what counts are the boxes
            that the step learns from.
    """

    labels: Literal["boxes"] = "boxes"
    of: str = "boxes"
    at: str = "fpn"
    sample: int = Field(default=64, ge=1)
    jitter: float = Field(default=0.1, ge=0, le=0.5)
    normalizer: OfBatch = "source"

    def place(self, name: str, channels: Sequence[int], strides: Sequence[int]) -> "BoxPlace":
        """Returns where a task of these settings hangs, given all levels that `at` names.

        Raises:
            InputError: the levels have different channels, or none is fine enough.
        """
        fine = [i for i, stride in enumerate(strides) if stride <= DIVISOR]
        if not fine or len({channels[i] for i in fine}) != 1:
            raise InputError(
                f"tasks.{name}.at: {self.at} has levels of {list(channels)} channels at strides "
                f"{list(strides)}; it needs one at a stride up to {DIVISOR}, and all of them alike"
            )
        kept = [strides[i] for i in fine]
        levels = level_names(self.at, kept)
        return BoxPlace(name, self.labels, self.of, levels, channels[0], kept)


@dataclass(frozen=True)
class BoxPlace:
    """Where a task about boxes hangs: its name, its key of labels, the detection task that it belongs to,
    and its levels with their channels and strides."""

    name: str
    labels: str
    of: str
    levels: tuple[str, ...]
    channels: int
    strides: list[int]


class BoxTask(Task):
    """A head that looks at boxes, with a loss for those of which something is known.

    Attributes:
        of: name of the detection task.
        head: levels and boxes to raw numbers; see `BoxHead`.
        form: raw numbers (N, ...), boxes (N, 4) and classes (N,) to what is exported (N, ...); compiles
            under TorchScript.
        class_names: of the boxes.
        term: name of the loss term.
        kind: of its details, one of `detmtl.structures.details.KINDS`.
        names: of attributes or of keypoints, see `Details`.
    """

    term: str
    kind: str

    def __init__(
        self,
        place: BoxPlace,
        head: BoxHead,
        form: nn.Module,
        class_names: Sequence[str],
        settings: BoxTaskSettings,
        names: Sequence[str] = (),
    ):
        """Takes the parts that the settings' `build` makes."""
        super().__init__()
        self.name, self.labels, self.of = place.name, place.labels, place.of
        self.levels, self.terms = place.levels, (self.term,)
        self.head = head
        self.form = form
        self.class_names, self.names = tuple(class_names), tuple(names)
        self.class_layers = {"head.last": self.kind} if names else {}
        self._most, self._jitter = settings.sample, settings.jitter
        self._normalizer: OfBatch = settings.normalizer

    @abstractmethod
    def losses(self, raw: Tensor, rois: Rois, labels: PaddedBoxes) -> Tensor:
        """Returns the loss (R,) of each box, given the head's output."""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the features (B, channels, H, W) of each level as they are: the head needs boxes."""
        return list(features)

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Returns the one term; see `Task.loss`. Boxes to be ignored, and those of which nothing is known,
        have no part in it."""
        labels = batch.labels.get(self.labels)
        assert labels is None or isinstance(labels, PaddedBoxes)
        details = None if labels is None else labels.details
        known = None if details is None else details.known(self.kind)
        if labels is None or details is None or known is None or self.kind not in details.learned:
            skip_normalizer(batch)
            return {}
        with torch.autocast(outputs[0].device.type, enabled=False):
            known = known & labels.valid & (labels.ignore == Ignore.NO)
            rois = chosen(labels, known, self._most, self._jitter, batch.seeds)
            raw = self.head(outputs, rois.boxes, rois.picture)
            weights = labels.weights[rois.picture, rois.row, 1] * rois.on
            # 0 times whatever padding gives, which is finite
            losses = self.losses(raw, rois, labels) * weights
            count = losses.new_zeros(len(labels.boxes)).index_add(0, rois.picture, rois.on.to(raw))
            # Who gave the details counts here, not who wrote the picture's other boxes.
            described = replace(batch, grades=grades_of(rois, labels))
            scale = normalizer(self._normalizer, count, count > 0, described)
            sums = losses.new_zeros(len(count)).index_add(0, rois.picture, losses)
            return LossTerms.of({self.term: sums * scale})

    @torch.no_grad()
    def decode(
        self, outputs: list[Tensor], sizes: Tensor, boxes: Sequence[BoxLabels] = ()
    ) -> list[BoxLabels]:
        """Returns the same boxes with details.

        Args:
            outputs: of `forward`.
            sizes: (B, 2) true height and width of each picture within its padding.
            boxes: of each picture, in pixels of the network's picture.
        """
        assert len(boxes) == len(sizes), "each picture needs the boxes of its detection task"
        if not boxes:
            return []
        counts, device = [len(x) for x in boxes], outputs[0].device
        picture = torch.arange(len(boxes)).repeat_interleave(torch.tensor(counts)).to(device)
        at = torch.cat([x.boxes.to(device) for x in boxes])
        classes = torch.cat([x.classes.to(device) for x in boxes])
        # without any box one block is left: it tells the form of what is found
        found = torch.cat(
            [
                self.form(self.head(outputs, at[k], picture[k]), at[k], classes[k])
                for start in range(0, max(len(at), 1), BLOCK)
                for k in [slice(start, start + BLOCK)]
            ]
        )
        return [
            replace(labels, details=details_of(self.kind, part, self.names))
            for labels, part in zip(boxes, found.split(counts), strict=True)
        ]


def grades_of(rois: Rois, labels: PaddedBoxes) -> Tensor:
    """Returns the grade (B,) uint8 of each picture for what is learned of its boxes: gold where one of those
    that are looked at is."""
    grade = torch.where(rois.on, labels.grade[rois.picture, rois.row], Grade.SILVER)
    none = labels.grade.new_full((len(labels.grade),), Grade.SILVER)
    return none.scatter_reduce(0, rois.picture, grade.to(none), "amin")
