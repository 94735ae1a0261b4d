"""Annotation files of COCO's size: loading beside pycocotools, and the memory of a loader's worker.

    python benchmarks/annotations.py --results benchmarks/results/NAME.md
    python benchmarks/annotations.py --sets val2017        # the small one alone

The files are synthetic, with polygons as COCO has them: val2017's size is 5,000 pictures and 36,781
boxes, train2017's 118,287 and 860,001. Each way to load runs in a process of its own, which tells its
processor seconds and by how much its memory grew at most. "cached" is any load but the first: the
files' hash is known by size and time of change, and the arrays are mapped.
The worker's memory is what one process of the loader has for itself after some batches, with 10
thousand and with 10 million boxes, beside the pages of mapped files, which are the system's cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from abab import Row, peak_memory, report

SETS = {"val2017": (5000, 36_781), "train2017": (118_287, 860_001)}
CLASSES = [f"class{i}" for i in range(80)]
CORNERS = 24
"""Of a polygon: gives about the bytes that COCO's files have for each box."""


def write(folder: Path, pictures: int, boxes: int) -> None:
    """Writes an annotation file and empty files in place of its pictures."""
    rng = np.random.default_rng(0)
    names = [f"{i:012d}.jpg" for i in range(pictures)]
    (folder / "images").mkdir(parents=True)
    for name in names:
        (folder / "images" / name).touch()
    images = [
        {
            "license": 3,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 17:02:52",
            "id": i,
        }
        for i, name in enumerate(names)
    ]
    corner, side = rng.uniform(0, 400, (boxes, 2)).round(2), rng.uniform(2, 80, (boxes, 2)).round(2)
    picture = np.sort(rng.integers(0, pictures, boxes)).tolist()
    shape = rng.uniform(0, 80, (1000, 2 * CORNERS)).round(2).tolist()
    with open(folder / "instances.json", "w") as file:
        file.write('{"images": ' + json.dumps(images) + ', "categories": ')
        file.write(json.dumps([{"id": i + 1, "name": n} for i, n in enumerate(CLASSES)]))
        file.write(', "annotations": [')
        for i in range(boxes):
            row = {
                "segmentation": [shape[i % 1000]],
                "area": 1234.5678,
                "iscrowd": 0,
                "image_id": picture[i],
                "bbox": [*corner[i].tolist(), *side[i].tolist()],
                "category_id": i % 80 + 1,
                "id": i + 1,
            }
            file.write((", " if i else "") + json.dumps(row))
        file.write("]}")


def one(way: str, folder: Path) -> None:
    """Loads once and prints processor seconds and bytes of memory."""
    if way == "pycocotools":
        from pycocotools.coco import COCO

        def load() -> object:
            return COCO(str(folder / "instances.json"))
    else:
        from detmtl.data.coco import CocoSource
        from detmtl.structures.classes import LabelSpace

        settings = CocoSource(images="images", annotations="instances.json")
        space = LabelSpace.of(CLASSES)

        def load() -> object:
            source = settings.load("train", folder, space, folder / "cache")
            return source, source.annotations.boxes.sum()  # type: ignore[union-attr]

    kept: list[object] = []

    def timed() -> None:
        start = time.process_time()
        kept.append(load())
        kept.append(time.process_time() - start)

    grown = peak_memory(timed)
    print(json.dumps([kept[1], grown]))


