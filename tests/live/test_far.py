"""A program that is larger than a direct branch spans (AArch64: 128 MiB), so that its stubs are out of reach."""

import platform

import pytest
from conftest import GUARDED, MARKED, WAIT, psu_bin

from psu_bin.attach import mirrors, target
from psu_bin.attach.process import Process
from psu_bin.descriptor import MODULE_IBT

FAR = platform.machine() == "aarch64"


def numbers(running):
    """What each function gives for 7, and how many versions were there."""
    running.say("call")
    found = running.expect(r"^helper (\d+) direct (\d+) tail (\d+) pointed (\d+) hidden (\d+) least (\d+) in the pool (\d+)$")
    return [int(n) for n in found.groups()]


def alive(running):
    """The patches that have memory."""
    return [p["id"] for p in psu_bin("status", running.pid, "--json").json["patches"] if p["state"] != "freed"]


def expected(v, seen):
    tail = 7 + 101 * v
    return [7, 7 + v, tail, tail + 10000 * v, tail + 1000000 * v, 7 + v, seen]


@pytest.mark.parametrize("flags", [(), ("-no-pie",), (GUARDED,)], ids=" ".join)
def test_patched_again_and_again_reverted_and_freed(lab, flags):
    running = lab.start(lab.program("far", *flags, sources=("main.c", *(MARKED if flags == (GUARDED,) else ()))))
    running.expect("^ready$")
    here = target.read(Process(running.pid))
    module = next(m for m in here.modules if m.executable)
    assert module.far == FAR
    assert bool(module.descriptor.flags & MODULE_IBT) == (flags == (GUARDED,))
    assert numbers(running) == expected(0, 0)
    pages = set()
    for v in (1, 2, 3):
        psu_bin("attach", running.pid, lab.patch("far", "patch.c", f"-DV={v}", *flags))
        assert numbers(running) == expected(v, v)
        pages.add(tuple(mirrors.known(here.process, here.runtime(), module)))
    assert len(pages) == 1 and pages.pop(), "they are made once"
    psu_bin("revert", running.pid)
    assert numbers(running) == expected(2, 3)
    psu_bin("revert", running.pid, "--original")
    assert numbers(running) == expected(0, 3)
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert alive(running) == []
    for v in (4, 5):
        psu_bin("attach", running.pid, lab.patch("far", "patch.c", f"-DV={v}", "-DTAKEN", *flags))
        assert numbers(running) == expected(v, v)
    psu_bin("revert", running.pid, "--original")
    assert numbers(running) == expected(0, 5)
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert alive(running) == [5], "somebody may have the address of its new function"
    running.say("quit")
    running.expect("^end$")
