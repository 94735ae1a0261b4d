"""Faster decoding of JPEGs where the package simplejpeg is installed, with OpenCV's pixels.

Both bundle libjpeg-turbo, and simplejpeg writes into memory that is there already. benchmarks/loader.py
compares the pixels, and says how much faster it is.
"""

import numpy as np

try:
    import simplejpeg  # pyright: ignore[reportMissingImports]
except ImportError:  # pip install 'detmtl[fast]'
    simplejpeg = None

_APP1, _SCAN = 0xE1, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that tell a picture's height and width."""


def decoded_jpeg(data: bytes, room: np.ndarray | None = None) -> np.ndarray | None:
    """Returns a JPEG that is not turned as (H, W, 3) uint8 RGB, None where another decoder has to:
    simplejpeg is not installed, or refuses the file.

    Args:
        data: of the file.
        room: where the pixels are put if it has just their size; None: somewhere new.
    """
    if simplejpeg is None:
        return None
    try:
        if room is not None and room.flags.c_contiguous:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=room)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:  # broken, or of a kind that it does not know: the others say what is wrong
        return None


def jpeg_head(data: bytes) -> tuple[bool, int]:
    """Returns what stands before the pixels: whether the picture may be turned (there is EXIF, or
    something that is no segment), and how many pixels it has (0: it does not say)."""
    at, turned, pixels = 2, False, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SCAN:
            return turned, pixels
        if marker == _APP1 and data.startswith(b"Exif", at + 4):
            turned = True
        elif marker in _FRAMES:
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            pixels = int.from_bytes(height, "big") * int.from_bytes(width, "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True, pixels
