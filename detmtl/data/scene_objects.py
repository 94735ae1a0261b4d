"""The classes of the built-in scenes that are no vehicles, and the list of all classes.

Every function builds one variant: a size, a pose, a shape. Measures are meters.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np

from detmtl.data.scene_mesh import Mesh
from detmtl.data.scene_paint import Color, Rng, any_color, rectangle, scaled, varied
from detmtl.data.scene_vehicles import (
    WHEELS,
    bicycle,
    boat,
    bus,
    car,
    motorcycle,
    truck,
    van,
)

_SKIN: tuple[Color, ...] = ((232, 190, 160), (206, 156, 120), (150, 100, 70), (94, 62, 44))
_IRON: Color = (66, 68, 74)
_SIDES = {-1: "left", 1: "right"}  # z is to the right


def person(rng: Rng, color: Color) -> Mesh:
    """Standing, walking, waving, or a child of either kind; `color` is the top's."""
    mesh = Mesh()
    size = rng.uniform(0.92, 1.08) if rng.random() < 0.85 else rng.uniform(0.6, 0.75)
    skin = _SKIN[int(rng.integers(4))]
    trousers = any_color(rng)
    figure(mesh, rng, size, color, trousers, skin)
    if rng.random() < 0.2:  # a bag
        mesh.part()
        mesh.box(-0.32 * size, -0.12 * size, 1.0 * size, 1.4 * size, -0.15, 0.15, any_color(rng))
    return mesh


def figure(
    mesh: Mesh,
    rng: Rng,
    size: float,
    top: Color,
    trousers: Color,
    skin: Color,
) -> None:
    """Adds a human figure on its feet."""
    s = size
    stride = rng.choice([0.0, 0.0, 0.25, 0.4]) * rng.uniform(0.6, 1.2) * s
    skirt = rng.random() < 0.2
    leg = skin if skirt or rng.random() < 0.15 else trousers
    for side, ahead in ((-1, stride), (1, -stride)):
        z = 0.1 * side * s
        mesh.part()
        knee = (ahead * 0.6 + 0.04 * s, 0.47 * s, z)
        mesh.limb((0.0, 0.9 * s, z), knee, 0.085 * s, trousers if not skirt else leg)
        mesh.limb(knee, (ahead, 0.06 * s, z), 0.065 * s, leg)
        mesh.limb((ahead, 0.04 * s, z), (ahead + 0.14 * s, 0.04 * s, z), 0.05 * s, (40, 36, 36))
        mesh.mark(f"{_SIDES[side]}_foot", ahead, 0.06 * s, z)
    mesh.part()
    if skirt:
        mesh.column(0, 0, 0.3 * s, 0.15 * s, 0.5 * s, 1.0 * s, trousers)
    mesh.blob(0, 1.17 * s, 0, 0.15 * s, 0.34 * s, 0.215 * s, top)
    mesh.limb((0, 1.36 * s, -0.13 * s), (0, 1.36 * s, 0.13 * s), 0.085 * s, top)
    raised = rng.random() < 0.12
    for side, ahead in ((-1, -stride), (1, stride)):
        mesh.part()
        z = 0.23 * side * s
        up = raised and side == 1
        elbow = (ahead * 0.4, (1.62 if up else 1.1) * s, z + 0.08 * side * s)
        hand = (ahead * 0.7 + 0.08 * s, (1.9 if up else 0.88) * s, z + 0.06 * side * s)
        mesh.limb((0, 1.38 * s, z), elbow, 0.06 * s, top)
        mesh.limb(elbow, hand, 0.048 * s, skin if rng.random() < 0.5 else top)
        mesh.blob(*hand, 0.055 * s, 0.06 * s, 0.055 * s, skin)
        mesh.mark(f"{_SIDES[side]}_hand", *hand)
    mesh.part()
    mesh.limb((0, 1.42 * s, 0), (0.02 * s, 1.52 * s, 0), 0.055 * s, skin)
    mesh.blob(0.02 * s, 1.6 * s, 0, 0.12 * s, 0.145 * s, 0.11 * s, skin)
    mesh.mark("head", 0.02 * s, 1.6 * s, 0)
    hair: Color = [(34, 28, 26), (90, 58, 34), (196, 160, 96), (150, 150, 150)][
        int(rng.integers(4))
    ]
    mesh.part()
    mesh.blob(-0.03 * s, 1.67 * s, 0, 0.125 * s, 0.095 * s, 0.118 * s, hair)
    if rng.random() < 0.2:  # a hat
        hat = any_color(rng)
        mesh.part()
        mesh.column(0, 0, 0.22 * s, 0.22 * s, 1.68 * s, 1.7 * s, hat)
        mesh.column(0, 0, 0.13 * s, 0.11 * s, 1.7 * s, 1.82 * s, hat)


