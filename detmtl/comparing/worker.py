"""The process of one job: `python -m detmtl.comparing.worker FOLDER`, where FOLDER has a job.json.

A run's folder is an ordinary run folder. Beside what `train` leaves there stand job.json, log.txt (what
the process printed), matches.npz and, last, done.json.
"""

import json
import os
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detmtl.comparing.origins import note_start
from detmtl.comparing.scores import write_matches
from detmtl.comparing.start import start_digest
from detmtl.comparing.teacher_scores import score_teachers
from detmtl.config import settings_from
from detmtl.engine import distributed
from detmtl.engine.trainer import TrainingDiverged
from detmtl.inference.export import ExportError
from detmtl.pools import label_pools
from detmtl.recipe import Frozen, run
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources, to_be_labelled
from detmtl.run_teachers import written_offline
from detmtl.structures.errors import InputError
from detmtl.structures.whole import write_json, write_whole


def main(folder: Path) -> int:
    """Does the job of a folder; returns 0 if it is done, 2 for what a user can put right, 1 otherwise."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.showwarning = _one_line  # type: ignore[assignment]
    job = json.loads((folder / "job.json").read_text())
    kinds: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]]
    kinds = {"train": _train, "probe": _probe, "teacher": _score_teacher, "label": _label}
    start, continued = time.monotonic(), (folder / "started").exists()
    starts = note_start(folder)
    try:
        facts = kinds[job["kind"]](folder, job)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except (TrainingDiverged, ExportError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    facts |= {"seconds": time.monotonic() - start, "continued": continued, "origins": starts}
    facts["peak_bytes"] = peak_bytes()
    write_whole(folder / "done.json", json.dumps(facts, indent=1))
    return 0


def _train(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Runs a whole recipe."""
    settings = settings_from(job["settings"])
    if job["teacher"]:
        _link(folder.parent / job["teacher"], folder / "teacher")
    facts = {"start": start_digest(settings)}
    run(settings, folder, Console())
    write_matches(settings, folder)
    return facts


def _probe(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Trains a run's heads on the frozen trunk of another run, or on the trunk as it starts."""
    settings = settings_from(job["settings"])
    trunk = None
    if job["teacher"]:
        _link(folder.parent / job["teacher"], folder / "teacher")
    if job["trunk"]:
        _link(folder.parent / job["trunk"], folder / "trunk")
        trunk = folder / "trunk" / "best.pt"
    run(settings, folder, Console(), Frozen(trunk))
    write_matches(settings, folder)
    return {}


def _link(target: Path, link: Path) -> None:
    """Makes a trained teacher's run folder the `teacher` folder of a student's (or a probe's `trunk`)."""
    if not link.is_symlink():
        link.symlink_to(Path("..") / target.name, target_is_directory=True)


def _label(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Fills a store, audits it and selects from it, for all runs that share it."""
    problems: list[str] = []
    for key in job["runs"]:
        student = folder.parent / key
        content = json.loads((student / "job.json").read_text())
        settings = settings_from(content["settings"])
        if content["teacher"]:
            _link(folder.parent / content["teacher"], student / "teacher")
        process = distributed.start(settings.device)
        own = OpenRun(settings, RunFolder(student), process, Console())
        try:
            sources, val, _ = load_sources(settings, folder / "cache", process)
            written, known = written_offline(own)
            sources |= to_be_labelled(settings, sources, written)
            label_pools(own, sources, val, known)
        except InputError as error:  # the run itself ends with it; others may be well
            problems += [p for p in error.problems if p not in problems]
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    return {}


def _score_teacher(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Has the teachers annotate the pictures that the students are scored on, and scores that alike."""
    settings = settings_from(job["settings"])
    write_json(folder / "metrics.json", score_teachers(settings, folder))
    write_matches(settings, folder)
    return {}


def peak_bytes() -> int:
    """Returns the most memory that this process had; where it used a GPU, of that."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: its end of the pipe closes then.

    It reads past `sys.stdin`, whose lock a thread that waits there would hold when Python wants it at
    the end, which Python takes for fatal.
    """
    while os.read(0, 1024):
        pass
    os._exit(143)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {message}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
