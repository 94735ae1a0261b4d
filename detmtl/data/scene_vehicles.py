"""Vehicles of the built-in scenes. Measures are meters; x is forward."""

from math import cos, sin

import numpy as np

from detmtl.data.scene_mesh import Mesh
from detmtl.data.scene_paint import Color, Profile, Rng, lightened, rectangle, scaled

_GLASS: Color = (66, 84, 100)
_TIRE: Color = (34, 34, 36)
_RIM: Color = (170, 172, 176)
_LIGHT: Color = (252, 246, 220)
_TAIL: Color = (210, 30, 30)


WHEELS = ("left_front_wheel", "right_front_wheel", "left_rear_wheel", "right_rear_wheel")


def _wheels(mesh: Mesh, xs: tuple[float, ...], half: float, radius: float) -> None:
    """Adds tires below a body; they come before it."""
    for x in xs:
        for side in (-1, 1):
            mesh.part()
            z = (half - 0.12) * side
            mesh.box(x - radius * 0.7, x + radius * 0.7, 0, radius, z - 0.11, z + 0.11, _TIRE)
    for x, end in ((xs[0], "rear"), (xs[-1], "front")):
        for z, side in ((-half, "left"), (half, "right")):
            mesh.mark(f"{side}_{end}_wheel", x, radius, z)


def _wheel_faces(mesh: Mesh, xs: tuple[float, ...], half: float, radius: float) -> None:
    for x in xs:
        mesh.disc(x, radius, half + 0.01, radius, _TIRE)
        mesh.disc(x, radius, half + 0.02, radius * 0.55, _RIM)


def _lights(mesh: Mesh, front: float, back: float, y: float, half: float) -> None:
    for side in (-1, 1):
        inner, outer = sorted((side * half * 0.55, side * half * 0.92))
        mesh.end(front, y, y + 0.16, inner, outer, _LIGHT, 1.1)
        mesh.end(back, y, y + 0.16, inner, outer, _TAIL, 0.9)
        mesh.glow(front + 0.05, y + 0.08, side * half * 0.7, 0.28, (255, 244, 210))


def car(rng: Rng, color: Color) -> Mesh:
    """Saloon, hatchback or a high one."""
    mesh = Mesh()
    kind = int(rng.integers(3))
    half = 0.87
    long, tall = ((2.2, 1.42), (1.85, 1.48), (2.2, 1.72))[kind]
    long *= rng.uniform(0.94, 1.06)
    waist = tall * 0.6
    rear = ((-0.72, -0.42), (-0.97, -0.8), (-0.98, -0.86))[kind]
    xs = (-0.6 * long, 0.6 * long)
    r = 0.33 if kind < 2 else 0.38
    _wheels(mesh, xs, half, r)
    mesh.part()
    mesh.prism(
        [(-long, 0.24), (long, 0.24), (long, waist * 0.82), (long * 0.48, waist), (-long, waist)],
        -half, half, color, {0: _TIRE},
    )  # fmt: skip
    _wheel_faces(mesh, xs, half, r)
    _lights(mesh, long + 0.01, -long - 0.01, waist * 0.62, half)
    mesh.end(long + 0.01, 0.3, 0.42, -half * 0.5, half * 0.5, (50, 50, 54))
    mesh.end(-long - 0.01, 0.42, 0.54, -0.26, 0.26, (228, 226, 210))
    mesh.sides([(0.02, waist * 0.5), (0.05, waist * 0.5), (0.05, waist), (0.02, waist)], half + 0.01,
               scaled(color, 0.65))  # fmt: skip
    mesh.part()
    cabin: Profile = [
        (rear[0] * long, waist),
        (0.48 * long, waist),
        (0.16 * long, tall),
        (rear[1] * long, tall),
    ]
    mesh.prism(cabin, -half * 0.9, half * 0.9, color, {1: _GLASS, 3: _GLASS})
    for x0, x1, l0, l1 in (
        (rear[0] + 0.09, -0.13, rear[1] + 0.06, -0.13),
        (-0.07, 0.4, -0.07, 0.14),
    ):
        pane = [(x0 * long, waist + 0.03), (x1 * long, waist + 0.03),
                (l1 * long, tall - 0.09), (l0 * long, tall - 0.09)]  # fmt: skip
        mesh.sides(pane, half * 0.9 + 0.01, _GLASS)
    return mesh


