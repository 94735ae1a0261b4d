"""How far away each pixel of a picture is.

Letters: H and W pixels, B pictures of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detmtl.structures.tensors import Tensors


@dataclass(frozen=True, eq=False)
class DepthLabels(Tensors):
    """The depth of each pixel of one picture, as truth or as prediction.

    A picture that is zoomed or cropped keeps its depths: it is what a longer lens would have seen from the
    same place.

    Attributes:
        depth: (H, W) float32, meters along the optical axis; 0 where it is unknown.
        grade: a `Grade`; 0: a person, or an instrument.
    """

    depth: Tensor
    grade: int = 0

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> "DepthLabels":
        """Returns the labels at size `after` (height, width); every pixel takes its nearest one's: a mean
        across an edge would be the depth of nothing."""
        if before == after:
            return self
        size = list(after)
        return replace(
            self, depth=F.interpolate(self.depth[None, None], size=size, mode="nearest-exact")[0, 0]
        )


@dataclass(frozen=True, eq=False)
class PaddedDepth(Tensors):
    """`DepthLabels` of B pictures in tensors of one shape.

    Attributes:
        depth: (B, H, W) float32; 0 in the padding and where not `present`.
        grade: (B,) uint8.
        present: (B,) bool, which pictures have labels for the task at all.
        some: whether any depth is known: found out while the labels are on the CPU, since asking a GPU
            means waiting for it.
    """

    depth: Tensor
    grade: Tensor
    present: Tensor
    some: bool = True

    def unpadded(self, sizes: Sequence[Sequence[int]]) -> list[DepthLabels | None]:
        """Returns the labels of each picture of true `sizes` (B, 2); None where nobody looked."""
        return [
            DepthLabels(self.depth[i, :h, :w], int(self.grade[i])) if present else None
            for i, (present, (h, w)) in enumerate(zip(self.present.tolist(), sizes, strict=True))
        ]


def pad_depth(labels: Sequence[DepthLabels | None], height: int, width: int) -> PaddedDepth:
    """Pads the depths of B pictures with 0, unknown."""
    out = PaddedDepth(
        depth=torch.zeros(len(labels), height, width),
        grade=torch.tensor([0 if x is None else int(x.grade) for x in labels], dtype=torch.uint8),
        present=torch.tensor([x is not None for x in labels]),
        some=any(bool((x.depth > 0).any()) for x in labels if x is not None),
    )
    for i, x in enumerate(labels):
        if x is not None:
            out.depth[i, : x.depth.shape[0], : x.depth.shape[1]] = x.depth
    return out
