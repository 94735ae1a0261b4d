"""One store, or several read as one: boxes of many pictures, picture by picture, in bounded memory.

Letters: N boxes, T teachers, C classes, I pictures.
"""

import hashlib
import json
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from detmtl.data.source import Source
from detmtl.silver.audit import Audit, audit
from detmtl.silver.calibration import Calibration, CalibrationSettings, fit_calibration
from detmtl.silver.card import TeacherCard
from detmtl.silver.fusion import FusionSettings, fuse, require_numba
from detmtl.silver.known import Known
from detmtl.silver.mapping import ClassMap
from detmtl.silver.pictures import as_digests
from detmtl.silver.record import SCORE_DIGITS, Record
from detmtl.silver.spill import Spill
from detmtl.silver.store import Store
from detmtl.silver.voices import judged_by, weights_of, with_a_say
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

_BOX = np.dtype(
    [("picture", "i4"), ("teacher", "u1"), ("class", "i4"), ("box", "f4", 4), ("score", "f4")]
)


def row_type(teachers: int) -> np.dtype:
    """Returns the dtype of chosen boxes: picture, box, class, score, and `raw` (T,): the best score that
    each teacher gave one of the boxes in it, NaN where it has none."""
    return np.dtype(
        [
            ("picture", "i4"),
            ("box", "f4", 4),
            ("class", "i4"),
            ("score", "f4"),
            ("raw", "f4", teachers),
        ]
    )


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Stores of T >= 1 teachers, in the label space's classes.

    With several, it can be read like a store whose teacher they are together: it has `path`, `card`,
    `floor` and `digest()`, and its labels are `fused`.

    Attributes:
        stores: one for each teacher.
        maps: what the teachers' classes mean; one that abstains knows none.
        calibrations: of each teacher's scores; empty for one teacher, whose scores stay as they are.
        weights: (T,) of the teachers' scores where they are averaged.
        classes: the label space.
        fusion: how boxes of several teachers become one.
    """

    stores: tuple[Store, ...]
    maps: tuple[ClassMap, ...]
    calibrations: tuple[Calibration, ...]
    weights: np.ndarray
    classes: LabelSpace
    fusion: FusionSettings

    @classmethod
    def of(
        cls,
        stores: Sequence[Store],
        classes: LabelSpace,
        nms: float | None = 0.6,
        fusion: FusionSettings | None = None,
        calibration: CalibrationSettings | None = None,
        audits: Sequence[Audit | None] | None = None,
    ) -> "Ensemble":
        """Joins stores.

        A teacher of which gold tells nothing, such as one for a class that gold lacks, abstains, and a
        warning says so: what its scores are worth beside the others' nobody knows.

        Args:
            stores: of one teacher each.
            classes: what their classes mean.
            nms: IoU above which the worse of two boxes of one teacher and class goes; None: all stay.
            fusion: how boxes become one; None: the defaults.
            calibration: how scores become probabilities before they are compared; None: the defaults.
            audits: of each store; not needed for one, nor for calibration `none`.

        Raises:
            InputError: classes of a teacher are unmapped, two teachers have one name, an audit is missing,
                gold tells nothing of any teacher, or an optional package is missing.
        """
        fusion, calibration = fusion or FusionSettings(), calibration or CalibrationSettings()
        problems, maps = [], []
        for store in stores:
            try:
                maps.append(ClassMap.of(store.card, classes, nms))
            except InputError as error:
                problems += error.problems
        names = [store.card.name for store in stores]
        problems += [
            f"teachers: '{name}' names two of them; give each its own `name`"
            for name in sorted({n for n in names if names.count(n) > 1})
        ]
        problems += [
            f"fusion.weights: '{name}' is no teacher; they are {', '.join(names)}"
            for name in fusion.weights or {}
            if name not in names
        ]
        curves: list[Calibration] = []
        if len(stores) > 1 and not problems:
            require_numba()
            judged = judged_by(names, audits, calibration)
            maps = with_a_say(names, maps, judged, classes)
            curves = [
                Calibration.none(len(classes))
                if a is None or not m.known.any()
                else fit_calibration(a, calibration, f"teacher '{n}'")
                for n, m, a in zip(names, maps, judged, strict=True)
            ]
        else:
            judged = [None] * len(names)
        if problems:
            raise InputError(problems)
        weights = weights_of(names, maps, fusion, curves, judged)
        return cls(tuple(stores), tuple(maps), tuple(curves), weights, classes, fusion)

    @property
    def several(self) -> bool:
        """Whether boxes of several teachers are fused."""
        return len(self.stores) > 1

    @property
    def teachers(self) -> list[str]:
        """The T names."""
        return [store.card.name for store in self.stores]

    @cached_property
    def known(self) -> np.ndarray:
        """(T, C) bool, which classes each teacher looks for."""
        return np.stack([m.known for m in self.maps])

    @property
    def looked_for(self) -> np.ndarray:
        """(C,) bool, which classes any teacher looks for."""
        return np.asarray(self.known.any(axis=0))

    @cached_property
    def speaks(self) -> np.ndarray:
        """(T,) bool, which teachers have a say: those that look for a class; all where none does."""
        looks = self.known.any(axis=1)
        return np.asarray(looks if looks.any() else ~looks)

    @property
    def first(self) -> Store:
        """The store of the first teacher that has a say."""
        return self.stores[int(self.speaks.argmax())]

    @property
    def path(self) -> Path:
        """Where audits and selections are kept."""
        own = self.stores[0].path
        return own / "fused" / self.digest() if self.several else own

    @property
    def floor(self) -> float:
        """The lowest score."""
        return 0.0 if self.several else self.stores[0].floor

    @cached_property
    def card(self) -> TeacherCard:
        """The one teacher's, or one for all together."""
        if not self.several:
            return self.stores[0].card
        names = zip(self.classes.names, self.looked_for, strict=True)
        return TeacherCard(
            name="+".join(self.teachers),
            weights_sha256=hashlib.sha256(self.digest().encode()).hexdigest(),
            classes=tuple(name for name, known in names if known),
            preprocessing=f"fused: {self.fusion.model_dump(mode='json')}",
        )

    @cached_property
    def _digest(self) -> str:
        facts: list[Any] = [
            [s.digest() for s, speaks in zip(self.stores, self.speaks, strict=True) if speaks],
            [c.digest() for c in self.calibrations],
            np.round(self.weights, 9).tolist(),
            [[m.overlap, m.known.tolist()] for m in self.maps],
            self.classes.digest(),
            self.fusion.model_dump(mode="json"),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def digest(self) -> str:
        """Returns a hash of all that the fused labels depend on; of one store, the store's."""
        return self._digest if self.several else self.stores[0].digest()

    def audit(self, gold: Source) -> Audit:
        """Returns the fused labels judged by gold, as `detmtl.silver.audit.audit` judges a store's.

        Raises:
            InputError: gold has no labels, or none of its pictures was labelled by all teachers that
                have a say.
        """
        view = _AsStore(self)
        # Fused labels are in the label space's classes already, and no two of one object.
        return audit(cast(Store, view), gold, LabelSpace.of(self.classes.names), nms=None)

    def fused(self, hashes: Sequence[str]) -> Iterator[Record]:
        """Yields the fused labels of several teachers, of the pictures of those hashes that all of them
        that have a say have seen; classes index the card's."""
        return _AsStore(self).records_of(frozenset(hashes))

    def gather(self, hashes: np.ndarray, folder: Path, lowest: np.ndarray) -> "Gathered":
        """Reads the stores and keeps the boxes of the pictures that are asked for.

        Args:
            hashes: (I,) of 32 bytes, as `as_digests` makes them; several pictures may be the same.
            folder: for what memory does not hold.
            lowest: (C,) float32 scores below which the one teacher's boxes are of no interest; not used
                with several, whose scores are of their own kind.
        """
        order = np.argsort(hashes, kind="stable")
        rising, wanted = hashes[order], Known(hashes.tobytes())
        looked = np.zeros((len(self.stores), len(hashes)), dtype=bool)
        spill = Spill(_BOX, folder)
        for t, (store, mapping) in enumerate(zip(self.stores, self.maps, strict=True)):
            if not self.speaks[t]:
                continue
            for record in store.records_of(wanted):
                key = as_digests([record.content_hash])
                first, end = (
                    int(np.searchsorted(rising, key, side)[0]) for side in ("left", "right")
                )
                looked[t, order[first:end]] = True
                rows = _boxes(mapping(record), t)
                if not self.several:
                    rows = rows[rows["score"] >= lowest[rows["class"]]]
                for picture in order[first:end]:
                    rows["picture"] = picture
                    spill.add(rows)
        return Gathered(self, looked, spill)

    def combined(self, rows: np.ndarray) -> np.ndarray:
        """Returns boxes (of `_BOX`, by picture) as `row_type`, by picture and falling score, fused where
        there are several teachers."""
        if not self.several:
            out = np.zeros(len(rows), dtype=row_type(1))
            for name in ("picture", "box", "class", "score"):
                out[name] = rows[name]
            out["raw"] = rows["score"][:, None]
            return out
        teacher = rows["teacher"].astype(np.int64)
        classes = rows["class"].astype(np.int64)
        worth = np.zeros(len(rows))
        for t, calibration in enumerate(self.calibrations):
            worth[teacher == t] = calibration(rows["score"][teacher == t], classes[teacher == t])
        # Curves are flat in places: the raw score decides between equals.
        order = np.lexsort((-rows["score"], -worth))
        fused = fuse(
            rows["box"][order],
            worth[order],
            classes[order],
            teacher[order],
            rows["picture"][order].astype(np.int64),
            self.known,
            self.fusion,
            self.weights,
        )
        out = np.zeros(len(fused.boxes), dtype=row_type(len(self.stores)))
        out["picture"], out["box"] = fused.pictures, fused.boxes
        # As a store keeps scores: what an audit of them says of a score holds for the label.
        out["class"], out["score"] = fused.classes, np.round(fused.scores, SCORE_DIGITS)
        raw = np.full((len(out), len(self.stores)), -1, dtype=np.float32)
        np.maximum.at(raw, (fused.member, teacher[order]), rows["score"][order])
        out["raw"] = np.where(raw < 0, np.nan, raw)
        return out


@dataclass(frozen=True, eq=False)
class Gathered:
    """The boxes of I pictures.

    Attributes:
        ensemble: whose.
        looked: (T, I) bool, which pictures each teacher that has a say has labelled.
        spill: the boxes.
    """

    ensemble: Ensemble
    looked: np.ndarray
    spill: Spill

    @property
    def seen(self) -> np.ndarray:
        """(I,) bool, which pictures all teachers that have a say have labelled."""
        return np.asarray(self.looked[self.ensemble.speaks].all(axis=0))

    def blocks(self) -> Iterator[tuple[range, np.ndarray]]:
        """Yields ranges of pictures and their boxes as `row_type`, by picture and falling score; none of
        pictures that are not `seen`."""
        seen = self.seen
        for block, rows in self.spill.blocks(self.looked.shape[1]):
            yield block, self.ensemble.combined(rows[seen[rows["picture"]]])


@dataclass(frozen=True, eq=False)
class _AsStore:
    """An ensemble of several teachers, to be read like a store."""

    ensemble: Ensemble

    @property
    def path(self) -> Path:
        return self.ensemble.path

    @property
    def card(self) -> TeacherCard:
        return self.ensemble.card

    @property
    def floor(self) -> float:
        return self.ensemble.floor

    def digest(self) -> str:
        return self.ensemble.digest()

    def records_of(self, hashes: Container[str]) -> Iterator[Record]:
        """Yields fused records of the pictures of those content hashes that all teachers with a say
        have seen; classes index the card's."""
        ensemble = self.ensemble
        heads = [
            replace(r, boxes=r.boxes[:0], classes=r.classes[:0], scores=r.scores[:0])
            for r in ensemble.first.records_of(hashes)
        ]
        if not heads:
            return
        heads.sort(key=lambda r: r.content_hash)
        place = np.cumsum(ensemble.looked_for) - 1
        nothing = np.zeros(len(ensemble.classes), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            keys = as_digests([r.content_hash for r in heads])
            gathered = ensemble.gather(keys, Path(folder), nothing)
            seen = gathered.seen
            for block, rows in gathered.blocks():
                ends = np.searchsorted(rows["picture"], np.arange(block.start, block.stop + 1))
                for i in block:
                    if seen[i]:
                        own = rows[ends[i - block.start] : ends[i - block.start + 1]]
                        yield replace(
                            heads[i],
                            boxes=own["box"].copy(),
                            classes=place[own["class"]].astype(np.int32),
                            scores=own["score"].copy(),
                        )
            gathered.spill.close()


def _boxes(record: Record, teacher: int) -> np.ndarray:
    rows = np.zeros(len(record.scores), dtype=_BOX)
    rows["teacher"] = teacher
    rows["box"], rows["class"], rows["score"] = record.boxes, record.classes, record.scores
    return rows