def van(rng: Rng, color: Color) -> Mesh:
    """Delivery van or minibus."""
    mesh = Mesh()
    half, long = 0.97, rng.uniform(2.3, 2.8)
    tall = rng.uniform(1.95, 2.5)
    r, xs = 0.36, (-0.6 * long, 0.66 * long)
    _wheels(mesh, xs, half, r)
    mesh.part()
    nose = long * 0.74
    mesh.prism(
        [(-long, 0.28), (long, 0.28), (long, 0.98), (nose, 1.18), (nose * 0.78, tall), (-long, tall)],
        -half, half, color, {0: _TIRE, 3: _GLASS},
    )  # fmt: skip
    _wheel_faces(mesh, xs, half, r)
    _lights(mesh, long + 0.01, -long - 0.01, 0.72, half)
    mesh.sides([(nose * 0.5, 1.16), (nose * 0.94, 1.16), (nose * 0.76, tall - 0.2), (nose * 0.5, tall - 0.2)],
               half + 0.01, _GLASS)  # fmt: skip
    if rng.random() < 0.4:  # windows all along
        for x in np.linspace(-long * 0.92, nose * 0.1, 3):
            mesh.sides(rectangle(x, x + long * 0.36, 1.2, tall - 0.22), half + 0.01, _GLASS)
    else:
        mesh.sides(rectangle(0.0, 0.03, 0.4, tall - 0.15), half + 0.01, scaled(color, 0.65))
        if rng.random() < 0.5:
            mesh.sides(
                rectangle(-long * 0.85, -long * 0.15, 1.05, 1.4), half + 0.01, lightened(color)
            )
    for side in (-1, 1):
        inner, outer = sorted((side * 0.08, side * 0.8))
        mesh.end(-long - 0.01, 1.2, tall - 0.2, inner, outer, _GLASS)
    return mesh


def bus(rng: Rng, color: Color) -> Mesh:
    """City bus, some with two decks."""
    mesh = Mesh()
    half, long = 1.22, rng.uniform(4.2, 5.6)
    decks = 2 if rng.random() < 0.25 else 1
    tall = 2.9 if decks == 1 else 4.2
    r, xs = 0.47, (-0.6 * long, 0.66 * long)
    _wheels(mesh, xs, half, r)
    mesh.part()
    mesh.prism(
        [(-long, 0.32), (long, 0.32), (long, tall - 0.25), (long - 0.25, tall), (-long, tall)],
        -half, half, color, {0: _TIRE},
    )  # fmt: skip
    _wheel_faces(mesh, xs, half, r)
    if rng.random() < 0.4:
        mesh.sides(rectangle(-long, long, 0.72, 1.0), half + 0.005, lightened(color))
    panes = int(rng.integers(5, 8))
    step = 2 * long / panes
    for deck in range(decks):
        low = 1.3 + 1.5 * deck
        for k in range(panes):
            x = -long + k * step + 0.12
            mesh.sides(rectangle(x, x + step - 0.2, low, low + 0.95), half + 0.01, _GLASS, 1.5)
        for end in (long + 0.01, -long - 0.01):
            mesh.end(
                end, low - (0.2 if end > 0 else 0), low + 1.0, -half * 0.88, half * 0.88, _GLASS
            )
    mesh.end(long + 0.02, tall - 0.5, tall - 0.28, -0.7, 0.7, (250, 190, 60), 1.0)
    for x in (long * 0.82, -long * 0.05):
        mesh.sides(rectangle(x, x + 0.8, 0.4, 2.2), half + 0.02, scaled(_GLASS, 0.65))
    _lights(mesh, long + 0.02, -long - 0.02, 0.62, half)
    return mesh


