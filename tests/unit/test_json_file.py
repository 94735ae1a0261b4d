"""JSON files: a long list is read block by block, and everything else as `json` reads it."""

import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detmtl.data import json_file
from detmtl.data.json_file import holds_list, read_in_blocks, read_json
from detmtl.structures.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["info", "images", "x", ""]), VALUES, max_size=4)


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


@given(
    OBJECTS,
    st.lists(VALUES, max_size=9),
    st.integers(0, 4),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_blocks_hold_what_json_reads(
    tmp_path_factory, others, rows, place, indent, ascii, size, piece
):
    members = list(others.items())
    members.insert(min(place, len(members)), ("rows", rows))
    text = json.dumps(dict(members), indent=indent, ensure_ascii=ascii)
    path = written(tmp_path_factory.mktemp("json") / "a.json", text)
    blocks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "BLOCK", size)
        patch.setattr(json_file, "PIECE", piece)
        rest = read_in_blocks(path, "a.json", "rows", blocks.append)
    assert [row for block in blocks for row in block] == rows
    assert all(0 < len(block) <= size for block in blocks)
    assert rest == json.loads(text) | {"rows": []}
    assert list(rest) == [name for name, _ in members]  # the order stays


@pytest.mark.parametrize("text", ["[]", " [1, {}, 12.5e3]\n", "[[1, 2], 3 , true]"])
def test_a_list_that_is_the_whole_file_may_come_in_blocks_too(folder, text, monkeypatch):
    monkeypatch.setattr(json_file, "BLOCK", 2)
    monkeypatch.setattr(json_file, "PIECE", 1)
    path, blocks = written(folder / "a.json", text), []
    assert holds_list(path, "a.json")
    assert read_in_blocks(path, "a.json", "rows", blocks.append, bare=True) == []
    assert [row for block in blocks for row in block] == json.loads(text)
    assert max(map(len, blocks), default=0) <= 2
    assert not holds_list(written(folder / "b.json", '\n{"rows": [1]}'), "b.json")


def test_neither_the_text_nor_the_entries_are_ever_in_memory_together(folder):
    path = written(folder / "a.json", json.dumps([{"n": i, "of": "x" * 90} for i in range(60_000)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "BLOCK", 1000)
        patch.setattr(json_file, "PIECE", 1 << 16)
        tracemalloc.start()
        try:
            read_in_blocks(path, "a.json", "rows", lambda block: None, bare=True)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert path.stat().st_size > 6e6 and peak < 2e6


@pytest.mark.parametrize(
    "text", ['{"rows": 3}', '{"rows": {"a": [1]}}', "[1, 2]", "7", '{"a": {"rows": [1]}}', "{}"]
)
def test_what_is_no_list_of_the_object_itself_stays(folder, text):
    blocks = []
    found = read_in_blocks(written(folder / "a.json", text), "a.json", "rows", blocks.append)
    assert found == json.loads(text) and not blocks


@pytest.mark.parametrize("piece", [1, 5, 1000])
@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [1, 2',
        '{"x": 1,\n "rows": [1,\n {"a": tru}]}',
        '[1, 2, "a]',
        '{"rows": [1 2]}',
        '{"rows": [1,]}',
        '{"rows": [1]',
        '{"rows": [1]} x',
        '{"rows": [1],}',
        '{"rows" [1]}',
        "{rows: [1]}",
        '{"rows": [1], "a": }',
        '{"rows": [{"a": 1}, {"a"}]}',
        "{",
    ],
)
def test_what_json_refuses_is_refused(folder, text, piece, monkeypatch):
    monkeypatch.setattr(json_file, "PIECE", piece)
    with pytest.raises(ValueError) as theirs:
        json.loads(text)
    with pytest.raises(InputError, match=r"a\.json: is not JSON \(.*char \d+") as ours:
        read_in_blocks(
            written(folder / "a.json", text), "a.json", "rows", lambda block: None, bare=True
        )
    place = re.compile(r"line \d+ column \d+ \(char \d+\)")
    assert place.findall(str(ours.value)) == place.findall(str(theirs.value))


def test_two_lists_of_one_name_are_refused(folder):
    path = written(folder / "a.json", '{"rows": [1], "rows": [2]}')
    with pytest.raises(InputError, match=r"a.json: has 'rows' twice"):
        read_in_blocks(path, "a.json", "rows", lambda block: None)


def test_a_mistake_in_taking_is_none_of_the_file(folder):
    def take(block):
        raise ValueError("zip() argument 2 is shorter")

    path = written(folder / "a.json", '{"rows": [1]}')
    with pytest.raises(ValueError, match="zip") as caught:
        read_in_blocks(path, "a.json", "rows", take)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("read", [read_json, lambda p, w: read_in_blocks(p, w, "rows", list)])
def test_files_that_cannot_be_read(folder, read):
    with pytest.raises(InputError, match=r"a: cannot be read .No such file"):
        read(folder / "none.json", "a")
    with pytest.raises(InputError, match=r"a: the file is empty .0 bytes"):
        read(written(folder / "empty.json", ""), "a")
    with pytest.raises(InputError, match=r"a: the file is empty .2 spaces"):
        read(written(folder / "spaces.json", " \n"), "a")
    (folder / "bytes.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"a: is not JSON .*0xff"):
        read(folder / "bytes.json", "a")
    with pytest.raises(InputError, match=r"a: is not JSON"):
        read(written(folder / "deep.json", "[" * 200_000), "a")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_any_encoding_of_json(folder, encoding):
    path = written(folder / "a.json", '{"rows": ["ä", "猫"]}', encoding)
    assert read_json(path, "a") == {"rows": ["ä", "猫"]}
    rows = []
    assert read_in_blocks(path, "a", "rows", rows.extend) == {"rows": []}
    assert rows == ["ä", "猫"]
