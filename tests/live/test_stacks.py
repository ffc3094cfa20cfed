"""Code that moves the stack pointer itself: a suspended coroutine keeps the object that it will go on in (testprogs/stacks)."""

import pytest
from conftest import WAIT, psu_bin
from updating import Versions


@pytest.mark.parametrize("flags", [(), ("-O0",), ("-fPIC",), ("-DPOINTER",), ("-DPROGRAMS",)], ids=str)
def test_a_suspended_coroutine_keeps_its_version(lab, flags):
    running = lab.start(lab.program("stacks", *(f for f in flags if f.startswith("-D"))))
    versions = Versions(lab, "stacks", "patch.c", *flags)
    running.expect("^ready$")
    versions.attach(running.pid, 1)
    running.say("start")
    running.expect("^suspended in 1$")
    versions.run(running.pid, 2, 4)
    late = psu_bin("wait", running.pid, "--timeout", 2, check=False)
    assert (late.status, late.err.count("1 retired object ")) == (1, 1), late
    for _ in range(3):
        running.say("resume")
        running.expect("^suspended in 1$")
    kept = [p["id"] for p in psu_bin("status", running.pid, "--json").json["patches"] if p["state"] != "freed"]
    assert kept == [1, 4]
    running.say("start")               # the first coroutine's stack is used again: nobody will return to it
    running.expect("^suspended in 4$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    running.say("resume")
    running.expect("^suspended in 4$")
