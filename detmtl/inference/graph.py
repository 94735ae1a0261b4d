"""The detector as one graph of fixed shapes, for ONNX and for torch's own pt2 files.

Such a graph has no lists, no branches and no outputs whose number depends on the picture: it takes one
picture that has the network's size already, and always returns D detections.
Letters: H and W pixels, C classes, K candidates of all levels, D detections, R rows of a level.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision.nms)
from torch import Tensor, nn

from detmtl.data.fit import fit
from detmtl.models.boxcoder import decode
from detmtl.models.decoding import Decoder
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import DIVISOR

INPUTS = ("image", "size", "threshold")
OUTPUTS = ("boxes", "scores", "labels")

Graph = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor | np.ndarray]]
"""(image, size, threshold) -> (boxes, scores, labels), as `GraphDetector.forward`."""


class GraphDetector(nn.Module):
    """Network, decoding and suppression for one picture of the size H x W.

    It finds what `Decoder` finds, but for ties: classes are kept apart by shifting boxes in float32,
    since ONNX suppresses in nothing else, which moves corners by some hundredths of a pixel.

    Args:
        network: (1, 3, H, W) uint8 -> logits (1, A * C, h, w) of each level, then deltas.
        decoder: whose anchors and settings hold.
        height, width: H and W, multiples of the network's largest stride.
    """

    def __init__(self, network: nn.Module, decoder: Decoder, height: int, width: int):
        super().__init__()
        self.network = network
        self.num_classes, self.candidates = decoder.num_classes, decoder.candidates
        self.nms, self.detections = decoder.nms, decoder.detections
        self.class_agnostic = decoder.class_agnostic
        self.anchors = decoder.anchors
        with torch.no_grad():
            outputs = network(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        self.num_levels = len(outputs) // 2
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
        found = [self._candidates(outputs, level) for level in range(self.num_levels)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores, order = scores.topk(scores.shape[0])
        sides = torch.stack([size[1], size[0], size[1], size[0]]).to(boxes.dtype)
        boxes, classes = torch.minimum(boxes[order].clamp(min=0), sides), classes[order]
        apart = boxes
        if not self.class_agnostic:
            apart = boxes + (classes.to(boxes.dtype) * (boxes.max() + 1)).unsqueeze(1)
        # all that are too bad lie on one spot away from the rest, where they suppress each other at once
        aside = torch.tensor([-9.0, -9.0, -5.0, -5.0])
        good = scores > threshold
        apart = torch.where(good.unsqueeze(1), apart, aside)
        # torch.export takes it for certain that two are kept at least: two that nothing else touches
        always = torch.tensor([[-19.0, -19.0, -15.0, -15.0], [-29.0, -29.0, -25.0, -25.0]])
        apart, padded = torch.cat([apart, always]), torch.cat([scores, scores.new_zeros(2)])
        keep = torch.ops.torchvision.nms(apart, padded, self.nms)
        ones = torch.ones_like(keep, dtype=scores.dtype)
        kept = torch.zeros_like(padded).scatter(0, keep, ones)[: scores.shape[0]]
        kept = torch.where(good, scores * kept, torch.zeros_like(scores))
        best, place = kept.topk(min(self.detections, kept.shape[0]))
        labels = torch.where(best > 0, classes[place], torch.full_like(place, -1))
        return boxes[place], best, labels

    def _candidates(self, outputs: Sequence[Tensor], level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes, scores and classes of a level's best candidates."""
        logits = _rows(outputs[level], self.num_classes).float().flatten()
        deltas = _rows(outputs[self.num_levels + level], 4).float()
        values, place = logits.topk(min(self.candidates, logits.shape[0]))
        row = torch.div(place, self.num_classes, rounding_mode="floor")
        boxes = decode(self.get_buffer(f"anchors{level}")[row], self.anchors.units(deltas[row]))
        return boxes, torch.sigmoid(values), place - row * self.num_classes


def _rows(maps: Tensor, numbers: int) -> Tensor:
    """Returns (1, A * numbers, H, W) as (H * W * A, numbers)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, numbers)


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
