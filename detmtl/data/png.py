"""Where a PNG has EXIF, without decoding it."""

import os
from typing import IO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
"""Chunks in which EXIF may stand."""


def goes_on_behind_pixels(file: IO[bytes]) -> bool:
    """Returns whether a PNG has something behind its pixels that may say how it is turned, or lacks its end.
    The file is left where it was."""
    place, pixels = file.tell(), False
    file.seek(len(_SIGNATURE))
    try:
        while len(head := file.read(8)) == 8 and (kind := head[4:]) != b"IEND":
            if pixels and kind in _TEXTS:
                return True
            pixels |= kind == b"IDAT"
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return len(head) < 8
    finally:
        file.seek(place)
