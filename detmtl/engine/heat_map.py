"""A table of numbers as a picture: red below 0, blue above."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, LINE, SIZE = (64, 26), 18, 13
BLUE, RED, PAPER, INK = (59, 130, 196), (200, 81, 95), (255, 255, 255), (20, 20, 20)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    limit: float = 1.0,
) -> np.ndarray:
    """Returns a picture (H, W, 3) uint8 of a table with its numbers; None: an empty cell.

    Args:
        values: a list for each row.
        rows, columns: headings.
        limit: number of the fullest color.
    """
    font = ImageFont.load_default(SIZE)
    left = int(max(font.getlength(name) for name in ("", *rows))) + 12
    wide = int(max(CELL[0], *(font.getlength(name) + 10 for name in ("", *columns))))
    size = (left + wide * len(columns), LINE + CELL[1] * len(rows) + 4)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    for j, name in enumerate(columns):
        pen.text((left + j * wide + 4, 2), name, fill=INK, font=font)
    for i, name in enumerate(rows):
        y = LINE + i * CELL[1]
        pen.text((4, y + 5), name, fill=INK, font=font)
        for j, value in enumerate(values[i]):
            if value is None:
                continue
            x = left + j * wide
            pen.rectangle((x, y, x + wide - 2, y + CELL[1] - 2), fill=shade(value, limit))
            pen.text((x + 4, y + 5), f"{value:+.2f}", fill=INK, font=font)
    return np.asarray(picture)


def shade(value: float, limit: float) -> tuple[int, ...]:
    """Returns the RGB color of a number: the stronger, the farther from 0."""
    share = min(1.0, abs(value) / limit) ** 0.5
    color = BLUE if value > 0 else RED
    return tuple(round(p + share * (c - p)) for p, c in zip(PAPER, color, strict=True))
