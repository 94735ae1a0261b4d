"""Steps of training with some of a config's tasks, for benchmarks of what tasks cost."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from rich.console import Console

from detmtl.balancing.balancer import Balancer
from detmtl.config import RunSettings, find_config, read_settings
from detmtl.engine import distributed
from detmtl.engine.diagnosis import Diagnosis
from detmtl.engine.precision import Computing
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources, render
from detmtl.run_training import build, mixture_of, training_batches
from detmtl.structures.sample import Batch
from detmtl.tasks.multitask import MultiTask


@dataclass
class Trainer:
    """A model with a balancer and an optimizer, which trains on the same batches again and again."""

    model: MultiTask
    balancer: Balancer
    optimizer: torch.optim.Optimizer
    batches: Iterator[Batch]
    computing: Computing
    steps: int = 0

    @classmethod
    def of(cls, settings: RunSettings, batches: Sequence[Batch]) -> "Trainer":
        """Makes the model of a run, on the CPU or the GPU that the settings say."""
        device = distributed.pick_device(settings.device)
        model = build(settings).to(device)
        model.to(memory_format=torch.channels_last).train()
        balancer = settings.balancing.build(list(settings.tasks)).to(device)
        balancer.attach(model.shared_parameters(), model.own_parameters())
        optimizer = settings.optim.build(model, balancer)
        computing = Computing(settings.train.precision, device)
        return cls(model, balancer, optimizer, cycle([b.to(device) for b in batches]), computing)

    def step(self, diagnosis: Diagnosis | None = None) -> float:
        """Makes one update, as the training loop does, and returns its seconds: on a CPU those that the
        processor worked for this process, whatever else it had to do."""
        batch = next(self.batches)
        device = batch.images.device
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        start = clock()
        with self.computing():
            outputs = self.model(batch.images)
        terms = {n: task.loss(outputs[n], batch) for n, task in self.model.tasks.items()}  # type: ignore[operator]
        self.steps += 1
        if diagnosis is not None:
            diagnosis.look(self.steps, self.balancer.weighted(terms))
        self.balancer.backward(terms)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if diagnosis is not None:
            diagnosis.read()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def prepared(
    config: str, overrides: Sequence[str], folder: Path
) -> tuple[RunSettings, list[Batch]]:
    """Returns the settings of a config and a few of its batches; scenes are rendered where needed."""
    settings = read_settings(find_config(config), list(overrides))
    process = distributed.start(settings.device)
    run = OpenRun(settings, RunFolder(folder), process, Console(quiet=True))
    render(settings, process, run.console)
    sources, _, _ = load_sources(settings, folder, process)
    chosen = [sources[n] for n in settings.mix_sources()]
    state = settings.train.prepare(
        build(settings),
        settings.balancing.build(list(settings.tasks)),
        settings.optim,
        process,
        {},
        list(settings.data.label_space().names),
    )
    stream, _ = training_batches(run, mixture_of(settings, chosen), state, None)
    return settings, [next(stream) for _ in range(8)]
