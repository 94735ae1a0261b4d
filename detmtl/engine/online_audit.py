"""The online teacher audited by gold, again and again, as any other teacher is.

Its boxes of the audit pictures go into a store in the run folder, `online/<number of the batch>/`, and
that store is audited. So a run that goes on finds the audit that was in force, and a person can
look at each of them.
"""

import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch

from detmtl.data.fit import InputSettings
from detmtl.data.joined import with_boxes
from detmtl.data.loader import evaluation_batches
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.evaluator import predict, to_file_pixels
from detmtl.engine.online_choice import Choice, boxes_of
from detmtl.engine.precision import Precision
from detmtl.engine.state import State
from detmtl.silver.audit import Audit, audit
from detmtl.silver.calibration import TooLittleEvidence, require_package
from detmtl.silver.card import TeacherCard
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.store import Record, Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Ignore


def audit_pictures(gold: Source, most: int, select: SelectionSettings) -> Source:
    """Returns the pictures by which the online teacher is audited, evenly spread over those in which
    people looked for boxes. Tells before the training what would keep every audit from being of use.

    Args:
        gold: labelled by people, of the label space's classes, not trained on.
        most: pictures.
        select: what the audits are for.

    Raises:
        InputError: gold has no boxes, none in these pictures, or a package is missing.
    """
    if select.needs_probability():
        require_package(select.calibration.method)
    if gold.annotations is None:
        raise InputError(
            f"online.audit: source '{gold.name}' has no boxes to audit the teacher by; give a source that "
            "has, or set online.audit_every: null"
        )
    gold = with_boxes(gold)
    spread = np.linspace(0, len(gold) - 1, min(most, len(gold))).round().astype(int)
    chosen = gold.subset(np.unique(spread))
    assert chosen.annotations is not None
    if not (chosen.annotations.ignore == Ignore.NO).any():
        raise InputError(
            f"online.audit: {len(chosen)} of {len(gold)} pictures of source '{gold.name}' are looked at, and "
            "none of them has a box; raise online.audit_pictures, or set online.audit_every: null"
        )
    return chosen


class Audits:
    """The audits of the teacher, one every so many batches.

    Args:
        state: whose averaged model is audited.
        gold: see `audit_pictures`.
        classes: the label space.
        folder: gets a store for each audit.
        start: number of the first batch that needs one.
        every: batches between two.
        size, precision: of the network.
        floor: lowest score that the model gives.
        nms: as in the selection.
    """

    def __init__(
        self,
        state: State,
        gold: Source,
        classes: LabelSpace,
        folder: Path,
        start: int,
        every: int,
        size: InputSettings,
        precision: Precision,
        floor: float,
        nms: float | None,
    ):
        self.every = every
        self._gold = gold
        self._classes = LabelSpace.of(classes.names)
        self._state, self._folder, self._size = state, folder, size
        self._start = start
        self._precision: Precision = precision
        self._floor, self._nms = floor, nms

    def due(self, number: int) -> int:
        """Returns the number of the batch before which the newest audit for batch `number` was made."""
        assert number >= self._start
        return number - (number - self._start) % self.every

    def __call__(self, due: int, now: bool) -> Audit:
        """Returns the audit made before batch `due`, on every rank the same.

        Args:
            due: as `due` returns it.
            now: whether the weights are those of that moment, and the audit is to be made.

        Raises:
            InputError: the run goes on, and the audit is gone.
        """
        path = self._folder / f"{due:08d}"
        if now:
            self._label(path)
        elif not path.is_dir():
            raise InputError(
                f"{path}: an audit of the online teacher is missing; the run cannot go on as it would have: "
                "bring it back, or start anew in another folder"
            )
        # rank 0 first: it writes the result
        for mine in (True, False):
            if (distributed.rank() == 0) == mine:
                found = audit(Store.open(path), self._gold, self._classes, self._nms)
            distributed.barrier()
        return found  # pyright: ignore[reportPossiblyUnboundVariable]

    def _label(self, path: Path) -> None:
        """Writes what the teacher finds in the gold pictures; each rank looks at its part of them."""
        hashes = dict(zip(self._gold.ids.tolist(), self._gold.hashes(), strict=True))
        mine: list[Record] = []
        for batch in evaluation_batches(
            self._gold,
            self._size.short,
            self._size.long,
            batch_size=8,
            rank=distributed.rank(),
            world=distributed.world_size(),
        ):
            found = predict(self._state.averaged, batch, self._state.device, self._precision)
            sizes = batch.sizes.tolist()
            for labels, size, info in zip(boxes_of(found), sizes, batch.infos, strict=True):
                own = to_file_pixels(labels, size, info)
                assert isinstance(own, BoxLabels)
                mine.append(
                    Record(
                        content_hash=hashes[info.id],
                        height=info.height,
                        width=info.width,
                        boxes=own.boxes.numpy(),
                        classes=own.classes.numpy().astype(np.int32),
                        scores=own.scores.numpy(),
                        file=info.path,
                    )
                )
        everyones = distributed.gather_at_first(mine)
        if everyones is not None:
            shutil.rmtree(path, ignore_errors=True)  # of a run that was killed and went back
            card = TeacherCard(
                name="averaged",
                weights_sha256=_sha256(self._state.averaged),
                classes=self._classes.names,
                preprocessing=f"{self._size.short} x {self._size.long}",
            )
            store = Store.create(path, card, self._floor)
            with store.writer() as writer:
                for record in (r for of_rank in everyones for r in of_rank):
                    writer.add(record)
        distributed.barrier()


