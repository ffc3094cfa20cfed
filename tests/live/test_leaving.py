"""Functions that are left without a return: what they leave in the counts is found, and their old versions are freed."""

import platform

import pytest
from conftest import SLOWNESS, WAIT, psu_bin, updates
from updating import FULL, Versions

from psu_bin.attach import status, surplus

UPDATES = updates(100)
# Where a return address may be in a register only, a thread must wait before it can be told that it is in no old version.
IN_REGISTERS = platform.machine() == "aarch64"
PAUSE = (round(300 * SLOWNESS),) if IN_REGISTERS else ()      # ms, longer than a look takes


@pytest.mark.parametrize("way, flags", [
    ("longjmp", ()), ("siglongjmp", ()), ("exit", ()), ("cancel", ()), ("async", ()), ("siglongjmp", (FULL,)), ("alternate", ())])
def test_old_versions_are_freed(lab, way, flags):
    running = lab.start(lab.program("leaving", *flags), way, 4, *PAUSE)
    versions = Versions(lab, "leaving")
    running.expect("^ready$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]
    turns = int(running.expect(r"^turns (\d+)$")[1])
    while int(running.expect(r"^turns (\d+)$")[1]) < turns + 2000:        # threads may print out of order
        pass


def test_threads_that_block_right_after_a_jump(lab):
    # Nothing overwrites what the calls left below the stack pointers.
    running = lab.start(lab.program("leaving"), "rest", 4)
    versions = Versions(lab, "leaving")
    running.expect("^ready$")
    versions.run(running.pid, 1, 3)
    running.expect("^version 3$")
    running.say("rest")
    running.expect("^resting$")
    psu_bin("revert", running.pid, "--original")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert {p["state"] for p in psu_bin("status", running.pid, "--json").json["patches"]} == {"freed"}


@pytest.mark.parametrize("how", ["exit", "cancel", "return"])
@pytest.mark.parametrize("kind, flags", [("plain", ()), ("side", ("-DSIDE",)), ("full", (FULL,))])
def test_start_routines_that_end_their_threads(lab, how, kind, flags):
    running = lab.start(lab.program("starting", *flags), how)
    versions = Versions(lab, "starting", "patch.c", *flags)
    running.expect("^ready$")
    for v in range(1, 4):
        versions.attach(running.pid, v)
        running.say("")
        running.expect(f"^version {v}$")
    # The stacks of the threads of the last version are not used again.
    psu_bin("revert", running.pid, "--original")
    psu_bin("wait", running.pid, "--timeout", 20)
    assert {p["state"] for p in psu_bin("status", running.pid, "--json").json["patches"]} == {"freed"}


def resume(running, newest):
    """The parked call, of version 1, goes on and ends; nothing keeps its version any more."""
    running.say("resume")
    running.expect("^finished 1$")
    running.expect("^resumed$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    running.say("version")
    running.expect(f"^version {newest}$")


@pytest.mark.parametrize("place", ["heap", "mapping", "static", "frame", "alternate"])
def test_calls_left_for_good_and_one_that_only_sleeps(lab, place):
    running = lab.start(lab.program("parked"), place)
    versions = Versions(lab, "parked")
    versions.attach(running.pid, 1)
    running.say("park")
    running.expect("^parked$")
    running.say("jump")
    running.expect("^jumped$")
    versions.attach(running.pid, 2)
    running.say("jump")
    running.expect("^jumped$")
    versions.attach(running.pid, 3)
    running.say("version")
    running.expect("^version 3$")
    # Version 2 goes, version 1 stays: somebody will return to it.
    late = psu_bin("wait", running.pid, "--timeout", 2, check=False)
    assert (late.status, late.err.count("1 retired object ")) == (1, 1), late
    states = {p["id"]: p for p in psu_bin("status", running.pid, "--json").json["patches"]}
    assert [states[i]["state"] for i in (1, 2, 3)] == ["retired", "freed", "current"]
    resume(running, 3)


def test_a_call_below_the_stack_pointer(lab):
    """A handler is on an alternate stack above the call that it has interrupted, in the same thread's stack."""
    running = lab.start(lab.program("handled"))
    versions = Versions(lab, "handled")
    versions.attach(running.pid, 1)
    running.say("park")
    running.expect("^parked$")
    versions.attach(running.pid, 2)
    late = psu_bin("wait", running.pid, "--timeout", 3, check=False)
    assert (late.status, late.err.count("1 retired object ")) == (1, 1), late
    resume(running, 2)


@pytest.mark.parametrize("pause", [0, 3000])
def test_jumping_threads_that_wait_now_and_then_or_never(lab, pause):
    running = lab.start(lab.program("leaving"), "longjmp", 2, pause)
    versions = Versions(lab, "leaving")
    running.expect("^ready$")
    versions.run(running.pid, 1, 3)
    running.expect("^version 3$")
    kept = IN_REGISTERS and not pause
    psu_bin("wait", running.pid, "--timeout", 5 if kept else WAIT, check=not kept)
    patches = psu_bin("status", running.pid, "--json").json["patches"]
    assert patches[0]["state"] == ("retired" if kept else "freed")
    if kept:
        assert "or they were left without returning (longjmp), which cannot be told: thread" in patches[0]["kept_because"]
    turns = int(running.expect(r"^turns (\d+)$")[1])
    while int(running.expect(r"^turns (\d+)$")[1]) < turns + 2000:        # threads may print out of order
        pass


def test_a_call_whose_way_back_may_be_in_a_register_only(lab):
    running = lab.start(lab.program("parked"), "leaf")
    versions = Versions(lab, "parked")
    versions.attach(running.pid, 1)
    running.say("park")
    running.expect("^parked$")
    versions.attach(running.pid, 2)
    assert psu_bin("wait", running.pid, "--timeout", 3, check=False).status == 1
    old = psu_bin("status", running.pid, "--json").json["patches"][0]
    assert old["state"] == "retired" and "1 call in progress of thread" in old["kept_because"]
    resume(running, 2)


def test_exceptions_in_a_plugin_of_a_host_that_is_not_instrumented(lab):
    host = lab.program("throwing", sources=("host.cc",), cc="g++", instrument=False, out="host")
    plugin = lab.program("throwing", "-fPIC", "-shared", "-Dmain=run_plugin", "-DPLUGIN", sources=("main.cc",), cc="g++",
                         out="plugin.so")
    running = lab.start(host, plugin, 4)
    versions = Versions(lab, "throwing", "patch.cc", "-fPIC", "-DPLUGIN", cc="g++")
    running.expect("^ready$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert [p.id for p in status.read(running.pid).patches if p.state != "freed"] == [UPDATES]
    psu_bin("revert", running.pid, "--original")
    running.fresh()
    turns = int(running.expect(r"^turns (\d+)$")[1])
    running.expect(f"^turns {turns + 20000}$")


@pytest.mark.parametrize("cc", ["g++", "clang++"])
def test_exceptions(lab, cc, monkeypatch):
    # The gates count such calls out themselves: nothing is left to write off.
    monkeypatch.setattr(surplus, "write_off", lambda _, found: pytest.fail("written off") if found.abandoned else False)
    running = lab.start(lab.program("throwing", sources=("main.cc",), cc=cc), 4)
    versions = Versions(lab, "throwing", "patch.cc", cc=cc)
    running.expect("^ready$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    status.wait(running.pid, WAIT)
    assert [p.id for p in status.read(running.pid).patches if p.state != "freed"] == [UPDATES]
    turns = int(running.expect(r"^turns (\d+)$")[1])
    running.expect(f"^turns {turns + 20000}$")
