import gzip
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from detmtl.silver import writer as writer_module
from detmtl.silver.card import TeacherCard
from detmtl.silver.map_record import MapRecord
from detmtl.silver.pictures import Pictures
from detmtl.silver.record import Record, decode, encode
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError

CARD = TeacherCard(name="t", weights_sha256="0" * 64, classes=("cat", "dog"), preprocessing="none")


def record(n: int, file: str = "") -> Record:
    rng = np.random.default_rng(n)
    count = n % 4  # every fourth picture has no boxes
    corner = rng.uniform(0, 50, (count, 2))
    return Record(
        hashlib.sha256(str(n).encode()).hexdigest(),
        100,
        120,
        np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1),
        rng.integers(0, 2, count),
        -np.sort(-rng.uniform(0.05, 1, count)),
        file or f"{n}.jpg",
    )


def fill(path: Path, numbers, part_pictures: int = 5) -> Store:
    store = Store.create(path, CARD, 0.05)
    with store.writer(part_pictures=part_pictures, part_seconds=1e9) as writer:
        for n in numbers:
            if record(n).content_hash not in store.known():
                writer.add(record(n))
    return Store.open(path)


def canonical(store: Store) -> list[bytes]:
    return list(store.canonical())


def folder(path: Path) -> Path:
    return path / "raw" / CARD.name


def test_records_return_as_written_and_empty_ones_too(tmp_path):
    store = fill(tmp_path, range(13))
    found = {r.content_hash: r for r in store.records()}
    assert len(store) == len(found) == 13
    for n in range(13):
        wrote, read = record(n), found[record(n).content_hash]
        np.testing.assert_allclose(read.boxes, wrote.boxes, atol=0.0051)
        np.testing.assert_allclose(read.scores, wrote.scores, atol=5.1e-6)
        np.testing.assert_array_equal(read.classes, wrote.classes)
        assert (read.height, read.width, read.file) == (100, 120, f"{n}.jpg")
    assert found[record(4).content_hash].boxes.shape == (0, 4)


def test_a_store_is_shown_in_a_few_lines_however_many_pictures_it_has(tmp_path):
    store = fill(tmp_path, range(200))
    assert len(store) == 200 and len(repr(store)) < 1000 + len(str(tmp_path))


def test_a_line_survives_decoding_and_encoding():
    for n in range(8):
        assert encode(decode(encode(record(n)))) == encode(record(n))


def test_equal_records_give_equal_bytes(tmp_path, monkeypatch):
    fill(tmp_path / "a", range(3))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    fill(tmp_path / "b", range(3))
    a, b = (next(folder(tmp_path / x).glob("*.gz")).read_bytes() for x in "ab")
    assert a == b


