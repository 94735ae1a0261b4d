"""A model as one graph of fixed shapes, for ONNX and for torch's own pt2 files.

Such a graph has no lists, no branches and no outputs whose number depends on the picture: it takes one
picture that has the network's size already, and always returns D detections and what is said of each.
Letters: H and W pixels, C classes, D detections.
"""

from collections.abc import Mapping, Sequence

import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision.nms)
from torch import Tensor, nn

from detmtl.inference.detector import CONFIDENCE
from detmtl.inference.exported import Exported
from detmtl.inference.graph_predictor import BOXES
from detmtl.models.box_head import BoxHead
from detmtl.models.decoding import Decoder, rows_of
from detmtl.tasks.task import Exporter


class GraphModel(nn.Module):
    """A network and all its tasks for one picture of the size H x W.

    Args:
        network: (1, 3, H, W) uint8 -> list of all tasks' raw outputs.
        tasks: that are exported.
        places: where the outputs of each stand, see `detmtl.inference.exported.places_of`.
        height, width: H and W, multiples of the network's largest stride.

    Attributes:
        names: of what `forward` returns, one after the other: `BOXES`, if there is detection; a task of maps,
            and its name with `CONFIDENCE` if it says how sure it is; a task of depth or of tags; a task about
            the boxes.
    """

    def __init__(
        self,
        network: nn.Module,
        tasks: Exported,
        places: Mapping[str, tuple[int, int]],
        height: int,
        width: int,
    ):
        super().__init__()
        self.network = network
        with torch.no_grad():
            outputs = network(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        self.boxes: GraphBoxes | None = None
        self.names: list[str] = []
        if tasks.detection is not None:
            self.num_outputs = places[tasks.detection.name][1]
            self.boxes = GraphBoxes(tasks.detection.decoder, outputs[: self.num_outputs])
            self.names += BOXES
        others = []
        for task, exporter in tasks.others:
            others.append(GraphTask(*places[task.name], exporter))
            with torch.no_grad():
                count = len(others[-1](outputs, torch.tensor([height, width])))
            self.names += [task.name, task.name + CONFIDENCE][:count]
        self.others = nn.ModuleList(others)
        self.about_boxes = nn.ModuleList(tasks.of_boxes(places))
        self.names += [task.name for task in tasks.boxed]
        for pool in [m.pool for m in self.about_boxes.modules() if isinstance(m, BoxHead)]:
            pool.everywhere = True

    def forward(
        self, image: Tensor, size: Tensor, threshold: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Returns what was found, see `names`.

        Boxes, scores and labels as `GraphBoxes` has them; classes (H, W) uint8 of the whole canvas and their
        probabilities (H, W); depths (H, W) in meters; probabilities (T,) of tags; of a task about the boxes
        D rows, as in `detmtl.inference.detector.Detector`, in pixels of the canvas, those of rows without a
        detection of no meaning.

        Args:
            image: (1, 3, H, W) uint8 RGB, padded at the right and the bottom with 0.
            size: (2,) int64, height and width of the picture within it.
            threshold: (1,) float32, least score of a detection.
        """
        outputs = self.network(image)
        found: list[Tensor] = []
        if self.boxes is not None:
            assert threshold is not None
            found += self.boxes(outputs[: self.num_outputs], size, threshold)
        for other in self.others:
            found += other(outputs, size)
        for of_boxes in self.about_boxes:
            boxes, classes = found[0], found[2].clamp(min=0)
            found.append(of_boxes(outputs, 0, boxes, classes, image[0], image[0]))
        return tuple(found)


class GraphTask(nn.Module):
    """What a task that has an exporter finds on the whole canvas.

    Args:
        first, count: where its outputs stand among the network's, and how many there are.
        exporter: of the task.
    """

    def __init__(self, first: int, count: int, exporter: Exporter):
        super().__init__()
        self.first, self.count = first, count
        self.decoder, self._whole = exporter.decoder, exporter.whole

    def forward(self, outputs: Sequence[Tensor], size: Tensor) -> list[Tensor]:
        """Returns its part of `GraphModel.forward`, of all outputs of the network and the picture's size."""
        mine = list(outputs[self.first : self.first + self.count])
        if self._whole is not None:
            return self._whole(mine)
        return self.decoder(mine, size[None], size[None])


class GraphBoxes(nn.Module):
    """Decoding and suppression for one picture of the size H x W.

    It finds what `Decoder` finds, but for ties: classes are kept apart by shifting boxes in float32,
    since ONNX suppresses in nothing else, which moves corners by some hundredths of a pixel. And boxes that
    lie beside the picture alone, of which nothing is left once they are clipped, are left out: most of the
    canvas may be padding, whose boxes would take the places of others among the D.

    Args:
        decoder: whose anchors and settings hold, but for the threshold.
        outputs: the detection task's, of any picture of this size.
    """

    def __init__(self, decoder: Decoder, outputs: Sequence[Tensor]):
        super().__init__()
        self.decoder = decoder
        self.num_levels = len(outputs) // decoder.parts
        for i, level in enumerate(decoder.anchors(list(outputs[: self.num_levels]))):
            self.register_buffer(f"anchors{i}", level.clone(), persistent=False)

    def forward(
        self, outputs: Sequence[Tensor], size: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes (D, 4) xyxy in pixels of the network's picture, scores (D,), labels (D,) int64, best
        first.

        Where there are fewer than D detections the rest have score 0 and label -1.

        Args:
            outputs: of the detection task, for one picture.
            size: (2,) int64, height and width of the picture within it.
            threshold: (1,) float32, least score.
        """
        found = [self._candidates(outputs, level, threshold) for level in range(self.num_levels)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores, order = scores.topk(scores.shape[0])
        sides = torch.stack([size[1], size[0], size[1], size[0]]).to(boxes.dtype)
        boxes, classes = torch.minimum(boxes[order].clamp(min=0), sides), classes[order]
        apart = boxes
        good = (scores > threshold) & with_area(boxes)
        if not self.decoder.class_agnostic:
            apart = boxes + (classes.to(boxes.dtype) * (boxes.max() + 1)).unsqueeze(1)
        # all that are not good lie on one spot away from the rest, where they suppress each other at once
        aside = torch.tensor([-9.0, -9.0, -5.0, -5.0])
        apart = torch.where(good.unsqueeze(1), apart, aside)
        # torch.export takes it for certain that two are kept at least: two that nothing else touches
        always = torch.tensor([[-19.0, -19.0, -15.0, -15.0], [-29.0, -29.0, -25.0, -25.0]])
        apart, padded = torch.cat([apart, always]), torch.cat([scores, scores.new_zeros(2)])
        keep = torch.ops.torchvision.nms(apart, padded, self.decoder.nms)
        ones = torch.ones_like(keep, dtype=scores.dtype)
        kept = torch.zeros_like(padded).scatter(0, keep, ones)[: scores.shape[0]]
        kept = torch.where(good, scores * kept, torch.zeros_like(scores))
        best, place = kept.topk(min(self.decoder.detections, kept.shape[0]))
        labels = torch.where(best > 0, classes[place], torch.full_like(place, -1))
        return boxes[place], best, labels

    def _candidates(
        self, outputs: Sequence[Tensor], level: int, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes, scores and classes of a level's best candidates."""
        decoder = self.decoder
        logits = rows_of(outputs[level], decoder.num_classes).float().flatten()
        said = rows_of(outputs[self.num_levels + level], 4 * (decoder.bins + 1))[0].float()
        values, place = logits.topk(min(decoder.candidates, logits.shape[0]))
        row = torch.div(place, decoder.num_classes, rounding_mode="floor")
        scores = torch.sigmoid(values)
        if decoder.parts == 3:  # the class's probability has to be above the threshold, too
            quality = rows_of(outputs[2 * self.num_levels + level], 1)[0, :, 0].float()[row]
            both = decoder.with_quality(scores, quality)
            scores = torch.where(scores > threshold, both, torch.zeros_like(both))
        boxes = decoder.decoded(self.get_buffer(f"anchors{level}")[row], said[row])
        return boxes, scores, place - row * decoder.num_classes


def with_area(boxes: Tensor) -> Tensor:
    """Returns which of the clipped boxes (N, 4) are left with an area."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides[:, 0] > 0) & (sides[:, 1] > 0)
