"""The online teacher audited by gold, again and again, as any other teacher is.

What it finds in the audit pictures goes into stores in the run folder, `online/<number of the
batch>/<kind>/`, and these are audited. So a run that goes on finds the audit that was in force, and a
person can look at each of them.
"""

import hashlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detmtl.data.fit import InputSettings
from detmtl.data.loader import evaluation_batches
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.evaluator import predict, to_file_pixels
from detmtl.engine.online_kind import Choice, Kind
from detmtl.engine.precision import Precision
from detmtl.engine.state import State
from detmtl.silver.calibration import TooLittleEvidence
from detmtl.silver.card import TeacherCard
from detmtl.silver.records import AnyRecord
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.structures.processes import world_size


@dataclass(frozen=True, eq=False)
class Gold:
    """The pictures by which the online teacher is audited.

    Attributes:
        pictures: all of them.
        of: the key of each kind of labels -> those with such labels.
    """

    pictures: Source
    of: Mapping[str, Source]


def audit_pictures(gold: Source, most: int, kinds: Sequence[Kind]) -> Gold:
    """Returns the pictures by which the online teacher is audited, for each kind evenly spread over those
    in which people looked for such labels. Tells before the training what would keep every audit from
    being of use.

    Args:
        gold: labelled by people, of the label space's classes, not trained on.
        most: pictures of a kind.
        kinds: what the teacher writes.

    Raises:
        InputError: gold has no labels of a kind, none in these pictures, or a package is missing.
    """
    chosen: dict[str, np.ndarray] = {}
    for kind in kinds:
        judged = np.flatnonzero(kind.judged(gold))
        if not len(judged):
            raise InputError(
                f"online.audit: source '{gold.name}' has no {kind.written} by people to audit the "
                "teacher by; give a source that has, or set online.audit_every: null"
            )
        spread = np.linspace(0, len(judged) - 1, min(most, len(judged))).round().astype(int)
        chosen[kind.written] = judged[np.unique(spread)]
        kind.refuse(gold.subset(chosen[kind.written]), gold.subset(judged))
    everything = np.unique(np.concatenate(list(chosen.values())))
    return Gold(gold.subset(everything), {n: gold.subset(rows) for n, rows in chosen.items()})


class Audits:
    """The audits of the teacher, one of each kind of labels every so many batches.

    Args:
        state: whose averaged model is audited.
        gold: see `audit_pictures`.
        kinds: as there.
        folder: gets a store of each kind for each audit, `<number of the batch>/<kind>/`.
        start: number of the first batch that needs one.
        every: batches between two.
        size, precision: of the network.
    """

    def __init__(
        self,
        state: State,
        gold: Gold,
        kinds: Sequence[Kind],
        folder: Path,
        start: int,
        every: int,
        size: InputSettings,
        precision: Precision,
    ):
        self.every = every
        self._gold, self._kinds = gold, list(kinds)
        self._state, self._folder, self._size = state, folder, size
        self._start = start
        self._precision: Precision = precision

    def due(self, number: int) -> int:
        """Returns the number of the batch before which the newest audit for batch `number` was made."""
        assert number >= self._start
        return number - (number - self._start) % self.every

    def make(self, due: int) -> None:
        """Writes what the teacher, as it is now, finds in the gold pictures."""
        self._label(self._folder / f"{due:08d}")

    def __call__(self, kind: Kind, due: int) -> Any:
        """Returns the audit of a kind made before batch `due`, on every rank the same.

        Raises:
            InputError: the run goes on, and the audit is gone.
        """
        path = self._folder / f"{due:08d}" / kind.written
        if not path.is_dir():
            if (path.parent / "raw").is_dir():
                raise InputError(
                    f"{path.parent}: the audit is of an earlier version of detmtl, with which this run was "
                    "begun; go on with that one, or start anew in another folder"
                )
            raise InputError(
                f"{path}: an audit of the online teacher is missing; the run cannot go on as it would have: "
                "bring it back, or start anew in another folder"
            )
        # rank 0 first: it writes the result
        for mine in (True, False):
            if (distributed.rank() == 0) == mine:
                found = kind.audit(Store.open(path), self._gold.of[kind.written])
            distributed.barrier()
        return found  # pyright: ignore[reportPossiblyUnboundVariable]

    def _label(self, path: Path) -> None:
        """Each rank looks at its part of the pictures, once for all kinds, and writes what it finds."""
        if distributed.rank() == 0:
            shutil.rmtree(path, ignore_errors=True)  # of a run that was killed and went back
            weights = _sha256(self._state.averaged)
            for kind in self._kinds:
                card = TeacherCard(
                    name="averaged",
                    weights_sha256=weights,
                    classes=kind.classes,
                    preprocessing=f"{self._size.short} x {self._size.long}",
                    task=kind.written,
                )
                Store.create(path / kind.written, card, kind.floor)
        distributed.barrier()
        with ExitStack() as stack:
            writers = {
                kind.written: stack.enter_context(
                    Store.open(path / kind.written).writer(distributed.rank())
                )
                for kind in self._kinds
            }
            for kind, record in self._records():
                writers[kind].add(record)
        distributed.barrier()

    def _records(self) -> Iterator[tuple[str, AnyRecord]]:
        """Yields what is found in this rank's pictures, of each the kinds that gold can judge."""
        gold, tasks = self._gold, {kind.task for kind in self._kinds}
        hashes = dict(zip(gold.pictures.ids.tolist(), gold.pictures.hashes(), strict=True))
        judged = {name: set(source.ids.tolist()) for name, source in gold.of.items()}
        for batch in evaluation_batches(
            gold.pictures,
            self._size.short,
            self._size.long,
            batch_size=8,
            rank=distributed.rank(),
            world=world_size(),
        ):
            found = predict(self._state.averaged, batch, self._state.device, self._precision, tasks)
            sizes = batch.sizes.tolist()
            for i, info in enumerate(batch.infos):
                picture = {
                    "content_hash": hashes[info.id],
                    "height": info.height,
                    "width": info.width,
                    "file": info.path,
                }
                for kind in self._kinds:
                    if info.id in judged[kind.written]:
                        labels = to_file_pixels(found[kind.task][i], sizes[i], info)
                        yield kind.written, kind.record(labels, picture)


