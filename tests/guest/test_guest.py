"""scripts/arm64-guest itself: the command runs in an arm64 kernel that traces, and its output and status come back."""

import subprocess
from pathlib import Path

import pytest

import psu_bin

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77


def test_guest():
    done = subprocess.run([ROOT / "scripts" / "arm64-guest", "--timeout", "300", "--", "python3", "-u",
                           "tests/guest/inside.py"], capture_output=True, text=True, timeout=600)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.stdout.splitlines() == [
        "machine aarch64 processors 2", "compiler 1 True", "ptrace True 34 73", "membarrier 0 0", "atomics True",
        f"modules {psu_bin.__version__}", "error"], done.stdout + done.stderr
    assert done.returncode == 7
