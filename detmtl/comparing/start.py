"""How a comparison starts: alone in its folder; and the weights that a training starts from, as a hash."""

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path

from detmtl.config import RunSettings
from detmtl.engine import distributed
from detmtl.engine.distributed import Process
from detmtl.run_training import build
from detmtl.structures import alone
from detmtl.structures.errors import InputError


def start_alone() -> Process:
    """Returns the one process of a comparison, whose runs have processes of their own.

    Raises:
        InputError: torchrun started several, which would all do the same runs in the same folders.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        raise InputError(
            f"WORLD_SIZE: is {world}, as torchrun sets it; a comparison is one process that starts those of "
            "its runs: start it without torchrun, and with --jobs N for N runs at once, which take the GPUs "
            "in turn"
        )
    return distributed.start("cpu")


def alone_in(out: Path) -> AbstractContextManager[None]:
    """Keeps other comparisons away from a folder; see `alone.alone_in`."""
    return alone.alone_in(
        out, "does runs", "give another --out, or --report-only for what is finished"
    )


def start_digest(settings: RunSettings) -> str:
    """Returns a hash of the weights with which a run's network begins: equal for equal seeds."""
    model = build(settings)
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
