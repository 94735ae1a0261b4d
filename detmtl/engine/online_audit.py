"""The online teacher audited by gold, again and again, as any other teacher is.

Its boxes of the audit pictures go into a store in the run folder, `online/<number of the batch>/`, and
that store is audited. So a run that goes on finds the audit that was in force, and a person can
look at each of them.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch

from detmtl.data.fit import InputSettings
from detmtl.data.loader import evaluation_batches
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.evaluator import predict, to_file_pixels
from detmtl.engine.online_choice import Choice
from detmtl.engine.precision import Precision
from detmtl.engine.state import State
from detmtl.silver.audit import Audit, audit
from detmtl.silver.card import TeacherCard
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.store import Record, Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels


class Audits:
    """The audit in force for each batch; made anew every so many batches.

    Args:
        state: whose averaged model is audited.
        gold: labelled by people, of the label space's classes, not trained on.
        pictures: the most of them that are looked at, evenly spread.
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
        pictures: int,
        classes: LabelSpace,
        folder: Path,
        start: int,
        every: int,
        size: InputSettings,
        precision: Precision,
        floor: float,
        nms: float | None,
    ):
        spread = np.linspace(0, len(gold) - 1, min(pictures, len(gold))).round().astype(int)
        self._gold = gold.subset(np.unique(spread))
        self._classes = LabelSpace.of(classes.names)
        self._state, self._folder, self._size = state, folder, size
        self._start, self._every = start, every
        self._precision: Precision = precision
        self._floor, self._nms = floor, nms
        self._now: tuple[int, Audit] | None = None

    def __call__(self, number: int) -> Audit:
        """Returns the audit in force for batch `number`, on every rank the same.

        Raises:
            InputError: the run goes on, and the audit that it needs is gone.
        """
        assert number >= self._start
        due = number - (number - self._start) % self._every
        if self._now is None or self._now[0] != due:
            path = self._folder / f"{due:08d}"
            if number == due:
                self._label(path)
            elif not path.is_dir():
                raise InputError(
                    f"{path}: the last audit of the online teacher is missing; the run cannot go on as it "
                    "would have: bring it back, or start anew in another folder"
                )
            # rank 0 first: it writes the result
            for mine in (True, False):
                if (distributed.rank() == 0) == mine:
                    self._now = due, audit(Store.open(path), self._gold, self._classes, self._nms)
                distributed.barrier()
        assert self._now is not None
        return self._now[1]

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
            boxes = next(of for of in found.values() if isinstance(of[0], BoxLabels))
            for labels, size, info in zip(boxes, batch.sizes.tolist(), batch.infos, strict=True):
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
    """The choice in force for each batch: the policy, resolved by the audit in force.

    Args:
        settings: the policy.
        classes: the label space.
        floor: lowest score that the model gives.
        start: number of the first batch with pictures that wait.
        audits: None: there are none.

    Raises:
        InputError: the policy cannot be resolved; see `Choice.of`.
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
        self._audit: Audit | None = None
        self._choice = None if audits else Choice.of(settings, classes, None, floor)

    def __call__(self, number: int) -> Choice | None:
        """Returns the choice for batch `number`, None where nothing waits yet."""
        if number < self._start:
            return None
        if self._audits is not None:
            audit = self._audits(number)
            if audit is not self._audit:
                self._audit = audit
                self._choice = Choice.of(self._settings, self._classes, audit, self._floor)
        return self._choice


def _sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
