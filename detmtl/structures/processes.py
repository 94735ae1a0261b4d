"""The processes that train together: how many there are, and what they add up.

Every process has to call the same of these functions in the same order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Returns the number of processes, 1 for one alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(values: Tensor) -> Tensor:
    """Adds all processes' `values` up, in their place, and returns them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Returns the mean of all processes' `values`."""
    return values if world_size() == 1 else summed(values.clone()) / world_size()


def in_any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Returns for each flag whether it is set in any process.

    Waits for the device only where a flag is not set in this process.
    """
    if world_size() == 1:
        return list(flags)
    counts = summed(torch.tensor(flags, dtype=torch.float32).to(device, non_blocking=True))
    return list(flags) if all(flags) else (counts > 0).tolist()
