"""What metrics collect: what counts of each picture, by its source and id."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import ImageInfo

Counted = TypeVar("Counted")
Described = TypeVar("Described")


class Collected(ABC, Generic[Counted]):
    """Collects of each picture what a metric says in `counted`; its numbers are made of these."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._pictures: dict[tuple[str, int], Counted] = {}

    @abstractmethod
    def counted(self, found: Any, true: Any, info: ImageInfo) -> Counted:
        """Returns what counts of a picture; both labels are in pixels of the file."""

    def update(
        self, predictions: Sequence[Any], truth: Sequence[Any], infos: Sequence[ImageInfo]
    ) -> None:
        """Adds pictures; one without truth (None) is skipped. See `detmtl.tasks.task.Metric`."""
        for found, true, info in zip(predictions, truth, infos, strict=True):
            if true is not None:
                self._pictures[info.source, info.id] = self.counted(found, true, info)

    def in_order(self) -> list[Counted]:
        """Returns what was collected, in the order of the pictures' sources and ids."""
        return [self._pictures[key] for key in sorted(self._pictures)]

    def state(self) -> Any:
        """Returns what was collected, to be sent to another process."""
        return self._pictures

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces what was collected by the union of `states`; a picture in several counts once."""
        self._pictures = {key: value for state in states for key, value in state.items()}


class TwoSided(Collected[Counted], Generic[Counted, Described]):
    """Of a task about boxes: collects, too, what it says of the boxes of truth."""

    def __init__(self) -> None:
        super().__init__()
        self._on_truth: dict[tuple[str, int], Described] = {}

    @abstractmethod
    def described(self, found: BoxLabels, true: BoxLabels, info: ImageInfo) -> Described | None:
        """Returns what counts of a picture whose boxes of truth the task has looked at, in their order;
        None: nothing."""

    def update_on_truth(
        self,
        predictions: Sequence[BoxLabels],
        truth: Sequence[BoxLabels | None],
        infos: Sequence[ImageInfo],
    ) -> None:
        """Adds pictures whose boxes of truth the task has looked at; one without truth is skipped."""
        for found, true, info in zip(predictions, truth, infos, strict=True):
            value = None if true is None else self.described(found, true, info)
            if value is not None:
                self._on_truth[info.source, info.id] = value

    def state(self) -> Any:
        return self._pictures, self._on_truth

    def merge(self, states: Sequence[Any]) -> None:
        super().merge([found for found, _ in states])
        self._on_truth = {key: value for _, on_truth in states for key, value in on_truth.items()}
