"""The network of a training step, compiled by torch.

The trunk and each head are graphs of their own, and a trunk's feature that no task learns from in a batch
is cut off from its gradient. Within one graph every weight gets a gradient as soon as one does, of zeros
where nothing came: momentum and weight decay would move the weights of a task that is silent.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch

from detmtl.losses.focal import compiled_negatives
from detmtl.structures.errors import InputError
from detmtl.structures.sample import Batch
from detmtl.tasks.multitask import MultiTask

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
GRAPHS = 64
"""Of one function, for sets of labels, sizes and numbers of pictures; torch's own 8 are soon used up, and the
rest is eager."""
Network = Callable[[Batch], dict[str, list[Tensor]]]


def network_of(model: nn.Module, mode: CompileMode | None) -> Network:
    """Returns what a training step calls for the raw outputs of all tasks.

    The model stays as it is: whoever calls it, or a copy of it, computes eagerly. To be called within the
    autocast that the outputs are wanted in.

    Args:
        model: a `MultiTask`; any other only without a mode.
        mode: of torch.compile; None: the model itself is called.
    """
    if mode is None:
        return lambda batch: model(batch.images)
    return _compiled(cast(MultiTask, model), mode)


def _compiled(model: MultiTask, mode: CompileMode) -> Network:
    used = tuple(dict.fromkeys(level for levels in model.places.values() for level in levels))

    def features(images: Tensor, learned: tuple[str, ...]) -> dict[str, Tensor]:
        of_all = model.features(images)
        return {n: of_all[n] if n in learned else of_all[n].detach() for n in used}

    trunk = torch.compile(features, mode=mode)
    heads = {name: torch.compile(task, mode=mode) for name, task in model.tasks.items()}

    def forward(batch: Batch) -> dict[str, list[Tensor]]:
        speaking = [name for name, task in model.tasks.items() if _speaks(task, batch)]
        learned = {level for name in speaking for level in model.places[name]}
        if replays(mode):  # what the graphs gave for the batch before may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
        # without any labels nothing goes backward, which is no reason to compile once more
        found = trunk(batch.images, tuple(n for n in used if n in learned) or used)
        return model.heads(found, heads)

    return forward


@contextmanager
def compiled_steps(mode: CompileMode | None) -> Iterator[None]:
    """Surrounds the steps of a compiled network; None: changes nothing.

    Balancers and the diagnosis may go backward through the network several times, the network may have as
    many graphs as its batches need, and what losses do with negatives, of every logit, is compiled too.
    Without the first torch reuses what was kept for the backward pass as soon as it is read. Its switch for
    that belongs to a thread, so the passes of a GPU, too, stay in this one.
    """
    if mode is None:
        yield
        return
    with (
        functorch.patch(donated_buffer=False),
        dynamo.patch(recompile_limit=GRAPHS),
        torch.autograd.set_multithreading_enabled(False),
        compiled_negatives(),
    ):
        yield


def _speaks(task: nn.Module, batch: Batch) -> bool:
    """Returns whether a task has something to learn from in a batch."""
    labels = batch.labels.get(cast(str, task.labels))
    return labels is not None and getattr(labels, "some", True)


def replays(mode: CompileMode | None) -> bool:
    """Returns whether on a GPU the steps are recorded as CUDA graphs and replayed."""
    return mode not in (None, "default")


def keep_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Moves gradients out of the memory of CUDA graphs, which the next batch overwrites."""
    for p in parameters:
        if p.grad is not None:
            p.grad = p.grad.clone()


def check_compiler(device: torch.device) -> None:
    """Compiles the smallest function there is, in some seconds.

    Raises:
        InputError: torch cannot compile for `device` here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what torch says of its own parts when it first loads them
            torch.compile(_next)(torch.ones(2, device=device))
    except Exception as error:  # torch, its backends and their compilers raise many kinds
        first = str(error).strip().split("\n")[0]
        needs = "a C++ compiler, such as g++" if device.type == "cpu" else "triton and a C compiler"
        raise InputError(
            f"train.compile: torch cannot compile for {device.type} on this machine "
            f"({type(error).__name__}: {first}); it needs {needs}; install that, or set train.compile: null"
        ) from error


def _next(x: Tensor) -> Tensor:
    return x + 1
