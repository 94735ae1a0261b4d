"""JSON files: a long list is read block by block, and everything else as `json` reads it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detmtl.data import json_file
from detmtl.data.json_file import read_in_blocks, read_json
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
)
def test_blocks_hold_what_json_reads(tmp_path_factory, others, rows, place, indent, ascii, size):
    members = list(others.items())
    members.insert(min(place, len(members)), ("rows", rows))
    text = json.dumps(dict(members), indent=indent, ensure_ascii=ascii)
    path = written(tmp_path_factory.mktemp("json") / "a.json", text)
    blocks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "BLOCK", size)
        rest = read_in_blocks(path, "a.json", "rows", blocks.append)
    assert [row for block in blocks for row in block] == rows
    assert all(0 < len(block) <= size for block in blocks)
    assert rest == json.loads(text) | {"rows": []}
    assert list(rest) == [name for name, _ in members]  # the order stays


@pytest.mark.parametrize(
    "text", ['{"rows": 3}', '{"rows": {"a": [1]}}', "[1, 2]", "7", '{"a": {"rows": [1]}}', "{}"]
)
def test_what_is_no_list_of_the_object_itself_stays(folder, text):
    blocks = []
    found = read_in_blocks(written(folder / "a.json", text), "a.json", "rows", blocks.append)
    assert found == json.loads(text) and not blocks


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [1, 2',
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
def test_what_json_refuses_is_refused(folder, text):
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(InputError, match=r"a\.json: is not JSON \(.*char \d+"):
        read_in_blocks(written(folder / "a.json", text), "a.json", "rows", lambda block: None)


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
