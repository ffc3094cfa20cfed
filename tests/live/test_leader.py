"""The first thread, the thread group's leader, ends by pthread_exit, others go on: Linux shows nothing of the process through it."""

import pytest
from conftest import WAIT, first_thread_ended, psu_bin, until
from updating import Versions

from psu_bin.attach import target, transaction


def states(pid):
    return [p["state"] for p in psu_bin("status", pid, "--json").json["patches"]]


@pytest.mark.parametrize("agent", ["start", "never"])       # never: a thread is borrowed to start it, and that one is gone
def test_it_leaves_before_the_first_patch(lab, agent):
    running = lab.start(lab.program("leader"), env={"PSU_AGENT": agent})
    running.expect("^version 0$")
    running.say("leave")
    until(lambda: first_thread_ended(running.pid))
    versions = Versions(lab, "leader")
    versions.run(running.pid, 1, 3)
    running.expect("^version 3$")
    psu_bin("revert", running.pid)
    running.expect("^version 2$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert states(running.pid) == ["freed", "current", "freed"]


def test_it_leaves_between_patches_and_inside_of_one(lab):
    running = lab.start(lab.program("leader"))
    versions = Versions(lab, "leader")
    versions.run(running.pid, 1, 2)
    running.expect("^version 2$")
    running.say("leave inside")
    until(lambda: first_thread_ended(running.pid))
    versions.attach(running.pid, 3)
    running.expect("^version 3$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert states(running.pid) == ["freed", "freed", "current"]


def test_a_call_that_it_left_by_longjmp_is_written_off(lab):
    running = lab.start(lab.program("leader"), 3000)        # as in test_leaving.py: for as long as all memory is looked at
    versions = Versions(lab, "leader")
    versions.attach(running.pid, 1)
    running.say("jump")
    running.expect("^jumped$")
    running.say("leave")
    until(lambda: first_thread_ended(running.pid))
    versions.attach(running.pid, 2)
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert states(running.pid) == ["freed", "current"]


@pytest.mark.parametrize("owner, step", [(target, "read"), (transaction.Transaction, "__enter__"), (transaction, "commit")])
def test_it_leaves_during_an_attach(lab, monkeypatch, owner, step):
    running = lab.start(lab.program("leader"))
    versions = Versions(lab, "leader")
    running.expect("^version 0$")
    real = getattr(owner, step)

    def leave_first(*arguments, **named):
        monkeypatch.setattr(owner, step, real)
        running.say("leave")
        until(lambda: first_thread_ended(running.pid))
        return real(*arguments, **named)

    monkeypatch.setattr(owner, step, leave_first)
    versions.run(running.pid, 1, 2)
    running.expect("^version 2$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert states(running.pid) == ["freed", "current"]
