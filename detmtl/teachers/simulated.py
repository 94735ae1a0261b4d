"""A teacher of known faults: it makes silver from gold, to test what silver's faults do.

Everything it draws follows from its seed and the content hash of a picture, and each kind of fault has
draws of its own: with more misses, a teacher of the same seed misses the same objects and some more.
Letters: N boxes of one picture, K classes that the teacher knows, G classes of the gold.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from detmtl.data.coco import CocoSource, category_names
from detmtl.data.images import content_hashes
from detmtl.data.parsed import Parsed
from detmtl.silver.card import TeacherCard
from detmtl.structures.boxes import iou
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.sample import ImageInfo
from detmtl.structures.settings import Settings
from detmtl.teachers.teacher import Teacher, as_silver, existing, file_sha256
from detmtl.teachers.teacher_settings import LookedUpSettings

Share = Annotated[float, Field(ge=0, le=1)]

SIZES = (32.0**2, 96.0**2)
"""Areas in square pixels at which COCO calls a box medium, and large."""


class Misses(Settings):
    """The share of objects that are not found, by COCO's sizes."""

    small: Share = 0.0
    medium: Share = 0.0
    large: Share = 0.0


class Jitter(Settings):
    """How boxes are off, in shares of their own sides."""

    position: NonNegativeFloat = 0.0
    """Standard deviation of the center."""
    size: NonNegativeFloat = 0.0
    """Standard deviation of each side's logarithm."""
    bias: float = Field(default=0.0, gt=-1)
    """What each side is too long by: 0.3 for boxes 30 % too large."""


class FalsePositives(Settings):
    """Boxes of nothing, at random places with sizes and classes as the gold has them."""

    per_picture: NonNegativeFloat = 0.0
    """Their mean number, Poisson."""


class Scores(Settings):
    """How sure the teacher says that it is.

    With `sharpness` 1 and `shift` 0 it is perfectly calibrated: of the boxes with score s the share s is
    right, where right means the class of its object and IoU >= 0.5 with it.
    """

    concentration: PositiveFloat = 2.0
    """How little a score tells right from wrong: near 0 the scores are 0 or 1 and always right, at
    10 they all lie around the teacher's precision."""
    sharpness: PositiveFloat = 1.0
    """Multiplies the log odds; above 1 over-confident on either side of a half."""
    shift: float = 0.0
    """Is added to the log odds; above 0 over-confident everywhere."""


@dataclass(frozen=True, eq=False)
class Faulty:
    """What the teacher makes of one picture's gold.

    Attributes:
        boxes: (N, 4) float64 xyxy, clipped. classes: (N,) of K. right: (N,) bool.
    """

    boxes: np.ndarray
    classes: np.ndarray
    right: np.ndarray


