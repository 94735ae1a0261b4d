"""What an audit of maps found: every judged pixel, counted by picture, classes and confidence.

Letters: C classes, K pictures, R rows of the table.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from detmtl.silver.evidence import FOLDS, Evidence
from detmtl.silver.parts import atomic_write
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, MapLabels

SCHEMA = 2
"""Of maps.json, and part of the gold hash: raise it when the same labels are judged otherwise."""

PIXELS = np.dtype(
    [("picture", "<i4"), ("true", "u1"), ("given", "u1"), ("level", "u1"), ("pixels", "<i4")]
)
"""Pixels of a picture (its position in gold) that gold and the teacher call so, classes or `OTHER`, at
one confidence: 255 for certainty."""

SPREAD = 1.96
"""Standard deviations of a 95 % interval."""
MOST = 20
"""The pixels that a picture has of a class count as no more independent observations than this: a picture
has some tens of boxes, too, and a class that agrees everywhere by luck must not speak for the others."""


@dataclass(frozen=True, eq=False)
class MapAudit:
    """How a teacher's pixels agree with gold's, in the label space's classes; of no threshold yet.

    Attributes:
        classes: the C class names.
        known: (C,) bool, which classes the teacher knows.
        gives: (C,) bool, which classes it can give: those that it knows, and that of what is unmapped.
        pictures: gold pictures that were compared, K.
        missing: gold pictures that the store does not have.
        rows: (R,) of `PIXELS`, by picture. Pixels that either left unknown are not there, nor such as
            nobody looked at with the class in mind that the teacher gives.
        gold_hash: of gold's pictures and maps, and of who is judged by them in which classes.
        store_digest: of the labels that were judged.
    """

    classes: tuple[str, ...]
    known: np.ndarray
    gives: np.ndarray
    pictures: int
    missing: int
    rows: np.ndarray
    gold_hash: str
    store_digest: str

    @property
    def graded(self) -> bool:
        """Whether the teacher says how sure it is of a pixel."""
        return bool((self.rows["level"] < UNKNOWN).any())

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions in gold of the pictures that have judged pixels, and each row's (R,) among them."""
        found, at = np.unique(self.rows["picture"], return_inverse=True)
        return found, at

    @cached_property
    def _on_known(self) -> np.ndarray:
        """Rows of pixels that are of a class that the teacher knows."""
        return self.rows[np.append(self.known, False)[self.index("true")]]

    @property
    def little_gold(self) -> bool:
        """Whether fewer than 5 pictures show a class that the teacher knows."""
        return len(np.unique(self._on_known["picture"])) < LEAST_MAPS

    @property
    def tells_nothing(self) -> bool:
        """Whether gold cannot tell what the teacher's maps are worth, though nothing speaks against the
        teacher: hardly any picture shows its classes, and gold confirms none of their pixels."""
        rows = self._on_known
        return self.little_gold and not (rows["true"] == rows["given"]).any()

    @property
    def found(self) -> str:
        """What there is to judge the teacher by, in words."""
        names = ", ".join(n for n, known in zip(self.classes, self.known, strict=True) if known)
        rows = self._on_known
        right = int(rows["pixels"][rows["true"] == rows["given"]].sum())
        return (
            f"gold shows its classes ({names}) in {len(np.unique(rows['picture']))} pictures, and confirms "
            f"{right} of their pixels"
        )

    def limited_to(self, known: np.ndarray) -> "MapAudit":
        """Returns it as of a teacher that knows the classes `known` (C,) bool alone, and leaves pixels of the
        others unknown."""
        gives = np.append(self.gives & known, True)
        rows = self.rows[gives[self.index("given")]]
        return replace(self, known=self.known & known, gives=gives[:-1], rows=rows)

    def counts(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (K, C + 1) pixels by true class, by given class, and of those that agree; the last
        column is none of the classes.

        Args:
            kept: (R,) bool, the rows that count.
        """
        names, at = self.places
        width = len(self.classes) + 1
        true, given = self.index("true"), self.index("given")
        pixels = self.rows["pixels"] * kept
        shape = (len(names), width)

        def sums(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
            flat = np.bincount(at * width + column, weights=weights, minlength=shape[0] * width)
            return flat.reshape(shape)

        return sums(true, pixels), sums(given, pixels), sums(given, pixels * (true == given))

    def index(self, column: str) -> np.ndarray:
        """Returns (R,) int64: the classes `true` or `given`, C for none of them."""
        return np.minimum(self.rows[column], len(self.classes)).astype(np.int64)

    @cached_property
    def _evidence(self) -> tuple[Evidence, list[np.ndarray]]:
        rows = self.rows
        _, given, hits = self.counts(np.ones(len(rows), dtype=bool))
        worth = observations(hits, given)
        fold, hit = self.places[1] % FOLDS, rows["true"] == rows["given"]
        # Rows of one class, confidence and fold count together.
        code = (rows["given"].astype(np.int64) * 256 + (255 - rows["level"])) * 2 * FOLDS
        codes, at = np.unique(code + fold * 2 + hit, return_inverse=True)
        pixels = np.bincount(at, weights=rows["pixels"], minlength=len(codes))
        own = [codes // (512 * FOLDS) == c for c in range(len(self.classes))]
        scores = (255 - codes // (2 * FOLDS) % 256).astype(np.float32) / np.float32(255)
        total = given.sum(0)
        return Evidence(
            scores=[scores[o] for o in own],
            hits=[codes[o] % 2 == 1 for o in own],
            weights=[pixels[o] * (worth[c] / max(1, total[c])) for c, o in enumerate(own)],
            folds=[codes[o] // 2 % FOLDS for o in own],
        ), [pixels[o] for o in own]

    @property
    def evidence(self) -> Evidence:
        """The pixels of each class by confidence, as many observations as they are worth."""
        return self._evidence[0]

    @property
    def evidence_pixels(self) -> list[np.ndarray]:
        """Of each label in `evidence` the pixels."""
        return self._evidence[1]

    def digest(self) -> str:
        """Returns a hash of the audit's content."""
        digest = hashlib.sha256(json.dumps(self._head(), sort_keys=True).encode())
        digest.update(self.rows.tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes it as JSON, the table packed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        table = base64.b64encode(zlib.compress(self.rows.tobytes(), 6)).decode()
        text = json.dumps({**self._head(), "rows": table}, separators=(",", ":"), sort_keys=True)
        atomic_write(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> "MapAudit":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is no audit of maps.
        """
        try:
            fields = json.loads(path.read_bytes())
            if fields["schema"] != SCHEMA:
                raise ValueError(f"schema {fields['schema']}, this version reads {SCHEMA}")
            table = zlib.decompress(base64.b64decode(fields["rows"]))
            return cls(
                classes=tuple(fields["classes"]),
                known=np.array(fields["known"], dtype=bool),
                gives=np.array(fields["gives"], dtype=bool),
                pictures=fields["pictures"],
                missing=fields["missing"],
                rows=np.frombuffer(table, dtype=PIXELS),
                gold_hash=fields["gold_hash"],
                store_digest=fields["store_digest"],
            )
        except (OSError, ValueError, KeyError, TypeError, zlib.error) as problem:
            raise InputError(f"{path}: not readable as an audit ({problem}); audit again") from None

    def _head(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "classes": self.classes,
            "known": self.known.tolist(),
            "gives": self.gives.tolist(),
            "pictures": self.pictures,
            "missing": self.missing,
            "gold_hash": self.gold_hash,
            "store_digest": self.store_digest,
        }


class Tally:
    """Counts pixels picture by picture.

    Attributes:
        pictures: that were counted.
    """

    def __init__(self) -> None:
        self.pictures = 0
        self._rows: list[np.ndarray] = []

    def add(self, picture: int, truth: MapLabels, given: np.ndarray, levels: np.ndarray) -> None:
        """Counts a picture.

        Args:
            picture: its position in gold.
            truth: by people.
            given: (H, W) uint8, by the teacher, in the same classes.
            levels: (H, W) uint8, how sure it is.
        """
        true = truth.classes.numpy()
        # Where nobody looked for the class that the teacher gives, it may be right.
        unseen = np.zeros(256, dtype=bool)
        unseen[np.flatnonzero(truth.coverage.numpy() < 1)] = True
        judged = (true != UNKNOWN) & (given != UNKNOWN) & ~((true == OTHER) & unseen[given])
        code = true[judged].astype(np.int32) << 16
        code |= given[judged].astype(np.int32) << 8
        codes, pixels = np.unique(code | levels[judged], return_counts=True)
        rows = np.zeros(len(codes), dtype=PIXELS)
        rows["picture"], rows["pixels"] = picture, pixels
        rows["true"], rows["given"], rows["level"] = codes >> 16, codes >> 8 & 255, codes & 255
        self._rows.append(rows)
        self.pictures += 1

    def rows(self) -> np.ndarray:
        """Returns (R,) of `PIXELS`, by picture."""
        rows = np.concatenate([np.zeros(0, dtype=PIXELS), *self._rows])
        return rows[np.argsort(rows["picture"], kind="stable")]


def observations(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Returns (C,): how many independent observations pixels are worth of which a share was found.

    Pixels of one picture resemble each other, so it is the pictures that vary: as many observations
    as would give the share the variance that it has as a ratio of sums over pictures, fewer where
    few pictures tell that variance. Never less than if each picture were one, nor more than `MOST` for
    each.
    Source: Cochran 1977, Sampling techniques, section 6.3 (the variance); Korn and Graubard 1998,
    Confidence intervals for proportions with small expected number of positive counts estimated from
    survey data (effective numbers, with Student's t for few clusters); Kish 1965, Survey sampling
    (unequal clusters).

    Args:
        parts, wholes: (K, C) pixels of each picture; those of `wholes` of which are found.
    """
    pictures, total = (wholes > 0).sum(0), wholes.sum(0)
    some = np.maximum(1, total)
    share = parts.sum(0) / some
    residual = ((parts - share * wholes) ** 2).sum(0)
    variance = pictures / np.maximum(1, pictures - 1) * residual / some**2
    kish = total**2 / np.maximum(1, (wholes**2).sum(0))
    doubt = SPREAD / stdtrit(np.maximum(1, pictures - 1), 0.975)
    tell = (pictures > 1) & (variance > 0)
    number = share * (1 - share) / np.where(tell, variance, 1) * doubt**2
    return np.minimum(np.maximum(np.where(tell, number, 0), kish), MOST * pictures)


def shares(
    parts: np.ndarray, wholes: np.ndarray, pictures: Sequence[int] | np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """Returns (C,) parts of wholes: of all judged classes together where a class has fewer than 5
    pictures, and 0 of classes that are not judged."""
    pooled = parts[judged].sum() / max(1, wholes[judged].sum())
    own = parts / np.maximum(1, wholes)
    return np.where(judged, np.where(np.asarray(pictures) >= LEAST_MAPS, own, pooled), 0)


LEAST_MAPS = 5
"""A class in fewer gold pictures is judged by all classes together."""
