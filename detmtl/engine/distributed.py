"""Several processes, started by torchrun, that train one model on shares of each batch."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detmtl.engine.background import portable
from detmtl.structures.errors import InputError
from detmtl.structures.processes import in_any_process, summed, world_size

T = TypeVar("T")
BUCKET = 2**23
"""Elements of one all-reduce: large enough for the bandwidth, small enough for a second copy."""

PATIENCE = timedelta(hours=12)
"""How long processes wait for another: rank 0 hashes, audits and exports alone. One that ended is noticed by
torchrun, which ends the others."""


@dataclass(frozen=True)
class Process:
    """This process among its peers.

    Attributes:
        rank: 0..world-1; rank 0 alone writes files and shows progress.
        world: number of processes.
        device: what this process computes on.
    """

    rank: int
    world: int
    device: torch.device


def start(device: str = "auto") -> Process:
    """Joins the processes that torchrun started (one alone without it) and picks the device.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: the device is not there, torchrun started more processes than GPUs, or one GPU is named
            for several processes.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if world > 1 and device.startswith("cuda:"):
        raise InputError(
            f"device: '{device}' would put all of {world} processes on one GPU; give device: cuda, with "
            "which each takes its own"
        )
    chosen = pick_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    return Process(rank(), world_size(), chosen)


def stop() -> None:
    """Ends the group of processes together with all others; nothing to do for one alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave() -> None:
    """Leaves a group whose other processes do not know that this one failed.

    On GPUs all of them would have to end the group, and this one would wait for those that wait for it, its
    error untold. It ends without, and torchrun ends the others.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() != "nccl":
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """Returns the device that "auto", "cpu", "cuda" or "cuda:N" means for this process.

    Raises:
        InputError: it is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device: '{device}' is not known; give auto, cpu, cuda or cuda:N")
    if chosen.type == "cpu":
        return chosen
    found = torch.cuda.device_count()
    index = local_rank if chosen.index is None else chosen.index
    if index >= found:
        raise InputError(
            f"device: '{device}' asks for GPU {index}, but torch sees {found}; give device: cpu, or "
            "start no more processes on a machine than it has GPUs"
        )
    return torch.device("cuda", index)


def rank() -> int:
    """Returns this process's rank, 0 for one alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Returns every rank's value in the order of ranks, on every rank; values may differ in size."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_at_first(value: T) -> list[T] | None:
    """Returns every rank's value on rank 0, None elsewhere."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values


def from_first(value: T) -> T:
    """Returns rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def on_first(function: Callable[[], T]) -> T:
    """Calls `function` on rank 0 and returns on every rank what it returned there.

    What it raises there is raised on every rank: none is left to wait for one that has gone.
    """
    if world_size() == 1:
        return function()
    outcome: Any = None, None
    if rank() == 0:
        try:
            outcome = function(), None
        except Exception as error:
            outcome = None, portable(error)
    value, error = from_first(outcome)
    if error is not None:
        raise error
    return value


@torch.no_grad()
def same_weights(model: nn.Module) -> None:
    """Gives every rank rank 0's parameters and buffers."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            # a broadcast fills the memory in its order, which channels_last permutes
            plain = tensor.contiguous()
            dist.broadcast(plain, src=0)
            tensor.copy_(plain)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the ranks.

    A parameter that had no gradient on this rank counts as 0 if another rank has one. If none has, it
    is left without: the head of a task that was silent everywhere does not move, as with one process.
    """
    if world_size() == 1:
        return
    parameters = list(parameters)
    here = [p.grad is not None for p in parameters]
    gradients = []
    for p, there in zip(parameters, in_any_process(here, parameters[0].device), strict=True):
        if there:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            gradients.append(p.grad)
    _average(gradients)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replaces each floating buffer (a norm's running statistics) by its mean over the ranks."""
    if world_size() > 1:
        persistent = model.state_dict()
        buffers = [b for n, b in model.named_buffers() if n in persistent]
        _average([b for b in buffers if b.is_floating_point()])


def _average(tensors: list[Tensor]) -> None:
    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        summed(flat).div_(world_size())
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or sum(t.numel() for t in bucket) > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
