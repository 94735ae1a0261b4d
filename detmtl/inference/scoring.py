"""Scores any predictor on labelled pictures, as `detmtl.engine.evaluator.evaluate` scores a model.

For predictors that want each picture in its own size: those of several views.
"""

from collections.abc import Callable, Mapping

import torch

from detmtl.data.source import Source
from detmtl.engine.evaluator import computed
from detmtl.inference.predictor import AnyPredictor
from detmtl.tasks.task import Task


def evaluate_predictor(
    predictor: AnyPredictor,
    tasks: Mapping[str, Task],
    source: Source,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Returns `task/metric` -> value over all pictures of the source, the same on every rank.

    Args:
        predictor: of the tasks.
        tasks: by name; they say which labels they are scored on, and how.
        source: pictures and truth.
        rank, world: this process among `world`; it takes pictures rank, rank + world, ...
        progress: called with the number of pictures that are done more.

    Raises:
        InputError: a picture cannot be read.
    """
    metrics = {name: task.metric() for name, task in tasks.items()}
    for i in range(rank, len(source), world):
        image = torch.from_numpy(source.read(i)).permute(2, 0, 1)
        found, truth = predictor.predict([image])[0], source.labels(i)
        for name, task in tasks.items():
            labels = found[name].to("cpu")
            metrics[name].update([labels], [truth.get(task.labels)], [source.info(i)])
        if progress is not None:
            progress(1)
    return computed(metrics)
