"""In which convention a teacher's boxes are written, found by reading them in every other one.

Boxes in a wrong convention rarely crash anything: they lie beside the objects and teach background
as objects. Read in the right one they suddenly lie on gold boxes, and no right convention gains that
way. Letters: N boxes, P pairs of a teacher's and a gold box of one picture.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, UnidentifiedImageError

from detmtl.silver.comparison import IOU

AS_STORED = "as stored"
PICTURES = 256
"""So many pictures are looked at, and of each the teacher's best boxes, twice as many as gold's."""
_SIDES = (224, 256, 300, 320, 352, 384, 416, 448, 480, 512, 576, 608, 640, 672, 736, 768, 800, 896)
_SIDES = (*_SIDES, 960, 1024, 1280, 1333)
"""Usual input sizes of detectors."""

Reading = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Boxes (P, 4) as stored, widths and heights (P,) of their pictures -> boxes (P, 4) xyxy in pixels."""


class Readings:
    """Collects pictures, and counts the gold boxes that the teacher's boxes lie on in each reading."""

    def __init__(self):
        self._found: list[np.ndarray] = []
        self._gold: list[np.ndarray] = []
        self._sizes: list[tuple[int, int]] = []
        self._turned: list[int] = []

    def add(
        self, boxes: np.ndarray, gold: np.ndarray, height: int, width: int, turned: int
    ) -> None:
        """Takes one picture.

        Args:
            boxes: (N, 4) of the teacher, by falling score.
            gold: (G, 4) xyxy, pixels.
            height, width: of the picture as a person sees it.
            turned: its EXIF orientation, 1 to 8; 1: stored as it is seen.
        """
        if len(gold):
            self._found.append(boxes[: 2 * len(gold) + 3])
            self._gold.append(gold)
            self._sizes.append((width, height))
            self._turned.append(turned)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns "all" and "turned" (pictures that EXIF turns) -> reading -> gold boxes that lie under
        one of the teacher's boxes; `gold` counts them all."""
        everything = range(len(self._gold))
        turned = [i for i in everything if self._turned[i] > 1]
        return {
            "all": self._counted(list(everything), _readings(self._found)),
            "turned": self._counted(turned, _TURNS),
        }

    def _counted(self, pictures: list[int], readings: Mapping[str, Reading]) -> dict[str, int]:
        boxes, gold, which, sizes, turns, first = [], [], [], [], [], 0
        for i in pictures:
            n, g = len(self._found[i]), len(self._gold[i])
            boxes.append(np.repeat(self._found[i], g, axis=0))
            gold.append(np.tile(self._gold[i], (n, 1)))
            which.append(np.tile(np.arange(first, first + g), n))
            sizes.append(np.tile(self._sizes[i], (n * g, 1)))
            turns.append(np.full(n * g, self._turned[i]))
            first += g
        counts = {"gold": first}
        if not first:
            return counts
        stored, truth, index = np.concatenate(boxes), np.concatenate(gold), np.concatenate(which)
        width, height = np.concatenate(sizes).astype(np.float64).T
        orientation = np.concatenate(turns)
        for name, read in readings.items():
            on = _iou(read(stored.astype(np.float64), width, height), truth) >= IOU
            if name == _CLIPPED:
                spoiled = _clip(_xywh(truth, width, height), width, height)
                on = _iou(_clip(stored, width, height), spoiled) >= IOU
                on &= self._may_be_clipped(pictures)
            if name in _ORIENTATIONS:
                on &= orientation == _ORIENTATIONS[name]
            counts[name] = len(np.unique(index[on]))
        return counts

    def _may_be_clipped(self, pictures: list[int]) -> bool:
        """Returns whether boxes can be `_CLIPPED`: then each ends at twice its left and upper side or beyond,
        or at the picture's edge. Gold that is spoiled so is large, and lies on many a box that is not."""
        boxes = np.concatenate([self._found[i] for i in pictures])
        lengths = [len(self._found[i]) for i in pictures]
        sizes = np.repeat([self._sizes[i] for i in pictures], lengths, axis=0)
        ends = np.minimum(2 * boxes[:, :2], sizes) - 1  # a pixel, since tools round
        can = (boxes[:, 2:] >= ends).all(axis=1)
        return bool(np.count_nonzero(can) >= _CLIPPED_SHARE * len(boxes))


