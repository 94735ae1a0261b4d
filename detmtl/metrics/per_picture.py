"""What a metric counts of each picture, and its numbers of any reweighting of the pictures.

A bootstrap over pictures asks for the numbers of a thousand resamples. What was counted of a picture does
not depend on them: only how often the picture counts does.

Letters: I pictures, B reweightings.
"""

from typing import Protocol

import numpy as np


class PerPicture(Protocol):
    """What was counted of I pictures: a frozen dataclass of arrays, so that a file can hold it."""

    def __len__(self) -> int:
        """Returns I."""
        ...

    def numbers(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns name -> (B,) values, those of data sets that hold each picture as often as it weighs.

        Args:
            weights: (B, I), at least 0.
        """
        ...


def as_they_are(counted: PerPicture) -> dict[str, float]:
    """Returns name -> value where each picture counts once."""
    values = counted.numbers(np.ones((1, len(counted))))
    return {name: float(value[0]) for name, value in values.items()}


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
