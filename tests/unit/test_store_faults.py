"""Whatever happens to a store's files: nothing is lost silently, and labelling again makes it whole."""

import errno
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
from test_store import CARD, canonical, fill, folder, other, record

from detmtl.silver import lock, parts
from detmtl.silver.store import Store
from detmtl.silver.writer import Writer
from detmtl.structures.errors import InputError

NUMBERS = range(12)


@pytest.fixture
def whole(tmp_path) -> Store:
    """An undisturbed store of three parts."""
    return fill(tmp_path / "whole", NUMBERS)


@pytest.fixture
def store(tmp_path, whole) -> Path:
    """A copy that may be spoiled."""
    shutil.copytree(tmp_path / "whole", tmp_path / "spoiled")
    return tmp_path / "spoiled"


def second(path: Path, ending: str) -> Path:
    """Returns the second part, or its .ok."""
    return sorted(folder(path).glob(f"part-*{ending}"))[1]


def entries(path: Path) -> list[str]:
    return sorted(file.name for file in folder(path).iterdir())


def die(writer: Writer) -> None:
    """Does with its files what the system does with those of a dead process."""
    writer._lock._file.close()


def name_of(writer: Writer) -> str:
    """Returns what stands in the names of its files."""
    return writer._lock.name


def assert_made_whole(path: Path, whole: Store) -> None:
    """Labels again what is missing, and compares with the undisturbed store."""
    again = fill(path, NUMBERS)
    assert canonical(again) == canonical(whole) and again.digest() == whole.digest()


def assert_told_and_made_whole(path: Path, whole: Store, damaged: Path, lost: int = 5) -> None:
    """The damaged part is named by both ways to open a store, and only its pictures are lost."""
    stem = damaged.name.split(".")[0]
    with pytest.raises(InputError, match=stem):
        Store.open(path)
    with pytest.warns(UserWarning, match=f"{stem}.*labelled again"):
        continued = Store.create(path, CARD, 0.05)
    assert len(continued) == len(NUMBERS) - lost
    assert_made_whole(path, whole)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".ok"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_truncated(store, whole, ending, keep):
    victim = second(store, ending)
    os.truncate(victim, int(keep * victim.stat().st_size))
    assert_told_and_made_whole(store, whole, victim)


@pytest.mark.parametrize("at", [0, 10, 200, -1])
def test_a_flipped_bit_of_a_part(store, whole, at):
    victim = second(store, ".jsonl.gz")
    content = bytearray(victim.read_bytes())
    content[at] ^= 1
    victim.write_bytes(content)
    assert_told_and_made_whole(store, whole, victim)


def test_a_flipped_bit_anywhere_in_an_ok_is_seen_or_harmless(store, whole):
    victim = second(store, ".ok")
    content, digest = victim.read_bytes(), whole.digest()
    (part,) = (p for p in whole._parts if p.path.name.startswith(victim.stem))
    seen = 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 4
        try:
            found = parts._described(part.path, bytes(flipped))
        except (ValueError, KeyError, TypeError, AttributeError):
            seen += 1
        else:
            assert found == part, f"byte {at}"
    assert seen > 0.9 * len(content)
    victim.write_bytes(content.replace(b"sha256", b"sha257"))
    assert_told_and_made_whole(store, whole, victim)
    assert Store.open(store).digest() == digest


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'"check"', b"{}", b"\xff", b"null"])
def test_an_ok_that_is_something_else(store, whole, content):
    victim = second(store, ".ok")
    victim.write_bytes(content)
    assert_told_and_made_whole(store, whole, victim)


def test_a_part_that_is_gone(store, whole):
    victim = second(store, ".jsonl.gz")
    victim.unlink()
    assert_told_and_made_whole(store, whole, victim)


def test_power_lost_between_a_part_and_its_ok(store, whole):
    victim = second(store, ".ok")
    victim.unlink()  # the writer's lock is of a system that was started before
    assert len(Store.open(store)) == 7
    assert_made_whole(store, whole)


