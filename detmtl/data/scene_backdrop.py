"""Ground, walls, far things, sky and weather of the built-in scenes."""

from dataclasses import dataclass
from functools import cache
from math import cos, sin

import cv2
import numpy as np

from detmtl.data.scene_mesh import Camera, Light
from detmtl.data.scene_paint import Color, Rng

FAR = 400.0
"""Depth of the sky, meters."""

_GROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], float]] = {
    "grass": ((92, 134, 58), (132, 152, 76), 0.20),
    "autumn": ((134, 116, 58), (168, 120, 56), 0.24),
    "asphalt": ((96, 96, 100), (112, 110, 110), 0.10),
    "paving": ((168, 160, 148), (150, 146, 142), 0.08),
    "sand": ((214, 192, 146), (194, 170, 124), 0.10),
    "snow": ((228, 232, 240), (206, 214, 228), 0.05),
    "water": ((52, 96, 128), (82, 130, 156), 0.16),
    "wood": ((158, 116, 72), (138, 98, 60), 0.10),
    "tiles": ((186, 184, 178), (170, 170, 168), 0.05),
    "gravel": ((150, 142, 128), (128, 120, 110), 0.22),
}  # two colors that alternate in patches, and how rough it is


@dataclass(frozen=True)
class Setting:
    """Place, time and weather, and the plan of the ground.

    Attributes:
        place: street, park, plaza, waterfront or hall.
        time: day, dusk or night.
        weather: clear, overcast, rain, fog or snow.
        autumn: whether leaves are brown.
        turn: heading of the road, radians from straight ahead; offset: its distance to the camera's
            axis; half: half its width, meters.
        shore: depth at which water begins, meters; FAR without water.
        wall: depth of the wall behind, meters; FAR without one.
    """

    place: str
    time: str
    weather: str
    autumn: bool
    turn: float
    offset: float
    half: float
    shore: float
    wall: float


def _rgb(color: Color) -> np.ndarray:
    return np.array(color, np.float32)


@cache
def noise(power: float, side: int = 512) -> np.ndarray:
    """Returns a periodic texture (side, side) float32, mean 0, deviation 1, with spectrum f^-power."""
    rng = np.random.default_rng(int(power * 1000))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**power
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (side, side))
    return (field / field.std()).astype(np.float32)