class Faults:
    """Makes the faults, picture by picture.

    Args:
        gold: the pictures with their boxes.
        known: (G,) int64, the teacher's class of each class of the gold, -1 where it knows none.
        misses, jitter, false_positives: how often and how much.
        confusions: (K, K), row: class of the object, column: class it is given; rows sum to 1.
        seed: of all draws.
    """

    def __init__(
        self,
        gold: Parsed,
        known: np.ndarray,
        misses: Misses,
        jitter: Jitter,
        false_positives: FalsePositives,
        confusions: np.ndarray,
        seed: int,
    ):
        assert gold.annotations is not None
        a = gold.annotations
        self._sizes, self._annotations, self._known, self._seed = gold.sizes, a, known, seed
        self._misses = np.array([misses.small, misses.medium, misses.large])
        self._jitter, self._rate = jitter, false_positives.per_picture
        self._cumulative = confusions.cumsum(axis=1)
        rows = (a.ignore != Ignore.REGION) & (known[a.classes] >= 0)
        boxes = np.asarray(a.boxes, dtype=np.float64)
        self._pool = boxes[rows, 2:] - boxes[rows, :2]
        self._pool_classes = known[a.classes[rows]]

    def size(self, i: int) -> tuple[int, int]:
        """Returns height and width of picture i."""
        return int(self._sizes[i][0]), int(self._sizes[i][1])

    def draw(self, content_hash: str, stream: str) -> np.random.Generator:
        """Returns the generator of one kind of draw for one picture."""
        text = f"{self._seed}:{content_hash}:{stream}"
        return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()[:16]))

    def __call__(self, i: int, content_hash: str) -> Faulty:
        """Returns what the teacher sees in picture i."""
        a, rows = self._annotations, self._annotations.rows(i)
        height, width = self.size(i)
        objects = (a.ignore[rows] != Ignore.REGION) & (self._known[a.classes[rows]] >= 0)
        boxes = np.asarray(a.boxes[rows][objects], dtype=np.float64)
        classes = self._known[a.classes[rows][objects]]
        of_size = np.searchsorted(SIZES, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), "right")
        found = self.draw(content_hash, "misses").random(len(boxes)) >= self._misses[of_size]
        u = self.draw(content_hash, "confusions").random(len(boxes))
        # Rows sum to 1 but for rounding: the last class takes what is left.
        said = (u[:, None] >= self._cumulative[classes][:, :-1]).sum(axis=1)
        moved = self._moved(boxes, self.draw(content_hash, "jitter"))
        moved = moved.clip(0, [width, height] * 2)
        near = iou(torch.from_numpy(moved), torch.from_numpy(boxes)).diagonal().numpy() >= 0.5
        extra, extra_classes = self._nothing(height, width, self.draw(content_hash, "nothing"))
        together = np.concatenate([moved[found], extra])
        right = np.concatenate([(near & (said == classes))[found], np.zeros(len(extra), bool)])
        named = np.concatenate([said[found], extra_classes])
        real = (together[:, 2:] > together[:, :2]).all(axis=1)
        return Faulty(together[real], named[real], right[real])

    def _moved(self, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal((len(boxes), 4))
        sides = boxes[:, 2:] - boxes[:, :2]
        centers = boxes[:, :2] + sides / 2 + noise[:, :2] * self._jitter.position * sides
        half = sides * (1 + self._jitter.bias) * np.exp(noise[:, 2:] * self._jitter.size) / 2
        return np.concatenate([centers - half, centers + half], axis=1)

    def _nothing(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns false positives: boxes (N, 4) inside the picture and classes (N,)."""
        count = rng.poisson(self._rate) if len(self._pool) else 0
        rows = rng.integers(len(self._pool), size=count) if count else np.zeros(0, np.int64)
        limits = np.array([width, height], dtype=np.float64)
        sides = np.minimum(self._pool[rows], limits)
        first = rng.random((count, 2)) * (limits - sides)
        return np.concatenate([first, first + sides], axis=1), self._pool_classes[rows]


class SimulatedTeacher(Teacher):
    """Looks gold up by content hash and spoils it.

    Args:
        card: who it is.
        faults: make what it sees.
        hashes: content hash -> picture.
        scores: how sure it says that it is.
    """

    def __init__(
        self, card: TeacherCard, faults: Faults, hashes: Mapping[str, int], scores: Scores
    ):
        self.card = card
        self._faults, self._hashes, self._scores = faults, hashes, scores
        seen = [faults(i, content_hash).right for content_hash, i in hashes.items()]
        rights = np.concatenate([np.zeros(0, bool), *seen])
        self.precision = float(rights.mean()) if len(rights) else 0.5
        """The share of its boxes that are right, in all pictures."""

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the spoiled gold of each picture; its pixels are not looked at.

        Raises:
            InputError: the gold does not have a picture, or has it in another size.
        """
        return [
            self._of(info, (int(image.shape[1]), int(image.shape[2])), floor)
            for image, info in zip(images, infos, strict=True)
        ]

    def _of(self, info: ImageInfo, size: tuple[int, int], floor: float) -> BoxLabels:
        content_hash = info.content_hash or content_hashes([info.path], None)[0]
        number = self._hashes.get(content_hash)
        if number is None:
            raise InputError(
                f"{info.path}: the gold of the simulated teacher '{self.card.name}' has no picture of "
                "these bytes; it can only spoil labels that are there"
            )
        said = self._faults.size(number)
        if said != size:
            raise InputError(
                f"{info.path}: is {size[1]} x {size[0]} pixels, but the gold of teacher "
                f"'{self.card.name}' says {said[1]} x {said[0]}; its boxes would be misplaced"
            )
        faulty = self._faults(number, content_hash)
        scores = self._drawn(faulty.right, self._faults.draw(content_hash, "scores"))
        labels = BoxLabels.of(
            torch.from_numpy(faulty.boxes),
            torch.from_numpy(faulty.classes),
            len(self.card.classes),
            scores=torch.from_numpy(scores),
            grade=Grade.SILVER,
        )
        return as_silver(labels, floor)

    def _drawn(self, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns scores (N,).

        Let s be Beta(a, b) with the mean precision, and a box right with probability s. Then the
        scores of the right ones are Beta(a + 1, b), and those of the wrong ones Beta(a, b + 1).
        """
        precision = min(max(self.precision, 1e-3), 1 - 1e-3)
        a = precision * self._scores.concentration
        b = (1 - precision) * self._scores.concentration
        s = rng.beta(a + right, b + ~right).clip(1e-6, 1 - 1e-6)
        odds = self._scores.sharpness * np.log(s / (1 - s)) + self._scores.shift
        return 1 / (1 + np.exp(-odds))


class SimulatedTeacherSettings(LookedUpSettings):
    """A teacher of known faults, made from gold; for tests and experiments.

    Crowds are not seen. What it is right about is found from all of the gold, so that its scores are
    calibrated as they are said to be; everything else depends on a picture alone.
    """

    kind: Literal["simulated"] = "simulated"
    annotations: str
    """The gold, a COCO file."""
    images: str
    """The folder that its file names start from."""
    misses: Share | Misses = 0.0
    """The share of objects that are not found; or {small, medium, large}."""
    confusions: Share | dict[str, dict[str, Share]] = 0.0
    """The share of objects that are given another class, each as often; or class -> class that it is
    taken for -> share."""
    jitter: Jitter = Jitter()
    false_positives: FalsePositives = FalsePositives()
    scores: Scores = Scores()
    unknown: list[str] = []
    """Classes of the gold that the teacher never heard of: it abstains from them."""
    seed: int = 0

    @model_validator(mode="after")
    def _rows_are_shares(self) -> "SimulatedTeacherSettings":
        if isinstance(self.confusions, dict):
            for name, row in self.confusions.items():
                if sum(row.values()) > 1 + 1e-9 or name in row:
                    raise ValueError(
                        f"confusions.{name}: names other classes, with shares that sum to at most 1"
                    )
        return self

    def build(self, root: Path, device: str) -> SimulatedTeacher:
        """Reads the gold; files are taken relative to `root`.

        Raises:
            InputError: a file is missing or faulty, or a class is none of the gold's.
        """
        file = existing(root, self.annotations, "teacher.annotations")
        names = category_names(file)
        classes = tuple(name for name in names if name not in self.unknown)
        self._require_known(names, classes)
        known = np.array([classes.index(n) if n in classes else -1 for n in names], dtype=np.int64)
        source = CocoSource(annotations=self.annotations, images=self.images, covers=names)
        gold = source.parse(root, LabelSpace.of(names))
        misses = self.misses
        if not isinstance(misses, Misses):
            misses = Misses(small=misses, medium=misses, large=misses)
        faults = Faults(
            gold,
            known,
            misses,
            self.jitter,
            self.false_positives,
            self._matrix(classes),
            self.seed,
        )
        hashes: dict[str, int] = {}
        for i, content_hash in enumerate(content_hashes(list(gold.files.paths()), None)):
            hashes.setdefault(content_hash, i)
        card = TeacherCard(
            name=self.named(f"simulated-{file.stem}"),
            weights_sha256=file_sha256(file),
            classes=classes,
            preprocessing=f"faults: {self.model_dump(mode='json', exclude={'name', 'annotations'})}",
            versions={"numpy": np.__version__},
        )
        return SimulatedTeacher(card, faults, hashes, self.scores)

    def _require_known(self, names: Sequence[str], classes: Sequence[str]) -> None:
        listed = {"unknown": list(self.unknown)}
        if isinstance(self.confusions, dict):
            rows = self.confusions.items()
            listed["confusions"] = [name for key, row in rows for name in (key, *row)]
        allowed = {"unknown": names, "confusions": classes}
        problems = [
            f"teacher.{setting}: '{name}' is none of the classes {', '.join(allowed[setting])}"
            for setting, given in listed.items()
            for name in dict.fromkeys(given)
            if name not in allowed[setting]
        ]
        if not classes:
            problems.append("teacher.unknown: names every class; at least one must be known")
        if problems:
            raise InputError(problems)

    def _matrix(self, classes: Sequence[str]) -> np.ndarray:
        """Returns the confusion matrix (K, K), rows summing to 1."""
        k = len(classes)
        if isinstance(self.confusions, dict):
            matrix = np.zeros((k, k))
            for name, row in self.confusions.items():
                for other, share in row.items():
                    matrix[classes.index(name), classes.index(other)] = share
        else:
            matrix = np.full((k, k), self.confusions / max(1, k - 1))
        np.fill_diagonal(matrix, 0)
        matrix[np.diag_indices(k)] = 1 - matrix.sum(axis=1)
        return matrix
