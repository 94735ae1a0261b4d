"""How often a picture is repeated because what it shows, or where it comes from, is rare.

Letters: S sources, I pictures of a source, C classes, N boxes.
Source: repeat-factor sampling, Gupta et al. 2019 (LVIS), arXiv 1908.03195, section 5.1; frequencies
under partial labels, coverage and sources are ours.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from detmtl.structures.labels import Ignore
from detmtl.structures.settings import Settings

if TYPE_CHECKING:
    from detmtl.data.source import Source

Share = Annotated[float, Field(gt=0, le=1)]


class BalanceSettings(Settings):
    """What is drawn more often than its number of pictures says. Each is off where it is None.

    A picture is repeated by the largest of the factors that apply to it (the reasons do not multiply:
    a rare class in a rare source is one rarity), relative to the least repeated picture of its order.
    All are counted over the sources that the mode draws from; ignored boxes do not count.

    Attributes:
        classes: pictures that show a class which fewer than this share of the pictures that were
            searched for it show are repeated by the square root of the ratio (LVIS takes .001).
        coverage: pictures that were searched for a class which fewer pictures were searched for than
            for the best covered class are repeated until the class reaches this share of those: 1
            makes them equal. For labels of which some pictures have these classes, others those.
        sources: a source smaller than this share of the largest is repeated until it reaches it: 1
            makes them equal. Where `shares` decide (modes batch, alternate and those like batch) it
            changes nothing.
    """

    classes: Share | None = None
    coverage: Share | None = None
    sources: Share | None = None


def repeat_factors(
    sources: "Sequence[Source]", settings: BalanceSettings, joint: bool
) -> list[np.ndarray] | None:
    """Returns the repeats (I,) >= 1 of each of S sources' pictures; None where nothing is balanced.

    Args:
        sources: those that are drawn.
        settings: what is balanced.
        joint: whether all are drawn in one order, or each in its own.
    """
    by_source = settings.sources is not None and joint
    if settings.classes is None and settings.coverage is None and not by_source:
        return None
    factors = [np.ones(len(source)) for source in sources]
    if by_source:
        largest = max(map(len, sources)) * (settings.sources or 0)
        factors = [np.maximum(f, largest / len(f)) for f in factors]
    if settings.classes is not None or settings.coverage is not None:
        _raise_rare(factors, sources, settings)
    least = min(f.min() for f in factors)
    return [f / (least if joint else f.min()) for f in factors]


def _raise_rare(
    factors: list[np.ndarray], sources: "Sequence[Source]", settings: BalanceSettings
) -> None:
    """Raises the factors (I,) of the sources' pictures for the classes that they show and cover."""
    labelled = [(f, s) for f, s in zip(factors, sources, strict=True) if s.annotations is not None]
    if not labelled:
        return
    looked = np.sum([_looked(s) for _, s in labelled], axis=0)
    shown = [_shown(s) for _, s in labelled]
    counts = np.bincount(np.concatenate([c for _, c in shown]), minlength=len(looked))
    rare, scarce = _of_classes(looked, counts, settings)
    for (factor, source), (pictures, classes) in zip(labelled, shown, strict=True):
        np.maximum.at(factor, pictures, rare[classes])
        # a picture that was half searched counts as half a picture of the class
        np.maximum(factor, (1 + source.coverage * (scarce - 1)).max(axis=1), out=factor)


def _of_classes(
    looked: np.ndarray, shown: np.ndarray, settings: BalanceSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors (C,) of pictures that show a class, and of those searched for it.

    Args:
        looked: (C,) pictures that were searched for each class, by their coverage.
        shown: (C,) pictures that show it.
    """
    rare, scarce = np.ones(len(looked)), np.ones(len(looked))
    if settings.classes is not None:
        # of the pictures that were searched: the others say nothing of how rare a class is
        ratio = settings.classes * looked / np.maximum(shown, 1)
        rare = np.sqrt(np.maximum(1, ratio))
    if settings.coverage is not None:
        ratio = settings.coverage * looked.max() / np.where(looked > 0, looked, np.inf)
        scarce = np.maximum(1, ratio)
    return rare, scarce


def _looked(source: "Source") -> np.ndarray:
    """Returns for each class (C,) how many pictures were searched for it."""
    shared = len(source.coverage) == 1
    return source.coverage.sum(axis=0, dtype=np.float64) * (len(source) if shared else 1)


def _shown(source: "Source") -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs (picture, class) of what is shown, each once; ignored boxes do not count."""
    a = source.annotations
    assert a is not None
    real = np.flatnonzero(a.ignore == Ignore.NO)
    num_classes = source.coverage.shape[1]
    pairs = np.unique(a.image_index()[real] * num_classes + a.classes[real])
    return pairs // num_classes, pairs % num_classes