class Choices:
    """The choice in force for each batch: the policy, resolved by the newest audit that has evidence enough.

    Which that is follows from the audits in the run folder alone, so that a run that goes on makes the
    same choices.

    Args:
        settings: the policy; see `detmtl.engine.online_choice.unusable`.
        classes: the label space.
        floor: lowest score that the model gives.
        start: number of the first batch with pictures that wait.
        audits: None: there are none.

    Raises:
        InputError: the policy cannot be resolved without audits; see `Choice.of`.
    """

    def __init__(
        self,
        settings: SelectionSettings,
        classes: LabelSpace,
        floor: float,
        start: int,
        audits: Audits | None,
    ):
        self._settings, self._classes, self._floor = settings, classes, floor
        self._start, self._audits = start, audits
        self._due = -1
        self._choice = None if audits else Choice.of(settings, classes, None, floor)
        self._weak, self._warned = 0, False

    def __call__(self, number: int) -> Choice | None:
        """Returns the choice for batch `number`, None where nothing is labelled yet."""
        if number < self._start:
            return None
        if self._audits is not None and (due := self._audits.due(number)) != self._due:
            self._choice, self._weak = self._newest(self._audits, due, number)
            self._due = due
        return self._choice

    def told(self) -> dict[str, float]:
        """Returns what is recorded: `online/weak_audits`, how many audits in a row, the newest ones, had
        too little evidence; {} without audits."""
        return {} if self._audits is None else {"online/weak_audits": self._weak}

    def _newest(self, audits: Audits, due: int, number: int) -> tuple[Choice | None, int]:
        """Returns the choice by the newest audit, from that of batch `due` backward, that has evidence
        enough, None where there is none; and how many are newer."""
        weak = 0
        while due >= self._start:
            if due == self._due:  # what it came to is known
                return self._choice, self._weak + weak
            found = audits(due, now=due == number)
            try:
                return Choice.of(self._settings, self._classes, found, self._floor), weak
            except TooLittleEvidence as error:
                self._warn(due, error)
            due, weak = due - audits.every, weak + 1
        return None, weak

    def _warn(self, due: int, error: InputError) -> None:
        if not self._warned and distributed.rank() == 0:
            warnings.warn(
                f"online: the audit before batch {due} has too little evidence, and the last choice that "
                "one allowed stays; until there is one, nothing is labelled. Told once, recorded as "
                f"online/weak_audits: {error}",
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
