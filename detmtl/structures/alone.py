"""One process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detmtl.structures.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def alone_in(out: Path, does: str, instead: str) -> Iterator[None]:
    """Keeps other processes away from a folder; the system forgets it with this process, however that
    ends: what it has forked (to load pictures) and lives on for a moment has no part in such a lock.

    Args:
        out: the folder, which is there.
        does: what the one that works there does, for the others' sentence.
        instead: what these can do but wait.

    Raises:
        InputError: another process works there.
    """
    with (out / "lock").open("a+") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise InputError(
                f"--out {out}: process {file.read().strip() or 'of another machine'} {does} there; wait "
                f"for it, {instead}"
            ) from None
        except OSError:  # a file system without locks: two at once are the user's to avoid
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
