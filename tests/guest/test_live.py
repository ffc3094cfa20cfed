"""Live tests, the same files as on the host, in the arm64 guest: instrumented on the host, run and patched on AArch64.

A choice, because an attach takes many seconds there, more when the program uses both processors.  Not all of the
others can pass unchanged: gcc's section anchors, on by default for AArch64, make patches be refused, with
-fno-section-anchors named as the remedy.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77

CHOSEN = [
    "test_versions.py::test_a_call_in_progress_finishes_in_its_version_and_keeps_just_that",
    "test_versions.py::test_a_single_thread_is_borrowed_once_and_sees_no_eintr[wait]",
    "test_leaving.py::test_threads_that_block_right_after_a_jump",
    "test_leaving.py::test_a_call_whose_way_back_may_be_in_a_register_only",
    "test_leaving.py::test_calls_left_for_good_and_one_that_only_sleeps[heap]",
]


@pytest.mark.skipif(platform.machine() == "aarch64", reason="the live tests run natively")
def test_live_tests_pass_on_aarch64():
    # pytest's own files are unlinked while open, which the shared folder cannot do; both sides see the tests' folders.
    script = ('folder=$TMPDIR; export TMPDIR=/tmp PSU_TEST_PATIENCE=240; '
              'exec python3 -u -m pytest -p no:cacheprovider --basetemp=$folder/pytest -q "$@"')
    # The Python that instruments on the host.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "scripts" / "arm64-guest", "--timeout", "900", "--", "sh", "-c", script, "sh",
                           *(f"tests/live/{name}" for name in CHOSEN)],
                          capture_output=True, text=True, timeout=1500, env=environment)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0 and f"{len(CHOSEN)} passed" in done.stdout, done.stdout + done.stderr
