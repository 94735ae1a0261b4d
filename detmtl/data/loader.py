"""Batches for training and evaluation, prepared in worker processes.

A batch follows from (seed, step) alone, and the augmentation of a picture from (seed, step, slot in
the global batch): the number of workers and the step at which a run resumes change nothing.
"""

import os
import signal
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detmtl.data.augment import Augment, Picture
from detmtl.data.fit import fit, fit_size
from detmtl.data.images import file_bytes, reduction
from detmtl.data.mixture import Mixture, Pick
from detmtl.data.outlines import with_masks
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Labels
from detmtl.structures.sample import DIVISOR, Batch, ImageInfo, Sample, canvas_of

if TYPE_CHECKING:
    from detmtl.data.source import Source

FILES = 65536
"""Files that a process which loads pictures may have open, where the system lets it."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def batches(
    mixture: Mixture,
    augment: Augment,
    start_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yields this rank's part of the batches of steps start_step, ..., steps - 1.

    Args:
        mixture: what each step draws; the same on every rank.
        augment: the pictures' way to the network's size.
        start_step: first step, that of the checkpoint when a run resumes.
        steps: of the whole run.
        workers: processes that prepare batches; 0: this process does. They end with the iterator.
        rank, world: this process among `world`; it takes slots rank, rank + world, ...
        seed: of the augmentation, not negative; the same on every rank.
        pin: put batches into page-locked memory, for copies to a GPU.

    Raises:
        InputError: at once if a rank would get no picture; later for a picture that cannot be read.
    """
    _require_pictures(mixture, world)
    work = _TrainingBatches(mixture, augment, seed, rank, world)
    return _serve(work, range(start_step, steps), workers, pin)


@dataclass(frozen=True, eq=False)
class Draft:
    """A batch some of whose pictures wait for labels of a teacher.

    Attributes:
        samples: all of its pictures; those that wait have the network's size and what is known of them
            beforehand in pixels of that size, but are not augmented: the weak view that a teacher
            looks at.
        waiting: place in `samples` of each picture that waits -> what is to be known of it.
    """

    samples: list[Sample]
    waiting: dict[int, "Waiting"]


class Waiting(NamedTuple):
    """A picture that waits for labels.

    Attributes:
        place: in its source.
        seed: of its augmentation.
    """

    place: int
    seed: int


def drafts(
    mixture: Mixture,
    augment: Augment,
    waiting: Collection[str],
    start_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
) -> Iterator[Draft]:
    """Yields what `batches` does, but the pictures of the sources named in `waiting` are left to be
    labelled further and augmented: by `augment` and with the seed that comes along they become what
    `batches` would make of them.

    Raises:
        InputError: as `batches`.
    """
    _require_pictures(mixture, world)
    pictures = _TrainingBatches(mixture, augment, seed, rank, world)
    work = _Drafts(pictures, frozenset(waiting))
    return _serve(work, range(start_step, steps), workers, False)


def _require_pictures(mixture: Mixture, world: int) -> None:
    if mixture.batch_size < world:
        raise InputError(
            f"batch_size: {mixture.batch_size} pictures for {world} processes; each needs at least one"
        )


