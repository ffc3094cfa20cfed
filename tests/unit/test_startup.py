"""What starting psu-bin costs the machine that it runs on."""

import os
import subprocess
import sys

import pytest

CODE = """import ctypes, os, psu_bin, numpy
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
name = "OPENBLAS_NUM_THREADS"
print(len(os.listdir("/proc/self/task")), os.environ.get(name), libc.getenv(name.encode()).decode())"""


@pytest.mark.parametrize("asked, shown", [(None, "1 None 1"), ("2", f"{min(2, len(os.sched_getaffinity(0)))} 2 2")])
def test_numpy_starts_no_threads_unless_it_is_told_to(asked, shown):
    """Nor do the programs that regress starts hear of it: their environment is os.environ."""
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    if asked:
        environment["OPENBLAS_NUM_THREADS"] = asked
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown
