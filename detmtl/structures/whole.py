"""Files that are there whole or not at all."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a file to write, beside `path`, which takes its place when the block ends, and is gone where the
    block fails. What a kill leaves of it the next attempt writes over."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, float]) -> None:
    """Writes numbers by name, whole or not at all; those that are not finite become null."""
    finite = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
    write_whole(path, json.dumps(finite, indent=2) + "\n")
