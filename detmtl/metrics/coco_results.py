"""COCO results files, and those of `predict`, as flat arrays, checked against an annotation file."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detmtl.data.coco_rows import is_object
from detmtl.data.coco_tables import positions_of
from detmtl.metrics.box_arrays import Boxes
from detmtl.metrics.coco_files import (
    Truth,
    check_known,
    columns_of,
    has_lists,
    ids_of,
    names_of,
    read_json,
)
from detmtl.structures.errors import InputError, first_few


def read_results(path: Path, truth: Truth) -> Boxes:
    """Returns all detections, with the ids of the annotation file; none at all are fine.

    The file is a COCO results file, a list; a result may have a `category_name`, as those of our own runs do;
    it must be the name that the annotation file gives to its `category_id`. Or it is what `predict` writes,
    an annotation file whose annotations have scores: its pictures are those of the same `file_name` (and
    `frame`), its categories those of the same name. Pictures that the annotation file does not have are left
    out, since nobody knows what is in them. A list does not tell which pictures were looked at: one with
    boxes of truth and without a result counts as looked at in vain, and is told in a warning.

    Args:
        path: the results file.
        truth: the annotation file.

    Raises:
        InputError: every problem found.
    """
    content = read_json(path)
    if has_lists(content):
        return _of_names(content, truth, str(path))
    if not isinstance(content, list):
        raise InputError(
            f"{path}: not a COCO results file; it is a list of objects with image_id, category_id, "
            "bbox [x, y, width, height] and score, or an object as `predict` writes it"
        )
    problems: list[str] = []
    boxes = columns_of(content, str(path), "result", True, problems)
    if not problems:
        check_known(boxes, truth.image_ids, list(truth.names), str(path), "result", problems)
        problems += _renamed(content, truth.names, str(path))
    if problems:
        raise InputError(problems)
    _warn_of_no_result(boxes, truth, str(path))
    return boxes


def _warn_of_no_result(found: Boxes, truth: Truth, where: str) -> None:
    """Warns if pictures with boxes of truth have no result: perhaps nobody predicted them."""
    wanted = np.unique(truth.boxes.images[~truth.boxes.crowd])
    without = np.setdiff1d(wanted, found.images).tolist()
    if without:
        warnings.warn(
            f"{where}: {len(without)} of the annotation file's {len(wanted)} pictures with boxes have no "
            f"result at all (image_id {first_few(without)}), and all their boxes count as missed; were they "
            "predicted? If not, score against an annotation file of the others alone",
            stacklevel=3,
        )


def _renamed(entries: list[Any], names: Mapping[int, str], where: str) -> list[str]:
    """Returns a sentence for each category of results that the annotation file calls otherwise."""
    stated = Counter(
        (e["category_id"], e["category_name"]) for e in entries if "category_name" in e
    )
    return [
        f"{where}: {count} results of category_id {i} are '{name}', but the annotation file's category "
        f"{i} is '{names[i]}'; score against a file with the run's own classes, or translate the ids"
        for (i, name), count in stated.items()
        if i in names and names[i] != name
    ]


def _of_names(content: Mapping[str, Any], truth: Truth, where: str) -> Boxes:
    """Returns the detections of a file that has pictures and categories of its own."""
    # what silver labels leave undecided is nothing that was found
    listed = content["annotations"]
    at = [i for i, e in enumerate(listed) if not isinstance(e, dict) or is_object(e)]
    entries = [listed[i] for i in at]
    without = sum(not (isinstance(e, dict) and "score" in e) for e in entries)
    if without:
        raise InputError(
            f"{where}: {without} of its {len(entries)} annotations have no score; a file of detections has "
            "one for each, and an annotation file is given as --annotations"
        )
    problems: list[str] = []
    image_ids = ids_of(content["images"], f"{where}: images", problems)
    names = names_of(
        content["categories"],
        ids_of(content["categories"], f"{where}: categories", problems),
        where,
        problems,
    )
    found = columns_of(entries, where, "annotation", True, problems, at)
    if not problems:
        check_known(found, image_ids, list(names), where, "annotation", problems, "this file", at)
    if problems:
        raise InputError(problems)
    pictures = _named(content["images"], image_ids, where, problems)
    wanted = _named(truth.pictures, truth.image_ids, "the annotation file", problems)
    missing = [name for name in wanted if name not in pictures]
    if missing and not problems:
        problems.append(
            f"{where}: has {len(missing)} of the annotation file's {len(wanted)} pictures not "
            f"({first_few(missing)}); its own are {first_few(list(pictures))}: predict all of them, and name "
            "them alike: names that `predict` writes start at the folder that all its sources share"
        )
    to_image = {pictures[name]: i for name, i in wanted.items() if name in pictures}
    found = _taken(found, np.isin(found.images, np.array(list(to_image), dtype=np.int64)))
    ids = {name: i for i, name in truth.names.items()}
    for i, count in sorted(Counter(found.categories.tolist()).items()):
        if names[i] not in ids:
            problems.append(
                f"{where}: {count} results are '{names[i]}', which is no category of the annotation file; it "
                f"has {first_few(list(ids))}: rename it, or leave these results out"
            )
    if problems:
        raise InputError(problems)
    to_category = {i: ids[name] for i, name in names.items() if name in ids}
    return replace(
        found,
        images=_replaced(found.images, to_image),
        categories=_replaced(found.categories, to_category),
    )


def _named(
    pictures: Sequence[Mapping[str, Any]], ids: Sequence[int], where: str, problems: list[str]
) -> dict[str, int]:
    """Returns name -> id of pictures; of a frame of a video the name has the frame's number."""
    found: list[tuple[str, int]] = []
    unnamed: list[int] = []
    for picture, i in zip(pictures, ids, strict=True):
        name, frame = picture.get("file_name"), picture.get("frame")
        if not isinstance(name, str):
            unnamed.append(i)
            continue
        name = PurePosixPath(name).as_posix()
        found.append((name if frame is None else f"{name}, frame {frame}", i))
    if unnamed:
        problems.append(
            f"{where}: {len(unnamed)} images have no file_name ({first_few(unnamed)}), by which the pictures "
            "of two files are told; give it, or detections as a COCO results file, a list with image ids"
        )
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    problems += [f"{where}: two images are '{name}'; name them apart" for name in twice]
    return dict(found)


def _replaced(values: np.ndarray, by: Mapping[int, int]) -> np.ndarray:
    """Returns for each value, all of which are known, what stands in its place."""
    known = np.array(list(by), dtype=np.int64)
    return np.array([*by.values(), 0], dtype=np.int64)[positions_of(values, known)]


def _taken(boxes: Boxes, mask: np.ndarray) -> Boxes:
    """Returns the boxes where a mask (N,) is true."""
    return Boxes(*(getattr(boxes, f.name)[mask] for f in fields(Boxes)))
