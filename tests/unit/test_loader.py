"""Batches: the same for any number of workers and ranks, from any step on; errors; processes."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detmtl.data.augment import Augment
from detmtl.data.fit import fit
from detmtl.data.flat import Annotations, FileNames
from detmtl.data.loader import _enter_worker, batches, evaluation_batches, sample_seed
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.source import Source
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.sample import Batch

STEPS = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"scale": [0.7, 1.3], "p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
]
AUGMENT = Augment(STEPS, 48, 64)


def make_source(folder: Path, name: str, count: int, grade: Grade = Grade.GOLD) -> Source:
    """Writes pictures of several sizes with 0 to 3 boxes each."""
    rng = np.random.default_rng([count, int(grade)])
    sizes = np.array([[60 + 10 * (i % 3), 80] for i in range(count)], dtype=np.int32)
    for i, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{name}{i}.png"), pixels)
    image = np.repeat(np.arange(count), np.arange(count) % 4)
    corners = rng.uniform(0, 30, (len(image), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 25, corners.shape)], 1)
    return Source(
        name=name,
        classes=("a", "b"),
        files=FileNames.of(folder, [f"{name}{i}.png" for i in range(count)]),
        ids=np.arange(count) + 100,
        sizes=sizes,
        annotations=Annotations.of(count, image, boxes, rng.integers(0, 2, len(image))),
        coverage=np.ones((1, 2), np.float32),
        grade=grade,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_source(folder, "gold", 5), make_source(folder, "silver", 11, Grade.SILVER)]


@pytest.fixture(scope="module")
def mixture(sources) -> Mixture:
    settings = MixSettings(mode="batch", shares={"gold": 1, "silver": 3}, weights={"silver": 0.5})
    return Mixture(sources, settings, batch_size=6, seed=7)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches agree in every bit."""
    assert a.infos == b.infos
    for name in ("images", "sizes", "groups", "weights", "seeds"):
        if not torch.equal(getattr(a, name), getattr(b, name)):
            return False
    return a.labels.keys() == b.labels.keys() and all(
        torch.equal(*(torch.as_tensor(getattr(x.labels[k], f.name)) for x in (a, b)))
        for k in a.labels
        for f in fields(a.labels[k])
        if f.name != "details"
    )


def children() -> set[int]:
    """Returns the living child processes of this one."""
    found = set()
    gone = contextlib.suppress(FileNotFoundError, ProcessLookupError)  # it has just ended
    for task in Path("/proc/self/task").iterdir():
        with gone:
            for pid in (task / "children").read_text().split():
                with gone:
                    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                    if state != "Z":
                        found.add(int(pid))
    return found


BORDERS = {"crop_left": 0, "crop_right": 0, "crop_top": 0.3, "crop_bottom": 0.3, "p": 1.0}


@pytest.mark.parametrize(
    "steps",
    [
        [{"RandomCropFromBorders": {**BORDERS, "p": 0.5}}],
        [{"HorizontalFlip": {}}, {"RandomCropFromBorders": BORDERS}],
        [{"Transpose": {"p": 0.3}}, {"CenterCrop": {"height": 40, "width": 44, "p": 0.5}}],
        [{"VerticalFlip": {}}, {"Resize": {"height": 48, "width": 60, "p": 0.5}}],
    ],
)
def test_pictures_of_a_batch_are_those_made_one_by_one(sources, steps):
    """A crop is a view of the picture, which lies in the batch's own memory."""
    augment, source = Augment(steps, 48, 64), sources[1]
    alone = Mixture([source], MixSettings(mode="silver"), batch_size=5, seed=1)
    cropped = 0
    for step, batch in enumerate(batches(alone, augment, 0, 8)):
        for slot, (pick, info) in enumerate(zip(alone.picks(step), batch.infos, strict=True)):
            image, _ = augment(
                source.read(pick.index),
                source.labels(pick.index),
                sample_seed(0, step, slot),
                (info.height, info.width),
            )
            height, width = batch.sizes[slot].tolist()
            assert (height, width) == tuple(image.shape[1:])
            assert torch.equal(batch.images[slot, :, :height, :width], image)
            assert not batch.images[slot, :, height:].any()
            assert not batch.images[slot, :, :, width:].any()
            cropped += (height, width) != fit(
                torch.zeros(3, info.height, info.width), 48, 64
            ).shape[1:]
    assert cropped > 5


