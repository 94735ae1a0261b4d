"""Words on pictures."""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

INK = (20, 20, 20)
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "msyh.ttc",
    "meiryo.ttc",
    "malgun.ttf",
    "arial.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)
"""Fonts that systems have, for what Pillow's own, of Latin letters alone, cannot write."""

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def named(name: str, number: int) -> str:
    """Returns a name, or #number where no font here can write it: all such names would look the same."""
    return name if _font_of(name) is not None else f"#{number}"


def write(
    pen: ImageDraw.ImageDraw,
    text: str,
    end: str,
    at: Sequence[int],
    color: tuple,
    picture: tuple[int, int],
    size: int,
) -> None:
    """Writes `text` and `end` above a box, or inside it at the picture's upper edge, and all of it within
    the picture: farther left at the right edge, and of a text that is too long the beginning.

    Args:
        end: what is written in any case, such as a score.
        at: the box's left and upper side, pixels.
        color: of the ground.
        picture: its width and height.
        size: of the letters, pixels.
    """
    font = font_at(_font_of(text + end) or "", size)
    room = picture[0] - 4
    if font.getlength(text + end) > room:
        while text and font.getlength(f"{text}..{end}") > room:
            text = text[:-1]
        text += ".."
    left, top, right, bottom = pen.textbbox((0, 0), text + end, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(at[0], picture[0] - int(width) - 1))
    y = at[1] - height if at[1] >= height else at[1]
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + 2 - left, y + 2 - top), text + end, fill=INK, font=font)


def text_size(picture: tuple[int, int]) -> int:
    """Returns how high letters are on a picture of that width and height, pixels."""
    return max(10, min(picture) // 40)


@lru_cache(maxsize=16)
def font_at(name: str, size: int) -> Font:
    """Returns a font of the system, or, of "", Pillow's own.

    Raises:
        OSError: there is none of that name.
    """
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)


@lru_cache(maxsize=10_000)
def _font_of(text: str) -> str | None:
    """Returns the first font that has all letters; None: there is none."""
    return next((name for name in ("", *FONTS) if all(_has(name, c) for c in set(text))), None)


@lru_cache(maxsize=100_000)
def _has(name: str, letter: str) -> bool:
    try:
        font = font_at(name, 16)
    except OSError:
        return False
    return letter.isspace() or _shape(font, letter) != _shape(font, "\uffff")


def _shape(font: Font, letter: str) -> bytes:
    picture = Image.new("L", (48, 32))
    ImageDraw.Draw(picture).text((8, 4), letter, fill=255, font=font)
    return picture.tobytes()
