"""Colors and rectangles that the models of the built-in scenes are made of."""

import numpy as np

Color = tuple[float, float, float]
"""RGB in 0..255."""
Profile = list[tuple[float, float]]
"""Corners (x, y), meters."""
Rng = np.random.Generator

COLORS: dict[str, tuple[int, int, int]] = {
    "black": (44, 44, 50),
    "white": (238, 238, 234),
    "gray": (142, 144, 148),
    "red": (204, 40, 38),
    "orange": (238, 130, 30),
    "yellow": (242, 210, 50),
    "green": (56, 148, 64),
    "blue": (42, 88, 196),
    "purple": (130, 60, 162),
    "brown": (124, 80, 46),
    "pink": (242, 144, 180),
}
"""Names of the attribute `color` and their RGB in white light."""


def any_color(rng: Rng) -> Color:
    """Returns one of `COLORS`."""
    return list(COLORS.values())[int(rng.integers(len(COLORS)))]


def scaled(color: Color, by: float) -> Color:
    """Returns the color `by` times as bright."""
    return color[0] * by, color[1] * by, color[2] * by


def varied(rng: Rng, color: Color, by: float) -> Color:
    """Returns the color up to the share `by` brighter or darker."""
    return scaled(color, 1 + rng.uniform(-by, by))


def lightened(color: Color) -> Color:
    """Returns the color mixed with white."""
    return (
        255 - (255 - color[0]) * 0.45,
        255 - (255 - color[1]) * 0.45,
        255 - (255 - color[2]) * 0.45,
    )


def rectangle(x0: float, x1: float, y0: float, y1: float) -> Profile:
    """Returns its corners counterclockwise."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
