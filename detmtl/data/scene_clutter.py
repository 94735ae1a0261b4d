"""Things in the built-in scenes that are no class: a detector must leave them alone.

Measures are meters.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np

from detmtl.data.scene_mesh import Mesh
from detmtl.data.scene_paint import Color, Rng, any_color, rectangle, scaled, varied

_WOOD: Color = (134, 96, 60)


def bush(rng: Rng) -> Mesh:
    """A round shrub."""
    mesh = Mesh(texture=0.2)
    green = varied(rng, (70, 120, 58), 0.3)
    for _ in range(6):
        r = rng.uniform(0.25, 0.45)
        mesh.part()
        mesh.blob(rng.uniform(-0.5, 0.5), r * rng.uniform(0.8, 1.3), rng.uniform(-0.3, 0.3),
                  r, r * 0.9, r, varied(rng, green, 0.12))  # fmt: skip
    return mesh


def rock(rng: Rng) -> Mesh:
    """Two or three stones."""
    mesh = Mesh(texture=0.2)
    for _ in range(int(rng.integers(1, 4))):
        r = rng.uniform(0.15, 0.5)
        mesh.part()
        mesh.blob(rng.uniform(-0.5, 0.5), r * 0.5, rng.uniform(-0.3, 0.3), r * 1.2, r * 0.7, r,
                  varied(rng, (128, 124, 118), 0.2))  # fmt: skip
    return mesh


def barrel(rng: Rng) -> Mesh:
    """A drum or a litter bin."""
    mesh = Mesh()
    ink = any_color(rng)
    mesh.column(0, 0, 0.28, 0.3, 0, 0.85, ink, 10)
    mesh.part()
    mesh.column(0, 0, 0.31, 0.31, 0.55, 0.62, scaled(ink, 0.6), 10)
    return mesh


def crate(rng: Rng) -> Mesh:
    """Boxes, some stacked."""
    mesh = Mesh()
    for k in range(int(rng.integers(1, 4))):
        s = rng.uniform(0.25, 0.45)
        x, y = (k % 2) * 0.8 - 0.3, 0.8 if k == 2 else 0.0
        mesh.part()
        mesh.box(x - s, x + s, y, y + 2 * s, -s, s, varied(rng, (176, 136, 88), 0.2))
        mesh.sides(rectangle(x - s * 0.8, x + s * 0.8, y + s * 0.85, y + s * 1.15), s + 0.01, _WOOD)
    return mesh


def cone(rng: Rng) -> Mesh:
    """A traffic cone."""
    mesh = Mesh()
    mesh.box(-0.22, 0.22, 0, 0.05, -0.22, 0.22, (60, 56, 54))
    mesh.part()
    mesh.column(0, 0, 0.17, 0.1, 0.05, 0.38, (240, 100, 30))
    mesh.part()
    mesh.column(0, 0, 0.1, 0.06, 0.38, 0.55, (240, 240, 236))
    mesh.part()
    mesh.column(0, 0, 0.06, 0.02, 0.55, 0.75, (240, 100, 30))
    return mesh


def sign(rng: Rng) -> Mesh:
    """A plate on a post."""
    mesh = Mesh()
    mesh.limb((0, 0, 0), (0, 2.1, 0), 0.04, (140, 140, 144))
    mesh.part()
    n = int(rng.choice([3, 4, 12]))
    turn = pi / 2 if n == 3 else pi / 4
    ring = [
        (0.38 * cos(turn + 2 * pi * k / n), 2.2 + 0.38 * sin(turn + 2 * pi * k / n))
        for k in range(n)
    ]
    mesh.prism(ring, 0.02, 0.06, any_color(rng))
    mesh.sides([(x * 0.6, 2.2 + (y - 2.2) * 0.6) for x, y in ring], 0.07, (240, 240, 236))
    return mesh


def fence(rng: Rng) -> Mesh:
    """Two rails on posts."""
    mesh = Mesh()
    ink = (226, 224, 216) if rng.random() < 0.5 else _WOOD
    half = rng.uniform(1.2, 2.6)
    for x in np.linspace(-half, half, 5):
        mesh.part()
        mesh.box(x - 0.05, x + 0.05, 0, 1.0, -0.04, 0.04, ink)
    for y in (0.4, 0.78):
        mesh.part()
        mesh.box(-half, half, y, y + 0.1, 0.03, 0.07, ink)
    return mesh


def kiosk(rng: Rng) -> Mesh:
    """A booth with a flat roof: not a house."""
    mesh = Mesh()
    ink = any_color(rng)
    mesh.box(-1.1, 1.1, 0, 2.3, -0.8, 0.8, ink)
    mesh.sides(rectangle(-0.8, 0.8, 1.1, 1.9), 0.81, (60, 66, 76))
    mesh.part()
    mesh.box(-1.4, 1.4, 2.3, 2.45, -1.1, 1.1, scaled(ink, 0.55))
    return mesh


def post_box(rng: Rng) -> Mesh:
    """A small cabinet on the pavement."""
    mesh = Mesh()
    mesh.box(-0.3, 0.3, 0, rng.uniform(0.7, 1.4), -0.22, 0.22, any_color(rng))
    mesh.sides(rectangle(-0.2, 0.2, 0.45, 0.5), 0.23, (40, 40, 44))
    return mesh


CLUTTER: tuple[Callable[[Rng], Mesh], ...] = (
    bush, rock, barrel, crate, cone, sign, fence, kiosk, post_box,
)  # fmt: skip
