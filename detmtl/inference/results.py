"""Predictions for pictures and videos, written as drawn pictures and as one results file.

Letters: H and W pixels.
"""

import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from detmtl.data.depth import LEGEND, MILLIMETERS, unit_for, unit_told
from detmtl.data.images import read_image
from detmtl.data.map_files import write_values
from detmtl.data.map_legend import Legend
from detmtl.engine.drawing import draw
from detmtl.inference.box_details import described, keypoints_by_class, with_details
from detmtl.inference.predictor import AnyPredictor
from detmtl.inference.written import Files, map_file, settled
from detmtl.structures.boxes import area, xyxy_to_xywh
from detmtl.structures.depth import DepthLabels
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, BoxLabels, Grade, Labels, MapLabels, TagLabels
from detmtl.structures.shown import SURE
from detmtl.structures.whole import whole, write_whole

T = TypeVar("T")

JPEG_SIDE = 65500
"""The most pixels of a JPEG's side that libjpeg writes."""

Progress = Callable[[int, int], None]
"""Called with (how many sources are done, how many there are)."""


def predict_to_files(
    predictor: AnyPredictor,
    sources: Sequence[str | Path],
    out: str | Path,
    batch_size: int = 1,
    progress: Progress | None = None,
    draw_from: float = SURE,
) -> Path:
    """Predicts everything in `sources` and writes `out`/drawn/..., `out`/results.json and, where the model
    has such a task, `out`/<task>/... with a map or a depth of each picture, and `legend.json`.

    The results file is a COCO annotation file with a `score` for each annotation; it can be scored
    (`evaluate --detections`), looked at with COCO tools, or trained on as silver; tags stand with the
    images, and those that two tasks have in common as `task/name`. `file_name` is relative to the folder
    that all sources have in common; a frame of a video has the video's name and its number, `frame`. The
    map of `a/b.jpg` is `<task>/a/b.png`. Where several tasks find boxes it has those of the first, as a run's
    `detections.json` does; each further one's are in `out`/results_<task>.json, and a warning says so. What
    a task of one's own finds that is no boxes, maps, tags or depth is not written, with a warning.

    Args:
        predictor: from `load_predictor`.
        sources: pictures, videos, folders of both (with all below).
        out: a folder, made if missing.
        batch_size: pictures that go through the network together; 1 is the fastest on a CPU.
        progress: called after every source file.
        draw_from: boxes of lower scores are in the results file alone, and not drawn.

    Returns:
        the results file.

    Raises:
        InputError: nothing to predict, one file would be written of two sources or over a source, or `out`
            has depths in another unit; or unreadable files, and then the readable ones are written first.
    """
    out = Path(out)
    files = settled(sources, out, predictor.kinds)
    depths = [task for task, kind in predictor.kinds.items() if kind == "depth"]
    units = {task: _settled_unit(out / task, predictor.farthest.get(task, 0)) for task in depths}
    count = len(files.drawn)
    problems: list[str] = []
    done = 0
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        names = _told_apart(predictor.names, predictor.kinds)
        results = _Results(predictor.class_names, names, units, out, stack)
        for chunk in _chunks(iter(files.pictures), batch_size):
            _predict_pictures(predictor, chunk, files, results, draw_from, problems)
            done += len(chunk)
            if progress:
                progress(done, count)
        for video in files.videos:
            try:
                _predict_video(predictor, video, files, batch_size, results, draw_from)
            except InputError as error:
                problems += error.problems
            done += 1
            if progress:
                progress(done, count)
        path = results.write()
    if problems:
        raise InputError(problems)
    return path