def _four_legs(
    mesh: Mesh, rng: Rng, x: float, height: float, z: float, r: float, ink: Color
) -> None:
    swing = rng.uniform(0, 0.3) * height
    for ahead, side, step in ((x, 1, swing), (x, -1, -swing), (-x, 1, -swing), (-x, -1, swing)):
        knee = (ahead + step * 0.3, height * 0.5, z * side)
        mesh.part()
        mesh.limb((ahead, height, z * side), knee, r * 1.25, ink)
        mesh.limb(knee, (ahead + step, r, z * side), r, ink)
        end = "front" if ahead > 0 else "hind"
        mesh.mark(f"{_SIDES[side]}_{end}_foot", ahead + step, r, z * side)


def dog(rng: Rng, color: Color) -> Mesh:
    """Long or short legs, pricked or hanging ears, head up or down."""
    mesh = Mesh()
    s = rng.uniform(0.75, 1.25)
    leg = rng.uniform(0.22, 0.4) * s
    thick = rng.uniform(0.1, 0.14) * s
    _four_legs(mesh, rng, 0.28 * s, leg, 0.08 * s, 0.036 * s, color)
    back = leg + thick * 0.6
    mesh.part()
    mesh.limb((-0.28 * s, back, 0), (0.26 * s, back + 0.02 * s, 0), thick, color)
    if rng.random() < 0.3:  # a patch
        mesh.blob(0.0, back, 0, 0.14 * s, thick * 0.9, thick, (230, 224, 214))
    mesh.part()
    up = rng.uniform(0.02, 0.26) * s
    head = (0.44 * s, back + up, 0.0)
    mesh.limb((0.24 * s, back + 0.04 * s, 0), head, 0.085 * s, color)
    mesh.part()
    mesh.blob(*head, 0.11 * s, 0.1 * s, 0.09 * s, color)
    mesh.limb(head, (0.6 * s, head[1] - 0.04 * s, 0), 0.05 * s, color)
    mesh.blob(0.64 * s, head[1] - 0.03 * s, 0, 0.03 * s, 0.03 * s, 0.03 * s, (24, 20, 20))
    mesh.mark("nose", 0.64 * s, head[1] - 0.03 * s, 0)
    dark = scaled(color, 0.62)
    hang = rng.random() < 0.5
    for side in (-1, 1):
        tip = head[1] + (-0.12 if hang else 0.2) * s
        mesh.part()
        mesh.limb((head[0] - 0.03 * s, head[1] + 0.07 * s, 0.07 * side * s),
                  (head[0] - 0.06 * s, tip, 0.08 * side * s), 0.034 * s, dark)  # fmt: skip
    mesh.part()
    rise = rng.uniform(-0.1, 0.3) * s
    mesh.limb((-0.34 * s, back + 0.04 * s, 0), (-0.52 * s, back + rise, 0), 0.03 * s, color)
    mesh.mark("tail", -0.52 * s, back + rise, 0)
    return mesh


