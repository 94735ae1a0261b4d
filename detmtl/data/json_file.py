"""JSON files: reading them whole, or a long list of theirs block by block."""

import gc
import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from detmtl.structures.errors import InputError

BLOCK = 65_536
"""Entries of a long list that are in memory together."""
_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path, where: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        InputError: it cannot be read, is empty or is not JSON.
    """
    text = _text(path, where)
    with _as_input(where):
        return json.loads(text)


def read_in_blocks(path: Path, where: str, key: str, take: Callable[[list[Any]], None]) -> Any:
    """Returns what a JSON file holds; of the object that it is, the entries of the list `key` go to `take`
    in their order, at most `BLOCK` at a time, and an empty list stands in their place.

    Parsed entries need several times the memory of their text; so only a block of them is ever there.

    Raises:
        InputError: it cannot be read, is empty, is not JSON or has the list twice.
    """
    text = _text(path, where)
    parsing = _parsed(text, where, key)
    while True:
        with _as_input(where):
            try:
                block = next(parsing)
            except StopIteration as end:
                return end.value
        take(block)  # out there: what it raises says nothing of the file


def _parsed(text: str, where: str, key: str) -> Generator[list[Any], None, Any]:
    """Yields the blocks of the list `key`, and returns the rest."""
    scanner = json.JSONDecoder()
    at = _after(text, 0)
    if not text.startswith("{", at):
        return scanner.decode(text)
    found: dict[str, Any] = {}
    at = _after(text, at + 1)
    more = not text.startswith("}", at)
    while more:
        if not text.startswith('"', at):
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = scanner.raw_decode(text, at)
        at = _after(text, _expected(":", text, at))
        if name == key and text.startswith("[", at):
            if name in found:
                raise InputError(f"{where}: has '{key}' twice; join the two lists")
            at = yield from _blocks(text, at, scanner)
            found[name] = []
        else:
            found[name], at = scanner.raw_decode(text, at)
        at = _after(text, at)
        more = text.startswith(",", at)
        at = _after(text, at + 1) if more else at
    end = _after(text, _expected("}", text, at))
    if end < len(text):
        raise JSONDecodeError("Extra data", text, end)
    return found


def _blocks(text: str, at: int, scanner: json.JSONDecoder) -> Generator[list[Any], None, int]:
    """Yields the entries of the list at `at`, and returns where the list ends."""
    block: list[Any] = []
    at = _after(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        entry, at = scanner.raw_decode(text, at)
        block.append(entry)
        if len(block) == BLOCK:
            yield block
            block = []
        at = _after(text, at)
        more = text.startswith(",", at)
        at = _after(text, at + 1) if more else at
    at = _expected("]", text, at)
    if block:
        yield block
    return at


def _after(text: str, at: int) -> int:
    """Returns where the next character that is no space stands."""
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()


def _expected(character: str, text: str, at: int) -> int:
    """Returns the place behind a character that has to come next."""
    at = _after(text, at)
    if not text.startswith(character, at):
        what = "','" if character in "]}" else f"'{character}'"
        raise JSONDecodeError(f"Expecting {what} delimiter", text, at)
    return at + 1


def _text(path: Path, where: str) -> str:
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise InputError(f"{where}: the file is empty (0 bytes); it needs to be JSON")
            # A mapped file's bytes need no memory of our own beside the text's.
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data, memoryview(data) as view:
                text = str(view, json.detect_encoding(bytes(view[:4])), "surrogatepass")
    except OSError as problem:
        file_name = "" if where == str(path) else f": {path}"
        raise InputError(f"{where}: cannot be read ({problem.strerror}){file_name}") from problem
    except UnicodeDecodeError as problem:
        raise InputError(f"{where}: is not JSON ({problem})") from problem
    if _after(text, 0) == len(text):
        raise InputError(f"{where}: the file is empty ({len(text)} spaces); it needs to be JSON")
    return text


@contextmanager
def _as_input(where: str) -> Iterator[None]:
    """Tells what is no JSON as a user's mistake, and lets nobody look for garbage meanwhile."""
    collecting = gc.isenabled()
    gc.disable()  # it would look through millions of new objects again and again
    try:
        yield
    except InputError:
        raise
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{where}: is not JSON ({problem})") from problem
    finally:
        if collecting:
            gc.enable()
