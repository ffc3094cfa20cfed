"""Live tests, the same files as on the host, in the arm64 guest: instrumented on the host, run and patched on AArch64.

A choice that proves most for its time, in one boot for each size of pages: an attach takes seconds there, more when the program
keeps the processors busy.  scripts/arm64-live runs all of them, or those that it is given.
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
    # direct and tail calls, recursion, pointers in data, tables and registers, qsort, threads, dlsym; reverts
    "test_versions.py::test_every_way_of_calling_reaches_the_newest_version[-rdynamic]",
    "test_versions.py::test_a_call_in_progress_finishes_in_its_version_and_keeps_just_that",
    "test_versions.py::test_a_single_thread_is_borrowed_once_and_sees_no_eintr[wait-0]",
    "test_leaving.py::test_a_call_whose_way_back_may_be_in_a_register_only",
    "test_leaving.py::test_calls_left_for_good_and_one_that_only_sleeps[heap]",
    "test_versions.py::test_arguments_on_the_stack_arrive[gcc--O2]",
    "test_versions.py::test_virtual_functions_and_exceptions",
    # values that callers keep in x1 to x15, x18 and v0 to v31, and in scalable vectors, on which the kernel has its own views
    "test_relying.py::test_values_in_every_volatile_register_survive",
    "test_sve.py::test_scalable_vectors_arrive_and_are_kept[gcc]",
    "test_turning.py::test_code_in_which_branches_must_meet_marks_keeps_that",
    "test_turning.py::test_many_times_open_and_closed",
    "test_state.py::test_an_atomic_operation_that_the_program_has_not",
    "test_dies.py::test_killed_around_the_commit[ptrace CONT]",
    # a call back from a library: its return address is signed
    "test_borrowing.py::test_nobody_is_borrowed_who_may_be_inside_an_allocator[called by a library]",
    "test_scenarios.py::test_the_scenario_holds[overhead]",
]
# In a kernel with pages of 16 KiB: what is laid out in pages.
LARGER_PAGES = [
    # branches that do not reach
    "test_far.py::test_patched_again_and_again_reverted_and_freed[]",
    # branches that must meet landing marks, signed return addresses; relocations in DT_RELR
    "test_modules.py::test_a_program_and_its_library[marks and RELR]",
    "test_state.py::test_new_versions_share_the_variables",
]


@pytest.mark.skipif(platform.machine() == "aarch64", reason="the live tests run natively")
@pytest.mark.parametrize("pages, chosen", [(4, CHOSEN), (16, LARGER_PAGES)], ids=["4", "16"])
def test_live_tests_pass_on_aarch64(pages, chosen):
    # The Python that instruments on the host.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "scripts" / "arm64-live", "--timeout", "1300", "--pages", str(pages), "-q",
                           *(f"tests/live/{name}" for name in chosen)],
                          capture_output=True, text=True, timeout=1500, env=environment)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0 and f"{len(chosen)} passed" in done.stdout, done.stdout + done.stderr