def test_known_also_for_hashes_that_end_in_zeros(tmp_path):
    store = Store.create(tmp_path, CARD, 0.05)
    zeros = Record("ab" + "00" * 31, 1, 1, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    with store.writer() as writer:
        writer.add(zeros)
    known = Store.open(tmp_path).known()
    asked = ["ab" + "00" * 31, "ab" + "00" * 30 + "01", "00" * 32]
    assert known.mask(asked).tolist() == [True, False, False]
    assert "ab" + "00" * 31 in known and "ff" * 32 not in known
    assert known.mask([]).shape == (0,)


def test_the_digest_does_not_depend_on_parts_order_or_file_names(tmp_path):
    a = fill(tmp_path / "a", range(12), part_pictures=5)
    store = Store.create(tmp_path / "b", CARD, 0.05)
    with store.writer(part_pictures=1) as writer:
        for n in reversed(range(12)):
            writer.add(record(n, file="elsewhere"))
    assert Store.open(tmp_path / "b").digest() == a.digest()
    assert fill(tmp_path / "c", range(11)).digest() != a.digest()


def test_a_picture_labelled_twice_counts_once(tmp_path):
    once = fill(tmp_path / "a", range(6))
    store = Store.create(tmp_path / "b", CARD, 0.05)
    for numbers in (range(4), range(2, 6)):
        with store.writer() as writer:
            for n in numbers:
                writer.add(record(n))
    twice = Store.open(tmp_path / "b")
    assert canonical(twice) == canonical(once)
    assert len(twice) == 6 and twice.digest() == once.digest()


def test_another_teacher_or_floor_is_refused(tmp_path):
    fill(tmp_path, range(2))
    Store.create(tmp_path, CARD.model_copy(update={"versions": {"x": "2"}}), 0.05)
    with pytest.raises(InputError, match="weights_sha256"):
        Store.create(tmp_path, CARD.model_copy(update={"weights_sha256": "1" * 64}), 0.05)
    with pytest.raises(InputError, match=r"score of 0\.05"):
        Store.create(tmp_path, CARD, 0.1)


def test_no_store_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        Store.open(tmp_path / "nothing")
    for work in (Store.open, Store.teachers, lambda path: Store.create(path, CARD, 0.05)):
        (tmp_path / "store.json").write_text('{"schema": 1, "floor": 0.05, "teacher": {}}')
        with pytest.raises(InputError, match=r"store\.json: schema 1; this version reads schema 2"):
            work(tmp_path)
        (tmp_path / "store.json").write_text('{"sche')
        with pytest.raises(InputError, match=r"store\.json: not readable"):
            work(tmp_path)


def test_a_part_is_written_after_its_time(tmp_path):
    store = Store.create(tmp_path, CARD, 0.05)
    with store.writer(part_pictures=1000, part_seconds=0.0) as writer:
        writer.add(record(0))
        assert len(Store.open(tmp_path)) == 1


def test_a_part_is_written_before_its_lines_need_much_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "PART_BYTES", 3 * len(encode(record(3))))
    store = Store.create(tmp_path, CARD, 0.05)
    with store.writer() as writer:
        for n in range(3, 40, 4):  # of three boxes
            writer.add(record(n))
        assert len(Store.open(tmp_path)) >= 6
    assert len(Store.open(tmp_path)) == 10


def test_ok_files_hold_the_checksum(tmp_path):
    fill(tmp_path, range(5))
    ok = next(folder(tmp_path).glob("*.ok"))
    part = ok.with_name(ok.name.removesuffix(".ok") + ".jsonl.gz")
    about = json.loads(ok.read_text())
    assert about["sha256"] == hashlib.sha256(part.read_bytes()).hexdigest()
    assert about["pictures"] == len(gzip.decompress(part.read_bytes()).splitlines()) == 5


def other(name: str, **fields) -> TeacherCard:
    return CARD.model_copy(update={"name": name, **fields})


def test_several_teachers_share_a_folder(tmp_path):
    first = fill(tmp_path, range(6))
    store = Store.create(tmp_path, other("second", weights_sha256="1" * 64), 0.2)
    with store.writer() as writer:
        writer.add(record(9))
    assert Store.teachers(tmp_path) == ["second", "t"]
    with pytest.raises(InputError, match="holds labels of second, t; say whose"):
        Store.open(tmp_path)
    with pytest.raises(InputError, match="no labels of a teacher 'third', but of second, t"):
        Store.open(tmp_path, "third")
    assert [len(Store.open(tmp_path, name)) for name in Store.teachers(tmp_path)] == [1, 6]
    again = Store.open(tmp_path, "t")
    assert again.digest() == first.digest() and again.floor == 0.05
    assert Store.open(tmp_path, "second").floor == 0.2
    pictures = Pictures.of_store(again)
    assert len(pictures) == 6 and pictures.names == [
        f"{n}.jpg" for n in sorted(range(6), key=lambda n: record(n).content_hash)
    ]


