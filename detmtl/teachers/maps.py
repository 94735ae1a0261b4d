"""Maps of the pictures' size from what a network says of each pixel.

Letters: S places of the network's output (see slots.py), h and w pixels of its map, H and W of the
picture, K classes of the card.
"""

import cv2
import numpy as np
import torch

from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade, MapLabels
from detmtl.teachers.slots import NONE, REST, ClassSlots


def require_few(slots: ClassSlots, where: str) -> None:
    """Refuses more classes than a map of bytes can tell apart.

    Raises:
        InputError: there are more than 254.
    """
    if len(slots.names) > OTHER:
        raise InputError(f"{where}: has {len(slots.names)} classes; a map holds at most {OTHER}")


def map_of_probabilities(
    probabilities: np.ndarray, size: tuple[int, int], slots: ClassSlots, floor: float
) -> MapLabels:
    """Returns the most probable class of each pixel, with its probability as weight.

    Args:
        probabilities: (S, h, w) float32.
        size: H, W.
        slots: what the places mean.
        floor: below it a pixel is unknown.
    """
    place, best = np.zeros(size, np.int64), np.full(size, -1, np.float32)
    for number, channel in enumerate(probabilities):  # one at a time: S maps of a photo are a lot
        scaled = np.ascontiguousarray(channel, dtype=np.float32)
        if scaled.shape != size:
            scaled = cv2.resize(scaled, size[::-1], interpolation=cv2.INTER_LINEAR)
        better = scaled > best
        place[better], best[better] = number, scaled[better]
    classes = np.where(best >= floor, _codes(slots)[place], np.uint8(UNKNOWN))
    return _labels(classes, best.clip(0, 1), slots)


def map_of_places(
    places: np.ndarray, size: tuple[int, int], slots: ClassSlots, where: str
) -> MapLabels:
    """Returns hard labels, without weights.

    Args:
        places: (h, w) int, a place of each pixel, or 255 where the network does not say.
        size: H, W.
        slots: what the places mean.
        where: the teacher, for the error.

    Raises:
        InputError: a place is none.
    """
    wrong = (places != UNKNOWN) & ((places < 0) | (places >= len(slots)))
    if wrong.any():
        raise InputError(
            f"{where}: gave the class {int(places[wrong][0])}, but teacher.classes names {len(slots)}; "
            "name them all, the background included"
        )
    table = np.full(256, UNKNOWN, np.uint8)
    table[: min(len(slots), UNKNOWN)] = _codes(slots)[:UNKNOWN]
    classes = table[places]
    if classes.shape != size:
        classes = cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return _labels(classes, None, slots)


def _codes(slots: ClassSlots) -> np.ndarray:
    """Returns what a map says for each place, (S,) uint8."""
    known = np.where(slots.classes == REST, OTHER, slots.classes)
    return np.where(slots.classes == NONE, UNKNOWN, known).astype(np.uint8)


def _labels(classes: np.ndarray, weights: np.ndarray | None, slots: ClassSlots) -> MapLabels:
    return MapLabels(
        torch.from_numpy(classes.astype(np.uint8)),
        None if weights is None else torch.from_numpy(weights),
        torch.ones(len(slots.names)),
        int(Grade.SILVER),
    )
