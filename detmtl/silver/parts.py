"""The files of a store: written so that a kill at any moment leaves whole parts or none.

    part-<writer>_<number>.jsonl.gz  lines of records
    part-<writer>_<number>.ok        what the part holds, and checksums of the part and of itself

The part is written beside its place, synced and renamed; only then its .ok is, in the same way. So
a part that has an .ok has all its bytes, whatever was killed when.
"""

import base64
import errno
import gzip
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from detmtl.silver.record_line import content_hash_of, line_sum
from detmtl.structures.errors import InputError

PART = ".jsonl.gz"
OK = ".ok"
HASH_BYTES = 32
SETTLED = 2.0
"""Seconds after which a file that is changed again has another time of change."""


@dataclass(frozen=True)
class Part:
    """A finished part, as its .ok describes it.

    Attributes:
        path: the file.
        sha256: of the file's bytes.
        keys: the content hashes of its lines, in their order, 32 bytes each.
        sum: of `line_sum` of its lines, modulo 2^256.
        teacher: identifies who wrote it, and from which score on.
    """

    path: Path
    sha256: str
    keys: bytes = field(repr=False)
    sum: int
    teacher: str

    def __len__(self) -> int:
        """Returns the number of its lines."""
        return len(self.keys) // HASH_BYTES


def atomic_write(path: Path, content: bytes, replace: bool = True) -> None:
    """Writes a file that is there whole or not at all, also after a power cut.

    Args:
        path: the file.
        content: its bytes.
        replace: whether a file that is already there is replaced, or left as it is.
    """
    waiting = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with waiting.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(waiting, path)
        else:
            _link(waiting, path)
    except OSError:  # the disk may be full: the space is given back
        waiting.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says about a failed write into a sentence.

    Raises:
        InputError: a file could not be written.
    """
    try:
        yield
    except OSError as problem:
        raise InputError(
            f"{path}: cannot be written ({problem.strerror}); make room there, or see to the permission, "
            "and run the same command again: finished parts are kept"
        ) from problem


def write_part(folder: Path, stem: str, lines: Sequence[bytes], teacher: str) -> None:
    """Writes lines as a part that survives a kill or a power cut."""
    path = folder / (stem + PART)
    # No time stamp: equal lines give equal bytes.
    content = gzip.compress(b"".join(lines), 6, mtime=0)
    fields = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "pictures": len(lines),
        "sum": f"{sum(map(line_sum, lines)) % 2**256:x}",
        "teacher": teacher,
        "keys": base64.b64encode(bytes.fromhex("".join(map(content_hash_of, lines)))).decode(),
    }
    ok = json.dumps({**fields, "check": _check(fields)}).encode()
    try:
        atomic_write(path, content)
        atomic_write(ok_of(path), ok)
    except OSError:  # the disk may be full: the space is given back
        ok_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise


def read_part(part: Part) -> list[bytes]:
    """Returns a part's lines.

    Raises:
        InputError: its bytes are no longer those that were written.
    """
    try:
        content = part.path.read_bytes()
    except OSError as problem:
        raise InputError(f"{part.path}: cannot be read ({problem.strerror}); {REPAIR}") from None
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise InputError(f"{part.path}: was changed while the store was open; {REPAIR}")
    return gzip.decompress(content).splitlines(keepends=True)


REPAIR = "annotate with the same teacher into the same store labels the pictures of this part again"


def finished_parts(folder: Path) -> tuple[list[Part], list[tuple[Path, str]]]:
    """Returns the parts that are whole, by name, and those that are damaged with what is wrong.

    Raises:
        InputError: a file may not be read, which says nothing of its content.
    """
    whole, damaged = [], []
    for ok in sorted(folder.glob(f"part-*{OK}")):
        path = part_of(ok)
        try:
            part = _described(path, ok.read_bytes())
            problem = _fault(part)
        except FileNotFoundError:
            continue  # somebody found it damaged, said so, and has just removed it
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged.append((path, f"{ok.name} is not what was written"))
        except OSError as fault:
            if fault.errno != errno.EIO:
                raise InputError(f"{path}: cannot be read ({fault.strerror})") from None
            damaged.append((path, "the disk cannot read it any more"))
        else:
            if problem is None:
                whole.append(part)
            else:
                damaged.append((path, f"{problem} ({len(part)} pictures)"))
    return whole, damaged


def part_of(ok: Path) -> Path:
    """Returns the part that an .ok describes."""
    return ok.with_name(ok.name.removesuffix(OK) + PART)


def ok_of(part: Path) -> Path:
    """Returns the .ok that describes a part."""
    return part.with_name(part.name.removesuffix(PART) + OK)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, that survives a power cut."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder survive a power cut."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(waiting: Path, path: Path) -> None:
    """Gives a file its name, unless another has it already."""
    try:
        os.link(waiting, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(waiting, path)
    waiting.unlink(missing_ok=True)


def _described(path: Path, ok: bytes) -> Part:
    fields = json.loads(ok)
    if fields.pop("check") != _check(fields):
        raise ValueError
    keys = base64.b64decode(fields["keys"], validate=True)
    return Part(path, fields["sha256"], keys, int(fields["sum"], 16), fields["teacher"])


def _check(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _fault(part: Part) -> str | None:
    """Returns what is wrong with a part's file; None: nothing."""
    try:
        about = part.path.stat()
        settled = time.time() - about.st_mtime > SETTLED
        found = (_sha256 if settled else _sha256.__wrapped__)(
            part.path, about.st_size, about.st_mtime_ns, about.st_ino
        )
    except FileNotFoundError:
        return "the part is gone, only its .ok is there"
    return None if found == part.sha256 else "its bytes are not those that were written"


@lru_cache(maxsize=2**16)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    """Returns a file's sha256; once in a process, as long as the file is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
