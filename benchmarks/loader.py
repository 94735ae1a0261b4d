"""Pictures per second and core of the loader beside raw JPEG decoding, and what reduced decoding changes.

    python benchmarks/loader.py --results benchmarks/results/NAME.md
    python benchmarks/loader.py --pictures FOLDER      # JPEGs of your own for the pixel differences

One core: seconds are those of the process's processor time. The pictures are synthetic JPEGs in the
page cache, with 7 boxes each. "raw" is OpenCV's decoder on bytes that are in memory already: no file
is opened, nothing is resized or augmented, no picture is kept. The loader gives whole batches of uint8
with boxes, flipped half of the time; it decodes by simplejpeg where that is installed.
"albumentations" is the usual pipeline: OpenCV, resize, flip, normalize to float32, stack.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from abab import Row, in_turn, ratio, report

from detmtl.data import jpeg
from detmtl.data.augment import Augment
from detmtl.data.fit import fit
from detmtl.data.flat import Annotations, FileNames
from detmtl.data.images import image_size, list_pictures, read_image, read_reduced, reduction
from detmtl.data.loader import batches
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.source import Source

SHORT, LONG = 480, 640
BOXES = 7


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Returns a picture (H, W, 3) with structure of every size. The table says how many kB its JPEG has:
    the more, the more of the time is decoding."""
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width, 3), np.float32)
    for level in range(1, 10):
        cells = (max(2, height >> level), max(2, width >> level), 3)
        noise = rng.normal(0, 6 * level**0.8, cells).astype(np.float32)
        out += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return (out + 120).clip(0, 255).astype(np.uint8)