class Choices:
    """The choices in force for each batch: the policy of each kind, resolved by the newest audit that has
    evidence enough.

    Which that is follows from the audits in the run folder alone, so that a run that goes on makes the
    same choices.

    Args:
        kinds: what the teacher writes.
        start: number of the first batch with pictures that wait.
        audits: None: there are none.

    Raises:
        InputError: a policy cannot be resolved without audits; see `Kind.choice`.
    """

    def __init__(self, kinds: Sequence[Kind], start: int, audits: Audits | None):
        self._start, self._audits, self._due = start, audits, -1
        self._of = {kind.written: _ChoiceOf(kind, start, audits) for kind in kinds}

    def __call__(self, number: int) -> dict[str, Choice]:
        """Returns the choice of each kind for batch `number`, but for those of which nothing is labelled
        yet."""
        if number < self._start:
            return {}
        if self._audits is not None and (due := self._audits.due(number)) != self._due:
            if due == number:
                self._audits.make(due)
            for of_kind in self._of.values():
                of_kind.take(due)
            self._due = due
        return {n: of_kind.choice for n, of_kind in self._of.items() if of_kind.choice is not None}

    def told(self) -> dict[str, float]:
        """Returns what is recorded: `online/weak_audits_of_boxes` and so on, how many audits in a row, the
        newest ones, had too little evidence; {} without audits."""
        if self._audits is None:
            return {}
        return {f"online/weak_audits_of_{n}": of_kind.weak for n, of_kind in self._of.items()}


class _ChoiceOf:
    """The choice in force of one kind, and how many audits since had too little evidence."""

    def __init__(self, kind: Kind, start: int, audits: Audits | None):
        self.choice = None if audits else kind.choice(None)
        self.weak = 0
        self._kind, self._start, self._audits = kind, start, audits
        self._due, self._warned = -1, False

    def take(self, due: int) -> None:
        """Takes the newest audit, from that before batch `due` backward, that has evidence enough; none
        where there is none."""
        assert self._audits is not None
        choice, weak, at = None, 0, due
        while at >= self._start:
            if at == self._due:  # what it came to is known
                choice, weak = self.choice, self.weak + weak
                break
            try:
                choice = self._kind.choice(self._audits(self._kind, at))
                break
            except TooLittleEvidence as error:
                self._warn(at, error)
            at, weak = at - self._audits.every, weak + 1
        self.choice, self.weak, self._due = choice, weak, due

    def _warn(self, due: int, error: InputError) -> None:
        if not self._warned and distributed.rank() == 0:
            warnings.warn(
                f"online: the audit of {self._kind.written} before batch {due} has too little evidence, and "
                "the last choice that one allowed stays; until there is one, nothing is labelled. Told "
                f"once, recorded as online/weak_audits_of_{self._kind.written}: {error}",
                stacklevel=2,
            )
        self._warned = True


def _sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
