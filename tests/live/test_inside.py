"""Calls inside one patch object go to the body at once, and to the newest version from the moment that there is one."""

import pytest
from conftest import WAIT, psu_bin
from updating import Versions

THREADS = 3
BUILDS = [("gcc", "-O2"), ("clang", "-O0"), ("gcc", "-O2 -fPIC -ffunction-sections"), ("gcc", "-O1 -no-pie -fno-pic")]


def patches(pid):
    return {p["id"]: p for p in psu_bin("status", pid, "--json").json["patches"]}


@pytest.mark.parametrize(("cc", "flags"), BUILDS)
def test_a_loop_of_an_old_version_calls_the_newest(lab, cc, flags):
    running = lab.start(lab.program("inside", *flags.split(), cc=cc), THREADS)
    how = [f for f in flags.split() if f != "-no-pie"]
    full, partial = (Versions(lab, "inside", "patch.c", *how, *more, cc=cc) for more in ((), ("-DPARTIAL",)))
    running.expect("^ready$")
    full.attach(running.pid, 1)
    running.expect("^version 1$")
    running.say("leave")
    for _ in range(THREADS):
        running.expect("^left 0$")
    # From here all loops are in version 1, whatever comes.
    for v in range(2, 22):
        (partial if v % 3 else full).attach(running.pid, v)
        for _ in range(THREADS):
            running.expect(f"^version {v}$", reject=f"ERROR|^version (?!{v - 1}$|{v}$)")
    now = patches(running.pid)
    assert (now[1]["state"], now[1]["activations"]) == ("retired", THREADS)
    running.say("leave")
    for _ in range(THREADS):
        running.expect("^left 1$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    # `loop` is still that of version 21, the others too; then the others only.
    full.attach(running.pid, 22)
    partial.attach(running.pid, 23)
    assert [i for i, p in patches(running.pid).items() if p["state"] == "current"] == [22, 23]
    running.say("leave")
    for _ in range(THREADS):
        running.expect("^left 21$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    partial.attach(running.pid, 24)
    for _ in range(THREADS):
        running.expect("^version 24$")


def test_reverts(lab):
    # What a revert brings back calls what is current, not what it was linked with.
    running = lab.start(lab.program("inside"), 1)
    full = Versions(lab, "inside")
    partial = Versions(lab, "inside", "patch.c", "-DPARTIAL")
    running.expect("^ready$")
    full.attach(running.pid, 1)
    running.expect("^version 1$")
    running.say("leave")
    running.expect("^left 0$")
    partial.attach(running.pid, 2)
    running.expect("^version 2$")
    full.attach(running.pid, 3)
    running.expect("^version 3$")
    running.say("leave")
    running.expect("^left 1$")
    psu_bin("revert", running.pid, 1)           # below the others: nothing changes
    running.say("leave")
    running.expect("^left 3$")
    running.fresh()
    psu_bin("revert", running.pid, 3)           # `loop` is the program's, the others are version 2
    running.expect("^ERROR [23] [23] 2 after 3$", reject="")
    running.say("leave")
    running.expect("^left 3$")
    running.say("leave")
    running.expect("^left 0$")
    psu_bin("revert", running.pid, "--original")
    running.expect("^ERROR [02] [02] 0 after 2$", reject="")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert {p["state"] for p in patches(running.pid).values()} == {"freed"}
