"""A record of each task, as a line and back."""

import json

import numpy as np
import pytest

from detmtl.silver.map_record import MapRecord
from detmtl.silver.record import Record
from detmtl.silver.record_line import content_hash_of, head_of, line_sum
from detmtl.silver.records import FORMATS
from detmtl.silver.tag_record import TagRecord

HASH = "0f" * 32


def a_map(seed: int, confidence: bool) -> MapRecord:
    """Blocks of classes with unknown pixels, of an odd size."""
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(0, 21, (5, 7), dtype=np.uint8), np.ones((9, 3), dtype=np.uint8))
    classes[rng.random(classes.shape) < 0.1] = 255
    certain = rng.integers(0, 256, classes.shape, dtype=np.uint8) if confidence else None
    return MapRecord(HASH, *classes.shape, classes, certain, "a.jpg")


EXAMPLES = {
    "boxes": [
        Record(HASH, 9, 8, np.array([[0, 1.25, 2, 3]]), np.array([4]), np.array([0.5]), "a.jpg"),
        Record(HASH, 9, 8, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), "a.jpg"),
    ],
    "maps": [a_map(0, confidence=True), a_map(1, confidence=False)],
    "tags": [TagRecord(HASH, 9, 8, np.array([0, 0.12346, np.nan, 1], dtype=np.float32), "a.jpg")],
}
CASES = [(task, example) for task, examples in EXAMPLES.items() for example in examples]


def test_every_task_has_an_example():
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize(("task", "record"), CASES)
def test_it_comes_back_whole(task, record):
    line = FORMATS[task].encode(record)
    found = FORMATS[task].decode(line)
    assert type(found) is FORMATS[task].type is type(record)
    for name, value in record.__dict__.items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert FORMATS[task].encode(found) == line


@pytest.mark.parametrize(("task", "record"), CASES)
def test_what_a_store_cuts_out_of_the_line(task, record):
    line = FORMATS[task].encode(record)
    assert line.endswith(b"\n") and line.count(b"\n") == 1 and json.loads(line)["hash"] == HASH
    assert content_hash_of(line) == HASH
    assert head_of(line) == (HASH, record.height, record.width, "a.jpg")
    renamed = line.replace(b"a.jpg", b"b.jpg")
    assert line_sum(renamed) == line_sum(line) != line_sum(line.replace(HASH.encode(), b"1" * 64))


def test_an_extreme_map_loses_nothing():
    for pixels in (
        np.array([[255], [0], [255], [254]], dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (67, 129), dtype=np.uint8),
    ):
        record = MapRecord(HASH, *pixels.shape, pixels, pixels[::-1].copy())
        found = FORMATS["maps"].decode(FORMATS["maps"].encode(record))
        assert isinstance(found, MapRecord) and found.confidence is not None
        np.testing.assert_array_equal(found.classes, pixels)
        np.testing.assert_array_equal(found.confidence, pixels[::-1])


def test_a_map_of_few_regions_needs_little_space():
    classes = np.zeros((480, 640), dtype=np.uint8)
    classes[100:300, 200:400] = 15
    line = FORMATS["maps"].encode(MapRecord(HASH, 480, 640, classes))
    assert len(line) < 1000  # of 307200 pixels