def loading(name: str, rounds: int) -> list[Row]:
    """Compares the ways to load a set of that size."""
    pictures, boxes = SETS[name]
    found: dict[str, list[list[float]]] = {"pycocotools": [], "first": [], "cached": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        write(folder, pictures, boxes)
        size = (folder / "instances.json").stat().st_size / 2**20
        for turn in range(rounds):
            for way in ("pycocotools", "first", "cached"):
                if way == "first" and turn:
                    continue
                command = [sys.executable, __file__, "--one", way, "--folder", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {way: float(np.median([s for s, _ in v])) for way, v in found.items()}
    memory = {way: float(np.median([m for _, m in v])) / 2**20 for way, v in found.items()}
    what = f"{name}'s size, {size:.0f} MiB"
    return [
        Row(
            f"{what}: cached load",
            f"COCO(): {seconds['pycocotools']:.2f} s",
            f"{seconds['cached']:.3f} s",
            seconds["pycocotools"] / seconds["cached"],
            35,
            f"the first load, which checks everything: {seconds['first']:.2f} s",
        ),
        Row(
            f"{what}: memory of a cached load",
            f"COCO(): {memory['pycocotools']:.0f} MiB",
            f"{memory['cached']:.0f} MiB",
            memory["pycocotools"] / memory["cached"],
            10,
            f"of the first load: {memory['first']:.0f} MiB",
        ),
    ]


def write_arrays(boxes: int, folder: Path) -> None:
    """Writes what is kept of a file with so many boxes, eight a picture."""
    from detmtl.data.flat import Annotations, FileNames
    from detmtl.data.parsed import Parsed, save_parsed

    pictures = boxes // 8
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (boxes, 2))
    annotations = Annotations.of(
        pictures,
        np.repeat(np.arange(pictures), 8),
        np.concatenate([corner, corner + 20], axis=1),
        rng.integers(0, 80, boxes),
    )
    parsed = Parsed(
        FileNames.of(folder, ["a.png"] * pictures),
        np.arange(pictures),
        np.tile(np.array([[96, 128]], np.int32), (pictures, 1)),
        annotations,
        np.ones((1, 80), np.float32),
    )
    save_parsed(folder / "arrays", parsed)


def worker_memory(folder: Path) -> tuple[float, float]:
    """Returns the MiB that a worker of the loader has for itself, and the MiB of the boxes' arrays."""
    import cv2

    from detmtl.data.augment import Augment
    from detmtl.data.loader import batches
    from detmtl.data.mixture import MixSettings, Mixture
    from detmtl.data.parsed import load_parsed
    from detmtl.data.source import Source

    cv2.imwrite(str(folder / "a.png"), np.zeros((96, 128, 3), np.uint8))
    kept = load_parsed(folder / "arrays")
    assert kept is not None
    source = Source(
        "s", tuple(CLASSES), kept.files, kept.ids, kept.sizes, kept.annotations, kept.coverage
    )
    mixture = Mixture([source], MixSettings(mode="gold"), 8, seed=0)
    stream = batches(mixture, Augment([], 96, 128), 0, 1000, workers=1)
    for _ in range(40):
        next(stream)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    mine = [_private(int(pid)) for pid in children]
    stream.close()  # type: ignore[attr-defined]
    size = sum(f.stat().st_size for f in (folder / "arrays").iterdir()) / 2**20
    return max(mine), size


def _private(pid: int) -> float:
    """Returns the MiB of a process that lie in no file, shared ones divided among those that share.

    Pages of mapped files are the system's cache, which it drops when memory is wanted.
    """
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )
    return int(fields["Pss_Anon"].split()[0]) / 1024


def workers(most: int) -> list[Row]:
    """Compares the memory of workers with few and with many boxes, in processes of their own."""
    mine, sizes = {}, {}
    for boxes in (10_000, most):
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, __file__, "--boxes", str(boxes), "--folder", place, "--one"]
            subprocess.run([*command, "arrays"], check=True)
            done = subprocess.run([*command, "worker"], capture_output=True, text=True, check=True)
        mine[boxes], sizes[boxes] = json.loads(done.stdout.splitlines()[-1])
    return [
        Row(
            f"a worker's own memory, {most:,} boxes beside 10,000",
            f"10,000 boxes: {mine[10_000]:.0f} MiB",
            f"{most:,} boxes: {mine[most]:.0f} MiB",
            mine[10_000] / mine[most],
            0.9,
            f"the arrays on disk: {sizes[10_000]:.1f} and {sizes[most]:.0f} MiB",
        )
    ]


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="val2017,train2017")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=10_000_000)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--one", choices=["pycocotools", "first", "cached", "arrays", "worker"])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.one == "arrays":
        write_arrays(args.boxes, args.folder)
        return
    if args.one == "worker":
        print(json.dumps(worker_memory(args.folder)))
        return
    if args.one:
        one(args.one, args.folder)
        return
    rows = [row for name in args.sets.split(",") for row in loading(name, args.rounds)]
    rows += workers(args.boxes)
    report(
        "Loading annotation files",
        "Processor seconds and peak growth of memory, medians of the rounds.",
        rows,
        args.results,
    )


if __name__ == "__main__":
    main()
