"""Programs with seccomp filters: where the agent may not do its work, attach says so and the program goes on as it was.

Many filters end the process at a call that they do not know.  So nothing may be tried: psu-bin reads the filter.
"""

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT, psu_bin, updates
from updating import Versions

from psu_bin.errors import PsuError

UPDATES = updates(100)
MPROTECT_EXEC, CLONE3 = 10001, 435
# In the second rows: read write fstat mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn getpid clone exit
# gettid futex clock_nanosleep exit_group set_robust_list rseq newfstatat madvise getrandom clone3: what a C program with threads uses
MEMBARRIER, CLONE, PRCTL, SYSINFO, *USUAL = {
    "x86_64": (324, 56, 157, 99,
               0, 1, 5, 9, 10, 11, 12, 13, 14, 15, 39, 56, 60, 186, 202, 230, 231, 273, 334, 262, 28, 318, CLONE3),
    "aarch64": (283, 220, 167, 179,
                63, 64, 80, 222, 226, 215, 214, 134, 135, 139, 172, 220, 93, 178, 98, 115, 94, 99, 293, 79, 233, 278, CLONE3),
}[platform.machine()]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may read another process' seccomp filters")


@pytest.mark.parametrize("when, action, kind, calls, words", [
    ("early", "kill", "deny", (MEMBARRIER,), "ends it at membarrier"),
    ("late", "kill", "deny", (MEMBARRIER,), "ends it at membarrier"),
    ("late", "errno", "deny", (MEMBARRIER,), "forbids membarrier with EPERM"),
    ("early", "kill", "deny", (MPROTECT_EXEC,), "ends it at mprotect(PROT_EXEC)"),
    ("late", "errno", "deny", (MPROTECT_EXEC,), "forbids mprotect(PROT_EXEC) with EPERM"),
    ("early", "kill", "allow", USUAL, "ends it at membarrier"),
    ("late", "kill", "deny", (PRCTL,), "ends it at prctl"),
    ("alone", "kill", "deny", (CLONE, CLONE3), "ends it at clone"),
    ("alone", "errno", "deny", (MPROTECT_EXEC,), "forbids mprotect(PROT_EXEC)"),
])
def test_a_filter_that_is_in_the_way(lab, when, action, kind, calls, words):
    running = lab.start(lab.program("sandbox"), when, action, kind, *calls)
    running.expect("^ready$")
    maps = open(f"/proc/{running.pid}/maps").read()
    versions = Versions(lab, "sandbox")
    ran = psu_bin("attach", running.pid, versions.object(1), check=False)
    assert ran.status == 1 and words in ran.err and ran.err.count("\n") == 1
    for v in range(UPDATES):
        with pytest.raises(PsuError) as refused:
            versions.attach(running.pid, v)
        assert words in str(refused.value)
    assert open(f"/proc/{running.pid}/maps").read() == maps
    running.say("")
    running.expect("^version 0$")


@pytest.mark.parametrize("when", ["early", "late", "alone"])
@pytest.mark.parametrize("action, calls", [("kill", (SYSINFO,)), ("errno", (PRCTL,))])
def test_a_filter_that_is_not_in_the_way(lab, when, action, calls):
    running = lab.start(lab.program("sandbox"), when, action, "deny", *calls)
    running.expect("^ready$")
    Versions(lab, "sandbox").run(running.pid, 1, UPDATES)
    running.say("")
    running.expect(f"^version {UPDATES}$")


def test_a_filter_that_psu_bin_may_not_read(lab):
    if subprocess.run(["setpriv", "--bounding-set=-sys_admin", "true"], capture_output=True).returncode:
        pytest.skip("capabilities cannot be dropped here")
    running = lab.start(lab.program("sandbox"), "late", "kill", "deny", SYSINFO)
    running.expect("^ready$")
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-m", "psu_bin", "attach",
               str(running.pid), str(Versions(lab, "sandbox").object(1))]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 1 and "only root may read" in ran.stderr
    running.say("")
    running.expect("^version 0$")


@pytest.mark.parametrize("how", ["strict", "filter", "late"])
def test_a_thread_in_a_sandbox_of_its_own(lab, how):
    """The agent is not in it; nevertheless no gate makes a system call that the thread would not survive."""
    running = lab.start(lab.program("alone"), how)
    versions = Versions(lab, "alone", "patch.c", "-DAROUND")
    first = 1
    if how == "late":
        running.expect("^waiting 0$")
        versions.run(running.pid, 1, 2)
        running.say("go")
        first = 3
    running.expect("^ready 0$")
    for v in range(first, UPDATES + 1):
        versions.attach(running.pid, v)
        running.expect(f"^alone {v}$")
    # Two threads print: either may come first.
    while f"version {UPDATES}" not in running.seen:
        running.next()
    psu_bin("revert", running.pid, "--original")
    running.expect("^alone 0$", reject="")
    assert running.alive()
