"""Which writers of a store live, and what those that are gone left unfinished.

A writer has a name of its own and, while it lives, holds a lock on `writer-<name>.lock`. Locks are
seen by processes of one running system on one mounted file system only, so the name says which
(its *place*): `<rank>-<place>-<random>`. Of a writer of another place nobody can tell whether it
lives. Its unfinished files are left alone until nothing of it has changed for a day; that costs
space, never labels, since a part counts only with its .ok.
"""

import hashlib
import os
import platform
import re
import secrets
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from detmtl.silver.parts import OK, PART, ok_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DAY = 86400.0
"""Seconds after which a writer that nobody can see is taken for one that is gone."""
UNLOCKED = "unlocked"
"""The place of a writer that cannot hold a lock."""
_NAMED = re.compile(r"(?:part|writer)-(\d+-\w+-[0-9a-f]+)[_.]")


class WriterLock:
    """The sign that a writer lives.

    Attributes:
        name: no writer has had it before.
    """

    def __init__(self, folder: Path, rank: int):
        """Takes a name in the folder of the parts, which is there."""
        self._folder = folder
        self.name, self._file = _take(folder, rank)

    def release(self) -> None:
        """Removes the sign."""
        self._file.close()
        with suppress(OSError):  # a disk that went read-only
            _lock_file(self._folder, self.name).unlink(missing_ok=True)


def discard_leftovers(folder: Path) -> None:
    """Deletes what writers that are gone left unfinished."""
    files: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        named = _NAMED.match(file.name)
        # Files that all write alike (teacher.json) wait under names of their own.
        name = named[1] if named else file.name if file.name.endswith(".tmp") else None
        if name is not None:
            files[name].append(file)
    names = {file.name for own in files.values() for file in own}
    for name, own in files.items():
        if any(_unfinished(file, ok_of(file).name in names) for file in own):
            # It lives, has ended in this moment, or its files may not be deleted: then they stay.
            with suppress(OSError):
                _clear(folder, name, own)


def place_of(folder: Path) -> str:
    """Returns a name of those who see each other's locks in a folder, 8 hex digits.

    The same for all processes of a system since it was started (containers included) that reach
    the folder through the same mount.
    """
    try:
        system = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        system = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(f"{system} {folder.stat().st_dev}".encode()).hexdigest()[:8]


def _take(folder: Path, rank: int) -> tuple[str, IO[bytes]]:
    place = UNLOCKED if fcntl is None else place_of(folder)
    while True:
        # Not the process id: containers and machines that share a disk repeat it.
        name = f"{rank:04d}-{place}-{secrets.token_hex(4)}"
        path = _lock_file(folder, name)
        file = path.open("xb")
        if fcntl is None or place == UNLOCKED:
            return name, file
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            path.unlink(missing_ok=True)
            place = UNLOCKED
        else:
            # Who clears up between open and flock takes it for one that is gone.
            if path.exists():
                return name, file
        file.close()


def _clear(folder: Path, name: str, files: Sequence[Path]) -> None:
    """Deletes a writer's unfinished files, if it is gone."""
    lock = _lock_file(folder, name)
    if fcntl is not None and lock in files and name.split("-")[1] == place_of(folder):
        # For writing: some file systems lock no file that is open for reading.
        with lock.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Listed again: it may have begun a part, and been killed, since `files` were.
            _delete(sorted(folder.glob(f"*-{name}[_.]*")))
    elif _clock(folder) - max(map(_changed, files)) > DAY:
        _delete(files)


def _delete(files: Sequence[Path]) -> None:
    # The lock file last, while it is locked: till then everybody sees that somebody is at work.
    for file in sorted(files, key=lambda f: f.name.endswith(".lock")):
        # Looked at again: it may have been finished since the folder was listed.
        if _unfinished(file, ok_of(file).exists()):
            file.unlink(missing_ok=True)


def _unfinished(file: Path, has_ok: bool) -> bool:
    return not file.name.endswith(OK) and not (file.name.endswith(PART) and has_ok)


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f"writer-{name}.lock"


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # just now finished or removed
        return float("inf")


def _clock(folder: Path) -> float:
    """Returns the time by the folder's own clock: those of machines may be days apart."""
    probe = folder / f"clock.{secrets.token_hex(4)}.tmp"
    with probe.open("xb") as file:
        now = os.fstat(file.fileno()).st_mtime
    probe.unlink(missing_ok=True)
    return now
