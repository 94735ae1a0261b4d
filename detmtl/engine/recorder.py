"""What a run tells while it trains: TensorBoard, metrics.jsonl, and a bar with the time left."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from detmtl.structures.labels import Labels
from detmtl.structures.sample import Batch


class Recorder:
    """Writes `metrics.jsonl` and `tensorboard/` in a run folder; ranks other than 0 stay silent.

    Use as a context manager. A run that goes on from step n loses what was recorded after n and
    continues the same files.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        class_names: Mapping[str, Sequence[str]],
        start_step: int = 0,
        progress: bool = True,
    ):
        """Opens the files.

        Args:
            folder: the run's.
            steps: of the whole run, for the bar.
            class_names: task -> names, for pictures.
            start_step: steps already made, when the run goes on.
            progress: whether to show the bar.
        """
        raise NotImplementedError

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records values at `step`; those that are not finite become null."""
        raise NotImplementedError

    def pictures(
        self, step: int, where: str, batch: Batch, predictions: Mapping[str, Sequence[Labels]]
    ) -> None:
        """Records the first pictures of a batch, truth left, predictions right, both in the network's
        pixels.

        Args:
            where: "train" or "val".
        """
        raise NotImplementedError

    def advance(self, step: int, loss: float | None = None) -> None:
        """Moves the bar to `step`."""
        raise NotImplementedError
