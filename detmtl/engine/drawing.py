"""Pictures with boxes on them."""

from collections.abc import Sequence

from torch import Tensor

from detmtl.structures.labels import BoxLabels


def draw(
    image: Tensor, labels: BoxLabels, class_names: Sequence[str], colors: str = "grade"
) -> Tensor:
    """Returns a copy of a picture (3, H, W) uint8 RGB with its boxes, class names and scores.

    Args:
        colors: "grade": gold boxes in gold, silver ones in silver; "class": a color for each class.
    """
    raise NotImplementedError
