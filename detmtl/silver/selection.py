"""From raw labels to labels: a pure function of stores, policy and label space.

Letters: I pictures, N boxes, C classes, T teachers.
"""

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from detmtl.data.coco_writer import CocoImage, write_coco
from detmtl.data.source import Source
from detmtl.silver.audit import Audit
from detmtl.silver.ensemble import Ensemble, Gathered
from detmtl.silver.parts import atomic_write
from detmtl.silver.pictures import Pictures
from detmtl.silver.policy import Policy, SelectionSettings, coverage_of
from detmtl.silver.selection_remarks import nothing_left, remarks, who
from detmtl.silver.store import Store
from detmtl.silver.thresholds import AtPrecision, AtProbability
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore

__all__ = [
    "AtPrecision",
    "AtProbability",
    "SelectionSettings",
    "select",
]

VERSION = 3
"""Part of every policy's hash: raise it when the same policy gives other labels."""
_BINS = 4096
"""Steps of score in which an ignore budget is kept."""


def select(
    stores: Store | Sequence[Store] | Ensemble,
    sources: Sequence[Source] | None,
    classes: LabelSpace,
    settings: SelectionSettings,
    audits: Audit | Sequence[Audit] | None = None,
    root: Path | None = None,
) -> Path:
    """Returns the COCO file (`select/<policy hash>/instances.json` in the store) of chosen labels.

    The file's categories are the names of `classes`: read it with `LabelSpace.of(classes.names)`.
    Memory holds the pictures' names and a bounded number of boxes.

    Args:
        stores: raw labels of one teacher, or of several, which are fused; of several best as an
            `Ensemble`, since only that can be audited as a whole.
        sources: the pictures that are wanted, with their ids and files; None: all of the store (of
            several, of the first teacher that has a say), with ids 1 to I in the order of their content
            hashes and the names that the store has.
        classes: what the teachers' classes mean.
        settings: the policy.
        audits: of one store or of an `Ensemble`, its audit: resolves precisions and probabilities, and
            gives the coverage. Of several stores the audit of each.
        root: file names are written relative to it; None: absolute.

    Raises:
        InputError: a class of a teacher is unmapped, something needs an audit, a threshold lies below the
            store's floor, no picture of the sources is in every store, or the policy leaves none.
    """
    ensemble, audit = _joined(stores, classes, settings, audits)
    policy = Policy.of(ensemble, classes, ensemble.looked_for, settings, audit, ensemble.several)
    first = ensemble.first
    pictures = Pictures.of_store(first) if sources is None else Pictures.of_sources(sources, root)
    facts = _facts(ensemble, policy, pictures, audit)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = ensemble.path / "select" / key
    path = folder / "instances.json"
    if not path.is_file():
        _write(path, ensemble, policy, pictures, facts, audit)
    stats = json.loads((folder / "stats.json").read_bytes())
    for remark in remarks(stats, ensemble, settings, audit):
        warnings.warn(f"{ensemble.path}: {remark}", stacklevel=2)
    return path


def _joined(
    stores: Store | Sequence[Store] | Ensemble,
    classes: LabelSpace,
    settings: SelectionSettings,
    audits: Audit | Sequence[Audit] | None,
) -> tuple[Ensemble, Audit | None]:
    """Returns what is chosen from, and the audit of just that."""
    if isinstance(stores, Ensemble):
        assert audits is None or isinstance(audits, Audit), "of an ensemble: its one audit"
        return stores, audits
    stores = [stores] if isinstance(stores, Store) else list(stores)
    given = [audits] if isinstance(audits, Audit) else audits
    ensemble = Ensemble.of(
        stores, classes, settings.nms, settings.fusion, settings.calibration, given
    )
    return ensemble, given[0] if given and not ensemble.several else None


def _facts(
    ensemble: Ensemble, policy: Policy, pictures: Pictures, audit: Audit | None
) -> dict[str, Any]:
    """Returns all that the labels depend on."""
    classes = ensemble.classes
    limits = {n: _finite(t) for n, t in zip(classes.names, policy.limits.tolist(), strict=True)}
    return {
        "version": VERSION,
        "teacher": ensemble.card.name,
        "store": ensemble.digest(),
        "classes": {n: list(m) for n, m in zip(classes.names, classes.members, strict=True)},
        "unmapped": "drop" if classes.drop_unmapped else "error",
        "pictures": pictures.digest(),
        "audit": None if audit is None else audit.digest(),
        "calibration": None if policy.calibration is None else policy.calibration.method,
        "thresholds": limits,
        "coverage": dict(policy.coverage),
        "settings": policy.settings.model_dump(mode="json"),
    }