@dataclass
class _Rows:
    """Rows of a list in the results file, kept in a file that nobody else sees: there may be millions."""

    file: IO[str]
    count: int = 0

    @classmethod
    def of(cls, folder: Path, stack: ExitStack) -> "_Rows":
        """Returns none; the file is gone when the stack is left."""
        return cls(stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)))

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row under the next id, from 1 on."""
        self.count += 1
        comma = ",\n" if self.count > 1 else "\n"
        self.file.write(comma + json.dumps({"id": self.count, **row}))

    def copy(self, name: str, to: IO[str]) -> None:
        """Writes the list as that entry of an object."""
        self.file.seek(0)
        to.write(f'"{name}": [')
        shutil.copyfileobj(self.file, to)
        to.write("\n],\n")


@dataclass
class _Results:
    """What the results files will hold.

    Attributes:
        class_names: of the boxes.
        names: task name -> names of its classes, those of tags told apart.
        units: task of depth -> meters that a value of 1 means in its files.
        out: the folder of all files.
        stack: the rows are gone when it is left.
        images: rows so far.
        annotations: task that finds boxes -> rows so far.
        tags: names of all tags so far.
        points: class -> names of its keypoints.
        owners: file of a map -> name of its picture.
        mapped: tasks that have given a map.
        unwritten: tasks whose labels are of a kind of their own.
    """

    class_names: Sequence[str]
    names: Mapping[str, Sequence[str]]
    units: dict[str, float]
    out: Path
    stack: ExitStack
    images: _Rows = field(init=False)
    annotations: dict[str, _Rows] = field(default_factory=dict)
    tags: dict[str, None] = field(default_factory=dict)
    points: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    owners: dict[Path, str] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)
    unwritten: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = _Rows.of(self.out, self.stack)

    def add(
        self, name: str, image: Tensor, found: dict[str, Labels], frame: int | None = None
    ) -> None:
        """Adds a picture (3, H, W) and what was found in it."""
        height, width = image.shape[1:]
        entry: dict[str, Any] = {"file_name": name, "height": height, "width": width}
        entry |= {} if frame is None else {"frame": frame}
        for task, labels in with_details(found).items():
            if isinstance(labels, MapLabels):
                self._add_map(task, name if frame is None else f"{name}/{frame:06d}", labels)
                continue
            if isinstance(labels, DepthLabels):
                self._add_depth(task, name if frame is None else f"{name}/{frame:06d}", labels)
                continue
            if not isinstance(labels, BoxLabels):
                if not isinstance(labels, TagLabels):
                    self.unwritten[task] = None
                continue
            if labels.details is not None and labels.details.keypoint_names:
                self.points = keypoints_by_class(labels.details.keypoint_names)
            rows = zip(
                xyxy_to_xywh(labels.boxes).tolist(),
                area(labels.boxes).tolist(),
                labels.classes.tolist(),
                labels.scores.tolist(),
                strict=True,
            )
            if task not in self.annotations:
                self.annotations[task] = _Rows.of(self.out, self.stack)
            said = described(labels, height, width)
            for details, (box_xywh, pixels, label, score) in zip(said, rows, strict=True):
                self.annotations[task].add(
                    details
                    | {
                        "image_id": self.images.count + 1,
                        "category_id": label + 1,
                        "bbox": [round(x, 3) for x in box_xywh],
                        "area": round(pixels, 3),
                        "iscrowd": 0,
                        "score": round(score, 6),
                    }
                )
        if (tags := _all_tags(found, self.names)) is not None:
            entry |= _tags(*tags)
        self.tags |= dict.fromkeys(entry.get("scores", ()))
        self.images.add(entry)

    def _png(self, task: str, name: str) -> Path:
        """Returns the file of what a task found in a picture, its folder made.

        Where a task gives maps of which nothing was known beforehand, and the file is that of another
        picture already, it has the picture's whole name.
        """
        path = map_file(self.out, task, name)
        if self.owners.setdefault(path, name) != name:
            path = path.with_name(f"{Path(name).name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _add_map(self, task: str, name: str, labels: MapLabels) -> None:
        """Writes the map of a picture; with the first one, what the values of all mean."""
        if task not in self.mapped:
            _settle_legend(self.out / task, self.names[task])
            self.mapped.add(task)
        write_values(self._png(task, name), labels.classes.numpy())

    def _add_depth(self, task: str, name: str, labels: DepthLabels) -> None:
        """Writes the depth of a picture in 16 bits, as sources of depth are read."""
        if task not in self.units:  # nobody knew that it gives depths
            self.units[task] = _settled_unit(self.out / task, 0)
        values = (labels.depth / self.units[task]).round().clamp(0, 65535).numpy()
        written, data = cv2.imencode(".png", values.astype(np.uint16))
        path = self._png(task, name)
        assert written, path
        path.write_bytes(data.tobytes())

    def write(self) -> Path:
        """Writes a file for each task that finds boxes, whole or not at all; returns the first task's."""
        annotations = self.annotations or {"": _Rows.of(self.out, self.stack)}
        first, *others = annotations
        path = self.out / "results.json"
        files = {first: path} | {task: self.out / f"results_{task}.json" for task in others}
        for task, file in files.items():
            self._write(file, annotations[task])
        if others:
            names = ", ".join(files[task].name for task in others)
            warnings.warn(
                f"{path} has the boxes of {first}; the other tasks' are in {names}", stacklevel=3
            )
        if self.unwritten:
            warnings.warn(
                f"{', '.join(self.unwritten)}: labels of a kind of their own, for which there is no file; in "
                "Python load_predictor(...).predict gives them",
                stacklevel=3,
            )
        return path

    def _write(self, path: Path, annotations: _Rows) -> None:
        names = self.class_names
        categories = [
            {"id": i + 1, "name": name} | self.points.get(name, {}) for i, name in enumerate(names)
        ]
        content = {"tags": list(self.tags), "grade": "silver"} if self.tags else {}
        content |= {"info": {"grade": "silver"}, "categories": categories}
        with whole(path) as part, part.open("w", encoding="utf-8") as file:
            file.write("{")
            self.images.copy("images", file)
            annotations.copy("annotations", file)
            file.write(json.dumps(content)[1:] + "\n")