def test_a_batch_holds_what_the_mixture_drew(mixture):
    (batch,) = batches(mixture, AUGMENT, 3, 4)
    picks = mixture.picks(3)
    assert len(batch) == 6
    assert batch.groups.tolist() == [p.source for p in picks]
    assert batch.weights.tolist() == [[1.0, 0.5][p.source] for p in picks]
    assert batch.infos == tuple(mixture.sources[p.source].info(p.index) for p in picks)
    seeds = np.array([sample_seed(0, 3, slot) for slot in range(6)], np.uint64)
    assert torch.equal(batch.seeds, torch.from_numpy(seeds.view(np.int64)))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for slot, pick in enumerate(picks):
        source = mixture.sources[pick.source]
        seed = sample_seed(0, 3, slot)
        image, labels = AUGMENT(source.read(pick.index), source.labels(pick.index), seed)
        height, width = batch.sizes[slot].tolist()
        assert torch.equal(batch.images[slot, :, :height, :width], image)
        valid = batch.labels["boxes"].valid[slot]
        assert torch.equal(batch.labels["boxes"].boxes[slot][valid], labels["boxes"].boxes)


def test_the_number_of_workers_changes_no_bit(mixture):
    alone = list(batches(mixture, AUGMENT, 0, 7, workers=0, seed=5))
    for workers in (1, 2):
        parted = list(batches(mixture, AUGMENT, 0, 7, workers=workers, seed=5))
        assert len(parted) == 7
        assert all(same(a, b) for a, b in zip(alone, parted, strict=True))


def test_starting_at_a_step_is_resuming(mixture):
    straight = list(batches(mixture, AUGMENT, 0, 8, workers=2))
    resumed = list(batches(mixture, AUGMENT, 5, 8, workers=2))
    assert len(resumed) == 3
    assert all(same(a, b) for a, b in zip(straight[5:], resumed, strict=True))
    assert list(batches(mixture, AUGMENT, 8, 8, workers=2)) == []


def test_seeds_and_steps_augment_differently_and_slots_too(mixture):
    (a,) = batches(mixture, AUGMENT, 0, 1, seed=0)
    (b,) = batches(mixture, AUGMENT, 0, 1, seed=1)
    assert a.infos == b.infos
    assert not torch.equal(a.images, b.images)
    seeds = {
        sample_seed(*key) for key in [(0, 1, 23), (0, 12, 3), (1, 2, 3), (12, 3, 0), (0, 0, 0)]
    }
    assert len(seeds) == 5


def test_ranks_see_the_parts_of_the_same_batch(mixture):
    (whole,) = batches(mixture, AUGMENT, 2, 3)
    parts = [next(batches(mixture, AUGMENT, 2, 3, rank=r, world=2)) for r in (0, 1)]
    for r, part in enumerate(parts):
        assert part.infos == whole.infos[r::2] and torch.equal(part.seeds, whole.seeds[r::2])
        height, width = part.images.shape[-2:]
        assert torch.equal(part.images, whole.images[r::2, :, :height, :width])
    with pytest.raises(InputError, match="6 pictures for 7 processes"):
        batches(mixture, AUGMENT, 0, 1, world=7)


