"""Parts of a source by content hash."""

import hashlib

import pytest
from pydantic import ValidationError

from detmtl.data.subset import Subset
from detmtl.structures.errors import InputError

HASHES = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(400)]
PARTS = [(0.0, 0.6), (0.6, 0.8), (0.8, 1.0)]


def picked(hashes=HASHES, **settings):
    return {hashes[i] for i in Subset(**settings).pick(hashes, "source")}


def test_parts_hold_every_picture_once_in_about_their_shares():
    parts = [picked(part=part, seed=3) for part in PARTS]
    assert set.union(*parts) == set(HASHES) and sum(map(len, parts)) == len(HASHES)
    for part, (low, high) in zip(parts, PARTS, strict=True):
        assert abs(len(part) - (high - low) * 400) < 40
    assert picked(part=PARTS[1], seed=4) != parts[1]


def test_a_pictures_part_does_not_depend_on_other_pictures():
    few = HASHES[::7]
    for part in PARTS:
        assert picked(few, part=part) == picked(part=part) & set(few)


def test_a_count_and_its_rest_lie_within_the_part():
    train = picked(part=(0, 0.6))
    eight, rest = picked(part=(0, 0.6), count=8), picked(part=(0, 0.6), count=8, rest=True)
    assert len(eight) == 8 and eight | rest == train and not eight & rest
    assert eight < picked(part=(0, 0.6), count=16)
    assert len(picked(part=(0, 0.6), share=0.5)) == round(len(train) / 2)


@pytest.mark.parametrize(
    "other",
    [
        {"share": 0.2},
        {"part": (0.8, 1.0)},
        {"part": (0.0, 0.5), "share": 0.2},
        {"count": 40, "of": Subset(share=0.2)},
        {"share": 0.8, "rest": True},
    ],
)
def test_without_a_part_is_all_else(other):
    rest = picked(without=Subset(**other))
    assert rest | picked(**other) == set(HASHES) and not rest & picked(**other)
    own = Subset(share=0.5, seed=7)
    inner = picked(share=0.5, seed=7)
    within = picked(without=Subset(**other), of=own)
    taken = Subset(**other).pick(sorted(inner, key=HASHES.index), "source")
    assert within == inner - {sorted(inner, key=HASHES.index)[i] for i in taken}
    few = picked(without=Subset(**other), count=5)
    assert len(few) == 5 and few < rest
    with pytest.raises(InputError, match="leaves none of the 0 of 400 pictures"):
        Subset(without=Subset(share=1.0)).pick(HASHES, "source")


def test_mistakes():
    with pytest.raises(
        InputError, match=r"count is 300, but there are only \d+ pictures of the part"
    ):
        Subset(part=(0, 0.5), count=300).pick(HASHES, "source")
    with pytest.raises(InputError, match="leaves none of 0 pictures of the part"):
        Subset(part=(0, 0.01)).pick(HASHES[:3], "source")
    for wrong in ({"part": (0.5, 0.5)}, {"part": (0, 1.5)}, {"part": (0, 0.5), "rest": True}, {}):
        with pytest.raises(ValidationError):
            Subset(**wrong)
