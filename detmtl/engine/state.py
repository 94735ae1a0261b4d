"""All that training changes, and how it is kept in a checkpoint."""

import copy
import random
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detmtl.balancing.balancer import Balancer
from detmtl.engine import distributed
from detmtl.structures.checkpoint import FORMAT, load_weights, read_checkpoint, write_checkpoint
from detmtl.structures.errors import InputError, first_few
from detmtl.structures.processes import world_size


class Ema:
    """A second model whose weights are an exponential moving average of the trained one's.

    Floating buffers (a norm's running statistics) are averaged with the weights that they belong to;
    others (counters) are copied. The decay rises as (1 + n) / (10 + n) after n updates, so that the
    random initialization is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards `model` after its update number `step` (1, 2, ...)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.module.state_dict(), model.state_dict()
        floating = [k for k, v in mine.items() if v.is_floating_point()]
        averages, targets = [mine[k] for k in floating], [theirs[k] for k in floating]
        torch._foreach_lerp_(averages, targets, weight)  # pyright: ignore[reportPrivateImportUsage]
        for k in mine.keys() - set(floating):
            mine[k].copy_(theirs[k])


@dataclass(eq=False)
class State:
    """All that training changes.

    Attributes:
        model: in training mode while `train` runs; `model.tasks` maps names to tasks.
        optimizer: groups carry `name` and `initial_lr`.
        balancer: makes gradients of loss terms.
        device: where model, balancer and batches are.
        ema: the averaged model, or None.
        scaler: for float16, else None.
        settings, classes: told in checkpoints, so that a model can be rebuilt from the file alone.
        searched: told in checkpoints: task -> the classes of which it could learn anything.
        step: updates made.
        best: highest value of the metric by which the best checkpoint is chosen.
        unscored: the weights of this very step were evaluated and their score is not in `best` yet: a
            run that goes on from here has to evaluate them again.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    balancer: Balancer
    device: torch.device
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    searched: dict[str, list[str]] = field(default_factory=dict)
    step: int = 0
    best: float | None = None
    unscored: bool = False
    _random: dict[str, Any] | None = None

    @property
    def tasks(self) -> dict[str, Any]:
        """Task name -> `Task`."""
        return dict(self.model.tasks.items())  # type: ignore[union-attr, operator]

    @property
    def brought(self) -> Mapping[str, Collection[str]]:
        """See `MultiTask`."""
        return self.model.brought  # type: ignore[return-value]

    @property
    def averaged(self) -> nn.Module:
        """The model to evaluate and to deploy: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    def save(self, path: Path) -> None:
        """Writes everything; every rank has to call it, rank 0 writes.

        The file appears whole or not at all: a kill at any moment leaves the previous one.
        """
        everyones_random = distributed.gather(random_state())
        if distributed.rank() == 0:
            write_checkpoint(
                path,
                {
                    "format": FORMAT,
                    "settings": self.settings,
                    "classes": list(self.classes),
                    "searched": self.searched,
                    "step": self.step,
                    "model": self.model.state_dict(),
                    "ema": None if self.ema is None else self.ema.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": None if self.scaler is None else self.scaler.state_dict(),
                    "balancer": self.balancer.state_dict(),
                    "random": everyones_random,
                    "best": self.best,
                    "unscored": self.unscored,
                },
            )
        distributed.barrier()

    def save_weights(
        self, path: Path, step: int | None = None, weights: dict[str, Tensor] | None = None
    ) -> None:
        """Writes the weights to deploy, on rank 0.

        Args:
            step: at which they were as they are; None: now.
            weights: None: those of `averaged`.
        """
        if distributed.rank() == 0:
            write_checkpoint(
                path,
                {
                    "format": FORMAT,
                    "settings": self.settings,
                    "classes": list(self.classes),
                    "searched": self.searched,
                    "step": self.step if step is None else step,
                    "model": self.averaged.state_dict() if weights is None else weights,
                },
            )

    def load(self, path: Path) -> None:
        """Continues from a file that `save` wrote, with a warning where another number of processes did.

        The random generators are set by `restore_random`, which `train` calls once the loader runs.

        Raises:
            InputError: the file is no checkpoint of this model, or holds weights alone.
        """
        saved = read_checkpoint(path)
        if "optimizer" not in saved:
            raise InputError(
                f"{path}: holds weights alone, training cannot go on from it; give last.pt"
            )
        if list(saved["classes"]) != list(self.classes):
            raise InputError(
                f"{path}: was trained for the classes {first_few(saved['classes'])}; now they are "
                f"{first_few(self.classes)}"
            )
        for what in ("ema", "scaler"):
            if (saved[what] is None) != (getattr(self, what) is None):
                raise InputError(
                    f"{path}: was saved {'without' if saved[what] is None else 'with'} {what}; "
                    "resume with the settings it was started with"
                )
        load_weights(self.model, saved["model"], str(path))
        if self.ema is not None:
            load_weights(self.ema.module, saved["ema"], str(path))
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.balancer.load_state_dict(saved["balancer"])
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(
                f"{path}: its optimizer or balancer is another one ({error}); resume with the "
                "settings it was started with"
            ) from error
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        self.step, self.best = saved["step"], saved["best"]
        self.unscored = saved.get("unscored", False)
        rank, world = distributed.rank(), len(saved["random"])
        if rank == 0 and world != world_size():
            warnings.warn(
                f"{path}: {world} process{'es' * (world > 1)} trained it, {world_size()} go on: other "
                "rounding and random numbers, and batch norms that learn (norm: train) see parts of another "
                "size; what comes of it is not to the bit what it would have been",
                stacklevel=2,
            )
        self._random = saved["random"][rank] if rank < len(saved["random"]) else None

    def restore_random(self) -> None:
        """Sets the random generators to where the loaded checkpoint left them; else does nothing."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch; ranks get different numbers."""
    seed = seed + 1_000_003 * distributed.rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 third parties draw from the global generator
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Returns where the generators of python, numpy, torch and CUDA stand, as plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [name, torch.tensor(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts all generators where `random_state` found them."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    legacy = (name, keys.numpy().astype(np.uint32), position, has_gauss, gauss)
    np.random.set_state(legacy)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def random_kept() -> Iterator[None]:
    """Whatever the block draws, the generators stand afterwards where they stood before."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