def _settled_unit(folder: Path, farthest: float) -> float:
    """Returns the unit of depths of up to `farthest` meters in a folder, which then says it.

    Raises:
        InputError: the folder has depths in another unit, or its `LEGEND` is broken.
    """
    unit, told = unit_for(farthest), unit_told(folder) or MILLIMETERS
    if told != unit and any(folder.rglob("*.png")):
        raise InputError(
            f"{folder}: has depths in which a value of 1 means {told} m, and those of this model need a unit "
            f"of {unit} m; choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / LEGEND, json.dumps({"unit": unit}))
    return unit


def _settle_legend(folder: Path, names: Sequence[str]) -> None:
    """Says in a folder what the values of its maps mean.

    Raises:
        InputError: it has maps whose values mean something else.
    """
    path = folder / LEGEND
    legend = Legend(dict(enumerate(names)), (OTHER,), grade=Grade.SILVER)
    there = path.is_file() and any(folder.rglob("*.png"))
    if there and Legend.read(path).categories != legend.categories:
        raise InputError(
            f"{folder}: has maps in which values mean other classes than those of this model; choose another "
            "--out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(legend.json()))


def _predict_pictures(
    predictor: AnyPredictor,
    chunk: Sequence[Path],
    files: Files,
    results: _Results,
    draw_from: float,
    problems: list[str],
) -> None:
    images: dict[Path, Tensor] = {}
    for file in chunk:
        try:
            images[file] = torch.from_numpy(read_image(file)).permute(2, 0, 1)
        except InputError as error:
            problems += error.problems
    for (file, image), found in zip(
        images.items(), predictor.predict(list(images.values())), strict=True
    ):
        found = {name: labels.to("cpu") for name, labels in found.items()}
        results.add(file.relative_to(files.root).as_posix(), image, found)
        _write_picture(files.drawn[file], _drawing(image, found, results.names, draw_from))


def _predict_video(
    predictor: AnyPredictor,
    file: Path,
    files: Files,
    batch_size: int,
    results: _Results,
    draw_from: float,
) -> None:
    capture = cv2.VideoCapture(str(file))
    told = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # by the header, which may be an estimate
    writer: cv2.VideoWriter | None = None
    number = 0
    try:
        for frames in _chunks(_frames(capture), batch_size):
            for image, found in zip(frames, predictor.predict(frames), strict=True):
                found = {name: labels.to("cpu") for name, labels in found.items()}
                results.add(file.relative_to(files.root).as_posix(), image, found, frame=number)
                number += 1
                if writer is None:
                    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
                    writer = _video_writer(files.drawn[file], rate, image)
                writer.write(_bgr(_drawing(image, found, results.names, draw_from)))
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if number == 0:
        raise InputError(f"{file}: no frame of this video can be decoded")
    if number < told:
        warnings.warn(
            f"{file}: {number} frames can be decoded, its header tells of {told}; is it cut short?",
            stacklevel=3,
        )


def _frames(capture: cv2.VideoCapture) -> Iterator[Tensor]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


def _video_writer(path: Path, rate: float, image: Tensor) -> cv2.VideoWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, rate, (image.shape[2], image.shape[1]))
    if not writer.isOpened():
        raise InputError(f"{path}: this build of OpenCV cannot write MPEG-4 video")
    return writer


def _drawing(
    image: Tensor, found: dict[str, Labels], names: Mapping[str, Sequence[str]], least: float
) -> Tensor:
    """Returns the picture with what was found drawn on it, maps below the rest, boxes from `least` on.

    Depth is not drawn: its grays would hide the others' colors; it has files of its own.
    """
    tags = _all_tags(found, names)
    found = with_details(found)
    for name, labels in sorted(found.items(), key=lambda item: not isinstance(item[1], MapLabels)):
        if not isinstance(labels, DepthLabels | TagLabels):
            image = draw(image, labels, names[name], "class", least)
    return image if tags is None else draw(image, *tags, colors="class")


def _told_apart(
    names: Mapping[str, Sequence[str]], kinds: Mapping[str, str]
) -> dict[str, Sequence[str]]:
    """Returns the names of each task's classes, where tags that several tasks have are `task/name`: in the
    results file all tasks' tags of a picture stand together."""
    tags = {task: names[task] for task, kind in kinds.items() if kind == "tags"}
    count = Counter(name for of_task in tags.values() for name in of_task)
    apart = {
        task: [f"{task}/{name}" if count[name] > 1 else name for name in of_task]
        for task, of_task in tags.items()
    }
    return {**names, **apart}


def _all_tags(
    found: Mapping[str, Labels], names: Mapping[str, Sequence[str]]
) -> tuple[TagLabels, list[str]] | None:
    """Returns the tags that all tasks together give a picture, and their names; None: no task gives any."""
    tags = {task: labels for task, labels in found.items() if isinstance(labels, TagLabels)}
    if not tags:
        return None
    together = TagLabels(
        torch.cat([labels.targets for labels in tags.values()]),
        torch.cat([labels.weights for labels in tags.values()]),
        Grade.SILVER,
    )
    return together, [name for task in tags for name in names[task]]


def _tags(labels: TagLabels, names: Sequence[str]) -> dict[str, Any]:
    scores = [round(p, 6) for p in labels.targets.tolist()]
    shown = [name for name, p in zip(names, scores, strict=True) if p >= 0.5]
    return {"tags": shown, "scores": dict(zip(names, scores, strict=True))}


def _write_picture(path: Path, image: Tensor) -> None:
    """Writes a drawing; of one too large for a JPEG, as those of TIFF and GIF are, a warning tells."""
    if path.suffix.lower() in (".jpg", ".jpeg") and max(image.shape) > JPEG_SIDE:
        warnings.warn(
            f"{path}: not written, since no side of a JPEG is above {JPEG_SIDE} pixels; what was found is "
            "among the results",
            stacklevel=3,
        )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    written, data = cv2.imencode(path.suffix.lower(), _bgr(image))
    assert written, path
    path.write_bytes(data.tobytes())


def _bgr(image: Tensor) -> Any:
    return image.permute(1, 2, 0)[..., [2, 1, 0]].contiguous().numpy()


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk
