"""What the pictures to score on were scored for, so that nobody forgets that they are used up.

A set of test pictures answers one question honestly. Who changes settings after looking at its scores
and scores again has made it a validation set; and where there is none, the validation pictures stand in its
place. The file `test_uses.jsonl` beside the folders of comparisons keeps every use, a line each.
"""

import datetime
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from detmtl.data.source import Source
from detmtl.structures.errors import InputError

FILE = "test_uses.jsonl"


@dataclass(frozen=True)
class Use:
    """One use of one set of pictures to score on.

    Attributes:
        test: hash of the pictures.
        experiment: hash of the settings that were compared on them.
        folder: name of the comparison's folder.
        date: of the first time.
    """

    test: str
    experiment: str
    folder: str
    date: str


def record_use(out: Path, test: Source, experiment: str) -> None:
    """Notes that an experiment scores these pictures; once.

    Raises:
        InputError: the file cannot be written.
    """
    use = Use(pictures_digest(test), experiment, out.name, str(datetime.date.today()))
    if any((u.test, u.experiment) == (use.test, use.experiment) for u in _uses(out)):
        return
    target = _opened(out)
    try:  # one write, with a newline first: a torn line of a killed process is ended
        os.write(target, f"\n{json.dumps(asdict(use))}\n".encode())
    finally:
        os.close(target)


def refuse_unnoted(out: Path) -> None:
    """Refuses to begin a comparison whose use of its pictures could not be noted. One that has begun may
    only be reported, which notes nothing.

    Raises:
        InputError: the file cannot be written.
    """
    if any((out / "runs").glob("*")):
        return
    path = out.absolute().parent / FILE
    if path.exists():
        os.close(_opened(out))
    elif not os.access(
        path.parent, os.W_OK
    ):  # asking makes no file that another process may begin to fill
        raise _unwritable(out, path, "no permission")


def _opened(out: Path) -> int:
    """Returns the file beside a comparison's folder, to be written at its end."""
    path = out.absolute().parent / FILE
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(out, path, error.strerror) from None


def _unwritable(out: Path, path: Path, why: str | None) -> InputError:
    return InputError(
        f"--out {out}: {path}, which notes each use of pictures to score on, cannot be written ({why}); "
        "choose a folder in one that can be written"
    )


def earlier_uses(out: Path, test: Source, experiment: str) -> list[Use]:
    """Returns the uses of these pictures by other experiments, before this one's own."""
    name, earlier = pictures_digest(test), []
    for use in _uses(out):
        if use.test == name and use.experiment == experiment:
            break
        if use.test == name:
            earlier.append(use)
    return earlier


def _uses(out: Path) -> list[Use]:
    file, found = out.absolute().parent / FILE, []
    if file.is_file():
        for line in file.read_text().splitlines():
            try:
                found.append(Use(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return found


def pictures_digest(test: Source) -> str:
    """Returns a hash of the bytes of pictures to score on, in whatever order."""
    return hashlib.sha256("".join(sorted(test.hashes())).encode()).hexdigest()[:16]
