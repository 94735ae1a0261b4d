"""Picture files: decoding, sizes, content hashes."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from detmtl.data.fit import fit_size
from detmtl.data.jpeg import decoded_jpeg, jpeg_head
from detmtl.data.png import goes_on_behind_pixels
from detmtl.structures.errors import InputError

Progress = Callable[[int, int], None]
"""Called now and then with (how many are done, how many there are)."""

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
)

_JPEG = b"\xff\xd8"
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap height and width
_TURNED = frozenset({5, 6, 7, 8})
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_MOST_PIXELS = 178_956_970
"""Larger pictures are Pillow's business, which by default refuses them."""

_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
_THREADS = 8
_BATCH = 512  # files between two calls of progress and two writes of the hash cache


def read_image(path: str | os.PathLike[str], data: bytes | None = None) -> np.ndarray:
    """Returns the picture in a file as (H, W, 3) uint8 RGB, as a person sees it.

    EXIF rotation is applied, grey and palette pictures become RGB, an alpha channel is dropped, of
    16 bits the upper 8 are kept.

    Args:
        path: the file.
        data: its bytes, where they are known already.

    Raises:
        InputError: the file is missing, is no picture, has 32 bits a channel, or ends too early.
    """
    if data is None:
        data = file_bytes(path)
    image = decoded(data)
    if image is not None:
        return image
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            _forget_xmp(picture)
            if not _of_32_bits(picture):
                return _rgb(ImageOps.exif_transpose(picture))
    except _BROKEN as problem:
        raise _broken(path, len(data), problem) from problem
    raise InputError(
        f"{os.fspath(path)}: has 32 bits a channel, and nobody can tell which value is white; convert the "
        "picture to 8 or 16 bits"
    )


def decoded(data: bytes, room: np.ndarray | None = None) -> np.ndarray | None:
    """Returns what `read_image` does of a complete JPEG or PNG; None of anything else, and of a huge one.

    Args:
        data: of the file.
        room: of the picture's size, where the decoder may put it; None: it puts it somewhere new.
    """
    if not _complete(data):
        return None
    jpeg = data.startswith(_JPEG)
    turned, pixels = jpeg_head(data) if jpeg else (False, _png_pixels(data))
    if pixels > _MOST_PIXELS:  # it would have its memory before anybody sees whether it is whole
        return None
    if jpeg and not turned:
        image = decoded_jpeg(data, room)
        if image is not None:
            return image
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def reduction(height: int, width: int, short: int, long: int) -> int:
    """Returns by which of 1, 2, 4 and 8 a picture's sides can be divided before it is fitted to `short`
    and `long`, without a rest and without becoming smaller than that."""
    fitted = fit_size(height, width, short, long)
    for factor in _REDUCED:
        divides = height % factor == 0 and width % factor == 0
        if divides and height >= factor * fitted[0] and width >= factor * fitted[1]:
            return factor
    return 1


