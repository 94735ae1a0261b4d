"""A run at work, and its folder: where everything is, and whose it is."""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from detmtl.config import RunSettings, read_settings, write_settings
from detmtl.engine import distributed
from detmtl.engine.distributed import Process
from detmtl.structures.alone import alone_in
from detmtl.structures.errors import InputError
from detmtl.structures.whole import whole, write_whole

WITHOUT_EFFECT = (
    "device ",
    "data.root ",  # the files are known by their content, see `RunFolder.claim_inputs`
    "data.workers ",
    "silver.batch_size ",  # nor does a store know how many pictures its teacher saw at once
    "silver.gates ",
    "silver.store ",  # a teacher writes the same labels wherever they lie, and marks them as its own
    "train.compile ",
    "train.log_every ",
    "train.pictures_every ",
    "train.score_in_background ",
    "export.",  # the file is written last, of weights that are there
)
"""Settings that may change between a kill and the next start, in the words of `_differences`; see
`without_effect`."""
SCHEMA = "schema"
"""Names, beside the files of a run, by which facts they are known."""


def without_effect(settings: RunSettings) -> tuple[str, ...]:
    """Returns `WITHOUT_EFFECT` of a run: of mode online everything where it has another mode."""
    return (*WITHOUT_EFFECT, "online.") if settings.when_online() is None else WITHOUT_EFFECT


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run is."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def inputs(self) -> Path:
        return self.path / "inputs.json"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def detections(self) -> Path:
        return self.path / "detections.json"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures.npz"

    @property
    def torchscript(self) -> Path:
        return self.path / "model.torchscript"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def teacher(self) -> "RunFolder":
        return RunFolder(self.path / "teacher")

    def store(self, settings: RunSettings) -> Path:
        """Returns where silver labels are that a run of these settings writes before its training."""
        own = settings.silver.store if settings.silver else None
        return own or self.path / "silver"

    def claim(self, settings: RunSettings, teacher: RunSettings | None = None) -> None:
        """Makes the folder this run's, or finds out whether it may be continued; see `settle`.

        As long as the training has left nothing, all settings may change but those of a teacher that has
        learned: of what was done before, a store knows its teacher and its pictures, a selection its policy.
        Thus a policy that an audit refused is corrected without labelling a pool once more.

        Args:
            settings: of the run.
            teacher: of the teacher that it trains itself.

        Raises:
            InputError: it cannot be written, or belongs to a run of other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # processes on several machines may have one number
            probe = self.path / f".writable-{os.getpid()}-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {self.path}: cannot be written ({error.strerror}); choose another folder"
            ) from None
        if self.settings.exists():
            self._refuse_others(settings)
        else:
            self._write(settings)
        if teacher is not None and self.teacher.settings.exists():
            self.teacher._refuse_others(teacher)

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other runs away from a claimed folder, in which two would write over each other's files; see
        `alone_in`."""
        return alone_in(self.path, "trains", "or give another --out")

    def settle(self, settings: RunSettings) -> None:
        """Writes down the settings by which a claimed folder goes on, once nothing speaks against them, and
        removes a file to deploy that they would write otherwise."""
        differences = self._differences(settings)
        if any(d.startswith("export.") for d in differences):
            self.torchscript.unlink(missing_ok=True)
        if differences:
            self._write(settings)

    def claim_inputs(self, hashes: Mapping[str, str]) -> list[str]:
        """Notes which files the run reads; returns what is wrong if a training on others has begun here.

        Args:
            hashes: see `detmtl.inputs.input_hashes`.
        """
        hashes = {SCHEMA: "3", **hashes}
        if (self.began() or self.teacher.last.exists()) and self.inputs.exists():
            before = json.loads(self.inputs.read_text())
            # what a teacher alone has seen does not hang on sources that came or went since
            both = before.keys() | hashes if self.began() else before.keys() & hashes
            changed = [n for n in both - {SCHEMA} if before.get(n) != hashes.get(n)]
            if changed:
                names = ", ".join(sorted(changed))
                if before.get(SCHEMA) != hashes[SCHEMA]:
                    return [
                        f"--out {self.path}: holds a run of an earlier version, which knew files by other "
                        f"facts: whether {names} are the same cannot be told; choose another folder"
                    ]
                return [
                    f"--out {self.path}: holds a run on other files ({names} changed since); choose "
                    "another folder, or bring the files back to continue it"
                ]
        write_whole(self.inputs, json.dumps(hashes, indent=1))
        return []

    def _refuse_others(self, settings: RunSettings) -> None:
        differences, may_change = self._differences(settings), without_effect(settings)
        changed = sorted(d for d in differences if not d.startswith(may_change))
        if changed and self.began():
            raise InputError(
                f"--out {self.path}: holds a run with other settings ({'; '.join(changed[:6])}); "
                "choose another folder, or repeat that run's settings to continue it"
            )

    def _differences(self, settings: RunSettings) -> list[str]:
        return _differences(read_settings(self.settings).resolved(), settings.resolved())

    def began(self) -> bool:
        """Whether the training of this folder itself, not a teacher's below it, has left something."""
        return any(p.exists() for p in (self.last, self.best, self.metrics))

    def _write(self, settings: RunSettings) -> None:
        if distributed.rank() == 0:
            with whole(self.settings) as part:
                write_settings(settings, part)


@dataclass(frozen=True)
class OpenRun:
    """A run on which this process works.

    Attributes:
        settings: what it is to do.
        folder: where everything of it is.
        process: this one among its peers.
        console: for people; quiet in all processes but the first.
    """

    settings: RunSettings
    folder: RunFolder
    process: Process
    console: Console

    @property
    def store(self) -> Path:
        """Where silver labels are that are written before the training."""
        return self.folder.store(self.settings)


def _differences(a: Any, b: Any, at: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d
            for key in sorted({*a, *b}, key=str)
            for d in _differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
        ]
    return [] if a == b else [f"{at} was {a}, now {b}"]
