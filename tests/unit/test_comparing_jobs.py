"""How a comparison does its jobs: alone in its folder, on all GPUs."""

import os
import sys

import pytest
from rich.console import Console

from detmtl.comparing import jobs
from detmtl.comparing.jobs import FAILED, Job, Pool, visible_gpus
from detmtl.comparing.start import alone_in, start_alone
from detmtl.structures.errors import InputError

WORKER = """\
#!/bin/sh
[ -e $3/diverges ] && echo "failed: training diverged" && exit 1
echo "$CUDA_VISIBLE_DEVICES" > $3/gpu
echo '{"seconds": 1}' > $3/done.json
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Makes a pool whose workers only write down which GPU they see."""
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    return lambda parallel: Pool(parallel, None, Console(quiet=True))


def test_several_processes_of_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE: is 2, .* without torchrun, and with --jobs"):
        start_alone()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert start_alone().world == 1


def test_a_folder_is_one_comparisons_at_a_time(tmp_path, taken):
    with (
        taken(tmp_path) as process,
        pytest.raises(InputError, match=f"process {process} does runs there.* --report-only"),
        alone_in(tmp_path),
    ):
        pass
    with alone_in(tmp_path):  # what is left of an earlier one keeps nobody away
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_runs_at_once_take_the_gpus_in_turn(tmp_path, monkeypatch, pool):
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def seen(parallel, devices, name):
        todo = [
            Job(tmp_path / f"{name}{i}", "run", {}, device=device)
            for i, device in enumerate(devices)
        ]
        pool(parallel).run(todo)
        assert all(job.done and job.failure is None for job in todo)
        return [(job.folder / "gpu").read_text().strip() for job in todo]

    assert seen(3, ["auto", "cuda", "auto"], "three") == ["3", "5", "3"]
    assert seen(3, ["auto", "cpu", "cuda:1"], "named") == ["3", "", ""]
    assert seen(1, ["auto", "auto"], "one") == ["", ""]


def test_a_failure_is_remembered_until_it_is_tried_again(tmp_path, pool):
    def made():
        teacher = Job(tmp_path / "teacher", "a teacher", {})
        return [teacher, Job(tmp_path / "student", "a student", {}, after=[teacher])]

    whys = ["training diverged", "needs a teacher, which failed"]
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "diverges").touch()
    todo = made()
    pool(1).run(todo)
    assert [job.failure for job in todo] == whys
    assert [job.recall() for job in reversed(made())] == whys[::-1]
    (tmp_path / "teacher" / "diverges").unlink()
    pool(1).run(made())
    assert [job.recall() for job in made()] == [None, None]
    assert not (tmp_path / "teacher" / FAILED).exists()


def test_gpus_are_named_as_the_user_did(monkeypatch):
    monkeypatch.setattr(jobs.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, GPU-1a,-1,2")
    assert visible_gpus() == ["6", "GPU-1a"]