def horse(rng: Rng, color: Color) -> Mesh:
    """Standing, walking or grazing; some with a rider."""
    mesh = Mesh()
    s = rng.uniform(0.9, 1.1)
    _four_legs(mesh, rng, 0.62 * s, 0.88 * s, 0.16 * s, 0.075 * s, color)
    dark = scaled(color, 0.45)
    mesh.part()
    mesh.limb((-0.58 * s, 1.18 * s, 0), (0.55 * s, 1.14 * s, 0), 0.31 * s, color)
    grazing = rng.random() < 0.25
    poll = (
        (1.15 * s, 0.62 * s, 0.0) if grazing else (1.02 * s, (1.7 + rng.uniform(0, 0.2)) * s, 0.0)
    )
    nose = (1.3 * s, 0.2 * s, 0.0) if grazing else (1.42 * s, poll[1] - 0.3 * s, 0.0)
    mesh.part()
    mesh.limb((0.6 * s, 1.3 * s, 0), poll, 0.17 * s, color)
    mesh.limb((0.5 * s, 1.5 * s, 0), (poll[0] - 0.12 * s, poll[1] + 0.06 * s, 0), 0.07 * s, dark)
    mesh.part()
    mesh.limb(poll, nose, 0.115 * s, color)
    mesh.limb((nose[0], nose[1], 0), (nose[0] + 0.04 * s, nose[1] - 0.02 * s, 0), 0.1 * s, dark)
    mesh.limb(poll, (poll[0] - 0.05 * s, poll[1] + 0.16 * s, 0), 0.045 * s, color)
    mesh.part()
    mesh.limb((-0.85 * s, 1.28 * s, 0), (-1.05 * s, 0.6 * s, 0), 0.085 * s, dark)
    mesh.mark("nose", *nose)
    mesh.mark("tail", -1.05 * s, 0.6 * s, 0)
    return mesh


def tree(rng: Rng, color: Color) -> Mesh:
    """Broad crown, conifer, or a tall thin one."""
    mesh = Mesh(texture=0.2)
    s = rng.uniform(0.7, 1.3)
    kind = rng.random()
    bark = scaled((104, 78, 56), rng.uniform(0.7, 1.2))
    if kind < 0.3:
        mesh.column(0, 0, 0.16 * s, 0.12 * s, 0, 1.2 * s, bark, 6)
        for k in range(4):
            mesh.part()
            low = (0.8 + 1.1 * k) * s
            mesh.column(
                0, 0, (1.5 - 0.3 * k) * s, 0, low, low + 1.9 * s, varied(rng, color, 0.1), 10
            )
        return mesh
    tall = kind > 0.82
    trunk = (1.1 if tall else 1.9) * s
    mesh.column(0, 0, 0.2 * s, 0.14 * s, 0, trunk + 0.8 * s, bark, 6)
    wide, high = (0.75, 2.6) if tall else (rng.uniform(1.3, 1.9), rng.uniform(1.2, 1.7))
    center = trunk + high * s
    for _ in range(9 if tall else 13):
        a, r, t = rng.uniform(0, 2 * pi), rng.uniform(0.2, 0.75), rng.uniform(-0.7, 0.75)
        r *= 1 - 0.35 * abs(t)
        size = rng.uniform(0.4, 0.62) * wide * s
        mesh.part()
        mesh.blob(r * wide * s * cos(a), center + t * high * s, r * wide * s * sin(a),
                  size, size * (1.3 if tall else 0.85), size, varied(rng, color, 0.13))  # fmt: skip
    return mesh


def bench(rng: Rng, color: Color) -> Mesh:
    """Planks on iron or stone legs, with or without a back; faces z."""
    mesh = Mesh()
    half = rng.uniform(0.65, 1.1)
    stone = rng.random() < 0.25
    legs = (150, 148, 142) if stone else _IRON
    wide = 0.09 if stone else 0.035
    for x in (-half * 0.8, half * 0.8):
        mesh.part()
        mesh.box(x - wide, x + wide, 0, 0.43, -0.2, 0.2, legs)
    for z in (-0.16, 0.0, 0.16):
        mesh.part()
        mesh.box(-half, half, 0.42, 0.48, z - 0.07, z + 0.07, color)
    if rng.random() < 0.75:
        for y in (0.62, 0.82):
            mesh.part()
            mesh.box(-half, half, y, y + 0.13, -0.29, -0.25, color)
        for x in (-half * 0.8, half * 0.8):
            mesh.part()
            mesh.limb((x, 0.45, -0.24), (x, 0.95, -0.31), 0.03, legs)
    return mesh


