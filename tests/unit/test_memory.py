"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from detmtl.engine.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert not {kept} or keep_freed_memory()
block = bytearray(2**26)
del block
before = faults()
for _ in range(8):
    block = bytearray(2**26)
    del block
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    faults = {}
    for kept in (False, True):
        command = [sys.executable, "-c", SCRIPT.format(kept=kept)]
        faults[kept] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert faults[True] * 10 < faults[False]
