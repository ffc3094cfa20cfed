"""Full gates, which keep values in volatile registers for callers, where calls do not simply return (testprogs/full)."""

import pytest
from conftest import MACHINE, SLOWNESS, WAIT, psu_bin, updates
from updating import Versions

from psu_bin import descriptor
from psu_bin.elf import Binary

UPDATES = updates(100)
REPLACED = {"down", "worked", "jumping", "yielding"}
# r8, r9, xmm8, xmm9 (xmm0 and xmm1 count as results); x11, x12, v16 with v17
RELIED_ON = {"x86_64": 0x3030300, "aarch64": 1 << 11 | 1 << 12 | 1 << 24}[MACHINE]
# Where a return address may be in a register only, a thread must wait before it can be told that it is in no old version.
PAUSE = (round(300 * SLOWNESS),) if MACHINE == "aarch64" else ()
DEEP = {"x86_64": 100_000, "aarch64": 15_000}[MACHINE]      # levels


@pytest.fixture
def program(lab):
    program = lab.program("full", "-fno-omit-frame-pointer", *(("-mno-red-zone",) if MACHINE == "x86_64" else ()))
    binary = Binary.read(program)
    found = descriptor.decode(descriptor.gather(binary.bytes_at, binary.dyn(descriptor.DT_PSU), "full"), "full").functions
    assert {f.name for f in found if f.preserve & RELIED_ON == RELIED_ON} == REPLACED
    return program


def memory(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[0])


@pytest.mark.parametrize("how", ["storm", "jump", "contexts"])
def test_values_are_kept(lab, program, how):
    running = lab.start(program, how, *PAUSE)
    versions = Versions(lab, "full")
    running.expect("^version 0$")
    versions.run(running.pid, 1, UPDATES // 2)
    before = memory(running.pid)
    versions.run(running.pid, UPDATES // 2 + 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    running.fresh()
    turns, handled = map(int, running.expect(r"^turns (\d+) (\d+)$").groups())
    while True:
        now = running.expect(r"^turns (\d+) (\d+)$")
        if int(now[1]) > turns + 1 and (how != "storm" or int(now[2]) > handled + 200):
            break
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]
    assert memory(running.pid) < before + 2000      # pages; what calls left without a return kept is found again
    running.fresh()
    running.expect("^turns ")


def test_until_the_stack_is_used_up(lab, program):
    running = lab.start(program, "deep")
    versions = Versions(lab, "full")
    running.expect("^version 0$")
    for v in range(1, 4):
        versions.attach(running.pid, v)
        if v > 1:                           # so many calls are in the version before
            running.say("")
            assert int(running.expect(r"^levels (\d+)$")[1]) > DEEP
        running.expect(f"^bottom {v}$")
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["activations"]] == [3]
    psu_bin("revert", running.pid, "--original")
    running.say("")
    running.expect("^levels ")
    running.expect("^version 0$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
