"""JSON files: reading them whole, or a long list of theirs block by block."""

import gc
import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from json import JSONDecodeError
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TextIO

from detmtl.structures.errors import InputError

BLOCK = 65_536
"""Entries of a long list that are in memory together."""
PIECE = 1 << 20
"""Characters of a file that are read together."""
_SPACES = " \t\n\r"
_SPACE = re.compile(f"[{_SPACES}]*")


def read_json(path: Path, where: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        InputError: it cannot be read, is empty or is not JSON.
    """
    text = _text(path, where)
    with _as_input(where):
        return json.loads(text)


def holds_list(path: Path, where: str) -> bool:
    """Returns whether a JSON file is a list, as far as its first character tells.

    Raises:
        InputError: it cannot be read.
    """
    with _opened(path, where) as file:
        text = _Text(file)
        with _as_input(where, path, text):
            return text.next() == "["


def read_in_blocks(
    path: Path, where: str, key: str, take: Callable[[list[Any]], None], bare: bool = False
) -> Any:
    """Returns what a JSON file holds; of the object that it is, the entries of the list `key` go to `take`
    in their order, at most `BLOCK` at a time, and an empty list stands in their place.

    Parsed entries need several times the memory of their text; so only a block of them is ever there, and
    of the text only a piece.

    Args:
        path: of the file.
        where: the file, for sentences.
        key: of the list.
        take: is given the blocks.
        bare: whether the entries of a list that is the whole file go to `take` too.

    Raises:
        InputError: it cannot be read, is empty, is not JSON or has the list twice.
    """
    with _opened(path, where) as file:
        text = _Text(file)
        parsing = _parsed(text, where, key, bare)
        while True:
            with _as_input(where, path, text):
                try:
                    block = next(parsing)
                except StopIteration as end:
                    return end.value
            take(block)  # out there: what it raises says nothing of the file


class _Text:
    """The text of a JSON file, of which memory holds a piece: what was read is dropped.

    Args:
        file: to be read from its start.

    Attributes:
        piece: the text.
        at: where in it reading stands.
        dropped: characters of the file before it.
    """

    def __init__(self, file: TextIO):
        self.piece, self.at, self.dropped = "", 0, 0
        self._file = file
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """Returns the next character that is no space, without passing it; "" at the end."""
        while (found := self.piece[self.at : self.at + 1]) in _SPACES:  # "" is too
            self.at = _after(self.piece, self.at)
            if self.at == len(self.piece) and not self._more():
                return ""
        return found

    def passes(self, character: str) -> bool:
        """Returns whether a character comes next, and passes it if so."""
        found = self.next() == character
        self.at += found
        return found

    def expect(self, character: str) -> None:
        """Passes a character that has to come next."""
        if not self.passes(character):
            what = "','" if character in "]}" else f"'{character}'"
            raise self.wrong(f"Expecting {what} delimiter")

    def value(self) -> Any:
        """Returns the value that comes next, and passes it."""
        self.next()
        while True:
            try:
                value, end = self._decode(self.piece, self.at)
            except JSONDecodeError:
                if self._more():  # it may go on there
                    continue
                raise
            end = _after(self.piece, end)
            # A number that the piece cuts off is one too: what follows tells that a value is whole.
            if self.piece[end : end + 1] in _FOLLOWING or not self._more():
                self.at = end
                return value

    def wrong(self, what: str) -> JSONDecodeError:
        """Returns what is wrong where reading stands."""
        return JSONDecodeError(what, self.piece, self.at)

    def _more(self) -> bool:
        """Reads on, at least as much as is left of the piece; False at the end of the file."""
        rest = self.piece[self.at :]
        more = self._file.read(max(PIECE, len(rest)))
        if not more:
            return False
        self.dropped += self.at
        self.piece, self.at = rest + more, 0
        return True


_FOLLOWING = frozenset(",:]}")
"""What may follow a value of a list or an object, or a name."""


def _parsed(text: _Text, where: str, key: str, bare: bool) -> Generator[list[Any], None, Any]:
    """Yields the blocks of the list `key`, and returns the rest."""
    first = text.next()
    if first == "{":
        found = yield from _members(text, where, key)
    elif first == "[" and bare:
        yield from _blocks(text)
        found = []
    else:
        found = text.value()
    if text.next():
        raise text.wrong("Extra data")
    return found


def _members(text: _Text, where: str, key: str) -> Generator[list[Any], None, dict[str, Any]]:
    """Yields the blocks of the list `key` of an object, and returns its other members."""
    text.expect("{")
    found: dict[str, Any] = {}
    more = text.next() != "}"
    while more:
        if text.next() != '"':
            raise text.wrong("Expecting property name enclosed in double quotes")
        name = text.value()
        text.expect(":")
        if text.next() != "[":
            found[name] = text.value()
        elif name != key:  # entry by entry too: a long list would not fit into the piece
            found[name] = [entry for block in _blocks(text) for entry in block]
        elif name in found:
            raise InputError(f"{where}: has '{key}' twice; join the two lists")
        else:
            yield from _blocks(text)
            found[name] = []
        more = text.passes(",")
    text.expect("}")
    return found


def _blocks(text: _Text) -> Iterator[list[Any]]:
    """Yields the entries of the list that comes next."""
    text.expect("[")
    block: list[Any] = []
    more = text.next() != "]"
    while more:
        block.append(text.value())
        if len(block) == BLOCK:
            yield block
            block = []
        more = text.passes(",")
    text.expect("]")
    if block:
        yield block


def _after(text: str, at: int) -> int:
    """Returns where the next character that is no space stands."""
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()


def _text(path: Path, where: str) -> str:
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise InputError(f"{where}: the file is empty (0 bytes); it needs to be JSON")
            # A mapped file's bytes need no memory of our own beside the text's.
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data, memoryview(data) as view:
                text = str(view, json.detect_encoding(bytes(view[:4])), "surrogatepass")
    except OSError as problem:
        raise _unreadable(path, where, problem) from problem
    except UnicodeDecodeError as problem:
        raise InputError(f"{where}: is not JSON ({problem})") from problem
    if _after(text, 0) == len(text):
        raise InputError(f"{where}: the file is empty ({len(text)} spaces); it needs to be JSON")
    return text


def _opened(path: Path, where: str) -> TextIO:
    """Returns a JSON file, opened for reading."""
    try:
        file = open(path, "rb")  # noqa: SIM115
        encoding = json.detect_encoding(file.read(4))
        file.seek(0)
    except OSError as problem:
        raise _unreadable(path, where, problem) from problem
    return TextIOWrapper(file, encoding, "surrogatepass", newline="")


def _unreadable(path: Path, where: str, problem: OSError) -> InputError:
    file_name = "" if where == str(path) else f": {path}"
    return InputError(f"{where}: cannot be read ({problem.strerror}){file_name}")


@contextmanager
def _as_input(where: str, path: Path | None = None, text: _Text | None = None) -> Iterator[None]:
    """Tells what is no JSON as a user's mistake.

    Args:
        where: the file, for sentences.
        path, text: of a file of which memory holds a piece; a fault's place is that in the file.
    """
    try:
        with garbage_kept():
            yield
    except InputError:
        raise
    except OSError as problem:
        raise _unreadable(path or Path(where), where, problem) from problem
    except (ValueError, RecursionError) as problem:
        told: Exception = problem
        if path is not None and text is not None and isinstance(problem, ValueError):
            whole = _text(path, where)  # which tells an empty file, and bytes that are no text
            if isinstance(problem, JSONDecodeError):
                told = JSONDecodeError(problem.msg, whole, text.dropped + problem.pos)
        raise InputError(f"{where}: is not JSON ({told})") from problem


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Lets nobody look for garbage: among many new objects it would be looked for again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
