"""What a run tells while it trains: TensorBoard, metrics.jsonl, and a bar with the time left."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from detmtl.engine import diagnosis, distributed
from detmtl.engine.drawing import draw, side_by_side
from detmtl.engine.heat_map import heat_map
from detmtl.structures.labels import Labels
from detmtl.structures.sample import Batch
from detmtl.structures.shown import SURE
from detmtl.structures.whole import write_whole

SHOWN = 4
"""Pictures of one batch that are recorded."""
LINE_EVERY = 30.0
"""Seconds between the lines that stand for the bar where there is no terminal to draw it in."""


class Recorder:
    """Writes `metrics.jsonl` and `tensorboard/` in a run folder; ranks other than 0 stay silent.

    Use as a context manager. A run that goes on from step n loses what was recorded after n and
    continues the same files.

    Attributes:
        progress: the bars, to which others may add their own while this one runs; None where none
            are shown.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        class_names: Mapping[str, Sequence[str]],
        start_step: int = 0,
        progress: bool = True,
        labels: Mapping[str, str] | None = None,
        unscored: bool = False,
        label_names: Mapping[str, Sequence[str]] | None = None,
    ):
        """Opens the files.

        Args:
            folder: the run's.
            steps: of the whole run, for the bar.
            class_names: task -> names of what it finds, for pictures.
            start_step: steps already made, when the run goes on.
            progress: whether to show the bar.
            labels: task -> its key in `Batch.labels`, where that is not the task's name.
            unscored: the weights of `start_step` will be scored again. (TensorBoard, which cannot take back
                single values, may show the same value of that step twice.)
            label_names: key in `Batch.labels` -> names of truth, where they are not those of what is found.
        """
        self._labels = dict(labels or {})
        self._label_names = dict(label_names or {})
        self.class_names = dict(class_names)
        self.progress: Progress | None = None
        self._writer: SummaryWriter | None = None
        self._held: list[str] | None = None
        self._score = ""
        if distributed.rank() != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _cut(path, start_step, unscored)
        self._file = open(path, "a")  # noqa: SIM115 closed by __exit__
        self._gradients = folder / diagnosis.FILE
        _cut(self._gradients, start_step)
        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else 0
        )
        if progress:
            bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            bars.start()
            self._bar = bars.add_task("train", total=steps, completed=start_step)
            self.progress = bars
            self._line_at = time.monotonic() + LINE_EVERY

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        """Closes files and bars."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        if self._writer is not None:
            self._file.writelines(self._held or ())
            self._writer.close()
            self._file.close()
            self._writer = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records values at `step`; those that are not finite become null."""
        if self._writer is None:
            return
        finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        for name, value in finite.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        line = json.dumps({"step": step, **finite}) + "\n"
        if self._held is not None:
            self._held.append(line)
            return
        self._file.write(line)
        self._file.flush()

    def hold(self) -> None:
        """Keeps what `metrics.jsonl` gets from now on until `scores` is called, for the order of its
        lines. A kill loses them, and a run that goes on makes them again: no `last.pt` of a later step
        is written before."""
        self._held = []

    def scores(self, step: int, values: Mapping[str, float], best: str | None = None) -> None:
        """Records the scores of the weights of `step`, which may be past.

        Args:
            best: the metric that the bar shows from now on; None: none.
        """
        if self._writer is None:
            return
        held, self._held = self._held or [], None
        self.scalars(step, {f"val/{name}": value for name, value in values.items()})
        self._file.writelines(held)
        self._file.flush()
        if best is not None and best in values:
            self._score = f"{best} {values[best]:.4g} at step {step}"

    def pictures(
        self, step: int, where: str, batch: Batch, predictions: Mapping[str, Sequence[Labels]]
    ) -> None:
        """Records the first pictures of a batch, truth left, predictions right, both in the network's
        pixels; of predicted boxes those from a score of `SURE` on.

        Args:
            where: "train" or "val".
            predictions: task name -> one for each picture.
        """
        if self._writer is None:
            return
        for name, found in predictions.items():
            labels = batch.labels.get(self._labels.get(name, name))
            sizes = batch.sizes.tolist()
            truths = [None] * len(batch) if labels is None else labels.unpadded(sizes)
            for i, (truth, one) in enumerate(zip(truths[:SHOWN], found, strict=False)):
                picture = self._picture(batch, i, name, truth, one)
                self._writer.add_image(f"{where}/{name}/{i}", picture.numpy(), step)

    def gradients(self, records: Sequence[diagnosis.Record]) -> None:
        """Records what was seen of the tasks' gradients: in diagnosis.jsonl and TensorBoard."""
        if self._writer is None or not records:
            return
        for each in records:
            for name, value in diagnosis.scalars(each).items():
                self._writer.add_scalar(name, value, each["step"])
        with self._gradients.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in records)

    def gradients_heat_map(self, step: int) -> None:
        """Records a picture of the whole run's mean cosines, a row a pair of tasks, a column a stage."""
        if self._writer is None:
            return
        cosines = diagnosis.means(diagnosis.read_records(self._gradients), "cosine")
        pairs = list(dict.fromkeys(pair for of in cosines.values() for pair in of))
        if pairs:
            table = [[of.get(pair, (None,))[0] for of in cosines.values()] for pair in pairs]
            picture = heat_map(table, pairs, list(cosines))
            self._writer.add_image("gradient_cosine", picture, step, dataformats="HWC")

    def advance(self, step: int, loss: float | None = None) -> None:
        """Moves the bar to `step`; where there is no terminal, prints a line now and then."""
        if self.progress is None:
            return
        parts = [] if loss is None else [f"loss {loss:.4g}"]
        parts += [self._score] if self._score else []
        told = f"train ({', '.join(parts)})" if parts else "train"
        self.progress.update(self._bar, completed=step, description=told)
        if not self.progress.console.is_terminal and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY
            bar = self.progress.tasks[self.progress.task_ids.index(self._bar)]
            left = bar.time_remaining
            rest = "" if left is None else f", about {left / 60:.1f} min left"
            print(f"{told}: step {step} of {bar.total:.0f}{rest}", flush=True)

    def _picture(
        self, batch: Batch, i: int, task: str, truth: Labels | None, found: Labels
    ) -> Tensor:
        height, width = batch.sizes[i].tolist()
        image = batch.images[i, :, :height, :width].cpu()
        names = self.class_names[task]
        of_truth = self._label_names.get(self._labels.get(task, task), names)
        left = image if truth is None else draw(image, truth.to("cpu"), of_truth)
        right = draw(image, found.to("cpu"), names, colors="class", least=SURE)
        return side_by_side(left, right)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics.jsonl; a last line that a kill has torn is left out."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def _cut(path: Path, step: int, unscored: bool = False) -> None:
    """Drops records after `step` (a run from the start keeps none), whole or not at all.

    Args:
        unscored: drops the scores of `step` too.
    """
    if not path.exists():
        return
    kept = [r for r in read_metrics(path) if step and r["step"] <= step]
    if unscored:
        kept = [r for r in kept if r["step"] < step or not any(k.startswith("val/") for k in r)]
    write_whole(path, "".join(json.dumps(r) + "\n" for r in kept))
