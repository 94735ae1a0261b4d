"""How a comparison starts: alone in its folder; and the weights that a training starts from, as a hash."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detmtl.config import RunSettings
from detmtl.engine import distributed
from detmtl.engine.distributed import Process
from detmtl.run_training import build
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


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keeps other comparisons away from a folder; the system forgets it with this process, however that
    ends.

    Raises:
        InputError: another process works there.
    """
    with (out / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"--out {out}: process {file.read().strip() or 'of another machine'} does runs there; wait "
                "for it, give another --out, or --report-only for what is finished"
            ) from None
        except OSError:  # a file system without locks: two at once are the user's to avoid
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def start_digest(settings: RunSettings) -> str:
    """Returns a hash of the weights with which a run's network begins: equal for equal seeds."""
    model = build(settings)
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