def test_a_part_that_changes_while_the_store_is_open(store, whole):
    opened = Store.open(store)
    victim = second(store, ".jsonl.gz")
    os.truncate(victim, 100)
    with pytest.raises(InputError, match=f"{victim.name}: was changed"):
        list(opened.records())
    victim.unlink()
    with pytest.raises(InputError, match=f"{victim.name}: cannot be read"):
        list(opened.canonical())


def test_a_part_that_may_not_be_read_is_no_damage(store, monkeypatch):
    def forbidden(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    forbidden.__wrapped__ = forbidden
    monkeypatch.setattr(parts, "_sha256", forbidden)
    before = entries(store)
    for work in (Store.open, lambda path: Store.create(path, CARD, 0.05)):
        with pytest.raises(InputError, match="cannot be read"):
            work(store)
    assert entries(store) == before


def test_a_part_that_the_disk_cannot_read_is_labelled_again(store, whole, monkeypatch):
    real, victim = parts._sha256.__wrapped__, second(store, ".jsonl.gz")

    def broken(path, *about):
        if path == victim:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *about)

    broken.__wrapped__ = broken
    monkeypatch.setattr(parts, "_sha256", broken)
    assert_told_and_made_whole(store, whole, victim)


def test_a_part_is_hashed_once_in_a_process_unless_it_changes(store):
    for file in folder(store).iterdir():
        os.utime(file, (1e9, 1e9))
    parts._sha256.cache_clear()
    Store.open(store)
    Store.open(store)
    assert (parts._sha256.cache_info().misses, parts._sha256.cache_info().hits) == (3, 3)
    victim = second(store, ".jsonl.gz")
    victim.write_bytes(b"x" * victim.stat().st_size)
    os.utime(victim, (1e9 + 60, 1e9 + 60))
    with pytest.raises(InputError, match=victim.name):
        Store.open(store)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_killed_at_any_step_of_a_part(tmp_path, whole, monkeypatch, call, at):
    path = tmp_path / "killed"
    writer = Store.create(path, CARD, 0.05).writer(part_pictures=5)
    real, calls = getattr(os, call), 0

    def dies(*args):
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise Killed
        return real(*args)

    monkeypatch.setattr(parts.os, call, dies)
    with pytest.raises(Killed):
        for n in NUMBERS:
            writer.add(record(n))
    monkeypatch.undo()
    die(writer)
    assert_made_whole(path, whole)
    names = entries(path)
    assert not [n for n in names if n.endswith((".tmp", ".lock"))]
    assert len([n for n in names if n.endswith(".gz")]) == len([n for n in names if "ok" in n])


def test_killed_while_the_store_is_made(tmp_path, whole, monkeypatch):
    path = tmp_path / "killed"
    real, at = parts.atomic_write, 0

    def dies(file, content, replace=True):
        if at == 0:
            file.with_name(f"{file.name}.0123abcd.tmp").write_bytes(content[:7])
            raise Killed
        real(file, content, replace)

    from detmtl.silver import store_head

    monkeypatch.setattr(store_head, "atomic_write", dies)
    with pytest.raises(Killed):
        Store.create(path, CARD, 0.05)
    assert list(path.iterdir())
    monkeypatch.undo()
    assert_made_whole(path, whole)
    assert not list(path.rglob("*.tmp"))


def test_two_that_make_one_store_at_once(tmp_path):
    """Of different teachers with one name one wins; every other one is told."""
    cards = [other("t", weights_sha256=str(i % 2) * 64) for i in range(8)]
    for trial in range(5):
        barrier, told, made = threading.Barrier(len(cards)), [], []

        def begin(card, path=tmp_path / str(trial), barrier=barrier, told=told, made=made):
            barrier.wait()
            try:
                made.append(Store.create(path, card, 0.05).card)
            except InputError as error:
                told.append(str(error))

        threads = [threading.Thread(target=begin, args=(card,)) for card in cards]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == len(told) == 4 and len({c.weights_sha256 for c in made}) == 1
        assert all("two teachers need two names" in text for text in told)
        assert Store.open(tmp_path / str(trial)).card == made[0]
        assert not list((tmp_path / str(trial)).rglob("*.tmp"))