def truck(rng: Rng, color: Color) -> Mesh:
    """Cab and box, open load or tank."""
    mesh = Mesh()
    half, long = 1.15, rng.uniform(2.9, 4.2)
    r, xs = 0.46, (-0.72 * long, -0.4 * long, 0.68 * long)
    _wheels(mesh, xs, half, r)
    mesh.part()
    mesh.box(-long, long * 0.95, 0.45, 0.75, -0.5, 0.5, (56, 56, 60))
    split = long * 0.42
    kind = rng.random()
    mesh.part()
    if kind < 0.6:
        load = (226, 226, 222) if rng.random() < 0.5 else lightened(color)
        mesh.box(-long, split - 0.12, 0.75, rng.uniform(2.7, 3.3), -half, half, load)
        if rng.random() < 0.5:
            mesh.sides(rectangle(-long * 0.7, split * 0.2, 1.5, 2.2), half + 0.01, color)
    elif kind < 0.8:
        mesh.box(-long, split - 0.12, 0.75, 1.5, -half, half, scaled(color, 0.65))
        mesh.part()
        mesh.blob(-long * 0.3, 1.5, 0, long * 0.6, 0.55, 0.9, (140, 110, 76))
    else:
        mesh.limb((-long * 0.75, 1.75, 0), (split - 0.9, 1.75, 0), 0.95, (196, 198, 202))
    mesh.part()
    mesh.prism(
        [(split, 0.4), (long, 0.4), (long, 1.5), (long - 0.18, 2.5), (split, 2.5)],
        -half, half, color, {2: _GLASS},
    )  # fmt: skip
    mesh.sides([(split + 0.35, 1.5), (long - 0.12, 1.5), (long - 0.24, 2.3), (split + 0.35, 2.3)],
               half + 0.01, _GLASS)  # fmt: skip
    _lights(mesh, long + 0.01, -long - 0.01, 0.7, half)
    mesh.end(long + 0.01, 0.95, 1.35, -half * 0.6, half * 0.6, (60, 60, 64))
    mesh.part()
    for x in xs:
        mesh.disc(x, r, half + 0.02, r, _TIRE)
        mesh.disc(x, r, half + 0.03, r * 0.5, _RIM)
    return mesh


def boat(rng: Rng, color: Color) -> Mesh:
    """Sailing, motor or rowing boat."""
    mesh = Mesh()
    kind = rng.random()
    long = rng.uniform(1.6, 3.2)
    half, deck = long * 0.3, long * 0.22
    bow, stern = (long * 1.15, deck * 1.25, 0.0), -long
    keel = 0.75
    for side in (1, -1):
        z = half * side
        low = [(stern * 0.92, 0, z * 0.6), (long * keel, 0.0, 0.0)]
        high = [bow, (long * 0.3, deck, z), (stern, deck, z)]
        hull = [*low, *high]
        mesh.face(hull if side > 0 else hull[::-1], color)
        stripe = [(stern, deck * 0.72, z), (long * 0.3, deck * 0.72, z), (long * 0.3, deck * 0.9, z),
                  (stern, deck * 0.9, z)]  # fmt: skip
        mesh.decal(stripe if side > 0 else stripe[::-1], (240, 240, 236))
    mesh.face([(stern, deck, half), (stern, deck, -half), (stern * 0.92, 0, -half * 0.6),
               (stern * 0.92, 0, half * 0.6)], scaled(color, 0.65))  # fmt: skip
    beam = long * 0.3
    mesh.face(
        [(stern, deck, half), (beam, deck, half), bow, (beam, deck, -half), (stern, deck, -half)],
        (176, 142, 100),
    )
    mesh.part()
    if kind < 0.45:
        mast = long * rng.uniform(1.9, 2.4)
        sail: Color = (242, 240, 232) if rng.random() < 0.7 else lightened(color)
        mesh.limb((0.1 * long, deck, 0), (0.1 * long, mast, 0), 0.045, (120, 96, 70))
        bulge = rng.uniform(-0.25, 0.25) * long
        mesh.sheet(
            [
                (0.06 * long, deck * 1.7, 0),
                (0.06 * long, mast * 0.97, 0),
                (stern * 0.85, deck * 1.8, bulge),
            ],
            sail,
        )
        x, tip = 0.16 * long, (long * 1.08, deck * 1.5, bulge * 0.4)
        mesh.sheet([(x, mast * 0.9, 0), (x, deck * 1.6, 0), tip], scaled(sail, 0.92))
    elif kind < 0.8:
        top = deck + long * 0.42
        mesh.prism([(-0.55 * long, deck), (0.35 * long, deck), (0.12 * long, top), (-0.55 * long, top)],
                   -half * 0.65, half * 0.65, (236, 236, 232), {1: _GLASS})  # fmt: skip
        mesh.sides(
            rectangle(-0.45 * long, 0.05 * long, deck + 0.18 * long, top - 0.08 * long),
            half * 0.66,
            _GLASS,
            1.4,
        )
    else:
        for x in (-0.4 * long, 0.2 * long):
            mesh.box(x - 0.12, x + 0.12, deck, deck + 0.06, -half * 0.9, half * 0.9, (130, 96, 62))
        mesh.part()
        mesh.limb((0, deck, half), (-0.3 * long, 0.05, half * 2.3), 0.035, (150, 116, 76))
    return mesh


