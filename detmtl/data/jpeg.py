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


def decoded_jpeg(data: bytes, room: np.ndarray | None = None) -> np.ndarray | None:
    """Returns a JPEG as (H, W, 3) uint8 RGB, None where another decoder has to: simplejpeg is not
    installed, refuses the file, or would have to read EXIF, which says how a picture is turned.

    Args:
        data: of the file.
        room: where the pixels are put if it has just their size; None: somewhere new.
    """
    if simplejpeg is None or _may_be_turned(data):
        return None
    try:
        if room is not None and room.flags.c_contiguous:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=room)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:  # broken, or of a kind that it does not know: the others say what is wrong
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether there is EXIF before the pixels, or something that is no segment."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _SCAN:
            return False
        if data[at + 1] == _APP1 and data.startswith(b"Exif", at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True
