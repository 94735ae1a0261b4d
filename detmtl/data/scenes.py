"""The built-in data set `scenes`: rendered pictures with exact labels of several kinds.

It exists so that everything can be tried, tested and compared without downloading anything: small
three-dimensional models of sixteen classes on streets, in parks, on plazas, at the water and in
halls, with light, shadows, weather, occlusion, crowds, things that are no class and empty pictures.

Two domains are drawn. `home` is summer and daylight; `away` is dusk, night, autumn, snow, rain and
fog, seen by another camera. People labelled `gold` at home; `pool` was taken away from home and has
no labels for training (its truth is written all the same, for upper bounds and audits). The user
wants *both*: `val` and `test` alternate between home (odd image ids) and away (even image ids), so
that pictures from the pool carry coverage which gold cannot.

What counts as an object: one of which at least `MIN_VISIBLE` of its silhouette and `MIN_AREA` pixels
are seen. Its box is the tight box of its visible pixels. Lesser fragments stay in the picture and in
the semantic map but are no annotation. A dense group is one `iscrowd` region.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from filelock import FileLock
from pycocotools import mask as coco_mask
from pydantic import Field

from detmtl.data.scene_layout import TAGS, Domain
from detmtl.data.scene_objects import SCENE_CLASSES, SCENE_KEYPOINTS
from detmtl.data.scene_paint import COLORS
from detmtl.data.scene_picture import Scene, Thing, draw_scene
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings

__all__ = [
    "COLORS",
    "SCENE_CLASSES",
    "SCENE_KEYPOINTS",
    "SPLITS",
    "TAGS",
    "ScenesSettings",
    "render_scenes",
]

SPLITS = ("gold", "pool", "val", "test")
MIN_VISIBLE = 0.15
MIN_AREA = 24
MIN_SIDE = 4
FOLDERS = ("images", "annotations", "semantic", "depth")
_RENDERER = 3  # counts up when the same settings give other files
_MARKER = ".complete"
_STAGING = ".rendering-"
_LOCK = ".rendering.lock"
_FEW_PICTURES = 24  # fewer than this are drawn faster than worker processes start
_STALE_SECONDS = 3600

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and their total."""