def evaluation_batches(
    source: "Source",
    short: int,
    long: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yields every picture that falls to this rank once, unchanged but for its size.

    Rank r takes pictures r, r + world, ... of the source; a rank may get none at all. The pictures of
    a batch have one padded size, so that no score depends on the company that a picture is in.
    Labels are at the network's size, none removed.

    Raises:
        InputError: a picture cannot be read.
    """
    chunks = _of_one_size(source, short, long, range(rank, len(source), world), batch_size)
    work = _EvaluationBatches(source, short, long, chunks)
    return _serve(work, range(len(chunks)), workers, pin)


def _of_one_size(
    source: "Source", short: int, long: int, pictures: Sequence[int], batch_size: int
) -> list[list[int]]:
    """Returns `pictures` in chunks of at most `batch_size` whose padded size is the same."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in pictures:
        height, width = fit_size(int(source.sizes[i, 0]), int(source.sizes[i, 1]), short, long)
        by_size.setdefault((-(-height // DIVISOR), -(-width // DIVISOR)), []).append(i)
    return [
        group[k : k + batch_size]
        for group in by_size.values()
        for k in range(0, len(group), batch_size)
    ]


class _Batches(Protocol[T_co]):
    def batch(self, number: int) -> T_co: ...


@dataclass(frozen=True)
class _TrainingBatches:
    mixture: Mixture
    augment: Augment
    seed: int
    rank: int
    world: int

    def batch(self, number: int) -> Batch:
        jobs = self._jobs(number)
        augment = self.augment
        sizes = [fit_size(*job.size, augment.short, augment.long) for job in jobs]
        canvas = canvas_of(np.array(sizes))
        rooms = [place[:h, :w] for place, (h, w) in zip(canvas, sizes, strict=True)]
        views = augment.several(self._pictures(jobs, rooms))
        return Batch.of(self._samples(number, jobs, views), canvas=canvas)

    def draft(self, number: int, waiting: frozenset[str]) -> "Draft":
        jobs = self._jobs(number, waiting)
        ready = iter(self.augment.several(self._pictures([j for j in jobs if not j.waits])))
        views = [self._weak(job) if job.waits else next(ready) for job in jobs]
        waits = {i: Waiting(j.pick.index, j.seed) for i, j in enumerate(jobs) if j.waits}
        return Draft(self._samples(number, jobs, views), waits)

    def _weak(self, job: "_Job") -> tuple[Tensor, dict[str, Labels]]:
        image = self.augment.fitted(self._read(job), job.size)
        size = (image.shape[1], image.shape[2])
        return image, {name: known.resized(job.size, size) for name, known in job.labels.items()}

    def _pictures(
        self, jobs: Sequence["_Job"], rooms: Sequence[np.ndarray] = ()
    ) -> Iterator[Picture]:
        for job, room in zip_longest(jobs, rooms):
            yield Picture(self._read(job, room), job.labels, job.seed, job.size, room)

    def _samples(
        self,
        number: int,
        jobs: Sequence["_Job"],
        views: Iterable[tuple[Tensor, dict[str, Labels]]],
    ) -> list[Sample]:
        weights, samples = self.mixture.weights_at(number), []
        for job, (image, labels) in zip(jobs, views, strict=True):
            if not job.waits:
                labels = job.source.derived(job.pick.index, labels)
            group = job.pick.source
            weight, grade = weights[group], job.source.grade
            samples.append(Sample(image, labels, job.info, group, weight, grade, job.seed))
        return samples

    def _jobs(self, number: int, waiting: frozenset[str] = frozenset()) -> list["_Job"]:
        """Returns this rank's part of a batch."""
        picks = list(enumerate(self.mixture.picks(number)))
        return [self._job(number, *pick, waiting) for pick in picks[self.rank :: self.world]]

    def _job(self, number: int, slot: int, pick: Pick, waiting: frozenset[str]) -> "_Job":
        source, augment = self.mixture.sources[pick.source], self.augment
        info = source.info(pick.index)
        factor = reduction(info.height, info.width, augment.short, augment.long)
        return _Job(
            source,
            pick,
            info,
            data=file_bytes(info.path),
            reduced=augment.reduced and factor > 1,
            labels=source.labels(pick.index),
            waits=source.name in waiting,
            seed=sample_seed(self.seed, number, slot),
        )

    def _read(self, job: "_Job", room: np.ndarray | None = None) -> np.ndarray:
        index, data = job.pick.index, job.data
        if job.reduced:
            return job.source.read_reduced(index, self.augment.short, self.augment.long, data)
        if room is not None and room.shape[:2] != job.size:
            room = None
        return job.source.read(index, data, room)


@dataclass(frozen=True)
class _Job:
    """A picture to be decoded from `data`, the bytes of its file.

    Attributes:
        reduced: whether straight at a part of its size.
        labels: what is known of it.
        waits: whether for labels of a teacher.
    """

    source: "Source"
    pick: Pick
    info: ImageInfo
    data: bytes
    reduced: bool
    labels: dict[str, Labels]
    waits: bool
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        return self.info.height, self.info.width


@dataclass(frozen=True)
class _Drafts:
    pictures: _TrainingBatches
    waiting: frozenset[str]

    def batch(self, number: int) -> Draft:
        return self.pictures.draft(number, self.waiting)


@dataclass(frozen=True)
class _EvaluationBatches:
    source: "Source"
    short: int
    long: int
    chunks: Sequence[Sequence[int]]

    def batch(self, number: int) -> Batch:
        return Batch.of([self._sample(i) for i in self.chunks[number]])

    def _sample(self, i: int) -> Sample:
        pixels = self.source.read(i)
        image = fit(torch.from_numpy(pixels).permute(2, 0, 1), self.short, self.long)
        before, after = pixels.shape[:2], image.shape[1:]
        labels: Mapping[str, Labels] = {
            name: with_masks(resized) if isinstance(resized, BoxLabels) else resized
            for name, known in self.source.labels(i).items()
            for resized in [known.resized((before[0], before[1]), (after[0], after[1]))]
        }
        return Sample(image, labels, self.source.info(i), weight=self.source.weight)


def sample_seed(seed: int, step: int, slot: int) -> int:
    """Returns the seed in [0, 2**64) of a picture's augmentation; its three parts never run together."""
    return int(np.random.SeedSequence([seed, step, slot]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class _Failure:
    """An InputError on its way out of a worker: torch would bury its sentences in a traceback."""

    problems: list[str]


class _Work(Dataset[T | _Failure]):
    def __init__(self, work: _Batches[T]):
        self.work = work

    def __getitem__(self, number: int) -> T | _Failure:
        try:
            return self.work.batch(number)
        except InputError as error:
            return _Failure(error.problems)


def _serve(work: _Batches[T], numbers: range, workers: int, pin: bool) -> Iterator[T]:
    """Yields the batches of `numbers` in order; the workers live as long as the iterator."""
    _keep_memory()
    if workers:
        _allow_files()
    loader = DataLoader(
        _Work(work),
        batch_size=None,  # the work makes whole batches
        sampler=numbers,
        num_workers=workers,
        generator=torch.Generator(),  # else torch draws a number from the global state, which is the run's
        pin_memory=pin,
        worker_init_fn=partial(_enter_worker, os.getpid()) if workers else None,
        # forked workers share the flat annotations and start at once; elsewhere the system's own way
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    iterator = iter(loader)
    try:
        for out in iterator:
            if isinstance(out, _Failure):
                raise InputError(out.problems)
            yield out
    finally:
        del (
            iterator
        )  # the last reference: torch ends the workers now and not when it collects garbage


def _keep_memory() -> None:
    """Makes this process keep what it frees, up to 64 MB, for the next batch: the system takes about as
    long to hand out a batch's pages as copying the batch does.

    The allocator of Linux raises both its thresholds with the largest block, of up to 32 MB, that is
    freed; nothing of this one is ever touched. Other allocators do nothing of the kind.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _allow_files() -> None:
    """Lets this process and its workers have more files open, on Linux: each tensor that a worker hands over
    is one, and a batch that waits for a teacher's labels has many small ones."""
    if sys.platform != "linux":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _enter_worker(parent: int, worker: int) -> None:
    """Prepares a worker that the process `parent` has started."""
    if os.getppid() != parent:  # it was killed already, which torch looks for only from now on
        os._exit(1)
    _keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
