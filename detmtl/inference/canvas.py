"""How a picture is brought to the one size that a graph of fixed shapes takes.

Letters: H and W pixels of the canvas, h and w of the picture on it.
"""

import torch
from torch import Tensor

from detmtl.data.fit import fit
from detmtl.structures.sample import DIVISOR


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