class ScenesSettings(Settings):
    """How many pictures of which size; the same settings give the same files.

    Attributes:
        gold, pool, val, test: pictures of the split. A split's first pictures stay the same when
            its count grows.
        size: height and width in pixels.
        seed: another seed, other pictures.
    """

    gold: int = Field(default=64, ge=0)
    pool: int = Field(default=800, ge=0)
    val: int = Field(default=100, ge=0)
    test: int = Field(default=300, ge=0)
    size: tuple[int, int] = (256, 320)
    seed: int = Field(default=0, ge=0)

    def digest(self) -> str:
        """Returns a hash of everything that the pictures depend on."""
        text = json.dumps([_RENDERER, self.model_dump(mode="json")])
        return hashlib.sha256(text.encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Returns the number of pictures of each split."""
        return {split: getattr(self, split) for split in SPLITS}


class _Job(NamedTuple):
    """One picture to draw."""

    root: str
    seed: int
    split: str
    number: int
    height: int
    width: int


def render_scenes(
    root: Path,
    settings: ScenesSettings,
    progress: Progress | None = None,
    processes: int | None = None,
) -> None:
    """Writes the data set into `root`, unless it is there already with the same settings.

    Layout: `images/<split>/000001.jpg`, `annotations/<split>.json` (COCO; image id i is file i;
    annotations carry `attributes.color` and, of the classes of `SCENE_KEYPOINTS`, `keypoints`: visibility
    2 where the pixel shows the object, be it its other side, 1 where something hides it, 0 outside
    of the picture; images carry `tags`), `semantic/<split>/000001.png` (uint8, class
    index + 1, 0 background; names in `semantic/categories.json`), `depth/<split>/000001.png` (uint16
    millimeters along the optical axis; 65535: 65.535 m or farther). A data set of other settings is
    replaced.

    Args:
        progress: called after every picture with (pictures done, pictures in all).
        processes: worker processes; None: one per usable core. The files do not depend on it.

    Raises:
        InputError: the folder cannot be written, holds something else, or `size` is too small.
    """
    root = Path(root)
    _check(root, settings)
    if _is_complete(root, settings):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Two first runs at once: the second waits for the first one's pictures.
        with FileLock(root / _LOCK):
            if not _is_complete(root, settings):
                _render_staged(root, settings, progress, processes)
    except OSError as error:
        raise InputError(
            f"{root}: the scenes cannot be written here ({error.strerror or error}); "
            "choose a folder that can be written and has space"
        ) from error


def _render_staged(
    root: Path, settings: ScenesSettings, progress: Progress | None, processes: int | None
) -> None:
    _sweep(root)
    staging = root / f"{_STAGING}{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        _render_into(staging, settings, progress, processes)
        _publish(staging, root, settings)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(root: Path, settings: ScenesSettings) -> None:
    if min(settings.size) < 64 or max(settings.size) > 2048:
        raise InputError(
            f"scenes.size: {list(settings.size)} is not allowed; height and width are 64..2048 pixels"
        )
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; the scenes need a folder")
    try:
        foreign = [n for n in FOLDERS if (root / n).exists()] if root.is_dir() else []
        if foreign and not (root / _MARKER).exists():
            raise InputError(
                f"{root}: has a folder '{foreign[0]}' that was not written by render_scenes; "
                "choose another folder for the scenes"
            )
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror}); choose another") from error


def _is_complete(root: Path, settings: ScenesSettings) -> bool:
    try:
        found = json.loads((root / _MARKER).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("digest") == settings.digest()


def _sweep(root: Path) -> None:
    """Removes what a killed run left an hour ago or earlier."""
    for folder in root.glob(_STAGING + "*"):
        if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, root: Path, settings: ScenesSettings) -> None:
    """Puts the new folders in place; the marker tells at every moment whether they are whole."""
    _write_marker(root, None, settings)
    for name in FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
        (staging / name).rename(root / name)
    _write_marker(root, settings.digest(), settings)


def _write_marker(root: Path, digest: str | None, settings: ScenesSettings) -> None:
    text = json.dumps({"digest": digest, "settings": settings.model_dump(mode="json")})
    partial = root / f"{_MARKER}-{os.getpid()}"
    partial.write_text(text)
    partial.replace(root / _MARKER)


def _render_into(
    folder: Path, settings: ScenesSettings, progress: Progress | None, processes: int | None
) -> None:
    counts = settings.counts()
    for split in SPLITS:
        for name in ("images", "semantic", "depth"):
            (folder / name / split).mkdir(parents=True)
    (folder / "annotations").mkdir()
    categories = [{"id": i, "name": n} for i, n in enumerate(("background", *SCENE_CLASSES))]
    (folder / "semantic" / "categories.json").write_text(json.dumps(categories))
    height, width = settings.size
    jobs = [
        _Job(str(folder), settings.seed, split, number, height, width)
        for split in SPLITS
        for number in range(1, counts[split] + 1)
    ]
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for done, (job, record) in enumerate(zip(jobs, _records(jobs, processes), strict=True), 1):
        records[job.split].append(record)
        if progress is not None:
            progress(done, len(jobs))
    for split in SPLITS:
        text = json.dumps(_coco(split, records[split]), separators=(",", ":"))
        (folder / "annotations" / f"{split}.json").write_text(text)


def _records(jobs: list[_Job], processes: int | None) -> Iterator[dict[str, Any]]:
    """Draws the jobs and yields their records in order."""
    processes = min(processes or _usable_cores(), max(1, len(jobs) // 4))
    if processes == 1 or len(jobs) < _FEW_PICTURES:
        yield from map(_render, jobs)
        return
    # Forking a process that has threads (torch, a progress bar) can hang the child.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), cv2.setNumThreads, (1,))
    try:
        yield from pool.map(_render, jobs, chunksize=4)
    except BrokenProcessPool as error:
        raise RuntimeError("a process that draws scenes was killed (out of memory?)") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _domain(split: str, number: int) -> Domain:
    if split in ("val", "test"):
        return Domain.HOME if number % 2 else Domain.AWAY
    return Domain.HOME if split == "gold" else Domain.AWAY


def _render(job: _Job) -> dict[str, Any]:
    """Draws one picture, writes its files and returns its record for the annotation file."""
    rng = np.random.default_rng([job.seed, zlib.crc32(job.split.encode()), job.number])
    domain = _domain(job.split, job.number)
    scene = draw_scene(domain, job.height, job.width, rng)
    stem = f"{job.number:06d}"
    folder = Path(job.root)
    quality = [cv2.IMWRITE_JPEG_QUALITY, scene.quality]
    _write(folder / "images" / job.split / f"{stem}.jpg", scene.image[..., ::-1], quality)
    png = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    _write(folder / "semantic" / job.split / f"{stem}.png", scene.semantic(), png)
    _write(folder / "depth" / job.split / f"{stem}.png", scene.depth, png)
    annotations = _annotations(scene, job.number)
    crowd = ["crowd"] if any(a["iscrowd"] for a in annotations) else []
    empty = [] if annotations else ["empty"]
    return {
        "image": {
            "id": job.number,
            "file_name": f"{stem}.jpg",
            "height": job.height,
            "width": job.width,
            "domain": domain.value,
            "tags": scene.tags + crowd + empty,
        },
        "annotations": annotations,
    }


def _write(path: Path, image: np.ndarray, options: list[int]) -> None:
    _, data = cv2.imencode(path.suffix, np.ascontiguousarray(image), options)
    path.write_bytes(data.tobytes())


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """Returns the COCO annotations of the objects that are visible enough."""
    found = []
    areas = np.bincount(scene.instances.ravel(), minlength=256)
    for thing in scene.things:
        area = int(areas[thing.id])
        visible = area / max(1.0, thing.silhouette)
        if area < MIN_AREA or (visible < MIN_VISIBLE and not thing.crowd):
            continue
        mask = (scene.instances == thing.id).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if min(w, h) < MIN_SIDE:
            continue
        counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
        attributes = {"visible": round(min(1.0, visible), 3)}
        found.append(
            _keypoints(scene, thing)
            | {
                "id": image_id * 1000 + thing.id,
                "image_id": image_id,
                "category_id": thing.label + 1,
                "bbox": [x, y, w, h],
                "area": area,
                "iscrowd": int(thing.crowd),
                "segmentation": {
                    "size": list(mask.shape),
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                },
                "attributes": {} if thing.crowd else {"color": thing.color, **attributes},
            }
        )
    return found


def _keypoints(scene: Scene, thing: Thing) -> dict[str, Any]:
    """Returns the keys of an annotation that say where an object's keypoints are; none for a crowd."""
    names = SCENE_KEYPOINTS.get(SCENE_CLASSES[thing.label], ())
    if not names or thing.crowd:
        return {}
    height, width = scene.instances.shape
    values: list[float] = []
    for name in names:
        x, y = (round(v, 2) for v in thing.marks[name])
        if 0 <= x < width and 0 <= y < height:
            values += [x, y, 2 if scene.instances[int(y), int(x)] == thing.id else 1]
        else:
            values += [0, 0, 0]
    return {"keypoints": values, "num_keypoints": sum(v > 0 for v in values[2::3])}


def _category(c: int, name: str) -> dict[str, Any]:
    points = SCENE_KEYPOINTS.get(name)
    return {"id": c + 1, "name": name} | ({"keypoints": list(points)} if points else {})


def _coco(split: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"description": f"detmtl scenes, {split}", "version": str(_RENDERER)},
        "licenses": [],
        "tags": list(TAGS),
        "categories": [_category(c, name) for c, name in enumerate(SCENE_CLASSES)],
        "images": [r["image"] for r in records],
        "annotations": [a for r in records for a in r["annotations"]],
    }