def read_reduced(
    path: str | os.PathLike[str], short: int, long: int, data: bytes | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the picture in a file, perhaps at a half, a quarter or an eighth of its size, and its
    height and width at full size.

    A JPEG is decoded at the smallest of these sizes that `fit_size` still has to scale down: the
    decoder then leaves out most of its work. Sides that cannot be divided come at full size, since
    rounding them would move everything by up to a pixel; and so do other formats.

    Args:
        path: the file.
        short, long: what the picture will be fitted to.
        data: the file's bytes, where they are known already.

    Raises:
        InputError: as `read_image`.
    """
    if data is None:
        data = file_bytes(path)
    if data.startswith(_JPEG) and _complete(data):
        size = image_size(path, data)
        factor = reduction(*size, short, long)
        if factor > 1:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[factor])
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), size
    image = read_image(path, data)
    return image, (image.shape[0], image.shape[1])


def _complete(data: bytes) -> bool:
    """Whether this is a JPEG or PNG with its end marker: OpenCV fills what a truncated file lacks
    with gray and says nothing, so everything else goes to the slower, stricter decoder."""
    if data.startswith(_JPEG):
        return data.endswith(b"\xff\xd9")
    return data.startswith(b"\x89PNG") and b"IEND" in data[-12:]


def _png_pixels(data: bytes) -> int:
    """Returns the number of pixels that a PNG's first chunk tells."""
    return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")


def _forget_xmp(picture: Image.Image) -> None:
    """Leaves EXIF alone to say how a picture is turned: Pillow would ask XMP too, OpenCV does not."""
    for key in ("XML:com.adobe.xmp", "xmp"):
        picture.info.pop(key, None)


def _of_32_bits(picture: Image.Image) -> bool:
    # A PNG has 16 at most, also where Pillow gives it as I.
    return picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG")


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits, which convert() would clip
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def image_size(path: str | os.PathLike[str], data: bytes | None = None) -> tuple[int, int]:
    """Returns (height, width) of a picture as a person sees it (EXIF rotation applied), from the
    header alone.

    Args:
        path: the file.
        data: its bytes, where they are known already.

    Raises:
        InputError: the file is missing or is no picture.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as picture:
            width, height = picture.size
            if picture.format == "PNG" and "exif" not in picture.info:
                assert picture.fp is not None
                if goes_on_behind_pixels(picture.fp):
                    picture.load()
            _forget_xmp(picture)
            # A PNG's own would decode all pixels to look behind them.
            turned = Image.Image.getexif(picture).get(_ORIENTATION) in _TURNED
            turned = turned and picture.format != "TIFF"  # whose size Pillow has turned already
    except FileNotFoundError as problem:
        raise InputError(f"{os.fspath(path)}: no such picture") from problem
    except _BROKEN as problem:
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        raise _broken(path, size, problem) from problem
    return (width, height) if turned else (height, width)


def image_sizes(
    paths: Sequence[str], progress: Progress | None = None
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Returns the sizes (I, 2) int32 of many pictures, 0 where one cannot be read, and for each of
    those its position and a sentence on what is wrong."""
    sizes = np.zeros((len(paths), 2), dtype=np.int32)
    problems: list[tuple[int, str]] = []

    def measure(i: int) -> None:
        try:
            sizes[i] = image_size(paths[i])
        except InputError as problem:
            problems.extend((i, text) for text in problem.problems)

    for _ in _in_threads(measure, range(len(paths)), progress):
        pass
    return sizes, sorted(problems)


def unusable_pictures(paths: Sequence[str], sizes: np.ndarray, who: str) -> list[tuple[int, str]]:
    """Returns position of, and a sentence on, each picture that would be refused when it is read: broken,
    truncated, or of another size than `sizes` (I, 2) say, which stand in `who`.

    Pictures that are not there are passed over. Looks at headers and ends of files, and decodes the few
    that have no end marker.
    """
    problems: list[tuple[int, str]] = []

    def look(i: int) -> None:
        try:
            size = image_size(paths[i])
            with open(paths[i], "rb") as file:
                ends = file.read(4)
                file.seek(-min(12, os.path.getsize(paths[i])), os.SEEK_END)
                ends += file.read()
            if not _complete(ends):
                size = read_image(paths[i]).shape[:2]
        except InputError as problem:
            problems.extend((i, text) for text in problem.problems)
            return
        if size != tuple(sizes[i].tolist()):
            problems.append((i, wrong_size(paths[i], size, sizes[i], who)))

    there = [i for i, path in enumerate(paths) if os.path.exists(path)]
    for _ in _in_threads(look, there, None):
        pass
    return sorted(problems)


def wrong_size(
    path: str, found: Sequence[int], stated: Sequence[int] | np.ndarray, who: str
) -> str:
    """Returns a sentence on a picture whose height and width are not what `who` says."""
    turned = found[0] != found[1] and (found[0], found[1]) == (stated[1], stated[0])
    exif = " (as where EXIF turns it, which counts: sizes and boxes are those that people see)"
    return (
        f"{path}: the picture is {found[1]} x {found[0]} pixels (width x height), but {who} says "
        f"{stated[1]} x {stated[0]}{exif * turned}; its boxes would be misplaced: correct the annotations, "
        "or bring back the picture that was annotated"
    )


def list_files(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[str]:
    """Returns the names of all files below a folder that end in one of `suffixes` (lower case),
    relative to it, sorted; hidden files and folders are left out, and so are links back to a folder that
    they lie in."""
    found = []
    above: dict[str, frozenset[tuple[int, int]]] = {}  # which folders each one lies in
    for parent, folders, names in os.walk(folder, followlinks=True):
        status, outer = os.stat(parent), above.pop(parent, frozenset())
        own = (status.st_dev, status.st_ino)
        if own in outer:
            folders.clear()
            continue
        folders[:] = [f for f in folders if not f.startswith(".")]
        above |= {os.path.join(parent, f): outer | {own} for f in folders}
        near = os.path.relpath(parent, folder)
        found += [
            os.path.normpath(os.path.join(near, name))
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def list_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the names of all picture files below a folder, relative to it, sorted."""
    return list_files(folder, PICTURE_SUFFIXES)


def content_hash(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file's bytes in hex.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise InputError(f"{os.fspath(path)}: cannot be read ({problem.strerror})") from problem


def content_hashes(
    paths: Sequence[str], cache: Path | None = None, progress: Progress | None = None
) -> list[str]:
    """Returns the content hash of each file.

    Args:
        paths: absolute paths.
        cache: folder that keeps the hashes by path, size and time of change, so that a file is read
            once; several processes may use it at once.
        progress: called with (files done, files in all).

    Raises:
        InputError: files cannot be read; it names them all.
    """
    keep = None if cache is None else Path(cache) / "content_hashes.tsv"
    known = _known_hashes(keep)
    stamps = [file_stamp(path) for path in paths]
    found = [known.get((p, s), "") if s else "" for p, s in zip(paths, stamps, strict=True)]
    unknown = [i for i, h in enumerate(found) if not h]
    problems: list[str] = []

    def digest(i: int) -> None:
        try:
            found[i] = content_hash(paths[i])
        except InputError as problem:
            problems.extend(problem.problems)

    for done in _in_threads(digest, unknown, progress):
        rows = [f"{found[i]}\t{stamps[i]}\t{json.dumps(paths[i])}" for i in done if found[i]]
        if keep is not None and rows:
            _append(keep, "\n" + "\n".join(rows) + "\n")
    if problems:
        raise InputError(sorted(problems))
    return found


def file_stamp(path: str) -> str:
    """Returns size and time of change of a file, by which a change is noticed; "" if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _known_hashes(keep: Path | None) -> dict[tuple[str, str], str]:
    known = {}
    if keep is not None and keep.is_file():
        for line in keep.read_text(encoding="utf-8", errors="replace").split("\n"):
            parts = line.split("\t")
            if len(parts) == 3 and len(parts[0]) == 64 and parts[2].endswith('"'):
                known[(json.loads(parts[2]), parts[1])] = parts[0]
    return known


def _append(keep: Path, text: str) -> None:
    keep.parent.mkdir(parents=True, exist_ok=True)
    # One write at the end of the file: rows of other processes stay whole, and the leading newline
    # ends a row that a killed process left torn.
    target = os.open(keep, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(target, text.encode())
    finally:
        os.close(target)


def _in_threads(
    work: Callable[[int], None], items: Sequence[int], progress: Progress | None
) -> Iterator[Sequence[int]]:
    """Does `work` on all items, and yields them in batches as they are done."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            list(pool.map(work, batch))
            yield batch
            if progress is not None:
                progress(start + len(batch), len(items))


def file_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns what is in a file.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # all at once: a buffer is one more copy
            return file.readall()
    except FileNotFoundError as problem:
        raise InputError(f"{os.fspath(path)}: no such picture") from problem
    except OSError as problem:
        raise InputError(f"{os.fspath(path)}: cannot be read ({problem.strerror})") from problem


def _broken(path: str | os.PathLike[str], size: int, problem: BaseException) -> InputError:
    if size == 0:
        what = "the file is empty"
    elif isinstance(problem, Image.DecompressionBombError):
        what = f"the picture is too large ({problem}); scale it down"
    elif isinstance(problem, Image.UnidentifiedImageError):
        what = "is not a picture in a format that can be read (JPEG, PNG, WebP, BMP, TIFF, GIF)"
    elif "truncated" in str(problem).lower():
        what = f"the picture is truncated ({problem}); fetch or copy the file again"
    else:
        what = f"the picture is broken ({problem}); fetch or copy the file again"
    return InputError(f"{os.fspath(path)}: {what}")
