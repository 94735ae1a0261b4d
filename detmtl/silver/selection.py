"""From raw labels to labels: a pure function of store, policy and label space.

Letters: I pictures, N boxes, C classes.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from ruamel.yaml import YAML

from detmtl.data.coco_writer import CocoImage, write_coco
from detmtl.data.source import Source
from detmtl.silver.audit import Audit
from detmtl.silver.mapping import ClassMap
from detmtl.silver.parts import atomic_write
from detmtl.silver.pictures import Pictures, as_digests
from detmtl.silver.record import Record
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.settings import Settings

VERSION = 1
"""Part of every policy's hash: raise it when the same policy gives other labels."""

_ROW = np.dtype(
    [("picture", "i8"), ("box", "f4", 4), ("class", "i4"), ("score", "f4"), ("ignore", "u1")]
)


class AtPrecision(Settings):
    """A threshold that the audit finds: the lowest score from which gold confirms this share."""

    precision: float = Field(ge=0, le=1)


class SelectionSettings(Settings):
    """Which of a teacher's boxes become labels, and how much they count."""

    threshold: float | AtPrecision = 0.5
    """Boxes of at least this score are labels."""
    per_class: dict[str, float | AtPrecision] = {}
    """Class name -> its own threshold."""
    ignore_from: float | None = Field(default=0.3, ge=0, le=1)
    """Boxes from this score up to the threshold have no loss of their class; None: no such band.
    Where a class's threshold is lower than this, it has no band."""
    soft_targets: bool = False
    """Whether a label's score is its target in the class loss; otherwise the target is 1."""
    class_weight: float = Field(default=1.0, ge=0)
    """Of the class loss of each label."""
    box_weight: float = Field(default=1.0, ge=0)
    """Of the box loss of each label."""
    nms: float | None = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays; None: all."""
    max_boxes: PositiveInt = 300
    """The most boxes of one picture, the best of them, ignored ones included."""
    coverage: float | None = Field(default=None, ge=0, le=1)
    """Of the classes that the teacher knows; None: their audited recall, 1 without an audit."""

    @model_validator(mode="after")
    def _scores(self) -> "SelectionSettings":
        for name, value in {"threshold": self.threshold, **self.per_class}.items():
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is no score; scores lie in [0, 1]")
        if isinstance(self.threshold, float) and self.threshold < (self.ignore_from or 0):
            raise ValueError(
                f"ignore_from is {self.ignore_from}, above the threshold {self.threshold}; give a lower "
                "score, or null for no ignore band"
            )
        return self

    def needs_audit(self) -> bool:
        """Returns whether a threshold is given as a precision."""
        return any(isinstance(t, AtPrecision) for t in (self.threshold, *self.per_class.values()))


def select(
    store: Store,
    sources: Sequence[Source] | None,
    classes: LabelSpace,
    settings: SelectionSettings,
    audit: Audit | None = None,
    root: Path | None = None,
) -> Path:
    """Returns the COCO file (`select/<policy hash>/instances.json` in the store) of chosen labels.

    The file's categories are the names of `classes`: read it with `LabelSpace.of(classes.names)`.

    Args:
        store: raw labels.
        sources: the pictures that are wanted, with their ids and files; None: all of the store, with
            ids 1 to I in the order of their content hashes and the names that the store has.
        classes: what the teacher's classes mean.
        settings: the policy.
        audit: resolves thresholds given as precision, and gives the coverage.
        root: file names are written relative to it; None: absolute.

    Raises:
        InputError: a class of the teacher is unmapped, a threshold needs an audit or lies below the
            store's floor, or no picture of the sources is in the store.
    """
    mapping = ClassMap.of(store.card, classes, settings.nms)
    thresholds = resolve_thresholds(store, classes, settings, audit)
    coverage = _coverage(classes, mapping, settings, audit, thresholds)
    pictures = Pictures.of_store(store) if sources is None else Pictures.of_sources(sources, root)
    policy = {
        "version": VERSION,
        "teacher": store.card.name,
        "store": store.digest(),
        "classes": {n: list(m) for n, m in zip(classes.names, classes.members, strict=True)},
        "unmapped": "drop" if classes.drop_unmapped else "error",
        "pictures": pictures.digest(),
        "audit": None if audit is None else audit.digest(),
        "thresholds": {n: None if t == float("inf") else t for n, t in thresholds.items()},
        "coverage": coverage,
        "settings": settings.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()[:16]
    folder = store.path / "select" / key
    path = folder / "instances.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        labelled, rows = _choose(store, pictures, mapping, settings, thresholds)
        if not labelled.any():
            raise InputError(
                f"{store.path}: has none of the {len(labelled)} pictures that are asked for; let the "
                "teacher annotate them first"
            )
        atomic_write(folder / "policy.yaml", _yaml(policy))
        stats = _stats(labelled, rows, classes, thresholds, coverage)
        atomic_write(folder / "stats.json", json.dumps(stats, indent=1).encode())
        info = {
            "description": f"silver labels of {store.card.name}, policy {key}",
            "grade": "silver",
            "coverage": coverage,
        }
        # Last: its presence says that the folder is whole.
        images = _images(pictures, labelled, rows, settings, store.card.name, coverage)
        write_coco(path, images, classes.names, info)
    left_out = json.loads((folder / "stats.json").read_bytes())["pictures_not_labelled"]
    if left_out:
        warnings.warn(
            f"{store.path}: {left_out} of {len(pictures)} pictures have not been labelled by the teacher "
            "and are left out",
            stacklevel=2,
        )
    return path


def resolve_thresholds(
    store: Store, classes: LabelSpace, settings: SelectionSettings, audit: Audit | None
) -> dict[str, float]:
    """Returns class name -> the score from which on boxes are labels; infinity: none is.

    Raises:
        InputError: an unknown class name, a precision without an audit, or a score below the floor.
    """
    problems = []
    for name in settings.per_class:
        if name not in classes.names:
            close = get_close_matches(name, classes.names, n=1)
            hint = f" (nearest: '{close[0]}')" if close else ""
            problems.append(f"selection.per_class: '{name}' is no class{hint}")
    if settings.needs_audit() and audit is None:
        problems.append(
            "selection: a threshold is given as a precision, which only an audit against gold can "
            "turn into a score; give gold to audit with, or a score"
        )
    scores = {
        "selection.threshold": settings.threshold,
        "selection.ignore_from": settings.ignore_from,
        **{f"selection.per_class.{n}": t for n, t in settings.per_class.items()},
    }
    for name, value in scores.items():
        if isinstance(value, float) and value < store.floor:
            problems.append(
                f"{name}: {value} is below {store.floor}, the lowest score that {store.path} keeps"
            )
    if problems:
        raise InputError(problems)
    resolved = {}
    for name in classes.names:
        wanted = settings.per_class.get(name, settings.threshold)
        if isinstance(wanted, AtPrecision):
            assert audit is not None
            wanted = audit.threshold_for(wanted.precision)[name]
        resolved[name] = float(wanted)
    return resolved


def _coverage(
    classes: LabelSpace,
    mapping: ClassMap,
    settings: SelectionSettings,
    audit: Audit | None,
    thresholds: Mapping[str, float],
) -> dict[str, float]:
    """Returns how far the absence of a box means that nothing is there, per class.

    Boxes of the ignore band take their negative loss away, so the recall counts from the band's
    lower end.
    """
    if settings.coverage is not None:
        recall = dict.fromkeys(classes.names, settings.coverage)
    elif audit is not None:
        band = float("inf") if settings.ignore_from is None else settings.ignore_from
        recall = audit.recall_at({name: min(t, band) for name, t in thresholds.items()})
    else:
        recall = dict.fromkeys(classes.names, 1.0)
    return {
        name: round(recall[name], 6) if known else 0.0
        for name, known in zip(classes.names, mapping.known, strict=True)
    }


def _choose(
    store: Store,
    pictures: Pictures,
    mapping: ClassMap,
    settings: SelectionSettings,
    thresholds: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which pictures are labelled (I,) bool, and the chosen boxes (N,) of `_ROW` by picture."""
    order = np.argsort(pictures.hashes, kind="stable")
    rising = pictures.hashes[order]
    labelled = np.zeros(len(pictures), dtype=bool)
    # As precise as the scores: 0.7 is not below 0.7.
    limits = np.array(list(thresholds.values()), dtype=np.float32)
    flat = bytearray()  # one buffer: a million small arrays would cost many times the memory
    for record in store.records():
        key = as_digests([record.content_hash])
        first, end = (int(np.searchsorted(rising, key, side)[0]) for side in ("left", "right"))
        if first == end:
            continue
        rows = _chosen(mapping(record), limits, settings)
        for picture in order[first:end]:
            labelled[picture] = True
            rows["picture"] = picture
            flat += rows.tobytes()
    rows = np.frombuffer(flat, dtype=_ROW)
    return labelled, rows[np.argsort(rows["picture"], kind="stable")]


