"""The files of a store: written so that a kill at any moment leaves whole parts or none."""

import gzip
import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from detmtl.silver.record import Record, encode, line_sum

try:
    import fcntl
except ImportError:  # Windows: nobody can tell whether a writer lives, so nothing is cleared away
    fcntl = None

PART = ".jsonl.gz"


@dataclass(frozen=True)
class Part:
    """A whole part.

    Attributes:
        path: the file.
        pictures: its lines.
        sum: of `line_sum` of its lines, modulo 2^256.
    """

    path: Path
    pictures: int
    sum: int


def atomic_write(path: Path, content: bytes, replace: bool = True) -> None:
    """Writes a file that is there whole or not at all, also after a power cut.

    Args:
        path: the file.
        content: its bytes.
        replace: whether a file that is already there is replaced, or left as it is.
    """
    waiting = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with waiting.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        os.replace(waiting, path)
    else:
        try:
            os.link(waiting, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(waiting, path)
        waiting.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_part(part: Part) -> list[bytes]:
    """Returns a part's lines."""
    return gzip.decompress(part.path.read_bytes()).splitlines(keepends=True)


def finished_parts(folder: Path) -> tuple[list[Part], list[tuple[Path, str]]]:
    """Returns the parts that are whole, by name, and those that are damaged with what is wrong."""
    whole, damaged = [], []
    for ok in sorted(folder.glob("part-*.ok")):
        part = ok.with_name(ok.name.removesuffix(".ok") + PART)
        try:
            expected = json.loads(ok.read_bytes())
            sha256, pictures, total = expected["sha256"], expected["pictures"], expected["sum"]
            found = _sha256(part)
        except FileNotFoundError:
            damaged.append((part, "the part is gone, only its .ok is there"))
        except (ValueError, KeyError, TypeError):
            damaged.append((part, f"{ok.name} is not readable"))
        else:
            if found == sha256:
                whole.append(Part(part, pictures, int(total, 16)))
            else:
                damaged.append((part, "its bytes are not those that were written (sha256 differs)"))
    return whole, damaged


def discard_leftovers(folder: Path) -> None:
    """Deletes what writers that are gone left unfinished."""
    alive: dict[str, bool] = {}
    for file in sorted([*folder.glob("part-*"), *folder.glob("writer-*.lock")]):
        token = file.name.split(".")[0].split("-", 1)[1].rsplit("_", 1)[0]
        if token not in alive:
            alive[token] = not _bury(folder / f"writer-{token}.lock")
        if alive[token]:
            continue
        finished = (
            file.name.endswith(PART)
            and file.with_name(file.name.removesuffix(PART) + ".ok").exists()
        )
        if not finished and not file.name.endswith(".ok"):
            file.unlink(missing_ok=True)


class Writer:
    """Adds records to a store; a context manager that writes what is left, also after an error."""

    def __init__(self, folder: Path, rank: int, part_pictures: int, part_seconds: float):
        """Takes the folder of the parts, which is there, and how often a part is written."""
        self._folder = folder
        self._part_pictures, self._part_seconds = part_pictures, part_seconds
        self._lines: list[bytes] = []
        self._since = 0.0
        self._number = 0
        self._token, self._lock = _take_token(folder, rank)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, record: Record) -> None:
        """Takes a record; it is safe once its part is written."""
        if not self._lines:
            self._since = time.monotonic()
        self._lines.append(encode(record))
        if (
            len(self._lines) >= self._part_pictures
            or time.monotonic() - self._since >= self._part_seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Writes the waiting records as a part that survives a kill or a power cut."""
        if not self._lines:
            return
        # No time stamp: equal lines give equal bytes.
        content = gzip.compress(b"".join(self._lines), 6, mtime=0)
        ok = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "pictures": len(self._lines),
            "sum": f"{sum(map(line_sum, self._lines)) % 2**256:x}",
        }
        stem = f"part-{self._token}_{self._number:06d}"
        atomic_write(self._folder / (stem + PART), content)
        atomic_write(self._folder / f"{stem}.ok", json.dumps(ok).encode())
        self._number += 1
        self._lines.clear()

    def close(self) -> None:
        """Writes what is left and gives up the writer's name."""
        try:
            self.flush()
        finally:
            (self._folder / f"writer-{self._token}.lock").unlink(missing_ok=True)
            self._lock.close()


def _take_token(folder: Path, rank: int) -> tuple[str, IO[bytes]]:
    """Returns a name that no writer has had, and the open lock file that says that it lives."""
    while True:
        # Not the process id: containers and machines that share a disk repeat it.
        token = f"{rank:04d}-{secrets.token_hex(4)}"
        path = folder / f"writer-{token}.lock"
        lock = path.open("xb")
        if fcntl is None:
            return token, lock
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody who cleared up between open and flock took it for one that is gone.
        if path.exists():
            return token, lock
        lock.close()


def _bury(lock: Path) -> bool:
    """Returns whether the writer of a lock file is gone, and removes the file if so."""
    if fcntl is None:
        return False
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # While the lock is held: a writer that waits for it sees afterwards that the file is gone.
            lock.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
