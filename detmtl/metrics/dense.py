"""How well maps agree with the truth, from what is true, found and both, class by class.

Letters: I pictures, C classes, S subsets of them, B reweightings of the pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detmtl.metrics.collected import Collected
from detmtl.metrics.per_picture import as_they_are, mean_of_known
from detmtl.structures.confusion import confusion
from detmtl.structures.labels import MapLabels
from detmtl.structures.sample import ImageInfo


@dataclass(frozen=True, eq=False)
class MapCounts:
    """The pixels of each picture that a map's numbers are made of; see `PerPicture`.

    Attributes:
        class_names: (C,).
        subset_names: (S,).
        subsets: (S, C) bool, the classes of each.
        pixels: (I, 3, C) int64: true, found, and both.
    """

    class_names: np.ndarray
    subset_names: np.ndarray
    subsets: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def numbers(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the numbers that `MapMetric.compute` tells, each (B,)."""
        true, found, both = np.tensordot(weights.astype(float), self.pixels, 1).swapaxes(0, 1)
        with np.errstate(invalid="ignore"):
            iou = np.where(true > 0, both / (true + found - both), np.nan)
            values = {"mIoU": mean_of_known(iou), "accuracy": both.sum(1) / true.sum(1)}
        for name, classes in zip(self.subset_names.tolist(), self.subsets, strict=True):
            values[f"mIoU/{name}"] = mean_of_known(iou[:, classes])
        return values | {f"IoU/{n}": iou[:, c] for c, n in enumerate(self.class_names.tolist())}


class MapMetric(Collected[np.ndarray]):
    """Intersection over union, and pixel accuracy.

    Classes without a true pixel have no number and no part in any mean, whatever was found: which
    classes are averaged depends on the truth alone, so that two models are compared on the same ones.
    """

    def __init__(
        self, class_names: Sequence[str], subsets: Mapping[str, Sequence[str]] | None = None
    ):
        """Takes the C class names, and name -> class names of subsets that get a mean of their own."""
        super().__init__()
        self.class_names = tuple(class_names)
        self.subsets = {k: tuple(v) for k, v in (subsets or {}).items()}

    def counted(self, found: MapLabels, true: MapLabels, info: ImageInfo) -> np.ndarray:
        """Returns (3, C) int64 pixels: true, found, and both."""
        counts = confusion(true, found)
        return np.stack([counts.sum(1)[:-1], counts.sum(0)[:-1], np.diag(counts)[:-1]])

    def per_picture(self) -> MapCounts:
        """Returns what was collected, picture by picture in the order of their sources and ids."""
        pictures = self.in_order()
        names = self.class_names
        return MapCounts(
            np.array(names, dtype=str),
            np.array([*self.subsets], dtype=str),
            np.array([n in of for of in self.subsets.values() for n in names], dtype=bool).reshape(
                len(self.subsets), len(names)
            ),
            np.array(pictures, dtype=np.int64).reshape(len(pictures), 3, len(names)),
        )

    def compute(self) -> dict[str, float]:
        """Returns "mIoU", "accuracy" (share of the pixels of known class), "mIoU/<subset>", and
        "IoU/<class>"; in [0, 1], or NaN where there is no truth."""
        return as_they_are(self.per_picture())