def lamp(rng: Rng, color: Color) -> Mesh:
    """A street light: curved arm, or a lantern on a post."""
    mesh = Mesh()
    glass: Color = (255, 246, 214)
    if rng.random() < 0.5:
        top = rng.uniform(4.0, 5.5)
        mesh.column(0, 0, 0.11, 0.07, 0, top, color, 6)
        for side in (1, -1) if rng.random() < 0.4 else (1,):
            mesh.part()
            mesh.limb((0, top, 0), (0.5 * side, top + 0.3, 0), 0.05, color)
            mesh.limb((0.5 * side, top + 0.3, 0), (1.0 * side, top + 0.32, 0), 0.05, color)
            mesh.part()
            mesh.box(
                0.95 * side - 0.3, 0.95 * side + 0.3, top + 0.24, top + 0.38, -0.12, 0.12, color
            )
            mesh.sides([(0.95 * side - 0.26, top + 0.2), (0.95 * side + 0.26, top + 0.2),
                        (0.95 * side + 0.26, top + 0.27), (0.95 * side - 0.26, top + 0.27)],
                       0.13, glass, 1.0)  # fmt: skip
            mesh.glow(0.95 * side, top + 0.2, 0, 0.9, (255, 226, 160))
        return mesh
    top = rng.uniform(2.6, 3.4)
    mesh.column(0, 0, 0.14, 0.1, 0, 0.5, color, 6)
    mesh.part()
    mesh.column(0, 0, 0.065, 0.055, 0.5, top, color, 6)
    mesh.part()
    if rng.random() < 0.5:
        mesh.blob(0, top + 0.2, 0, 0.23, 0.23, 0.23, glass)
    else:
        mesh.column(0, 0, 0.12, 0.2, top, top + 0.42, glass, 6)
        mesh.part()
        mesh.column(0, 0, 0.26, 0.03, top + 0.42, top + 0.62, color, 6)
    mesh.glow(0, top + 0.2, 0, 0.8, (255, 226, 160))
    return mesh


def umbrella(rng: Rng, color: Color) -> Mesh:
    """Open, one color or two, on a stand; also held (then the stick is short)."""
    return canopy(rng, color, rng.uniform(0.9, 1.4), rng.uniform(1.9, 2.4))


def held_umbrella(rng: Rng, color: Color) -> Mesh:
    """Open, to be lifted into somebody's hand."""
    return canopy(rng, color, rng.uniform(0.5, 0.65), 0.85)


def canopy(rng: Rng, color: Color, radius: float, top: float) -> Mesh:
    """Eight gores over a stick."""
    mesh = Mesh()
    mesh.limb((0, 0, 0), (0, top, 0), 0.022 + 0.012 * radius, (200, 196, 190))
    mesh.part()
    other = (236, 236, 230) if rng.random() < 0.35 else scaled(color, 0.86)
    drop = radius * rng.uniform(0.35, 0.6)
    ring = [(cos(2 * pi * k / 8), -sin(2 * pi * k / 8)) for k in range(8)]
    for k in range(8):
        (a, b), (c, d) = ring[k], ring[(k + 1) % 8]
        r, ink = radius, color if k % 2 else other
        low = [(r * a, top - drop, r * b), (r * c, top - drop, r * d)]
        mid = [
            (0.6 * r * c, top - 0.3 * drop, 0.6 * r * d),
            (0.6 * r * a, top - 0.3 * drop, 0.6 * r * b),
        ]
        mesh.face([*low, *mid], ink)
        mesh.face([mid[1], mid[0], (0.0, top + 0.04, 0.0)], ink)
        mesh.face([*mid[::-1], *low[::-1]], scaled(ink, 0.6))
    return mesh


def ball(rng: Rng, color: Color) -> Mesh:
    """Plain, spotted or banded; from a toy to a beach ball."""
    mesh = Mesh()
    r = rng.uniform(0.14, 0.36)
    mesh.blob(0, r, 0, r, r, r, color)
    mark: Color = (240, 240, 236) if sum(color) < 500 else (40, 40, 48)
    pattern = rng.random()
    if pattern < 0.4:
        for a, t in ((0.3, 0.4), (1.9, -0.2), (3.2, 0.5), (4.4, -0.5), (5.6, 0.1)):
            x, y, z = r * cos(a) * cos(t), r * sin(t), r * sin(a) * cos(t)
            mesh.part()
            mesh.blob(0.8 * x, r + 0.8 * y, 0.8 * z, r * 0.24, r * 0.24, r * 0.24, mark)
    elif pattern < 0.75:
        mesh.part()
        tilt = rng.uniform(-0.6, 0.6) * r
        mesh.limb(
            (-0.8 * r, r - tilt * 0.6, 0.3 * r), (0.8 * r, r + tilt * 0.6, 0.3 * r), 0.13 * r, mark
        )
    return mesh


