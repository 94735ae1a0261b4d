"""How well depths agree with the truth, over all pixels whose depth is known.

Letters: I pictures, B reweightings of them.

Source: Eigen et al. 2014, arXiv 1406.2283, section 4.
"""

from dataclasses import dataclass

import numpy as np

from detmtl.metrics.collected import Collected
from detmtl.metrics.per_picture import as_they_are
from detmtl.structures.depth import DepthLabels
from detmtl.structures.sample import ImageInfo

DELTA = 1.25
"""A depth is right to the k-th degree if it is off by less than the factor 1.25 ** k."""

NEAREST = 1e-3
"""Meters; what is predicted to be nearer counts as this near."""


@dataclass(frozen=True, eq=False)
class DepthSums:
    """What depth's numbers are made of; see `PerPicture`.

    Attributes:
        sums: (I, 7) over the pixels of each picture: their count, delta 1 to 3, relative errors, squares, and
            squares of logarithms.
    """

    sums: np.ndarray

    def __len__(self) -> int:
        return len(self.sums)

    def numbers(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the numbers that `DepthMetric.compute` tells, each (B,)."""
        sums = weights.astype(float) @ self.sums
        with np.errstate(invalid="ignore"):
            means = sums[:, 1:] / sums[:, :1]
        means[:, 4:] = np.sqrt(means[:, 4:])
        names = ("delta1", "delta2", "delta3", "abs_rel", "RMSE", "RMSE_log")
        return dict(zip(names, means.T, strict=True))


class DepthMetric(Collected[np.ndarray]):
    """Shares of pixels that are right, relative error and root mean square error, pixels counting alike."""

    def counted(self, found: DepthLabels, true: DepthLabels, info: ImageInfo) -> np.ndarray:
        """Returns a row of `DepthSums.sums`."""
        return _sums(found.depth.double().cpu().numpy(), true.depth.double().cpu().numpy())

    def per_picture(self) -> DepthSums:
        """Returns what was collected, picture by picture in the order of their sources and ids."""
        sums = self.in_order()
        return DepthSums(np.array(sums, dtype=np.float64).reshape(len(sums), 7))

    def compute(self) -> dict[str, float]:
        """Returns "delta1", "delta2" and "delta3" (shares off by less than the factors 1.25, 1.25^2 and
        1.25^3), "abs_rel" (mean of |error| / truth), "RMSE" (meters) and "RMSE_log"; NaN where no depth
        is known."""
        return as_they_are(self.per_picture())


def _sums(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns a row of `DepthSums.sums`."""
    there = truth > 0
    p, t = np.maximum(found[there], NEAREST), truth[there]
    factor = np.maximum(p / t, t / p)
    right = [(factor < DELTA**k).sum() for k in (1, 2, 3)]
    errors = [(np.abs(p - t) / t).sum(), np.square(p - t).sum(), np.square(np.log(p / t)).sum()]
    return np.array([len(t), *right, *errors], np.float64)
