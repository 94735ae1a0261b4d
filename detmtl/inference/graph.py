"""The detector as one graph of fixed shapes, for ONNX and for torch's own pt2 files.

Such a graph has no lists, no branches and no outputs whose number depends on the picture: it takes one
picture that has the network's size already, and always returns D detections.
Letters: H and W pixels, C classes, D detections.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision.nms)
from torch import Tensor, nn

from detmtl.data.fit import fit
from detmtl.models.decoding import Decoder, rows_of
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import DIVISOR

INPUTS = ("image", "size", "threshold")
OUTPUTS = ("boxes", "scores", "labels")

Graph = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor | np.ndarray]]
"""(image, size, threshold) -> (boxes, scores, labels), as `GraphDetector.forward`."""


class GraphDetector(nn.Module):
    """Network, decoding and suppression for one picture of the size H x W.

    It finds what `Decoder` finds, but for ties: classes are kept apart by shifting boxes in float32,
    since ONNX suppresses in nothing else, which moves corners by some hundredths of a pixel. And boxes that
    lie beside the picture alone, of which nothing is left once they are clipped, are left out: most of the
    canvas may be padding, whose boxes would take the places of others among the D.

    Args:
        network: (1, 3, H, W) uint8 -> what `Decoder.forward` takes.
        decoder: whose anchors and settings hold, but for the threshold.
        height, width: H and W, multiples of the network's largest stride.
    """

    def __init__(self, network: nn.Module, decoder: Decoder, height: int, width: int):
        super().__init__()
        self.network, self.decoder = network, decoder
        with torch.no_grad():
            outputs = network(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        self.num_levels = len(outputs) // decoder.parts
        for i, level in enumerate(decoder.anchors(outputs[: self.num_levels])):
            self.register_buffer(f"anchors{i}", level.clone(), persistent=False)

    def forward(
        self, image: Tensor, size: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes (D, 4) xyxy in pixels of `image`, scores (D,), labels (D,) int64, best first.

        Where there are fewer than D detections the rest have score 0 and label -1.

        Args:
            image: (1, 3, H, W) uint8 RGB, padded at the right and the bottom with 0.
            size: (2,) int64, height and width of the picture within it.
            threshold: (1,) float32, least score.
        """
        outputs = self.network(image)
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


def canvas_size(short: int, long: int) -> tuple[int, int]:
    """Returns height and width of the graph's picture: that of a landscape one of short x long."""
    return -(-short // DIVISOR) * DIVISOR, -(-long // DIVISOR) * DIVISOR


def on_canvas(image: Tensor, short: int, long: int) -> tuple[Tensor, Tensor]:
    """Returns a picture (3, h, w) uint8 as the graph takes it: (1, 3, H, W), and its size (2,) therein.

    A portrait one is scaled to the height.
    """
    height, width = canvas_size(short, long)
    fitted = fit(image, short, long)
    if fitted.shape[1] > height:
        fitted = fit(image, short, short)
    canvas = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    canvas[0, :, : fitted.shape[1], : fitted.shape[2]] = fitted
    return canvas, torch.tensor([fitted.shape[1], fitted.shape[2]])


def detections_of(found: Sequence[Tensor | np.ndarray], num_classes: int) -> BoxLabels:
    """Returns a graph's outputs as labels, without the rest that is no detection."""
    boxes, scores, labels = (torch.as_tensor(x) for x in found)
    there = labels >= 0
    return BoxLabels.of(
        boxes[there], labels[there], num_classes, scores=scores[there], grade=Grade.SILVER
    )
