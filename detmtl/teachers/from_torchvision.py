"""torchvision's detectors and segmenters as teachers.

Letters: B pictures, S places for classes (see slots.py), H and W pixels.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from pydantic import PositiveInt
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models
from torchvision.transforms._presets import SemanticSegmentation

from detmtl.models.pretrained import downloaded, load_weights, read_weights
from detmtl.models.torchvision_weights import NO_EPSILON
from detmtl.silver.card import TeacherCard
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, MapLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.maps import map_of_probabilities, require_few
from detmtl.teachers.slots import BACKGROUND, ClassSlots, read_names
from detmtl.teachers.teacher import (
    Teacher,
    existing,
    file_sha256,
    not_too_thin,
    same_shape,
    silver_boxes,
)
from detmtl.teachers.teacher_settings import TeacherSettings

WITHOUT_EPSILON = {
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
}
"""Detectors of which torchvision runs the COCO_V1 weights with norms that add nothing to the variance."""

SEGMENTER_SIDE = 520
"""To which torchvision's transforms bring a picture's shorter side."""


class TorchvisionDetector(Teacher):
    """One of torchvision's detectors.

    Args:
        network: in evaluation mode.
        slots: what its labels mean.
        card: who it is.
        device: where the network is.
        lowers: whether the network may give boxes of lower scores than its own threshold, where such are
            wanted.
    """

    def __init__(
        self,
        network: nn.Module,
        slots: ClassSlots,
        card: TeacherCard,
        device: str,
        lowers: bool = True,
    ):
        self.card = card
        self._network, self._device, self._lowers = network, device, lowers
        self._classes = torch.from_numpy(slots.classes)

    @torch.inference_mode()
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the boxes of each picture, see `Teacher.annotate`."""
        if self._lowers:
            _let_through(self._network, floor)
        given = [not_too_thin(image).to(self._device).float() / 255 for image in images]
        labels: dict[int, BoxLabels] = {}
        for together in same_shape(given):  # padded for larger company, it would get other scores
            found = self._network([given[i] for i in together])
            for i, one in zip(together, found, strict=True):
                labels[i] = self._labels(one, images[i], floor)
        return [labels[i] for i in range(len(images))]

    def _labels(self, found: dict[str, Tensor], image: Tensor, floor: float) -> BoxLabels:
        classes, count = self._classes[found["labels"].cpu()], len(self.card.classes)
        return silver_boxes(found["boxes"], classes, found["scores"], image, count, floor)


def _let_through(network: Any, floor: float) -> None:
    """Lets a detector give boxes from the score `floor` on, where its own threshold is higher."""
    head = getattr(network, "roi_heads", network)  # of two stages the second one decides
    head.score_thresh = min(head.score_thresh, floor)


class TorchvisionSegmenter(Teacher):
    """One of torchvision's segmenters.

    Args:
        network: in evaluation mode.
        transforms: bring a picture (3, H, W) uint8 to the network's size and values.
        slots: what its outputs mean.
        card: who it is.
        device: where the network is.
    """

    def __init__(
        self,
        network: nn.Module,
        transforms: nn.Module,
        slots: ClassSlots,
        card: TeacherCard,
        device: str,
    ):
        self.card = card
        self._network, self._transforms, self._slots = network, transforms, slots
        self._device = device

    @torch.inference_mode()
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[MapLabels]:
        """Returns the map of each picture, see `Teacher.annotate`."""
        padded = [not_too_thin(image) for image in images]
        given = [self._transforms(image.to(self._device)) for image in padded]
        maps: dict[int, MapLabels] = {}
        for together in same_shape(given):
            scores = self._network(torch.stack([given[i] for i in together]))["out"]
            for i, one in zip(together, scores.float().softmax(dim=1).cpu(), strict=True):
                maps[i] = self._in_picture(one, padded[i], images[i], floor)
        return [maps[i] for i in range(len(images))]

    def _in_picture(self, scores: Tensor, padded: Tensor, image: Tensor, floor: float) -> MapLabels:
        height, width = image.shape[-2:]
        whole = (int(padded.shape[-2]), int(padded.shape[-1]))
        labels = map_of_probabilities(scores.numpy(), whole, self._slots, floor)
        assert labels.weights is not None
        return MapLabels(
            labels.classes[:height, :width].contiguous(),
            labels.weights[:height, :width].contiguous(),
            labels.coverage,
            labels.grade,
        )