def source_of(folder: Path, height: int, width: int, count: int) -> Source:
    """Writes so many JPEGs and returns them with boxes."""
    rng = np.random.default_rng(0)
    names = [f"{height}x{width}_{i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
        cv2.imwrite(str(folder / name), scene(height, width, i), quality)
    corner = rng.uniform(0, 0.6, (count * BOXES, 2)) * (width, height)
    boxes = np.concatenate(
        [corner, corner + rng.uniform(0.1, 0.4, corner.shape) * (width, height)], 1
    )
    return Source(
        name="synthetic",
        classes=("thing",),
        files=FileNames.of(folder, names),
        ids=np.arange(count),
        sizes=np.tile(np.array([[height, width]], np.int32), (count, 1)),
        annotations=Annotations.of(
            count,
            np.repeat(np.arange(count), BOXES),
            boxes,
            np.zeros(count * BOXES, np.int64),
        ),
        coverage=np.ones((1, 1), np.float32),
    )


def reader(source: Source, reduced: bool) -> Callable[[], None]:
    """Returns a way to read as many pictures as the source has through the loader."""
    augment = Augment([{"HorizontalFlip": {"p": 0.5}}], SHORT, LONG, reduced=reduced)
    size = min(8, len(source))
    mixture = Mixture([source], MixSettings(mode="gold"), size, seed=0)

    def read() -> None:
        for _ in batches(mixture, augment, 0, len(source) // size):
            pass

    return read


def usual(source: Source, count: int) -> None:
    """Reads as many as trainers on albumentations do."""
    import albumentations as a

    change = a.Compose(
        [a.Resize(SHORT, LONG), a.HorizontalFlip(p=0.5), a.Normalize()],
        bbox_params=a.BboxParams("pascal_voc", label_fields=["classes"]),
    )
    pictures = []
    for i in range(count):
        image = cv2.cvtColor(cv2.imread(source.path(i)), cv2.COLOR_BGR2RGB)
        rows = source.annotations.rows(i)  # type: ignore[union-attr]
        boxes = source.annotations.boxes[rows]  # type: ignore[union-attr]
        out = change(image=image, bboxes=boxes, classes=np.zeros(len(boxes)))
        pictures.append(torch.from_numpy(out["image"]).permute(2, 0, 1))
        if len(pictures) == 8:
            torch.stack(pictures)
            pictures = []


def without_simplejpeg(way: Callable[[], None]) -> Callable[[], None]:
    """Returns a way that does the same as if simplejpeg were not installed."""

    def alone() -> None:
        package, jpeg.simplejpeg = jpeg.simplejpeg, None
        try:
            way()
        finally:
            jpeg.simplejpeg = package

    return alone


def each(decode: Callable[..., object], data: list, *arguments: object) -> Callable[[], None]:
    """Returns a way to decode all of `data`, none of which is kept."""

    def read() -> None:
        for one in data:
            decode(one, *arguments)

    return read


def measure(source: Source, rounds: int, large: bool) -> list[Row]:
    """Compares the ways to read a source's pictures."""
    count = len(source)
    data = [np.frombuffer(Path(p).read_bytes(), np.uint8) for p in source.files.paths()]
    ways = {
        "raw": each(cv2.imdecode, data, cv2.IMREAD_COLOR),
        "albumentations": lambda: usual(source, count),
        "loader": reader(source, reduced=True),
        "loader, full decode": reader(source, reduced=False),
    }
    if jpeg.simplejpeg is not None and not large:
        ways["raw simplejpeg"] = each(jpeg.decoded_jpeg, [d.tobytes() for d in data])
        ways["loader, OpenCV"] = without_simplejpeg(ways["loader"])
    seconds = in_turn(ways, rounds, clock=time.process_time)

    def speed(name: str) -> str:
        return f"{name}: {count / statistics.median(seconds[name]):.0f}/s"

    height, width = (int(n) for n in source.sizes[0])
    size = sum(map(len, data)) / count / 1e3
    what = f"{width} x {height}, {size:.0f} kB each, to {LONG} x {SHORT}"
    share = ratio(seconds, "raw", "loader")
    goal = None if large else 0.8
    rows = [
        Row(what, speed("raw"), speed("loader"), share, goal, "loader / raw decoding"),
        Row(
            what,
            speed("albumentations"),
            speed("loader"),
            ratio(seconds, "albumentations", "loader"),
        ),
    ]
    for peer, ours in (("raw", "loader, OpenCV"), ("raw simplejpeg", "loader")):
        if {peer, ours} <= ways.keys() and "raw simplejpeg" in ways:
            both = ratio(seconds, peer, ours)
            rows.append(Row(what, speed(peer), speed(ours), both, None, f"{ours} / {peer}"))
    if large:
        full = ratio(seconds, "loader, full decode", "loader")
        rows.append(
            Row(
                what, speed("loader, full decode"), speed("loader"), full, None, "DCT-scaled or not"
            )
        )
    return rows


def differences(paths: list[str]) -> list[str]:
    """Returns what reduced decoding changes in the pictures that it applies to, fitted."""
    lines, found = [], []
    for short, long in ((SHORT, LONG), (120, 160)):
        for path in paths:
            if reduction(*image_size(path), short, long) == 1:
                continue
            full = read_image(path)
            small, _ = read_reduced(path, short, long)
            a, b = (
                fit(torch.from_numpy(x).permute(2, 0, 1), short, long).int() for x in (full, small)
            )
            if a.shape != b.shape:
                continue
            gap = (a - b).abs().float()
            found.append((float(gap.mean()), float(gap.flatten().quantile(0.99)), float(gap.max())))
        if found:
            mean, high, most = np.array(found).T
            lines.append(
                f"Fitted to {long} x {short}, {len(found)} pictures decoded in part against the same "
                f"in full: mean difference {mean.mean():.2f} of 255 levels (worst picture "
                f"{mean.max():.2f}), 99 % of the values within {high.max():.0f}, the largest "
                f"{most.max():.0f}."
            )
        found = []
    return lines


def same_pixels(paths: list[str]) -> str:
    """Returns in how many JPEGs simplejpeg and OpenCV find the same pixels."""
    if jpeg.simplejpeg is None:
        return "simplejpeg is not installed: OpenCV decodes everything."
    same = left = 0
    for path in paths:
        data = Path(path).read_bytes()
        found = None if jpeg.jpeg_head(data)[0] else jpeg.decoded_jpeg(data)
        if found is None:
            left += 1
            continue
        by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        same += np.array_equal(found, by_opencv)
    return (
        f"simplejpeg {version('simplejpeg')} gives OpenCV's pixels, every bit, in {same} of "
        f"{len(paths) - left} pictures; {left} more have EXIF or are refused, and are left to OpenCV."
    )


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--large", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs for the differences")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        usual_size = source_of(Path(folder), SHORT, LONG, args.count)
        camera = source_of(Path(folder), 3000, 4000, args.large)
        rows = measure(usual_size, args.rounds, large=False)
        rows += measure(camera, args.rounds, large=True)
        told = differences(list(camera.files.paths()))
    if args.pictures:
        names = [n for n in list_pictures(args.pictures) if n.lower().endswith((".jpg", ".jpeg"))]
        told.append(same_pixels([str(args.pictures / n) for n in names]))
        told += [
            f"{args.pictures.name}: {line}"
            for line in differences([str(args.pictures / n) for n in names[:300]])
        ]
    about = (
        "Ways in turn, medians; the ratio of the first line is the loader's share of raw decoding."
    )
    report(
        "The loader beside raw decoding, one core", "\n\n".join([about, *told]), rows, args.results
    )


if __name__ == "__main__":
    main()
