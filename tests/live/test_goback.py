"""A caller in a patch is in the middle of a call when functions that it will call go back, or on, to versions that change
registers in which it keeps values (-fipa-ra)."""

import json

from conftest import WAIT, psu_bin

from psu_bin.attach import meta, shim, target
from psu_bin.attach.process import Process


def gate_of(pid, name):
    """[kind, gate, counter index] of the function's gate, [] for none, by psu-bin's notes."""
    t = target.read(Process(pid))
    [f] = [f for f in meta.read(t.process, t.runtime()).functions if f.name == name]
    return f.current


def held(lab, *flags, everything=()):
    """The program, with a caller of the first patch in the middle; flags: of the patch, everything: of both."""
    running = lab.start(lab.program("goback", *everything))
    running.expect("^ready$")
    running.say("work")
    running.expect("^done 0 -1$")
    psu_bin("attach", running.pid, lab.patch("goback", "patch.c", *flags, *everything))
    running.say("work")
    running.expect("^held$")
    return running


def test_the_original_comes_back_and_changes_what_a_caller_keeps(lab):
    running = held(lab)
    psu_bin("revert", running.pid, "--original")
    # The original goes through a gate for the caller's sake, and all that the program has of the function finds it.
    assert gate_of(running.pid, "late")[0] == shim.FULL
    running.say("late")
    running.expect("^late 0$")
    running.say("go")
    running.expect("^done 0 -1$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    # Nobody keeps anything any more.
    assert gate_of(running.pid, "late") == []
    running.say("late")
    running.expect("^late 0$")
    running.say("work")
    running.expect("^done 0 -1$")
    [p] = json.loads(psu_bin("status", running.pid, "--json").out)["patches"]
    assert p["activations"] == 0 and p["state"] == "freed"


def test_it_is_patched_again_behind_its_gate(lab):
    running = held(lab)
    psu_bin("revert", running.pid, "--original")
    running.say("stay")
    running.expect("^staying$")
    psu_bin("attach", running.pid, lab.patch("goback", out="again.o"))
    running.say("late")
    running.expect("^late 1$")
    running.say("go")
    running.expect("^done 1 -1$")
    # Somebody who is in the original keeps no memory, and is not waited for.
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert [p["state"] for p in json.loads(psu_bin("status", running.pid, "--json").out)["patches"]] == ["freed", "current"]
    running.say("leave")
    running.expect("^left$")
    psu_bin("revert", running.pid)
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert gate_of(running.pid, "late") == []
    running.say("late")
    running.expect("^late 0$")


def test_a_function_that_a_patch_brought_along_changes_what_a_caller_keeps(lab):
    running = held(lab, "-DFRESH")
    psu_bin("attach", running.pid, lab.patch("goback", "spoiling.c", out="spoiling.o"))
    running.say("go")
    running.expect("^done 1 2$")
    running.say("work")
    running.expect("^held$")
    running.say("go")
    running.expect("^done 1 2$")


def test_without_debug_information_nobody_knows_what_is_a_result_and_revert_says_so(lab):
    running = held(lab, everything=("-g0",))
    ran = psu_bin("revert", running.pid, "--original")
    assert ran.err.count("\n") == 1 and ran.err.startswith("psu-bin: warning: late: the type of its result is not known")
    running.say("late")
    running.expect("^late 0$")
    running.say("go")
    running.expect("^done 0 -1$", reject="")        # what the compiler keeps where a result would be, is its own business
    psu_bin("wait", running.pid, "--timeout", WAIT)
    running.say("work")
    running.expect("^done 0 -1$")
