"""The classes of the built-in scenes."""

SCENE_CLASSES = (
    "person", "bicycle", "motorcycle", "car", "van", "bus", "truck", "boat",
    "dog", "horse", "tree", "bench", "lamp", "umbrella", "ball", "house",
)  # fmt: skip

COLORS: dict[str, tuple[int, int, int]] = {
    "black": (38, 38, 42),
    "white": (236, 236, 232),
    "gray": (140, 142, 146),
    "red": (200, 38, 36),
    "orange": (236, 128, 28),
    "yellow": (240, 208, 48),
    "green": (52, 146, 62),
    "blue": (40, 84, 190),
    "purple": (128, 58, 158),
    "brown": (122, 78, 44),
    "pink": (240, 140, 176),
}
"""Names of the attribute `color` and their RGB in white light."""
