"""Stacks that are used up inside patched functions, with a handler on another stack that leaves them (testprogs/overflow)."""

import platform

import pytest
from conftest import psu_bin
from updating import FULL, Versions

UPDATES = 20
# Where a return address may be in a register only, threads that never wait keep old versions (clearing.py).
NEVER_CLEARED = platform.machine() == "aarch64"


def pages(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[0])


@pytest.mark.parametrize("kind, flags", [("plain", ()), ("side", ("-DSIDE",)), ("full", (FULL,))])
def test_a_handler_leaves_a_stack_that_is_used_up(lab, kind, flags):
    running = lab.start(lab.program("overflow", *flags))
    versions = Versions(lab, "overflow", "patch.c", *flags)
    running.expect("^version 0$")
    running.expect("^overflows ")
    versions.run(running.pid, 1, UPDATES // 2)
    running.expect(f"^version {UPDATES // 2}$")
    before = pages(running.pid)
    versions.run(running.pid, UPDATES // 2 + 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    running.fresh()
    began = int(running.expect(r"^overflows (\d+)$")[1])
    assert int(running.expect(rf"^overflows (?!{began}$)(\d+)$")[1]) > began
    assert pages(running.pid) < before + 2000
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$")
    if not NEVER_CLEARED:
        # A full gate's own code goes deeper than what the original ever overwrites: an address that the last of them left there
        # keeps the last version, while the thread never waits (surplus.py).
        kept = 1 if kind == "full" else 0
        psu_bin("wait", running.pid, "--timeout", 5 if kept else 20, check=not kept)
        states = [p["state"] for p in psu_bin("status", running.pid, "--json").json["patches"]]
        assert states[:UPDATES - kept] == ["freed"] * (UPDATES - kept)