def _chosen(record: Record, limits: np.ndarray, settings: SelectionSettings) -> np.ndarray:
    """Returns the boxes of a record that become labels or are ignored, by falling score."""
    label = record.scores >= limits[record.classes]
    perhaps = np.zeros_like(label)
    if settings.ignore_from is not None:
        perhaps = ~label & (record.scores >= settings.ignore_from)
    keep = np.flatnonzero(label | perhaps)[: settings.max_boxes]
    rows = np.zeros(len(keep), dtype=_ROW)
    rows["box"], rows["class"] = record.boxes[keep], record.classes[keep]
    rows["score"] = record.scores[keep]
    rows["ignore"] = np.where(perhaps[keep], Ignore.CLASS, Ignore.NO)
    return rows


def _images(
    pictures: Pictures,
    labelled: np.ndarray,
    rows: np.ndarray,
    settings: SelectionSettings,
    teacher: str,
    coverage: Mapping[str, float],
) -> Iterator[CocoImage]:
    ends = np.searchsorted(rows["picture"], np.arange(len(pictures) + 1))
    covered = torch.tensor(list(coverage.values()))
    weights = torch.tensor([settings.class_weight, settings.box_weight])
    for i in np.flatnonzero(labelled):
        own = rows[ends[i] : ends[i + 1]].copy()
        scores = torch.from_numpy(own["score"].copy())
        hard = torch.from_numpy(own["ignore"] == Ignore.NO) & (not settings.soft_targets)
        labels = BoxLabels.of(
            torch.from_numpy(own["box"].copy()),
            torch.from_numpy(own["class"].copy()),
            len(coverage),
            scores=torch.where(hard, torch.ones_like(scores), scores),
            weights=weights.expand(len(own), 2),
            ignore=torch.from_numpy(own["ignore"].copy()),
            grade=Grade.SILVER,
            coverage=covered,
        )
        attributes = [{"teacher": teacher, "teacher_score": round(s, 5)} for s in scores.tolist()]
        height, width = (int(n) for n in pictures.sizes[i])
        yield CocoImage(pictures.names[i], height, width, int(pictures.ids[i]), labels, attributes)


def _stats(
    labelled: np.ndarray,
    rows: np.ndarray,
    classes: LabelSpace,
    thresholds: Mapping[str, float],
    coverage: Mapping[str, float],
) -> dict[str, Any]:
    kept = rows[rows["ignore"] == Ignore.NO]
    labels = np.bincount(kept["class"], minlength=len(classes)).tolist()
    ignored = np.bincount(rows["class"], minlength=len(classes)) - labels
    return {
        "pictures": int(labelled.sum()),
        "pictures_not_labelled": int((~labelled).sum()),
        "pictures_without_labels": int(labelled.sum() - len(np.unique(kept["picture"]))),
        "labels": len(kept),
        "ignored": len(rows) - len(kept),
        "per_class": {
            name: {
                "labels": labels[c],
                "ignored": int(ignored[c]),
                "threshold": None if thresholds[name] == float("inf") else thresholds[name],
                "coverage": coverage[name],
            }
            for c, name in enumerate(classes.names)
        },
    }


def _yaml(policy: Mapping[str, Any]) -> bytes:
    out = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(json.loads(json.dumps(policy)), out)
    return out.getvalue().encode()
