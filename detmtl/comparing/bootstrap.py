"""A run's numbers on resampled pictures, from what its folder keeps of each picture.

Letters: B resamples, I pictures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detmtl.metrics.matches import (
    SIZES,
    Matches,
    calibration_error,
    f1_at,
    precisions,
)
from detmtl.metrics.picture_file import read_pictures
from detmtl.structures.whole import whole

MATCHES, PICTURES = "matches.npz", "pictures.npz"
VERSION = 2
"""Part of the name of what is kept: raise it when there are more numbers, or other ones."""


def picture_weights(num_images: int, resamples: int) -> np.ndarray:
    """Returns (B, I): how often each picture is drawn in each resample, the same for all runs."""
    even = np.full(num_images, 1 / num_images)
    return np.random.default_rng(0).multinomial(num_images, even, size=resamples)


def resampled(
    folder: Path, boxes: tuple[str, Matches] | None, resamples: int
) -> dict[str, np.ndarray]:
    """Returns `task/metric` -> (B,) values; they are kept in the folder, since reports are made again.

    Args:
        folder: of a run.
        boxes: the task of its detections, and their matches, which `MATCHES` holds.
        resamples: B.
    """
    from_files = [folder / name for name in (MATCHES, PICTURES) if (folder / name).is_file()]
    kept = folder / f"bootstrap_{resamples}_v{VERSION}.npz"
    newest = max((path.stat().st_mtime_ns for path in from_files), default=0)
    if kept.is_file() and kept.stat().st_mtime_ns >= newest:
        with np.load(kept) as arrays:
            return dict(zip(arrays["names"].tolist(), arrays["values"], strict=True))
    values: dict[str, np.ndarray] = {}
    if boxes is not None:
        task, matches = boxes
        weights = picture_weights(matches.num_images, resamples)
        values |= {f"{task}/{name}": v for name, v in of_boxes(matches, weights).items()}
    for task, counted in read_pictures(folder / PICTURES).items():
        found = counted.numbers(picture_weights(len(counted), resamples))
        values |= {f"{task}/{name}": v for name, v in found.items()}
    if values:
        with whole(kept) as part, part.open("wb") as file:
            np.savez(file, names=np.array(list(values)), values=np.stack(list(values.values())))
    return values


def of_boxes(matches: Matches, weights: np.ndarray) -> Mapping[str, np.ndarray]:
    """Returns the numbers of boxes by name, each (B,).

    Args:
        matches: of all pictures.
        weights: (B, I), see `picture_weights`.
    """
    return {
        **precisions(matches, weights, [size for size in SIZES if size]),
        "F1@.5": f1_at(matches, weights),
        "ECE": calibration_error(matches, weights),
    }
