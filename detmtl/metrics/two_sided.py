"""What metrics of tasks about boxes collect: on the boxes that were found, and on those of truth."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

Found = TypeVar("Found")
OnTruth = TypeVar("OnTruth")


class TwoSided(Generic[Found, OnTruth]):
    """Collects a value of either kind for each picture, by its source and id."""

    def __init__(self) -> None:
        self._pictures: dict[tuple[str, int], Found] = {}
        self._on_truth: dict[tuple[str, int], OnTruth] = {}

    def state(self) -> Any:
        """Returns what was added so far, to be sent to another process."""
        return self._pictures, self._on_truth

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was added by the union of `states`; a picture in several counts once."""
        self._pictures = {key: value for found, _ in states for key, value in found.items()}
        self._on_truth = {key: value for _, on_truth in states for key, value in on_truth.items()}