def test_a_name_of_two_pictures_is_refused(tmp_path):
    store = Store.create(tmp_path, CARD, 0.05)
    with store.writer() as writer:
        for n in (1, 2, 3):
            writer.add(record(n, "0001.jpg" if n < 3 else "0003.jpg"))
    with pytest.raises(InputError, match=r"1 names for two pictures each, as 0001\.jpg"):
        Pictures.of_store(Store.open(tmp_path))


def test_no_file_of_a_store_is_changed_by_a_second_teacher_or_a_second_run(tmp_path):
    fill(tmp_path, range(6))
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in tmp_path.rglob("*.*")}
    store = Store.create(tmp_path, other("second"), 0.2)
    with store.writer() as writer:
        writer.add(record(9))
    with Store.create(tmp_path, CARD, 0.05).writer() as writer:
        writer.add(record(6))
    for file, (content, changed) in before.items():
        assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, changed)


def test_a_store_without_labels_says_so(tmp_path):
    fill(tmp_path, range(2))
    for file in sorted((tmp_path / "raw").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert Store.teachers(tmp_path) == []
    with pytest.raises(InputError, match="no teacher's labels yet"):
        Store.open(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "a:b"])
def test_a_teacher_whose_name_names_no_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot name a folder"):
        Store.create(tmp_path, other(name), 0.05)
    assert not list(tmp_path.iterdir())


def test_labels_without_a_card_are_not_taken_for_anybodys(tmp_path):
    fill(tmp_path, range(2))
    (folder(tmp_path) / "teacher.json").unlink()
    for work in (Store.open, lambda path: Store.create(path, CARD, 0.05)):
        with pytest.raises(InputError, match=r"not the teacher\.json that says whose"):
            work(tmp_path)


def test_parts_of_the_same_teacher_may_be_copied_together_others_are_refused(tmp_path):
    fill(tmp_path / "a", range(5))
    fill(tmp_path / "b", range(3, 9))
    for file in folder(tmp_path / "b").glob("part-*"):
        (folder(tmp_path / "a") / file.name).write_bytes(file.read_bytes())
    merged = Store.open(tmp_path / "a")
    assert canonical(merged) == canonical(fill(tmp_path / "c", range(9)))
    Store.create(tmp_path / "d", other("t", preprocessing="resized"), 0.05)
    for file in folder(tmp_path / "b").glob("part-*"):
        (folder(tmp_path / "d") / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="was written by another teacher"):
        Store.open(tmp_path / "d")


def test_canonical_order_does_not_depend_on_how_many_lines_are_in_memory(tmp_path):
    store = fill(tmp_path, range(23), part_pictures=4)
    expected = sorted(encode(record(n)) for n in range(23))
    assert list(store.canonical()) == expected
    assert list(store.canonical(at_once=5)) == expected


def test_heads_are_the_pictures_without_their_labels(tmp_path):
    store = Store.create(tmp_path, CARD, 0.05)
    name = 'a "b",\\ ,"file":"c".jpg'
    with store.writer() as writer:
        writer.add(record(3, file=name))
    assert [tuple(h) for h in Store.open(tmp_path).heads()] == [
        (record(3).content_hash, 100, 120, name)
    ]


def test_who_needs_boxes_is_told_that_a_store_holds_maps(tmp_path):
    store = Store.create(tmp_path, other("m", task="maps"), 0.0)
    with store.writer() as writer:
        writer.add(MapRecord("ab" * 32, 2, 3, np.arange(6, dtype=np.uint8).reshape(2, 3)))
    store = Store.open(tmp_path)
    (found,) = store.records(MapRecord)
    assert found.classes.tolist() == [[0, 1, 2], [3, 4, 5]] and found.confidence is None
    with pytest.raises(InputError, match="teacher 'm' writes maps; boxes are needed"):
        store.records(Record)


def test_identity_does_not_change_when_cards_gain_fields():
    assert "task" not in CARD.identity() and other("t", task="maps").identity()["task"] == "maps"
