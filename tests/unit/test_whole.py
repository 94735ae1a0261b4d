"""A file is there whole or not at all."""

import json
import math

import pytest

from detmtl.structures.whole import whole, write_json, write_whole


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    for before in (None, "before"):
        if before:
            write_whole(path, before)
        with pytest.raises(KeyboardInterrupt), whole(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt
        assert (path.read_text() if path.exists() else None) == before
        assert [p.name for p in tmp_path.iterdir()] == ([path.name] if before else [])


def test_what_a_kill_left_is_written_over(tmp_path):
    path = tmp_path / "a.md"
    (tmp_path / "a.md.part").write_text("what a kill left, longer than the text")
    write_whole(path, "größer")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == "größer".encode()


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    values = {"a": 0.5, "b": math.nan, "c": math.inf, "d": -math.inf}
    write_json(tmp_path / "metrics.json", values)
    text = (tmp_path / "metrics.json").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert strict == {"a": 0.5, "b": None, "c": None, "d": None}
