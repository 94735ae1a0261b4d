"""The folder of a run: where everything is, and whose it is."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detmtl.config import RunSettings, read_settings, write_settings
from detmtl.engine import distributed
from detmtl.structures.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run is."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

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
    def torchscript(self) -> Path:
        return self.path / "model.torchscript"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def teacher(self) -> "RunFolder":
        return RunFolder(self.path / "teacher")

    def claim(self, settings: RunSettings) -> None:
        """Makes the folder this run's, or continues it.

        Raises:
            InputError: it cannot be written, or belongs to a run of other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"--out {self.path}: cannot be written ({error.strerror}); choose another folder"
            ) from None
        if self.settings.exists():
            from_before = read_settings(self.settings).resolved()
            changed = sorted(_differences(from_before, settings.resolved()))
            if changed and not self._holds_work():
                self._write(settings)
            elif changed:
                raise InputError(
                    f"--out {self.path}: holds a run with other settings ({'; '.join(changed[:6])}); "
                    "choose another folder, or repeat that run's settings to continue it"
                )
        else:
            self._write(settings)

    def _holds_work(self) -> bool:
        kept = (self.last, self.best, self.metrics, self.path / "silver")
        return any(p.exists() for p in kept) or self.teacher.last.exists()

    def _write(self, settings: RunSettings) -> None:
        if distributed.rank() == 0:
            partial = self.settings.with_suffix(".tmp")
            write_settings(settings, partial)
            partial.replace(self.settings)


def _differences(a: Any, b: Any, at: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d
            for key in sorted({*a, *b}, key=str)
            for d in _differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
        ]
    return [] if a == b else [f"{at} was {a}, now {b}"]