class TorchvisionTeacherSettings(TeacherSettings):
    """One of torchvision's detectors or segmenters."""

    kind: Literal["torchvision"] = "torchvision"
    model: str
    """Its name in torchvision, such as retinanet_resnet50_fpn_v2 or deeplabv3_resnet50."""
    weights: str | None = None
    """Official weights by their name, such as COCO_V1 or DEFAULT; downloaded unless `path` is set."""
    path: str | None = None
    """A state dict; beside `weights` it is the file of those weights, downloaded elsewhere."""
    classes: str | list[str] | None = None
    """Class names or a file of them, in the order of the network's outputs and without the
    background; None: those of `weights`."""
    background: bool = True
    """Whether the network's class 0 is the background, as it is in all of torchvision's."""
    side: PositiveInt | None = None
    """Segmenters: pixels of the picture's shorter side; None: torchvision's own."""
    options: dict[str, int | float | bool] = {}
    """Of the detector, such as box_nms_thresh, box_detections_per_img, min_size. Its score threshold
    (score_thresh, of some box_score_thresh) is lowered to the floor of the labels where it is higher,
    unless it is given here."""

    def build(self, root: Path, device: str) -> TorchvisionDetector | TorchvisionSegmenter:
        """Builds the teacher; files are taken relative to `root`.

        Raises:
            InputError: the model, the weights or an option is unknown, a file is missing or of another
                network, or the weights cannot be downloaded.
        """
        segments = self._segments()
        official = self._official()
        slots = self._slots(root, official, segments)
        file = self._file(root, official)
        tensors = read_weights(file, "teacher.path")
        network = self._network(segments, len(slots), tensors)
        load_weights(network, tensors, set(), str(file))
        if official is not None and official.name == "COCO_V1" and self.model in WITHOUT_EPSILON:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = NO_EPSILON
        network = network.eval().requires_grad_(False).to(device)
        transforms = self._transforms(official) if segments else None
        inside = "torchvision's own" if transforms is None else " ".join(repr(transforms).split())
        card = TeacherCard(
            name=self.named(self.model),
            weights_sha256=file_sha256(file),
            classes=slots.names,
            preprocessing=f"{self.model} {self.weights or ''}: rgb, {inside}, {self.options}, "
            f"{slots}",
            task="maps" if segments else "boxes",
            versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
        )
        if transforms is None:
            lowers = not {"score_thresh", "box_score_thresh"} & set(self.options)
            return TorchvisionDetector(network, slots, card, device, lowers)
        return TorchvisionSegmenter(network, transforms, slots, card, device)

    def _segments(self) -> bool:
        """Returns whether the model is a segmenter."""
        detectors = list_models(module=torchvision.models.detection)
        segmenters = list_models(module=torchvision.models.segmentation)
        if self.model not in (*detectors, *segmenters):
            close = get_close_matches(self.model, [*detectors, *segmenters], n=1)
            raise InputError(
                f"teacher.model: torchvision has no detector or segmenter '{self.model}'"
                f"{f' (nearest: {close[0]})' if close else ''}; it has {', '.join(detectors)}; "
                f"{', '.join(segmenters)}"
            )
        segments = self.model in segmenters
        if (segments and self.options) or (not segments and self.side is not None):
            raise InputError(
                "teacher: `side` is for segmenters and `options` for detectors; leave the other one out"
            )
        return segments

    def _official(self) -> WeightsEnum | None:
        if self.weights is None:
            if self.path is None or self.classes is None:
                raise InputError(
                    "teacher: give `weights` (such as DEFAULT), or the `path` of a state dict with its "
                    "`classes`"
                )
            return None
        known = get_model_weights(self.model)
        if self.weights not in known.__members__:
            raise InputError(
                f"teacher.weights: {self.model} has no weights '{self.weights}'; it has "
                f"{', '.join(['DEFAULT', *(w.name for w in known)])}"
            )
        return known[self.weights]

    def _slots(self, root: Path, official: WeightsEnum | None, segments: bool) -> ClassSlots:
        if self.classes is not None:
            names, where = read_names(root, self.classes)
            if self.background and names[:1] != [BACKGROUND]:
                names = [BACKGROUND, *names]
        else:
            assert official is not None
            names, where = list(official.meta["categories"]), f"{self.model} {self.weights}"
            names[0] = BACKGROUND  # people's keypoints call it "no person"
        slots = ClassSlots.of(names, where)
        if segments:
            require_few(slots, where)
        return slots

    def _file(self, root: Path, official: WeightsEnum | None) -> Path:
        """Returns the file of the weights, downloaded to torch's cache if no path is given."""
        if self.path is not None:
            return existing(root, self.path, "teacher.path")
        assert official is not None
        return downloaded(official, "teacher")

    def _network(self, segments: bool, num_slots: int, tensors: dict[str, Tensor]) -> nn.Module:
        more: dict[str, Any] = dict(self.options)
        if segments and self.model != "lraspp_mobilenet_v3_large":
            more["aux_loss"] = any(name.startswith("aux_classifier.") for name in tensors)
        try:
            network = get_model(
                self.model, weights=None, weights_backbone=None, num_classes=num_slots, **more
            )
        except (TypeError, ValueError) as problem:
            raise InputError(f"teacher.options: {self.model} refuses them: {problem}") from None
        # Some of the detectors swallow options that they do not have.
        known = {p for cls in type(network).__mro__ for p in signature(cls.__init__).parameters}
        if unknown := sorted(set(self.options) - known):
            raise InputError(
                f"teacher.options: {self.model} has no {', '.join(unknown)}; it has "
                f"{', '.join(sorted(known - {'self', 'args', 'kwargs', 'backbone', 'num_classes'}))}"
            )
        return network

    def _transforms(self, official: WeightsEnum | None) -> nn.Module:
        if official is None or self.side is not None:
            return SemanticSegmentation(resize_size=self.side or SEGMENTER_SIDE)
        return official.transforms()