def _write(
    path: Path,
    ensemble: Ensemble,
    policy: Policy,
    pictures: Pictures,
    facts: Mapping[str, Any],
    audit: Audit | None,
) -> None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    gathered = ensemble.gather(pictures.hashes, folder, policy.lower)
    try:
        if not gathered.seen.any():
            raise InputError(
                f"{ensemble.stores[0].path}: has none of the {len(pictures)} pictures that are asked for; "
                f"let {who(ensemble)} annotate them first"
            )
        policy = _within_budget(gathered, policy, audit)
        spare = _spare(gathered, policy, pictures.hashes)
        counts = _Counts(len(ensemble.classes), too_empty=int(spare.sum()))
        info = {
            "description": f"silver labels of {ensemble.card.name}, policy {folder.name}",
            "grade": "silver",
            "coverage": dict(policy.coverage),
        }
        draft = path.with_name(f"draft.{secrets.token_hex(8)}.json")
        images = _images(gathered, policy, pictures, spare, counts)
        write_coco(draft, images, ensemble.classes.names, info)
    finally:
        gathered.spill.close()
    stats = counts.stats(gathered.seen, ensemble.classes, policy)
    if not stats["pictures"]:
        draft.unlink()
        raise InputError(nothing_left(stats, ensemble, policy))
    atomic_write(folder / "policy.yaml", _yaml({**facts, "coverage": dict(policy.coverage)}))
    atomic_write(folder / "stats.json", json.dumps(stats, indent=1).encode())
    os.replace(draft, path)  # last: its presence says that the folder is whole