def test_loading_leaves_the_global_random_state_alone(mixture):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(batches(mixture, AUGMENT, 0, 2, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_sees_each_picture_once_as_it_is(sources):
    source = sources[1]
    for workers in (0, 2):
        got = list(evaluation_batches(source, 48, 64, batch_size=4, workers=workers))
        assert [len(b) for b in got] == [4, 4, 3]
        infos = [info for batch in got for info in batch.infos]
        assert infos == [source.info(i) for i in range(11)] and not got[0].seeds.any()
    image = fit(torch.from_numpy(source.read(2)).permute(2, 0, 1), 48, 64)
    height, width = got[0].sizes[2].tolist()
    assert torch.equal(got[0].images[2, :, :height, :width], image)
    padded = got[0].labels["boxes"]
    scale = torch.tensor([width / 80, height / 80] * 2)
    torch.testing.assert_close(
        padded.boxes[2][padded.valid[2]], source.labels(2)["boxes"].boxes * scale
    )


def test_evaluation_over_ranks_sees_each_picture_once(sources):
    for world in (1, 2, 3, 13):
        ids = [
            info.id
            for rank in range(world)
            for batch in evaluation_batches(sources[1], 48, 64, 2, rank=rank, world=world)
            for info in batch.infos
        ]
        assert sorted(ids) == list(range(100, 111))


def test_pictures_of_an_evaluation_batch_have_one_padded_size(sources, tmp_path):
    source = make_source(tmp_path, "two", 6)
    sizes = source.sizes.copy()
    for i in (1, 4):
        cv2.imwrite(source.path(i), np.ascontiguousarray(np.rot90(source.read(i))))
        sizes[i] = sizes[i][::-1]
    mixed = replace(source, sizes=sizes)
    got = list(evaluation_batches(mixed, 32, 96, 3))
    assert [b.images.shape[2:] for b in got] == [(32, 64), (64, 32), (32, 32)]
    alone = {b.infos[0].id: b for b in evaluation_batches(mixed, 32, 96, 1)}
    for batch in got:
        for i, info in enumerate(batch.infos):
            assert torch.equal(batch.images[i], alone[info.id].images[0])


def test_evaluation_keeps_the_smallest_boxes(sources):
    source = sources[1]
    boxes = source.annotations.boxes.copy()
    boxes[:, 2:] = boxes[:, :2] + 0.01
    tiny = replace(source, annotations=replace(source.annotations, boxes=boxes))
    got = list(evaluation_batches(tiny, 48, 64, 4))
    assert sum(int(b.labels["boxes"].valid.sum()) for b in got) == len(boxes)


def test_unlabelled_pictures_have_no_labels(sources):
    bare = replace(sources[0], annotations=None)
    (batch,) = evaluation_batches(bare, 48, 64, 5)
    assert batch.labels == {}
    mixed = Mixture([bare, sources[1]], MixSettings(mode="batch"), 4)
    (batch,) = batches(mixed, AUGMENT, 0, 1)
    assert batch.labels["boxes"].present.tolist() == [False, False, True, True]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_an_input_error_that_names_the_file(sources, tmp_path, workers):
    broken = make_source(tmp_path, "broken", 3)
    Path(broken.path(1)).write_bytes(b"no picture at all")
    with pytest.raises(InputError) as caught:
        list(evaluation_batches(broken, 48, 64, 1, workers=workers))
    assert len(caught.value.problems) == 1
    assert "broken1.png" in str(caught.value)
    assert "Traceback" not in str(caught.value)


class Wrong(Augment):
    def several(self, pictures):
        raise KeyError("our own mistake")


def test_other_errors_of_a_worker_keep_their_kind_and_traceback(mixture):
    with pytest.raises(KeyError, match="our own mistake"):
        next(batches(mixture, Wrong([], 48, 64), 0, 2, workers=1))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts processes in /proc")
@pytest.mark.parametrize("ending", ["exhausted", "closed", "dropped", "failed"])
def test_no_worker_and_no_thread_is_left(mixture, ending):
    before, threads = children(), threading.active_count()
    iterator = batches(mixture, AUGMENT, 0, 3 if ending == "exhausted" else 1000, workers=2)
    next(iterator)
    assert len(children() - before) == 2
    if ending == "exhausted":
        assert len(list(iterator)) == 2
    elif ending == "closed":
        iterator.close()
    elif ending == "failed":
        with pytest.raises(RuntimeError):
            iterator.throw(RuntimeError("in the middle"))
    del iterator
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # on a busy machine the last of them takes its time
        if not children() - before and threading.active_count() <= threads:
            break
        time.sleep(0.02)
    assert children() - before == set()
    assert threading.active_count() <= threads, threading.enumerate()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(sources, tmp_path):
    code = """
import os, sys, pickle, multiprocessing
from detmtl.data.augment import Augment
from detmtl.data.loader import batches
from detmtl.data.mixture import Mixture, MixSettings
mixture = Mixture(pickle.load(open(sys.argv[1], "rb")), MixSettings(), 4)
it = batches(mixture, Augment([], 48, 64), 0, 10**6, workers=2)
next(it)
print(*[p.pid for p in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), 9)
"""
    kept = tmp_path / "sources.pkl"
    kept.write_bytes(pickle.dumps(sources))
    root = Path(__file__).parents[2]
    with open(
        tmp_path / "pids", "w"
    ) as told:  # a pipe would be waited for until the last worker ends
        subprocess.run([sys.executable, "-c", code, str(kept)], stdout=told, cwd=root)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def test_a_worker_whose_parent_is_gone_before_it_begins_ends():
    own = multiprocessing.get_context("fork").Process(target=_enter_worker, args=(1, 0))
    own.start()
    own.join(20)
    assert own.exitcode == 1


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Threads(Augment):
    """Tells in each picture how many threads its process uses."""

    def several(self, pictures):
        found = [cv2.getNumThreads(), torch.get_num_threads(), os.getpid() % 200]
        image = torch.tensor(found, dtype=torch.uint8).reshape(3, 1, 1).expand(3, 2, 2)
        return [(image, p.labels) for p in pictures]


def test_workers_use_one_thread_each(mixture):
    for batch in batches(mixture, Threads([], 48, 64), 0, 3, workers=2):
        cv2_threads, torch_threads, _ = batch.images[0, :, 0, 0].tolist()
        assert cv2_threads <= 1 and torch_threads == 1


def test_memory_does_not_grow_with_the_annotations(sources):
    source, many = sources[0], 500_000
    image = np.zeros(many, dtype=np.int64)  # all in picture 0, which no batch below reads
    boxes = np.tile(np.array([1.0, 1, 9, 9], np.float32), (many, 1))
    annotations = Annotations.of(len(source), image, boxes, np.zeros(many, np.int32))
    large = replace(source, annotations=annotations)
    tracemalloc.start()
    try:
        Mixture([large], MixSettings(), 4).plan(10)
        (batch,) = evaluation_batches(large, 48, 64, 4, rank=1, world=5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(batch) == 1
    assert peak < 2_000_000  # one byte for each annotation would be a fourth of it


def test_large_jpegs_are_decoded_smaller_and_their_labels_stay_in_place(tmp_path):
    y, x = np.mgrid[:384, :512]
    smooth = np.stack([x // 3, y // 3, (x + y) // 5], axis=2).astype(np.uint8)
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), smooth)
    source = Source(
        name="a",
        classes=("c",),
        files=FileNames.of(tmp_path, ["large.jpg"]),
        ids=np.array([5]),
        sizes=np.array([[384, 512]], np.int32),
        annotations=Annotations.of(
            1, np.zeros(1, np.int64), np.array([[40.0, 80, 200, 240]]), np.zeros(1, np.int64)
        ),
        coverage=np.ones((1, 1), np.float32),
    )
    mixture = Mixture([source], MixSettings(mode="gold"), 1, seed=0)
    found = {}
    for reduced in (False, True):
        augment = Augment([], 48, 64, reduced=reduced)
        found[reduced] = next(iter(batches(mixture, augment, 0, 1)))
    full, small = found[False], found[True]
    assert source.read_reduced(0, 48, 64).shape == (48, 64, 3)
    torch.testing.assert_close(full.labels["boxes"].boxes, small.labels["boxes"].boxes)
    assert small.labels["boxes"].boxes[0, 0].tolist() == [5, 10, 25, 30]
    difference = (full.images.int() - small.images.int()).abs()
    assert 0 < difference.float().mean() < 2 and small.sizes.tolist() == [[48, 64]]
    wrong = replace(source, sizes=np.array([[392, 512]], np.int32))
    with pytest.raises(InputError, match="512 x 384"):
        wrong.read_reduced(0, 48, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is left alone")
def test_more_files_may_be_open_while_workers_load_and_never_fewer():
    import resource

    from detmtl.data.loader import FILES, _allow_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        _allow_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1] and soft == (FILES if hard < 0 else min(FILES, hard))
        _allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
