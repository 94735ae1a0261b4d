"""Weights that change while a run goes on.

Letters: T steps.
"""

from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from detmtl.structures.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    shares = [share for share, _ in points]
    if any(a >= b for a, b in pairwise(shares)):
        raise ValueError(f"the shares of the steps must rise, found {shares}")
    return points


Points = Annotated[list[tuple[Share, Weight]], Field(min_length=1), AfterValidator(_rising)]
"""[share of the run's steps, value] by rising share: straight lines between, level outside."""


class Curriculum(Settings):
    """How silver comes in: by a factor of the weight of its sources' loss.

    A ramp of silver's threshold is not offered: the labels that a threshold lets in, and the ignore
    band below it, are the selection's, which is made once; the weight of all of them ramps here.

    Attributes:
        weight: factor at the first step and from `until` on.
        until: share of the steps at which the ramp ends.
    """

    weight: tuple[Weight, Weight] = (0.0, 1.0)
    until: float = Field(default=0.5, gt=0, le=1)

    def points(self) -> list[tuple[float, float]]:
        """Returns the ramp as points."""
        return [(0.0, self.weight[0]), (self.until, self.weight[1])]


def factors_at(value: float | list[tuple[float, float]], done: np.ndarray) -> np.ndarray:
    """Returns the value at each share (T,) of the steps that is done."""
    if not isinstance(value, list):
        return np.full(len(done), float(value))
    shares, values = zip(*value, strict=True)
    return np.interp(done, shares, values)