def refuse_to_write(monkeypatch):
    real = Path.open

    def open_(path, mode="r", *args, **kwargs):
        if set(mode) & set("wxa+"):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)


def test_a_read_only_store_can_be_read(store, whole, monkeypatch):
    before = {f: f.stat().st_mtime_ns for f in store.rglob("*")}
    refuse_to_write(monkeypatch)
    opened = Store.open(store)
    assert canonical(opened) == canonical(whole) and opened.digest() == whole.digest()
    assert {f: f.stat().st_mtime_ns for f in store.rglob("*")} == before


def test_a_read_only_folder_is_told(store, tmp_path, monkeypatch):
    refuse_to_write(monkeypatch)
    with pytest.raises(InputError, match=r"spoiled.*cannot be written \(Read-only file system\)"):
        Store.create(store, CARD, 0.05).writer()
    with pytest.raises(InputError, match=r"new: cannot be written"):
        Store.create(tmp_path / "new", CARD, 0.05)


def test_a_file_where_the_store_should_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be written"):
        Store.create(tmp_path / "file", CARD, 0.05)


@pytest.mark.parametrize("at", range(4))
def test_a_full_disk_is_told_keeps_what_is_finished_and_gives_its_space_back(
    tmp_path, whole, monkeypatch, at
):
    path = tmp_path / "full"
    real, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls > 4 + at:  # the first part is written in four
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with Store.create(path, CARD, 0.05).writer(part_pictures=5) as writer:
        for n in range(5):
            writer.add(record(n))
        monkeypatch.setattr(parts.os, "fsync", full)
        calls = 4
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            for n in range(5, 12):
                writer.add(record(n))
        assert len(Store.open(path)) == 5
        assert not [n for n in entries(path) if n.endswith(".tmp")]
        assert len([n for n in entries(path) if n.endswith(".gz")]) == 1
        monkeypatch.undo()  # somebody makes room
    assert len(Store.open(path)) == 10
    assert_made_whole(path, whole)


