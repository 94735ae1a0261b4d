"""A store whose writers are killed at random moments ends as the undisturbed one."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment


@pytest.mark.parametrize("writers", [1, 2])
def test_twenty_kills(writers):
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "store_kills.py")]
    command += ["--kills", "20", "--writers", str(writers), "--seed", str(writers)]
    done = subprocess.run(
        [*command, "--records", "2000"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"20 kills of {writers} writer(s)" in done.stdout
    assert "verdict: EQUAL" in done.stdout


def test_writing_labels_needs_no_torch():
    """Processes that only write or read a store start in a moment."""
    code = "import sys, detmtl.silver.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