def grain(power: float, height: int, width: int, rng: Rng) -> np.ndarray:
    """Returns a random piece (height, width) of `noise(power)`."""
    tile = noise(power)
    side = len(tile)
    if height > side or width > side:
        tile = np.tile(tile, (height // side + 1, width // side + 1))
    y = int(rng.integers(tile.shape[0] - height + 1))
    x = int(rng.integers(tile.shape[1] - width + 1))
    return tile[y : y + height, x : x + width]


def light_of(setting: Setting, rng: Rng) -> Light:
    """Returns the light of a time and a weather."""
    around = rng.uniform(-2.2, 2.2)
    height = {"day": rng.uniform(0.6, 1.15), "dusk": rng.uniform(0.35, 0.5), "night": 1.2}[
        setting.time
    ]
    sun, ambient, shadow, soft = {
        "day": ((0.66, 0.62, 0.54), (0.5, 0.53, 0.58), 0.52, 0.012),
        "dusk": ((0.62, 0.4, 0.26), (0.4, 0.36, 0.42), 0.4, 0.02),
        "night": ((0.08, 0.09, 0.12), (0.24, 0.26, 0.34), 0.3, 0.03),
    }[setting.time]
    if setting.weather != "clear" and setting.time != "night":
        sun, shadow, soft = tuple(0.3 * c for c in sun), 0.3, 0.04
        ambient = tuple(1.4 * c for c in ambient)
    if setting.place == "hall":
        sun, ambient, shadow, soft = (0.3, 0.28, 0.24), (0.62, 0.6, 0.56), 0.35, 0.035
        height = 1.1
    if soft > 0.025:
        height = 1.35
    direction = np.array([cos(height) * sin(around), sin(height), cos(height) * cos(around)])
    strength = rng.uniform(0.88, 1.12)
    lamps = setting.time != "day" and setting.place != "hall"
    return Light(
        direction, np.array(sun) * strength, np.array(ambient) * strength, shadow, soft, lamps
    )


def draw_backdrop(
    setting: Setting, camera: Camera, light: Light, height: int, width: int, rng: Rng
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the picture without any object, (H, W, 3) float32 0..255, and depth (H, W) meters."""
    image = np.empty((height, width, 3), np.float32)
    depth = np.full((height, width), FAR, np.float32)
    base = camera.focal * camera.height / setting.wall
    edge = int(np.clip(np.ceil(camera.horizon + max(base, 0.5)), 1, height - 1))
    _ground(image[edge:], depth[edge:], edge, setting, camera, light, rng)
    if setting.wall < FAR:
        _wall(image[:edge], depth[:edge], setting, camera, light, rng)
    else:
        _sky(image[:edge], setting, rng)
        _horizon(image[:edge], depth[:edge], setting, light, rng)
    return image, depth


def _patches(xs: np.ndarray, zs: np.ndarray, scale: float, power: float) -> np.ndarray:
    """Returns noise at world positions (h, w), `scale` texels a meter, texels as they are."""
    tile = noise(power)
    columns = (xs * np.float32(scale)).astype(np.int32) & 511
    rows = (zs * np.float32(scale)).astype(np.int32) & 511
    return tile.ravel()[(rows << 9) | columns]


def _clouds(xs: np.ndarray, zs: np.ndarray, scale: float, power: float) -> np.ndarray:
    """Returns smooth noise at world positions (h, w), `scale` texels a meter."""
    h, w = xs.shape
    coarse = cv2.remap(
        noise(power), xs[::2, ::2] * np.float32(scale), zs[::2, ::2] * np.float32(scale),
        cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)


def _part(values: np.ndarray) -> np.ndarray:
    """Returns the fractional part; numpy's % takes five times as long."""
    return values - np.floor(values)


def _surface(kind: str, xs: np.ndarray, zs: np.ndarray, fade: np.ndarray, rng: Rng) -> np.ndarray:
    """Returns the color of a ground at world positions (h, W), (h, W, 3); `fade` (h, 1) in 0..1 is
    how much detail can be seen at a row's distance."""
    one, two, rough = _GROUNDS[kind]
    shift = np.float32(rng.uniform(0, 300))
    blend = 1 / (1 + cv2.exp(-1.5 * _clouds(xs + shift, zs, 9.0, 1.5)))
    if kind == "water":
        detail = _clouds(xs * np.float32(0.25), zs + shift, 60.0, 0.8) * np.sqrt(fade) * rough
    else:
        detail = _patches(xs, zs + shift, 110.0, 0.45) * fade * rough
    jitter = np.float32(rng.uniform(0.88, 1.12, 3) * rng.uniform(0.9, 1.1))
    color = _rgb(one) * jitter + blend[..., None] * (_rgb(two) - _rgb(one))
    color *= (1 + detail)[..., None]
    size = {"paving": rng.uniform(0.4, 1.2), "tiles": rng.uniform(0.5, 1.0)}.get(kind)
    if size:
        joint = np.float32(0.03 + 0.02 / fade) / np.float32(size)
        lines = (_part(xs / np.float32(size)) < joint) | (_part(zs / np.float32(size)) < joint)
        color[lines & (fade > 0.12)] *= 0.8
    if kind == "wood":
        plank = xs * np.float32(1 / 0.16)
        color *= (1 + 0.10 * np.sin(np.floor(plank) * 12.9))[..., None]
        color[(_part(plank) < 0.1) & (fade > 0.12)] *= 0.8
    return color


def _ground(
    image: np.ndarray,
    depth: np.ndarray,
    top: int,
    setting: Setting,
    camera: Camera,
    light: Light,
    rng: Rng,
) -> None:
    rows = np.arange(top, top + len(image), dtype=np.float32)[:, None] + 0.5
    zs = camera.focal * camera.height / np.maximum(rows - camera.horizon, 0.25)
    zs = np.minimum(zs, 300).astype(np.float32)
    columns = np.arange(image.shape[1], dtype=np.float32)[None] + 0.5
    xs = (columns - np.float32(camera.center)) / np.float32(camera.focal) * zs
    fade = np.clip(7 / zs, 0.05, 1).astype(np.float32)
    depth[:] = zs
    zs = np.broadcast_to(zs, xs.shape)
    color = _surface(_ground_kind(setting, rng), xs, zs, fade, rng)
    if setting.place == "street":
        _road(color, xs, zs, fade, setting, rng)
    elif setting.place == "park" and rng.random() < 0.7:
        bend = xs + 1.5 * np.sin(zs * 0.12 + rng.uniform(0, 6)) - rng.uniform(-4, 4)
        bend = bend + zs * np.float32(rng.uniform(-0.5, 0.5))
        path = np.abs(bend) < rng.uniform(0.8, 1.6)
        _lay(color, path, "gravel", xs, zs, fade, rng)
    if setting.shore < FAR:
        sea = zs > setting.shore + 0.4 * np.sin(xs * 0.7) + 0.2 * np.sin(xs * 1.9)
        _lay(color, sea, "water", xs, zs, fade, rng)
        foam = sea & (zs < setting.shore + 0.5 + 0.4 * np.sin(xs * 0.7))
        color[foam] = color[foam] * 0.5 + 110
    bright = light.ambient + light.sun * light.direction[1]
    np.multiply(color, np.float32(bright), out=image)


def _lay(
    color: np.ndarray,
    where: np.ndarray,
    kind: str,
    xs: np.ndarray,
    zs: np.ndarray,
    fade: np.ndarray,
    rng: Rng,
) -> None:
    """Covers the ground at `where` (h, W) bool with a surface."""
    x, y, w, h = cv2.boundingRect(where.view(np.uint8))
    if w and h:
        part = np.s_[y : y + h, x : x + w]
        cover = _surface(kind, xs[part], zs[part], fade[y : y + h], rng)
        color[part][where[part]] = cover[where[part]]


def _ground_kind(setting: Setting, rng: Rng) -> str:
    if setting.place == "hall":
        return str(rng.choice(["wood", "tiles", "paving"]))
    if setting.weather == "snow":
        return "snow"
    lawn = "autumn" if setting.autumn else "grass"
    kinds = {
        "street": ["paving", "paving", lawn],
        "park": [lawn],
        "plaza": ["paving", "gravel", "asphalt"],
        "waterfront": ["sand", "sand", lawn, "paving"],
    }
    return str(rng.choice(kinds[setting.place]))


def _road(
    color: np.ndarray, xs: np.ndarray, zs: np.ndarray, fade: np.ndarray, setting: Setting, rng: Rng
) -> None:
    c, s = np.float32(cos(setting.turn)), np.float32(sin(setting.turn))
    across = xs * c - zs * s - np.float32(setting.offset)
    along = xs * s + zs * c
    off = np.abs(across)
    road = off < setting.half
    _lay(color, road, "asphalt", xs, zs, fade, rng)
    color[road] *= np.float32(rng.uniform(0.75, 1.1))
    if setting.weather == "snow":
        color[road] = color[road] * 0.6 + 70
    kerb = (off >= setting.half) & (off < setting.half + 0.22)
    color[kerb] = color[kerb] * 0.5 + 90
    line = (off < 0.07) & (_part(along / 5) < 0.5)
    if rng.random() < 0.5:
        line |= np.abs(off - (setting.half - 0.3)) < 0.06
    color[line] = color[line] * 0.25 + 170
    if rng.random() < 0.25:  # a crossing
        at = rng.uniform(7, 16)
        cross = road & (np.abs(along - at) < 1.3) & (_part(across / np.float32(0.9)) < 0.5)
        color[cross] = color[cross] * 0.25 + 170


_SKIES: dict[str, tuple[Color, Color, Color]] = {
    "day": ((84, 140, 214), (186, 212, 236), (246, 246, 248)),
    "dusk": ((70, 74, 124), (240, 160, 100), (190, 120, 110)),
    "night": ((12, 16, 34), (38, 44, 68), (46, 50, 66)),
}  # high up, at the horizon, clouds
_OVERCAST: dict[str, Color] = {
    "day": (186, 192, 200),
    "dusk": (132, 122, 128),
    "night": (34, 36, 46),
}


def _sky(image: np.ndarray, setting: Setting, rng: Rng) -> None:
    high, low, cloud = map(_rgb, _SKIES[setting.time])
    if setting.weather != "clear":
        gray = _rgb(_OVERCAST[setting.time])
        high, low, cloud = gray, gray * 1.1, gray * 0.9
    h, w = image.shape[:2]
    t = (np.arange(h, dtype=np.float32) / h)[:, None, None] ** np.float32(rng.uniform(0.7, 1.6))
    image[:] = high + t * (low - high)
    xs = np.arange(w, dtype=np.float32)[None] + np.float32(rng.uniform(0, 500))
    ys = 2.6 * np.arange(h, dtype=np.float32)[:, None] + np.float32(rng.uniform(0, 500))
    xs, ys = np.broadcast_to(xs / w, (h, w)), np.broadcast_to(ys / w, (h, w))
    field = _clouds(xs, ys, rng.uniform(160, 320), 1.6)
    cover = np.clip((field - np.float32(rng.uniform(-0.3, 1.2))) * 0.8, 0, 1)[..., None]
    image += cover * (cloud - image) * np.float32(0.85)


def _horizon(
    image: np.ndarray, depth: np.ndarray, setting: Setting, light: Light, rng: Rng
) -> None:
    """Paints far hills, woods or roofs at the end of the ground."""
    h, w = image.shape[:2]
    haze = image[-1].mean(0)
    bright = np.float32(light.ambient + 0.5 * light.sun)
    rows = np.arange(h)[:, None]
    layers = {"street": 2, "plaza": 2, "park": 2, "waterfront": 1}[setting.place]
    for far in range(layers, 0, -1):
        kind = str(rng.choice(_FAR_THINGS[setting.place]))
        tall = h * rng.uniform(0.08, 0.3) * (0.8 if far == 1 else 1.2)
        edge, tint, base = _outline(kind, tall, w, setting, rng)
        top = max(0, h - int(edge.max()) - 1)
        mask = rows[top:] >= h - edge[None]
        mix = 0.3 + 0.25 * far
        deep = len(mask)
        speckle = 1 + 0.12 * grain(0.6, deep, w, rng) * (kind != "roofs")
        color = _rgb(base) * bright * (1 - mix) * (tint[None] * speckle)[..., None] + haze * mix
        if kind == "roofs":
            window = ((rows[top:] // 2) % 3 == 1) & (((np.arange(w) // 2) % 3) == 1)[None]
            window &= mask & (grain(0.2, deep, w, rng) > 0.2)
            color[window] = np.minimum(
                color[window] * (1.6 if setting.time != "day" else 0.75), 255
            )
        image[top:][mask] = color[mask]
        depth[top:][mask] = np.minimum(depth[top:][mask], 120.0 * far)


_FAR_THINGS = {
    "street": ("roofs", "woods"),
    "plaza": ("roofs",),
    "park": ("woods", "hills"),
    "waterfront": ("woods", "hills"),
}


def _outline(
    kind: str, tall: float, width: int, setting: Setting, rng: Rng
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Returns the height of far things in each column (w,), their tint (w,) and their color."""
    index = np.arange(width) * 512 // width
    if kind == "roofs":
        edge = tall * np.repeat(rng.uniform(0.3, 1.5, width), rng.integers(8, 34, width))[:width]
        return edge, np.repeat(rng.uniform(0.7, 1.2, width), 17)[:width], (150, 140, 134)
    row = int(rng.integers(512))
    rough = noise(0.8)[row][index] if kind == "woods" else 0.0
    edge = tall * np.clip(0.7 + 0.25 * noise(1.3)[row][index // 3] + 0.08 * rough, 0.1, 2)
    color = (140, 104, 62) if setting.autumn else (74, 104, 66)
    return edge, np.ones(width), color


def _wall(
    image: np.ndarray, depth: np.ndarray, setting: Setting, camera: Camera, light: Light, rng: Rng
) -> None:
    """Paints an upright wall: a facade outdoors, a room's back wall and ceiling indoors."""
    h, w = image.shape[:2]
    scale = setting.wall / camera.focal
    ys = camera.height + (camera.horizon - np.arange(h, dtype=np.float32)[:, None] - 0.5) * scale
    xs = (np.arange(w, dtype=np.float32)[None] + 0.5 - camera.center) * scale
    xs, ys = (np.broadcast_to(a, (h, w)).astype(np.float32) for a in (xs, ys))
    hall = setting.place == "hall"
    base = rng.uniform(110, 225) * rng.uniform(0.85, 1.1, 3)
    color = base.astype(np.float32) * (1 + 0.05 * _clouds(xs, ys, 30.0, 1.0))[..., None]
    if not hall and rng.random() < 0.6:  # bricks
        row = np.floor(ys / 0.25)
        color *= (1 + 0.12 * np.sin(row * 7.1 + np.floor(xs / 0.5 + 0.5 * (row % 2)) * 3.7))[
            ..., None
        ]
    step, low = rng.uniform(2.2, 4.5), rng.uniform(0.7, 1.6)
    pane = (np.abs((xs + 50) % step - step / 2) < step * 0.24) & (
        np.abs((ys + 3.2 - low) % 3.2 - 1) < 0.75
    )
    if hall:
        pane &= ys < 3.2
    if not hall or rng.random() < 0.5:
        lit = setting.time != "day" and not hall
        glass = (236, 196, 120) if lit else (200, 220, 236) if hall else (70, 86, 104)
        some = (
            np.sin(np.floor((xs + 50) / step) * 5.3 + np.floor((ys + 3.2 - low) / 3.2) * 9.1) > -0.3
        )
        color[pane] = _rgb((70, 86, 104))
        color[pane & some] = _rgb(glass) * (2.2 if lit else 1.0)
    color[ys < 0.25] *= 0.6
    facing = 0.35 if hall else max(0.1, float(light.direction[2]))
    image[:] = color * np.float32(light.ambient + light.sun * facing)
    depth[:] = setting.wall
    if hall:
        top = rng.uniform(3.4, 5.5)
        over = ys > top
        rise = np.maximum(camera.horizon - np.arange(h, dtype=np.float32)[:, None] - 0.5, 0.5)
        zs = np.broadcast_to(camera.focal * (top - camera.height) / rise, (h, w))
        beam = 1 - 0.2 * ((zs / 1.5) % 1 < 0.15)
        image[over] = (_rgb((226, 224, 218)) * 0.75 * beam[..., None])[over]
        depth[over] = zs[over]


def weather_over(
    image: np.ndarray, depth: np.ndarray, setting: Setting, strength: float, rng: Rng
) -> np.ndarray:
    """Returns the picture (H, W, 3) float32 behind fog, rain or snow."""
    h, w = image.shape[:2]
    level = _rgb(
        {"day": (204, 208, 214), "dusk": (150, 136, 136), "night": (44, 48, 60)}[setting.time]
    )
    reach = {"fog": 26.0, "rain": 80.0, "snow": 70.0, "overcast": 220.0}.get(setting.weather, FAR)
    if setting.place != "hall" and setting.weather != "clear":
        clear = cv2.exp(np.minimum(depth, 250.0) * np.float32(-strength / reach))[..., None]
        image -= level
        image *= clear
        image += level
    if setting.place == "hall" or setting.weather not in ("rain", "snow"):
        return image
    veil = np.zeros((h, w), np.uint8)
    size = h / 256
    count = int(strength * (220 if setting.weather == "rain" else 260))
    xs, ys = rng.integers(0, w, count), rng.integers(0, h, count)
    lean = rng.uniform(-0.4, 0.4)
    if setting.weather == "rain":
        lengths = rng.uniform(4, 14, count) * size
        ends = np.stack([xs + lean * lengths, ys + lengths], 1).astype(np.int32)
        lines = np.stack([np.stack([xs, ys], 1).astype(np.int32), ends], 1)
        cv2.polylines(veil, list(lines), False, 90, 1)
    else:
        for x, y, r in zip(
            xs.tolist(), ys.tolist(), rng.integers(1, 3, count).tolist(), strict=True
        ):
            cv2.circle(veil, (x, y), max(1, int(r * size)), 190, -1)
        veil = cv2.blur(veil, (2, 2))
    cover = veil[..., None].astype(np.float32) / 255
    return image + cover * (np.float32(235 if setting.time != "night" else 150) - image)