def bicycle(rng: Rng, color: Color) -> Mesh:
    """With a diamond or a step-through frame; some with somebody on it."""
    mesh = Mesh()
    r, x = 0.34, 0.52
    for at in (-x, x):
        mesh.part()
        mesh.hoop(at, r, 0, r, 0.026, _TIRE)
        for k in range(3):
            t = 1.05 * k + 0.3
            c, s = r * cos(t), r * sin(t)
            mesh.limb((at - c, r - s, 0), (at + c, r + s, 0), 0.006, (150, 150, 152))
    mesh.part()
    crank, seat, head = (-0.06, 0.3, 0.0), (-0.2, 0.86, 0.0), (0.36, 0.86, 0.0)
    mesh.mark("front_wheel", x, r, 0)
    mesh.mark("rear_wheel", -x, r, 0)
    mesh.mark("handlebar", 0.33, 1.0, 0)
    mesh.mark("saddle", -0.21, 0.9, 0)
    tube = 0.034
    mesh.limb((-x, r, 0), crank, tube * 0.8, color)
    mesh.limb((-x, r, 0), (-0.18, 0.76, 0), tube * 0.8, color)
    mesh.limb(crank, seat, tube, color)
    mesh.limb(crank, head, tube, color)
    if rng.random() < 0.6:
        mesh.limb((-0.18, 0.76, 0), head, tube, color)
    mesh.limb((x, r, 0), (0.33, 0.98, 0), tube * 0.8, color)
    mesh.part()
    mesh.limb((0.33, 1.0, -0.26), (0.33, 1.0, 0.26), 0.026, _TIRE)
    mesh.limb((-0.3, 0.9, 0), (-0.12, 0.9, 0), 0.045, _TIRE)
    mesh.blob(*crank, 0.09, 0.09, 0.03, (90, 90, 94))
    if rng.random() < 0.3:
        mesh.part()
        mesh.box(0.4, 0.72, 0.78, 1.0, -0.18, 0.18, (140, 104, 66))
    return mesh


def motorcycle(rng: Rng, color: Color) -> Mesh:
    """Road machine or scooter."""
    mesh = Mesh()
    scooter = rng.random() < 0.4
    r, x = (0.24, 0.58) if scooter else (0.32, 0.7)
    for at in (-x, x):
        mesh.part()
        mesh.hoop(at, r, 0, r * 0.82, 0.06, _TIRE)
        mesh.limb((at, r, -0.06), (at, r, 0.06), r * 0.35, _RIM)
    mesh.part()
    mesh.limb((x, r, 0), (x * 0.62, 1.0, 0), 0.045, (120, 122, 126))
    mesh.mark("front_wheel", x, r, 0)
    mesh.mark("rear_wheel", -x, r, 0)
    mesh.mark("handlebar", x * 0.6, 1.04, 0)
    mesh.mark("saddle", -0.36, 0.78, 0)
    if scooter:
        mesh.limb((-x, 0.5, 0), (-0.1, 0.5, 0), 0.17, color)
        mesh.limb((-0.1, 0.3, 0), (0.35, 0.3, 0), 0.07, color)
        mesh.limb((0.35, 0.3, 0), (0.45, 0.95, 0), 0.09, color)
    else:
        mesh.blob(0.0, 0.42, 0, 0.26, 0.2, 0.16, (104, 106, 110))
        mesh.limb((-0.1, 0.3, 0.12), (-x, 0.3, 0.14), 0.045, _RIM)
        mesh.blob(0.14, 0.76, 0, 0.3, 0.16, 0.17, color)
        mesh.limb((-0.62, 0.74, 0), (-0.4, 0.66, 0), 0.1, color)
    mesh.part()
    mesh.limb((-0.6, 0.8, 0), (-0.12, 0.76, 0), 0.085, _TIRE)
    mesh.part()
    mesh.limb((x * 0.6, 1.04, -0.33), (x * 0.6, 1.04, 0.33), 0.03, _TIRE)
    mesh.blob(x * 0.75, 0.9, 0, 0.09, 0.1, 0.1, _LIGHT)
    mesh.glow(x * 0.85, 0.9, 0, 0.25, (255, 244, 210))
    return mesh
