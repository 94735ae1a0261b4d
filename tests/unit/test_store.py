import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from detmtl.silver import parts
from detmtl.silver.card import TeacherCard
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
    return sorted(encode(r) for r in store.records())


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
    (tmp_path / "store.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match=r"store\.json"):
        Store.open(tmp_path)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".ok"])
def test_truncated_anywhere_it_resumes_to_the_undisturbed_store(tmp_path, ending):
    whole = fill(tmp_path / "whole", range(12))
    expected, digest = canonical(whole), whole.digest()
    size = sorted(folder(tmp_path / "whole").glob(f"*{ending}"))[1].stat().st_size
    for keep in sorted({0, 1, size // 3, size // 2, size - 1}):
        path = tmp_path / f"cut{keep}"
        fill(path, range(12))
        victim = sorted(folder(path).glob(f"*{ending}"))[1]
        os.truncate(victim, keep)
        with pytest.raises(InputError, match=victim.name.removesuffix(ending)):
            Store.open(path)
        with pytest.warns(UserWarning, match="labelled again"):
            store = Store.create(path, CARD, 0.05)
        assert len(store) == 7
        again = fill(path, range(12))
        assert canonical(again) == expected and again.digest() == digest


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_killed_at_any_step_of_a_part_it_resumes(tmp_path, monkeypatch, call, at):
    whole = fill(tmp_path / "whole", range(12))
    path = tmp_path / "killed"
    store = Store.create(path, CARD, 0.05)
    writer = store.writer(part_pictures=5)
    real, calls = getattr(os, call), 0

    def dies(*args):
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise Killed
        return real(*args)

    monkeypatch.setattr(parts.os, call, dies)
    with pytest.raises(Killed):
        for n in range(12):
            writer.add(record(n))
    monkeypatch.undo()
    writer._lock.close()  # what the system does with a dead process's files
    again = fill(path, range(12))
    assert canonical(again) == canonical(whole) and again.digest() == whole.digest()
    names = [p.name for p in folder(path).iterdir()]
    assert not [n for n in names if n.endswith((".tmp", ".lock"))]
    assert len([n for n in names if n.endswith(".gz")]) == len([n for n in names if "ok" in n])


def test_two_writers_do_not_disturb_each_other(tmp_path):
    first = Store.create(tmp_path, CARD, 0.05).writer(rank=0, part_pictures=100)
    first.add(record(0))
    # The second clears up when it starts, while the first is between two parts.
    unfinished = folder(tmp_path) / f"part-{first._token}_000007.jsonl.gz"
    unfinished.write_bytes(b"not yet done")
    second = Store.create(tmp_path, CARD, 0.05).writer(rank=0)
    assert unfinished.exists()
    second.add(record(1))
    second.close()
    first.close()
    assert len(Store.open(tmp_path)) == 2
    Store.create(tmp_path, CARD, 0.05)
    assert not unfinished.exists()


def test_a_part_is_written_after_its_time(tmp_path):
    store = Store.create(tmp_path, CARD, 0.05)
    writer = store.writer(part_pictures=1000, part_seconds=0.0)
    writer.add(record(0))
    assert len(Store.open(tmp_path)) == 1
    writer.close()


def test_ok_files_hold_the_checksum(tmp_path):
    fill(tmp_path, range(5))
    ok = next(folder(tmp_path).glob("*.ok"))
    part = ok.with_name(ok.name.removesuffix(".ok") + ".jsonl.gz")
    about = json.loads(ok.read_text())
    assert about["sha256"] == hashlib.sha256(part.read_bytes()).hexdigest()
    assert about["pictures"] == len(gzip.decompress(part.read_bytes()).splitlines()) == 5


LABELLER = """
import sys; sys.path[:0] = [{tests!r}, {repository!r}]
from pathlib import Path
import test_store as t
store = t.Store.create(Path({path!r}), t.CARD, 0.05)
known = store.known()
writer = store.writer(part_pictures=2)
print("ready", flush=True)
n = 0
while True:
    if t.record(n).content_hash not in known:
        writer.add(t.record(n))
    n += 1
"""


def test_kill_9_loses_no_whole_part(tmp_path):
    tests = Path(__file__).parent
    code = LABELLER.format(
        tests=str(tests), repository=str(tests.parents[1]), path=str(tmp_path / "s")
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 10
    while len(list(folder(tmp_path / "s").glob("*.ok"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = len(Store.open(tmp_path / "s"))
    assert done >= 6
    again = fill(tmp_path / "s", range(done + 3))
    assert canonical(again) == canonical(fill(tmp_path / "whole", range(done + 3)))
    assert not list(folder(tmp_path / "s").glob("*.lock"))
