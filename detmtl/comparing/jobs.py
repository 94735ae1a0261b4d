"""Runs jobs in processes of their own: several at once, in order of what they need, and told about."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from detmtl.comparing.scores import is_done
from detmtl.structures.whole import write_whole

FAILED = "failed.json"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.2
OVERHEAD_STEPS = 10
"""What starting, scoring and exporting count on the bar, in training steps."""


@dataclass(eq=False)
class Job:
    """Something to be done by one process.

    Attributes:
        folder: where it works and leaves done.json, or failed.json until it is tried again; has the job's
            content as job.json.
        name: for people.
        content: of job.json.
        steps: of training, for the bar.
        device: that its settings name.
        after: jobs that come before it.
        failure: why it cannot be done, or None.
        log_from: where the last attempt begins in its log.txt, in bytes.
    """

    folder: Path
    name: str
    content: dict[str, Any]
    steps: int = 0
    device: str = "auto"
    after: "list[Job]" = field(default_factory=list)
    failure: str | None = None
    log_from: int = 0

    def write(self) -> None:
        """Writes job.json; equal content leaves the file alone."""
        text = json.dumps(self.content, indent=1)
        file = self.folder / "job.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text() != text:
            write_whole(file, text)

    @property
    def done(self) -> bool:
        return is_done(self.folder)

    def fail(self, why: str) -> None:
        """Notes why it failed, also for those that only report."""
        self.failure = why
        write_whole(self.folder / FAILED, json.dumps({"why": why}))

    def recall(self) -> str | None:
        """Returns, and notes, why it failed when it was tried last."""
        file = self.folder / FAILED
        if not self.done and file.is_file():
            self.failure = json.loads(file.read_text())["why"]
        return self.failure

    @property
    def size(self) -> int:
        """Returns its length on the bar."""
        return self.steps + OVERHEAD_STEPS

    def progress(self) -> int:
        """Returns how far it is on the bar."""
        if self.done or self.failure:
            return self.size
        return min(_last_step(self.folder / "metrics.jsonl"), self.steps)


@dataclass(frozen=True)
class _Running:
    """A process at work: its log, its line on the bar, and its place among those at once."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    line: TaskID
    slot: int


class Pool:
    """Runs jobs, at most `parallel` at once, which take the GPUs in turn where there are several.

    Args:
        parallel: processes.
        threads: of each process; None: as many as the environment says.
        console: where it is told.
    """

    def __init__(self, parallel: int, threads: int | None, console: Console):
        self.parallel, self.threads, self.console = parallel, threads, console
        self._gpus = visible_gpus() if parallel > 1 else []
        self._running: dict[Job, _Running] = {}

    def run(self, jobs: Iterable[Job]) -> None:
        """Runs all jobs that are not done; those that fail, and those that need them, get a `failure`."""
        waiting = [job for job in jobs if not job.done]
        for job in waiting:
            job.write()
        everything, ended = list(waiting), 0
        with _bar(self.console) as bar:
            total = bar.add_task("all runs", total=sum(j.size for j in everything))
            try:
                while waiting or self._running:
                    self._start(waiting, bar)
                    time.sleep(POLL_SECONDS)
                    for job in self._ended(bar):
                        ended += 1
                        self._tell(job, ended, len(everything))
                    waiting = [j for j in waiting if not self._hopeless(j)]
                    for job, running in self._running.items():
                        bar.update(running.line, completed=job.progress())
                    bar.update(total, completed=sum(j.progress() for j in everything))
            finally:
                self._stop()

    def _start(self, waiting: list[Job], bar: Progress) -> None:
        for job in list(waiting):
            if len(self._running) >= self.parallel:
                return
            if any(not before.done for before in job.after):
                continue
            waiting.remove(job)
            taken = {running.slot for running in self._running.values()}
            slot = next(i for i in range(self.parallel) if i not in taken)
            (job.folder / FAILED).unlink(missing_ok=True)
            log = (job.folder / "log.txt").open("ab")
            job.log_from = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "detmtl.comparing.worker", str(job.folder)],
                stdin=subprocess.PIPE,  # closed when this process is gone, however it went
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(job.device, slot),
            )
            line = bar.add_task(job.name, total=job.size)
            self._running[job] = _Running(process, log, line, slot)

    def _ended(self, bar: Progress) -> list[Job]:
        ended = [j for j, at in self._running.items() if at.process.poll() is not None]
        for job in ended:
            at = self._running.pop(job)
            at.log.close()
            if at.process.stdin is not None:
                at.process.stdin.close()
            bar.remove_task(at.line)
            if not job.done:
                job.fail(_why(job, at.process.returncode))
        return ended

    def _hopeless(self, job: Job) -> bool:
        """Notes, and returns, whether a job waits for one that has failed."""
        for before in job.after:
            if before.failure is not None:
                # in its own folder: with other arms the same labels are another job's
                job.fail(f"needs {before.name}, which failed")
                return True
        return False

    def _stop(self) -> None:
        for at in self._running.values():
            at.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                at.process.wait(10)
            at.process.kill()
            at.log.close()
        self._running.clear()

    def _tell(self, job: Job, ended: int, count: int) -> None:
        if job.failure:
            self.console.print(
                f"{job.name}: failed: {job.failure}; see {job.folder / 'log.txt'}",
                markup=False,
                soft_wrap=True,
            )
            return
        seconds = json.loads((job.folder / "done.json").read_text())["seconds"]
        self.console.print(f"{job.name}: {seconds:.0f} s ({ended} of {count})", markup=False)

    def _environment(self, device: str, slot: int) -> dict[str, str]:
        added = {"PYTHONPATH": os.pathsep.join(_paths()), "PYTHONUNBUFFERED": "1"}
        if self.threads:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            added |= dict.fromkeys(names, str(self.threads))
        # one that names a GPU, as cuda:1, is to have that
        if len(self._gpus) > 1 and device in ("auto", "cuda"):
            added["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        kept = {
            k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        }
        return kept | added


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if given is None else given.split(",")
    return [name.strip() for name in names[:count]]


def _paths() -> list[str]:
    """Returns where the process finds this package, and what the user has on the path."""
    given = os.environ.get("PYTHONPATH", "")
    return [str(PACKAGE_ROOT), *([given] if given else [])]


def _last_step(path: Path) -> int:
    """Returns the last step of a metrics.jsonl without reading all of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def _why(job: Job, status: int) -> str:
    """Returns the last error in the log of a job's last attempt, or its last line."""
    told = (job.folder / "log.txt").read_bytes()[job.log_from :].decode(errors="replace")
    lines = [line for line in told.splitlines() if line.strip()]
    errors = [line for line in lines[-200:] if line.startswith(("error: ", "failed: "))]
    if errors:
        return errors[-1].split(": ", 1)[1]
    if status < 0:
        return f"killed by signal {-status}"
    return lines[-1] if lines else f"exit status {status}"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=600,
    )
