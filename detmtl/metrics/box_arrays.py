"""Boxes of many pictures as flat arrays."""

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Boxes:
    """Truth or detections of many pictures.

    Attributes:
        images: (N,) int64 picture ids.
        categories: (N,) int64 category ids.
        boxes_xywh: (N, 4) float64 pixels.
        areas: (N,) float64 square pixels, by which truth is small, medium or large.
        scores: (N,) float64; 1 for truth.
        crowd: (N,) bool; detections on such a box count neither as right nor as wrong.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> "Boxes":
        """Returns the boxes of these rows."""
        return Boxes(*(getattr(self, f.name)[rows] for f in fields(Boxes)))


def by_category(boxes: Boxes) -> Boxes:
    """Returns the boxes by rising category, those of one in their order."""
    return boxes[np.argsort(boxes.categories, kind="stable")]


def joined(*blocks: Boxes) -> Boxes:
    """Returns the boxes of all blocks, in their order."""
    return Boxes(
        *(np.concatenate([getattr(block, f.name) for block in blocks]) for f in fields(Boxes))
    )
