"""Raw outputs of a detection head to boxes.

Letters: B pictures, C classes, L levels, A anchors per position, H and W positions of a level,
N boxes of a picture, K candidates,
R rows (anchors of a level).
Source: Lin et al. 2017 (RetinaNet), arXiv 1708.02002, section 4.
"""

import math

import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision.nms)
from torch import Tensor, nn

from detmtl.models.anchors import Anchors
from detmtl.models.boxcoder import decode
from detmtl.models.distances import decode_distances, expected
from detmtl.models.suppression import apart, kept_of_all


class Decoder(nn.Module):
    """Decodes, selects and suppresses; can be compiled by `torch.jit.script`.

    Boxes are float32, and scores too (float64 for float64 outputs), whatever the outputs' type. Candidates
    are found on logits, so that only theirs see a sigmoid, and only theirs are decoded. On a CPU picture by
    picture, on a GPU all pictures together: the same but for which of equal scores come first, or are
    candidates at all.
    """

    def __init__(
        self,
        anchors: Anchors,
        num_classes: int,
        score_threshold: float = 0.05,
        candidates: int = 1000,
        nms: float = 0.5,
        detections: int = 100,
        class_agnostic: bool = False,
        quality_power: float = 0.5,
        bins: int = 0,
        reach: float = 2.0,
        quality: bool = False,
    ):
        """Takes the anchors of the head and what `detmtl.tasks.detection.TestSettings` explains.

        Args:
            bins, reach: of the head's distributions; bins 0: its boxes are deltas.
            quality: whether the head has a branch for the quality of a box.
        """
        super().__init__()
        self.anchors = anchors
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.least_logit = least_logit(score_threshold)
        self.candidates = candidates
        self.nms = nms
        self.detections = detections
        self.class_agnostic = class_agnostic
        self.quality_power = quality_power
        self.bins = bins
        self.reach = reach
        self.parts = 3 if quality else 2  # outputs of a level

    def forward(self, outputs: list[Tensor], sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns for each picture boxes (N, 4) xyxy, scores (N,) in [0, 1], classes (N,) int64.

        Boxes are pixels of the network's picture, within its true size; best first.

        Args:
            outputs: logits (B, A * C, H, W) for each level, then boxes for each, then quality, if the
                head has it, for each: see `RetinaHead.forward`.
            sizes: (B, 2) true height and width of each picture.
        """
        anchors, logits, boxes, quality = self._parts(outputs)
        if outputs[0].is_cuda:
            return self._together(anchors, logits, boxes, quality, sizes)
        return self._one_by_one(anchors, logits, boxes, quality, sizes)

    def _parts(
        self, outputs: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Returns of each level anchors (R, 4), logits (B, R, C), what the head says of boxes
        (B, R, numbers), and quality (B, R, 1); without that branch the last list is empty."""
        num_levels = len(outputs) // self.parts
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        quality: list[Tensor] = []
        for level in range(num_levels):
            logits.append(rows_of(outputs[level], self.num_classes))
            boxes.append(rows_of(outputs[num_levels + level], 4 * (self.bins + 1)))
        for level in range(2 * num_levels, len(outputs)):
            quality.append(rows_of(outputs[level], 1))
        return self.anchors(outputs[:num_levels]), logits, boxes, quality

    def _one_by_one(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        said: list[Tensor],
        quality: list[Tensor],
        sizes: Tensor,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns what `forward` does, of what `_parts` returns: picture by picture, each with its own
        number of candidates."""
        results: list[tuple[Tensor, Tensor, Tensor]] = []
        for picture in range(len(sizes)):
            boxes: list[Tensor] = []
            scores: list[Tensor] = []
            classes: list[Tensor] = []
            for level in range(len(logits)):
                score, row, cls = self._candidates(logits[level][picture])
                if len(quality) > 0:
                    score = self.with_quality(score, quality[level][picture, :, 0][row])
                    kept = torch.nonzero(score > self.score_threshold).squeeze(1)
                    score, row, cls = score[kept], row[kept], cls[kept]
                boxes.append(self.decoded(anchors[level][row], said[level][picture][row]))
                scores.append(score)
                classes.append(cls)
            height, width = sizes[picture][0], sizes[picture][1]
            results.append(
                self._suppress(
                    _clip(torch.cat(boxes), height, width), torch.cat(scores), torch.cat(classes)
                )
            )
        return results

    def _together(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        said: list[Tensor],
        quality: list[Tensor],
        sizes: Tensor,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns what `forward` does, of what `_parts` returns: all pictures in one go, each with as many
        candidates of a level as the picture that has most; those that it lacks have the score -1."""
        best: list[Tensor] = []
        counts: list[Tensor] = []
        for x in logits:
            row_best = x.amax(2)
            above_limit = row_best > lowered(self.least_logit, x)  # a NaN is not
            best.append(torch.where(above_limit, row_best, -torch.inf))
            counts.append(above_limit.sum(1).amax())
        # one row at least: torch's fuser writes no valid code for a tensor of bfloat16 without elements
        rows: list[int] = torch.stack(counts).clamp(min=1).tolist()
        all_boxes: list[Tensor] = []
        all_scores: list[Tensor] = []
        all_classes: list[Tensor] = []
        for level in range(len(logits)):
            # the best of a level are among its rows whose best are the best
            row = best[level].topk(min(self.candidates, rows[level]), dim=1)[1]
            x = logits[level]
            x = x.gather(1, row.unsqueeze(2).expand(-1, -1, x.size(2))).flatten(1)
            x = torch.where(x > lowered(self.least_logit, x), x, -torch.inf)  # topk prefers a NaN
            values, place = x.topk(min(self.candidates, x.size(1)), dim=1)
            row = row.gather(1, torch.div(place, self.num_classes, rounding_mode="floor"))
            score = torch.sigmoid(values if values.dtype == torch.float64 else values.float())
            kept = score > self.score_threshold
            if len(quality) > 0:
                score = self.with_quality(score, quality[level][:, :, 0].gather(1, row))
                kept = kept & (score > self.score_threshold)
            numbers = said[level].size(2)
            here = said[level].gather(1, row.unsqueeze(2).expand(-1, -1, numbers))
            all_boxes.append(self.decoded(anchors[level][row], here))
            all_scores.append(torch.where(kept, score, -1.0))
            all_classes.append(place % self.num_classes)
        scores, order = torch.cat(all_scores, 1).sort(dim=1, descending=True, stable=True)
        boxes = torch.cat(all_boxes, 1).gather(1, order.unsqueeze(2).expand(-1, -1, 4))
        boxes = _clip(boxes, sizes[:, :1], sizes[:, 1:])
        classes = torch.cat(all_classes, 1).gather(1, order)
        places = kept_of_all(boxes, scores, classes, self.nms, self.class_agnostic, self.detections)
        results: list[tuple[Tensor, Tensor, Tensor]] = []
        for i, at in enumerate(places):
            results.append((boxes[i][at], scores[i][at], classes[i][at]))
        return results

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the best scores (K,) of a level's logits (R, C), best first, their rows and classes."""
        flat = logits.reshape(-1)
        place = above(flat, lowered(self.least_logit, flat))
        values = flat[place]
        if values.dtype != torch.float64:
            values = values.float()
        scores = torch.sigmoid(values)
        kept = scores > self.score_threshold
        scores, place = scores[kept], place[kept]
        scores, order = scores.topk(min(self.candidates, scores.size(0)))
        place = place[order]
        row = torch.div(place, self.num_classes, rounding_mode="floor")
        return scores, row, place % self.num_classes

    def with_quality(self, scores: Tensor, quality: Tensor) -> Tensor:
        """Returns p ** (1 - w) * q ** w.

        Args:
            scores: class probabilities p.
            quality: logits of q, of their shape.
        """
        q = torch.sigmoid(quality.to(scores.dtype))
        return scores ** (1.0 - self.quality_power) * q**self.quality_power

    def decoded(self, anchors: Tensor, outputs: Tensor) -> Tensor:
        """Returns the boxes (K, 4) of anchors (K, 4) and what the head says of them (K, numbers)."""
        if self.bins == 0:
            return decode(anchors, self.anchors.units(outputs))
        return decode_distances(anchors, expected(outputs, self.bins), self.bins, self.reach)

    def _suppress(
        self, boxes: Tensor, scores: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is left of candidates (K, 4), (K,), (K,) after suppression, best first.

        Suppression goes from the best down, so a prefix of the candidates that yields enough detections
        yields the right ones.
        """
        scores, order = scores.sort(descending=True, stable=True)
        boxes, classes = boxes[order], classes[order]
        shifted = boxes.double() if self.class_agnostic else apart(boxes, classes)
        count = min(boxes.size(0), 3 * self.detections // 2)
        keep = torch.ops.torchvision.nms(shifted[:count], scores[:count].double(), self.nms)
        while keep.size(0) < self.detections and count < boxes.size(0):
            count = min(boxes.size(0), 4 * count)
            keep = torch.ops.torchvision.nms(shifted[:count], scores[:count].double(), self.nms)
        keep = keep[: self.detections]
        return boxes[keep], scores[keep], classes[keep]


def least_logit(score_threshold: float) -> float:
    """Returns the logit that candidates must be above: a little low; what is kept is decided on scores."""
    if score_threshold <= 0:
        return -math.inf
    return math.log(score_threshold / (1 - score_threshold)) - 1e-3


def lowered(limit: float, logits: Tensor) -> float:
    """Returns the limit for a comparison with logits, low enough for their type, which it is rounded to."""
    if logits.dtype == torch.bfloat16 or logits.dtype == torch.float16:
        return limit - abs(limit) / 128
    return limit


def above(values: Tensor, limit: float, block: int = 64) -> Tensor:
    """Returns the places of the values (N,) above a limit, ascending.

    Few are: blocks without any are left out first, by their maximum, which is fast where a block's length
    suits the processor's registers, as that of a row of classes seldom does.
    """
    whole = values.size(0) // block * block
    blocks = values[:whole].view(-1, block)
    some = torch.nonzero(blocks.amax(1) > limit).squeeze(1)
    inside = torch.nonzero(blocks.index_select(0, some).view(-1) > limit).squeeze(1)
    first = some[torch.div(inside, block, rounding_mode="floor")] * block
    rest = torch.nonzero(values[whole:] > limit).squeeze(1)
    return torch.cat([first + inside % block, rest + whole])


def rows_of(maps: Tensor, numbers: int) -> Tensor:
    """Returns (B, A * numbers, H, W) as (B, H * W * A, numbers); of a channels_last map a view."""
    return maps.permute(0, 2, 3, 1).reshape(maps.size(0), -1, numbers)


def _clip(boxes: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Returns boxes (..., 4) within pictures whose sides (...) have the shape of a box's corner."""
    sides = torch.stack([width, height, width, height], dim=-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), sides)