def orientation(path: str) -> int:
    """Returns a picture's EXIF orientation, 1 to 8; 1 also where the file says nothing of it."""
    try:
        with Image.open(path) as picture:
            return int(picture.getexif().get(0x0112, 1))
    except (OSError, UnidentifiedImageError, SyntaxError):
        return 1  # a broken picture is told by whoever needs its pixels


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns (P,) the IoU of each pair; 0 where a box of `a` has no area."""
    side = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inter = side.clip(min=0).prod(axis=1)
    own = (a[:, 2:] - a[:, :2]).clip(min=0).prod(axis=1)
    return inter / np.maximum(own + (b[:, 2:] - b[:, :2]).prod(axis=1) - inter, 1e-9)


def _xywh(b, w, h):
    return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)


def _clip(b, w, h):
    return np.clip(b, 0, np.stack([w, h, w, h], axis=1))


def _center(b, w, h):
    return np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1)


def _not_xywh(b, w, h):
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


def _not_corner(b, w, h):
    half = (b[:, 2:] - b[:, :2]) / 2
    return np.concatenate([b[:, :2] - half, b[:, 2:] - half], axis=1)


def _shares(b, w, h):
    return b * np.stack([w, h, w, h], axis=1)


def _swapped(b, w, h):
    return b[:, [1, 0, 3, 2]]


def _mirrored(b, w, h):
    return np.stack([w - b[:, 2], b[:, 1], w - b[:, 0], b[:, 3]], axis=1)


def _upside_down(b, w, h):
    return np.stack([w - b[:, 2], h - b[:, 3], w - b[:, 0], h - b[:, 1]], axis=1)


def _clockwise(b, w, h):
    """Boxes of the file's pixels where a person sees it turned by 90 degrees to the right."""
    return np.stack([w - b[:, 3], b[:, 0], w - b[:, 1], b[:, 2]], axis=1)


def _counterclockwise(b, w, h):
    return np.stack([b[:, 1], h - b[:, 2], b[:, 3], h - b[:, 0]], axis=1)


def _after(first: Reading, second: Reading) -> Reading:
    return lambda b, w, h: second(first(b, w, h), w, h)


def _stretched(x_side: float, y_side: float) -> Reading:
    return lambda b, w, h: b * np.stack([w / x_side, h / y_side] * 2, axis=1)


def _long(side: float) -> Reading:
    return lambda b, w, h: b * (np.maximum(w, h) / side)[:, None]


def _short(side: float) -> Reading:
    return lambda b, w, h: b * (np.minimum(w, h) / side)[:, None]


def _padded(side: float) -> Reading:
    def read(b, w, h):
        longer = np.maximum(w, h)
        pad = np.stack([(longer - w) / 2, (longer - h) / 2] * 2, axis=1)
        return b * (longer / side)[:, None] - pad

    return read


_CLIPPED = "two corners that were taken for x, y, width, height, cut at the picture's edge"
"""Cannot be undone, since the cut corner is lost; gold's boxes are spoiled in the same way instead."""
_CLIPPED_SHARE = 0.9
"""Of a teacher's boxes that can be spoiled so; of right ones it is a third or half."""
_PLAIN: dict[str, Reading] = {
    AS_STORED: lambda b, w, h: b,
    "x, y, width, height instead of two corners": _xywh,
    "center, width, height instead of two corners": _center,
    "two corners that were taken for x, y, width, height": _not_xywh,
    _CLIPPED: _not_xywh,
    "the center taken for the left top corner": _not_corner,
    "fractions of the picture instead of pixels": _shares,
    "fractions of the picture, as x, y, width, height": _after(_shares, _xywh),
    "fractions of the picture, as center, width, height": _after(_shares, _center),
    "y before x": _swapped,
    "mirrored left to right": _mirrored,
    "turned by 180 degrees": _upside_down,
    "of the picture turned by 90 degrees": _clockwise,
    "of the picture turned by 270 degrees": _counterclockwise,
}
_TURNS: dict[str, Reading] = {
    AS_STORED: _PLAIN[AS_STORED],
    "EXIF orientation 2": _mirrored,
    "EXIF orientation 3": _upside_down,
    "EXIF orientation 6": _clockwise,
    "EXIF orientation 8": _counterclockwise,
}
_ORIENTATIONS = {name: int(name[-1]) for name in _TURNS if name[-1].isdigit()}


def _readings(boxes: list[np.ndarray]) -> dict[str, Reading]:
    """Returns the readings by name, those of resized pictures among them."""
    largest = np.max([b[:, 2:].max(axis=0) for b in boxes if len(b)] or [[0, 0]], axis=0)
    readings = dict(_PLAIN)
    for side in _SIDES:
        readings[f"of pictures resized to {side} x {side}"] = _stretched(side, side)
        readings[f"of pictures whose longer side was resized to {side}"] = _long(side)
        readings[f"of pictures whose shorter side was resized to {side}"] = _short(side)
        readings[f"of pictures resized and padded on both sides to {side} x {side}"] = _padded(side)
    if largest.min() > 2:  # last, since usual sizes say more where they fit as well
        x_side, y_side = (round(float(side)) for side in largest)
        where = f"of pictures resized to about {x_side} x {y_side}"
        readings[where] = _stretched(x_side, y_side)
    return readings