def test_a_write_that_the_system_cuts_short(tmp_path, whole):
    path = tmp_path / "cut"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = Store.create(path, CARD, 0.05).writer(part_pictures=12)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(InputError, match=r"cannot be written \(File too large\)"):
            for n in NUMBERS:
                writer.add(record(n))
        with pytest.raises(InputError, match="File too large"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(path) == ["teacher.json"]
    assert_made_whole(path, whole)


def elsewhere(monkeypatch) -> None:
    """What follows happens on another machine."""
    monkeypatch.setattr(lock, "place_of", lambda folder: "0ther000")


def test_a_living_writer_is_left_alone(tmp_path):
    with Store.create(tmp_path, CARD, 0.05).writer(rank=0, part_pictures=100) as first:
        first.add(record(0))
        # The second clears up when it starts, while the first is between two parts.
        waiting = folder(tmp_path) / f"part-{name_of(first)}_000007.jsonl.gz"
        waiting.write_bytes(b"not yet done")
        with Store.create(tmp_path, CARD, 0.05).writer(rank=0) as other_writer:
            assert waiting.exists()
            other_writer.add(record(1))
    assert len(Store.open(tmp_path)) == 2


def test_what_a_dead_writer_left_is_cleared_away_at_once(tmp_path):
    writer = Store.create(tmp_path, CARD, 0.05).writer()
    stem = f"part-{name_of(writer)}_000000"
    for ending in (".jsonl.gz", ".ok.12345678.tmp", ".jsonl.gz.12345678.tmp"):
        (folder(tmp_path) / (stem + ending)).write_bytes(b"x")
    die(writer)
    Store.create(tmp_path, CARD, 0.05)
    assert entries(tmp_path) == ["teacher.json"]


def test_a_writer_that_begins_a_part_and_dies_while_another_clears_up(tmp_path):
    """The folder was listed before its last files came: they go with the lock, not after it."""
    writer = Store.create(tmp_path, CARD, 0.05).writer()
    listed = [folder(tmp_path) / f"writer-{name_of(writer)}.lock"]
    late = folder(tmp_path) / f"part-{name_of(writer)}_000000.jsonl.gz.0123abcd.tmp"
    late.write_bytes(b"x")
    die(writer)
    lock._clear(folder(tmp_path), name_of(writer), listed)
    assert entries(tmp_path) == ["teacher.json"]


@pytest.mark.parametrize("locks", ["of one machine", "none"])
def test_a_writer_of_another_machine_is_left_alone_for_a_day(tmp_path, monkeypatch, locks):
    """Machines do not see each other's locks: each finds those of the other free, or has none."""
    if locks == "none":

        def unsupported(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with monkeypatch.context() as there:
        elsewhere(there)
        writer = Store.create(tmp_path, CARD, 0.05).writer(part_pictures=100)
    writer.add(record(0))
    # What a machine that does not see the lock sees: it is free.
    die(writer)
    stem = f"part-{name_of(writer)}_"
    names = [
        f"writer-{name_of(writer)}.lock",
        stem + "000007.jsonl.gz",
        stem + "000008.ok.ab.tmp",
    ]
    for name in names[1:]:
        (folder(tmp_path) / name).write_bytes(b"not yet done")
    Store.create(tmp_path, CARD, 0.05)
    assert set(names) < set(entries(tmp_path))
    writer.flush()  # as if nothing had been

    for name in entries(tmp_path):
        os.utime(folder(tmp_path) / name, (time.time() - 23 * 3600,) * 2)
    Store.create(tmp_path, CARD, 0.05)
    assert set(names) < set(entries(tmp_path))
    for name in entries(tmp_path):
        os.utime(folder(tmp_path) / name, (time.time() - 25 * 3600,) * 2)
    assert len(Store.create(tmp_path, CARD, 0.05)) == 1
    assert not set(names) & set(entries(tmp_path))


def test_it_lives_as_long_as_any_of_its_files_is_young(tmp_path, monkeypatch):
    with monkeypatch.context() as there:
        elsewhere(there)
        writer = Store.create(tmp_path, CARD, 0.05).writer(part_pictures=1)
    waiting = folder(tmp_path) / f"part-{name_of(writer)}_000009.jsonl.gz"
    waiting.write_bytes(b"not yet done")
    for name in entries(tmp_path):
        os.utime(folder(tmp_path) / name, (1e9, 1e9))
    writer.add(record(0))
    Store.create(tmp_path, CARD, 0.05)
    assert waiting.exists()
    writer.close()


def test_ages_are_those_of_the_folders_clock(tmp_path, monkeypatch):
    with monkeypatch.context() as there:
        elsewhere(there)
        writer = Store.create(tmp_path, CARD, 0.05).writer()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30 * 86400)  # this machine's clock is wrong
    Store.create(tmp_path, CARD, 0.05)
    assert f"writer-{name_of(writer)}.lock" in entries(tmp_path)
    writer.close()


def test_leftovers_that_may_not_be_deleted_stay(tmp_path, monkeypatch):
    writer = Store.create(tmp_path, CARD, 0.05).writer()
    die(writer)
    before = entries(tmp_path)

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", forbidden)
    assert len(Store.create(tmp_path, CARD, 0.05)) == 0
    assert entries(tmp_path) == before


def test_the_place_is_the_mounted_file_system_on_the_running_system(tmp_path, monkeypatch):
    here = lock.place_of(tmp_path)
    assert lock.place_of(tmp_path.parent) == here and len(here) == 8
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path: "rebooted" if path.name == "boot_id" else real(path)
    )
    assert lock.place_of(tmp_path) != here


def test_locks_that_are_not_supported_do_not_hinder(tmp_path, whole, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    assert_made_whole(tmp_path / "new", whole)
    assert not [n for n in entries(tmp_path / "new") if "lock" in n and n.endswith(".lock")]


def test_no_hard_links_do_not_hinder(tmp_path, whole, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    assert_made_whole(tmp_path / "new", whole)
    assert not list((tmp_path / "new").rglob("*.tmp"))
    assert json.loads((tmp_path / "new" / "store.json").read_text())["schema"] == 2
