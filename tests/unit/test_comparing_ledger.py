"""A second use of the same test pictures is noticed."""

import pytest

from detmtl.comparing.ledger import FILE, earlier_uses, record_use, refuse_unnoted
from detmtl.structures.errors import InputError


class Pictures:
    """As much of a `Source` as the ledger asks for."""

    def __init__(self, *hashes):
        self._hashes = list(hashes)

    def hashes(self):
        return self._hashes


def test_uses_by_other_experiments_before_this_one(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    same, other = Pictures("1", "2"), Pictures("3")
    record_use(a, same, "first")
    record_use(a, same, "first")
    assert len((tmp_path / FILE).read_text().split()) and earlier_uses(a, same, "first") == []
    record_use(b, Pictures("2", "1"), "second")  # the order of the pictures is no other set
    (use,) = earlier_uses(b, same, "second")
    assert (use.folder, use.experiment) == ("a", "first")
    assert earlier_uses(a, same, "first") == [], "the first use is not spoiled by the second"
    assert earlier_uses(b, other, "second") == []
    # not recorded yet, as in a report without runs
    assert len(earlier_uses(b, same, "third")) == 2


def test_a_torn_line_is_left_out_and_one_use_is_one_line(tmp_path):
    record_use(tmp_path / "a", Pictures("1"), "first")
    with (tmp_path / FILE).open("a") as file:
        file.write('{"test": "x", "exp')
    record_use(tmp_path / "a", Pictures("1"), "second")
    record_use(tmp_path / "a", Pictures("1"), "second")
    (use,) = earlier_uses(tmp_path / "a", Pictures("1"), "second")
    assert use.experiment == "first"
    lines = [x for x in (tmp_path / FILE).read_text().splitlines() if x]
    assert len(lines) == 3


def test_a_use_that_cannot_be_noted_is_refused_unless_runs_are_there_to_be_reported(tmp_path):
    out = tmp_path / "a"
    (tmp_path / FILE).mkdir()  # cannot be written, whoever runs this
    for refused in (lambda: record_use(out, Pictures("1"), "first"), lambda: refuse_unnoted(out)):
        with pytest.raises(InputError, match=rf"--out .*{FILE}.* cannot be written .*; choose"):
            refused()
    (out / "runs" / "key").mkdir(parents=True)
    refuse_unnoted(out)


def test_asking_notes_nothing(tmp_path):
    refuse_unnoted(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    record_use(tmp_path / "a", Pictures("1"), "first")
    refuse_unnoted(tmp_path / "b")
    assert len(earlier_uses(tmp_path / "b", Pictures("1"), "second")) == 1