def choose(rows: np.ndarray, policy: Policy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the boxes that become labels or are ignored, in their order; (N,) bool which of them are
    ignored; and the pictures that have too many labels, whose boxes are not among them.

    Args:
        rows: with fields picture, class and score; by picture and falling score.
        policy: which.
    """
    label = rows["score"] >= policy.limits[rows["class"]]
    keep = np.flatnonzero(label | (rows["score"] >= policy.lower[rows["class"]]))
    rows, label = rows[keep], label[keep]
    first = np.searchsorted(rows["picture"], rows["picture"])  # of the picture's rows
    best = np.arange(len(rows)) - first < policy.settings.max_boxes
    dense = np.zeros(0, dtype=np.int64)
    if policy.settings.max_density is not None:
        assert policy.expected is not None
        most = policy.settings.max_density * np.nansum(policy.expected)
        counted = label & best & ~np.isnan(policy.expected)[rows["class"]]
        numbers, counts = np.unique(rows["picture"][counted], return_counts=True)
        dense = numbers[counts > most]
        best &= ~np.isin(rows["picture"], dense)
    return rows[best], ~label[best], dense


def labels_of(rows: np.ndarray, ignored: np.ndarray, policy: Policy) -> BoxLabels:
    """Returns chosen boxes as labels.

    Args:
        rows: as `choose` returns them.
        ignored: (N,) bool, which of them are ignored.
        policy: gives targets, weights and coverage.
    """
    probabilities = policy.probabilities(rows["score"], rows["class"])
    coverage = torch.tensor(list(policy.coverage.values()))
    return BoxLabels.of(
        torch.from_numpy(rows["box"].copy()),
        torch.from_numpy(rows["class"].copy()),
        len(coverage),
        scores=torch.from_numpy(policy.targets(probabilities, ignored)),
        weights=torch.from_numpy(policy.weights(probabilities)),
        ignore=torch.from_numpy(np.where(ignored, Ignore.CLASS, Ignore.NO).astype(np.uint8)),
        grade=Grade.SILVER,
        coverage=coverage,
    )


def _within_budget(gathered: Gathered, policy: Policy, audit: Audit | None) -> Policy:
    """Returns the policy with bands that ignore no more boxes of a class than the budget allows, and the
    coverage of these bands.

    A band that silences a class wherever the teacher had the least doubt leaves nothing to learn what
    the class is not.
    """
    if policy.settings.ignore_budget is None:
        return policy
    assert audit is not None
    counts = np.zeros((len(policy.limits), _BINS), dtype=np.int64)
    for _, rows in gathered.blocks():
        rows, ignored, _ = choose(rows, policy)
        rows = rows[ignored]
        at = np.minimum((rows["score"] * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(counts, (rows["class"], at), 1)
    # A class that gold does not have is as good as one object in all pictures searched for it. Where
    # nobody looked, there is nothing to bound it by.
    density = np.maximum(audit.gold_boxes, 1) / np.maximum(audit.searched, 1)
    density[audit.searched == 0] = np.inf
    allowed = policy.settings.ignore_budget * density * gathered.seen.sum()
    above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # boxes from each bin on
    bins = (above > allowed[:, None]).sum(axis=1)
    # A band that nothing is left in is none.
    left = ((counts > 0) & (np.arange(_BINS) >= bins[:, None])).any(axis=1)
    raised = np.where(bins > 0, np.where(left, bins / _BINS, np.inf), policy.lower)
    lower = np.minimum(np.maximum(policy.lower, raised.astype(np.float32)), policy.limits)
    ensemble = gathered.ensemble
    coverage = coverage_of(ensemble.classes, ensemble.looked_for, policy.settings, audit, lower)
    return replace(policy, lower=lower, coverage=coverage)


def _spare(gathered: Gathered, policy: Policy, hashes: np.ndarray) -> np.ndarray:
    """Returns (I,) bool, which pictures without a label are too many, by `max_empty`."""
    spare = np.zeros(len(hashes), dtype=bool)
    if policy.settings.max_empty is None:
        return spare
    empty = gathered.seen.copy()
    labelled = 0
    for _, rows in gathered.blocks():
        rows, ignored, dense = choose(rows, policy)
        numbers = np.unique(rows["picture"][~ignored])
        labelled += len(numbers)
        empty[numbers] = empty[dense] = False
    found = np.flatnonzero(empty)
    # By hash: the same pictures stay whatever else is in the pool or in which order it is listed.
    order = found[np.argsort(hashes[found], kind="stable")]
    spare[order[round(policy.settings.max_empty * labelled) :]] = True
    return spare


def _images(
    gathered: Gathered,
    policy: Policy,
    pictures: Pictures,
    spare: np.ndarray,
    counts: "_Counts",
) -> Iterator[CocoImage]:
    """Yields the pictures of the file but for those to spare, and counts what is in them."""
    seen = gathered.seen & ~spare
    for block, found in gathered.blocks():
        rows, ignored, dense = choose(found, policy)
        counts.add(rows, ignored, dense)
        labels = labels_of(rows, ignored, policy)
        probabilities = policy.probabilities(rows["score"], rows["class"])
        attributes = _attributes(rows, probabilities, policy, gathered.ensemble)
        ends = np.searchsorted(rows["picture"], np.arange(block.start, block.stop + 1)).tolist()
        left_out = set(dense.tolist())
        for i, first, end in zip(block, ends, ends[1:], strict=False):
            if seen[i] and i not in left_out:
                height, width = (int(n) for n in pictures.sizes[i])
                own = labels[torch.arange(first, end)]
                name, number = pictures.names[i], int(pictures.ids[i])
                yield CocoImage(name, height, width, number, own, attributes[first:end])


def _attributes(
    rows: np.ndarray, probabilities: np.ndarray, policy: Policy, ensemble: Ensemble
) -> list[dict[str, Any]]:
    """Returns where each box comes from: scalars, which other tools keep."""
    names = ensemble.teachers
    found = []
    for raw, score, p in zip(
        rows["raw"].tolist(), rows["score"].tolist(), probabilities.tolist(), strict=True
    ):
        if ensemble.several:
            own = {n: round(s, 5) for n, s in zip(names, raw, strict=True) if s == s}
            row: dict[str, Any] = {"teacher": "+".join(own), "fused_score": round(score, 5)}
            row |= {f"teacher_score_{n}": s for n, s in own.items()}
        else:
            row = {"teacher": names[0], "teacher_score": round(score, 5)}
        if policy.calibration is not None:
            row["probability"] = round(p, 5)
        found.append(row)
    return found


@dataclass
class _Counts:
    """What a selection holds, counted as it is written."""

    num_classes: int
    too_empty: int = 0
    with_labels: int = 0
    too_dense: int = 0
    labels: np.ndarray = field(init=False)
    ignored: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.zeros(self.num_classes, dtype=np.int64)
        self.ignored = np.zeros(self.num_classes, dtype=np.int64)

    def add(self, rows: np.ndarray, ignored: np.ndarray, dense: np.ndarray) -> None:
        self.with_labels += len(np.unique(rows["picture"][~ignored]))
        self.too_dense += len(dense)
        self.labels += np.bincount(rows["class"][~ignored], minlength=self.num_classes)
        self.ignored += np.bincount(rows["class"][ignored], minlength=self.num_classes)

    def stats(self, labelled: np.ndarray, classes: LabelSpace, policy: Policy) -> dict[str, Any]:
        seen = int(labelled.sum())
        pictures = seen - self.too_dense - self.too_empty
        return {
            "pictures": pictures,
            "pictures_not_labelled": len(labelled) - seen,
            "pictures_too_dense": self.too_dense,
            "empty_pictures_left_out": self.too_empty,
            "pictures_without_labels": pictures - self.with_labels,
            "labels": int(self.labels.sum()),
            "ignored": int(self.ignored.sum()),
            "calibration": None if policy.calibration is None else policy.calibration.method,
            "per_class": {
                name: {
                    "labels": int(self.labels[c]),
                    "ignored": int(self.ignored[c]),
                    "threshold": _finite(float(policy.limits[c])),
                    "ignored_from": _finite(float(policy.lower[c])),
                    "coverage": policy.coverage[name],
                }
                for c, name in enumerate(classes.names)
            },
        }


def _finite(score: float) -> float | None:
    return None if score == float("inf") else round(score, 6)


def _yaml(facts: Mapping[str, Any]) -> bytes:
    out = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(json.loads(json.dumps(facts)), out)
    return out.getvalue().encode()