def house(rng: Rng, color: Color) -> Mesh:
    """One or two floors under a gable."""
    mesh = Mesh(texture=0.1)
    half, deep = rng.uniform(2.6, 4.5), rng.uniform(2.2, 3.4)
    floors = int(rng.integers(1, 3))
    wall = 2.7 * floors
    ridge = wall + rng.uniform(1.4, 2.6)
    roof: Color = [(150, 62, 46), (92, 70, 62), (78, 84, 96), (170, 96, 58)][int(rng.integers(4))]
    dark: Color = (58, 70, 88)
    mesh.box(-half, half, 0, wall, -deep, deep, color)
    frame = (232, 230, 224)
    xs = np.linspace(-half + 1.0, half - 1.0, int(rng.integers(2, 5)))
    door = int(rng.integers(len(xs)))
    for floor in range(floors):
        y = 2.7 * floor
        for k, x in enumerate(xs):
            if floor == 0 and k == door:
                panel = any_color(rng)
                mesh.sides(rectangle(x - 0.5, x + 0.5, 0, 2.1), deep + 0.01, panel)
                continue
            mesh.sides(rectangle(x - 0.6, x + 0.6, y + 0.85, y + 2.15), deep + 0.01, frame)
            mesh.sides(rectangle(x - 0.5, x + 0.5, y + 0.95, y + 2.05), deep + 0.02, dark,
                       glow=float(rng.random() < 0.5) * 1.6)  # fmt: skip
        for end in (half + 0.01, -half - 0.01):
            mesh.end(end, y + 0.9, y + 2.1, -0.6, 0.6, dark)
    mesh.part()
    eave = 0.35
    for side in (-1, 1):
        x, y, z = half + eave, wall - 0.15, (deep + eave) * side
        slope = [(-x, y, z), (x, y, z), (x, ridge, 0.0), (-x, ridge, 0.0)]
        mesh.face(slope if side > 0 else slope[::-1], roof)
        gable = [
            (half * side, wall, deep * side),
            (half * side, wall, -deep * side),
            (half * side, ridge - 0.1, 0.0),
        ]
        mesh.face(gable, color)
    if rng.random() < 0.6:
        mesh.part()
        x = rng.uniform(-0.6, 0.6) * half
        mesh.box(x - 0.3, x + 0.3, ridge - 0.9, ridge + 0.6, -0.9, -0.3, (140, 84, 70))
    return mesh


BUILDERS: dict[str, Callable[[Rng, Color], Mesh]] = {
    "person": person,
    "bicycle": bicycle,
    "motorcycle": motorcycle,
    "car": car,
    "van": van,
    "bus": bus,
    "truck": truck,
    "boat": boat,
    "dog": dog,
    "horse": horse,
    "tree": tree,
    "bench": bench,
    "lamp": lamp,
    "umbrella": umbrella,
    "ball": ball,
    "house": house,
}
SCENE_CLASSES: tuple[str, ...] = tuple(BUILDERS)
_FEET = ("left_front_foot", "right_front_foot", "left_hind_foot", "right_hind_foot")
SCENE_KEYPOINTS: dict[str, tuple[str, ...]] = {
    "person": ("head", "left_hand", "right_hand", "left_foot", "right_foot"),
    **dict.fromkeys(
        ("bicycle", "motorcycle"), ("front_wheel", "rear_wheel", "handlebar", "saddle")
    ),
    **dict.fromkeys(("car", "van", "bus", "truck"), WHEELS),
    **dict.fromkeys(("dog", "horse"), ("nose", "tail", *_FEET)),
}
"""The keypoints of the classes that have some."""
