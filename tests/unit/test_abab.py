"""Ways of a process of its own are timed like those of this one."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from abab import Way, elsewhere, in_turn


def writer(path: Path) -> Way:
    def way() -> None:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")

    return way


def broken(path: Path) -> Way:
    raise MemoryError(path)


def quitter() -> Way:
    return lambda: os._exit(3)


def test_turns_alternate_between_two_processes(tmp_path):
    path = tmp_path / "turns"
    with elsewhere(writer, path) as theirs:
        seconds = in_turn({"theirs": theirs, "mine": writer(path)}, rounds=3, warmup=1)
    ids = [int(line) for line in path.read_text().splitlines()]
    assert ids[1::2] == [os.getpid()] * 4
    assert len({*ids[::2]}) == 1 and ids[0] != os.getpid()
    assert {name: len(x) for name, x in seconds.items()} == {"theirs": 3, "mine": 3}


@pytest.mark.parametrize(("make", "arguments", "status"), [(broken, ("p",), 1), (quitter, (), 3)])
def test_a_process_that_ends_is_told_with_its_status(make, arguments, status):
    with (
        pytest.raises(SystemExit, match=f"{make.__name__}.* ended with status {status}"),
        elsewhere(make, *arguments) as way,
    ):
        way()
